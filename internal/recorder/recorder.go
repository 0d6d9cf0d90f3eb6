// Package recorder is the observer of the packages that export metrics: it records how long
// calls take and which fail. These packages are modules of their own.
package recorder

import (
	"context"
	"sync"
	"time"

	"github.com/rediscache/rediscache"
)

// Recorder has a histogram of each operation, and of each kind of its errors. It records one
// duration for each call, also for a call with many keys, and one for each step of a load.
type Recorder struct {
	frequent map[string]*Histogram // of operations without an error; immutable, so it needs no lock
	others   sync.Map              // of *Histogram by failure
}

// failure is an operation and the kind of its error, see rediscache.ErrorKind; empty: none.
type failure struct{ op, kind string }

var (
	_ rediscache.Observer = (*Recorder)(nil)
	_ rediscache.Starter  = (*Recorder)(nil)
	_ rediscache.Ender    = (*Recorder)(nil)
)

// New returns a Recorder. It has the most frequent operations from the start, so that their
// graphs begin at zero.
func New() *Recorder {
	r := &Recorder{frequent: make(map[string]*Histogram)}
	for _, op := range []string{
		"get", "get many", "get or load", "get or load many", "load", "fill", "set", "set many", "delete",
	} {
		r.frequent[op] = new(Histogram)
	}
	return r
}

// measured reports whether no event has the duration of a call of op, because there is one
// for each key, or one before the load.
func measured(op string) bool {
	return op == "get many" || op == "get or load" || op == "get or load many"
}

type beganKey struct{}

// Start remembers when a call begins that no event measures.
func (r *Recorder) Start(ctx context.Context, op, _ string) context.Context {
	if measured(op) {
		return context.WithValue(ctx, beganKey{}, time.Now())
	}
	return ctx
}

// End records the duration of such a call.
func (r *Recorder) End(ctx context.Context, op string, err error) {
	if !measured(op) {
		return
	}
	if began, ok := ctx.Value(beganKey{}).(time.Time); ok {
		r.record(op, time.Since(began), err)
	}
}

// Observe records the duration of any other call.
func (r *Recorder) Observe(_ context.Context, e rediscache.Event) {
	switch {
	case measured(e.Op):
	case e.Outcome == rediscache.OutcomeMiss: // Err is that of the codec, which is no failure of the call
		r.record(e.Op, e.Took, nil)
	default:
		r.record(e.Op, e.Took, e.Err)
	}
}

func (r *Recorder) record(op string, took time.Duration, err error) {
	kind := rediscache.ErrorKind(err)
	h := r.frequent[op]
	if h == nil || kind != "" {
		other, ok := r.others.Load(failure{op, kind})
		if !ok {
			other, _ = r.others.LoadOrStore(failure{op, kind}, new(Histogram))
		}
		h = other.(*Histogram)
	}
	h.record(took)
}

// Each calls f for each histogram, in no order.
func (r *Recorder) Each(f func(op, kind string, h *Histogram)) {
	for op, h := range r.frequent {
		f(op, "", h)
	}
	r.others.Range(func(of, h any) bool {
		f(of.(failure).op, of.(failure).kind, h.(*Histogram))
		return true
	})
}
