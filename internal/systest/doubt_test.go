package systest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

// Each of these makes the next load of a run without a lease that it can rely on. The load returns to
// its own caller what it read before a Delete. Callers after the Delete get the value that was written
// before the Delete.
func TestACallerAfterADeleteGetsNoOldValueOfALoadWithoutALease(t *testing.T) {
	redistest.Long(t)
	s := redistest.Start(t)
	redistest.NoLeaks(t)
	proxy := redistest.NewProxy(t, s.Addr)
	lease := systest.LeaseKey("", "k")
	held := func() { s.Do("SET", lease, "of another process", "PX", 5000) }
	policy := rediscache.Policy{Lease: 10 * time.Second, Negative: time.Minute}
	hard := policy
	hard.Hard = 3 * time.Second // half of it is for the lease of the other process
	for name, way := range map[string]struct {
		policy rediscache.Policy
		before func() // the first caller
		missed func() // once it has looked at the key, and before its load asks for the lease
		loaded func() // while it loads, before the Delete
		late   func() // after the Delete
	}{
		"the lease is held for longer than Hard allows": {policy: hard, before: held},
		"SET is refused": {
			policy: policy,
			before: func() { s.ConfigSet("maxmemory", "1") },
			late:   func() { s.ConfigSet("maxmemory", "0") },
		},
		"SET is not answered": {policy: policy, missed: proxy.Blackhole, loaded: proxy.Resume},
		"SET comes after the Delete": {
			policy: policy, missed: proxy.Blackhole,
			late: func() {
				proxy.Resume()
				redistest.Eventually(t, func() bool { return s.Do("EXISTS", lease) == int64(1) }, "there is a lease")
			},
		},
		"Redis cannot be reached for the lease": {
			policy: policy, missed: func() { proxy.Refuse(); proxy.Reset() }, loaded: proxy.Accept,
		},
		"Redis cannot be reached at all": {policy: policy, before: func() { proxy.Refuse(); proxy.Reset() }},
	} {
		for result, outcome := range map[string]error{"a value": nil, "none": rediscache.ErrNotFound, "an error": systest.ErrDatabase} {
			t.Run(name+", "+result, func(t *testing.T) {
				proxy.Heal()
				s.Flush()
				run := func(f func()) {
					if f != nil {
						f()
					}
				}
				var came atomic.Int64 // callers that have looked at the key
				c := newCache(t, newPool(t, "redis://"+proxy.Addr), rediscache.WithTimeout(500*time.Millisecond),
					rediscache.WithObserver(rediscache.ObserverFunc(func(_ context.Context, e rediscache.Event) {
						looked := e.Outcome == rediscache.OutcomeMiss || e.Outcome == rediscache.OutcomeError
						if looked && e.Op != "lease" && came.Add(1) == 1 {
							run(way.missed)
						}
					})))
				a := systest.NewView(t, c, rediscache.JSON[int](), way.policy)
				b, _ := systest.Process(t, s, way.policy)
				redistest.Eventually(t, func() bool { return c.Ping(t.Context()) == nil }, "there is a connection")
				run(way.before)
				var row atomic.Int64
				row.Store(1)
				begun, goOn := make(chan struct{}), make(chan struct{})
				proceed := sync.OnceFunc(func() { close(goOn) })
				defer proceed() // or nothing ends where the test fails
				var wg sync.WaitGroup
				wg.Go(func() {
					got, err := a.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) {
						read := int(row.Load())
						close(begun)
						<-goOn
						return read, outcome
					})
					if !errors.Is(err, outcome) || err == nil && got != 1 {
						t.Errorf("the first: %d, %v", got, err)
					}
				})
				<-begun
				run(way.loaded)
				row.Store(2)
				_, err := b.Delete(t.Context(), "k")
				require.NoError(t, err)
				run(way.late)
				looked := came.Load()
				load := func(context.Context) (int, error) { return int(row.Load()), nil }
				check := func(got int, err error) {
					if got != 2 || err != nil {
						t.Errorf("after the Delete: %d, %v", got, err)
					}
				}
				wg.Go(func() { check(a.GetOrLoad(t.Context(), "k", load)) })
				wg.Go(func() {
					check(a.GetOrLoadItem(t.Context(), "k", func(ctx context.Context) (rediscache.Item[int], error) {
						value, err := load(ctx)
						return rediscache.Item[int]{Value: value}, err
					}))
				})
				wg.Go(func() {
					got, err := a.GetOrLoadMany(t.Context(), []string{"other", "k"}, func(context.Context, []string) (map[string]int, error) {
						return map[string]int{"k": int(row.Load()), "other": 0}, nil
					})
					check(got["k"], err)
				})
				redistest.Eventually(t, func() bool { return came.Load()-looked >= 3 }, "they have looked")
				redistest.Waiting(t, 4, systest.InLoad) // and have joined
				proceed()
				wg.Wait()
			})
		}
	}
}

// The caller finds a stale value, which was stored after the Delete, and joins a load without a lease
// that began before the Delete. The value of the load is older, so the caller must not get it.
func TestWithSoftACallerAfterADeleteGetsNoOldValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		p := rediscache.Policy{
			TTL: time.Hour, Stale: time.Hour, Soft: 4 * time.Second, Hard: time.Minute, Lease: 100 * time.Millisecond,
			Negative: time.Minute,
		}
		for _, outcome := range []error{nil, rediscache.ErrNotFound} {
			s.Flush()
			c := newCache(t, newPool(t, s.URL()), unhurried)
			codec := &systest.Counting{Codec: rediscache.JSON[int]()}
			a := systest.NewView[int](t, c, codec, p)
			b, _ := systest.Process(t, s, p)
			s.Do("SET", systest.LeaseKey("", "k"), "of another process")
			begun, goOn := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _ = a.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) {
					close(begun)
					<-goOn
					return 1, outcome
				})
			})
			<-begun
			_, err := b.Delete(t.Context(), "k")
			require.NoError(t, err)
			s.Do("SET", "k", "5", "PX", (30 * time.Minute).Milliseconds()) // less than Stale
			wg.Go(func() {
				if got, err := a.GetOrLoad(t.Context(), "k", systest.Never[int](t)); got != 5 || err != nil {
					t.Errorf("%d, %v", got, err)
				}
			})
			wg.Go(func() {
				got, err := a.GetOrLoadMany(t.Context(), []string{"k"}, nil)
				if got["k"] != 5 || err != nil {
					t.Errorf("%v, %v", got, err)
				}
			})
			redistest.Eventually(t, func() bool { return codec.Decoded.Load() == 2 }, "they have found it")
			redistest.Waiting(t, 3, systest.InLoad) // and have joined
			close(goOn)
			wg.Wait()
			require.EqualValues(t, 2, c.Stats().Shared)
		}
	})
}

// Only callers that came during the load read the key again.
func TestACallerThatCameBeforeALoadWithoutALeaseBeganTakesItsValue(t *testing.T) {
	redistest.Long(t)
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		v, c := systest.Process(t, s, rediscache.Policy{Lease: time.Hour, Hard: 8 * time.Second})
		s.Do("SET", systest.LeaseKey("", "k"), "of another process")
		redistest.Together(100, func(int) {
			got, err := v.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) {
				if c.Stats().Misses != 100 {
					return 0, errors.New("not all have missed, in four seconds")
				}
				return 7, nil
			})
			if got != 7 || err != nil {
				t.Errorf("%d, %v", got, err)
			}
		})
		require.EqualValues(t, 1, c.Stats().Loads)
	})
}

// The test writes rows of a database and deletes their cached values, while four processes load them, at
// times without a lease. No caller that comes after a Delete has returned gets a value from before it, in
// any state of the leases and of the network.
func TestNoCallerGetsAnOldValueAfterADelete(t *testing.T) {
	redistest.Long(t)
	patience := faultTime(2 * time.Second)
	for name, test := range map[string]struct {
		policy rediscache.Policy
		takes  time.Duration // at most, every other load
		pause  time.Duration // at most, between two Deletes of a key
		faults bool
	}{
		"leases that others wait for too briefly": {
			policy: rediscache.Policy{Lease: 2 * time.Second, Hard: 40 * time.Millisecond},
			takes:  35 * time.Millisecond, pause: 60 * time.Millisecond,
		},
		"the same, stale values, Soft and negatives": {
			policy: rediscache.Policy{
				TTL: time.Hour, Stale: time.Hour, Early: 1e9, Soft: 10 * time.Millisecond, Negative: time.Minute,
				Lease: 2 * time.Second, Hard: 40 * time.Millisecond,
			},
			takes: 35 * time.Millisecond, pause: 60 * time.Millisecond,
		},
		"a bad network": {
			policy: rediscache.Policy{Lease: 200 * time.Millisecond, Negative: time.Minute},
			takes:  5 * time.Millisecond, pause: 5 * time.Millisecond, faults: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			redistest.NoLeaks(t)
			s := redistest.Start(t)
			proxy := redistest.NewProxy(t, s.Addr)
			url, timeout := s.URL(), rediscache.DefaultTimeout
			if test.faults {
				url, timeout = "redis://"+proxy.Addr, 50*time.Millisecond
			}
			deleter, _ := systest.Process(t, s, test.policy) // has a good network
			var views [4]*rediscache.View[int]
			var caches [4]*rediscache.Cache
			for i := range views {
				caches[i] = newCache(t, newPool(t, url, rediscache.WithMinIdle(2)), rediscache.WithTimeout(timeout))
				views[i] = systest.NewView(t, caches[i], rediscache.JSON[int](), test.policy)
			}
			done := make(chan struct{})
			var chaos sync.WaitGroup
			if test.faults {
				chaos.Go(func() { vex(t, proxy, done) })
			}
			var reads atomic.Int64
			redistest.Together(4, func(k int) {
				key := fmt.Sprint("k", k)
				var row, deleted atomic.Int64 // what was written last, and what was when the last Delete returned
				gone := func(n int64) bool { return test.policy.Negative > 0 && n%10 == 9 }
				load := func(context.Context) (int, error) {
					n := row.Load()
					d := rand.N(300 * time.Microsecond)
					if rand.IntN(2) == 0 {
						d = rand.N(test.takes)
					}
					redistest.Wait(t.Context(), d)
					if gone(n) {
						return 0, rediscache.ErrNotFound
					}
					return int(n), nil
				}
				many := func(ctx context.Context, _ []string) (map[string]int, error) {
					value, err := load(ctx)
					return map[string]int{key: value}, err
				}
				read := func(v *rediscache.View[int]) {
					reads.Add(1)
					least := deleted.Load()
					var got int
					var err error
					if rand.IntN(2) == 0 {
						got, err = v.GetOrLoad(t.Context(), key, load)
					} else {
						var values map[string]int
						var ok bool
						values, err = v.GetOrLoadMany(t.Context(), []string{key}, many)
						if got, ok = values[key]; !ok && err == nil {
							err = rediscache.ErrNotFound
						}
					}
					switch {
					case err == nil && int64(got) >= least:
					case errors.Is(err, context.DeadlineExceeded): // Hard, on a slow machine
					case errors.Is(err, rediscache.ErrNotFound) && (gone(least) || row.Load()/10 > least/10 || gone(row.Load())):
					default:
						t.Errorf("%s: %d, %v after the Delete of %d", key, got, err, least)
					}
					spin(rand.IntN(20))
				}
				over := make(chan struct{})
				var readers sync.WaitGroup
				for _, v := range append(views[:], views[:]...) {
					readers.Go(func() {
						for {
							select {
							case <-over:
								return
							default:
								read(v)
							}
						}
					})
				}
				for end := time.Now().Add(patience); time.Now().Before(end) && !t.Failed(); {
					redistest.Wait(t.Context(), rand.N(test.pause))
					n := row.Add(1)
					if _, err := deleter.Delete(t.Context(), key); err == nil {
						deleted.Store(n)
					}
					for range 3 {
						read(views[rand.IntN(4)])
					}
				}
				close(over)
				readers.Wait()
			})
			close(done)
			chaos.Wait()
			var sum rediscache.Stats
			for _, c := range caches {
				n := c.Stats()
				sum.Loads, sum.Refused, sum.Sets, sum.Errors = sum.Loads+n.Loads, sum.Refused+n.Refused, sum.Sets+n.Sets, sum.Errors+n.Errors
			}
			t.Logf("%d reads, %d loads, %d stored, %d refused, %d errors", reads.Load(), sum.Loads, sum.Sets, sum.Refused, sum.Errors)
		})
	}
}

// vex breaks and heals a network until done is closed.
func vex(t *testing.T, proxy *redistest.Proxy, done chan struct{}) {
	t.Helper()
	for {
		redistest.Wait(t.Context(), rand.N(50*time.Millisecond))
		switch rand.IntN(5) {
		case 0:
			proxy.Reset()
		case 1:
			proxy.Cut(redistest.Direction(rand.IntN(2)), rand.IntN(2000), true)
		case 2:
			proxy.Blackhole()
		case 3:
			proxy.Refuse()
			proxy.Reset()
		case 4:
			proxy.Delay(redistest.Direction(rand.IntN(2)), rand.N(60*time.Millisecond), time.Millisecond)
		}
		redistest.Wait(t.Context(), rand.N(70*time.Millisecond))
		proxy.Heal()
		select {
		case <-done:
			return
		default:
		}
	}
}
