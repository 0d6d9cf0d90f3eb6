package systest_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
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

// A caller that comes after a Delete in another process joins a load that began
// before, and does not get what that found.
func TestACallerAfterADeleteElsewhereGetsNoOldValue(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		p := rediscache.Policy{Lease: 10 * time.Second}
		a, ca := systest.Process(t, s, p)
		b, _ := systest.Process(t, s, p)
		for name, deleter := range map[string]*rediscache.View[int]{"elsewhere": b, "here": a} {
			s.Flush()
			before := ca.Stats().Misses
			begun, goOn := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				got, err := a.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) { close(begun); <-goOn; return 1, nil })
				if got != 1 || err != nil {
					t.Errorf("who came before: %d, %v", got, err)
				}
			})
			<-begun
			_, err := deleter.Delete(t.Context(), "k")
			require.NoError(t, err)
			for range 20 {
				wg.Go(func() {
					got, err := a.GetOrLoad(t.Context(), "k", systest.Returns(2))
					if got != 2 || err != nil {
						t.Errorf("%s: who came after: %d, %v", name, got, err)
					}
					many, err := a.GetOrLoadMany(t.Context(), []string{"k"}, nil)
					if many["k"] != 2 || err != nil {
						t.Errorf("%s: who came after: %v, %v", name, many, err)
					}
				})
			}
			redistest.Eventually(t, func() bool { return ca.Stats().Misses-before >= 2 }, "they come")
			close(goOn)
			wg.Wait()
		}
	})
}

// Where there is no lease a process does as much for itself.
func TestACallerAfterADeleteJoinsNoOlderLoad(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for key, p := range map[string]rediscache.Policy{"k": {}, "a}b": {}} {
			v, _ := systest.Process(t, s, p)
			begun, goOn := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _ = v.GetOrLoad(t.Context(), key, func(context.Context) (int, error) { close(begun); <-goOn; return 1, nil })
			})
			<-begun
			_, err := v.Delete(t.Context(), key)
			require.NoError(t, err)
			got, err := v.GetOrLoad(t.Context(), key, systest.Returns(2))
			require.NoError(t, err)
			require.Equal(t, 2, got)
			close(goOn)
			wg.Wait()
		}
	})
}

// Another process deletes a value while the reply to its fill is still in flight. A caller
// that comes then must not join that load.
func TestNobodyJoinsALoadThatIsBeingStored(t *testing.T) {
	redistest.Long(t)
	s := redistest.Start(t)
	proxy := redistest.NewProxy(t, s.Addr)
	p := rediscache.Policy{Lease: 10 * time.Second}
	c := newCache(t, newPool(t, "redis://"+proxy.Addr), rediscache.WithPipelineConns(0)) // so that one reply does not hold up another
	a := systest.NewView(t, c, rediscache.JSON[int](), p)
	b, _ := systest.Process(t, s, p)
	require.NoError(t, c.Ping(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() {
		got, err := a.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) {
			proxy.Delay(redistest.Down, 500*time.Millisecond, 0)
			return 1, nil
		})
		if got != 1 || err != nil {
			t.Errorf("%d, %v", got, err)
		}
	})
	redistest.Eventually(t, func() bool { return s.Do("EXISTS", "k") == int64(1) }, "it is filled")
	proxy.Delay(redistest.Down, 0, 0)
	_, err := b.Delete(t.Context(), "k")
	require.NoError(t, err)
	got, err := a.GetOrLoad(t.Context(), "k", systest.Returns(2))
	require.NoError(t, err)
	require.Equal(t, 2, got)
	wg.Wait()
}

// A database whose row is written and whose cached value is then deleted, while
// four processes load it. Whatever is found after a Delete has returned, in Redis
// or by a load, is at least as new as what was written before. 10,000 rounds on a
// real server; 1,000 with -short or with the race detector.
func TestAnOldValueIsNeverFoundAfterItsDelete(t *testing.T) {
	redistest.Long(t)
	s := redistest.Start(t)
	redistest.NoLeaks(t)
	rounds := 10_000
	if testing.Short() || redistest.RaceEnabled {
		rounds = 1000
	}
	// Always early: values are loaded while there are some.
	p := rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Early: 1e9, Lease: 2 * time.Second}
	var views [4]*rediscache.View[int]
	var caches [4]*rediscache.Cache
	for i := range views {
		views[i], caches[i] = systest.Process(t, s, p)
	}
	const keys = 4 // at once
	redistest.Together(keys, func(k int) {
		key := fmt.Sprint("k", k)
		var row atomic.Int64 // the database
		load := func(context.Context) (int, error) {
			n := int(row.Load())
			redistest.Wait(t.Context(), rand.N(300*time.Microsecond))
			return n, nil
		}
		done := make(chan struct{})
		var loaders sync.WaitGroup
		for _, v := range views {
			loaders.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					_, _ = v.GetOrLoad(t.Context(), key, load)
					spin(rand.IntN(20))
				}
			})
		}
		for n := 1; n <= rounds/keys; n++ {
			redistest.Wait(t.Context(), rand.N(300*time.Microsecond))
			row.Store(int64(n))
			deleter, reader := views[rand.IntN(4)], views[rand.IntN(4)]
			if _, err := deleter.Delete(t.Context(), key); err != nil {
				t.Errorf("delete: %v", err)
			}
			for range 3 {
				if held, err := reader.Get(t.Context(), key); err == nil && held < n {
					t.Errorf("%s holds %d after the Delete of %d", key, held, n)
				}
				if got, err := reader.GetOrLoad(t.Context(), key, load); err != nil || got < n {
					t.Errorf("%s: %d, %v after the Delete of %d", key, got, err, n)
				}
				spin(rand.IntN(20))
			}
			if t.Failed() {
				break
			}
		}
		close(done)
		loaders.Wait()
	})
	var sum rediscache.Stats
	for _, c := range caches {
		n := c.Stats()
		sum.Loads, sum.Refused, sum.Sets = sum.Loads+n.Loads, sum.Refused+n.Refused, sum.Sets+n.Sets
	}
	t.Logf("%d loads, %d stored, %d refused", sum.Loads, sum.Sets, sum.Refused)
	require.Positive(t, sum.Refused)
	require.Positive(t, sum.Sets)
}

// spin lets others go on for a while, of which n says how long.
func spin(n int) {
	for range n {
		runtime.Gosched()
	}
}

// Between the two commands anybody's may come. A fill there must find no lease;
// if the key went first it would find one, and store.
func TestADeleteDropsTheLeaseBeforeTheKey(t *testing.T) {
	var mu sync.Mutex // guards deleted
	var deleted []string
	server := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "DEL" {
			mu.Lock()
			defer mu.Unlock()
			deleted = append(deleted, strings.Join(c.Args[1:], " "))
		}
		return redistest.Default(c), false
	})
	v := systest.NewView(t, newCache(t, newPool(t, server.URL()), rediscache.WithPrefix("p:")), rediscache.JSON[int](), rediscache.Policy{Lease: time.Second})
	_, err := v.Delete(t.Context(), "a", "b")
	require.NoError(t, err)
	require.Equal(t, []string{systest.LeaseKey("p:", "a") + " " + systest.LeaseKey("p:", "b"), "p:a p:b"}, deleted)

	deleted = nil
	keys := make([]string, 3000) // the names of their leases are a large command, they are not
	for i := range keys {
		keys[i] = fmt.Sprint(i)
	}
	_, err = v.Delete(t.Context(), keys...)
	require.NoError(t, err)
	require.Len(t, deleted, 2)
	require.Greater(t, len(deleted[0]), 64<<10)
	require.True(t, strings.HasPrefix(deleted[0], systest.LeaseKey("p:", "0")))
	require.True(t, strings.HasPrefix(deleted[1], "p:0 p:1"))
}

// Each retry deletes the leases and then the keys, so a key is never deleted before its lease.
func TestADeleteIsRetriedTogetherWithItsLeases(t *testing.T) {
	const later, never, done = "-LOADING wait", "-NOPERM No permissions to access a key", ":1"
	lease := systest.LeaseKey("", "k")
	for _, conns := range []int{0, 2} {
		var mu sync.Mutex // guards both
		var replies, seen []string
		var heard systest.ErrorsOf
		server := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
			if c.Name() != "DEL" {
				return redistest.Default(c), false
			}
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, c.Args[1])
			reply := replies[0]
			replies = replies[1:]
			return []byte(reply + "\r\n"), false
		})
		c := newCache(t, newPool(t, server.URL()), rediscache.WithPipelineConns(conns), rediscache.WithObserver(&heard))
		del := func(answers ...string) (int, error) {
			replies, seen = answers, nil
			n, err := c.Delete(t.Context(), "k")
			require.Len(t, seen, len(answers))
			for i, name := range seen {
				require.Equal(t, []string{lease, "k"}[i%2], name)
			}
			return n, err
		}
		n, err := del(later, later, done, later, done, done)
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.NoError(t, heard.Take())

		_, err = del(later, done)
		require.ErrorIs(t, err, rediscache.ErrOutcomeUnknown, "the key is deleted, and a load may undo that")
		_, err = del(done, never)
		require.ErrorContains(t, err, "NOPERM")
		require.NotErrorIs(t, err, rediscache.ErrOutcomeUnknown, "the key is not deleted")
		_ = heard.Take()

		for _, news := range []string{"NOPERM", ""} {
			n, err = del(never, done)
			require.NoError(t, err)
			require.Equal(t, 1, n)
			if err := heard.Take(); news == "" {
				require.NoError(t, err, "it was said once")
			} else {
				require.ErrorContains(t, err, news)
			}
		}
	}
}
