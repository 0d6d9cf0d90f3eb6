package rediscache_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/rediscache/rediscache"
)

// audited is a Store that prints what is deleted.
type audited struct{ rediscache.Store }

func (a audited) Delete(ctx context.Context, keys ...string) (int, error) {
	n, err := a.Store.Delete(ctx, keys...)
	fmt.Println("deleted", n, "of", len(keys), "keys")
	return n, err
}

// The handler serves any Store. This one wraps a cache.
func ExampleStore() {
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
	_ = cache.Set(context.Background(), "a", []byte("hello"), time.Minute)
	h := rediscache.NewHandler(audited{cache})
	for _, method := range []string{http.MethodGet, http.MethodDelete} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, "/cache/a", nil))
		fmt.Println(w.Code, w.Body)
	}
	// Output:
	// 200 {"key":"a","value":"hello"}
	// deleted 1 of 1 keys
	// 200 {"message":"Data with key a deleted successfully"}
}

// Each tenant sees its own keys only, and a request without a tenant is refused.
func ExampleWithKeyFunc() {
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
	h := rediscache.NewHandler(cache, rediscache.WithKeyFunc(func(r *http.Request, key string) (string, error) {
		tenant, _, ok := r.BasicAuth() // a middleware has checked the password
		if !ok {
			return "", &rediscache.RefusedError{Status: http.StatusUnauthorized, Challenge: "Basic"}
		}
		return tenant + ":" + key, nil
	}))
	for _, tenant := range []string{"acme", "globex", ""} {
		r := httptest.NewRequest(http.MethodPost, "/cache/a?value=hello", nil)
		if tenant != "" {
			r.SetBasicAuth(tenant, "secret")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		fmt.Println(w.Code)
	}
	fmt.Println(server.Keys())
	// Output:
	// 200
	// 200
	// 401
	// [acme:a globex:a]
}

// A KeyFunc refuses a request with 401, or with 403. The reason is logged and not sent.
func ExampleRefusedError() {
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
	h := rediscache.NewHandler(cache, rediscache.WithKeyFunc(func(r *http.Request, key string) (string, error) {
		if key == "secret" {
			return "", errors.New("nobody may read this") // 403
		}
		return "", &rediscache.RefusedError{Status: http.StatusUnauthorized, Challenge: `Bearer realm="cache"`}
	}))
	for _, target := range []string{"/cache/secret", "/cache/a"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
		fmt.Printf("%d %q\n", w.Code, w.Header().Get("WWW-Authenticate"))
	}
	// Output:
	// 403 ""
	// 401 "Bearer realm=\"cache\""
}

// A server that has another /cache.
func ExampleWithBasePath() {
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
	_ = cache.Set(context.Background(), "a", []byte("hello"), time.Minute)
	mux := http.NewServeMux()
	mux.Handle("/api/v1/values/", rediscache.NewHandler(cache, rediscache.WithBasePath("/api/v1/values")))
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/api/v1/values/a", nil))
	fmt.Println(w.Code, w.Body)
	// Output:
	// 200 {"key":"a","value":"hello"}
}

func ExampleWithMaxValueBytes() {
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
	h := rediscache.NewHandler(cache, rediscache.WithMaxValueBytes(4))
	for _, value := range []string{"tiny", "large"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/cache/a?value="+value, nil))
		fmt.Println(w.Code)
	}
	// Output:
	// 200
	// 413
}

func ExampleWithMaxTTL() {
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
	h := rediscache.NewHandler(cache, rediscache.WithMaxTTL(time.Hour))
	for _, ttl := range []string{"1h", "2h"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/cache/a?value=v&ttl="+ttl, nil))
		fmt.Println(w.Code)
	}
	// Output:
	// 200
	// 422
}

// The cause of a 503 is in the log, and not in the response.
func ExampleWithLogger() {
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
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == "cause" {
				return slog.Attr{} // differ from run to run
			}
			return a
		},
	}))
	h := rediscache.NewHandler(cache, rediscache.WithLogger(logger))
	server.Close()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/cache/a", nil))
	fmt.Println(w.Code)
	// Output:
	// level=WARN msg="rediscache: request failed" method=GET code=cache_unavailable
	// 503
}
