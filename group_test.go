package rediscache_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// versionKey is the name in Redis of the version of a group.
func versionKey(prefix, group string) string { return prefix + group + ":group:rediscache-lease" }

func TestInvalidateEmptiesAGroupAndNothingElse(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for _, near := range []bool{false, true} {
			s.Flush()
			opts := []rediscache.Option{rediscache.WithPrefix("app:"), rediscache.WithTTL(time.Hour)}
			if near {
				opts = append(opts, rediscache.WithNearCache(1<<20))
			}
			c, ctx := newCache(t, newPool(t, s.URL()), opts...), t.Context()
			users, orders := c.Group("users"), c.Group("orders")
			for _, store := range []rediscache.Store{users, orders, c} {
				require.NoError(t, store.Set(ctx, "k", []byte("v"), 0))
				value, err := store.Get(ctx, "k")
				require.NoError(t, err)
				require.Equal(t, []byte("v"), value)
			}
			old, err := users.Cache(ctx)
			require.NoError(t, err)
			require.NoError(t, users.Invalidate(ctx))
			_, err = users.Get(ctx, "k")
			require.ErrorIs(t, err, rediscache.ErrNotFound)
			n, err := users.Delete(ctx, "k")
			require.NoError(t, err)
			require.Zero(t, n)
			for _, store := range []rediscache.Store{orders, c, old} {
				_, err := store.Get(ctx, "k")
				require.NoError(t, err)
			}
			require.NoError(t, old.Set(ctx, "k", []byte("late"), 0))
			_, err = users.Get(ctx, "k")
			require.ErrorIs(t, err, rediscache.ErrNotFound, "a Set that began before Invalidate")
			same, err := c.Group("users").Cache(ctx)
			require.NoError(t, err)
			require.NoError(t, users.Set(ctx, "k", []byte("new"), 0))
			value, err := same.Get(ctx, "k")
			require.NoError(t, err)
			require.Equal(t, []byte("new"), value, "groups with one name are one")
		}
	})
}

func TestALostVersionMakesAGroupEmpty(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		c, ctx := newCache(t, newPool(t, s.URL())), t.Context()
		g := c.Group("g")
		require.NoError(t, g.Set(ctx, "k", []byte("v"), time.Hour))
		require.EqualValues(t, 1, s.Do("DEL", versionKey("", "g"))) // evicted
		_, err := g.Get(ctx, "k")
		require.ErrorIs(t, err, rediscache.ErrNotFound)
	})
}

func TestNoKeyOfACallerIsTheVersionOfAGroup(t *testing.T) {
	s := redistest.StartMini(t)
	c, ctx := newCache(t, newPool(t, s.URL()), rediscache.WithPrefix("p:")), t.Context()
	g := c.Group("g")
	require.NoError(t, g.Set(ctx, "k", []byte("v"), time.Hour))
	version := s.Do("GET", versionKey("p:", "g"))
	require.NotEmpty(t, version)
	require.NoError(t, c.Set(ctx, "g:group:rediscache-lease", []byte("mine"), 0))
	require.Equal(t, version, s.Do("GET", versionKey("p:", "g")))
	_, err := g.Get(ctx, "k")
	require.NoError(t, err)
}

func TestTwoCachesAgreeOnTheFirstVersion(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		const n = 20
		caches := make([]*rediscache.Cache, n)
		var wg sync.WaitGroup
		for i := range n {
			c := newCache(t, newPool(t, s.URL(), rediscache.WithMinIdle(1)))
			wg.Go(func() {
				if err := c.Group("g").Set(t.Context(), fmt.Sprint(i), nil, time.Hour); err != nil {
					t.Error(err)
				}
			})
			caches[i] = c
		}
		wg.Wait()
		for i := range n {
			_, err := caches[(i+1)%n].Group("g").Get(t.Context(), fmt.Sprint(i))
			require.NoError(t, err)
		}
	})
}

func TestALoadThatBeganBeforeInvalidateIsNotFoundAfterIt(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for _, lease := range []time.Duration{0, time.Second} {
			c, ctx := newCache(t, newPool(t, s.URL())), t.Context()
			g := c.Group(fmt.Sprint("g", lease))
			v, err := rediscache.OfGroup(g, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour, Lease: lease})
			require.NoError(t, err)
			begun, goOn := make(chan struct{}), make(chan struct{})
			got := make(chan int, 1)
			go func() {
				value, err := v.View(ctx).GetOrLoad(ctx, "k", func(context.Context) (int, error) {
					close(begun)
					<-goOn
					return 1, nil
				})
				if err != nil {
					t.Error(err)
				}
				got <- value
			}()
			<-begun
			require.NoError(t, g.Invalidate(ctx))
			value, err := v.View(ctx).GetOrLoad(ctx, "k", returns(2)) // does not join the load
			require.NoError(t, err)
			require.Equal(t, 2, value)
			close(goOn)
			require.Equal(t, 1, <-got, "that caller came before")
			value, err = v.View(ctx).GetOrLoad(ctx, "k", never[int](t))
			require.NoError(t, err)
			require.Equal(t, 2, value)
			require.Same(t, v.View(ctx), v.View(ctx), "so that callers share loads")
		}
	})
}

func TestAGroupWithoutRedisStillLoads(t *testing.T) {
	s := redistest.StartMini(t)
	var log eventLog
	c, ctx := newCache(t, newPool(t, s.URL(), rediscache.WithMinIdle(1)), rediscache.WithObserver(&log)), t.Context()
	g := c.Group("g")
	v, err := rediscache.OfGroup(g, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Lease: time.Second})
	require.NoError(t, err)
	s.Kill()
	redistest.Eventually(t, func() bool { return errors.Is(c.Ping(ctx), rediscache.ErrUnavailable) }, "it is down")
	_, err = g.Get(ctx, "k")
	require.ErrorIs(t, err, rediscache.ErrUnavailable)
	require.ErrorIs(t, g.Set(ctx, "k", nil, 0), rediscache.ErrUnavailable)
	_, err = g.Delete(ctx, "k")
	require.ErrorIs(t, err, rediscache.ErrUnavailable)
	require.ErrorIs(t, g.Invalidate(ctx), rediscache.ErrUnavailable)
	require.ErrorIs(t, log.last(t, rediscache.OutcomeError).Err, rediscache.ErrUnavailable)
	view := v.View(ctx)
	value, err := view.GetOrLoad(ctx, "k", returns(1))
	require.NoError(t, err)
	require.Equal(t, 1, value)
	_, err = view.Get(ctx, "k")
	require.ErrorIs(t, err, rediscache.ErrUnavailable)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = v.View(ended).Get(ended, "k")
	require.ErrorIs(t, err, context.Canceled)
	s.Restart()
	redistest.Eventually(t, func() bool { return c.Ping(ctx) == nil }, "it is up")
	value, err = view.GetOrLoad(ctx, "k", returns(2))
	require.NoError(t, err)
	require.Equal(t, 2, value, "that View stores nothing and finds nothing")
	_, err = g.Get(ctx, "k")
	require.ErrorIs(t, err, rediscache.ErrNotFound)
	require.NoError(t, c.Close())
	_, err = v.View(ctx).GetOrLoad(ctx, "k", never[int](t))
	require.ErrorIs(t, err, rediscache.ErrClosed)
}

func TestAGroupViewNeedsAPolicyWithAnEnd(t *testing.T) {
	c := newCache(t, newPool(t, redistest.StartMini(t).URL()))
	for _, p := range []rediscache.Policy{{}, {TTL: rediscache.NoExpiry}, {TTL: time.Hour, Lease: -1}} {
		_, err := rediscache.OfGroup(c.Group("g"), rediscache.JSON[int](), p)
		require.Error(t, err, "%+v", p)
	}
	near := newCache(t, newPool(t, redistest.StartMini(t).URL()), rediscache.WithNearCache(1<<20))
	kept := rediscache.Policy{TTL: time.Hour, KeepDecoded: true}
	_, err := rediscache.OfGroup(near.Group("g"), rediscache.JSON[int](), kept)
	require.NoError(t, err)
	_, err = rediscache.OfGroup(c.Group("g"), rediscache.JSON[int](), kept)
	require.ErrorContains(t, err, "KeepDecoded")
	_, err = rediscache.OfGroup(nil, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour})
	require.ErrorContains(t, err, "the group is nil")
	_, err = rediscache.OfGroup[int](c.Group("g"), nil, rediscache.Policy{TTL: time.Hour})
	require.ErrorContains(t, err, "the codec is nil")
}

// Four processes, here four caches, load, delete and invalidate at random. A source holds
// what each key has; a change of the source is followed by a Delete or an Invalidate. So no
// call that begins after that may return what the source had before.
func TestGroupsNeverReturnWhatAnInvalidateOrADeleteHadEnded(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		const keys = 4
		var mu sync.Mutex
		source := make([]int, keys) // the value of each key
		ended := make([]int, keys)  // the least value that a call may return that begins now
		read := func(k int) (now, least int) {
			mu.Lock()
			defer mu.Unlock()
			return source[k], ended[k]
		}
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for i := range 4 {
			c := newCache(t, newPool(t, s.URL()))
			g := c.Group("g")
			v, err := rediscache.OfGroup(g, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour, Lease: time.Second})
			require.NoError(t, err)
			for n := range 4 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(i), uint64(n)))
					for ctx := t.Context(); ; {
						select {
						case <-stop:
							return
						default:
						}
						k := rng.IntN(keys)
						key := fmt.Sprint(k)
						if rng.IntN(8) > 0 {
							_, least := read(k)
							got, err := v.View(ctx).GetOrLoad(ctx, key, func(context.Context) (int, error) {
								now, _ := read(k)
								return now, nil
							})
							if err != nil || got < least {
								t.Errorf("key %d: %d, at least %d was due: %v", k, got, least, err)
							}
							continue
						}
						mu.Lock()
						source[k]++
						now := source[k]
						mu.Unlock()
						var err error
						if rng.IntN(2) == 0 {
							err = g.Invalidate(ctx)
						} else {
							_, err = v.View(ctx).Delete(ctx, key)
						}
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						ended[k] = max(ended[k], now)
						mu.Unlock()
					}
				})
			}
		}
		time.Sleep(time.Second) // how long they go on
		close(stop)
		wg.Wait()
	})
}
