package rediscache

import (
	"context"
	"errors"

	"github.com/rediscache/rediscache/internal/flight"
)

// GetOrLoadMany returns the values of the keys that have one. It does for each key
// what [View.GetOrLoad] does, with one call of load for all keys that missed and that
// no other caller is loading. With [Policy.Lease] it waits for the keys that another
// process is loading, and calls load again for the keys that are still missing.
// Another call of load refreshes stale values.
//
// A key that is not in the map of load has no value, as if load had returned
// [ErrNotFound] for it. If load returns an error, it is the error of each of its keys,
// even of a key in the map. Keys are loaded together but stored one by one. Other
// callers get each value as soon as it is loaded and stored.
//
// The error is the first error of any key. The map then still holds all values that
// GetOrLoadMany got. If ctx ends during the wait for one key, these include the
// values of other keys that are ready by then.
func (v *View[V]) GetOrLoadMany(
	ctx context.Context, keys []string, load func(ctx context.Context, keys []string) (map[string]V, error),
) (values map[string]V, err error) {
	values = make(map[string]V, len(keys))
	if len(keys) == 0 {
		return values, ctx.Err()
	}
	unique := make([]string, 0, len(keys))
	seen := make(map[string]bool, len(keys))
	for _, key := range keys {
		if !seen[key] {
			seen[key] = true
			unique = append(unique, key)
		}
	}
	came := v.turns.Load()
	ctx, op := v.c.begin(ctx, opGetOrLoadMany, "")
	defer op.end(&err)
	return values, v.getOrLoadMany(ctx, op, unique, loader[V]{many: load}, values, came)
}

// getOrLoadMany is getOrLoad for distinct keys. It puts the values into values.
func (v *View[V]) getOrLoadMany(
	ctx context.Context, op operation, keys []string, load loader[V], values map[string]V, came uint64,
) error {
	seen := v.flights.Ended()
	entries, err := v.readMany(ctx, keys, v.timed)
	if err != nil {
		err = op.fail(err)
		if errors.Is(err, ctx.Err()) || errors.Is(err, ErrClosed) {
			return err
		}
		entries = make([]entry[V], len(keys))
		for i := range entries {
			entries[i].state = unread
		}
	}
	misses, olds := v.classify(op, keys, seen, entries, values)
	m := many[V]{v: v, op: op, came: came, values: values}
	defer m.leave()
	if !m.join(ctx, olds, load, true) || !m.join(ctx, misses, load, false) {
		return op.fail(ErrClosed)
	}
	if doubtful := m.wait(ctx); len(doubtful) > 0 {
		if err := v.getOrLoadMany(ctx, op, doubtful, load, values, came); m.err == nil {
			m.err = err
		}
	}
	return m.err
}

// classify puts the values that were found into values, and returns the keys to load:
// misses without a value, and olds with a stale or an early value.
func (v *View[V]) classify(
	op operation, keys []string, seen uint64, entries []entry[V], values map[string]V,
) (misses, olds []*job[V]) {
	for i, e := range entries {
		key := keys[i]
		op := op.of(key)
		switch e.state {
		case fresh, early:
			values[key] = e.value
			op.hit()
			if e.state == early && !v.backoffs.holds(key) {
				olds = append(olds, v.job(key, e, seen))
			}
		case stale:
			backingOff := v.backoffs.holds(key)
			if backingOff || v.policy.Soft == 0 {
				values[key] = e.value
				op.stale(nil)
			}
			if !backingOff {
				olds = append(olds, v.job(key, e, seen))
			}
		case negative:
			op.negative()
		case absent, bad:
			op.missed(e.err)
			misses = append(misses, v.job(key, e, seen))
		case unread:
			if e.err != nil { // the error of this key; an error of the whole call was observed already
				_ = op.fail(e.err) // for the observer: the load goes on
			}
			misses = append(misses, v.job(key, e, seen))
		}
	}
	return misses, olds
}

// many is one caller's wait for many keys.
type many[V any] struct {
	v      *View[V]
	op     operation
	came   uint64 // the turn in which the caller came
	values map[string]V
	waits  []wait[V]
	err    error // the first error
}

// wait is the wait for one key.
type wait[V any] struct {
	key    string
	old    V // the stale value, if stale
	stale  bool
	ticket flight.Ticket[result[V]]
	over   bool
}

// join adds a wait for each job. After join the jobs belong to the load.
func (m *many[V]) join(ctx context.Context, jobs []*job[V], load loader[V], background bool) bool {
	if len(jobs) == 0 {
		return true
	}
	first := len(m.waits)
	for _, j := range jobs {
		m.waits = append(m.waits, wait[V]{key: j.key, old: j.from.value, stale: j.from.state == stale})
	}
	tickets, ok := m.v.join(ctx, jobs, load, background)
	if !ok {
		m.waits = m.waits[:first]
	}
	for i, t := range tickets {
		m.waits[first+i].ticket = t
	}
	return ok
}

// leave ends the waits that are not over, after a panic or when the cache is closed.
func (m *many[V]) leave() {
	for _, w := range m.waits {
		if !w.over {
			w.ticket.Leave()
		}
	}
}

// wait takes the results, and returns the keys that the caller must read again. The
// order of the waits does not matter: after ctx has ended, the remaining waits still
// take the results that are ready.
func (m *many[V]) wait(ctx context.Context) (doubtful []string) {
	soft, cancel := context.WithCancel(ctx)
	if m.v.policy.Soft > 0 {
		soft, cancel = context.WithTimeout(ctx, m.v.policy.Soft)
	}
	defer cancel()
	var ended error // of ctx
	for i := range m.waits {
		w := &m.waits[i]
		w.over = true
		if _, served := m.values[w.key]; served {
			w.ticket.Leave()
			continue
		}
		until := ctx
		if w.stale {
			until = soft
		}
		r, err := m.v.wait(until, w.ticket)
		shared := w.ticket.Shared && err == nil
		switch {
		case w.stale:
			if r = r.orStale(w.old, err, m.came); !r.stale {
				m.op.of(w.key).missed(nil)
			}
		case err != nil:
			ended = err
			continue
		case shared && r.stale || r.mayPrecede(m.came):
			doubtful = append(doubtful, w.key)
			continue
		}
		m.take(w.key, shared, r)
	}
	if ended != nil {
		m.fail(m.op.fail(ended))
	}
	return doubtful
}

func (m *many[V]) take(key string, shared bool, r result[V]) {
	value, err := m.v.serve(m.op.of(key), shared, r)
	switch {
	case err == nil:
		m.values[key] = value
	case !errors.Is(err, ErrNotFound):
		m.fail(err)
	}
}

func (m *many[V]) fail(err error) {
	if m.err == nil {
		m.err = err
	}
}
