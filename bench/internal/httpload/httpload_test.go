package httpload_test

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/internal/httpload"
)

func run(t *testing.T, handler http.HandlerFunc) httpload.Sample {
	t.Helper()
	s := httptest.NewServer(handler)
	defer s.Close()
	sample, err := httpload.Run(t.Context(), httpload.Spec{
		Addr: s.Listener.Addr().String(), Path: "/cache/k", Body: []byte("the body"), Conns: 4,
		Warmup: 100 * time.Millisecond, Slice: 50 * time.Millisecond,
	})
	require.NoError(t, err)
	return sample
}

func TestLoadAsksOverAFewKeepAliveConnections(t *testing.T) {
	var requests atomic.Int64
	var conns sync.Map
	s := run(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		conns.Store(r.RemoteAddr, true)
		if r.Method == http.MethodGet && r.URL.Path == "/cache/k" {
			_, _ = w.Write([]byte("the body"))
		}
	})
	require.Zero(t, s.Errors, s.FirstFail)
	require.Positive(t, s.Requests)
	require.Less(t, s.Requests, requests.Load(), "the warm-up is not counted")
	require.Positive(t, s.PerSec)
	require.LessOrEqual(t, s.P50, s.P99)
	n := 0
	conns.Range(func(any, any) bool { n++; return true })
	require.Equal(t, 4, n)
}

func TestAnotherAnswerIsAnError(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"body":   func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("the wrong")) },
		"status": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		"length": func(w http.ResponseWriter, _ *http.Request) { _ = http.NewResponseController(w).Flush() },
	} {
		s := run(t, answer)
		require.EqualValues(t, 4, s.Errors, name)
		require.NotEmpty(t, s.FirstFail, name)
		require.Zero(t, s.Requests, name)
	}
}
