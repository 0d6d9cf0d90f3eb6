package rediscacheprom_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http/httptest"
	"strings"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/rediscacheprom"
)

// One Collector has the metrics of every pool and cache of a process.
func Example() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	metrics := rediscacheprom.New()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	metrics.AddPool("main", pool)
	cache, err := rediscache.New(pool, rediscache.WithObserver(metrics.Observer("users")))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	metrics.AddCache("users", cache)

	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics)
	handler := promhttp.HandlerFor(registry, promhttp.HandlerOpts{}) // mux.Handle("GET /metrics", handler)

	_, _ = cache.Get(context.Background(), "ulm") // a miss
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "rediscache_misses_total") ||
			strings.HasPrefix(lines.Text(), "rediscache_pool_max_active_connections") {
			fmt.Println(lines.Text())
		}
	}
	// Output:
	// rediscache_misses_total{cache="users"} 1
	// rediscache_pool_max_active_connections{pool="main"} 50
}
