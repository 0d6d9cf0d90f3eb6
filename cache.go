package rediscache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/fill"
	"github.com/rediscache/rediscache/internal/flight"
	"github.com/rediscache/rediscache/internal/hook"
	"github.com/rediscache/rediscache/internal/near"
	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
)

// Special values of a TTL.
const (
	DefaultTTL time.Duration = 0  // the TTL of [WithTTL]
	NoExpiry   time.Duration = -1 // the value stays until it is deleted or evicted
)

// Cache is a Redis cache. Keys and values are any bytes; a key may be empty. The
// Redis key is the prefix and then the key. If that name ends in
// ":rediscache-lease" and any number of plus signs, the cache appends one more
// plus sign, so that no key is the lease of a load (see [Policy.Lease]).
// All methods are safe for concurrent use. The context and [WithTimeout] bound
// each call. A call whose context has already ended sends nothing.
type Cache struct {
	pipe     *pipeline.Pipeline
	counts   *counts
	loads    *flight.Owner // waits for the loads of all views
	leases   *fill.Leases  // of the loads of all views
	near     *near.Cache   // nil without WithNearCache
	watchers watchers
	prefix   string
	ttl      time.Duration // of WithTTL; DefaultTTL without that option
}

// New makes a cache on a pool. The caller still owns the pool: [Cache.Close]
// returns the connections and leaves the pool open. The error names every
// invalid option.
//
// One cache for a pool is enough. For a namespace use [Cache.Sub], which shares
// the connections of the cache and costs nothing. Each cache that New makes
// borrows connections of its own while it is in use, so thousands of caches on
// one pool wait for each other.
func New(pool Pool, opts ...Option) (*Cache, error) {
	cfg, err := newCacheConfig(pool, opts)
	if err != nil {
		return nil, err
	}
	p := pipeline.Config{
		Borrow: pool.GetContext, Lanes: cfg.pipelineConns, Timeout: cfg.timeout, WriteTimeout: DefaultWriteTimeout,
	}
	switch pool := pool.(type) {
	case *WarmPool:
		p.Borrow, p.GaveUp, p.Spare = pool.acquire, pool.store.GaveUp, pool.store.Spare
		p.ReadTimeout, p.WriteTimeout = pool.readTimeout, pool.writeTimeout
	case *redis.Pool:
		p.Foreign, p.Spare, p.Refuses = true, func() int { return spareConns(pool) }, !pool.Wait
		p.Idle = func() bool { return pool.IdleCount() > 0 }
	default:
		p.Foreign, p.Refuses = true, true // an unknown pool may fail at once when it is exhausted
	}
	c := &Cache{
		pipe: pipeline.New(p), counts: new(counts), loads: flight.NewOwner(),
		watchers: newWatchers(cfg.observers), prefix: cfg.prefix, ttl: cfg.ttl,
	}
	c.leases = fill.New(fill.Config{Pipeline: c.pipe, Owner: c.loads, Refused: c.leasesRefused})
	if cfg.nearBytes > 0 {
		c.near = newNear(c, cfg, p.Borrow)
	}
	return c, nil
}

// spareConns returns how many connections a redigo pool can lend without a wait.
func spareConns(p *redis.Pool) int {
	if p.MaxActive <= 0 {
		return math.MaxInt
	}
	s := p.Stats()
	return p.MaxActive - (s.ActiveCount - s.IdleCount)
}

// Get returns the value of key, which the caller may keep and change. It
// returns [ErrNotFound] on a miss.
func (c *Cache) Get(ctx context.Context, key string) (_ []byte, err error) {
	ctx, op := c.begin(ctx, "get", key)
	defer op.end(&err)
	prefix, stored := c.name(key)
	reply, err := c.readOne(ctx, prefix, stored)
	if err != nil {
		return nil, op.fail(err)
	}
	if reply.Kind == resp.Nil {
		op.missed(nil)
		return nil, ErrNotFound
	}
	op.hit()
	return reply.Bytes, nil
}

// Set stores value for ttl: at least a millisecond, rounded down to whole
// milliseconds, or [DefaultTTL], or [NoExpiry]. Any other ttl is an error. Set
// does not keep value: the caller may change it when Set has returned, with or
// without an error.
func (c *Cache) Set(ctx context.Context, key string, value []byte, ttl time.Duration) (err error) {
	ttl, err = c.lifetime("set", ttl)
	if err != nil {
		return err
	}
	ctx, op := c.begin(ctx, "set", key)
	defer op.end(&err)
	defer c.endWrites(c.beginWrites(key))
	if _, err := c.pipe.Do(ctx, c.set(key, value, ttl)); err != nil {
		return op.fail(err)
	}
	op.stored(1)
	return nil
}

// Add stores value for ttl, as [Cache.Set] does, if the key does not exist, and reports
// whether it stored value. If the key exists, its value and its TTL stay as they are. A
// stale value of a [View] and a remembered [ErrNotFound] ([Policy.Negative]) exist too.
// With [Policy.Lease], a load that began before does not overwrite what Add stored.
//
// After an error that matches [ErrOutcomeUnknown], value may be stored. The cache does
// not retry such an Add, because a second Add cannot distinguish that value from the
// value of another caller: it returns false for both.
func (c *Cache) Add(ctx context.Context, key string, value []byte, ttl time.Duration) (_ bool, err error) {
	ttl, err = c.lifetime("add", ttl)
	if err != nil {
		return false, err
	}
	ctx, op := c.begin(ctx, "add", key)
	defer op.end(&err)
	defer c.endWrites(c.beginWrites(key))
	prefix, stored := c.name(key)
	call := pipeline.Write("SET", fill.SetArgs(ttl, "NX"), pipeline.Done)
	reply, err := c.pipe.Do(ctx, fill.AppendSet(call, prefix, stored, value, ttl, "NX"))
	if err != nil {
		return false, op.fail(err)
	}
	if reply.Kind == resp.Nil {
		op.observe(OutcomeOK, 0, nil)
		return false, nil
	}
	op.stored(1)
	return true, nil
}

// name returns the two parts of the name under which Redis holds key.
func (c *Cache) name(key string) (prefix, stored string) {
	return c.prefix, fill.StoredName(c.prefix, key)
}

// lifetime replaces DefaultTTL and returns an error of op for a ttl that Redis does not accept.
func (c *Cache) lifetime(op string, ttl time.Duration) (time.Duration, error) {
	if ttl == DefaultTTL {
		ttl = cmp.Or(c.ttl, NoExpiry)
	}
	if ttl != NoExpiry && ttl < time.Millisecond {
		return 0, fmt.Errorf("rediscache: %s: ttl %v is neither a millisecond or more nor NoExpiry", op, ttl)
	}
	return ttl, nil
}

// set returns the SET of a value.
func (c *Cache) set(key string, value []byte, ttl time.Duration) *pipeline.Call {
	prefix, stored := c.name(key)
	call := pipeline.Write("SET", fill.SetArgs(ttl), pipeline.Status)
	return fill.AppendSet(call, prefix, stored, value, ttl)
}

// Delete removes the keys and returns how many of them existed. In the same round
// trip it ends the leases of their loads: with [Policy.Lease], a load that began
// before Delete, in any process, stores nothing after Delete. An error that
// matches [ErrOutcomeUnknown] can mean that the keys were deleted and their leases
// were not. If the Redis user may not delete leases, Delete still removes the keys,
// and an [Event] of "lease" reports once that a load may store them again.
func (c *Cache) Delete(ctx context.Context, keys ...string) (_ int, err error) {
	if len(keys) == 0 {
		return 0, ctx.Err()
	}
	key := ""
	if len(keys) == 1 {
		key = keys[0]
	}
	ctx, op := c.begin(ctx, "delete", key)
	defer op.end(&err)
	defer c.endWrites(c.beginWrites(keys...))
	// 1. Redis deletes the leases first. A load can store while it holds its
	//    lease, and the second command deletes what it stored.
	// 2. A load that gets a lease between the two commands began after Delete.
	// In the other order, an old load could store between the two commands. Both
	// go in one DoRun: with two calls, Redis could refuse the first, and its
	// retry would come after the second.
	_, reply, refused, err := c.pipe.DoRun(ctx, c.endLeases(keys), c.withKeys(pipeline.Write("DEL", len(keys), pipeline.Count), keys))
	switch {
	case fill.RefusedForGood(refused):
		c.leases.Refuse(ctx, refused)
	case refused != nil:
		err = fmt.Errorf("%w: the keys were deleted, their leases were not: %w", ErrOutcomeUnknown, refused)
	}
	if err != nil {
		return 0, op.fail(err)
	}
	c.counts.add(countDeletes, reply.Int)
	op.observe(OutcomeOK, reply.Int, nil)
	return int(reply.Int), nil
}

// leasesRefused observes that Redis refuses the commands of leases.
func (c *Cache) leasesRefused(ctx context.Context, err error) {
	_ = c.step(ctx, opLease, "").fail(fmt.Errorf(
		"values are stored as without Policy.Lease, because Redis refuses the commands of leases: %w", err))
}

// endLeases returns the command that ends the leases of keys.
func (c *Cache) endLeases(keys []string) *pipeline.Call {
	call := pipeline.Write("DEL", len(keys), pipeline.Count)
	if len(keys) > 1 {
		call.Grow(c.sizeOf(keys) + len(keys)*fill.LeaseLen("", ""))
	}
	for _, key := range keys {
		prefix, stored := c.name(key)
		call.Append(fill.LeaseLen(prefix, stored), func(b []byte) []byte { return fill.AppendLease(b, prefix, stored) })
	}
	return call
}

// sizeOf returns about how many bytes the keys have in a command.
func (c *Cache) sizeOf(keys []string) (n int) {
	for _, key := range keys {
		n += len("$100\r\n\r\n") + len(c.prefix) + len(key)
	}
	return n
}

// withKeys appends keys to a call.
func (c *Cache) withKeys(call *pipeline.Call, keys []string) *pipeline.Call {
	if len(keys) > 1 {
		call.Grow(c.sizeOf(keys))
	}
	for _, key := range keys {
		call.Key(c.name(key))
	}
	return call
}

// GetMany returns the values of the keys that exist, in one round trip. A key
// that holds another type than a string is a miss, as for MGET. Each 512 keys are
// read at the same time; between two such parts other writes may happen.
//
// A proxy may answer some of the keys with an error. GetMany then returns the
// values of the other keys and the first such error. If the whole call failed,
// the map is nil.
func (c *Cache) GetMany(ctx context.Context, keys ...string) (_ map[string][]byte, err error) {
	hits := make(map[string][]byte, len(keys))
	if len(keys) == 0 {
		return hits, ctx.Err()
	}
	ctx, op := c.begin(ctx, "get many", "")
	defer op.end(&err)
	var failed error // the first error of a key
	found := int64(0)
	err = c.readAll(ctx, keys, func(i int, e *resp.Reply) {
		switch e.Kind {
		case resp.Bulk:
			hits[keys[i]] = e.Bytes
			found++
			op.of(keys[i]).observe(OutcomeHit, 0, nil)
		case resp.Error:
			failed = cmp.Or(failed, op.of(keys[i]).fail(e.Err()))
		default:
			op.of(keys[i]).missed(nil)
		}
	})
	c.counts.add(countHits, found)
	if err != nil {
		return nil, op.fail(err)
	}
	return hits, failed
}

// maxTogether is how many keys an MGET has at most, so that the server sends the first
// values while it looks for the others, and serves other clients in between. It is also the COUNT
// of Clear's SCAN.
const maxTogether = pipeline.MaxTogether

// mget calls the function each with the reply for each key, in their order. If mget returns
// an error, it has not called each at all.
func (c *Cache) mget(ctx context.Context, keys []string, each func(i int, e *resp.Reply)) error {
	if len(keys) <= maxTogether {
		reply, err := c.pipe.Do(ctx, c.withKeys(pipeline.Read("MGET", len(keys), pipeline.Values), keys))
		if err != nil {
			return err
		}
		for i := range reply.Elems {
			each(i, &reply.Elems[i])
		}
		return nil
	}
	calls := make([]*pipeline.Call, 0, len(keys)/maxTogether+1)
	for part := range slices.Chunk(keys, maxTogether) {
		calls = append(calls, c.withKeys(pipeline.Read("MGET", len(part), pipeline.Values), part))
	}
	replies, errs := c.pipe.DoAll(ctx, calls...)
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	i := 0
	for _, reply := range replies {
		for n := range reply.Elems {
			each(i, &reply.Elems[n])
			i++
		}
	}
	return nil
}

// SetMany stores the items, each as Set does, in one pipeline. It is not a
// transaction: after an error some items may be stored, and the error matches
// [ErrOutcomeUnknown] if the outcome of any item is unknown. [WithTimeout] bounds
// each 512 items and each large value; after the first timeout SetMany sends no
// more. ctx bounds the whole call.
func (c *Cache) SetMany(ctx context.Context, items map[string][]byte, ttl time.Duration) (err error) {
	ttl, err = c.lifetime("set", ttl)
	if err != nil || len(items) == 0 {
		return errors.Join(err, ctx.Err())
	}
	ctx, op := c.begin(ctx, "set many", "")
	defer op.end(&err)
	list := make([]item, 0, len(items))
	for key, value := range items {
		list = append(list, item{key, value})
	}
	if c.near != nil {
		defer c.endWrites(c.beginWrites(slices.Collect(maps.Keys(items))...))
	}
	args := fill.SetArgs(ttl)
	errs := c.pipe.DoEach(ctx, len(list), pipeline.Status, func(call *pipeline.Call, i int) {
		prefix, stored := c.name(list[i].key)
		fill.AppendSet(call.Command("SET", args), prefix, stored, list[i].value, ttl)
	})
	if errs == nil {
		op.stored(int64(len(list)))
		return nil
	}
	var unknown, refused error // the first error of each kind
	for _, err := range errs {
		switch {
		case err == nil:
			c.counts.add(countSets, 1)
		case errors.Is(err, ErrOutcomeUnknown):
			unknown = cmp.Or(unknown, err)
		default:
			refused = cmp.Or(refused, err)
		}
	}
	return op.fail(errors.Join(unknown, refused))
}

// item is one of the items of SetMany.
type item struct {
	key   string
	value []byte
}

// TTL returns the time to live of key in whole milliseconds, or [NoExpiry]. A
// longer time than a Duration can hold is returned as the longest Duration. If
// the key does not exist, the error is [ErrNotFound].
func (c *Cache) TTL(ctx context.Context, key string) (_ time.Duration, err error) {
	ctx, op := c.begin(ctx, "ttl", key)
	defer op.end(&err)
	reply, err := c.pipe.Do(ctx, pipeline.Read("PTTL", 1, pipeline.Count).Key(c.name(key)))
	switch {
	case err != nil:
		return 0, op.fail(err)
	case reply.Int == -2:
		op.observe(OutcomeMiss, 0, nil)
		return 0, ErrNotFound
	}
	op.observe(OutcomeOK, 0, nil)
	if reply.Int == -1 {
		return NoExpiry, nil
	}
	return milliseconds(reply.Int), nil
}

// Touch sets the time to live of key to ttl: at least a millisecond, rounded down to
// whole milliseconds, or [DefaultTTL], or [NoExpiry]. Any other ttl is an error. If the
// key does not exist, the error is [ErrNotFound]. Touch does not read the value, so it
// also works on a key that holds another type than a string.
//
// For a [View] with [Policy.Stale], the time to live includes the time that a value is
// stale: a value that is stale becomes fresh if ttl is longer than Stale. With
// [Policy.Lease], a load in flight stores nothing if Touch gave the key more time than it
// had when the load began. Otherwise, and without a lease, the load stores its value with
// its own TTL.
//
// After an error that matches [ErrOutcomeUnknown], the time may be set. The cache does
// not retry such a Touch, because another caller may have set another time meanwhile. If
// that does not matter, call Touch again.
func (c *Cache) Touch(ctx context.Context, key string, ttl time.Duration) (err error) {
	ttl, err = c.lifetime("touch", ttl)
	if err != nil {
		return err
	}
	ctx, op := c.begin(ctx, "touch", key)
	defer op.end(&err)
	defer c.endWrites(c.beginWrites(key))
	existed, err := c.expire(ctx, key, ttl)
	switch {
	case err != nil:
		return op.fail(err)
	case !existed:
		op.observe(OutcomeMiss, 0, nil)
		return ErrNotFound
	}
	op.observe(OutcomeOK, 0, nil)
	return nil
}

// expire sets the time to live of key, and reports whether the key existed.
func (c *Cache) expire(ctx context.Context, key string, ttl time.Duration) (existed bool, err error) {
	if ttl != NoExpiry {
		reply, err := c.pipe.Do(ctx, pipeline.Write("PEXPIRE", 2, pipeline.Count).Key(c.name(key)).Int(ttl.Milliseconds()))
		return reply.Int == 1, err
	}
	// PERSIST returns 0 for a missing key and for a key that never expires. PTTL, which
	// comes first, distinguishes them whatever happens between the two commands:
	//
	// 1. PTTL returns -1: the key exists and never expires, so Touch has nothing to do.
	// 2. PTTL returns -2: the key does not exist.
	// 3. PTTL returns a time and PERSIST 0: the key expired or was deleted in between.
	before, reply, refused, err := c.pipe.DoRun(ctx,
		pipeline.Read("PTTL", 1, pipeline.Count).Key(c.name(key)),
		pipeline.Write("PERSIST", 1, pipeline.Count).Key(c.name(key)))
	switch {
	case err != nil:
		return false, err
	case reply.Int == 1:
		return true, nil
	}
	return before.Int == -1, refused
}

// milliseconds converts a PTTL reply, or returns forever for a time that a Duration cannot hold.
func milliseconds(n int64) time.Duration {
	if n > int64(forever/time.Millisecond) {
		return forever
	}
	return time.Duration(n) * time.Millisecond
}

// Clear removes all keys under the cache's prefix, by SCAN and UNLINK, and
// returns how many it removed, also with an error. Without a prefix it removes
// nothing and returns an error, because it would remove all keys of the database.
// Clear scans the whole database without blocking it. [WithTimeout] bounds each
// command, ctx the whole call. A key that is stored during Clear may remain.
func (c *Cache) Clear(ctx context.Context) (removed int, err error) {
	if c.prefix == "" {
		return 0, errors.New("rediscache: clear: the cache has no prefix")
	}
	pattern := globEscaper.Replace(c.prefix) + "*"
	ctx, op := c.begin(ctx, "clear", "")
	defer op.end(&err)
	for cursor := "0"; ; {
		reply, err := c.pipe.Do(ctx, pipeline.Read("SCAN", 5, pipeline.Page).String(cursor).
			String("MATCH").String(pattern).String("COUNT").Int(maxTogether))
		if err != nil {
			return removed, op.fail(err)
		}
		n, err := c.unlink(ctx, slices.DeleteFunc(reply.Elems[1].Elems, c.isForeign))
		if removed += n; err != nil {
			return removed, op.fail(err)
		}
		if cursor = reply.Elems[0].Word(); cursor == "0" {
			op.observe(OutcomeOK, int64(removed), nil)
			return removed, nil
		}
	}
}

// isForeign reports whether a name is not a key of this cache, although it begins with the
// prefix. If the prefix itself looks like a lease, then the prefix alone is the key of
// another cache, or a lease.
func (c *Cache) isForeign(name resp.Reply) bool {
	return len(name.Bytes) == len(c.prefix) && fill.IsLease(c.prefix, "")
}

// unlink removes keys that SCAN returned, whose names include the prefix.
func (c *Cache) unlink(ctx context.Context, keys []resp.Reply) (int, error) {
	if len(keys) == 0 {
		return 0, nil
	}
	names := make([]string, len(keys))
	call := pipeline.Write("UNLINK", len(keys), pipeline.Count)
	for i, key := range keys {
		names[i] = string(key.Bytes)
		call.String(names[i])
	}
	defer c.endWrites(c.beginWritesOf(names))
	reply, err := c.pipe.Do(ctx, call)
	return int(reply.Int), err
}

var globEscaper = strings.NewReplacer(
	`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`,
)

// Sub returns a cache whose keys have the prefix of c and then prefix. A version
// in prefix, such as "v3:", hides all keys of older versions at once. Both caches
// share everything else, and closing either closes both. Only the counts of [Cache.Stats]
// are the Sub's own, and c counts them too.
func (c *Cache) Sub(prefix string) *Cache {
	sub := *c
	sub.prefix += prefix
	sub.counts = &counts{parent: c.counts}
	return &sub
}

// Ping sends PING and returns nil if Redis answers it.
func (c *Cache) Ping(ctx context.Context) (err error) {
	ctx, op := c.begin(ctx, "ping", "")
	defer op.end(&err)
	if _, err := c.pipe.Do(ctx, pipeline.Read("PING", 0, pipeline.Status)); err != nil {
		return op.fail(err)
	}
	op.observe(OutcomeOK, 0, nil)
	return nil
}

func init() {
	hook.WaitIdle = func(cache any) { cache.(*Cache).loads.WaitIdle() }
}

// Close waits for the calls in flight, returns the connections to the pool, and
// returns nil. Later calls that need Redis return [ErrClosed]. Close may be
// called more than once. Close the cache before its pool.
//
// Close waits for loads that a caller waits for. It cancels the contexts of loads
// in the background, and waits for these loads too, even if a load ignores its
// context.
//
// Close also ends the connection of [WithNearCache], for which it waits up to about a
// second if Redis does not answer.
func (c *Cache) Close() error {
	c.loads.Close() // first, because a load in flight stores its value through the pipeline
	if c.near != nil {
		c.near.Close()
	}
	c.pipe.Close()
	return nil
}
