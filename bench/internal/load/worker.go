package load

import (
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// worker is one caller. What it counts is its own, so that counting needs no
// lock.
type worker struct {
	op      Op
	latency *hdrhistogram.Histogram

	ops, errors int64
	firstErr    error
	prepared    time.Duration // in Before
}

func (w *worker) reset(op Op) {
	w.op = op
	w.latency.Reset()
	w.ops, w.errors, w.firstErr, w.prepared = 0, 0, nil, 0
}

// run issues one operation after another until the deadline has passed. The
// clock is read once an operation: the end of one is the start of the next.
func (w *worker) run(deadline time.Time, stop *atomic.Bool) {
	for last := time.Now(); last.Before(deadline) && !stop.Load(); {
		if w.op.Before != nil {
			if err := w.op.Before(); err != nil {
				w.count(err, 0)
			}
			now := time.Now()
			w.prepared += now.Sub(last)
			last = now
		}
		err := w.op.Do()
		now := time.Now()
		w.count(err, now.Sub(last))
		last = now
	}
}

func (w *worker) count(err error, took time.Duration) {
	if err != nil {
		w.errors++
		if w.firstErr == nil {
			w.firstErr = err
		}
		return
	}
	w.ops++
	// An operation of more than a minute is beyond the histogram: it counts as one
	// of a minute.
	_ = w.latency.RecordValue(int64(min(took, time.Minute)))
}
