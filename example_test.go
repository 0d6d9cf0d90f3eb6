package rediscache_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache"
)

// The README shows this one.
func Example() {
	ctx := context.Background()
	server, err := miniredis.Run() // a Redis for this example: bring your own
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err) // of the URL or an option: Redis need not be up
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithTTL(time.Hour))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	if err := cache.Set(ctx, "greeting", []byte("hello"), rediscache.DefaultTTL); err != nil {
		panic(err)
	}
	value, err := cache.Get(ctx, "greeting")
	fmt.Println(string(value), err)
	_, err = cache.Get(ctx, "farewell")
	fmt.Println(errors.Is(err, rediscache.ErrNotFound))
	mux := http.NewServeMux()
	mux.Handle("/cache/", rediscache.NewHandler(cache)) // POST, GET and DELETE /cache/{key}
	// Output:
	// hello <nil>
	// true
}

// exampleCache returns a cache on a Redis of its own, and what ends both.
func exampleCache(opts ...rediscache.Option) (*rediscache.Cache, func()) {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	cache, err := rediscache.New(pool, opts...)
	if err != nil {
		panic(err)
	}
	return cache, func() {
		cache.Close()
		pool.Close()
		server.Close()
	}
}

// A miss and a Redis that is down are two different errors: here the second
// costs no more than the cache.
func ExampleCache() {
	cache, end := exampleCache()
	page := func(ctx context.Context, name string) string {
		value, err := cache.Get(ctx, name)
		switch {
		case err == nil:
			return string(value) + " (cached)"
		case !errors.Is(err, rediscache.ErrNotFound):
			return "page " + name + " (no cache)" // log err
		}
		value = []byte("page " + name)
		_ = cache.Set(ctx, name, value, time.Minute) // log that too
		return string(value)
	}
	fmt.Println(page(context.Background(), "home"))
	fmt.Println(page(context.Background(), "home"))
	end()
	fmt.Println(page(context.Background(), "home"))
	// Output:
	// page home
	// page home (cached)
	// page home (no cache)
}

// All faults come at once, before the first connection.
func ExampleNewPool() {
	_, err := rediscache.NewPool("http://localhost:6379",
		rediscache.WithMinIdle(20), rediscache.WithMaxActive(10))
	fmt.Println(err)
	// Output:
	// rediscache: URL: scheme "http" is none of redis, rediss, valkey, valkeys, unix
	// rediscache: WithMinIdle: 20 is above the maximum of 10
}

// A pool fills to its floor before anybody asks.
func ExampleWarmPool_Ready() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(),
		rediscache.WithMinIdle(3), rediscache.WithMaxActive(5))
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := pool.Ready(ctx); err != nil {
		panic(err) // says why Redis did not answer
	}
	fmt.Println("spare:", pool.Stats().Idle)
	if err := pool.Shutdown(ctx); err != nil {
		panic(err)
	}
	fmt.Println("open:", pool.Stats().Open)
	// Output:
	// spare: 3
	// open: 0
}

// What a cache has no verb for goes over a connection of the same pool.
func ExampleWarmPool_GetContext() {
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

	conn, err := pool.GetContext(context.Background())
	if err != nil {
		panic(err)
	}
	defer conn.Close() // returns it to the pool
	n, err := redis.Int(conn.Do("INCR", "visits"))
	fmt.Println(n, err)
	// Output: 1 <nil>
}

// A pool of redigo's own does as well, without a floor.
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
	cache, end := exampleCache()
	defer end()
	ctx := context.Background()
	_, err := cache.Get(ctx, "a")
	fmt.Println(errors.Is(err, rediscache.ErrNotFound))

	// An empty value is none of these: it is a value.
	if err := cache.Set(ctx, "a", nil, time.Minute); err != nil {
		panic(err)
	}
	value, err := cache.Get(ctx, "a")
	fmt.Println(len(value), err)

	over, cancel := context.WithCancel(ctx)
	cancel()
	_, err = cache.Get(over, "a")
	fmt.Println(errors.Is(err, context.Canceled))
	// Output:
	// true
	// 0 <nil>
	// true
}

func ExampleCache_Set() {
	cache, end := exampleCache(rediscache.WithTTL(time.Hour))
	defer end()
	ctx := context.Background()
	for _, ttl := range []time.Duration{
		time.Minute, rediscache.DefaultTTL, rediscache.NoExpiry, time.Microsecond,
	} {
		if err := cache.Set(ctx, "a", []byte("1"), ttl); err != nil {
			fmt.Println(err) // and what was stored stays
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

func ExampleCache_Delete() {
	cache, end := exampleCache()
	defer end()
	ctx := context.Background()
	if err := cache.Set(ctx, "a", []byte("1"), time.Minute); err != nil {
		panic(err)
	}
	fmt.Println(cache.Delete(ctx, "a", "b")) // how many existed
	// Output: 1 <nil>
}

func ExampleCache_GetMany() {
	cache, end := exampleCache()
	defer end()
	ctx := context.Background()
	items := map[string][]byte{"a": []byte("1"), "b": []byte("2")}
	if err := cache.SetMany(ctx, items, time.Minute); err != nil {
		panic(err)
	}
	hits, err := cache.GetMany(ctx, "a", "b", "c")
	fmt.Printf("%s %v\n", hits, err) // a miss is not in it
	// Output: map[a:1 b:2] <nil>
}

// A version in a prefix invalidates all that was stored under the last one.
func ExampleCache_Sub() {
	cache, end := exampleCache(rediscache.WithPrefix("app:"))
	defer end()
	ctx := context.Background()
	if err := cache.Sub("users:v1:").Set(ctx, "42", []byte("Ann"), time.Hour); err != nil {
		panic(err)
	}
	_, err := cache.Sub("users:v2:").Get(ctx, "42")
	fmt.Println(errors.Is(err, rediscache.ErrNotFound))

	fmt.Println(cache.Sub("users:v1:").Clear(ctx))
	// Output:
	// true
	// 1 <nil>
}

func ExampleNewHandler() {
	cache, end := exampleCache()
	defer end()
	mux := http.NewServeMux()
	mux.Handle("/cache/", rediscache.NewHandler(cache))

	for _, line := range []string{
		"POST /cache/a?value=hello&ttl=1h", "GET /cache/a", "DELETE /cache/a", "GET /cache/a", "POST /cache/a",
	} {
		method, target, _ := strings.Cut(line, " ")
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(method, target, nil))
		fmt.Println(w.Code, w.Body)
	}
	// Output:
	// 200 {"message":"Data cached successfully","key":"a","value":"hello"}
	// 200 {"key":"a","value":"hello"}
	// 200 {"message":"Data with key a deleted successfully"}
	// 404 {"message":"Key not found"}
	// 422 {"error":"value_required","detail":"A value is required."}
}

// A tenant sees its own keys alone, and nobody else sees any.
func ExampleWithKeyFunc() {
	cache, end := exampleCache()
	defer end()
	h := rediscache.NewHandler(cache, rediscache.WithKeyFunc(func(r *http.Request, key string) (string, error) {
		tenant, _, ok := r.BasicAuth() // checked by a middleware before this
		if !ok {
			return "", &rediscache.RefusedError{Status: http.StatusUnauthorized, Challenge: "Basic"}
		}
		return tenant + ":" + key, nil
	}))
	for _, tenant := range []string{"acme", "globex", ""} {
		r := httptest.NewRequest(http.MethodPost, "/cache/a?value="+tenant, nil)
		if tenant != "" {
			r.SetBasicAuth(tenant, "secret")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		fmt.Println(w.Code, w.Body)
	}
	hits, err := cache.GetMany(context.Background(), "acme:a", "globex:a")
	fmt.Printf("%s %v\n", hits, err)
	// Output:
	// 200 {"message":"Data cached successfully","key":"a","value":"acme"}
	// 200 {"message":"Data cached successfully","key":"a","value":"globex"}
	// 401 {"error":"unauthorized","detail":"The request needs credentials."}
	// map[acme:a:acme globex:a:globex] <nil>
}
