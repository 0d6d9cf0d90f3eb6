package rediscache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rediscache/rediscache/internal/flight"
)

// PanicError is what GetOrLoad and its like panic with when the load that they
// waited for has panicked: with the value, and the stack of the load. It
// unwraps to the value if that is an error.
type PanicError = flight.PanicError

// Item is a value that a load says more about.
type Item[V any] struct {
	Value V
	// TTL is instead of the policy's: a time of a millisecond or more, or
	// [NoExpiry]. Zero is the policy's, anything else an error.
	TTL time.Duration
	// NoStore returns the value and does not store it. What is stored stays.
	NoStore bool
}

// The operations of which observers hear.
const (
	opGetOrLoad     = "get or load"
	opGetOrLoadMany = "get or load many"
	opLoad          = "load"
	opLease         = "lease"
	opFill          = "fill"
)

// GetOrLoad returns the value of key and, on a miss, that of load, which it
// stores.
//
// Callers that miss together wait for one load. It runs in a goroutine of its
// own, with the values of the first caller's context; that context ends when
// no caller is left or [Policy.Hard] is over, and then nothing is stored. A
// caller whose own context ends leaves. A panic of the load is raised in each
// caller, as a [*PanicError]; that of a load in the background is an Event and
// no more. A load may call GetOrLoad for another key; for its own it would wait
// for itself.
//
// A stale value is returned at once, or after [Policy.Soft], and loaded anew
// in the background. So it is when that fails, for [LoadBackoff] without
// another try. Otherwise an error of load is returned as it is. If it matches
// [ErrNotFound], there is no value, which is remembered for [Policy.Negative];
// a stale value goes.
//
// When Redis cannot be asked the load is called all the same, shared, and its
// value returned and not stored; a value that cannot be stored is returned too.
// An [Observer] hears of both, and [Stats] count them as errors. A cache that
// was closed is [ErrClosed].
//
// The callers of one load share its value: do not change it.
func (v *View[V]) GetOrLoad(ctx context.Context, key string, load func(context.Context) (V, error)) (V, error) {
	return v.getOrLoad(ctx, key, loader[V]{one: load}, false)
}

// GetOrLoadItem is GetOrLoad with a load that chooses the TTL, or not to store.
// Both share their loads.
func (v *View[V]) GetOrLoadItem(
	ctx context.Context, key string, load func(context.Context) (Item[V], error),
) (V, error) {
	return v.getOrLoad(ctx, key, loader[V]{item: load}, false)
}

// loader is the load that a method was given, in its form.
type loader[V any] struct {
	one  func(context.Context) (V, error)
	item func(context.Context) (Item[V], error)
	many func(context.Context, []string) (map[string]V, error)
}

// call loads keys, of which there is one unless it is the form for many.
func (l loader[V]) call(ctx context.Context, keys []string) (map[string]Item[V], error) {
	var item Item[V]
	var err error
	switch {
	case l.many != nil:
		values, err := l.many(ctx, keys)
		items := make(map[string]Item[V], len(values))
		for key, value := range values {
			items[key] = Item[V]{Value: value}
		}
		return items, err
	case l.item != nil:
		if item, err = l.item(ctx); err == nil && item.TTL != 0 && item.TTL != NoExpiry && item.TTL < time.Millisecond {
			err = fmt.Errorf("rediscache: load: Item.TTL %v is none of zero, NoExpiry and a millisecond or more", item.TTL)
		}
	default:
		item.Value, err = l.one(ctx)
	}
	return map[string]Item[V]{keys[0]: item}, err
}

// result is what came of a load, for all who waited for it.
type result[V any] struct {
	value V
	err   error
	stale bool // value is what the load was to replace; err, if any, is why
	// doubtful: a caller that joined may have come after a Delete that the
	// load does not know of. See getOrLoad.
	doubtful bool
}

// orStale is what the wait of a caller that has found a stale value itself came
// to: that value, if err ended the wait, or the load came to nothing newer. What
// the load fell back on, if it was another's, may be older.
func (r result[V]) orStale(value V, err error) result[V] {
	if err == nil && !errors.Is(r.err, ErrNotFound) {
		err = r.err
	}
	if err != nil || r.stale {
		return result[V]{value: value, stale: true, err: err}
	}
	return r
}

// getOrLoad serves a caller. It is tried again, once, if what it shared is in
// doubt: the load may have begun before a Delete in another process, and the
// caller have come after it. The load that it finds or begins then began after
// the one that it shared was over, or closed to others, so after the caller
// came: its value is not too old. A stale value that somebody else found may
// be, each time: who found none looks again until there is one, or its load
// has failed.
func (v *View[V]) getOrLoad(ctx context.Context, key string, load loader[V], again bool) (V, error) {
	var none V
	begin, seen := v.c.begin(), v.flights.Ended()
	e, err := v.read(ctx, key, v.timed)
	if err != nil {
		err = v.c.fail(ctx, opGetOrLoad, key, begin, err)
		if ctx.Err() != nil || errors.Is(err, ErrClosed) {
			return none, err
		}
		e.state = unread
	}
	switch e.state {
	case fresh:
		v.c.hit(ctx, opGetOrLoad, key, begin)
		if v.isEarly(key, &e) {
			v.refresh(ctx, v.job(key, e, seen), load)
		}
		return e.value, nil
	case stale:
		return v.staleOrLoad(ctx, begin, v.job(key, e, seen), load)
	case negative:
		v.c.negative(ctx, opGetOrLoad, key, begin)
		return none, ErrNotFound
	case absent, bad:
		v.c.missed(ctx, opGetOrLoad, key, begin, e.err)
	}
	tickets, ok := v.join(ctx, []*job[V]{v.job(key, e, seen)}, load, false)
	if !ok {
		return none, v.c.fail(ctx, opGetOrLoad, key, begin, ErrClosed)
	}
	r, err := tickets[0].Wait(ctx)
	if err != nil {
		return none, v.c.fail(ctx, opGetOrLoad, key, begin, err)
	}
	if tickets[0].Shared && (r.stale || r.doubtful && !again) {
		return v.getOrLoad(ctx, key, load, true)
	}
	return v.serve(ctx, opGetOrLoad, key, begin, tickets[0].Shared, r)
}

// serve returns what a load came to.
func (v *View[V]) serve(
	ctx context.Context, op, key string, begin time.Time, shared bool, r result[V],
) (V, error) {
	if shared {
		v.c.counts.shared.Add(1)
		v.c.observe(ctx, op, key, OutcomeShared, begin, r.err)
	}
	if r.stale {
		v.c.stale(ctx, op, key, begin, r.err)
		return r.value, nil
	}
	return r.value, r.err
}

// staleOrLoad serves a caller that has found a stale value. If its context ends
// while it waits it gets that.
func (v *View[V]) staleOrLoad(ctx context.Context, begin time.Time, j *job[V], load loader[V]) (V, error) {
	key, value := j.key, j.from.value // j is the load's once it is joined
	if v.policy.Soft == 0 || v.failed.hold(key) {
		v.c.stale(ctx, opGetOrLoad, key, begin, nil)
		if !v.failed.hold(key) {
			v.refresh(ctx, j, load)
		}
		return value, nil
	}
	tickets, ok := v.join(ctx, []*job[V]{j}, load, true)
	if !ok {
		var none V
		return none, v.c.fail(ctx, opGetOrLoad, key, begin, ErrClosed)
	}
	soft, cancel := context.WithTimeout(ctx, v.policy.Soft)
	defer cancel()
	r, err := tickets[0].Wait(soft)
	shared := tickets[0].Shared && err == nil
	if r = r.orStale(value, err); !r.stale {
		v.c.missed(ctx, opGetOrLoad, key, begin, nil)
	}
	return v.serve(ctx, opGetOrLoad, key, begin, shared, r)
}

// isEarly draws whether a value that is fresh is to be loaded anew.
func (v *View[V]) isEarly(key string, e *entry[V]) bool {
	return v.policy.Early > 0 && e.left != forever &&
		v.policy.early(e.left-v.policy.Stale, v.took.get()) && !v.failed.hold(key)
}

// refresh loads in the background, unless the cache is closed.
func (v *View[V]) refresh(ctx context.Context, j *job[V], load loader[V]) {
	if tickets, ok := v.join(ctx, []*job[V]{j}, load, true); ok {
		tickets[0].Leave()
	}
}

// join has the jobs done, unless their keys are being loaded already.
func (v *View[V]) join(
	ctx context.Context, jobs []*job[V], load loader[V], background bool,
) ([]flight.Ticket[result[V]], bool) {
	keys := make([]string, len(jobs))
	for i, j := range jobs {
		keys[i] = j.key
	}
	o := flight.Options{Limit: v.policy.Hard}
	if background {
		if o.Keep = forever; o.Limit == 0 {
			o.Keep = DefaultRefreshTimeout
		}
	}
	return v.flights.Join(ctx, keys, o, func(ctx context.Context, own []string, forget func(string)) []result[V] {
		mine := make([]*job[V], 0, len(own))
		for _, j := range jobs { // own is in their order
			if len(mine) < len(own) && j.key == own[len(mine)] {
				j.forget = forget
				mine = append(mine, j)
			}
		}
		v.resolve(ctx, mine, load)
		results := make([]result[V], len(mine))
		for i, j := range mine {
			results[i] = j.result
		}
		return results
	})
}
