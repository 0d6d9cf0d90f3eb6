package rediscache_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache"
)

// slowCalls is an observer that prints calls that failed or took long.
type slowCalls struct{ limit time.Duration }

func (s slowCalls) Observe(_ context.Context, e rediscache.Event) {
	if e.Outcome == rediscache.OutcomeError || e.Took > s.limit {
		fmt.Println("slow or failed:", e.Op, e.Err)
	}
}

// A cache also works on a pool of redigo.
func ExampleNew() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool := &redis.Pool{
		MaxActive:   10,
		MaxIdle:     10,
		Wait:        true,
		DialContext: func(ctx context.Context) (redis.Conn, error) { return redis.DialContext(ctx, "tcp", server.Addr()) },
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithPrefix("app:"))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	fmt.Println(cache.Set(context.Background(), "a", []byte("1"), time.Minute))
	fmt.Println(server.Get("app:a"))
	// Output:
	// <nil>
	// 1 <nil>
}

func ExampleCache_Get() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	_, err = cache.Get(ctx, "a")
	fmt.Println(errors.Is(err, rediscache.ErrNotFound))

	// An empty value is a hit.
	if err := cache.Set(ctx, "a", nil, time.Minute); err != nil {
		panic(err)
	}
	value, err := cache.Get(ctx, "a")
	fmt.Println(len(value), err)

	canceled, cancel := context.WithCancel(ctx)
	cancel()
	_, err = cache.Get(canceled, "a")
	fmt.Println(errors.Is(err, context.Canceled))
	// Output:
	// true
	// 0 <nil>
	// true
}

func ExampleCache_Set() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithTTL(time.Hour))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	for _, ttl := range []time.Duration{
		time.Minute, rediscache.DefaultTTL, rediscache.NoExpiry, time.Microsecond,
	} {
		if err := cache.Set(ctx, "a", []byte("1"), ttl); err != nil {
			fmt.Println(err) // the stored value is unchanged
			continue
		}
		fmt.Println(cache.TTL(ctx, "a"))
	}
	// Output:
	// 1m0s <nil>
	// 1h0m0s <nil>
	// -1ns <nil>
	// rediscache: set: ttl 1µs is neither a millisecond or more nor NoExpiry
}

// Only the first of many workers gets the job.
func ExampleCache_Add() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	for _, worker := range []string{"first", "second"} {
		added, err := cache.Add(ctx, "job:7", []byte(worker), time.Minute)
		switch {
		case errors.Is(err, rediscache.ErrOutcomeUnknown):
			panic("this worker may have the job: read the key") // Add does not retry
		case err != nil:
			panic(err) // this worker does not have the job
		}
		fmt.Println(worker, added)
	}
	value, err := cache.Get(ctx, "job:7")
	fmt.Println(string(value), err)
	// Output:
	// first true
	// second false
	// first <nil>
}

// Each request lets a session live for another half hour.
func ExampleCache_Touch() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	if err := cache.Set(ctx, "session:1", []byte("Ann"), time.Minute); err != nil {
		panic(err)
	}
	fmt.Println(cache.Touch(ctx, "session:1", 30*time.Minute))
	fmt.Println(cache.TTL(ctx, "session:1"))
	err = cache.Touch(ctx, "session:2", 30*time.Minute)
	fmt.Println(errors.Is(err, rediscache.ErrNotFound))
	// Output:
	// <nil>
	// 30m0s <nil>
	// true
}

func ExampleCache_Delete() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	if err := cache.Set(ctx, "a", []byte("1"), time.Minute); err != nil {
		panic(err)
	}
	fmt.Println(cache.Delete(ctx, "a", "b")) // how many existed
	// Output:
	// 1 <nil>
}

func ExampleCache_GetMany() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	items := map[string][]byte{"a": []byte("1"), "b": []byte("2")}
	if err := cache.SetMany(ctx, items, time.Minute); err != nil {
		panic(err)
	}
	hits, err := cache.GetMany(ctx, "a", "b", "c")
	fmt.Printf("%s %v\n", hits, err) // without the miss
	// Output:
	// map[a:1 b:2] <nil>
}

// An error of SetMany can mean that some items are stored: set all of them again.
func ExampleCache_SetMany() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	items := map[string][]byte{"a": []byte("1"), "b": []byte("2")}
	fmt.Println(cache.SetMany(ctx, items, time.Minute))
	server.Close()
	err = cache.SetMany(ctx, items, time.Minute)
	fmt.Println(err != nil)
	// Output:
	// <nil>
	// true
}

func ExampleCache_TTL() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	_ = cache.Set(ctx, "a", nil, time.Minute)
	_ = cache.Set(ctx, "b", nil, rediscache.NoExpiry)
	fmt.Println(cache.TTL(ctx, "a"))
	ttl, err := cache.TTL(ctx, "b")
	fmt.Println(ttl == rediscache.NoExpiry, err)
	_, err = cache.TTL(ctx, "c")
	fmt.Println(errors.Is(err, rediscache.ErrNotFound))
	// Output:
	// 1m0s <nil>
	// true <nil>
	// true
}

// Clear removes the keys under the prefix of the cache, and needs a prefix.
func ExampleCache_Clear() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithPrefix("app:"))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	_ = cache.Sub("pages:").Set(ctx, "home", nil, time.Hour)
	_ = cache.Set(ctx, "other", nil, time.Hour)
	fmt.Println(cache.Sub("pages:").Clear(ctx)) // how many it removed
	fmt.Println(server.Keys())
	// Output:
	// 1 <nil>
	// [app:other]
}

// A new version in the prefix hides everything that was stored under the old one.
func ExampleCache_Sub() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithPrefix("app:"))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	if err := cache.Sub("users:v1:").Set(ctx, "42", []byte("Ann"), time.Hour); err != nil {
		panic(err)
	}
	_, err = cache.Sub("users:v2:").Get(ctx, "42")
	fmt.Println(errors.Is(err, rediscache.ErrNotFound))

	fmt.Println(cache.Sub("users:v1:").Clear(ctx))
	// Output:
	// true
	// 1 <nil>
}

// A health check of a server.
func ExampleCache_Ping() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	fmt.Println(cache.Ping(ctx))
	server.Close()
	fmt.Println(errors.Is(cache.Ping(ctx), rediscache.ErrUnavailable))
	// Output:
	// <nil>
	// true
}

// A cache and all its Subs have one count.
func ExampleCache_Stats() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	_ = cache.Sub("pages:").Set(ctx, "home", nil, time.Hour)
	_, _ = cache.Sub("pages:").Get(ctx, "home")
	_, _ = cache.Get(ctx, "none")
	stats := cache.Stats()
	fmt.Println(stats.Hits, "hit,", stats.Misses, "miss,", stats.Sets, "set,", stats.Errors, "errors")
	// Output:
	// 1 hit, 1 miss, 1 set, 0 errors
}

// Close the cache and then its pool. Close leaves the pool open.
func ExampleCache_Close() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	fmt.Println(cache.Close())
	fmt.Println(errors.Is(cache.Ping(ctx), rediscache.ErrClosed))

	conn, err := pool.GetContext(ctx)
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	fmt.Println(conn.Do("PING"))
	// Output:
	// <nil>
	// true
	// PONG <nil>
}

// Caches with prefixes share a Redis with other programs.
func ExampleWithPrefix() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithPrefix("shop:"))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	_ = cache.Set(context.Background(), "cart", nil, time.Hour)
	fmt.Println(server.Keys())
	// Output:
	// [shop:cart]
}

func ExampleWithTTL() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithTTL(10*time.Minute))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	_ = cache.Set(ctx, "a", nil, rediscache.DefaultTTL)
	fmt.Println(cache.TTL(ctx, "a"))
	_, err = rediscache.New(pool, rediscache.WithTTL(0))
	fmt.Println(err)
	// Output:
	// 10m0s <nil>
	// rediscache: WithTTL: 0s is neither a millisecond or more nor NoExpiry
}

// The timeout bounds each call, also one whose context has no deadline.
func ExampleWithTimeout() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithMinIdle(0), rediscache.WithMaxActive(1))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithTimeout(50*time.Millisecond))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	conn := pool.Get() // the only connection
	defer conn.Close()
	_, err = cache.Get(context.Background(), "a")
	fmt.Println(errors.Is(err, context.DeadlineExceeded), errors.Is(err, rediscache.ErrPoolExhausted))
	// Output:
	// true true
}

// The callers share one connection.
func ExampleWithPipelineConns() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithMinIdle(0))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithPipelineConns(1))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	var callers sync.WaitGroup
	for range 100 {
		callers.Go(func() { _, _ = cache.Get(context.Background(), "a") })
	}
	callers.Wait()
	fmt.Println(cache.Stats().Misses, "calls,", pool.Stats().Dials, "connection")
	// Output:
	// 100 calls, 1 connection
}

// An observer counts the outcomes of all calls of a cache, its Subs and its views.
func ExampleWithObserver() {
	observer := rediscache.ObserverFunc(func(_ context.Context, e rediscache.Event) {
		fmt.Println(e.Op, e.Key, e.Outcome, e.Err)
	})
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithObserver(observer))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	v, err := rediscache.Of(cache, rediscache.String(), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	for range 2 {
		_, _ = v.GetOrLoad(context.Background(), "ulm", func(context.Context) (string, error) {
			return "Ulm", nil
		})
	}
	// Output:
	// get or load ulm miss <nil>
	// load ulm load <nil>
	// fill ulm ok <nil>
	// get or load ulm hit <nil>
}

// An Observer is called by many goroutines at once, so it must be safe for that.
func ExampleObserver() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithObserver(slowCalls{time.Minute}))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	_, _ = cache.Get(ctx, "a") // a miss, and quick
	server.SetError("OOM command not allowed")
	_ = cache.Set(ctx, "a", nil, time.Minute)
	// Output:
	// slow or failed: set rediscache: set: unavailable: OOM command not allowed
}

// spans is an observer that prints a line for the begin and the end of each call. The
// name of the call that contains another comes from the context, as the parent of a span.
type spans struct{}

type spanKey struct{}

func (spans) Observe(context.Context, rediscache.Event) {}

func (spans) Start(ctx context.Context, op, key string) context.Context {
	if parent, ok := ctx.Value(spanKey{}).(string); ok {
		op = parent + " > " + op
	}
	fmt.Println("start", op, key)
	return context.WithValue(ctx, spanKey{}, op)
}

func (spans) End(_ context.Context, op string, err error) {
	fmt.Println("end", op, err)
}

// The load of a View begins inside the call that misses.
func ExampleStarter() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithObserver(spans{}))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	v, err := rediscache.Of(cache, rediscache.String(), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	_, _ = v.GetOrLoad(context.Background(), "ulm", func(context.Context) (string, error) {
		return "Ulm", nil
	})
	// Output:
	// start get or load ulm
	// start get or load > load ulm
	// end load <nil>
	// end get or load <nil>
}

// The label of a metric must have few values, and the text of an error has many.
func ExampleErrorKind() {
	err := fmt.Errorf("GET /users: %w", &rediscache.DialError{Err: errors.New("connection refused")})
	fmt.Println(rediscache.ErrorKind(err))
	fmt.Println(rediscache.ErrorKind(context.DeadlineExceeded))
	// Output:
	// unavailable
	// timeout
}

// A miss ends with ErrNotFound, which is no failure.
func ExampleEnder() {
	var ender rediscache.Ender = spans{}
	ctx := spans{}.Start(context.Background(), "get", "a")
	ender.End(ctx, "get", rediscache.ErrNotFound)
	// Output:
	// start get a
	// end get rediscache: not found
}

func ExampleObserverFunc() {
	count := make(map[rediscache.Outcome]int)
	var observer rediscache.Observer = rediscache.ObserverFunc(func(_ context.Context, e rediscache.Event) {
		count[e.Outcome]++ // a cache calls it from many goroutines: then use a mutex
	})
	observer.Observe(context.Background(), rediscache.Event{Op: "get", Outcome: rediscache.OutcomeHit})
	fmt.Println(count)
	// Output:
	// map[hit:1]
}

// A test of an observer calls it as a cache does.
func ExampleObserverFunc_Observe() {
	observer := rediscache.ObserverFunc(func(_ context.Context, e rediscache.Event) {
		fmt.Println(e.Op, e.Outcome, e.Took)
	})
	observer.Observe(context.Background(), rediscache.Event{
		Op: "get", Key: "a", Outcome: rediscache.OutcomeMiss, Took: time.Millisecond,
	})
	// Output:
	// get miss 1ms
}
