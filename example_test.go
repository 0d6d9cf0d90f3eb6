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

// A miss and a Redis that is down are different errors. Here an outage costs the program
// its cache and nothing else.
func ExampleCache() {
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
	server.Close()
	fmt.Println(page(context.Background(), "home"))
	// Output:
	// page home
	// page home (cached)
	// page home (no cache)
}

// For a command that the cache has no method for, borrow a connection of the same pool.
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
	// Output:
	// 1 <nil>
}

// A process that can work without its cache is also ready when Redis is down. When it is
// asked to stop, it is no longer ready, and finishes the requests that it has.
func Example_health() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	stopping, stop := context.WithCancel(context.Background()) // signal.NotifyContext
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(http.ResponseWriter, *http.Request) {}) // asks nobody: a restart mends no Redis
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if stopping.Err() != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	web := httptest.NewServer(mux)
	get := func(path string) {
		resp, err := http.Get(web.URL + path)
		if err != nil {
			panic(err)
		}
		fmt.Println(path, resp.StatusCode, resp.Body.Close() == nil)
	}
	server.Close() // Redis is down
	get("/livez")
	get("/readyz")
	stop()
	get("/readyz")
	web.Close() // http.Server.Shutdown
	fmt.Println(cache.Close(), pool.Shutdown(context.Background()))
	// Output:
	// /livez 200 true
	// /readyz 200 true
	// /readyz 503 true
	// <nil> <nil>
}

func ExampleNewHandler() {
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
