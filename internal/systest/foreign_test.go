package systest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// smallPool returns a redigo pool of n connections, which a cache shares with other borrowers.
func smallPool(tb testing.TB, s *redistest.Server, n int, waits bool) *redis.Pool {
	tb.Helper()
	p := &redis.Pool{
		MaxIdle: n, MaxActive: n, Wait: waits,
		DialContext: func(ctx context.Context) (redis.Conn, error) { return redis.DialContext(ctx, "tcp", s.Addr) },
	}
	tb.Cleanup(func() { p.Close() })
	return p
}

// keepBusy starts callers that set small values until the test ends.
func keepBusy(t *testing.T, callers int, caches ...*rediscache.Cache) (stop func()) {
	var wg sync.WaitGroup
	var done atomic.Bool
	for i, c := range caches {
		for j := range callers {
			wg.Go(func() {
				for n := 0; !done.Load(); n++ {
					if err := c.Set(t.Context(), fmt.Sprint(i, j, n%10), []byte("small"), time.Minute); err != nil {
						t.Errorf("a small value: %v", err)
						return
					}
				}
			})
		}
	}
	return func() {
		done.Store(true)
		wg.Wait()
	}
}

func TestOthersAreServedBesideABusyCacheOnASmallForeignPool(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for _, size := range []int{1, 2, 3} {
			t.Run(fmt.Sprint(size), func(t *testing.T) {
				redistest.NoLeaks(t)
				pool := smallPool(t, s, size, true)
				stop := keepBusy(t, 8, newCache(t, pool))
				defer stop()
				redistest.Eventually(t, func() bool { return pool.Stats().ActiveCount > 0 }, "the cache is busy")
				var waits []time.Duration
				for range 20 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					began := time.Now()
					c, err := pool.GetContext(ctx)
					cancel()
					require.NoError(t, err, "another borrower, with a second's patience")
					waits = append(waits, time.Since(began))
					_, err = c.Do("PING")
					require.NoError(t, err)
					require.NoError(t, c.Close())
				}
				slices.Sort(waits)
				t.Logf("a pool of %d: %v at the median, %v at most", size, waits[len(waits)/2], waits[len(waits)-1])
				require.Less(t, waits[len(waits)/2], 50*time.Millisecond)
			})
		}
	})
}

func TestManyCachesShareASmallForeignPool(t *testing.T) {
	redistest.Long(t)
	s := redistest.Start(t)
	pool := smallPool(t, s, 4, true)
	caches := make([]*rediscache.Cache, 12)
	for i := range caches {
		caches[i] = newCache(t, pool)
	}
	stop := keepBusy(t, 2, caches...)
	time.Sleep(1500 * time.Millisecond) // longer than a call has
	stop()
}

func TestACacheDoesNotStarveItselfOnASmallForeignPool(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for _, size := range []int{1, 2} {
			for _, waits := range []bool{true, false} {
				for _, busy := range []int{0, 4} {
					t.Run(fmt.Sprintf("%d, waits %v, %d callers", size, waits, busy), func(t *testing.T) {
						redistest.NoLeaks(t)
						c := newCache(t, smallPool(t, s, size, waits))
						stop := keepBusy(t, busy, c)
						defer stop()
						large := make([]byte, 100<<10)
						var took []time.Duration
						for i := range 6 {
							began := time.Now()
							require.NoError(t, c.Set(t.Context(), "large", large, time.Minute), "large value %d", i)
							took = append(took, time.Since(began))
							require.NoError(t, c.Set(t.Context(), "small", []byte("v"), time.Minute))
						}
						slices.Sort(took)
						t.Logf("%v at the median, %v at most", took[len(took)/2], took[len(took)-1])
						require.Less(t, took[len(took)/2], 100*time.Millisecond)
						var wg sync.WaitGroup
						for range 6 {
							wg.Go(func() {
								if err := c.Set(t.Context(), "large", large, time.Minute); err != nil {
									t.Errorf("six at once: %v", err)
								}
							})
						}
						wg.Wait()
					})
				}
			}
		}
	})
}

func TestOthersFindAConnectionOfAForeignPoolThatDoesNotWait(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		pool := smallPool(t, s, 1, false)
		stop := keepBusy(t, 8, newCache(t, pool))
		defer stop()
		for range 5 {
			redistest.Eventually(t, func() bool {
				c, err := pool.GetContext(t.Context())
				if err == nil {
					err = c.Close()
				}
				return err == nil
			}, "a borrower that asks again and again is served")
		}
	})
}

// faultyPool is a pool whose code fails at the place that the test chooses.
type faultyPool struct {
	addr  string
	fault atomic.Pointer[misdeed]
}

type misdeed struct {
	where string
	what  func()
}

func (p *faultyPool) meets(where string) {
	if f := p.fault.Load(); f != nil && f.where == where {
		f.what()
	}
}

func (p *faultyPool) GetContext(ctx context.Context) (redis.Conn, error) {
	p.meets("GetContext")
	c, err := redis.DialContext(ctx, "tcp", p.addr)
	if err != nil {
		return nil, err
	}
	return &faultyConn{c, p}, nil
}

func (p *faultyPool) Close() error { return nil }

type faultyConn struct {
	redis.Conn
	pool *faultyPool
}

func (c *faultyConn) Send(cmd string, args ...any) error {
	c.pool.meets("Send")
	return c.Conn.Send(cmd, args...)
}

func (c *faultyConn) Flush() error {
	c.pool.meets("Flush")
	return c.Conn.Flush()
}

func (c *faultyConn) ReceiveWithTimeout(d time.Duration) (any, error) {
	c.pool.meets("Receive")
	return redis.ReceiveWithTimeout(c.Conn, d)
}

func (c *faultyConn) DoWithTimeout(d time.Duration, cmd string, args ...any) (any, error) {
	c.pool.meets("Do")
	return redis.DoWithTimeout(c.Conn, d, cmd, args...)
}

func (c *faultyConn) Close() error {
	c.pool.meets("Close")
	return c.Conn.Close()
}

func TestAFaultInAForeignPoolIsAnErrorOfTheCall(t *testing.T) {
	s := redistest.StartMini(t)
	cause := errors.New("a nil map")
	for _, lanes := range []int{1, 0} {
		for what, f := range map[string]func(){
			"panic":  func() { panic(cause) },
			"Goexit": runtime.Goexit,
		} {
			for _, where := range []string{"GetContext", "Send", "Flush", "Receive", "Do", "Close"} {
				t.Run(fmt.Sprintf("%s in %s, %d lanes", what, where, lanes), func(t *testing.T) {
					redistest.NoLeaks(t)
					pool := &faultyPool{addr: s.Addr}
					c := newCache(t, pool, rediscache.WithPipelineConns(lanes))
					pool.fault.Store(&misdeed{where, f})
					var errs [2]error // of a small value and a large one
					var wg sync.WaitGroup
					for i, size := range []int{1, 100 << 10} {
						wg.Go(func() {
							errs[i] = errGone // if this goroutine is ended
							errs[i] = c.Set(t.Context(), "k", make([]byte, size), time.Minute)
						})
					}
					wg.Wait()
					for i, err := range errs {
						switch {
						case err == nil || errors.Is(err, errGone):
						case errors.Is(err, rediscache.ErrOutcomeUnknown):
						default:
							require.ErrorIs(t, err, rediscache.ErrUnavailable, "%d", i)
						}
						if where == "GetContext" && what == "panic" {
							require.ErrorIs(t, err, cause)
						}
					}
					if where == "GetContext" {
						require.Error(t, errs[0])
						require.Error(t, errs[1])
					}
					pool.fault.Store(nil)
					require.NoError(t, c.Set(t.Context(), "k", []byte("v"), time.Minute))
					require.NoError(t, c.Close())
				})
			}
		}
	}
}

var errGone = errors.New("the goroutine of the caller was ended")

// nonePool returns neither a connection nor an error.
type nonePool struct{}

func (nonePool) GetContext(context.Context) (redis.Conn, error) { return nil, nil }
func (nonePool) Close() error                                   { return nil }

func TestAForeignPoolThatReturnsNothingIsAnError(t *testing.T) {
	redistest.NoLeaks(t)
	for _, lanes := range []int{1, 0} {
		c := newCache(t, nonePool{}, rediscache.WithPipelineConns(lanes))
		_, err := c.Get(t.Context(), "k")
		require.ErrorIs(t, err, rediscache.ErrUnavailable)
		require.NoError(t, c.Close())
	}
}

func TestAClosedRedigoPoolIsErrClosed(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.StartMini(t)
	for _, waits := range []bool{true, false} {
		for _, lanes := range []int{2, 0} {
			pool := smallPool(t, s, 1, waits)
			require.NoError(t, pool.Close())
			c := newCache(t, pool, rediscache.WithPipelineConns(lanes))
			_, err := c.Get(t.Context(), "k")
			require.ErrorIs(t, err, rediscache.ErrClosed)
			require.NotErrorIs(t, err, rediscache.ErrUnavailable)
			require.NoError(t, c.Close())
		}
	}
}

// redigo's pool panics in a caller that waits for a connection when the pool is closed.
func TestARedigoPoolMayBeClosedWhileACallWaits(t *testing.T) {
	redistest.Long(t)
	s := redistest.StartMini(t)
	for _, lanes := range []int{1, 0} {
		redistest.NoLeaks(t)
		for range 200 {
			pool := smallPool(t, s, 1, true)
			held, err := pool.GetContext(t.Context())
			require.NoError(t, err)
			c := newCache(t, pool, rediscache.WithPipelineConns(lanes))
			ended := make(chan error)
			go func() {
				_, err := c.Get(t.Context(), "k")
				ended <- err
			}()
			redistest.Waiting(t, 1, "redis.(*Pool).waitVacantConn")
			require.NoError(t, pool.Close())
			require.NoError(t, c.Close())
			require.Error(t, <-ended)
			require.NoError(t, held.Close())
		}
	}
}

func TestTheTimeoutsOfConnectionsAreTheirOwn(t *testing.T) {
	redistest.Long(t)
	held := make(chan struct{})
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" {
			<-held
		}
		return redistest.Default(c), false
	})
	release := sync.OnceFunc(func() { close(held) })
	t.Cleanup(release)
	options := func(d time.Duration) []redis.DialOption {
		return []redis.DialOption{redis.DialReadTimeout(d), redis.DialWriteTimeout(d)}
	}
	open := map[string]func(d time.Duration) rediscache.Pool{
		"redigo's pool": func(d time.Duration) rediscache.Pool {
			p := &redis.Pool{Dial: func() (redis.Conn, error) { return redis.Dial("tcp", s.Addr, options(d)...) }}
			t.Cleanup(func() { p.Close() })
			return p
		},
		"a warm pool with dial options": func(d time.Duration) rediscache.Pool {
			return newPool(t, s.URL(), rediscache.WithDialOptions(options(d)...))
		},
		"a warm pool": func(d time.Duration) rediscache.Pool {
			return newPool(t, s.URL(), rediscache.WithReadTimeout(d))
		},
	}
	var wg sync.WaitGroup
	for name, pool := range open {
		for _, lanes := range []int{1, 0} {
			// A timeout that is shorter than the library's own default, and one that is longer.
			short := newCache(t, pool(50*time.Millisecond), rediscache.WithPipelineConns(lanes), rediscache.WithTimeout(0))
			began := time.Now()
			_, err := short.Get(t.Context(), "k")
			require.ErrorIs(t, err, rediscache.ErrUnavailable, name)
			require.Less(t, time.Since(began), rediscache.DefaultReadTimeout/2, "%s, %d lanes", name, lanes)

			long := newCache(t, pool(time.Minute), rediscache.WithPipelineConns(lanes), rediscache.WithTimeout(0))
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if _, err := long.Get(ctx, "k"); !errors.Is(err, rediscache.ErrNotFound) {
					t.Errorf("%s, %d lanes, %v: %v", name, lanes, time.Since(began), err)
				}
			})
			wg.Go(func() { // a call's context ends its wait, whatever the connection has
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				if _, err := long.Get(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s, %d lanes: %v", name, lanes, err)
				}
			})
		}
	}
	time.Sleep(rediscache.DefaultReadTimeout + 300*time.Millisecond)
	release()
	wg.Wait()
}

func TestALaneThatIsAlwaysBusyKeepsTheLifetimeOfItsConnection(t *testing.T) {
	redistest.Long(t)
	const life, lives = 300 * time.Millisecond, 4
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		warm := newPool(t, s.URL(), rediscache.WithMinIdle(0), rediscache.WithMaxActive(4), rediscache.WithMaxConnLifetime(life))
		var dials atomic.Int64
		redigos := &redis.Pool{MaxIdle: 4, MaxConnLifetime: life, Dial: func() (redis.Conn, error) {
			dials.Add(1)
			return redis.Dial("tcp", s.Addr)
		}}
		defer redigos.Close()
		began := time.Now()
		stop := keepBusy(t, 4, newCache(t, warm, rediscache.WithPipelineConns(1)), newCache(t, redigos, rediscache.WithPipelineConns(1)))
		defer stop()
		// A second is what a connection may outlive its time, half of it on redigo's pool.
		within := lives*(life+time.Second) + 5*time.Second
		redistest.Eventually(t, func() bool { return warm.Stats().Closed.Lifetime >= lives }, "the warm pool replaces it")
		redistest.Eventually(t, func() bool { return dials.Load() > lives }, "redigo's pool replaces it")
		require.Less(t, time.Since(began), within)
	})
}

func TestIdleCachesHoldNoConnection(t *testing.T) {
	redistest.Long(t)
	s := redistest.Start(t)
	const size, callers, perTick = 5, 40, 100 // a connection that is returned by the clock alone serves so many a second
	for name, pool := range map[string]rediscache.Pool{
		"a warm pool":   newPool(t, s.URL(), sizes(size, size)...),
		"redigo's pool": smallPool(t, s, size, true),
	} {
		caches := make([]*rediscache.Cache, 100*size)
		for i := range caches {
			caches[i] = newCache(t, pool)
		}
		var served atomic.Int64
		for range 10 { // other programs may take a second from this one
			served.Store(0)
			until := time.Now().Add(time.Second)
			redistest.Together(callers, func(int) {
				for time.Now().Before(until) {
					if err := caches[rand.IntN(len(caches))].Set(t.Context(), "k", []byte("v"), time.Minute); err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
					served.Add(1)
				}
			})
			t.Logf("%s of %d, %d caches, %d callers: %d calls in a second", name, size, len(caches), callers, served.Load())
			if served.Load() > 2*size*perTick {
				break
			}
		}
		require.Greater(t, served.Load(), int64(2*size*perTick), name)
	}
}
