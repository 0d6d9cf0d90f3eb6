package httpload_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/internal/httpload"
)

// dial opens connections to a server of its own, until the test ends.
func dial(t *testing.T, n int, handler http.HandlerFunc) []*httpload.Conn {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	conns, err := httpload.Dial(t.Context(), s.Listener.Addr().String(), "/cache/k", []byte("the body"), n, 20*time.Second)
	require.NoError(t, err)
	t.Cleanup(func() {
		for _, c := range conns {
			require.NoError(t, c.Close())
		}
	})
	return conns
}

func TestEachConnectionIsKeptAlive(t *testing.T) {
	requests := map[string]int{}
	conns := dial(t, 2, func(w http.ResponseWriter, r *http.Request) {
		requests[r.RemoteAddr]++ // one request after another
		if r.Method == http.MethodGet && r.URL.Path == "/cache/k" {
			_, _ = w.Write([]byte("the body"))
		}
	})
	for _, c := range conns {
		for range 3 {
			require.NoError(t, c.Do())
		}
	}
	require.Len(t, requests, 2)
	for _, n := range requests {
		require.Equal(t, 3, n)
	}
}

func TestAnotherAnswerIsAnError(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"body":   func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("the wrong")) },
		"status": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) },
		"length": func(w http.ResponseWriter, _ *http.Request) { _ = http.NewResponseController(w).Flush() },
	} {
		require.Error(t, dial(t, 1, answer)[0].Do(), name)
	}
}
