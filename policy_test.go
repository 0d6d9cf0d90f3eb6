package rediscache_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

// stalePolicies are ways to keep stale values that are the same to a caller.
var stalePolicies = map[string]rediscache.Policy{
	"plain": {TTL: time.Hour, Stale: time.Hour},
	"lease": {TTL: time.Hour, Stale: time.Hour, Lease: 10 * time.Second},
}

// eachStale gives f a key that holds a stale 1.
func eachStale(t *testing.T, f func(t *testing.T, s *redistest.Server, c *rediscache.Cache, p rediscache.Policy)) {
	t.Helper()
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		for name, p := range stalePolicies {
			t.Run(name, func(t *testing.T) {
				s.Flush()
				c := newCache(t, newPool(t, s.URL()), unhurried)
				require.NoError(t, newView(t, c, rediscache.JSON[int](), p).Set(t.Context(), "k", 1))
				s.Advance(time.Hour + time.Minute)
				f(t, s, c, p)
			})
		}
	})
}

func TestAStaleValueIsReturnedAtOnceAndLoadedOnceInTheBackground(t *testing.T) {
	eachStale(t, func(t *testing.T, s *redistest.Server, c *rediscache.Cache, p rediscache.Policy) {
		v := newView(t, c, rediscache.JSON[int](), p)
		goOn := make(chan struct{})
		redistest.Together(100, func(int) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel() // the load does not end with it
			got, err := v.GetOrLoad(ctx, "k", func(ctx context.Context) (int, error) { <-goOn; return 2, ctx.Err() })
			if got != 1 || err != nil {
				t.Errorf("%d, %v", got, err)
			}
		})
		got, err := v.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, 1, got)
		many, err := v.GetOrLoadMany(t.Context(), []string{"k"}, nil)
		require.NoError(t, err)
		require.Equal(t, map[string]int{"k": 1}, many)
		close(goOn)
		redistest.Eventually(t, func() bool { return string(s.Do("GET", "k").([]byte)) == "2" }, "it is stored")
		redistest.Eventually(t, func() bool {
			got, err := v.GetOrLoad(t.Context(), "k", never[int](t))
			return got == 2 && err == nil
		}, "and fresh")
		stats := c.Stats()
		require.EqualValues(t, 1, stats.Loads)
		require.EqualValues(t, 101, stats.Stale)
		require.EqualValues(t, 0, stats.Refused)
	})
}

// A minute of failure at the scale of one back-off to a second: sixty of them.
func TestALoadThatFailsIsAskedOncePerBackOffWhileValuesAreStale(t *testing.T) {
	redistest.Long(t)
	const backOff, times = 25 * time.Millisecond, 60
	eachStale(t, func(t *testing.T, _ *redistest.Server, c *rediscache.Cache, p rediscache.Policy) {
		if testing.Short() {
			t.Skip("it takes 1.5 s")
		}
		v := newView(t, c, rediscache.JSON[int](), p)
		v.SetBackoff(backOff)
		var asked atomic.Int64
		began := time.Now()
		redistest.Together(16, func(i int) {
			for time.Since(began) < backOff*times {
				got, err := v.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) {
					asked.Add(1)
					if asked.Load()%3 == 0 {
						panic("in the background this is a failure too")
					}
					return 0, systest.ErrDatabase
				})
				if i == 0 {
					var many map[string]int
					many, err = v.GetOrLoadMany(t.Context(), []string{"k"}, func(context.Context, []string) (map[string]int, error) {
						asked.Add(1)
						return nil, systest.ErrDatabase
					})
					got = many["k"]
				}
				if got != 1 || err != nil {
					t.Errorf("%d, %v", got, err)
					return
				}
			}
		})
		took := time.Since(began)
		require.LessOrEqual(t, asked.Load(), int64(took/backOff)+1)
		require.Greater(t, asked.Load(), int64(2), "it is asked again")
	})
}

func TestTheBackOffIsASecond(t *testing.T) {
	require.Equal(t, time.Second, rediscache.LoadBackoff)
	require.Equal(t, time.Minute, rediscache.DefaultRefreshTimeout)
}

func TestSoftWaitsThatLongForAFreshValue(t *testing.T) {
	eachStale(t, func(t *testing.T, s *redistest.Server, c *rediscache.Cache, p rediscache.Policy) {
		p.Soft = time.Minute
		v := newView(t, c, rediscache.JSON[int](), p)
		got, err := v.GetOrLoad(t.Context(), "k", returns(2))
		require.NoError(t, err)
		require.Equal(t, 2, got, "in time")

		s.Advance(time.Hour + time.Minute)
		got, err = v.GetOrLoad(t.Context(), "k", fails[int](systest.ErrDatabase))
		require.NoError(t, err)
		require.Equal(t, 2, got, "it failed")

		p.Soft = 20 * time.Millisecond
		v = newView(t, c, rediscache.JSON[int](), p)
		goOn := make(chan struct{})
		slow := func(ctx context.Context) (int, error) { <-goOn; return 3, ctx.Err() }
		redistest.Together(10, func(int) {
			began := time.Now()
			got, err := v.GetOrLoad(t.Context(), "k", slow)
			if got != 2 || err != nil || time.Since(began) < p.Soft {
				t.Errorf("%d, %v after %v", got, err, time.Since(began))
			}
		})
		many, err := v.GetOrLoadMany(t.Context(), []string{"k"}, nil)
		require.NoError(t, err)
		require.Equal(t, map[string]int{"k": 2}, many)
		close(goOn)
		redistest.Eventually(t, func() bool { return string(s.Do("GET", "k").([]byte)) == "3" }, "the load went on")
	})
}

// It joins a load that began when there was none, or an older one, and that fails.
func TestWithSoftACallerFallsBackOnTheValueThatItFound(t *testing.T) {
	eachStale(t, func(t *testing.T, s *redistest.Server, c *rediscache.Cache, p rediscache.Policy) {
		p.Soft = time.Minute
		for _, older := range []bool{true, false} {
			codec := &systest.Counting{Codec: rediscache.JSON[int]()}
			v := newView[int](t, c, codec, p)
			if !older {
				s.Do("DEL", "k")
			}
			begun, goOn := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _ = v.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) { close(begun); <-goOn; return 0, systest.ErrDatabase })
			})
			<-begun
			require.NoError(t, c.Set(t.Context(), "k", []byte("2"), time.Minute)) // which is less than Stale
			shared, decoded := c.Stats().Shared, codec.Decoded.Load()
			wg.Go(func() {
				if got, err := v.GetOrLoad(t.Context(), "k", never[int](t)); got != 2 || err != nil {
					t.Errorf("%d, %v", got, err)
				}
			})
			wg.Go(func() {
				got, err := v.GetOrLoadMany(t.Context(), []string{"k"}, func(context.Context, []string) (map[string]int, error) {
					return nil, errors.New("it was not shared")
				})
				if got["k"] != 2 || err != nil {
					t.Errorf("%v, %v", got, err)
				}
			})
			redistest.Eventually(t, func() bool { return codec.Decoded.Load() == decoded+2 }, "they have found it")
			redistest.Waiting(t, 3, systest.InLoad) // and have joined; one that loads anew fails the test
			close(goOn)
			wg.Wait()
			require.EqualValues(t, 2, c.Stats().Shared-shared)
		}
	})
}

func TestALoadInTheBackgroundHasNoEndThatACallerWouldMeet(t *testing.T) {
	eachStale(t, func(t *testing.T, _ *redistest.Server, c *rediscache.Cache, p rediscache.Policy) {
		v := newView(t, c, rediscache.JSON[int](), p)
		bounded := make(chan bool, 1)
		_, err := v.GetOrLoad(t.Context(), "k", func(ctx context.Context) (int, error) {
			_, ok := ctx.Deadline()
			bounded <- ok
			return 2, nil
		})
		require.NoError(t, err)
		require.False(t, <-bounded)
	})
}

func TestABadTTLOfAnItemIsAFailureOfItsLoad(t *testing.T) {
	eachStale(t, func(t *testing.T, _ *redistest.Server, c *rediscache.Cache, p rediscache.Policy) {
		p.Soft = time.Minute
		v := newView(t, c, rediscache.JSON[int](), p)
		for range 3 {
			got, err := v.GetOrLoadItem(t.Context(), "k", func(context.Context) (rediscache.Item[int], error) {
				return rediscache.Item[int]{Value: 2, TTL: -5}, nil
			})
			require.NoError(t, err)
			require.Equal(t, 1, got, "what is stale")
		}
		require.EqualValues(t, 1, c.Stats().Loads, "it backs off")
	})
}

func TestHardGivesUpALoadThatHangs(t *testing.T) {
	redistest.Long(t)
	eachStale(t, func(t *testing.T, s *redistest.Server, c *rediscache.Cache, p rediscache.Policy) {
		p.Hard = 100 * time.Millisecond // half of which is enough to take a lease
		p.Lease = min(p.Lease, 100*time.Millisecond)
		v := newView(t, c, rediscache.JSON[int](), p)
		ended, goOn := make(chan error, 100), make(chan struct{})
		hangs := func(ctx context.Context) (int, error) {
			<-ctx.Done()
			ended <- ctx.Err()
			<-goOn // it does not heed that
			return 9, nil
		}
		givenUp := func(err error) {
			if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "rediscache: ") {
				t.Errorf("%v", err)
			}
		}
		redistest.Together(20, func(int) {
			_, err := v.GetOrLoad(t.Context(), "cold", hangs)
			givenUp(err)
			_, err = v.GetOrLoadMany(t.Context(), []string{"cold2"}, func(ctx context.Context, _ []string) (map[string]int, error) {
				_, err := hangs(ctx)
				return nil, err
			})
			givenUp(err)
		})
		require.ErrorIs(t, <-ended, context.DeadlineExceeded)

		p.Soft = p.Hard / 2
		for _, v := range []*rediscache.View[int]{v, newView(t, c, rediscache.JSON[int](), p)} {
			loads := c.Stats().Loads
			for range 20 {
				got, err := v.GetOrLoad(t.Context(), "k", hangs)
				require.NoError(t, err)
				require.Equal(t, 1, got, "the stale value")
			}
			require.LessOrEqual(t, c.Stats().Loads-loads, int64(2)) // the second, if that was not noticed at once
			redistest.Eventually(t, func() bool {
				began := c.Stats().Loads
				_, err := v.GetOrLoad(t.Context(), "k", hangs)
				return err == nil && c.Stats().Loads == began
			}, "it is given up, and not asked again at once")
		}
		close(goOn)
		require.NoError(t, c.Close(), "and nothing is stored")
		require.Equal(t, []byte("1"), s.Do("GET", "k"))
		require.EqualValues(t, 0, s.Do("EXISTS", "cold", "cold2"))
	})
}

func TestAStaleValueGoesWhenTheLoadSaysThatThereIsNone(t *testing.T) {
	eachStale(t, func(t *testing.T, s *redistest.Server, c *rediscache.Cache, p rediscache.Policy) {
		v := newView(t, c, rediscache.JSON[int](), p)
		_, err := v.GetOrLoad(t.Context(), "k", fails[int](rediscache.ErrNotFound))
		require.NoError(t, err)
		redistest.Eventually(t, func() bool { return s.Do("EXISTS", "k") == int64(0) }, "it goes")

		require.NoError(t, v.Set(t.Context(), "k", 1))
		s.Advance(time.Hour + time.Minute)
		p.Negative, p.Soft = time.Minute, time.Minute
		v = newView(t, c, rediscache.JSON[int](), p)
		_, err = v.GetOrLoad(t.Context(), "k", fails[int](rediscache.ErrNotFound))
		require.ErrorIs(t, err, rediscache.ErrNotFound)
		require.Equal(t, []byte{}, s.Do("GET", "k"))
	})
}

func TestAnEntryWithoutExpiryIsFresh(t *testing.T) {
	eachStale(t, func(t *testing.T, s *redistest.Server, c *rediscache.Cache, p rediscache.Policy) {
		p.Early = 1000
		s.Do("SET", "k", "5")
		v := newView(t, c, rediscache.JSON[int](), p)
		v.SetLoadTime(time.Hour)
		got, err := v.GetOrLoad(t.Context(), "k", never[int](t))
		require.NoError(t, err)
		require.Equal(t, 5, got)
	})
}

// Sixty-four processes, as far as loads are concerned: a view each. Loads take
// a few milliseconds, and values live for some tens of them. 40 periods, or 200
// with -soak.
func TestEarlySparesLoads(t *testing.T) {
	redistest.Long(t)
	if testing.Short() || redistest.RaceEnabled {
		t.Skip("it measures, for 10 s")
	}
	periods := 40
	if systest.Soak > 0 {
		periods = 200
	}
	s := redistest.Start(t)
	pool := newPool(t, s.URL())
	const ttl = 60 * time.Millisecond
	measure := func(p rediscache.Policy) float64 {
		s.Flush()
		began := crowd(t, newCache(t, pool), p, periods)
		share, mean := crowds(began, ttl/2)
		t.Logf("Early %v, Lease %v: in %.1f %% of %d periods more than one load, %.1f on average",
			p.Early, p.Lease, 100*share, periods, mean)
		return mean
	}
	without := measure(rediscache.Policy{TTL: ttl})
	with := measure(rediscache.Policy{TTL: ttl, Early: 1})
	leased := measure(rediscache.Policy{TTL: ttl, Early: 1, Lease: time.Second})
	require.Less(t, with, without/4)
	require.Less(t, leased, 1.2)
}

// crowd asks for a key in 64 views until it has been loaded in so many periods,
// and returns when the loads began.
func crowd(t *testing.T, c *rediscache.Cache, p rediscache.Policy, periods int) (began []time.Time) {
	t.Helper()
	const callers, takes, pause = 64, 4 * time.Millisecond, 2 * time.Millisecond
	var mu sync.Mutex // guards began
	end := time.Now().Add(time.Duration(periods) * (p.TTL + takes))
	redistest.Together(callers, func(int) {
		v := newView(t, c, rediscache.JSON[int](), p)
		v.SetLoadTime(takes)
		for time.Now().Before(end) {
			_, _ = v.GetOrLoad(t.Context(), "k", func(ctx context.Context) (int, error) {
				mu.Lock()
				began = append(began, time.Now())
				mu.Unlock()
				redistest.Wait(ctx, takes)
				return 1, nil
			})
			redistest.Wait(t.Context(), pause)
		}
	})
	return began
}

// crowds returns the share of periods with more than one load, and how many
// there were on average. Loads that began within gap of the one before are of
// one period; the first and the last are left out.
func crowds(began []time.Time, gap time.Duration) (share, mean float64) {
	var sizes []int
	for i, at := range began {
		if i == 0 || at.Sub(began[i-1]) > gap {
			sizes = append(sizes, 0)
		}
		sizes[len(sizes)-1]++
	}
	sizes = sizes[1 : len(sizes)-1]
	crowded, all := 0, 0
	for _, n := range sizes {
		all += n
		if n > 1 {
			crowded++
		}
	}
	return float64(crowded) / float64(len(sizes)), float64(all) / float64(len(sizes))
}

func TestAViewMustKnowHowLongItsValuesLive(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		ctx, pool := t.Context(), newPool(t, s.URL())
		for name, c := range map[string]struct {
			opts []rediscache.Option
			ttl  time.Duration
			want time.Duration // zero: refused
		}{
			"neither says":          {nil, rediscache.DefaultTTL, 0},
			"the cache says":        {[]rediscache.Option{rediscache.WithTTL(time.Hour)}, rediscache.DefaultTTL, time.Hour},
			"the cache says never":  {[]rediscache.Option{rediscache.WithTTL(rediscache.NoExpiry)}, rediscache.DefaultTTL, rediscache.NoExpiry},
			"the policy says":       {nil, time.Hour, time.Hour},
			"the policy says never": {nil, rediscache.NoExpiry, rediscache.NoExpiry},
			"both say":              {[]rediscache.Option{rediscache.WithTTL(time.Hour)}, time.Minute, time.Minute},
		} {
			t.Run(name, func(t *testing.T) {
				cache, err := rediscache.New(pool, append(c.opts, rediscache.WithPrefix(name+":"))...)
				require.NoError(t, err)
				defer cache.Close()
				for _, cache := range []*rediscache.Cache{cache, cache.Sub("sub:")} {
					v, err := rediscache.Of(cache, rediscache.JSON[int](), rediscache.Policy{TTL: c.ttl, Lease: time.Second})
					if c.want == 0 {
						require.EqualError(t, err, "rediscache: Policy.TTL: it is zero and the cache has no WithTTL:"+
							" write a time in either, or NoExpiry for values that never expire")
						continue
					}
					require.NoError(t, err)
					require.NoError(t, v.Set(ctx, "set", 1))
					_, err = v.GetOrLoad(ctx, "loaded", returns(1))
					require.NoError(t, err)
					for _, key := range []string{"set", "loaded"} {
						left, err := cache.TTL(ctx, key)
						require.NoError(t, err)
						if c.want == rediscache.NoExpiry {
							require.Equal(t, rediscache.NoExpiry, left)
						} else {
							require.InDelta(t, c.want, left, float64(30*time.Second))
						}
					}
				}
			})
		}
	})
}

func TestWithoutWithTTLBytesDoNotExpire(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		c, err := rediscache.New(newPool(t, s.URL()))
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.Set(t.Context(), "k", nil, rediscache.DefaultTTL))
		left, err := c.TTL(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, rediscache.NoExpiry, left)
	})
}

type tenantKey struct{}

// If the caller passes the context of its request, a load in the background still has the values of
// that request after it has ended and the framework serves the next request.
func TestALoadInTheBackgroundHasTheValuesOfItsRequest(t *testing.T) {
	eachStale(t, func(t *testing.T, s *redistest.Server, c *rediscache.Cache, p rediscache.Policy) {
		v := newView(t, c, rediscache.String(), p)
		var frame struct{ request *http.Request } // what a framework reuses for each request, as gin does its Context
		serve := func(tenant string, handle func()) {
			ctx, cancel := context.WithCancel(context.WithValue(t.Context(), tenantKey{}, tenant))
			defer cancel() // as net/http does
			frame.request = httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
			handle()
		}
		goOn := make(chan struct{})
		serve("a", func() {
			got, err := v.GetOrLoad(frame.request.Context(), "k", func(ctx context.Context) (string, error) {
				<-goOn
				if _, ok := ctx.Deadline(); ok || ctx.Err() != nil {
					return "", errors.New("the load has the end of its request")
				}
				return fmt.Sprint("of ", ctx.Value(tenantKey{})), nil
			})
			require.NoError(t, err)
			require.Equal(t, "1", got, "stale")
		})
		serve("b", func() { close(goOn) })
		redistest.Eventually(t, func() bool { return string(s.Do("GET", "k").([]byte)) == "of a" }, "it is stored")
	})
}

// Packages like errgroup cancel a context with a cause that matches another error than the context's.
func TestACancelledCallerGetsTheErrorOfItsContext(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		for _, p := range []rediscache.Policy{{}, {TTL: time.Hour, Stale: time.Hour, Lease: time.Hour, Hard: time.Hour}} {
			s.Flush()
			v, _ := systest.Process(t, s, p)
			for _, call := range map[string]func(context.Context, func(context.Context) (int, error)) error{
				"one": func(ctx context.Context, load func(context.Context) (int, error)) error {
					_, err := v.GetOrLoad(ctx, "k", load)
					return err
				},
				"many": func(ctx context.Context, load func(context.Context) (int, error)) error {
					_, err := v.GetOrLoadMany(ctx, []string{"k", "l"}, func(ctx context.Context, _ []string) (map[string]int, error) {
						_, err := load(ctx)
						return nil, err
					})
					return err
				},
			} {
				ctx, cancel := context.WithCancelCause(t.Context())
				ended := make(chan error, 1)
				err := call(ctx, func(loading context.Context) (int, error) {
					cancel(context.DeadlineExceeded)
					<-loading.Done()
					ended <- context.Cause(loading)
					return 0, loading.Err()
				})
				require.ErrorIs(t, err, context.Canceled)
				require.NotErrorIs(t, err, context.DeadlineExceeded)
				require.NotErrorIs(t, <-ended, context.DeadlineExceeded, "the cause of a caller is none of the load's")
			}
		}
	})
}

// The context ends after the read from Redis failed, and before the load begins.
func TestTheErrorOfALoadMatchesAContextThatEndsMeanwhile(t *testing.T) {
	s := redistest.Start(t)
	p := newPool(t, s.URL())
	s.Kill()
	for _, many := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := newCache(t, p, rediscache.WithObserver(rediscache.ObserverFunc(func(context.Context, rediscache.Event) { cancel() })))
		v := newView(t, c, rediscache.JSON[int](), rediscache.Policy{})
		var err error
		if many {
			_, err = v.GetOrLoadMany(ctx, []string{"k"}, func(ctx context.Context, _ []string) (map[string]int, error) {
				<-ctx.Done()
				return nil, systest.ErrDatabase
			})
		} else {
			_, err = v.GetOrLoad(ctx, "k", func(ctx context.Context) (int, error) {
				<-ctx.Done()
				return 0, systest.ErrDatabase
			})
		}
		require.ErrorIs(t, err, context.Canceled)
	}
}
