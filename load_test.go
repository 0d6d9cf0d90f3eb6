package rediscache_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
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

func TestAThousandCallersOfAColdKeyShareOneLoad(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		c := newCache(t, newPool(t, s.URL()), unhurried)
		for name, p := range map[string]rediscache.Policy{
			"plain": {}, "lease": {Lease: 10 * time.Second}, "all": {TTL: time.Hour, Stale: time.Hour, Early: 1, Jitter: 0.1, Lease: 10 * time.Second},
		} {
			v := newView(t, c, rediscache.JSON[int](), p)
			var loads atomic.Int64
			before := c.Stats()
			redistest.Together(1000, func(int) {
				got, err := v.GetOrLoad(t.Context(), name, func(context.Context) (int, error) {
					loads.Add(1)
					redistest.Eventually(t, func() bool { return c.Stats().Misses-before.Misses == 1000 }, "all have missed")
					return 7, nil
				})
				if got != 7 || err != nil {
					t.Errorf("%d, %v", got, err)
				}
			})
			require.EqualValues(t, 1, loads.Load(), name)
			after := c.Stats()
			require.EqualValues(t, 1, after.Loads-before.Loads)
			require.EqualValues(t, 1, after.Sets-before.Sets)
			require.LessOrEqual(t, after.Shared-before.Shared, int64(999))
			require.Positive(t, after.Shared-before.Shared, "those that came when it was stored found it")
		}
	})
}

func TestACallerThatLeavesTakesNobodyAlong(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		for _, p := range []rediscache.Policy{{}, {Lease: 10 * time.Second}} {
			s.Flush()
			c := newCache(t, newPool(t, s.URL()), unhurried)
			v := newView(t, c, rediscache.JSON[int](), p)
			first, leave := context.WithCancel(t.Context())
			begun, goOn := make(chan struct{}), make(chan struct{})
			var gone sync.WaitGroup
			gone.Go(func() {
				_, err := v.GetOrLoad(first, "k", func(ctx context.Context) (int, error) {
					close(begun)
					<-goOn
					return 7, ctx.Err()
				})
				if !errors.Is(err, context.Canceled) {
					t.Errorf("the first: %v", err)
				}
			})
			<-begun
			var rest sync.WaitGroup
			for range 100 {
				rest.Go(func() {
					got, err := v.GetOrLoad(t.Context(), "k", never[int](t))
					if got != 7 || err != nil {
						t.Errorf("%d, %v", got, err)
					}
				})
			}
			redistest.Eventually(t, func() bool { return c.Stats().Misses == 101 }, "all have missed")
			runtime.Gosched()
			leave()
			gone.Wait()
			close(goOn)
			rest.Wait()
		}
	})
}

func TestALoadEndsWhenEverybodyHasLeft(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		for _, p := range []rediscache.Policy{{}, {Lease: 10 * time.Second}} {
			s.Flush()
			c := newCache(t, newPool(t, s.URL()), unhurried)
			v := newView(t, c, rediscache.JSON[int](), p)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 10)
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					_, err := v.GetOrLoad(ctx, "k", func(ctx context.Context) (int, error) {
						<-ctx.Done()
						ended <- ctx.Err()
						return 6, nil // a value, but nobody's
					})
					if !errors.Is(err, context.Canceled) {
						t.Errorf("%v", err)
					}
				})
			}
			redistest.Eventually(t, func() bool { return c.Stats().Loads > 0 && c.Stats().Misses == 10 }, "it is loaded")
			cancel()
			wg.Wait()
			require.ErrorIs(t, <-ended, context.Canceled)
			got, err := v.GetOrLoad(t.Context(), "k", returns(7))
			require.NoError(t, err)
			require.Equal(t, 7, got)
			require.NoError(t, c.Close())
			require.NotEqual(t, []byte("6"), s.Do("GET", "k"))
		}
	})
}

func TestAPanicComesUpInEachCallerAndTheKeyWorksAfterwards(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		for _, p := range []rediscache.Policy{{}, {Lease: time.Hour}} {
			s.Flush()
			c := newCache(t, newPool(t, s.URL()), unhurried)
			v := newView(t, c, rediscache.JSON[int](), p)
			var raised, exited atomic.Int64
			for _, way := range []func(){func() { panic(systest.ErrDatabase) }, runtime.Goexit} {
				missed := c.Stats().Misses + 20
				redistest.Together(20, func(i int) {
					returned := false
					defer func() {
						switch r, ok := recover().(*rediscache.PanicError); {
						case ok && errors.Is(r, systest.ErrDatabase) && strings.Contains(string(r.Stack), "load_test.go"):
							raised.Add(1)
						case r == nil && !returned:
							exited.Add(1)
						}
					}()
					load := func(context.Context) (int, error) {
						redistest.Eventually(t, func() bool { return c.Stats().Misses == missed }, "all have missed")
						runtime.Gosched()
						way()
						return 0, nil
					}
					if i%2 == 0 {
						_, _ = v.GetOrLoad(t.Context(), "k", load)
					} else {
						_, _ = v.GetOrLoadMany(t.Context(), []string{"k"}, func(ctx context.Context, _ []string) (map[string]int, error) {
							_, err := load(ctx)
							return nil, err
						})
					}
					returned = true
				})
			}
			require.EqualValues(t, []int64{20, 20}, []int64{raised.Load(), exited.Load()})
			got, err := v.GetOrLoad(t.Context(), "k", returns(7))
			require.NoError(t, err, "at once: no lease is left")
			require.Equal(t, 7, got)
		}
	})
}

func TestALoadMayLoadAnotherKey(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for _, p := range []rediscache.Policy{{}, {Lease: 10 * time.Second}} {
			s.Flush()
			c := newCache(t, newPool(t, s.URL(), rediscache.WithMinIdle(1), rediscache.WithMaxActive(1)))
			v := newView(t, c, rediscache.JSON[int](), p)
			var load func(n int) func(context.Context) (int, error)
			load = func(n int) func(context.Context) (int, error) {
				return func(ctx context.Context) (int, error) {
					if n == 0 {
						return 0, nil
					}
					below, err := v.GetOrLoad(ctx, fmt.Sprint(n-1), load(n-1))
					return below + 1, err
				}
			}
			redistest.Together(50, func(i int) {
				got, err := v.GetOrLoad(t.Context(), fmt.Sprint(i%10), load(i%10))
				if got != i%10 || err != nil {
					t.Errorf("%d, %v", got, err)
				}
			})
		}
	})
}

func TestALoadChoosesTheTTLOrNotToStore(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for _, p := range []rediscache.Policy{{TTL: time.Hour, Stale: time.Minute}, {TTL: time.Hour, Stale: time.Minute, Lease: time.Second}} {
			s.Flush()
			c, ctx := newCache(t, newPool(t, s.URL()), unhurried), t.Context()
			v := newView(t, c, rediscache.JSON[int](), p)
			item := func(key string, i rediscache.Item[int]) (int, error) {
				return v.GetOrLoadItem(ctx, key, func(context.Context) (rediscache.Item[int], error) { return i, nil })
			}
			for ttl, least := range map[time.Duration]time.Duration{
				0: 60 * time.Minute, 2 * time.Hour: 120 * time.Minute, rediscache.NoExpiry: rediscache.NoExpiry,
				time.Millisecond: 59 * time.Second,
			} {
				got, err := item(ttl.String(), rediscache.Item[int]{Value: 7, TTL: ttl})
				require.NoError(t, err)
				require.Equal(t, 7, got)
				left, err := c.TTL(ctx, ttl.String())
				require.NoError(t, err)
				require.GreaterOrEqual(t, left, least, ttl)
				require.LessOrEqual(t, left, max(least, 0)+time.Minute, ttl)
			}
			got, err := item("no", rediscache.Item[int]{Value: 7, NoStore: true})
			require.NoError(t, err)
			require.Equal(t, 7, got)
			_, err = c.Get(ctx, "no")
			require.ErrorIs(t, err, rediscache.ErrNotFound)
			for _, ttl := range []time.Duration{-2, 1, time.Millisecond - 1} {
				_, err = item("bad", rediscache.Item[int]{Value: 7, TTL: ttl})
				require.ErrorContains(t, err, "Item.TTL")
			}
			require.EqualValues(t, 4, s.Do("DBSIZE"), "no lease is left")
			_, err = item("err", rediscache.Item[int]{})
			require.NoError(t, err)
			_, err = v.GetOrLoad(ctx, "fails", fails[int](systest.ErrDatabase))
			require.Equal(t, systest.ErrDatabase, err, "an error is returned as it is")
		}
	})
}

func TestManyKeysAreLoadedInOneCall(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for _, p := range []rediscache.Policy{
			{Negative: time.Minute}, {Negative: time.Minute, TTL: time.Hour, Stale: time.Hour, Lease: 10 * time.Second},
		} {
			s.Flush()
			c, ctx := newCache(t, newPool(t, s.URL()), unhurried), t.Context()
			v := newView(t, c, rediscache.JSON[int](), p)
			require.NoError(t, v.Set(ctx, "hit", 1))
			var asked []string
			load := func(_ context.Context, keys []string) (map[string]int, error) {
				asked = append(asked, keys...)
				return map[string]int{"a": 2, "b}c": 3, "uninvited": 9}, nil
			}
			for range 2 {
				got, err := v.GetOrLoadMany(ctx, []string{"a", "hit", "b}c", "a", "none"}, load)
				require.NoError(t, err)
				require.Equal(t, map[string]int{"hit": 1, "a": 2, "b}c": 3}, got)
			}
			slices.Sort(asked)
			require.Equal(t, []string{"a", "b}c", "none"}, asked, "once")
			require.EqualValues(t, 4, s.Do("DBSIZE"))
			got, err := v.GetOrLoadMany(ctx, []string{"hit", "x", "none"}, func(context.Context, []string) (map[string]int, error) {
				return nil, systest.ErrDatabase
			})
			require.Equal(t, systest.ErrDatabase, err)
			require.Equal(t, map[string]int{"hit": 1}, got, "what could be had")
			got, err = v.GetOrLoadMany(ctx, nil, nil)
			require.NoError(t, err)
			require.Empty(t, got)
		}
	})
}

func TestThousandsOfKeysAreLoadedInOneCall(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for _, p := range []rediscache.Policy{{}, {TTL: time.Hour, Stale: time.Hour, Lease: 10 * time.Second}} {
			s.Flush()
			c := newCache(t, newPool(t, s.URL()), rediscache.WithTimeout(30*time.Second)) // Lua takes its time in miniredis
			v := newView(t, c, rediscache.JSON[int](), p)
			want := make(map[string]int)
			var keys []string
			for i := range 3000 {
				keys = append(keys, fmt.Sprint(i))
				want[fmt.Sprint(i)] = i
			}
			for range 2 {
				got, err := v.GetOrLoadMany(t.Context(), keys, func(_ context.Context, keys []string) (map[string]int, error) {
					require.Len(t, keys, len(want))
					return want, nil
				})
				require.NoError(t, err)
				require.Equal(t, want, got)
			}
			require.EqualValues(t, 1, c.Stats().Loads)
			require.EqualValues(t, len(want), s.Do("DBSIZE"))
		}
	})
}

func TestManyAndSingleLoadsAreShared(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for _, p := range []rediscache.Policy{{}, {Lease: 10 * time.Second}} {
			s.Flush()
			c := newCache(t, newPool(t, s.URL()), unhurried)
			v := newView(t, c, rediscache.JSON[int](), p)
			var loads [10]atomic.Int64
			redistest.Together(200, func(i int) {
				want := map[string]int{}
				var keys []string
				for n := range 4 {
					k := (i + n*n) % 10
					keys = append(keys, fmt.Sprint(k))
					want[fmt.Sprint(k)] = k
				}
				got, err := v.GetOrLoadMany(t.Context(), keys, func(_ context.Context, keys []string) (map[string]int, error) {
					redistest.Eventually(t, func() bool { return c.Stats().Misses == 800 }, "all have missed")
					values := make(map[string]int)
					for _, key := range keys {
						k := int(key[0] - '0')
						loads[k].Add(1)
						values[key] = k
					}
					return values, nil
				})
				if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%v, %v", got, err)
				}
			})
			for k := range loads {
				require.EqualValues(t, 1, loads[k].Load(), "key %d", k)
			}
		}
	})
}

func TestWithoutRedisLoadsGoOnSharedAndCachingResumes(t *testing.T) {
	redistest.Long(t)
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		for _, p := range []rediscache.Policy{{}, {Lease: 10 * time.Second, TTL: time.Hour, Stale: time.Hour}} {
			var log eventLog
			c := newCache(t, newPool(t, s.URL(), rediscache.WithMinIdle(1)), rediscache.WithObserver(&log))
			v := newView(t, c, rediscache.JSON[int](), p)
			require.NoError(t, v.Set(t.Context(), "k", 1))
			s.Kill()
			redistest.Eventually(t, func() bool { return errors.Is(c.Ping(t.Context()), rediscache.ErrUnavailable) }, "Redis is gone")
			before := c.Stats()
			redistest.Together(100, func(int) {
				got, err := v.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) {
					redistest.Eventually(t, func() bool { return c.Stats().Errors-before.Errors >= 100 }, "all have tried")
					redistest.Wait(t.Context(), 100*time.Millisecond) // in which callers join
					return 7, nil
				})
				if got != 7 || err != nil {
					t.Errorf("%d, %v", got, err)
				}
			})
			require.Less(t, c.Stats().Loads-before.Loads, int64(10), "one, one for a caller that has not joined it yet, and one for the callers that came during it")
			require.ErrorIs(t, log.last(t, rediscache.OutcomeError).Err, rediscache.ErrUnavailable)
			many, err := v.GetOrLoadMany(t.Context(), []string{"k", "l"}, func(_ context.Context, keys []string) (map[string]int, error) {
				return map[string]int{"k": len(keys), "l": 8}, nil
			})
			require.NoError(t, err)
			require.Equal(t, map[string]int{"k": 2, "l": 8}, many)
			_, err = v.GetOrLoad(t.Context(), "k", fails[int](systest.ErrDatabase))
			require.Equal(t, systest.ErrDatabase, err)

			s.Restart()
			redistest.Eventually(t, func() bool {
				got, err := v.GetOrLoad(t.Context(), "k", returns(9))
				require.NoError(t, err)
				require.Equal(t, 9, got)
				return c.Stats().Hits > before.Hits
			}, "it is cached again")
		}
	})
}

func TestRedisThatDiesDuringALoadCostsNobodyTheValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for _, p := range []rediscache.Policy{{}, {Lease: 10 * time.Second}} {
			c := newCache(t, newPool(t, s.URL(), rediscache.WithMinIdle(1)))
			v := newView(t, c, rediscache.JSON[int](), p)
			got, err := v.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) { s.Kill(); return 7, nil })
			require.NoError(t, err)
			require.Equal(t, 7, got)
			require.Positive(t, c.Stats().Errors)
			s.Restart()
		}
	})
}

func TestCloseStoresWhatSomebodyWaitsForAndEndsWhatNobodyDoes(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		c, ctx := newCache(t, newPool(t, s.URL()), unhurried), t.Context()
		v := newView(t, c, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour, Stale: time.Hour})
		require.NoError(t, v.Set(ctx, "old", 1))
		s.Advance(time.Hour + time.Minute)
		ended, begun, goOn := make(chan error, 1), make(chan struct{}, 2), make(chan struct{})
		_, err := v.GetOrLoad(ctx, "old", func(ctx context.Context) (int, error) {
			begun <- struct{}{}
			<-ctx.Done()
			ended <- ctx.Err()
			return 0, ctx.Err()
		})
		require.NoError(t, err)
		var wg sync.WaitGroup
		wg.Go(func() {
			got, err := v.GetOrLoad(ctx, "new", func(context.Context) (int, error) { begun <- struct{}{}; <-goOn; return 7, nil })
			if got != 7 || err != nil {
				t.Errorf("%d, %v", got, err)
			}
		})
		<-begun
		<-begun
		wg.Go(func() { _ = c.Close() })
		require.ErrorIs(t, <-ended, context.Canceled)
		close(goOn)
		wg.Wait()
		require.NoError(t, c.Close())
		require.Equal(t, []byte("7"), s.Do("GET", "new"))
	})
}

// Another process holds the lease of b. The value of a is loaded. Its callers get it, and so does a
// caller that gives up waiting for b, with both orders of the keys.
func TestNoKeyWaitsForTheLeaseOfAnotherKey(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		for _, keys := range [][]string{{"a", "b"}, {"b", "a"}} {
			s.Flush()
			v, c := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
			s.Do("SET", systest.LeaseKey("", "b"), "of another process")
			begun, goOn := make(chan struct{}), make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var wg sync.WaitGroup
			wg.Go(func() {
				got, err := v.GetOrLoadMany(ctx, keys, func(_ context.Context, keys []string) (map[string]int, error) {
					if fmt.Sprint(keys) != "[a]" {
						t.Errorf("%q", keys)
					}
					close(begun)
					<-goOn
					return map[string]int{"a": 1}, nil
				})
				if !errors.Is(err, context.Canceled) || fmt.Sprint(got) != "map[a:1]" {
					t.Errorf("many: %v, %v", got, err)
				}
			})
			<-begun
			time.AfterFunc(50*time.Millisecond, func() { close(goOn) }) // the next caller has joined by then, or finds the value
			patience, end := context.WithTimeout(t.Context(), 5*time.Second)
			got, err := v.GetOrLoad(patience, "a", never[int](t))
			end()
			cancel()
			wg.Wait()
			require.NoError(t, err)
			require.Equal(t, 1, got)
			require.NotNil(t, s.Do("GET", systest.LeaseKey("", "b")), "nobody has waited for it")
			require.NoError(t, c.Close())
		}
	})
}

// As TestNoKeyWaitsForTheLeaseOfAnotherKey, but another caller of this process loads b.
func TestACancelledCallerGetsTheValuesThatAreReady(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		for _, p := range []rediscache.Policy{{}, {Lease: time.Hour}} {
			s.Flush()
			v, c := systest.Process(t, s, p)
			begun, goOn := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _ = v.GetOrLoad(t.Context(), "b", func(context.Context) (int, error) { close(begun); <-goOn; return 2, nil })
			})
			<-begun
			for range 10 { // by chance alone half of them hold
				s.Do("DEL", "a", "c")
				ctx, cancel := context.WithCancel(t.Context())
				shared := c.Stats().Shared
				var joiner sync.WaitGroup
				got, err := v.GetOrLoadMany(ctx, []string{"b", "a", "c"}, func(context.Context, []string) (map[string]int, error) {
					joiner.Go(func() {
						defer cancel()
						if got, err := v.GetOrLoadMany(t.Context(), []string{"a", "c"}, nil); err != nil || len(got) != 2 {
							t.Errorf("%v, %v", got, err)
						}
					})
					redistest.Waiting(t, 3, systest.InLoad) // the loader of b, the first caller and its joiner
					return map[string]int{"a": 1, "c": 3}, nil
				})
				joiner.Wait()
				require.EqualValues(t, 2, c.Stats().Shared-shared)
				if !errors.Is(err, context.Canceled) || fmt.Sprint(got) != "map[a:1 c:3]" {
					t.Errorf("%v, %v", got, err)
				}
			}
			close(goOn)
			wg.Wait()
		}
	})
}

// scrambler is JSON with a cipher that works in place, as some do. After Decode its input is junk.
type scrambler struct{ t *testing.T }

func scramble(data []byte) {
	for i := range data {
		data[i] ^= 0x5a
	}
}

func (scrambler) Encode(value int) ([]byte, error) {
	data, err := json.Marshal(value)
	scramble(data)
	return data, err
}

func (s scrambler) Decode(data []byte) (value int, err error) {
	scramble(data)
	if bytes.Equal(data, []byte("junk")) {
		return 0, errors.New("junk")
	}
	if err = json.Unmarshal(data, &value); err != nil {
		s.t.Errorf("decoded twice: %q", data)
	}
	copy(data, "0123456789")
	return value, err
}

func TestACodecMayDecodeInPlace(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		stored := func(n int) []byte {
			data, err := scrambler{}.Encode(n)
			require.NoError(t, err)
			return data
		}
		junk := []byte("junk")
		scramble(junk)
		for name, p := range map[string]rediscache.Policy{
			"plain": {}, "lease": {Lease: time.Hour},
			"stale": {TTL: time.Hour, Stale: time.Hour},
			"all":   {TTL: time.Hour, Stale: time.Hour, Lease: time.Hour, Soft: time.Minute, Negative: time.Minute},
			"early": {TTL: time.Hour, Stale: time.Hour, Lease: time.Hour, Early: 1e9},
		} {
			t.Run(name, func(t *testing.T) {
				s.Flush()
				c := newCache(t, newPool(t, s.URL()), unhurried)
				v := newView[int](t, c, scrambler{t}, p)
				v.SetLoadTime(time.Second)
				asks := func(want int, load func(context.Context) (int, error)) {
					t.Helper()
					got, err := v.GetOrLoad(t.Context(), "k", load)
					require.NoError(t, err)
					require.Equal(t, want, got)
				}
				holds := func(n int) {
					t.Helper()
					redistest.Eventually(t, func() bool {
						held, _ := s.Do("GET", "k").([]byte)
						return bytes.Equal(held, stored(n)) && s.Do("EXISTS", systest.LeaseKey("", "k")) == int64(0)
					}, "it is stored")
				}
				asks(1111, returns(1111))
				holds(1111)
				s.Do("SET", "k", junk)
				asks(2222, returns(2222))
				holds(2222)
				if p.Early > 0 { // and so a load in the background
					asks(2222, returns(3333))
					holds(3333)
				}
				if p.Stale > 0 {
					s.Do("SET", "k", stored(4444), "PX", (30 * time.Minute).Milliseconds())
					var loads atomic.Int64
					for range 5 {
						asks(4444, func(context.Context) (int, error) { loads.Add(1); return 0, systest.ErrDatabase })
						redistest.Eventually(t, func() bool { return loads.Load() == 1 && s.Do("EXISTS", systest.LeaseKey("", "k")) == int64(0) },
							"once until the back-off is over")
					}
					v.SetBackoff(0)
					v = newView[int](t, c, scrambler{t}, p)
					got, err := v.GetOrLoad(t.Context(), "k", returns(5555))
					require.NoError(t, err)
					require.Contains(t, []int{4444, 5555}, got)
					holds(5555)
				}
				many, err := v.GetOrLoadMany(t.Context(), []string{"k", "l"}, func(_ context.Context, keys []string) (map[string]int, error) {
					return map[string]int{"k": 6666, "l": 6666}, nil
				})
				require.NoError(t, err)
				require.Len(t, many, 2)
				require.Zero(t, c.Stats().Refused)
			})
		}
	})
}

// A load in the background has no caller that could panic. Its panic must not end the process.
func TestAPanicOfALoadInTheBackgroundIsAnEvent(t *testing.T) {
	eachStale(t, func(t *testing.T, s *redistest.Server, _ *rediscache.Cache, p rediscache.Policy) {
		var failed atomic.Int64
		var where atomic.Value // which part of a load panics
		where.Store("")
		explode := func(part string) {
			if where.Load() == part {
				where.Store("")
				panic("of the " + part)
			}
		}
		c := newCache(t, newPool(t, s.URL()), rediscache.WithObserver(rediscache.ObserverFunc(func(_ context.Context, e rediscache.Event) {
			if e.Op == "load" {
				if e.Err != nil && strings.Contains(e.Err.Error(), "panicked or ended its goroutine") {
					failed.Add(1)
				}
				explode("observer")
			}
		})))
		for i, part := range []string{"load", "exit", "codec", "observer"} {
			v := newView[int](t, c, exploding{rediscache.JSON[int](), explode}, p)
			where.Store(part)
			got, err := v.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) {
				explode("load")
				if part == "exit" {
					where.Store("")
					runtime.Goexit()
				}
				return 2, nil
			})
			require.NoError(t, err)
			require.Equal(t, 1, got)
			redistest.Eventually(t, func() bool { return c.Stats().Loads == int64(i+1) && where.Load() == "" }, "the %s panics", part)
			redistest.Eventually(t, func() bool { return s.Do("EXISTS", systest.LeaseKey("", "k")) == int64(0) }, "its lease is ended")
		}
		require.EqualValues(t, 2, failed.Load(), "an observer is given the panic and the exit of the load")
		require.Equal(t, []byte("1"), s.Do("GET", "k"))
		v := newView(t, c, rediscache.JSON[int](), p)
		_, err := v.GetOrLoad(t.Context(), "k", returns(2))
		require.NoError(t, err)
		redistest.Eventually(t, func() bool { return string(s.Do("GET", "k").([]byte)) == "2" }, "the next load is stored")
	})
}

// exploding panics in Encode.
type exploding struct {
	rediscache.Codec[int]
	explode func(part string)
}

func (e exploding) Encode(value int) ([]byte, error) {
	e.explode("codec")
	return e.Codec.Encode(value)
}
