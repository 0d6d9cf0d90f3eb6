package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

func TestAServiceThatOperatorsCanWatch(t *testing.T) {
	redis := miniredis.RunT(t)
	spans := tracetest.NewSpanRecorder()
	s, err := open("redis://"+redis.Addr(), sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)))
	require.NoError(t, err)
	defer s.pool.Close()
	defer s.cache.Close()
	ctx, stop := context.WithCancel(t.Context())
	server := httptest.NewServer(s.newMux(ctx))
	defer server.Close()
	get := func(path string) (int, string) {
		resp, err := http.Get(server.URL + path)
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		return resp.StatusCode, string(body)
	}
	for range 2 {
		status, body := get("/users/ulm")
		require.Equal(t, http.StatusOK, status)
		require.Equal(t, "the user ulm\n", body)
	}
	_, metrics := get("/metrics")
	require.Contains(t, metrics, `rediscache_hits_total{cache="main"} 1`)
	require.Contains(t, metrics, `rediscache_loads_total{cache="main"} 1`)
	require.Contains(t, metrics, `rediscache_operation_duration_seconds_count{cache="main",operation="get or load"} 2`)
	status, page := get("/status/")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, page, "<html")
	parents := make(map[string]string)
	names := make(map[string]string)
	for _, span := range spans.Ended() {
		names[span.SpanContext().SpanID().String()] = span.Name()
	}
	for _, span := range spans.Ended() {
		if name := span.Name(); parents[name] == "" {
			parents[name] = names[span.Parent().SpanID().String()]
		}
	}
	require.Equal(t, "load main", parents["SELECT user"])
	require.Equal(t, "get or load main", parents["load main"])
	require.Equal(t, "GET /users/ulm", parents["get or load main"])

	redis.Close() // users are still loaded, so the service is ready
	status, _ = get("/users/berlin")
	require.Equal(t, http.StatusOK, status)
	for path, want := range map[string]int{"/livez": http.StatusOK, "/readyz": http.StatusOK, "/cache/a": http.StatusServiceUnavailable} {
		status, _ := get(path)
		require.Equal(t, want, status, path)
	}
	stop()
	status, _ = get("/readyz")
	require.Equal(t, http.StatusServiceUnavailable, status)
}
