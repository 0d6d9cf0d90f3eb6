package load

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/rediscache/rediscache/bench/internal/arrivals"
)

// Work is what the callers of a slice do. It returns the operation that a caller
// repeats; the caller's number makes each client get the same keys in the same order.
type Work func(caller int) Op

// Op is one operation.
type Op struct {
	// Do is what is measured. Its error is counted.
	Do func() error
	// Before prepares the next Do and is not timed. Its allocations and its CPU are
	// counted. Nil prepares nothing.
	Before func() error
}

// Spec is how long and with how many callers a slice runs.
type Spec struct {
	Callers int
	Warmup  time.Duration // runs before the measurement and is not counted
	Slice   time.Duration // how long the measurement lasts
	Weight  int           // how many operations one Do counts as; zero is one
}

// Sample is what one slice measured.
type Sample struct {
	Ops            int64   // answered as they should be
	Errors         int64   // failed, or answered with what is not the key's value
	FirstError     string  // one of them, empty where there is none
	OpsPerSec      float64 // over the time until the last caller ended
	P50, P99, P999 time.Duration
	AllocsPerOp    float64
	BytesPerOp     float64
	CPUPerOp       time.Duration // of this process
	ServerCPUPerOp time.Duration // of the server
	Spinning       float64       // the share of the processors that spinning processes had, in per cent
	Asked          float64       // the rate of an open loop, in operations a second
}

// Runner runs slices. Its histograms are made once, so that no slice pays for them.
type Runner struct {
	serverCPU func() time.Duration
	workers   []*worker
	total     *hdrhistogram.Histogram
	stop      atomic.Bool
}

// NewRunner returns a runner. serverCPU returns how much processor time the server
// has used so far.
func NewRunner(serverCPU func() time.Duration) *Runner {
	return &Runner{serverCPU: serverCPU, total: newHistogram()}
}

// newHistogram covers a nanosecond to a minute with two digits, which is 30 KiB.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, int64(time.Minute), 2)
}

// Run warms up and measures callers that issue one operation after another: a closed
// loop. When ctx ends, the callers stop after the operation that they are in.
func (r *Runner) Run(ctx context.Context, work Work, spec Spec) (Sample, error) {
	r.prepare(work, spec)
	r.stop.Store(false)
	defer context.AfterFunc(ctx, func() { r.stop.Store(true) })()

	if spec.Warmup > 0 {
		r.drive(spec, spec.Warmup)
		r.prepare(work, spec)
	}
	sample := r.metered(func() Sample {
		elapsed := r.drive(spec, spec.Slice)
		return r.collect(spec, elapsed)
	})
	return sample, ctx.Err()
}

// prepare gives each worker its operation anew and empties what it has counted.
func (r *Runner) prepare(work Work, spec Spec) {
	for len(r.workers) < spec.Callers {
		r.workers = append(r.workers, &worker{latency: newHistogram()})
	}
	for i, w := range r.workers[:spec.Callers] {
		w.reset(work(i))
	}
}

// metered adds to the sample of measure what the process and the server have used.
func (r *Runner) metered(measure func() Sample) Sample {
	runtime.GC() // each client starts with an empty heap
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu, server := ProcessCPU(), r.serverCPU()
	s := measure()
	cpu, server = ProcessCPU()-cpu, r.serverCPU()-server
	runtime.ReadMemStats(&after)
	if s.Ops == 0 {
		return s
	}
	n := float64(s.Ops)
	s.AllocsPerOp = float64(after.Mallocs-before.Mallocs) / n
	s.BytesPerOp = float64(after.TotalAlloc-before.TotalAlloc) / n
	s.CPUPerOp = time.Duration(float64(cpu) / n)
	s.ServerCPUPerOp = time.Duration(float64(server) / n)
	return s
}

// drive lets all callers start at once and returns how long they took until the last
// has ended, without what they prepared.
func (r *Runner) drive(spec Spec, d time.Duration) time.Duration {
	var ready, done sync.WaitGroup
	ready.Add(spec.Callers)
	start := make(chan struct{})
	var begin time.Time // written before start is closed
	for _, w := range r.workers[:spec.Callers] {
		done.Go(func() {
			ready.Done()
			<-start
			w.run(begin.Add(d), &r.stop)
		})
	}
	ready.Wait()
	begin = time.Now()
	close(start)
	done.Wait()
	elapsed := time.Since(begin)
	var prepared time.Duration
	for _, w := range r.workers[:spec.Callers] {
		prepared += w.prepared
	}
	return elapsed - prepared/time.Duration(spec.Callers)
}

func (r *Runner) collect(spec Spec, elapsed time.Duration) Sample {
	var s Sample
	r.total.Reset()
	for _, w := range r.workers[:spec.Callers] {
		s.Ops += w.ops * int64(max(1, spec.Weight))
		s.Errors += w.errors
		if s.FirstError == "" && w.firstErr != nil {
			s.FirstError = w.firstErr.Error()
		}
		r.total.Merge(w.latency)
	}
	s.OpsPerSec = float64(s.Ops) / elapsed.Seconds()
	s.P50 = time.Duration(r.total.ValueAtQuantile(50))
	s.P99 = time.Duration(r.total.ValueAtQuantile(99))
	s.P999 = time.Duration(r.total.ValueAtQuantile(99.9))
	return s
}

// Open warms up and measures an open loop: rate operations a second begin, each in a
// goroutine of its own, whether or not those before have ended. The latency of one
// counts from when it was due. Open returns when all have ended, or ctx.
func (r *Runner) Open(ctx context.Context, do func(i int) error, rate int, warmup, slice time.Duration) (Sample, error) {
	if n := calls(rate, warmup); n > 0 {
		if _, err := open(ctx, do, rate, n); err != nil {
			return Sample{}, err
		}
	}
	var err error
	s := r.metered(func() (s Sample) {
		s, err = open(ctx, do, rate, calls(rate, slice))
		return s
	})
	return s, err
}

// calls returns how many operations begin in d.
func calls(rate int, d time.Duration) int { return int(float64(rate) * d.Seconds()) }

func open(ctx context.Context, do func(i int) error, rate, n int) (Sample, error) {
	outcomes := make([]outcome, n)
	var under sync.WaitGroup
	err := arrivals.Run(rate, n, func(i int, due time.Time) bool {
		under.Go(func() {
			outcomes[i].err = do(i)
			outcomes[i].due, outcomes[i].end = due, time.Now()
		})
		return ctx.Err() == nil
	})
	under.Wait()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return Sample{}, err
	}
	return summary(outcomes, rate), nil
}

// outcome is what became of one operation of an open loop.
type outcome struct {
	due, end time.Time
	err      error
}

// summary counts the outcomes of an open loop, which are in the order of their times.
// A client that does not keep the rate ends its last calls later and later: the median
// of the last tenth is how late it is, and the rate that it had is the calls over the
// time until then.
func summary(all []outcome, rate int) Sample {
	s := Sample{Asked: float64(rate)}
	took := make([]time.Duration, 0, len(all))
	for _, o := range all {
		if o.err != nil {
			s.Errors++
			if s.FirstError == "" {
				s.FirstError = o.err.Error()
			}
			continue
		}
		took = append(took, o.end.Sub(o.due))
	}
	s.Ops = int64(len(took))
	if s.Ops == 0 {
		return s
	}
	last := slices.Sorted(slices.Values(took[len(took)*9/10:]))
	elapsed := float64(len(all))/float64(rate) + Quantile(last, 500).Seconds()
	s.OpsPerSec = float64(s.Ops) / elapsed
	slices.Sort(took)
	s.P50, s.P99, s.P999 = Quantile(took, 500), Quantile(took, 990), Quantile(took, 999)
	return s
}

// Quantile returns the smallest of sorted that is at least as large as thousandths of
// them. It is zero where there are none.
func Quantile(sorted []time.Duration, thousandths int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, (len(sorted)*thousandths+999)/1000-1)]
}
