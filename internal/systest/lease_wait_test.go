package systest_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

// commandsOf returns how many commands the server has executed since its counts were reset, without
// those of the test.
func commandsOf(t *testing.T, s *redistest.Server) (n int) {
	t.Helper()
	for name, stat := range s.CommandStats() {
		switch name {
		case "info", "ping", "config|resetstat", "client|list", "client|id":
		default:
			n += stat.Calls
		}
	}
	return n
}

// settlesAt waits until all waits have begun and looks have become rare: until count, which counts
// since the server forgot, is at most limit a second. A slow machine needs some seconds for that, and
// what repeats itself never becomes rare.
func settlesAt(t *testing.T, s *redistest.Server, limit int, count func() int) (perSecond int) {
	t.Helper()
	redistest.Eventually(t, func() bool {
		s.Do("CONFIG", "RESETSTAT")
		since := time.Now()
		eventuallyAfter(t, time.Second)
		perSecond = int(float64(count()) / time.Since(since).Seconds())
		return perSecond <= limit
	}, "at most %d commands a second", limit)
	return perSecond
}

// missed returns how many keys the caches missed.
func missed(caches []*rediscache.Cache) (n int64) {
	for _, c := range caches {
		n += c.Stats().Misses
	}
	return n
}

// eventuallyAfter waits until d has passed.
func eventuallyAfter(t *testing.T, d time.Duration) {
	t.Helper()
	since := time.Now()
	redistest.Eventually(t, func() bool { return time.Since(since) >= d }, "%v pass", d)
}

// Three processes wait for the leases of one load, each with one call for all keys or one call a key.
func TestWaitingForLeasesIsCheap(t *testing.T) {
	redistest.Long(t)
	for name, each := range map[string]int{"one call for all keys": 1, "a call for each key": 100} {
		t.Run(name, func(t *testing.T) {
			redistest.NoLeaks(t)
			s := redistest.Start(t)
			p := rediscache.Policy{Lease: time.Hour}
			holder, _ := systest.Process(t, s, p)
			keys := make([]string, 2000)
			for i := range keys {
				keys[i] = fmt.Sprint("k", i)
			}
			const processes = 3
			var wg sync.WaitGroup
			var ended time.Time
			var delays [processes]time.Duration
			var waiting []*rediscache.Cache
			perSecond := 0
			values, err := holder.GetOrLoadMany(t.Context(), keys, func(ctx context.Context, keys []string) (map[string]int, error) {
				for i := range processes {
					v, c := systest.Process(t, s, p)
					waiting = append(waiting, c)
					wg.Go(func() {
						redistest.Together(each, func(n int) {
							mine := keys
							if each > 1 {
								mine = keys[n : n+1]
							}
							values, err := v.GetOrLoadMany(t.Context(), mine, nil)
							if err != nil || len(values) != len(mine) {
								t.Errorf("%d values, %v", len(values), err)
							}
						})
						delays[i] = time.Since(ended)
					})
				}
				all := int64(processes * len(keys))
				if each > 1 {
					all = int64(processes * each)
				}
				redistest.Eventually(t, func() bool { return missed(waiting) == all }, "they wait")
				// A round every 50 to 100 ms, when each has waited as long as it will between two looks.
				perSecond = settlesAt(t, s, processes*50, func() int { return commandsOf(t, s) })
				values, err := loadTwos(ctx, keys)
				ended = time.Now()
				return values, err
			})
			require.NoError(t, err)
			require.Len(t, values, len(keys))
			wg.Wait()
			t.Logf("%d commands a second while they wait, values after %v", perSecond, delays)
			require.LessOrEqual(t, commandsOf(t, s), len(keys)*15, "each key is filled, and looked at by few commands")
		})
	}
}

// Each caller waits for another load, each in a process of its own.
func TestWaitersForManyLoadsShareTheirLooks(t *testing.T) {
	redistest.Long(t)
	s := redistest.Start(t)
	redistest.NoLeaks(t)
	v, c := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
	const waiters = 500
	for i := range waiters {
		s.Do("SET", systest.LeaseKey("", fmt.Sprint("k", i)), fmt.Sprint("of another ", i))
	}
	var wg sync.WaitGroup
	var served atomic.Int64
	for i := range waiters {
		wg.Go(func() {
			got, err := v.GetOrLoad(t.Context(), fmt.Sprint("k", i), systest.Never[int](t))
			if got != i || err != nil {
				t.Errorf("%d, %v", got, err)
			}
			served.Add(1)
		})
	}
	redistest.Eventually(t, func() bool { return c.Stats().Misses == waiters }, "they wait")
	settlesAt(t, s, 200, func() int { return s.CommandStats()["mget"].Calls })
	require.LessOrEqual(t, s.CommandStats()["set"].Calls, 1, "no caller tries to take a lease that another holds")
	for i := range waiters { // by a Set, which leaves the lease, or as a load does, whose value is there when its lease is not
		s.Do("SET", fmt.Sprint("k", i), i)
		if i%2 == 0 {
			s.Do("DEL", systest.LeaseKey("", fmt.Sprint("k", i)))
		}
	}
	wg.Wait()
	t.Logf("%d commands a second for %d waiters", commandsOf(t, s), waiters)
}

// The key holds an old value during the wait, which does not end the wait.
func TestWaitingWhileAKeyHasAnOldValueIsCheap(t *testing.T) {
	s := redistest.Start(t)
	redistest.NoLeaks(t)
	v, _ := systest.Process(t, s, rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Soft: time.Minute, Lease: time.Hour})
	require.NoError(t, v.Set(t.Context(), "stale", 1))
	s.Advance(time.Hour + time.Minute)
	s.Do("SET", "undecodable", "junk")
	var wg sync.WaitGroup
	for _, key := range []string{"stale", "undecodable"} {
		s.Do("SET", systest.LeaseKey("", key), "another's")
		wg.Go(func() {
			if got, err := v.GetOrLoad(t.Context(), key, systest.Never[int](t)); got != 2 || err != nil {
				t.Errorf("%d, %v", got, err)
			}
		})
	}
	redistest.Eventually(t, func() bool { return s.CommandStats()["mget"].Calls > 0 }, "they wait")
	settlesAt(t, s, 100, func() int { return commandsOf(t, s) })
	for _, key := range []string{"stale", "undecodable"} {
		s.Do("SET", key, "2", "PX", (2 * time.Hour).Milliseconds())
	}
	wg.Wait()
}

func TestTheWaitForOneLeaseIsShort(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		a, _ := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
		b, cb := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
		var slowest time.Duration
		for i := range 20 {
			key := fmt.Sprint("k", i)
			begun, goOn := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				_, err := a.GetOrLoad(t.Context(), key, func(context.Context) (int, error) { close(begun); <-goOn; return i, nil })
				if err != nil {
					t.Error(err)
				}
			})
			<-begun
			var ended time.Time
			wg.Go(func() {
				got, err := b.GetOrLoad(t.Context(), key, systest.Never[int](t))
				if got != i || err != nil {
					t.Errorf("%d, %v", got, err)
				}
				slowest = max(slowest, time.Since(ended))
			})
			redistest.Eventually(t, func() bool { return cb.Stats().Misses == int64(i)+1 }, "it waits")
			ended = time.Now()
			close(goOn)
			wg.Wait()
		}
		t.Logf("the value comes after at most %v", slowest)
	})
}

// A process that died has left leases, and one lease expires before the others.
func TestAWaiterForManyLeasesLoadsTheKeysOfFreeLeases(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		v, c := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
		for _, key := range []string{"a", "b", "c"} {
			s.Do("SET", systest.LeaseKey("", key), "of one load")
		}
		loads := make(chan []string, 3)
		done := make(chan struct{})
		go func() {
			defer close(done)
			values, err := v.GetOrLoadMany(t.Context(), []string{"a", "b", "c"}, func(ctx context.Context, keys []string) (map[string]int, error) {
				loads <- keys
				return loadTwos(ctx, keys)
			})
			if err != nil || len(values) != 3 {
				t.Errorf("%v, %v", values, err)
			}
		}()
		redistest.Eventually(t, func() bool { return c.Stats().Misses == 3 }, "it waits")
		s.Do("DEL", systest.LeaseKey("", "b"))
		require.Equal(t, []string{"b"}, <-loads)
		s.Do("SET", systest.LeaseKey("", "a"), "of another load")
		s.Do("DEL", systest.LeaseKey("", "c"))
		require.Equal(t, []string{"c"}, <-loads)
		s.Do("SET", "a", "7") // by somebody who knows no leases
		<-done
		require.EqualValues(t, 2, c.Stats().Loads)
	})
}

func TestAWaiterWhoseRedisGoesAwayLoadsItself(t *testing.T) {
	s := redistest.Start(t)
	redistest.NoLeaks(t)
	v, c := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
	s.Do("SET", systest.LeaseKey("", "k"), "another's")
	done := make(chan struct{})
	go func() {
		defer close(done)
		got, err := v.GetOrLoad(t.Context(), "k", systest.Returns(7))
		if got != 7 || err != nil {
			t.Errorf("%d, %v", got, err)
		}
	}()
	redistest.Eventually(t, func() bool { return c.Stats().Misses == 1 }, "it waits")
	s.Kill()
	<-done
}

// The Redis user may not run MGET, so the waiter cannot read leases.
func TestAWaiterThatMayNotReadLeasesTriesToTakeThem(t *testing.T) {
	s := redistest.Start(t)
	redistest.NoLeaks(t)
	s.Do("ACL", "SETUSER", "app", "on", ">"+secret, "~*", "+@all", "-mget")
	c := newCache(t, newPool(t, "redis://app:"+secret+"@"+s.Addr))
	v := systest.NewView(t, c, rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour})
	s.Do("SET", systest.LeaseKey("", "k"), "another's")
	requireNoSpin(t, s, c, v)
}

func TestCloseEndsTheWaitForALease(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		v, c := systest.Process(t, s, rediscache.Policy{Lease: time.Hour, TTL: time.Hour, Stale: time.Hour, Soft: time.Hour - time.Minute})
		require.NoError(t, v.Set(t.Context(), "stale", 1))
		s.Advance(time.Hour + time.Minute)
		for _, key := range []string{"k", "m", "stale"} {
			s.Do("SET", systest.LeaseKey("", key), "another's")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // so that a Close that does not end the wait fails the test
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := v.GetOrLoad(ctx, "k", systest.Never[int](t))
			if !isClosedError(err) {
				t.Error(err)
			}
		})
		wg.Go(func() {
			values, err := v.GetOrLoadMany(ctx, []string{"m", "free"}, loadTwos)
			if !isClosedError(err) || values["free"] != 2 {
				t.Errorf("%v, %v", values, err)
			}
		})
		wg.Go(func() {
			got, err := v.GetOrLoad(ctx, "stale", systest.Never[int](t))
			if got != 1 || err != nil {
				t.Errorf("%d, %v", got, err)
			}
		})
		redistest.Eventually(t, func() bool { return c.Stats().Misses == 3 && c.Stats().Sets == 2 }, "they wait")
		letRest(t)
		require.NoError(t, c.Close())
		wg.Wait()
	})
}

func isClosedError(err error) bool { return errors.Is(err, rediscache.ErrClosed) }

// A lease looks free but cannot be taken: here its key holds a list, for which MGET returns nil. Behind
// a proxy MGET may read from a replica that is behind, or return an error for the key.
func TestALeaseThatOnlyLooksFreeIsRetriedRarely(t *testing.T) {
	s := redistest.Start(t)
	redistest.NoLeaks(t)
	v, c := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
	s.Do("RPUSH", systest.LeaseKey("", "k"), "a list")
	requireNoSpin(t, s, c, v)
}

// requireNoSpin calls GetOrLoad of "k", whose lease the call cannot get, and counts the tries of a second.
func requireNoSpin(t *testing.T, s *redistest.Server, c *rediscache.Cache, v *rediscache.View[int]) {
	t.Helper()
	s.Do("CONFIG", "RESETSTAT")
	done := make(chan struct{})
	go func() {
		defer close(done)
		got, err := v.GetOrLoad(t.Context(), "k", systest.Never[int](t))
		if got != 7 || err != nil {
			t.Errorf("%d, %v", got, err)
		}
	}()
	redistest.Eventually(t, func() bool { return c.Stats().Misses == 1 }, "it waits")
	eventuallyAfter(t, time.Second)
	require.LessOrEqual(t, s.CommandStats()["set"].Calls, 60, "it does not spin")
	s.Do("SET", "k", "7")
	<-done
}
