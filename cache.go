package rediscache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/flight"
	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// What a call can come to besides its result. An ended context is always
// context.Canceled or context.DeadlineExceeded to errors.Is, whichever of
// these the error matches too.
var (
	// ErrNotFound means that the key holds no value. An empty value is one.
	ErrNotFound = errors.New("rediscache: not found")

	// ErrUnavailable means that Redis could not be reached, broke the
	// connection, or refused to serve: it is loading, out of memory, a
	// read-only replica and the like. A write was not applied, unless the error
	// matches ErrOutcomeUnknown too: a proxy lost its server during the write.
	ErrUnavailable = warm.ErrUnavailable

	// ErrPoolExhausted means that all connections were busy until the context
	// ended. A write was not applied.
	ErrPoolExhausted = warm.ErrPoolExhausted

	// ErrOutcomeUnknown means that a write was sent and that its reply was
	// lost: it may have been applied. Every other error of a write means that
	// it was not.
	ErrOutcomeUnknown = pipeline.ErrOutcomeUnknown

	// ErrWrongType means that the key holds something other than a string,
	// which this package did not store.
	ErrWrongType = errors.New("rediscache: wrong type")

	// ErrClosed means that the cache, or the [WarmPool] that it borrows from,
	// was closed.
	ErrClosed = warm.ErrClosed
)

// What a ttl can be besides a time.
const (
	DefaultTTL time.Duration = 0  // the cache's own, which [WithTTL] sets
	NoExpiry   time.Duration = -1 // until it is deleted or evicted
)

// Cache is a Redis cache. Keys and values are any bytes; a key may be empty.
// All methods are safe for concurrent use. Each is bounded by its context and
// by [WithTimeout]; one whose context is over already sends nothing.
type Cache struct {
	pipe     *pipeline.Pipeline
	counts   *counts
	loads    *flight.Owner // of all views; it waits for them
	observer Observer      // may be nil
	prefix   string
	ttl      time.Duration
}

type counts struct {
	hits, misses, sets, deletes, errs        atomic.Int64
	stale, negatives, loads, shared, refused atomic.Int64
}

// New makes a cache on a pool, which stays its owner's: Close hands the
// connections back and leaves the pool open. An error names every fault of the
// options.
func New(pool Pool, opts ...Option) (*Cache, error) {
	cfg, err := newCacheConfig(pool, opts)
	if err != nil {
		return nil, err
	}
	p := pipeline.Config{
		Lease:        pool.GetContext,
		Lanes:        cfg.pipelineConns,
		Timeout:      cfg.timeout,
		ReadTimeout:  DefaultReadTimeout,
		WriteTimeout: DefaultWriteTimeout,
	}
	if w, ok := pool.(*WarmPool); ok {
		p.Lease, p.Late = w.acquire, w.store.Late
		p.ReadTimeout, p.WriteTimeout = w.readTimeout, w.writeTimeout
	}
	return &Cache{
		pipe: pipeline.New(p), counts: new(counts), loads: flight.NewOwner(),
		observer: cfg.observer, prefix: cfg.prefix, ttl: cfg.ttl,
	}, nil
}

// Get returns the value of key, which the caller may keep and change. It
// returns [ErrNotFound] on a miss.
func (c *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	begin := c.begin()
	reply, err := c.pipe.Do(ctx, pipeline.Read("GET", 1, pipeline.Value).Key(c.prefix, key))
	if err != nil {
		return nil, c.fail(ctx, "get", key, begin, err)
	}
	if reply.Kind == resp.Nil {
		c.missed(ctx, "get", key, begin, nil)
		return nil, ErrNotFound
	}
	c.hit(ctx, "get", key, begin)
	return reply.Bytes, nil
}

// Set stores value for ttl: a time of a millisecond or more, of which a
// fraction of a millisecond is dropped, or [DefaultTTL], or [NoExpiry]. Any
// other ttl is an error. The value is not kept: it may be changed once Set has
// returned, whatever it returned.
func (c *Cache) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	ttl, err := c.lifetime(ttl)
	if err != nil {
		return err
	}
	begin := c.begin()
	if _, err := c.pipe.Do(ctx, c.set(key, value, ttl)); err != nil {
		return c.fail(ctx, "set", key, begin, err)
	}
	c.counts.sets.Add(1)
	return nil
}

// lifetime turns what a caller says into NoExpiry or a time that Redis takes.
func (c *Cache) lifetime(ttl time.Duration) (time.Duration, error) {
	if ttl == DefaultTTL {
		ttl = c.ttl
	}
	if ttl != NoExpiry && ttl < time.Millisecond {
		return 0, fmt.Errorf("rediscache: set: ttl %v is neither a millisecond or more nor NoExpiry", ttl)
	}
	return ttl, nil
}

func (c *Cache) set(key string, value []byte, ttl time.Duration) *pipeline.Call {
	if ttl == NoExpiry {
		return pipeline.Write("SET", 2, pipeline.Status).Key(c.prefix, key).Value(value)
	}
	return pipeline.Write("SET", 4, pipeline.Status).Key(c.prefix, key).Value(value).String("PX").Int(ttl.Milliseconds())
}

// Delete removes the keys and returns how many of them existed.
func (c *Cache) Delete(ctx context.Context, keys ...string) (int, error) {
	if len(keys) == 0 {
		return 0, ctx.Err()
	}
	begin := c.begin()
	reply, err := c.pipe.Do(ctx, c.with(pipeline.Write("DEL", len(keys), pipeline.Count), keys))
	if err != nil {
		return 0, c.fail(ctx, "delete", "", begin, err)
	}
	c.counts.deletes.Add(reply.Int)
	return int(reply.Int), nil
}

// with appends keys to a call.
func (c *Cache) with(call *pipeline.Call, keys []string) *pipeline.Call {
	for _, key := range keys {
		call.Key(c.prefix, key)
	}
	return call
}

// GetMany returns the values of those keys that hold one, in one round trip.
// A key of another type counts as a miss, as it does for MGET.
//
// A proxy may answer for some of the keys with an error. GetMany then returns
// the values of the others and the first such error; the map is nil if the
// whole call failed.
func (c *Cache) GetMany(ctx context.Context, keys ...string) (map[string][]byte, error) {
	hits := make(map[string][]byte, len(keys))
	if len(keys) == 0 {
		return hits, ctx.Err()
	}
	begin := c.begin()
	reply, err := c.pipe.Do(ctx, c.with(pipeline.Read("MGET", len(keys), pipeline.Values), keys))
	if err != nil {
		return nil, c.fail(ctx, "get many", "", begin, err)
	}
	var failed error // of the first key that has one
	for i, e := range reply.Elems {
		switch e.Kind {
		case resp.Bulk:
			hits[keys[i]] = e.Bytes
			c.hit(ctx, "get many", keys[i], begin)
		case resp.Error:
			failed = cmp.Or(failed, c.fail(ctx, "get many", keys[i], begin, refusal(e)))
		default:
			c.missed(ctx, "get many", keys[i], begin, nil)
		}
	}
	return hits, failed
}

// refusal is the error that a server or a proxy answered with.
func refusal(r resp.Reply) error { return redis.Error(resp.Discreet(r.Text)) }

// SetMany stores the items, each as Set does, in one pipeline. It is not one
// transaction: after an error some may have been stored, and the error matches
// [ErrOutcomeUnknown] if that is unknown of any. [WithTimeout] bounds each 512
// items and each large value, and after one that is too late no more are sent;
// ctx bounds the whole.
func (c *Cache) SetMany(ctx context.Context, items map[string][]byte, ttl time.Duration) error {
	ttl, err := c.lifetime(ttl)
	if err != nil || len(items) == 0 {
		return errors.Join(err, ctx.Err())
	}
	var unknown, refused error // the first of each
	begin := c.begin()
	calls := make([]*pipeline.Call, 0, min(len(items), maxTogether))
	late := false
	send := func() {
		_, errs := c.pipe.DoAll(ctx, calls...)
		for _, err := range errs {
			late = late || pipeline.TooLate(err)
			switch {
			case err == nil:
				c.counts.sets.Add(1)
			case errors.Is(err, ErrOutcomeUnknown):
				unknown = cmp.Or(unknown, err)
			default:
				refused = cmp.Or(refused, err)
			}
		}
		calls = calls[:0]
	}
	for key, value := range items {
		if calls = append(calls, c.set(key, value, ttl)); len(calls) == maxTogether {
			if send(); late {
				break
			}
		}
	}
	if len(calls) > 0 {
		send()
	}
	if err := errors.Join(unknown, refused); err != nil {
		return c.fail(ctx, "set many", "", begin, err)
	}
	return nil
}

// maxTogether bounds what SetMany encodes at once and Clear asks for.
const maxTogether = 512

// TTL returns how long the value of key will live still, or [NoExpiry], or
// [ErrNotFound]. It has a resolution of a millisecond, and stops at what a
// Duration can say.
func (c *Cache) TTL(ctx context.Context, key string) (time.Duration, error) {
	begin := c.begin()
	reply, err := c.pipe.Do(ctx, pipeline.Read("PTTL", 1, pipeline.Count).Key(c.prefix, key))
	switch {
	case err != nil:
		return 0, c.fail(ctx, "ttl", key, begin, err)
	case reply.Int == -2:
		return 0, ErrNotFound
	case reply.Int == -1:
		return NoExpiry, nil
	}
	return milliseconds(reply.Int), nil
}

// milliseconds is a time as Redis tells it, or forever where that is longer:
// Redis counts further than a Duration.
func milliseconds(n int64) time.Duration {
	if n > int64(forever/time.Millisecond) {
		return forever
	}
	return time.Duration(n) * time.Millisecond
}

// Clear removes all keys under the cache's prefix, by SCAN and UNLINK, and
// returns how many. It refuses to work without a prefix, as it would remove
// everybody's keys. It looks at every key of the database, without blocking
// it; [WithTimeout] bounds each step, ctx the whole. What is stored meanwhile
// may remain. After an error the count is of those removed until then.
func (c *Cache) Clear(ctx context.Context) (int, error) {
	if c.prefix == "" {
		return 0, errors.New("rediscache: clear: the cache has no prefix")
	}
	pattern := globEscaper.Replace(c.prefix) + "*"
	removed := 0
	begin := c.begin()
	for cursor := "0"; ; {
		reply, err := c.pipe.Do(ctx, pipeline.Read("SCAN", 5, pipeline.Page).String(cursor).
			String("MATCH").String(pattern).String("COUNT").Int(maxTogether))
		if err != nil {
			return removed, c.fail(ctx, "clear", "", begin, err)
		}
		n, err := c.unlink(ctx, reply.Elems[1].Elems)
		if removed += n; err != nil {
			return removed, c.fail(ctx, "clear", "", begin, err)
		}
		if cursor = reply.Elems[0].Word(); cursor == "0" {
			return removed, nil
		}
	}
}

// unlink removes keys as SCAN gave them, prefix and all.
func (c *Cache) unlink(ctx context.Context, keys []resp.Reply) (int, error) {
	if len(keys) == 0 {
		return 0, nil
	}
	call := pipeline.Write("UNLINK", len(keys), pipeline.Count)
	for _, key := range keys {
		call.String(string(key.Bytes))
	}
	reply, err := c.pipe.Do(ctx, call)
	return int(reply.Int), err
}

var globEscaper = strings.NewReplacer(
	`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`,
)

// Sub returns a cache under prefix within this one: its keys have both
// prefixes. A version in it, such as "v3:", makes all older keys invisible at
// once. Everything else is shared, the counts too, and closing either closes
// both.
func (c *Cache) Sub(prefix string) *Cache {
	sub := *c
	sub.prefix += prefix
	return &sub
}

// Ping asks Redis for an answer.
func (c *Cache) Ping(ctx context.Context) error {
	begin := c.begin()
	if _, err := c.pipe.Do(ctx, pipeline.Read("PING", 0, pipeline.Status)); err != nil {
		return c.fail(ctx, "ping", "", begin, err)
	}
	return nil
}

// Close lets the calls under way end, hands the connections back to the pool,
// waits for that, and returns nil. Later calls that ask Redis for anything
// return [ErrClosed]. It may be called more than once. Close the cache before
// its pool.
//
// A load that a caller waits for is a call under way; the context of one in
// the background ends. Close waits for both, so also for a load that does not
// heed its context.
func (c *Cache) Close() error {
	c.loads.Close() // first, as a load under way stores what it finds
	c.pipe.Close()
	return nil
}

// opError is a failed operation. It matches its cause and, if there is one,
// the sentinel that the cause amounts to.
type opError struct {
	op    string
	is    error // may be nil
	cause error
}

func (e *opError) Error() string {
	text := "rediscache: " + e.op + ": "
	if e.is != nil {
		text += strings.TrimPrefix(e.is.Error(), "rediscache: ") + ": "
	}
	return text + strings.TrimPrefix(e.cause.Error(), "rediscache: ")
}

func (e *opError) Unwrap() []error {
	if e.is == nil {
		return []error{e.cause}
	}
	return []error{e.is, e.cause}
}

// sentinel returns the sentinel that err amounts to, or nil if err matches one already or amounts to
// none. An error of Redis that [resp.MeaningOf] does not know, NOAUTH and NOPERM are refusals for good.
func sentinel(err error) error {
	meaning, answered := meaningOf(err)
	if meaning.Has(resp.Unavailable) {
		return ErrUnavailable
	}
	for _, known := range []error{ErrUnavailable, ErrPoolExhausted, ErrOutcomeUnknown, ErrClosed} {
		if errors.Is(err, known) {
			return nil
		}
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil
	case errors.Is(err, redis.ErrPoolExhausted):
		return ErrPoolExhausted
	case !answered:
		return ErrUnavailable
	case meaning.Has(resp.WrongType):
		return ErrWrongType
	}
	return nil
}

// meaningOf returns what the Redis error in err means, and whether there is one.
func meaningOf(err error) (meaning resp.Meaning, answered bool) {
	var answer redis.Error
	if !errors.As(err, &answer) {
		return 0, false
	}
	return resp.MeaningOf(string(answer)), true
}
