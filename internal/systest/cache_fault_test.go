package systest_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
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

// rest waits until a pool has its floor and nothing is being dialled or closed.
func rest(t *testing.T, p *rediscache.WarmPool, floor int) {
	t.Helper()
	redistest.Eventually(t, func() bool {
		s := p.Stats()
		return s.Idle >= floor && s.Open == s.Idle+s.InUse
	}, "the pool is at rest")
}

func TestAWriteThatWasNotSentIsSentElsewhere(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false })
	proxy := redistest.NewProxy(t, s.Addr)
	pool := newPool(t, "redis://"+proxy.Addr, rediscache.WithMinIdle(1))
	c := newCache(t, pool)
	for n := range 20 {
		require.NoError(t, c.Ping(t.Context()))
		rest(t, pool, 1) // or a dial might be reset
		proxy.Reset()    // now each write to what was open fails
		require.NoError(t, c.Set(t.Context(), "k", nil, 0))
		require.Equal(t, n+1, s.Count("SET"))
	}
}

func TestAConnectionThatRestsAndThatTheServerClosesLosesNoWrite(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	certs := redistest.NewCerts(t)
	answer := func(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false }
	for name, s := range map[string]*redistest.Script{
		"redis":  redistest.NewScript(t, answer),
		"rediss": redistest.NewScriptTLS(t, &tls.Config{Certificates: []tls.Certificate{certs.Server.Pair}}, answer),
	} {
		t.Run(name, func(t *testing.T) {
			var opts []rediscache.PoolOption
			if name == "rediss" {
				opts = append(opts, rediscache.WithTLSConfig(certs.ClientConfig()))
			}
			pool := newPool(t, name+"://"+s.Addr, opts...)
			c := newCache(t, pool)
			for n := range 10 {
				require.NoError(t, c.Set(t.Context(), "k", nil, 0))
				rest(t, pool, rediscache.DefaultMinIdle) // or a dial might be cut off
				// The lane looks at its connection after 20 ms without a call, which its clock may
				// count late, and returns it after a second.
				time.Sleep(200 * time.Millisecond)
				s.HangUp()
				require.NoError(t, c.Set(t.Context(), "k", nil, 0))
				require.Equal(t, 2*n+2, s.Count("SET"))
			}
		})
	}
}

func TestALaneWithoutProgressIsReplaced(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	proxy := redistest.NewProxy(t, s.Addr)
	pool := newPool(t, "redis://"+proxy.Addr, rediscache.WithReadTimeout(500*time.Millisecond),
		rediscache.WithHealthCheckAfter(time.Minute))
	c := newCache(t, pool, rediscache.WithTimeout(0))
	require.NoError(t, c.Ping(t.Context()))
	proxy.Blackhole()
	require.ErrorIs(t, c.Set(t.Context(), "k", nil, 0), rediscache.ErrOutcomeUnknown)
	proxy.Heal()
	redistest.Eventually(t, func() bool { return c.Ping(t.Context()) == nil }, "it is replaced")
}

func TestRefusalsAreTriedAgainInsideTheDeadline(t *testing.T) {
	redistest.Long(t)
	for _, refusal := range []string{
		"LOADING Redis is loading the dataset in memory", "READONLY You can't write against a read only replica.",
		"MASTERDOWN Link with MASTER is down", "CLUSTERDOWN The cluster is down", "TRYAGAIN Multiple keys request",
	} {
		t.Run(strings.Fields(refusal)[0], func(t *testing.T) {
			redistest.NoLeaks(t)
			var left atomic.Int64
			s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
				if c.Name() != "PING" && left.Add(-1) >= 0 {
					return []byte("-" + refusal + "\r\n"), false
				}
				return redistest.Default(c), false
			})
			for _, conns := range []int{0, 1} {
				pool := newPool(t, s.URL(), rediscache.WithMinIdle(1))
				c := newCache(t, pool, rediscache.WithPipelineConns(conns), rediscache.WithTimeout(time.Second))
				left.Store(3)
				require.NoError(t, c.Set(t.Context(), "k", nil, 0), "it is over after three")
				left.Store(1 << 30)
				before := s.Count("SET")
				err := c.Set(t.Context(), "k", nil, 0)
				require.ErrorIs(t, err, rediscache.ErrUnavailable)
				require.NotErrorIs(t, err, rediscache.ErrOutcomeUnknown)
				require.NotErrorIs(t, err, context.DeadlineExceeded, "it is given up in time")
				require.ErrorContains(t, err, refusal)
				require.Less(t, s.Count("SET")-before, 40, "the pauses grow")
				require.NoError(t, c.Close())
				require.NoError(t, pool.Close())
			}
		})
	}
}

func TestACallerThatLeavesWhileRedisRefusesHearsOfItsContextToo(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" {
			return []byte("-LOADING wait\r\n"), false
		}
		return redistest.Default(c), false
	})
	c := newCache(t, newPool(t, s.URL()), rediscache.WithTimeout(time.Minute))
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan error)
	go func() {
		_, err := c.Get(ctx, "k")
		heard <- err
	}()
	redistest.Eventually(t, func() bool { return s.Count("GET") > 1 }, "it has heard of it")
	cancel()
	err := <-heard
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, rediscache.ErrUnavailable)
	require.ErrorContains(t, err, "LOADING")
}

func TestTheTimeoutBoundsAllTries(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	for _, conns := range []int{0, 2} {
		for _, size := range []int{1, 100 << 10} {
			s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
				if c.Name() == "SET" {
					time.Sleep(150 * time.Millisecond) // of the server
					return []byte("-LOADING wait\r\n"), false
				}
				return redistest.Default(c), false
			})
			c := newCache(t, newPool(t, s.URL()), rediscache.WithPipelineConns(conns), rediscache.WithTimeout(200*time.Millisecond))
			require.Error(t, c.Set(t.Context(), "k", make([]byte, size), 0))
			require.LessOrEqual(t, s.Count("SET"), 2, "%d connections, %d bytes", conns, size)
		}
	}
}

func TestNothingMoreIsSentOfManyAfterOneThatIsTooLate(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "SET" || c.Name() == "MGET" || c.Name() == "PTTL" {
			return nil, false
		}
		return redistest.Default(c), false
	})
	c := newCache(t, newPool(t, s.URL()), rediscache.WithTimeout(500*time.Millisecond))
	for _, test := range []struct{ n, size, sent int }{{2000, 1, 512}, {5, 100 << 10, 1}} {
		before := s.Count("SET")
		items := map[string][]byte{}
		for i := range test.n {
			items[fmt.Sprint(i)] = make([]byte, test.size)
		}
		err := c.SetMany(t.Context(), items, 0)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, rediscache.ErrOutcomeUnknown)
		require.LessOrEqual(t, s.Count("SET")-before, test.sent)
	}
	v := systest.NewView(t, c, rediscache.Bytes(), rediscache.Policy{TTL: time.Hour, Stale: time.Hour})
	keys := make([]string, 2000)
	for i := range keys {
		keys[i] = fmt.Sprint(i)
	}
	loaded := 0
	values, err := v.GetOrLoadMany(t.Context(), keys, func(_ context.Context, keys []string) (map[string][]byte, error) {
		loaded = len(keys)
		return map[string][]byte{"0": []byte("v")}, nil
	})
	require.NoError(t, err)
	require.Len(t, values, 1, "Redis is not asked for them, the source is")
	require.Equal(t, len(keys), loaded)
	require.Less(t, s.Count("PTTL"), 512)
	s.HangUp()
}

func TestATimeoutMayBeForEver(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" {
			time.Sleep(60 * time.Millisecond) // of the server
		}
		return redistest.Default(c), false
	})
	for _, conns := range []int{0, 2} {
		pool := newPool(t, s.URL(), rediscache.WithReadTimeout(math.MaxInt64))
		c := newCache(t, pool, rediscache.WithTimeout(math.MaxInt64), rediscache.WithPipelineConns(conns))
		_, err := c.Get(t.Context(), "k")
		require.ErrorIs(t, err, rediscache.ErrNotFound)
	}
}

// They wait together, once for all of them.
func TestManyThatAreRefusedTogetherAreTriedAgainTogether(t *testing.T) {
	redistest.NoLeaks(t)
	for _, conns := range []int{0, 2} {
		const n = 500
		var left atomic.Int64
		s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
			if c.Name() == "SET" && left.Add(-1) >= 0 {
				return []byte("-LOADING wait\r\n"), false
			}
			return redistest.Default(c), false
		})
		c := newCache(t, newPool(t, s.URL()), rediscache.WithPipelineConns(conns))
		items := map[string][]byte{}
		for i := range n {
			items[fmt.Sprint(i)] = nil
		}
		left.Store(4 * n) // four rounds; one call after another would need as many pauses for each
		require.NoError(t, c.SetMany(t.Context(), items, 0))
		require.Equal(t, 5*n, s.Count("SET"))
		require.EqualValues(t, n, c.Stats().Sets)
	}
}

func TestAnAnswerOfNoUseRetiresTheConnection(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" && c.Conn < 3 {
			return []byte("-NOAUTH Authentication required.\r\n"), false
		}
		return redistest.Default(c), false
	})
	c := newCache(t, newPool(t, s.URL(), rediscache.WithMinIdle(1)))
	redistest.Eventually(t, func() bool {
		_, err := c.Get(t.Context(), "k")
		return errors.Is(err, rediscache.ErrNotFound)
	}, "a new connection does better")
}

func TestAReplyThatNobodyAskedForReachesNobody(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" {
			return fmt.Appendf(nil, "$%d\r\n%s\r\n$5\r\nintru\r\n", len(c.Args[1]), c.Args[1]), false
		}
		return redistest.Default(c), false
	})
	c := newCache(t, newPool(t, s.URL(), rediscache.WithMinIdle(1)))
	for i := range 50 {
		key := fmt.Sprint("key", i)
		got, err := c.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, key, string(got))
	}
}

func TestACallThatLeavesBeforeItIsSentIsNeverSent(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false })
	pool := newPool(t, s.URL(), rediscache.WithMinIdle(0), rediscache.WithMaxActive(1))
	c := newCache(t, pool)
	held, err := pool.GetContext(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err = c.Set(ctx, "k", nil, 0)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, rediscache.ErrPoolExhausted)
	require.NotErrorIs(t, err, rediscache.ErrOutcomeUnknown, "it was not sent, and the error says so")
	require.NoError(t, held.Close())
	require.NoError(t, c.Ping(t.Context()))
	require.Zero(t, s.Count("SET"))
}

// TestAValueMayChangeOnceSetHasReturned is for the race detector.
func TestAValueMayChangeOnceSetHasReturned(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	for name, way := range pools {
		c := newCache(t, way.Open(t, s), way.Opts...)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				value := make([]byte, 1000)
				for range 50 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(300))*time.Microsecond)
					_ = c.Set(ctx, "k", value, 0)
					cancel()
					for i := range value {
						value[i]++
					}
				}
			})
		}
		wg.Wait()
		require.NoError(t, c.Close(), name)
	}
}

func TestAPoolUnderLanesKeepsItsRules(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	pool := newPool(t, s.URL(), rediscache.WithMinIdle(1), rediscache.WithMaxActive(2))
	c := newCache(t, pool, unhurried)
	var done atomic.Bool
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for !done.Load() {
				if err := c.Ping(t.Context()); err != nil && !errors.Is(err, rediscache.ErrClosed) {
					t.Errorf("ping: %v", err)
				}
			}
		})
	}
	for range 20 { // borrowers get their turn although the lanes never rest
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		conn, err := pool.GetContext(ctx)
		require.NoError(t, err)
		_, err = conn.Do("PING")
		require.NoError(t, err)
		require.NoError(t, conn.Close())
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, pool.Shutdown(ctx), "the lanes hand their connections back")
	done.Store(true)
	wg.Wait()
	require.ErrorIs(t, c.Ping(t.Context()), rediscache.ErrClosed)
	require.Zero(t, pool.Stats().Open)
}

// A reply of a large value that nobody knew of makes the reads behind it go
// elsewhere, where the same may happen. The values are too many to be known all.
func TestManyLargeValuesFailNoReadOfASmallOne(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	c := newCache(t, newPool(t, s.URL()), rediscache.WithTimeout(30*time.Second))
	const known = 300
	items := map[string][]byte{"small": []byte("s")}
	large := make([]byte, 300<<10)
	for i := range known {
		items[fmt.Sprint(i)] = large
	}
	require.NoError(t, c.SetMany(t.Context(), items, 0))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	var wg sync.WaitGroup
	ask := func(n int, key func() string) {
		for range n {
			wg.Go(func() {
				for ctx.Err() == nil {
					key := key()
					got, err := c.Get(t.Context(), key)
					if err != nil || len(got) != len(items[key]) {
						t.Errorf("%s: %d bytes, %v", key, len(got), err)
						return
					}
				}
			})
		}
	}
	ask(16, func() string { return "small" })
	ask(4, func() string { return fmt.Sprint(rand.N(known)) })
	wg.Wait()
}

func TestALaneThatRestsHandsItsConnectionBack(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	pool := newPool(t, redistest.Start(t).URL())
	c := newCache(t, pool)
	began := time.Now()
	require.NoError(t, c.Ping(t.Context()))
	redistest.Eventually(t, func() bool { return pool.Stats().InUse == 0 }, "it is handed back")
	require.Less(t, time.Since(began), 4*time.Second, "after a second of rest, not after the five that it may be held")
}

func TestCloseFinishesWhatIsInFlight(t *testing.T) {
	redistest.NoLeaks(t)
	t.Run("on lanes", func(t *testing.T) { testClose(t, 1, 0) })
	t.Run("large values", func(t *testing.T) { testClose(t, 100<<10, 4) })
	t.Run("a connection for each", func(t *testing.T) { testClose(t, 1, 4, rediscache.WithPipelineConns(0)) })
}

// testClose has 8 callers, of whom so many wait for a connection.
func testClose(t *testing.T, size, waiting int, opts ...rediscache.Option) {
	release := make(chan struct{})
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "SET" {
			select {
			case <-release:
			case <-c.Done:
			}
		}
		return redistest.Default(c), false
	})
	pool := newPool(t, s.URL(), rediscache.WithMinIdle(1), rediscache.WithMaxActive(4))
	c := newCache(t, pool, append(opts, rediscache.WithTimeout(0))...)
	sets, closed := make(chan error, 8), make(chan struct{})
	for range cap(sets) {
		go func() { sets <- c.Set(t.Context(), "k", make([]byte, size), 0) }()
	}
	redistest.Eventually(t, func() bool { return s.Count("SET") > 0 }, "a set is under way")
	redistest.Eventually(t, func() bool { return pool.Stats().InUse > 0 }, "on a connection")
	redistest.Eventually(t, func() bool { return pool.Stats().Waiting == waiting }, "%d wait", waiting)
	go func() { c.Close(); close(closed) }()
	redistest.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		return errors.Is(c.Ping(ctx), rediscache.ErrClosed)
	}, "no new calls")
	select {
	case <-closed:
		t.Error("Close did not wait")
	default:
	}
	for range waiting {
		require.ErrorIs(t, <-sets, rediscache.ErrClosed, "they wait no longer")
	}
	close(release)
	applied := 0
	for range cap(sets) - waiting {
		if err := <-sets; err == nil {
			applied++
		} else {
			require.ErrorIs(t, err, rediscache.ErrClosed)
		}
	}
	<-closed
	require.Positive(t, applied)
	require.Equal(t, s.Count("SET"), applied, "what was sent was answered")
	require.Zero(t, pool.Stats().InUse)
}
