package apidocs_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/alicebob/miniredis/v2"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/apidocs"
)

func ExampleNew() {
	mux := http.NewServeMux()
	docs := apidocs.New(rediscache.DefaultBasePath)
	mux.Handle("/docs/", docs) // the page
	mux.Handle("/openapi.json", docs)
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	fmt.Println(w.Code, w.Header().Get("Content-Type"))
	// Output: 200 application/json
}

func ExampleNewStatus() {
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
	status := apidocs.NewStatus(pool)
	cache, err := rediscache.New(pool, rediscache.WithObserver(status))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	mux := http.NewServeMux()
	mux.Handle("/status/", status)
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/status/", nil))
	fmt.Println(w.Code, w.Header().Get("Content-Type"))
	// Output: 200 text/html; charset=utf-8
}
