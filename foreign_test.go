package rediscache_test

import (
	"context"
	"fmt"
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

// smallPool is a redigo pool of n connections, which a cache shares with others.
func smallPool(t testing.TB, s *redistest.Server, n int, waits bool) *redis.Pool {
	p := &redis.Pool{
		MaxIdle: n, MaxActive: n, Wait: waits,
		DialContext: func(ctx context.Context) (redis.Conn, error) { return redis.DialContext(ctx, "tcp", s.Addr) },
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// keepBusy has callers set small values until the test ends.
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
