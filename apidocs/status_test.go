package apidocs_test

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/apidocs"
	"github.com/rediscache/rediscache/internal/redistest"
)

func newPool(t *testing.T, opts ...rediscache.PoolOption) *rediscache.WarmPool {
	return poolOf(t, redistest.StartMini(t), opts...)
}

func poolOf(t *testing.T, s *redistest.Server, opts ...rediscache.PoolOption) *rediscache.WarmPool {
	t.Helper()
	pool, err := rediscache.NewPool(s.URL(), opts...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = pool.Close() })
	return pool
}

type sample struct {
	Time, Since, P50, P99       int64
	Open, Idle, InUse           int
	Hits, Misses, Errors, Loads int64
	DialFailures                int64
	Redis                       string
}

func samples(t *testing.T, h http.Handler, query string) []sample {
	t.Helper()
	w := get(h, "/status/data"+query)
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	var data struct {
		MinIdle, MaxActive int
		Samples            []sample
	}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &data))
	require.Equal(t, 3, data.MinIdle)
	require.Equal(t, 7, data.MaxActive)
	return data.Samples
}

// last takes samples until one satisfies cond.
func last(t *testing.T, h http.Handler, cond func(sample) bool) (found sample) {
	t.Helper()
	redistest.Eventually(t, func() bool {
		all := samples(t, h, "")
		found = all[len(all)-1]
		return cond(found)
	}, "no such sample")
	return found
}

func TestTheStatusCountsEventsAndFollowsRedis(t *testing.T) {
	redistest.NoLeaks(t)
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		pool := poolOf(t, s, rediscache.WithMinIdle(3), rediscache.WithMaxActive(7))
		require.NoError(t, pool.Ready(t.Context()))
		status := apidocs.NewStatus(pool)
		cache, err := rediscache.New(pool, rediscache.WithObserver(status))
		require.NoError(t, err)
		defer cache.Close()
		require.NoError(t, cache.Set(t.Context(), "secret-key", []byte("secret-value"), time.Hour))
		for range 3 {
			_, err = cache.Get(t.Context(), "secret-key")
			require.NoError(t, err)
		}
		_, err = cache.Get(t.Context(), "other")
		require.ErrorIs(t, err, rediscache.ErrNotFound)

		first := last(t, status, func(s sample) bool { return s.Redis == "up" })
		require.EqualValues(t, 3, first.Hits)
		require.EqualValues(t, 1, first.Misses)
		require.Positive(t, first.P50)
		require.GreaterOrEqual(t, first.P99, first.P50)
		require.GreaterOrEqual(t, first.Open, 3)

		s.Kill()
		down := last(t, status, func(s sample) bool { return s.Redis == "down" })
		require.Greater(t, down.Since, first.Since)
		s.Restart()
		up := last(t, status, func(s sample) bool { return s.Redis == "up" })
		require.Greater(t, up.Since, down.Since)
		require.Positive(t, up.DialFailures)

		all := samples(t, status, "")
		for after, first := range map[int64]int64{-1: all[0].Time, all[0].Time: all[1].Time, all[len(all)-1].Time + 100_000: all[0].Time} {
			require.Equal(t, first, samples(t, status, "?after="+strconv.FormatInt(after, 10))[0].Time)
		}
		for i := 1; i < len(all); i++ {
			require.Greater(t, all[i].Time, all[i-1].Time)
		}
		require.NotContains(t, get(status, "/status/data").Body.String(), "secret")
		require.NotContains(t, get(status, "/status/data").Body.String(), s.Addr)
	})
}

func TestManyViewersShareOneSampleASecond(t *testing.T) {
	pool := newPool(t, rediscache.WithMinIdle(3), rediscache.WithMaxActive(7))
	status := apidocs.NewStatus(pool)
	began := time.Now()
	for range 100 {
		samples(t, status, "")
	}
	taken := len(samples(t, status, ""))
	require.LessOrEqual(t, taken, 1+int(time.Since(began)/(900*time.Millisecond)))
}

func TestAPoolWithoutAFreeConnectionIsBusyAndNotDown(t *testing.T) {
	pool := newPool(t, rediscache.WithMinIdle(0), rediscache.WithMaxActive(1))
	conn, err := pool.GetContext(t.Context())
	require.NoError(t, err)
	defer conn.Close()
	require.True(t, strings.Contains(get(apidocs.NewStatus(pool), "/status/data").Body.String(), `"redis":"busy"`))
}
