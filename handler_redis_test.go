package rediscache_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

func TestTheHandlerKeepsItsContractOnRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		testHandler(t, handlerCache(t, s.URL()), s.Do)
	})
}

// handlerCache returns a cache on a pool that gives an operation half a second.
func handlerCache(t *testing.T, url string) *rediscache.Cache {
	t.Helper()
	pool, err := rediscache.NewPool(url, rediscache.WithMinIdle(0))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pool.Close()) })
	cache, err := rediscache.New(pool, rediscache.WithTimeout(500*time.Millisecond))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cache.Close()) })
	return cache
}

// requireFailures sends every method and requires that each named in want
// fails as it says and shows nothing of s.
func requireFailures(t *testing.T, s *redistest.Server, store rediscache.Store, want map[string]exchange) {
	t.Helper()
	for method, e := range want {
		var logged bytes.Buffer
		h := rediscache.NewHandler(store, rediscache.WithLogger(redistest.DebugLogger(&logged))) // which logs a line a second
		w := redistest.Serve(h, httptest.NewRequest(method, "/cache/a?value=v", nil))
		e.method = method
		header := e.check(t, w)
		require.Equal(t, e.status == 503, header.Get("Retry-After") == "1")
		for _, secret := range []string{s.Addr, s.Addr[strings.LastIndex(s.Addr, ":"):], "redis", "dial", "user"} {
			require.NotContains(t, w.Body.String(), secret)
		}
		require.Contains(t, logged.String(), `"cause":"rediscache: `)
	}
}

func everyMethod(status int, want string) map[string]exchange {
	e := exchange{status: status, want: want}
	return map[string]exchange{"GET": e, "HEAD": {status: status}, "POST": e, "DELETE": e}
}

func TestTheHandlerSays503WhenRedisIsDownAndServesAgainAfterwards(t *testing.T) {
	s := redistest.Start(t)
	cache := handlerCache(t, s.URL())
	h := rediscache.NewHandler(cache)
	served := func() bool {
		return redistest.Serve(h, httptest.NewRequest("POST", "/cache/a?value=v", nil)).Code == 200
	}
	require.True(t, served())
	s.Kill()
	redistest.Eventually(t, func() bool {
		return redistest.Serve(h, httptest.NewRequest("GET", "/cache/a", nil)).Code == 503
	}, "the connection is found dead")
	requireFailures(t, s, cache, everyMethod(503, "!cache_unavailable"))
	s.Restart()
	redistest.Eventually(t, served, "the restarted Redis serves")
}

func TestTheHandlerSays504WhenRedisIsSilent(t *testing.T) {
	s := redistest.Start(t)
	cache := handlerCache(t, s.URL())
	require.NoError(t, cache.Set(t.Context(), "a", nil, rediscache.DefaultTTL))
	s.Stop()
	defer s.Cont()
	want := everyMethod(504, "!cache_timeout")
	delete(want, http.MethodPost)
	delete(want, http.MethodDelete)
	requireFailures(t, s, cache, want)
	for _, method := range []string{"POST", "DELETE"} {
		w := redistest.Serve(rediscache.NewHandler(cache), httptest.NewRequest(method, "/cache/a?value=v", nil))
		require.Equal(t, 504, w.Code)
		require.Contains(t, []any{"cache_timeout", "outcome_unknown"}, decode(t, w.Body.Bytes())["error"])
	}
}

func TestTheHandlerSays503WhenEveryConnectionIsLent(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		pool, err := rediscache.NewPool(s.URL(), rediscache.WithMinIdle(0), rediscache.WithMaxActive(1))
		require.NoError(t, err)
		defer func() { require.NoError(t, pool.Close()) }()
		cache, err := rediscache.New(pool, rediscache.WithTimeout(200*time.Millisecond))
		require.NoError(t, err)
		defer func() { require.NoError(t, cache.Close()) }()
		held, err := pool.GetContext(t.Context())
		require.NoError(t, err)
		requireFailures(t, s, cache, everyMethod(503, "!cache_unavailable"))
		require.NoError(t, held.Close())
	})
}

func TestTheHandlerKnowsWhatRedisSaysOnAPoolOfItsUser(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		pool := &redis.Pool{Dial: func() (redis.Conn, error) { return redis.DialURL(s.URL()) }}
		cache, err := rediscache.New(pool)
		require.NoError(t, err)
		defer func() { require.NoError(t, cache.Close()) }()
		s.Do("RPUSH", "a", "x")
		requireFailures(t, s, cache, map[string]exchange{"GET": {status: 409, want: "!wrong_type"}})
	})
}
