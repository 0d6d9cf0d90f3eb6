package load

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
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
