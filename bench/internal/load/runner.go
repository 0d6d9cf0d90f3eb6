package load

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/rediscache/rediscache/bench/client"
)

// Spec is what one slice does.
type Spec struct {
	Callers   int
	ValueSize int
	Mix       Mix
	Warmup    time.Duration // runs before the measurement and is not counted
	Slice     time.Duration // how long the measurement lasts
}

// Sample is what one slice measured.
type Sample struct {
	Ops            int64   // answered as they should be
	Errors         int64   // failed, or answered with what is not the key's value
	FirstError     string  // one of them, empty where there is none
	OpsPerSec      float64 // over the time until the last caller ended
	P50, P99       time.Duration
	AllocsPerOp    float64
	BytesPerOp     float64
	CPUPerOp       time.Duration // of this process
	ServerCPUPerOp time.Duration // of the server
}

// Runner runs slices over the same keys. Its histograms and buffers are made
// once, so that no slice pays for them.
type Runner struct {
	keys      []string
	serverCPU func() time.Duration
	workers   []*worker
	total     *hdrhistogram.Histogram
	stop      atomic.Bool
}

// NewRunner returns a runner for keys. serverCPU tells how much processor time
// the server has used so far.
func NewRunner(keys []string, serverCPU func() time.Duration) *Runner {
	return &Runner{keys: keys, serverCPU: serverCPU, total: newHistogram()}
}

// newHistogram covers a nanosecond to a minute with two digits, which is 30 KiB.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, int64(time.Minute), 2)
}

// Run warms c up and measures it. Callers pass context.Background, so that no
// client pays for watching a context; when ctx ends, the callers stop after
// the operation that they are in.
func (r *Runner) Run(ctx context.Context, c client.Client, spec Spec) (Sample, error) {
	r.prepare(spec)
	r.stop.Store(false)
	defer context.AfterFunc(ctx, func() { r.stop.Store(true) })()

	if spec.Warmup > 0 {
		r.drive(c, spec, spec.Warmup)
		r.prepare(spec)
	}
	runtime.GC() // each client starts with an empty heap
	sample := r.measure(c, spec)
	return sample, ctx.Err()
}

// prepare empties what the workers of the slice before have counted.
func (r *Runner) prepare(spec Spec) {
	for len(r.workers) < spec.Callers {
		r.workers = append(r.workers, newWorker(len(r.workers), r.keys))
	}
	for _, w := range r.workers[:spec.Callers] {
		w.reset(spec.ValueSize)
	}
}

func (r *Runner) measure(c client.Client, spec Spec) Sample {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	cpu, server := ProcessCPU(), r.serverCPU()
	elapsed := r.drive(c, spec, spec.Slice)
	cpu, server = ProcessCPU()-cpu, r.serverCPU()-server
	runtime.ReadMemStats(&after)

	s := r.collect(spec.Callers)
	if s.Ops == 0 {
		return s
	}
	n := float64(s.Ops)
	s.OpsPerSec = n / elapsed.Seconds()
	s.AllocsPerOp = float64(after.Mallocs-before.Mallocs) / n
	s.BytesPerOp = float64(after.TotalAlloc-before.TotalAlloc) / n
	s.CPUPerOp = time.Duration(float64(cpu) / n)
	s.ServerCPUPerOp = time.Duration(float64(server) / n)
	return s
}

// drive lets all callers start at once and returns when the last has ended.
func (r *Runner) drive(c client.Client, spec Spec, d time.Duration) time.Duration {
	var ready, done sync.WaitGroup
	ready.Add(spec.Callers)
	start := make(chan struct{})
	var begin time.Time // written before start is closed
	for _, w := range r.workers[:spec.Callers] {
		done.Go(func() {
			ready.Done()
			<-start
			w.run(c, spec, begin.Add(d), &r.stop)
		})
	}
	ready.Wait()
	begin = time.Now()
	close(start)
	done.Wait()
	return time.Since(begin)
}

func (r *Runner) collect(callers int) Sample {
	var s Sample
	r.total.Reset()
	for _, w := range r.workers[:callers] {
		s.Ops += w.ops
		s.Errors += w.errors
		if s.FirstError == "" && w.firstErr != nil {
			s.FirstError = w.firstErr.Error()
		}
		r.total.Merge(w.latency)
	}
	s.P50 = time.Duration(r.total.ValueAtQuantile(50))
	s.P99 = time.Duration(r.total.ValueAtQuantile(99))
	return s
}
