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
// Callers that miss together wait for one load, in a goroutine of its own. The
// context of the load has the values of the first caller's context, but neither
// its deadline nor its cancellation: it ends when no caller is left or
// [Policy.Hard] is over, and then nothing is stored. A caller whose own context
// ends leaves, with an error that matches that of the context. A panic of the load
// is raised in each caller, as a [*PanicError]; a panic of a load in the background
// is an [Event] and no more. A load may call GetOrLoad for another key; for its own
// key it would wait for itself.
//
// So a load may ask ctx for a value after GetOrLoad has returned: in the
// background, with [Policy.Stale] or [Policy.Early], or when the first caller has
// left and others wait. Pass a context whose values stay as they are, such as that
// of an http.Request, and none that a framework reuses for its next request: the
// load would find the values of that request, and store one user's data under
// another's key. With gin pass c.Request.Context() and not c itself, with fasthttp
// and fiber no RequestCtx.
//
// A stale value is returned at once, or after [Policy.Soft], and loaded anew in the
// background. When that load fails the stale value stays, and the key is not loaded
// again for [LoadBackoff]. Where there is no stale value an error of load is
// returned as it is. An error that matches [ErrNotFound] says that there is no
// value: that is remembered for [Policy.Negative], and a stale value is removed.
//
// With [Policy.Lease] a caller that comes after a [View.Delete] of the key has
// returned, in whichever process, gets no older value than the Delete was about. If
// a load that began before that runs without a lease, because Redis cannot be asked,
// or refuses, or another process has held the lease for too long, callers that came
// during the load wait for one more.
//
// When Redis cannot be asked the load is called all the same, shared, and its value
// is returned and not stored; a value that cannot be stored is returned too. Both
// are an [Event] and count as errors in [Stats]. After [Cache.Close] the error is
// [ErrClosed].
//
// The callers of one load share its value: do not change it.
func (v *View[V]) GetOrLoad(ctx context.Context, key string, load func(context.Context) (V, error)) (V, error) {
	return v.getOrLoad(ctx, key, loader[V]{one: load}, v.turns.Load())
}

// GetOrLoadItem is GetOrLoad with a load that chooses the TTL, or not to store.
// Both share their loads.
func (v *View[V]) GetOrLoadItem(
	ctx context.Context, key string, load func(context.Context) (Item[V], error),
) (V, error) {
	return v.getOrLoad(ctx, key, loader[V]{item: load}, v.turns.Load())
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

// result is the outcome of a load, for each of its waiters.
type result[V any] struct {
	value V
	err   error
	stale bool // value is the one that the load was to replace; err, if any, is why

	doubtful bool   // a Delete may have come after since, without the load's knowledge
	since    uint64 // the turn in which the load looked or loaded; see View.turns
}

// mayPrecede reports whether the result may be older than a Delete that returned
// before a caller came in a turn.
func (r result[V]) mayPrecede(came uint64) bool { return r.doubtful && r.since <= came }

// orStale returns the result for a caller that has itself found a stale value and
// came in a turn: that value, if err ended the wait, if the load returned nothing
// newer, or if the result may be older than a Delete before the caller. A stale
// value in r may be older too, as another caller found it.
func (r result[V]) orStale(value V, err error, came uint64) result[V] {
	if err == nil && !errors.Is(r.err, ErrNotFound) {
		err = r.err
	}
	if err != nil || r.stale || r.mayPrecede(came) {
		return result[V]{value: value, stale: true, err: err}
	}
	return r
}

// getOrLoad serves a caller that came in a turn. Under a lease it never returns a
// value older than a Delete of the key that had returned, in whichever process,
// before the caller came:
//
//  1. A value that the caller itself finds in Redis is not older. A load that began
//     before the Delete stores nothing after it (see lease.go), and what it stored
//     before, the Delete has removed.
//  2. A load that stored under its lease, or still had its lease at its end, knows
//     that no Delete returned between its begin and the moment when it forgot its
//     key. The caller joined before that moment. So the Delete returned before the
//     load began, and the load read what the Delete was about.
//  3. Any other result is doubtful: of a load without a lease, because another
//     process held it for too long, or Redis refused it or could not be asked; of a
//     load that lost its lease; and a value that a load found in Redis. Each of them
//     comes from a call of load, or from a look at Redis, that began after View.turns
//     was raised to since. A caller with an earlier turn came before that began, so
//     with 1 the result is not older.
//  4. Another caller looks again, as often as it takes. That ends after one more
//     load: the load that the caller finds or begins then entered View.flights after
//     the load that the caller had joined was taken out, so after the caller came.
//     It raises the turn above the caller's before it looks or loads.
//
// A stale value that another caller found and that a load fell back on may be older,
// so a caller that has found no stale value itself looks again after that as well:
// each such load was begun by a caller that had looked before the Delete, and there
// are only so many of these.
func (v *View[V]) getOrLoad(ctx context.Context, key string, load loader[V], came uint64) (V, error) {
	var none V
	begin, seen := v.c.begin(), v.flights.Ended()
	e, err := v.read(ctx, key, v.timed)
	if err != nil {
		err = v.c.fail(ctx, opGetOrLoad, key, begin, err)
		if errors.Is(err, ctx.Err()) || errors.Is(err, ErrClosed) {
			return none, err
		}
		e.state = unread
	}
	switch e.state {
	case fresh, early:
		v.c.hit(ctx, opGetOrLoad, key, begin)
		if e.state == early && !v.failed.hold(key) {
			v.refresh(ctx, v.job(key, e, seen), load)
		}
		return e.value, nil
	case stale:
		return v.staleOrLoad(ctx, begin, v.job(key, e, seen), load, came)
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
	if tickets[0].Shared && r.stale || r.mayPrecede(came) {
		return v.getOrLoad(ctx, key, load, came)
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

// staleOrLoad serves a caller that has found a stale value, and returns that value
// if ctx ends during the wait for a fresh one.
func (v *View[V]) staleOrLoad(
	ctx context.Context, begin time.Time, j *job[V], load loader[V], came uint64,
) (V, error) {
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
	if r = r.orStale(value, err, came); !r.stale {
		v.c.missed(ctx, opGetOrLoad, key, begin, nil)
	}
	return v.serve(ctx, opGetOrLoad, key, begin, shared, r)
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
	// The load keeps the values of ctx, in the background too. Without them a load
	// that needs one, a tenant or a trace, would fail there alone, where no caller and
	// few tests see it; and a context that lost them when the first caller leaves would
	// change during a load that others wait for.
	return v.flights.Join(ctx, keys, o, func(ctx context.Context, own []*flight.Call[result[V]]) {
		mine := make([]*job[V], 0, len(own))
		for _, j := range jobs { // own is in their order
			if len(mine) < len(own) && j.key == own[len(mine)].Key {
				j.call = own[len(mine)]
				mine = append(mine, j)
			}
		}
		v.resolve(ctx, mine, load)
	})
}
