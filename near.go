package rediscache

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/near"
	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
)

// minNearBytes is the least for WithNearCache. A copy takes about 300 bytes more than its name and
// value, and none takes more than a quarter.
const minNearBytes = 64 << 10

// WithNearCache keeps copies of values in the memory of the process, in about n bytes, so that a
// hit costs no round trip. Redis reports each write under the prefix of the cache, and the report
// removes the copy. A key that does not exist is remembered too. Subs and views share the copies.
// Less than 64 KiB is an error. Without this option there are no copies.
//
// After a write of this cache has returned, its reads never return an older value, and no read
// returns a value older than one that an earlier read of this cache returned. A write of another
// process, or of another cache, is seen when its report arrives: usually within a millisecond, and
// a second after the write at the latest, also if the network or Redis hangs. So after a Delete in
// another process [View.GetOrLoad] may return the old value for that long, with [Policy.Lease] too.
// If the connection for the reports is lost, all copies are dropped, and reads go to Redis until
// there is a new one.
//
// The cache borrows that connection from the pool and keeps it until Close, so it is one of
// [WithMaxActive] or of MaxActive. A pool that lends only one connection is an error. A server
// without CLIENT TRACKING (Redis before 6, miniredis), or a user who may not run CLIENT ID, CLIENT
// TRACKING, SUBSCRIBE and PING or use the channel __redis__:invalidate, gets no copies: every read
// goes to Redis, [NearStats] says [NearRefused], and an [Event] of "near" with OutcomeError reports
// it once. The cache asks again after a minute.
//
// The price is paid by Redis, which sends the name of each key that is written to each process with
// a near cache of that prefix: a Redis that served 82,000 SETs a second served 75,000 with one such
// process and 30,000 with 64. So it is for keys that are read much more often than written. A Redis
// user who is limited to some keys gets the names of all keys under the prefix. redigo reads this
// connection, so the size of a report is not bounded.
func WithNearCache(n int64) Option {
	return Option{func(c *cacheConfig) { c.nearBytes, c.nearGiven = n, true }}
}

// WithNearTTL bounds how long [WithNearCache] keeps a copy, besides the TTL of the key in Redis: it
// limits the harm if something between Redis and the process loses a report. Zero sets no bound,
// negative is an error. The default is [DefaultNearTTL].
func WithNearTTL(d time.Duration) Option {
	return Option{func(c *cacheConfig) { c.nearTTL = d }}
}

// lendsOne reports whether a pool is known to lend at most one connection.
func lendsOne(pool Pool) bool {
	switch p := pool.(type) {
	case *WarmPool:
		_, maxActive := p.Limits()
		return maxActive == 1
	case *redis.Pool:
		return p.MaxActive == 1
	}
	return false
}

// NearState is the state of a near cache.
type NearState string

// The states of a near cache.
const (
	NearOff     NearState = ""        // without WithNearCache, or closed
	NearDown    NearState = "down"    // the connection for reports is not up, or does not answer: reads go to Redis
	NearLive    NearState = "live"    // copies are served
	NearRefused NearState = "refused" // the server refuses tracking: reads go to Redis
)

// NearStats are the counts of [WithNearCache]. Entries and Bytes are current numbers.
type NearStats struct {
	State         NearState
	Hits          int64 // reads of a key that a copy answered
	Misses        int64 // reads of a key that no copy answered
	Entries       int64 // copies
	Bytes         int64 // memory of the copies, about
	Invalidations int64 // names of keys in the reports of Redis
	Drops         int64 // how often all copies were dropped: connections that began or were lost, and flushes
}

var nearStates = map[near.State]NearState{
	near.Down: NearDown, near.Live: NearLive, near.Refused: NearRefused, near.Closed: NearOff,
}

func (c *Cache) nearStats() NearStats {
	if c.near == nil {
		return NearStats{}
	}
	s := c.near.Stats()
	return NearStats{
		State: nearStates[s.State], Hits: s.Hits, Misses: s.Misses, Entries: s.Entries, Bytes: s.Bytes,
		Invalidations: s.Invalidations, Drops: s.Drops,
	}
}

const opNear = "near"

func newNear(c *Cache, cfg cacheConfig, borrow func(context.Context) (redis.Conn, error)) *near.Cache {
	return near.New(near.Config{
		Bytes: cfg.nearBytes, TTL: cfg.nearTTL, Prefix: cfg.prefix, Borrow: borrow,
		Changed: func(_ near.State, err error) {
			if err != nil {
				c.step(context.Background(), opNear, "").observe(OutcomeError, 0, newOpError(opNear, err))
			}
		},
	})
}

// reading is the reply to GET, and that to PTTL, which is exact to slack: it may be that much less than
// Redis would say now.
type reading struct {
	held, left resp.Reply
	slack      time.Duration
}

// readOne reads the key that Redis holds under prefix + stored.
func (c *Cache) readOne(ctx context.Context, prefix, stored string) (resp.Reply, error) {
	if c.near == nil {
		return c.pipe.Do(ctx, pipeline.Read("GET", 1, pipeline.Value).Key(prefix, stored))
	}
	if err := ctx.Err(); err != nil {
		return resp.Reply{}, err
	}
	if copied, ok := c.near.Get(prefix, stored); ok {
		return held(copied), nil
	}
	r, err := c.fillNear(ctx, prefix, stored)
	return r.held, err
}

// readAll is readOne for keys, see mget.
func (c *Cache) readAll(ctx context.Context, keys []string, each func(i int, held *resp.Reply)) error {
	if c.near == nil {
		return c.mget(ctx, keys, each)
	}
	return c.readManyNear(ctx, keys, func(i int, r *reading) { each(i, &r.held) })
}

// fillNear reads a key from Redis, or waits for another caller that does.
func (c *Cache) fillNear(ctx context.Context, prefix, stored string) (reading, error) {
	f, leads := c.near.Begin(prefix, stored)
	if f != nil && !leads {
		copied, err := f.Wait(ctx)
		switch {
		case err != nil:
			return reading{}, err
		case copied != nil:
			return c.reading(copied), nil
		}
	}
	failed := errUnread
	if leads {
		defer func() {
			if failed != nil { // also if code of the pool ended the goroutine
				f.Fail(failed, ctx.Err() != nil || errors.Is(failed, errUnread))
			}
		}()
	}
	var r reading
	r.held, r.left, failed = c.pipe.DoPair(ctx,
		pipeline.Read("GET", 1, pipeline.Value).Key(prefix, stored),
		pipeline.Read("PTTL", 1, pipeline.Count).Key(prefix, stored))
	switch {
	case failed != nil:
		return reading{}, failed
	case leads:
		return c.reading(f.Store(r.held.Bytes, r.left.Int)), nil
	}
	c.sawStored(prefix, stored, &r.held)
	return r, nil
}

var errUnread = errors.New("rediscache: the read did not end")

// held returns the reply to GET that a copy stands for, in memory of its own.
func held(copied *near.Copy) resp.Reply {
	if !copied.Found() {
		return resp.Reply{Kind: resp.Nil}
	}
	value := make([]byte, len(copied.Value()))
	copy(value, copied.Value())
	return resp.Reply{Kind: resp.Bulk, Bytes: value}
}

// reading returns the replies to GET and PTTL that a copy stands for.
func (c *Cache) reading(copied *near.Copy) (r reading) {
	r = reading{held: held(copied), left: resp.Reply{Kind: resp.Int, Int: -1}}
	if !copied.Found() {
		r.left.Int = -2
	} else if left, slack, never := c.near.Left(copied); !never {
		r.left.Int, r.slack = max(left, 0).Milliseconds(), slack
	}
	return r
}

// readManyNear reads keys from their copies, and those that have none from Redis, in one round trip,
// which stores copies. It does not wait for the fills of others. If it returns an error, it has not
// called each at all.
func (c *Cache) readManyNear(ctx context.Context, keys []string, each func(i int, r *reading)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	readings := make([]reading, len(keys))
	var rest []string
	var at []int // of the keys in rest
	var fills []*near.Fill
	for i, key := range keys {
		prefix, stored := c.name(key)
		if copied, ok := c.near.Get(prefix, stored); ok {
			readings[i] = c.reading(copied)
			continue
		}
		f, leads := c.near.Begin(prefix, stored)
		if !leads {
			f = nil
		}
		rest, at, fills = append(rest, key), append(at, i), append(fills, f)
	}
	if len(rest) > 0 {
		if err := c.fillMany(ctx, rest, fills, func(n int, r reading) { readings[at[n]] = r }); err != nil {
			return err
		}
	}
	for i := range readings {
		each(i, &readings[i])
	}
	return nil
}

// fillMany reads keys from Redis and ends their fills, which may be nil.
func (c *Cache) fillMany(ctx context.Context, keys []string, fills []*near.Fill, each func(n int, r reading)) error {
	failed := errUnread // of the fills that are left
	defer func() {
		for _, f := range fills {
			if f != nil {
				f.Fail(failed, true) // the others read the key themselves
			}
		}
	}()
	var calls []*pipeline.Call
	for part := range slices.Chunk(keys, maxTogether) {
		calls = append(calls, c.withKeys(pipeline.Read("MGET", len(part), pipeline.Values), part))
	}
	parts := len(calls)
	for _, key := range keys {
		calls = append(calls, pipeline.Read("PTTL", 1, pipeline.Count).Key(c.name(key)))
	}
	replies, errs := c.pipe.DoAll(ctx, calls...)
	var values []resp.Reply
	for i, reply := range replies[:parts] {
		if errs[i] != nil {
			failed = errs[i]
			return failed
		}
		values = append(values, reply.Elems...)
	}
	lefts, errs := replies[parts:], errs[parts:]
	for i, f := range fills {
		r := reading{held: values[i], left: lefts[i]}
		switch {
		case f == nil:
			c.saw(keys[i], &r.held)
		case errs[i] == nil && r.held.Kind != resp.Error:
			r, fills[i] = c.reading(f.Store(r.held.Bytes, r.left.Int)), nil
		}
		each(i, r)
	}
	return nil
}

// saw must be called with a value of a key that was read from Redis and not through the near cache.
func (c *Cache) saw(key string, held *resp.Reply) {
	if c.near != nil {
		prefix, stored := c.name(key)
		c.sawStored(prefix, stored, held)
	}
}

func (c *Cache) sawStored(prefix, stored string, held *resp.Reply) {
	if c.near != nil && held.Kind != resp.Error {
		c.near.Saw(prefix, stored, held.Bytes, held.Kind == resp.Bulk)
	}
}

// beginWrites marks keys before they are written. The caller must call endWrites before it returns.
func (c *Cache) beginWrites(keys ...string) []near.Mark {
	if c.near == nil {
		return nil
	}
	marks := make([]near.Mark, len(keys))
	for i, key := range keys {
		marks[i] = c.near.BeginWrite(c.name(key))
	}
	return marks
}

// beginWritesOf is beginWrites for names in Redis.
func (c *Cache) beginWritesOf(names []string) []near.Mark {
	if c.near == nil {
		return nil
	}
	marks := make([]near.Mark, len(names))
	for i, name := range names {
		marks[i] = c.near.BeginWrite("", name)
	}
	return marks
}

func (c *Cache) endWrites(marks []near.Mark) {
	for _, m := range marks {
		c.near.EndWrite(m)
	}
}
