package rediscachetest_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/rediscachetest"
)

func TestTheTestMovesTheClock(t *testing.T) {
	redistest.NoLeaks(t)
	c := rediscachetest.New(t, rediscache.WithPrefix("p:"))
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "a", []byte("1"), time.Minute))
	c.Advance(59 * time.Second)
	ttl, err := c.TTL(ctx, "a")
	require.NoError(t, err)
	require.Equal(t, time.Second, ttl)
	c.Advance(time.Second)
	_, err = c.Get(ctx, "a")
	require.ErrorIs(t, err, rediscache.ErrNotFound)
}

func TestDownAndUpKeepTheValues(t *testing.T) {
	c := rediscachetest.New(t)
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, "a", []byte("1"), time.Hour))
	c.Up() // it is up
	for range 2 {
		c.Down()
		c.Down()
		_, err := c.Get(ctx, "a")
		require.ErrorIs(t, err, rediscache.ErrUnavailable)
		c.Up()
		value, err := c.Get(ctx, "a")
		require.NoError(t, err)
		require.Equal(t, "1", string(value))
	}
	c.Down() // the clean-up works
}

func TestWaitIdleWaitsUntilABackgroundLoadIsStored(t *testing.T) {
	c := rediscachetest.New(t)
	ctx := t.Context()
	view, err := rediscache.Of(c.Cache, rediscache.JSON[int](), rediscache.Policy{TTL: time.Minute, Stale: time.Hour})
	require.NoError(t, err)
	var n atomic.Int64
	entered, goOn := make(chan struct{}), make(chan struct{})
	load := func(context.Context) (int, error) {
		if n.Add(1) > 1 {
			close(entered)
			<-goOn
		}
		return int(n.Load()), nil
	}
	value, err := view.GetOrLoad(ctx, "a", load)
	require.NoError(t, err)
	require.Equal(t, 1, value)
	c.WaitIdle()

	c.Advance(2 * time.Minute)
	value, err = view.GetOrLoad(ctx, "a", load)
	require.NoError(t, err)
	require.Equal(t, 1, value, "stale")
	<-entered
	idle := make(chan struct{})
	go func() { c.WaitIdle(); close(idle) }()
	select {
	case <-idle:
		t.Fatal("a load runs")
	case <-time.After(20 * time.Millisecond):
	}
	close(goOn)
	<-idle
	value, err = view.Get(ctx, "a")
	require.NoError(t, err)
	require.Equal(t, 2, value)
}

func TestStoreIsAStoreOfAHandler(t *testing.T) {
	var s rediscachetest.Store
	ctx := t.Context()
	h := rediscache.NewHandler(&s)
	do := func(method, path string) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, http.NoBody))
		return w.Code
	}
	require.Equal(t, 404, do("GET", "/cache/a"))
	require.Equal(t, 404, do("DELETE", "/cache/a"))
	require.Equal(t, 200, do("POST", "/cache/a?value=1&ttl=60"))
	require.Equal(t, 200, do("POST", "/cache/b?value=1"))
	require.Equal(t, 200, do("GET", "/cache/a"))
	s.Advance(time.Minute)
	require.Equal(t, 404, do("GET", "/cache/a"))
	require.Equal(t, 404, do("DELETE", "/cache/a"), "an expired value does not count")
	require.Equal(t, 200, do("GET", "/cache/b"), "without an end")

	s.Fail(rediscache.ErrUnavailable)
	for _, method := range []string{"GET", "DELETE"} {
		require.Equal(t, 503, do(method, "/cache/b"))
	}
	require.Equal(t, 503, do("POST", "/cache/b?value=2"))
	s.Fail(nil)
	value, err := s.Get(ctx, "b")
	require.NoError(t, err)
	require.Equal(t, "1", string(value), "a failed Set changes nothing")

	value[0] = 'x'
	given := []byte("2")
	require.NoError(t, s.Set(ctx, "c", given, rediscache.NoExpiry))
	given[0] = 'x'
	for key, want := range map[string]string{"b": "1", "c": "2"} {
		value, err := s.Get(ctx, key)
		require.NoError(t, err)
		require.Equal(t, want, string(value), "values are copies")
	}
	n, err := s.Delete(ctx, "b", "c", "d")
	require.NoError(t, err)
	require.Equal(t, 2, n)
}

func TestStoreRefusesWhatACacheRefuses(t *testing.T) {
	var s rediscachetest.Store
	c := rediscachetest.New(t)
	for _, ttl := range []time.Duration{-2, -time.Hour, 1, time.Millisecond - 1} {
		require.Error(t, c.Set(t.Context(), "a", nil, ttl))
		require.ErrorContains(t, s.Set(t.Context(), "a", nil, ttl), "neither a millisecond or more nor NoExpiry")
	}
	_, err := s.Get(t.Context(), "a")
	require.ErrorIs(t, err, rediscache.ErrNotFound)
	require.Panics(t, func() { s.Advance(-1) })
}

// recorder notes a failure instead of failing the test.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper() {}
func (r *recorder) Fatal(...any) {
	r.failed = true
	panic(r)
}
func (r *recorder) Fatalf(string, ...any) { r.Fatal() }

func TestABadOptionAndATimeThatGoesBackFailTheTest(t *testing.T) {
	for name, f := range map[string]func(tb testing.TB){
		"option": func(tb testing.TB) { tb.Helper(); rediscachetest.New(tb, rediscache.WithTTL(-5)) },
		"time":   func(tb testing.TB) { tb.Helper(); rediscachetest.New(tb).Advance(-1) },
	} {
		r := &recorder{TB: t}
		require.PanicsWithValue(t, r, func() { f(r) }, name)
		require.True(t, r.failed)
	}
}

func TestAProgramThatUsesTheCacheBuildsNoTestLibrary(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/rediscache/rediscache").Output()
	require.NoError(t, err)
	for _, name := range []string{"miniredis", "testify", "rediscachetest", "testing"} {
		for dep := range strings.Lines(string(out)) {
			require.NotContains(t, dep, name)
		}
	}
}
