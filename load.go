package rediscache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rediscache/rediscache/internal/flight"
)

// Item is a value with its TTL, returned by the load of [View.GetOrLoadItem].
type Item[V any] struct {
	Value V
	// TTL replaces the TTL of the policy: at least a millisecond, or [NoExpiry].
	// Zero is the TTL of the policy. Any other TTL is an error of the load.
	TTL time.Duration
	// NoStore returns the value without storing it. A stored value stays.
	NoStore bool
}

// The values of Event.Op for loads.
const (
	opGetOrLoad     = "get or load"
	opGetOrLoadMany = "get or load many"
	opLoad          = "load"
	opLease         = "lease"
	opFill          = "fill"
)

// GetOrLoad returns the value of key. On a miss it calls load, and stores and
// returns the value of load.
//
// Callers that miss the same key together wait for one load, which runs in a
// goroutine of its own. The context of the load has the values of the first caller's
// context, but not its deadline and cancellation. It is cancelled when no caller waits
// any more, and times out after [Policy.Hard]; in both cases nothing is stored. A
// caller whose own context ends stops waiting, and its error matches that of the
// context. If the load panics, each caller panics with a [*PanicError]; a panic of a
// load in the background is only an [Event]. A load may call GetOrLoad for another
// key, but not for its own key, where it would wait for itself.
//
// A load may use the values of ctx after GetOrLoad has returned: in the background,
// with [Policy.Stale] or [Policy.Early], or when the first caller has stopped waiting
// and others still wait. So pass a context whose values do not change, such as that
// of an http.Request. Do not pass a context that a framework reuses for its next
// request: the load would read the values of that request, and could store one
// user's data under another user's key. With gin pass c.Request.Context(), not c.
// With fasthttp and fiber do not pass a RequestCtx.
//
// GetOrLoad returns a stale value at once, or after [Policy.Soft], and loads the key
// in the background. If that load fails, the stale value stays, and the key is not
// loaded again for [LoadBackoff]. If there is no stale value, GetOrLoad returns the
// error of load unchanged. An error that matches [ErrNotFound] means that there is no
// value: the View remembers this for [Policy.Negative], and deletes a stale value.
//
// With [Policy.Lease], a caller that comes after a [View.Delete] of the key has
// returned, in any process, never gets a value from before the Delete. A load runs
// without a lease if Redis cannot be read, if Redis refuses the lease, or if another
// process holds the lease for too long. Callers that came during such a load wait
// for one more load.
//
// If Redis cannot be read, GetOrLoad still calls load, shared among callers, and
// returns its value without storing it. GetOrLoad also returns a value that cannot be
// stored. Both cases are an [Event] and count as errors in [Stats]. After
// [Cache.Close] the error is [ErrClosed].
//
// The callers of one load share its value: do not change it.
func (v *View[V]) GetOrLoad(ctx context.Context, key string, load func(context.Context) (V, error)) (V, error) {
	return v.getOrLoadOne(ctx, key, loader[V]{one: load})
}

// GetOrLoadItem is GetOrLoad with a load that returns an [Item], which chooses the
// TTL or NoStore. GetOrLoad and GetOrLoadItem share their loads.
func (v *View[V]) GetOrLoadItem(
	ctx context.Context, key string, load func(context.Context) (Item[V], error),
) (V, error) {
	return v.getOrLoadOne(ctx, key, loader[V]{item: load})
}

func (v *View[V]) getOrLoadOne(ctx context.Context, key string, load loader[V]) (_ V, err error) {
	came := v.turns.Load()
	_, op := v.c.begin(ctx, opGetOrLoad, key)
	defer op.end(&err)
	return v.getOrLoad(op, load, came)
}

// loader is the load function of a method. Exactly one field is set.
type loader[V any] struct {
	one  func(context.Context) (V, error)
	item func(context.Context) (Item[V], error)
	many func(context.Context, []string) (map[string]V, error)
}

// call loads keys. There is only one key unless l.many is set.
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
	stale bool // value is the old value; err, if not nil, is why the load did not replace it

	doubtful bool   // a Delete that the load did not notice may have come after since
	since    uint64 // the turn in which the load looked or loaded; see View.turns
}

// mayPrecede reports whether the result may be older than a Delete that had returned
// before the caller came, in turn came.
func (r result[V]) mayPrecede(came uint64) bool { return r.doubtful && r.since <= came }

// orStale returns the result for a caller that found the stale value itself and came
// in turn came. That is value if err ended the wait, if the load returned nothing
// newer, or if r may be older than a Delete before the caller. If r is stale, another
// caller found its value, which may be older too.
func (r result[V]) orStale(value V, err error, came uint64) result[V] {
	if err == nil && !errors.Is(r.err, ErrNotFound) {
		err = r.err
	}
	if err != nil || r.stale || r.mayPrecede(came) {
		return result[V]{value: value, stale: true, err: err}
	}
	return r
}

// getOrLoad serves a caller that came in turn came. Under a lease it never returns a
// value older than a Delete of the key that had returned, in any process, before the
// caller came:
//
//  1. A value that the caller itself reads from Redis is not older. A load that began
//     before the Delete stores nothing after it (see package fill), and the Delete has
//     removed what the load stored before.
//  2. A load that stored under its lease, or still held its lease at its end, knows
//     that no Delete returned between its start and the moment when it forgot its
//     key. The caller joined before that moment. So the Delete returned before the
//     load began, and the load read data from after the Delete.
//  3. Any other result is doubtful: that of a load without a lease, that of a load
//     that lost its lease, and a value that a load read from Redis. Such a result
//     comes from a call of load, or from a read of Redis, that began after View.turns
//     was raised to since. A caller with an earlier turn came before that, so the
//     result is not older for this caller.
//  4. A caller with a later turn reads the key again, and may join another load. That
//     ends after one more load: this load entered View.flights after the load that
//     the caller had joined was taken out, so after the caller came. The load raises
//     the turn above the caller's before it reads or loads.
//
// A load may also fall back on a stale value that another caller found, and that may
// be older. So a caller that found no stale value itself reads the key again as well.
// This ends, because each such load was begun by a caller that had read the key before
// the Delete, and there are only finitely many of these callers.
func (v *View[V]) getOrLoad(op operation, load loader[V], came uint64) (V, error) {
	var none V
	ctx, key, seen := op.ctx, op.key, v.flights.Ended()
	e, err := v.read(ctx, key, v.timed)
	if err != nil {
		err = op.fail(err)
		if errors.Is(err, ctx.Err()) || errors.Is(err, ErrClosed) {
			return none, err
		}
		e.state = unread
	}
	switch e.state {
	case fresh, early:
		op.hit()
		if e.state == early && !v.backoffs.holds(key) {
			v.refresh(ctx, v.job(key, e, seen), load)
		}
		return e.value, nil
	case stale:
		return v.staleOrLoad(op, v.job(key, e, seen), load, came)
	case negative:
		op.negative()
		return none, ErrNotFound
	case absent, bad:
		op.missed(e.err)
	}
	tickets, ok := v.join(ctx, []*job[V]{v.job(key, e, seen)}, load, false)
	if !ok {
		return none, op.fail(ErrClosed)
	}
	r, err := v.wait(ctx, tickets[0])
	if err != nil {
		return none, op.fail(err)
	}
	if tickets[0].Shared && r.stale || r.mayPrecede(came) {
		return v.getOrLoad(op, load, came)
	}
	return v.serve(op, tickets[0].Shared, r)
}

// wait waits for the result of a load. If the load panicked, wait panics with a
// [*PanicError].
func (v *View[V]) wait(ctx context.Context, ticket flight.Ticket[result[V]]) (result[V], error) {
	r, err := ticket.Wait(ctx)
	var panicked *flight.PanicError
	if errors.As(err, &panicked) {
		panic(&PanicError{Value: panicked.Value, Stack: panicked.Stack})
	}
	return r, err
}

// serve counts the result of a load and returns it to a caller.
func (v *View[V]) serve(op operation, shared bool, r result[V]) (V, error) {
	if shared {
		op.shared(r.err)
	}
	if r.stale {
		op.stale(r.err)
		return r.value, nil
	}
	return r.value, r.err
}

// staleOrLoad serves a caller that found a stale value. It returns that value if ctx
// ends during the wait for a fresh one.
func (v *View[V]) staleOrLoad(op operation, j *job[V], load loader[V], came uint64) (V, error) {
	ctx, key, value := op.ctx, j.key, j.from.value // after join, j belongs to the load
	if v.policy.Soft == 0 || v.backoffs.holds(key) {
		op.stale(nil)
		if !v.backoffs.holds(key) {
			v.refresh(ctx, j, load)
		}
		return value, nil
	}
	tickets, ok := v.join(ctx, []*job[V]{j}, load, true)
	if !ok {
		var none V
		return none, op.fail(ErrClosed)
	}
	soft, cancel := context.WithTimeout(ctx, v.policy.Soft)
	defer cancel()
	r, err := v.wait(soft, tickets[0])
	shared := tickets[0].Shared && err == nil
	if r = r.orStale(value, err, came); !r.stale {
		op.missed(nil)
	}
	return v.serve(op, shared, r)
}

// refresh loads in the background, unless the cache is closed.
func (v *View[V]) refresh(ctx context.Context, j *job[V], load loader[V]) {
	if tickets, ok := v.join(ctx, []*job[V]{j}, load, true); ok {
		tickets[0].Leave()
	}
}

// join starts a load of the jobs, except those whose keys are being loaded already.
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
	// The load keeps the values of ctx, in the background too. Otherwise a load that
	// needs a value, such as a tenant or a trace, would fail only in the background,
	// where no caller and few tests see it.
	return v.flights.Join(ctx, keys, o, func(ctx context.Context, begun []*flight.Call[result[V]]) {
		mine := make([]*job[V], 0, len(begun))
		for _, j := range jobs { // begun has the order of jobs
			if len(mine) < len(begun) && j.key == begun[len(mine)].Key {
				j.call = begun[len(mine)]
				mine = append(mine, j)
			}
		}
		v.resolve(ctx, mine, load)
	})
}
