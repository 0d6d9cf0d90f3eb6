// Package rediscachetest provides caches for the tests of code that uses a cache.
//
// [New] returns a [rediscache.Cache] on a Redis within the process, so a test needs
// nothing but Go:
//
//	c := rediscachetest.New(t)
//	g := greeter{c.Cache} // the code that is tested
//	_ = c.Set(t.Context(), "greeting", []byte("hi"), time.Minute)
//	if got := g.greet(t.Context()); got != "hi" {
//		t.Error(got)
//	}
//	c.Advance(time.Minute) // the value expires
//	if got := g.greet(t.Context()); got != "hello" {
//		t.Error(got)
//	}
//	c.Down()
//	if got := g.greet(t.Context()); got != "hello, without a cache" {
//		t.Error(got)
//	}
//
// The test controls the time and the faults of that Redis:
//
//   - To let a value expire or become stale, call [Cache.Advance]. No test needs to sleep.
//   - To see what the code does without a cache, call [Cache.Down], and later [Cache.Up].
//   - A View may load in the background ([rediscache.Policy.Stale]). Call [Cache.WaitIdle]
//     before looking at what such a load has done.
//
// [Store] is a store in memory for tests of HTTP handlers, see [rediscache.NewHandler]. It
// needs no connection, and can return any error.
//
// The Redis is [miniredis]. It does what the commands of a cache do, but it is not Redis:
// to test memory limits, eviction or performance, use a redis-server.
//
// [miniredis]: https://github.com/alicebob/miniredis
package rediscachetest

import (
	"context"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/hook"
)

// Cache is a cache on a Redis of its own. Pass the embedded Cache to the code that is
// tested.
type Cache struct {
	*rediscache.Cache
	// Pool is the pool of the cache. It dials within milliseconds after Up.
	Pool *rediscache.WarmPool

	tb    testing.TB
	redis *miniredis.Miniredis
}

// New returns a cache with the options opts, see [rediscache.New]. Its end is that of the
// test: a function of tb.Cleanup closes the cache, the pool and the Redis. An invalid
// option fails the test. With [rediscache.WithNearCache] there are no copies, because
// miniredis does not report writes.
func New(tb testing.TB, opts ...rediscache.Option) *Cache {
	tb.Helper()
	c := &Cache{tb: tb, redis: miniredis.RunT(tb)}
	var err error
	if c.Pool, err = rediscache.NewPool("redis://"+c.redis.Addr(), rediscache.WithMinIdle(1)); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Pool.Close() })
	if c.Cache, err = rediscache.New(c.Pool, opts...); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// Advance moves the clock of Redis by d, so that values expire, become stale, or come
// closer to their end. d must not be negative. The clock does not move by itself. The time
// for which a View does not repeat a failed load ([rediscache.LoadBackoff]) is real time.
func (c *Cache) Advance(d time.Duration) {
	c.tb.Helper()
	if d < 0 {
		c.tb.Fatalf("rediscachetest: Advance(%v): the clock cannot go back", d)
	}
	c.redis.FastForward(d)
}

// Down stops the Redis: calls return an error that matches [rediscache.ErrUnavailable].
// The values stay. Down does nothing if Redis is down.
func (c *Cache) Down() { c.redis.Close() }

// Up starts the Redis again, at the same address, and returns when the pool is connected.
// It does nothing if Redis is up.
func (c *Cache) Up() {
	c.tb.Helper()
	if c.redis.Server() != nil {
		return
	}
	if err := c.redis.Restart(); err != nil {
		c.tb.Fatal("rediscachetest: Up: ", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // more than the longest back-off
	defer cancel()
	if err := c.Pool.Ready(ctx); err != nil {
		c.tb.Fatal("rediscachetest: Up: ", err)
	}
}

// WaitIdle waits until no load runs, neither in the background nor for a caller, and what
// the loads returned is stored.
func (c *Cache) WaitIdle() { hook.WaitIdle(c.Cache) }
