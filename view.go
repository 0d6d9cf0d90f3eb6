package rediscache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/rediscache/rediscache/internal/flight"
	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
)

// View is a cache of typed values, which it can load. What it stores is the
// codec's output and nothing else. All views of a key should have one codec
// and one policy. Loads are shared among the callers of one View: make it once.
// All methods are safe for concurrent use.
//
// Bytes that the codec cannot decode are a miss, and the next load overwrites
// them.
type View[V any] struct {
	c      *Cache
	codec  Codec[V]
	policy Policy // immutable; its TTL is not DefaultTTL
	timed  bool   // immutable; whether it matters how long a value has to live

	flights *flight.Group[result[V]]
	took    average  // of the loads
	failed  backoffs // of loads that failed while there was a value
}

// Of makes a view of a cache, under its prefix. An error names every fault of
// the policy. A codec that encodes the zero value to nothing does not go with
// [Policy.Negative]; should another one encode something to nothing, that is
// not stored.
func Of[V any](c *Cache, codec Codec[V], p Policy) (*View[V], error) {
	var f faults
	f.check(c != nil, "the cache is nil")
	f.check(codec != nil, "the codec is nil")
	own := NoExpiry
	if c != nil {
		own = c.ttl
	}
	p.validate(&f, own)
	if p.Negative > 0 && codec != nil {
		f.check(!emptiesZero(codec), "Policy.Negative: the codec encodes values to the empty string, which stands for none")
	}
	if err := f.join(); err != nil {
		return nil, err
	}
	if p.TTL == DefaultTTL {
		p.TTL = own
	}
	return &View[V]{
		c: c, codec: codec, policy: p, timed: p.Stale > 0 || p.Early > 0,
		flights: flight.NewGroup[result[V]](c.loads), failed: backoffs{wait: LoadBackoff},
	}, nil
}

// Get returns the value of key, fresh or stale, and loads nothing. It returns
// [ErrNotFound] on a miss, and where that is what was remembered.
func (v *View[V]) Get(ctx context.Context, key string) (V, error) {
	var none V
	begin := v.c.begin()
	e, err := v.read(ctx, key, false)
	if err != nil {
		return none, v.c.fail(ctx, "get", key, begin, err)
	}
	switch e.state {
	case fresh:
		v.c.hit(ctx, "get", key, begin)
		return e.value, nil
	case negative:
		v.c.negative(ctx, "get", key, begin)
	default:
		v.c.missed(ctx, "get", key, begin, e.err)
	}
	return none, ErrNotFound
}

// Set stores value for the policy's TTL. A load under way that began before
// does not overwrite it, if there is a [Policy.Lease].
func (v *View[V]) Set(ctx context.Context, key string, value V) error {
	data, err := v.encode(value)
	if err != nil {
		return &opError{op: "set", cause: err}
	}
	v.flights.Forget(key)
	begin := v.c.begin()
	var calls []*pipeline.Call
	if v.policy.Lease > 0 { // or a load that began before stores once this value is gone
		calls = v.dropLeases([]string{key})
	}
	_, errs := v.c.pipe.DoAll(ctx, append(calls, v.c.set(key, data, v.policy.life(v.policy.TTL)))...)
	if err := errs[len(errs)-1]; err != nil {
		return v.c.fail(ctx, "set", key, begin, err)
	}
	if errs[0] != nil {
		_ = v.c.fail(ctx, opLease, key, begin, errs[0]) // for the observer: the value is stored
	}
	v.c.counts.sets.Add(1)
	return nil
}

// Delete removes the keys, and what is remembered of their absence, and returns
// how many of them existed. With [Policy.Lease] no load that began before, in
// whichever process, stores anything after it, nor is its value returned to a
// caller that comes after. [Cache.Delete] cannot promise that: where there was
// no value when the load began, it leaves no trace. With a lease it is two
// operations, one after the other, and [WithTimeout] bounds each.
func (v *View[V]) Delete(ctx context.Context, keys ...string) (int, error) {
	if v.policy.Lease == 0 || len(keys) == 0 {
		v.flights.Forget(keys...)
		return v.c.Delete(ctx, keys...)
	}
	// 1. The leases go first. A load that held one can store until then, and
	//    what it stored goes with the key.
	// 2. Between the two a load may get a new lease. It began after the caller
	//    decided to delete.
	// The other order would let the old load store between the two. So the
	// second is sent when the first has been answered: if they were sent
	// together, the first could be refused, and tried again after the second.
	v.flights.Forget(keys...)
	begin := v.c.begin()
	_, errs := v.c.pipe.DoAll(ctx, v.dropLeases(keys)...)
	if err := errors.Join(errs...); err != nil {
		return 0, v.c.fail(ctx, "delete", "", begin, err)
	}
	return v.c.Delete(ctx, keys...)
}

// dropLeases is the command that ends the leases of keys, if any can have one.
func (v *View[V]) dropLeases(keys []string) []*pipeline.Call {
	var leases []string
	for _, key := range keys {
		if lease := leaseKey(v.c.prefix, key); lease != "" {
			leases = append(leases, lease)
		}
	}
	if len(leases) == 0 {
		return nil
	}
	call := pipeline.Write("DEL", len(leases), pipeline.Count)
	for _, lease := range leases {
		call.String(lease)
	}
	return []*pipeline.Call{call}
}

// GetMany returns the values of those keys that hold one, as Get does, in one
// round trip. Where some of the keys could not be read it returns the values of
// the others and the first error, as [Cache.GetMany] does.
func (v *View[V]) GetMany(ctx context.Context, keys ...string) (map[string]V, error) {
	values := make(map[string]V, len(keys))
	if len(keys) == 0 {
		return values, ctx.Err()
	}
	begin := v.c.begin()
	entries, err := v.readMany(ctx, keys, false)
	if err != nil {
		return nil, v.c.fail(ctx, "get many", "", begin, err)
	}
	var failed error // of the first key that has one
	for i, e := range entries {
		switch e.state {
		case fresh:
			values[keys[i]] = e.value
			v.c.hit(ctx, "get many", keys[i], begin)
		case negative:
			v.c.negative(ctx, "get many", keys[i], begin)
		case unread:
			failed = cmp.Or(failed, v.c.fail(ctx, "get many", keys[i], begin, e.err))
		default:
			v.c.missed(ctx, "get many", keys[i], begin, e.err)
		}
	}
	return values, failed
}

// entry is what a key holds.
type entry[V any] struct {
	state state
	value V             // of what is fresh or stale
	held  []byte        // as stored; nil: nothing
	left  time.Duration // to live, to the millisecond; forever where it does not end, or was not asked for
	err   error         // of a key that is bad, or that alone was unread
}

type state uint8

const (
	absent   state = iota
	unread         // Redis could not be asked
	bad            // the codec does not know it
	negative       // there is no value, and that is known
	stale
	fresh
)

// forever is as long as anything lives.
const forever = time.Duration(math.MaxInt64)

// read asks for a key and, where that matters, how long it has to live. What
// is stored between the two gives an older value a younger's time, once.
func (v *View[V]) read(ctx context.Context, key string, timed bool) (entry[V], error) {
	get := pipeline.Read("GET", 1, pipeline.Value).Key(v.c.prefix, key)
	if !timed {
		held, err := v.c.pipe.Do(ctx, get)
		if err != nil {
			return entry[V]{}, err
		}
		return v.entry(held, resp.Reply{}), nil
	}
	held, left, err := v.c.pipe.DoTwo(ctx, get, pipeline.Read("PTTL", 1, pipeline.Count).Key(v.c.prefix, key))
	if err != nil {
		return entry[V]{}, err
	}
	return v.entry(held, left), nil
}

// readMany is read for keys, in their order. A key that was answered with an
// error is unread. Any other error is that of the whole call, and so is the first
// one if no key could be read.
func (v *View[V]) readMany(ctx context.Context, keys []string, timed bool) ([]entry[V], error) {
	calls := []*pipeline.Call{v.c.with(pipeline.Read("MGET", len(keys), pipeline.Values), keys)}
	if timed {
		for _, key := range keys {
			calls = append(calls, pipeline.Read("PTTL", 1, pipeline.Count).Key(v.c.prefix, key))
		}
	}
	replies, errs := v.c.pipe.DoAll(ctx, calls...)
	if errs[0] != nil {
		return nil, errs[0]
	}
	entries := make([]entry[V], len(keys))
	var failed error // of the first key that has one
	some := false
	for i, held := range replies[0].Elems {
		var left resp.Reply
		var err error
		if timed {
			left, err = replies[1+i], errs[1+i]
		}
		if held.Kind == resp.Error {
			err = refusal(held)
		}
		if err == nil {
			entries[i], some = v.entry(held, left), true
			continue
		}
		if _, answered := meaningOf(err); !answered {
			return nil, err
		}
		entries[i], failed = entry[V]{state: unread, err: err}, cmp.Or(failed, err)
	}
	if !some {
		return nil, failed
	}
	return entries, nil
}

// entry makes sense of replies to GET and to PTTL, if that was asked.
func (v *View[V]) entry(held, left resp.Reply) entry[V] {
	if held.Kind != resp.Bulk || left.Kind == resp.Int && left.Int == -2 {
		return entry[V]{}
	}
	e := entry[V]{state: fresh, held: held.Bytes, left: forever}
	if left.Kind == resp.Int && left.Int >= 0 {
		e.left = milliseconds(left.Int)
	}
	if len(e.held) == 0 && v.policy.Negative > 0 {
		e.state = negative
		return e
	}
	if e.value, e.err = v.codec.Decode(e.held); e.err != nil {
		e.state = bad
	} else if e.left <= v.policy.Stale {
		e.state = stale
	}
	return e
}

var errEmpty = errors.New("the codec encoded a value to nothing, which stands for none under Policy.Negative")

func (v *View[V]) encode(value V) ([]byte, error) {
	data, err := v.codec.Encode(value)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if len(data) == 0 && v.policy.Negative > 0 {
		return nil, errEmpty
	}
	return data, nil
}
