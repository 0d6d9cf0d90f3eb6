package rediscache_test

import (
	"context"
	"errors"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// FuzzURL gives NewPool a URL of arbitrary parts, with a password escaped and
// not. There is a pool or an error that shows no end of the password, and a pool
// dials where the URL says and nowhere else.
func FuzzURL(f *testing.F) {
	for _, rest := range []string{
		"localhost:6379/0", "", "[::1]:6379", "[fe80::1%25eth0]/1", "host:0", "host:", "a@b:1", "host/1?x=y", "host#f",
		"/run/redis.sock?db=1", "host%41", "h%C3%BC/%31", "redis:/1", "redis://other/5", "rediss:", "unix:/a%20b",
	} {
		f.Add("redis", "alice", "s3cret", rest)
		f.Add("unix", "", "a/b@c?d#e%zz:", rest)
	}
	f.Add("valkeys", "a:b", "12/", "host")
	f.Add("redis", "", "", "]0")
	f.Add("", "", "", "\x7f")
	f.Fuzz(func(t *testing.T, scheme, user, password, rest string) {
		const head, tail = "pa55", "w0rd"
		fuzzURL(t, rest)
		if strings.Contains(scheme+user+rest, head) || strings.Contains(scheme+user+rest, tail) {
			return
		}
		for _, secret := range []string{head + password, password + tail} {
			for _, info := range []string{user + ":" + secret, secret, url.UserPassword(user, secret).String(), url.User(secret).String()} {
				fuzzURL(t, scheme+"://"+info+"@"+rest, head, tail)
			}
		}
	})
}

func fuzzURL(t *testing.T, raw string, secrets ...string) {
	t.Helper()
	dialled := make(chan string, 1)
	p, err := rediscache.NewPool(raw, sizes(0, 1, rediscache.WithDialOptions(redis.DialContextFunc(
		func(_ context.Context, network, address string) (net.Conn, error) {
			select {
			case dialled <- network + " " + address:
			default: // it has looked again
			}
			return nil, errors.New("not today")
		})))...)
	if err == nil {
		_, err = p.GetContext(t.Context())
		require.ErrorIs(t, err, rediscache.ErrUnavailable)
		require.Equal(t, target(t, raw), <-dialled, "%q", raw)
		require.NoError(t, p.Close())
	}
	for _, line := range strings.Split(err.Error(), "\n") {
		require.True(t, strings.HasPrefix(line, "rediscache: "), "%q: %q", raw, line)
	}
	for _, secret := range secrets {
		require.NotContains(t, err.Error(), secret, "%q", raw)
	}
}

// target reads where a URL that was accepted points: what is between the last
// "@" before the path and the path, or the path itself.
func target(t *testing.T, raw string) string {
	t.Helper()
	unescape := func(s string) string {
		s, err := url.PathUnescape(s)
		require.NoError(t, err)
		return s
	}
	raw, _, _ = strings.Cut(raw, "#")
	raw, _, _ = strings.Cut(raw, "?")
	scheme, rest, _ := strings.Cut(raw, ":")
	host, path := "", rest
	if after, ok := strings.CutPrefix(rest, "//"); ok {
		host, path, _ = strings.Cut(after, "/")
		path = "/" + path
	}
	if strings.EqualFold(scheme, "unix") {
		return "unix " + unescape(path)
	}
	host = host[strings.LastIndexByte(host, '@')+1:]
	port := ""
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		host, port = host[:i], host[i+1:]
	}
	if host = unescape(host); strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") {
		host = host[1 : len(host)-1]
	}
	if host == "" {
		host = "localhost"
	}
	if port == "" {
		port = "6379"
	}
	return "tcp " + net.JoinHostPort(host, port)
}

// FuzzOptions gives arbitrary numbers to every option and to a Policy. Each
// constructor refuses what its documentation says it does, and what it makes
// works.
func FuzzOptions(f *testing.F) {
	const second = int64(time.Second)
	f.Add(0, 1, 0, int64(0), int64(0), int64(0), second, int64(-1), int64(0), "", "", "", int64(1), 0.0, 0.0)
	f.Add(2, 3, 2, second, second, second, second, second, second, "name", "p:", "/cache", int64(1<<20), 0.5, 1.0)
	f.Add(1, 1, 1, int64(1), int64(1), int64(1), second, second, second, "n", "", "/a/b", int64(1), 0.999, 1e300)
	f.Add(-1, 0, -1, int64(-1), int64(-2), int64(-3), int64(0), int64(1), int64(-1), "a b", "\x00", "/", int64(0), -1.0, -1.0)
	f.Add(math.MinInt, math.MaxInt, math.MaxInt, int64(math.MaxInt64), int64(math.MaxInt64), int64(math.MaxInt64),
		int64(math.MaxInt64), int64(math.MaxInt64), int64(math.MaxInt64), "\xff", "\xff", "é", int64(math.MaxInt64), math.NaN(), math.Inf(1))
	f.Add(math.MaxInt, math.MaxInt, math.MinInt, int64(math.MinInt64), int64(math.MinInt64), int64(math.MinInt64),
		int64(math.MinInt64), int64(math.MinInt64), int64(math.MinInt64), "", "", "//", int64(math.MinInt64), math.Inf(-1), math.NaN())
	// One that is good for everything, and what is bad about one thing only.
	const milli, minute = int64(time.Millisecond), int64(time.Minute)
	good := []any{0, 1, 1, milli, minute, milli, second, minute, second, "", "", "", int64(1), 0.1, 0.0}
	add := f.Add // vet wants to count arguments
	add(good...)
	for i, bad := range []any{
		-1, 0, -1, int64(-1), int64(-1), int64(-1), int64(0), int64(1), int64(-1), "a b", "", "/", int64(0), -0.1, -0.1,
	} {
		worse := slices.Clone(good)
		worse[i] = bad
		add(worse...)
	}
	s := redistest.StartMini(f)
	shared := &redis.Pool{MaxIdle: 10, DialContext: func(ctx context.Context) (redis.Conn, error) {
		return redis.DialContext(ctx, "tcp", s.Addr)
	}}
	f.Cleanup(func() { shared.Close() })
	f.Fuzz(func(t *testing.T, minIdle, maxActive, conns int, a, b, c, d, ttl, timeout int64,
		name, prefix, base string, size int64, jitter, early float64,
	) {
		s.Mini.FlushAll() // Flush is for a test
		fuzzPool(t, s, minIdle, maxActive, time.Duration(a), time.Duration(b), time.Duration(c),
			time.Duration(d), time.Duration(ttl), time.Duration(timeout), name)
		fuzzCache(t, shared, conns, prefix, min(time.Duration(ttl), longestTTL(s)), time.Duration(timeout), min(time.Duration(a), longestTTL(s)))
		fuzzPolicy(t, shared, rediscache.Policy{
			TTL: time.Duration(ttl), Stale: time.Duration(a), Negative: time.Duration(b), Soft: time.Duration(c),
			Hard: time.Duration(d), Lease: time.Duration(timeout), Jitter: jitter, Early: early,
		})
		fuzzHandler(t, base, size, time.Duration(a))
	})
}

func fuzzPool(t *testing.T, s *redistest.Server, minIdle, maxActive int, idle, life, health, dial, read, write time.Duration, name string) {
	t.Helper()
	p, err := rediscache.NewPool(s.URL(), rediscache.WithMinIdle(minIdle), rediscache.WithMaxActive(maxActive),
		rediscache.WithIdleTimeout(idle), rediscache.WithMaxConnLifetime(life), rediscache.WithHealthCheckAfter(health),
		rediscache.WithDialTimeout(dial), rediscache.WithReadTimeout(read), rediscache.WithWriteTimeout(write),
		rediscache.WithClientName(name), rediscache.WithDialFunc(func(ctx context.Context) (redis.Conn, error) {
			if minIdle > 3 {
				return nil, errors.New("too many")
			}
			return redis.DialContext(ctx, "tcp", s.Addr)
		}))
	valid := minIdle >= 0 && maxActive >= 1 && minIdle <= maxActive && idle >= 0 && life >= 0 && health >= 0 &&
		dial > 0 && read > 0 && write > 0 && !strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
	require.Equal(t, valid, err == nil, "%v", err)
	if err != nil {
		requirePrefixed(t, err)
		return
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for range 3 {
		conn, err := p.GetContext(ctx)
		if err == nil {
			_, err = conn.Do("PING")
			conn.Close()
		}
		if minIdle <= 3 && min(dial, read, write) >= time.Second && ctx.Err() == nil {
			require.NoError(t, err)
		}
	}
}

func fuzzCache(t *testing.T, pool rediscache.Pool, conns int, prefix string, ttl, timeout, own time.Duration) {
	t.Helper()
	c, err := rediscache.New(pool, rediscache.WithPipelineConns(conns), rediscache.WithPrefix(prefix),
		rediscache.WithTTL(ttl), rediscache.WithTimeout(timeout))
	lasts := func(d time.Duration) bool { return d == rediscache.NoExpiry || d >= time.Millisecond }
	require.Equal(t, lasts(ttl) && timeout >= 0 && conns >= 0, err == nil, "%v", err)
	if err != nil {
		requirePrefixed(t, err)
		return
	}
	defer c.Close()
	err = c.Set(t.Context(), prefix, []byte(prefix), own)
	if own != rediscache.DefaultTTL && !lasts(own) {
		require.ErrorContains(t, err, "ttl")
		return
	}
	if err != nil {
		require.ErrorIs(t, err, context.DeadlineExceeded)
		return
	}
	got, err := c.Get(t.Context(), prefix)
	if err != nil {
		require.ErrorIs(t, err, context.DeadlineExceeded)
		return
	}
	require.Equal(t, prefix, string(got))
}

func fuzzPolicy(t *testing.T, pool rediscache.Pool, p rediscache.Policy) {
	t.Helper()
	c := newCache(t, pool)
	v, err := rediscache.Of(c, rediscache.JSON[string](), p)
	for _, d := range []time.Duration{p.Stale, p.Negative, p.Soft, p.Hard, p.Lease} {
		if d != 0 && d < time.Millisecond {
			require.Error(t, err)
		}
	}
	if math.IsNaN(p.Jitter+p.Early) || math.IsInf(p.Jitter+p.Early, 0) || p.Jitter < 0 || p.Jitter >= 1 || p.Early < 0 {
		require.Error(t, err)
	}
	if err != nil {
		requirePrefixed(t, err)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for _, key := range []string{"a value", "a value", "none", "none"} {
		got, err := v.GetOrLoad(ctx, key, func(context.Context) (string, error) {
			if key == "none" {
				return "", rediscache.ErrNotFound
			}
			return key, nil
		})
		switch {
		case errors.Is(err, context.DeadlineExceeded):
		case key == "none":
			require.ErrorIs(t, err, rediscache.ErrNotFound)
		default:
			require.NoError(t, err)
			require.Equal(t, key, got)
		}
	}
}

func fuzzHandler(t *testing.T, base string, size int64, maxTTL time.Duration) {
	t.Helper()
	var h http.Handler
	func() {
		defer func() {
			if r := recover(); r != nil {
				err, ok := r.(error)
				require.True(t, ok, "%v", r)
				requirePrefixed(t, err)
			}
		}()
		h = rediscache.NewHandler(newFakeStore(), rediscache.WithBasePath(base),
			rediscache.WithMaxValueBytes(size), rediscache.WithMaxTTL(maxTTL))
	}()
	if h == nil {
		return
	}
	require.Positive(t, size)
	require.GreaterOrEqual(t, maxTTL, time.Millisecond)
	for _, method := range []string{"POST", "GET", "DELETE"} {
		r := httptest.NewRequest(method, base+"/k?value=v", nil)
		require.Equal(t, 200, redistest.Serve(h, r).Code, "%s %q", method, base)
	}
}

func requirePrefixed(t *testing.T, err error) {
	t.Helper()
	for _, line := range strings.Split(err.Error(), "\n") {
		require.True(t, strings.HasPrefix(line, "rediscache: "), "%q", line)
	}
}
