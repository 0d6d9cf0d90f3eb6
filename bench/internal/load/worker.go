package load

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/rediscache/rediscache/bench/client"
)

// errForeign means that a GET was answered with something that is not the
// value of its key.
var errForeign = errors.New("bench: a GET returned what is not its key's value")

// worker is one caller. What it counts is its own, so that counting needs no
// lock.
type worker struct {
	keys    []string
	number  uint64
	seed    *rand.PCG
	rng     *rand.Rand // draws from seed
	buf     []byte     // the value to SET, reused: no client may keep it
	latency *hdrhistogram.Histogram

	ops, errors int64
	firstErr    error
}

func newWorker(n int, keys []string) *worker {
	w := &worker{keys: keys, number: uint64(n), seed: new(rand.PCG), latency: newHistogram()}
	w.rng = rand.New(w.seed)
	return w
}

// reset seeds by the worker's number: each client gets the same keys in the
// same order.
func (w *worker) reset(valueSize int) {
	w.seed.Seed(w.number, 0)
	if len(w.buf) != valueSize {
		w.buf = make([]byte, valueSize)
		Fill(w.buf, w.keys[0])
	}
	w.latency.Reset()
	w.ops, w.errors, w.firstErr = 0, 0, nil
}

// run issues one operation after another until the deadline has passed. The
// clock is read once an operation: the end of one is the start of the next.
func (w *worker) run(c client.Client, spec Spec, deadline time.Time, stop *atomic.Bool) {
	for last := time.Now(); last.Before(deadline) && !stop.Load(); {
		err := w.operate(c, spec)
		now := time.Now()
		w.count(err, now.Sub(last))
		last = now
	}
}

func (w *worker) operate(c client.Client, spec Spec) error {
	key := w.keys[w.rng.IntN(len(w.keys))]
	if w.rng.IntN(spec.Mix.Gets+spec.Mix.Sets) < spec.Mix.Sets {
		refill(w.buf, key)
		return c.Set(context.Background(), key, w.buf)
	}
	value, err := c.Get(context.Background(), key)
	if err == nil && !Check(value, key, spec.ValueSize) {
		return errForeign
	}
	return err
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
