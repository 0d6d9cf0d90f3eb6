package rediscache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

var (
	newPool   = systest.NewPool
	newCache  = systest.NewCache
	unhurried = systest.Unhurried
	pools     = systest.Pools
)

func TestCacheKeepsItsContract(t *testing.T) {
	for name, way := range pools {
		t.Run(name, func(t *testing.T) {
			redistest.Each(t, func(t *testing.T, s *redistest.Server) { keepsContract(t, s, way.Open, way.Opts) })
			if strings.Contains(name, "TLS") {
				t.Run("redis-server with TLS", func(t *testing.T) {
					certs := redistest.NewCerts(t)
					keepsContract(t, redistest.StartTLS(t, certs, certs.Server), way.Open, way.Opts)
				})
			}
		})
	}
}

func keepsContract(
	t *testing.T, s *redistest.Server, open func(*testing.T, *redistest.Server) rediscache.Pool, own []rediscache.Option,
) {
	redistest.NoLeaks(t)
	pool := open(t, s)
	for _, test := range contract {
		t.Run(test.name, func(t *testing.T) {
			s.Flush()
			test.run(t, s, func(opts ...rediscache.Option) *rediscache.Cache {
				return newCache(t, pool, append(opts, own...)...)
			})
		})
	}
}

type maker func(...rediscache.Option) *rediscache.Cache

var contract = []struct {
	name string
	run  func(t *testing.T, s *redistest.Server, open maker)
}{
	{"a value is what was set", testValues},
	{"a missing key is not found", testMissing},
	{"delete counts what existed", testDelete},
	{"a ttl is kept to the millisecond or refused", testTTL},
	{"the cache's own ttl is used", testOwnTTL},
	{"add stores only where there is nothing", testAdd},
	{"touch sets the ttl of what exists", testTouch},
	{"get many returns hits only", testGetMany},
	{"set many stores all", testSetMany},
	{"clear removes its own keys only", testClear},
	{"sub is a namespace", testSub},
	{"a key of another type is a wrong type", testWrongType},
	{"an ended context sends nothing", testEndedContext},
	{"many callers get their own", testManyCallers},
	{"a closed cache refuses", testClosed},
	{"counts are kept", testStats},
}

func testValues(t *testing.T, _ *redistest.Server, open maker) {
	c, ctx := open(), t.Context()
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	for name, value := range map[string][]byte{
		"empty": {}, "nil": nil, "crlf": []byte("\r\n$5\r\nhello\r\n"), "every byte": every,
		"just small": bytes.Repeat(every, 255), "large": bytes.Repeat(every, 1<<10),
		"huge": bytes.Repeat(every, 20<<10),
	} {
		key := "k\x00\r\n*" + name
		require.NoError(t, c.Set(ctx, key, value, rediscache.NoExpiry), name)
		got, err := c.Get(ctx, key)
		require.NoError(t, err, name)
		require.True(t, bytes.Equal(value, got), name)
		require.NotNil(t, got, "%s: an empty value is not nil", name)
	}
	require.NoError(t, c.Set(ctx, "", []byte("no key"), 0))
	got, err := c.Get(ctx, "")
	require.NoError(t, err)
	require.Equal(t, "no key", string(got))
}

func testMissing(t *testing.T, _ *redistest.Server, open maker) {
	c, ctx := open(), t.Context()
	_, err := c.Get(ctx, "none")
	require.ErrorIs(t, err, rediscache.ErrNotFound)
	require.NotErrorIs(t, err, rediscache.ErrUnavailable)
	_, err = c.TTL(ctx, "none")
	require.ErrorIs(t, err, rediscache.ErrNotFound)
}

func testDelete(t *testing.T, _ *redistest.Server, open maker) {
	c, ctx := open(), t.Context()
	require.NoError(t, c.SetMany(ctx, map[string][]byte{"a": nil, "b": nil}, 0))
	n, err := c.Delete(ctx, "a", "b", "c")
	require.NoError(t, err)
	require.Equal(t, 2, n)
	n, err = c.Delete(ctx)
	require.NoError(t, err)
	require.Zero(t, n)
}

func testTTL(t *testing.T, s *redistest.Server, open maker) {
	c, ctx := open(), t.Context()
	require.NoError(t, c.Set(ctx, "k", nil, time.Minute+time.Nanosecond))
	left, err := c.TTL(ctx, "k")
	require.NoError(t, err)
	require.Greater(t, left, 50*time.Second)
	require.LessOrEqual(t, left, time.Minute)
	for _, ttl := range []time.Duration{time.Nanosecond, time.Millisecond - 1, -2, -time.Hour, math.MinInt64} {
		require.Error(t, c.Set(ctx, "k", []byte("other"), ttl), ttl)
		require.Error(t, c.SetMany(ctx, map[string][]byte{"k": []byte("other")}, ttl), ttl)
	}
	got, err := c.Get(ctx, "k")
	require.NoError(t, err)
	require.Empty(t, got, "a refused ttl stores nothing")
	s.Advance(time.Minute)
	_, err = c.Get(ctx, "k")
	require.ErrorIs(t, err, rediscache.ErrNotFound)

	longest := longestTTL(s)
	require.NoError(t, c.Set(ctx, "k", nil, longest))
	left, err = c.TTL(ctx, "k")
	require.NoError(t, err)
	require.Greater(t, left, longest-time.Hour)

	if s.Mini == nil { // which takes no more than a Duration does
		s.Do("SET", "k", "v", "PX", int64(1<<60))
		left, err = c.TTL(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, time.Duration(math.MaxInt64), left)
		v := newView(t, c, rediscache.String(), rediscache.Policy{TTL: time.Minute, Stale: time.Minute})
		value, err := v.GetOrLoad(ctx, "k", never[string](t))
		require.NoError(t, err)
		require.Equal(t, "v", value)
	}
}

// longestTTL returns the longest TTL that the server accepts: on a 32-bit machine miniredis reads
// milliseconds as an int.
func longestTTL(s *redistest.Server) time.Duration {
	if s.Mini != nil && strconv.IntSize == 32 {
		return math.MaxInt32 * time.Millisecond
	}
	return math.MaxInt64
}

func testOwnTTL(t *testing.T, _ *redistest.Server, open maker) {
	ctx := t.Context()
	for _, test := range []struct {
		opts []rediscache.Option
		ttl  time.Duration
		low  time.Duration
		high time.Duration
	}{
		{[]rediscache.Option{rediscache.WithTTL(time.Hour)}, rediscache.DefaultTTL, 59 * time.Minute, time.Hour},
		{[]rediscache.Option{rediscache.WithTTL(time.Hour)}, rediscache.NoExpiry, rediscache.NoExpiry, rediscache.NoExpiry},
		{[]rediscache.Option{rediscache.WithTTL(time.Hour)}, time.Minute, 59 * time.Second, time.Minute},
	} {
		c := open(test.opts...)
		require.NoError(t, c.Set(ctx, "k", nil, test.ttl))
		left, err := c.TTL(ctx, "k")
		require.NoError(t, err)
		require.GreaterOrEqual(t, left, test.low)
		require.LessOrEqual(t, left, test.high)
	}
}

func testGetMany(t *testing.T, s *redistest.Server, open maker) {
	c, ctx := open(rediscache.WithPrefix("p:")), t.Context()
	require.NoError(t, c.Set(ctx, "a", []byte("1"), 0))
	require.NoError(t, c.Set(ctx, "empty", nil, 0))
	s.Do("LPUSH", "p:list", "x")
	got, err := c.GetMany(ctx, "a", "none", "empty", "list", "a")
	require.NoError(t, err)
	require.Equal(t, map[string][]byte{"a": []byte("1"), "empty": {}}, got)
	got, err = c.GetMany(ctx)
	require.NoError(t, err)
	require.Empty(t, got)
}

func testSetMany(t *testing.T, _ *redistest.Server, open maker) {
	c, ctx := open(), t.Context()
	items := make(map[string][]byte)
	var keys []string
	for i := range 1500 {
		key := fmt.Sprint("k", i)
		keys = append(keys, key)
		items[key] = []byte(key)
	}
	items["k0"] = bytes.Repeat([]byte("x"), 100<<10)
	require.NoError(t, c.SetMany(ctx, items, time.Hour))
	got, err := c.GetMany(ctx, keys...)
	require.NoError(t, err)
	require.Equal(t, items, got)
	left, err := c.TTL(ctx, "k1499")
	require.NoError(t, err)
	require.Greater(t, left, 59*time.Minute)
	require.NoError(t, c.SetMany(ctx, nil, 0))
	require.Error(t, c.SetMany(ctx, nil, -5), "a bad ttl is one without items too")
}

func testClear(t *testing.T, s *redistest.Server, open maker) {
	ctx := t.Context()
	_, err := open().Clear(ctx)
	require.Error(t, err, "it refuses to clear everything")

	for _, prefix := range []string{"p:", `*?[a]\`, "[^b-c]", "\x00\r\n"} {
		c, rest := open(rediscache.WithPrefix(prefix)), open()
		for i := range 1200 {
			require.NoError(t, c.Set(ctx, fmt.Sprint(i), nil, 0))
		}
		require.NoError(t, rest.Set(ctx, "xyz"+prefix, nil, 0))
		require.NoError(t, rest.Set(ctx, "p", nil, 0))
		n, err := c.Clear(ctx)
		require.NoError(t, err)
		require.Equal(t, 1200, n, "prefix %q", prefix)
		require.EqualValues(t, 2, s.Do("DBSIZE"), "prefix %q", prefix)
		s.Flush()
	}
}

func testSub(t *testing.T, s *redistest.Server, open maker) {
	c, ctx := open(rediscache.WithPrefix("a:")), t.Context()
	v1, v2 := c.Sub("v1:"), c.Sub("v2:")
	require.NoError(t, v1.Set(ctx, "k", []byte("old"), 0))
	_, err := v2.Get(ctx, "k")
	require.ErrorIs(t, err, rediscache.ErrNotFound)
	got, err := c.Get(ctx, "v1:k")
	require.NoError(t, err)
	require.Equal(t, "old", string(got))
	require.NoError(t, v2.Set(ctx, "k", nil, 0))
	n, err := v1.Clear(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.EqualValues(t, 1, s.Do("EXISTS", "a:v2:k"))
}

func testWrongType(t *testing.T, s *redistest.Server, open maker) {
	c, ctx := open(), t.Context()
	s.Do("LPUSH", "list", "x")
	_, err := c.Get(ctx, "list")
	require.ErrorIs(t, err, rediscache.ErrWrongType)
	for _, other := range []error{
		rediscache.ErrNotFound, rediscache.ErrUnavailable, rediscache.ErrPoolExhausted,
		rediscache.ErrOutcomeUnknown, context.Canceled, context.DeadlineExceeded,
	} {
		require.NotErrorIs(t, err, other)
	}
	var answer redis.Error
	require.ErrorAs(t, err, &answer)
	require.NotContains(t, err.Error(), "list", "keys are users' data")
}

func testEndedContext(t *testing.T, s *redistest.Server, open maker) {
	c := open(rediscache.WithPrefix("p:"))
	require.NoError(t, c.Ping(t.Context()))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	for want, ctx := range map[error]context.Context{context.Canceled: ended, context.DeadlineExceeded: late} {
		require.ErrorIs(t, c.Set(ctx, "k", nil, 0), want)
		require.ErrorIs(t, c.SetMany(ctx, map[string][]byte{"k": nil}, 0), want)
		require.ErrorIs(t, c.SetMany(ctx, nil, 0), want)
		_, err := c.Get(ctx, "k")
		require.ErrorIs(t, err, want)
		require.NotErrorIs(t, err, rediscache.ErrUnavailable)
		_, err = c.GetMany(ctx, "k")
		require.ErrorIs(t, err, want)
		_, err = c.Delete(ctx, "k")
		require.ErrorIs(t, err, want)
		_, err = c.Clear(ctx)
		require.ErrorIs(t, err, want)
		require.ErrorIs(t, c.Ping(ctx), want)
	}
	require.EqualValues(t, 0, s.Do("DBSIZE"))
}

func testManyCallers(t *testing.T, _ *redistest.Server, open maker) {
	c, ctx := open(), t.Context()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			key := fmt.Sprint("key", i)
			for n := range 20 {
				value := strings.Repeat(fmt.Sprint(key, n, "."), 1+n*i)
				if err := c.Set(ctx, key, []byte(value), 0); err != nil {
					t.Errorf("set: %v", err)
					return
				}
				if got, err := c.Get(ctx, key); err != nil || string(got) != value {
					t.Errorf("get: %d bytes, %v", len(got), err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func testClosed(t *testing.T, _ *redistest.Server, open maker) {
	c, ctx := open(), t.Context()
	require.NoError(t, c.Set(ctx, "k", nil, 0))
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
	_, err := c.Get(ctx, "k")
	require.ErrorIs(t, err, rediscache.ErrClosed)
	require.NotErrorIs(t, err, rediscache.ErrUnavailable)
	require.ErrorIs(t, c.Sub("x").Set(ctx, "k", nil, 0), rediscache.ErrClosed)
	require.ErrorIs(t, c.SetMany(ctx, map[string][]byte{"k": nil}, 0), rediscache.ErrClosed)
}

func testStats(t *testing.T, s *redistest.Server, open maker) {
	c, ctx := open(), t.Context()
	require.NoError(t, c.Set(ctx, "a", nil, 0))
	require.NoError(t, c.Sub("s").SetMany(ctx, map[string][]byte{"b": nil, "c": nil}, 0))
	_, _ = c.Get(ctx, "a")
	_, _ = c.Get(ctx, "none")
	_, _ = c.GetMany(ctx, "a", "none", "sb", "a")
	_, _ = c.Delete(ctx, "a", "sb", "none")
	s.Do("LPUSH", "list", "x")
	_, _ = c.Get(ctx, "list")
	require.Equal(t, rediscache.Stats{Hits: 4, Misses: 2, Sets: 3, Deletes: 2, Errors: 1}, c.Stats())
}

func TestFiveErrorsAreFive(t *testing.T) {
	s := redistest.Start(t)
	pool := newPool(t, s.URL(), rediscache.WithMinIdle(0), rediscache.WithMaxActive(1))
	c := newCache(t, pool)
	s.Do("LPUSH", "list", "x")
	get := func(ctx context.Context, key string) error {
		_, err := c.Get(ctx, key)
		return err
	}
	sentinels := []error{
		rediscache.ErrNotFound, rediscache.ErrWrongType, context.Canceled,
		rediscache.ErrPoolExhausted, rediscache.ErrUnavailable,
	}
	requireOnly := func(err error, want ...error) {
		t.Helper()
		for _, s := range sentinels {
			var is bool
			for _, w := range want {
				is = is || errors.Is(w, s)
			}
			require.Equal(t, is, errors.Is(err, s), "%v: %v", s, err)
		}
	}
	requireOnly(get(t.Context(), "none"), rediscache.ErrNotFound)
	requireOnly(get(t.Context(), "list"), rediscache.ErrWrongType)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	requireOnly(get(ended, "k"), context.Canceled)

	require.NoError(t, c.Close())
	c = newCache(t, pool, rediscache.WithTimeout(200*time.Millisecond))
	held, err := pool.GetContext(t.Context())
	require.NoError(t, err)
	err = get(t.Context(), "k")
	requireOnly(err, rediscache.ErrPoolExhausted)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, held.Close())

	s.Kill()
	redistest.Eventually(t, func() bool {
		return errors.Is(get(t.Context(), "k"), rediscache.ErrUnavailable)
	}, "a dead server is unavailable")
	requireOnly(get(t.Context(), "k"), rediscache.ErrUnavailable)
}

func TestNewNamesEveryFault(t *testing.T) {
	pool := systest.OwnPool{Addr: "127.0.0.1:1"}
	_, err := rediscache.New(pool,
		rediscache.WithTTL(-5), rediscache.WithTimeout(-1), rediscache.WithPipelineConns(-1))
	for _, name := range []string{"WithTTL", "WithTimeout", "WithPipelineConns"} {
		require.ErrorContains(t, err, name)
	}
	for _, pool := range []rediscache.Pool{nil, (*rediscache.WarmPool)(nil), (*redis.Pool)(nil)} {
		_, err = rediscache.New(pool)
		require.ErrorContains(t, err, "pool is nil")
	}
	_, err = rediscache.New(pool, rediscache.WithTTL(0))
	require.ErrorContains(t, err, "WithTTL")
}
