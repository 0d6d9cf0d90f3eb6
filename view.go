package rediscache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rediscache/rediscache/internal/fill"
	"github.com/rediscache/rediscache/internal/flight"
	"github.com/rediscache/rediscache/internal/near"
	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
)

// View is a cache of typed values, which it can load. It stores the bytes of the
// codec and nothing else. All views of a key should have the same codec and policy.
// The callers of one View share its loads, so make a View once, not for each request.
// All methods are safe for concurrent use.
//
// Bytes that the codec cannot decode are a miss, and the next load overwrites them.
type View[V any] struct {
	c      *Cache
	codec  Codec[V]
	policy Policy // immutable; its TTL is not DefaultTTL
	timed  bool   // immutable; whether reads need the time to live of a value

	flights   *flight.Group[result[V]]
	turns     atomic.Uint64 // raised before a load reads Redis or loads, to order loads and callers in time
	loadTimes average       // the time that loads take
	backoffs  backoffs      // keys whose load failed while there was a value
}

// Of makes a View of a cache, under its prefix. The error names every fault of the
// policy. A zero [Policy.TTL] is an error on a cache without [WithTTL]. A
// [Policy.Negative] is an error if the codec encodes the zero value to no bytes, as
// [Bytes] and [String] do. Another value that is encoded to no bytes is then not
// stored: Set returns an error, and GetOrLoad returns the value.
func Of[V any](c *Cache, codec Codec[V], p Policy) (*View[V], error) {
	var f faults
	f.check(c != nil, "the cache is nil")
	f.check(codec != nil, "the codec is nil")
	cacheTTL := NoExpiry
	if c != nil {
		cacheTTL = c.ttl
	}
	p.validate(&f, cacheTTL)
	f.check(!p.KeepDecoded || c == nil || c.near != nil,
		"Policy.KeepDecoded: the cache keeps no copies: give it WithNearCache, or leave KeepDecoded out")
	if p.Negative > 0 && codec != nil {
		f.check(!emptiesZero(codec), "Policy.Negative: the codec encodes values to the empty string, which stands for none")
	}
	if err := f.join(); err != nil {
		return nil, err
	}
	p.TTL = cmp.Or(p.TTL, cacheTTL)
	return &View[V]{
		c: c, codec: codec, policy: p, timed: p.Stale > 0 || p.Early > 0,
		flights: flight.NewGroup[result[V]](c.loads), backoffs: backoffs{wait: LoadBackoff},
	}, nil
}

// Get returns the value of key, fresh or stale, and loads nothing. On a miss, or if
// the View remembers that there is no value, the error is [ErrNotFound].
func (v *View[V]) Get(ctx context.Context, key string) (none V, err error) {
	ctx, op := v.c.begin(ctx, "get", key)
	defer op.end(&err)
	e, err := v.read(ctx, key, false)
	if err != nil {
		return none, op.fail(err)
	}
	switch e.state {
	case fresh:
		op.hit()
		return e.value, nil
	case negative:
		op.negative()
	default:
		op.missed(e.err)
	}
	return none, ErrNotFound
}

// Set stores value for the TTL of the policy. With [Policy.Lease], a load in flight
// that began before Set does not overwrite value.
func (v *View[V]) Set(ctx context.Context, key string, value V) (err error) {
	data, err := v.encode(value)
	if err != nil {
		return &opError{op: "set", cause: err}
	}
	v.flights.Forget(key)
	ctx, op := v.c.begin(ctx, "set", key)
	defer op.end(&err)
	defer v.c.endWrites(v.c.beginWrites(key))
	var calls []*pipeline.Call
	if v.policy.Lease > 0 { // otherwise an older load could store after this value has expired
		calls = append(calls, v.c.endLeases([]string{key}))
	}
	_, errs := v.c.pipe.DoAll(ctx, append(calls, v.c.set(key, data, v.policy.life(v.policy.TTL)))...)
	if err := errs[len(errs)-1]; err != nil {
		return op.fail(err)
	}
	if fill.RefusedForGood(errs[0]) {
		v.c.leases.Refuse(ctx, errs[0])
	} else if errs[0] != nil {
		_ = v.c.step(ctx, opLease, key).fail(errs[0]) // for the observer: the value is stored
	}
	op.stored(1)
	return nil
}

// Delete removes the keys as [Cache.Delete] does, also a remembered [ErrNotFound].
// With [Policy.Lease], a caller in any process that comes after Delete does not get
// the value of a load that began before Delete. Without it, this holds only for the
// callers of this View, and only until such a load stores its value.
func (v *View[V]) Delete(ctx context.Context, keys ...string) (int, error) {
	v.flights.Forget(keys...)
	return v.c.Delete(ctx, keys...)
}

// GetMany returns the values of the keys that have one, as Get does, in one round
// trip. If some of the keys could not be read, it returns the values of the other
// keys and the first error, as [Cache.GetMany] does.
func (v *View[V]) GetMany(ctx context.Context, keys ...string) (values map[string]V, err error) {
	values = make(map[string]V, len(keys))
	if len(keys) == 0 {
		return values, ctx.Err()
	}
	ctx, op := v.c.begin(ctx, "get many", "")
	defer op.end(&err)
	entries, err := v.readMany(ctx, keys, false)
	if err != nil {
		return nil, op.fail(err)
	}
	var failed error // the first error of a key
	for i, e := range entries {
		switch e.state {
		case fresh:
			values[keys[i]] = e.value
			op.of(keys[i]).hit()
		case negative:
			op.of(keys[i]).negative()
		case unread:
			failed = cmp.Or(failed, op.of(keys[i]).fail(e.err))
		default:
			op.of(keys[i]).missed(e.err)
		}
	}
	return values, failed
}

// entry is what a key holds. It does not keep the bytes, because the codec owns them.
type entry[V any] struct {
	state  state
	value  V             // if the state is stale or above
	digest string        // of the bytes; "": none, or not needed
	left   time.Duration // to live, in whole milliseconds; forever if it never ends or was not read
	err    error         // if the state is bad, or if only this key is unread
}

type state uint8

const (
	absent   state = iota
	unread         // the read from Redis failed
	bad            // the codec cannot decode it
	negative       // a remembered ErrNotFound of a load
	stale          // this and the states below have a value
	early          // fresh, but to be loaded again; see Policy.Early
	fresh
)

// forever is the longest Duration: no expiry.
const forever = fill.Forever

// read reads a key and, if timed, its time to live. If another value is stored
// between the two commands, the old value once gets the time of the new one.
func (v *View[V]) read(ctx context.Context, key string, timed bool) (entry[V], error) {
	if v.c.near != nil {
		return v.readNear(ctx, key, timed)
	}
	get := pipeline.Read("GET", 1, pipeline.Value).Key(v.c.name(key))
	if !timed {
		held, err := v.c.pipe.Do(ctx, get)
		if err != nil {
			return entry[V]{}, err
		}
		return v.entry(held, resp.Reply{}, false), nil
	}
	held, left, err := v.c.pipe.DoPair(ctx, get, pipeline.Read("PTTL", 1, pipeline.Count).Key(v.c.name(key)))
	if err != nil {
		return entry[V]{}, err
	}
	return v.entry(held, left, false), nil
}

// readNear is read through the near cache.
func (v *View[V]) readNear(ctx context.Context, key string, timed bool) (entry[V], error) {
	if err := ctx.Err(); err != nil {
		return entry[V]{}, err
	}
	prefix, stored := v.c.name(key)
	if copied, ok := v.c.near.Get(prefix, stored); ok {
		return v.copyEntry(copied, timed), nil
	}
	r, err := v.c.fillNear(ctx, prefix, stored)
	if err != nil {
		return entry[V]{}, err
	}
	return v.nearEntry(r, timed), nil
}

// copyEntry is entry for a copy. With Policy.KeepDecoded it decodes a copy once: a copy never
// changes, and its value is as fresh as it is.
func (v *View[V]) copyEntry(copied *near.Copy, timed bool) entry[V] {
	if !v.policy.KeepDecoded {
		return v.nearEntry(v.c.reading(copied), timed)
	}
	if value, ok := copied.Decoded(v).(V); ok {
		e := entry[V]{state: fresh, value: value, left: forever}
		left, slack, never := v.c.near.Left(copied)
		switch {
		case !timed || never:
			return e
		case left > v.policy.Stale && !v.policy.early(left-v.policy.Stale, v.loadTimes.get()):
			e.left = left + slack
			return e
		}
	}
	e := v.nearEntry(v.c.reading(copied), timed)
	if e.state >= stale {
		copied.KeepDecoded(v, e.value)
	}
	return e
}

// nearEntry is entry for a read through the near cache.
func (v *View[V]) nearEntry(r reading, timed bool) entry[V] {
	if !timed {
		return v.entry(r.held, resp.Reply{}, false)
	}
	e := v.entry(r.held, r.left, false)
	if e.left != forever {
		// A load takes a longer time as a sign that the value was stored again.
		e.left += r.slack
	}
	return e
}

// readMany is readManyDirect, through the near cache if there is one.
func (v *View[V]) readMany(ctx context.Context, keys []string, timed bool) ([]entry[V], error) {
	if v.c.near == nil {
		return v.readManyDirect(ctx, keys, timed)
	}
	entries := make([]entry[V], len(keys))
	var failed error // the first error of a key
	anyRead := false
	err := v.c.readManyNear(ctx, keys, func(i int, r *reading) {
		if err := r.held.Err(); err != nil {
			entries[i], failed = entry[V]{state: unread, err: err}, cmp.Or(failed, err)
			return
		}
		entries[i], anyRead = v.nearEntry(*r, timed), true
	})
	if err != nil || !anyRead {
		return nil, cmp.Or(err, failed)
	}
	return entries, nil
}

// readManyDirect is read for keys, in their order. A key for which Redis returned an error
// is unread. Any other error is the error of the whole call. If no key could be read,
// the first error is that of the whole call too.
func (v *View[V]) readManyDirect(ctx context.Context, keys []string, timed bool) ([]entry[V], error) {
	entries := make([]entry[V], len(keys))
	var failed error     // the first error of a key
	var unanswered error // the first error that is not an error reply of Redis
	anyRead := false     // whether any key was read
	readKey := func(i int, held *resp.Reply, left resp.Reply, err error) {
		if held.Kind == resp.Error {
			err = held.Err()
		}
		if err == nil {
			v.c.saw(keys[i], held)
			entries[i], anyRead = v.entry(*held, left, false), true
			return
		}
		if _, answered := resp.MeaningOfError(err); !answered {
			unanswered = cmp.Or(unanswered, err)
		}
		entries[i], failed = entry[V]{state: unread, err: err}, cmp.Or(failed, err)
	}
	if !timed {
		err := v.c.mget(ctx, keys, func(i int, held *resp.Reply) { readKey(i, held, resp.Reply{}, nil) })
		if err != nil {
			return nil, err
		}
	} else {
		calls := []*pipeline.Call{v.c.withKeys(pipeline.Read("MGET", len(keys), pipeline.Values), keys)}
		for _, key := range keys {
			calls = append(calls, pipeline.Read("PTTL", 1, pipeline.Count).Key(v.c.name(key)))
		}
		replies, errs := v.c.pipe.DoAll(ctx, calls...)
		if errs[0] != nil {
			return nil, errs[0]
		}
		for i := range keys {
			readKey(i, &replies[0].Elems[i], replies[1+i], errs[1+i])
		}
	}
	switch {
	case unanswered != nil:
		return nil, unanswered
	case !anyRead:
		return nil, failed
	}
	return entries, nil
}

// entry decodes the replies to GET and, if it was sent, to PTTL. It computes the
// digest before it decodes the bytes, because the codec may change them. A load with a
// lease needs the digest of the value that it replaces; leased means that such a load
// follows in any case.
func (v *View[V]) entry(held, left resp.Reply, leased bool) entry[V] {
	if held.Kind != resp.Bulk || left.Kind == resp.Int && left.Int == -2 {
		return entry[V]{}
	}
	e := entry[V]{state: fresh, left: forever}
	if left.Kind == resp.Int && left.Int >= 0 {
		e.left = milliseconds(left.Int)
	}
	switch {
	case len(held.Bytes) == 0 && v.policy.Negative > 0:
		e.state = negative
		return e
	case e.left <= v.policy.Stale:
		e.state = stale
	case e.left != forever && v.policy.early(e.left-v.policy.Stale, v.loadTimes.get()):
		e.state = early
	}
	if leased || v.policy.Lease > 0 && e.state != fresh {
		e.digest = fill.Digest(held.Bytes)
	}
	if e.value, e.err = v.codec.Decode(held.Bytes); e.err != nil {
		e.state = bad
	}
	return e
}

var errEmpty = errors.New("the codec encoded a value to no bytes, which Policy.Negative stores for a key without a value")

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
