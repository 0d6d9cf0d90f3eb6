package systest_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

func TestAnOutageIsCheapAndItsEndNeedsNobodyToAsk(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(10, 50)...)
	requireReady(t, p)
	s.Kill()
	before := p.Stats().Dials
	redistest.Eventually(t, func() bool { // a killed server's sockets need not be closed yet
		return errors.Is(ping(context.Background(), p), rediscache.ErrUnavailable)
	}, "the kill is seen")
	calls, worst := hammer(t, p, 100, time.Second)
	dials := p.Stats().Dials - before
	t.Logf("%d calls in the outage, the slowest took %v, %d dials", calls, worst, dials)
	require.LessOrEqual(t, dials, int64(20))
	require.Less(t, worst, 500*time.Millisecond)
	require.Greater(t, calls, int64(2000), "a call does not wait for the next dial to fail")
	_, err := p.GetContext(context.Background())
	systest.RequireDown(t, err)

	s.Restart()
	back := time.Now()
	requireReady(t, p)
	t.Logf("the floor was back after %v", time.Since(back))
	require.Less(t, time.Since(back), 3*time.Second)
	eventuallyClients(t, s, 10)
	for range 200 {
		require.NoError(t, ping(context.Background(), p))
	}
}

// hammer lets n callers ask for a connection again and again for d. None may get one. It returns
// how many calls there were and how long the slowest took.
func hammer(t *testing.T, p *rediscache.WarmPool, n int, d time.Duration) (calls int64, worst time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	late, cancelLate := context.WithTimeout(context.Background(), d+5*time.Second)
	defer cancelLate()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				start := time.Now()
				conn, err := p.GetContext(late)
				took := time.Since(start)
				if !errors.Is(err, rediscache.ErrUnavailable) {
					t.Errorf("in an outage: %v", err)
					_ = conn.Close()
				}
				mu.Lock()
				calls, worst = calls+1, max(worst, took)
				mu.Unlock()
				select { // a caller has something else to do as well
				case <-time.After(time.Millisecond):
				case <-ctx.Done():
				}
			}
		})
	}
	wg.Wait()
	return calls, worst
}

func TestAPoolWithoutAFloorRecoversFromAnOutage(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(0, 5)...)
	require.NoError(t, ping(context.Background(), p))
	s.Kill()
	redistest.Eventually(t, func() bool { // the connection may be the first to fail
		return errors.Is(ping(context.Background(), p), rediscache.ErrUnavailable)
	}, "a dial that failed")
	failures := p.Stats().DialFailures
	redistest.Eventually(t, func() bool { return p.Stats().DialFailures > failures+1 }, "it is looked for with nobody asking")
	s.Restart()
	redistest.Eventually(t, func() bool { return p.Stats().Idle == 1 }, "it is found with nobody asking")
	requireSimultaneous(t, p, 5)
}

// A server that is silent costs a call its timeout only until the lanes and a dial have given it up.
func TestASilentServerIsGivenUpAndThenCallsFailAtOnce(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	pool := newPool(t, s.URL(), rediscache.WithReadTimeout(200*time.Millisecond), rediscache.WithDialTimeout(200*time.Millisecond))
	c := newCache(t, pool, rediscache.WithTimeout(10*time.Second))
	requireReady(t, pool)
	s.Stop()
	began := time.Now()
	_, err := c.Get(t.Context(), "k")
	require.ErrorIs(t, err, rediscache.ErrUnavailable)
	t.Logf("given up after %v: %v", time.Since(began), err)
	require.Less(t, time.Since(began), 5*time.Second)
	began = time.Now()
	const calls = 1000
	for range calls {
		_, err = c.Get(t.Context(), "k")
		require.ErrorIs(t, err, rediscache.ErrUnavailable)
	}
	t.Logf("then %v a call", time.Since(began)/calls)
	require.Less(t, time.Since(began), 5*time.Second, "of the ten that each may take")
	s.Cont()
	redistest.Eventually(t, func() bool {
		_, err = c.Get(t.Context(), "k")
		return errors.Is(err, rediscache.ErrNotFound)
	}, "it is found with nobody asking for a new cache")
}

// The server closes every idle connection: each is looked at before it is lent, so nobody notices.
func TestADeadIdleConnectionIsNotLent(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(10, 10)...)
	requireReady(t, p)
	for range 5 {
		letRest(t)
		s.KillClients()
		requireSimultaneous(t, p, 10)
	}
}

func TestAConnectionWithBytesThatNobodyAskedForIsNotLent(t *testing.T) {
	redistest.NoLeaks(t)
	script := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false })
	p, err := rediscache.NewPool(script.URL(), sizes(1, 1)...)
	require.NoError(t, err)
	defer p.Close()
	requireReady(t, p)
	letRest(t)
	script.Push([]byte("+SURPRISE\r\n"))
	redistest.Eventually(t, func() bool { return p.Stats().Closed.Broken == 1 }, "it was looked at")
	conn := borrowOne(t, p)
	reply, err := conn.Do("PING")
	require.NoError(t, err)
	require.Equal(t, "PONG", reply)
	giveBack(t, conn)
}

// Where the socket is hidden nobody can look at it. One failure is enough to drop them all.
func TestAConnectionThatFailsTakesTheIdleOnesOlderThanItsFailureWithIt(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(5, 5, rediscache.WithHealthCheckAfter(0), rediscache.WithDialFunc(
		func(ctx context.Context) (redis.Conn, error) {
			return redis.DialContext(ctx, "tcp", s.Addr, redis.DialClientName(t.Name()))
		}))...)
	requireReady(t, p)
	s.KillClients()
	require.Error(t, ping(context.Background(), p))
	for range 10 {
		require.NoError(t, ping(context.Background(), p))
	}
	require.EqualValues(t, 5, p.Stats().Closed.Broken)
}

func TestAStoppedServerHoldsNobodyPastTheDeadline(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(5, 10)...)
	requireReady(t, p)
	s.Stop()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			start := time.Now()
			if err := ping(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a stopped server: %v", err)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
	wg.Wait()
	s.Cont()
	requireReady(t, p)
	requireSimultaneous(t, p, 10)
}

func TestAServerThatTakesNoMoreClientsCostsNoSlot(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(0, 8)...)
	s.ConfigSet("maxclients", "4") // one is the admin's
	conns := borrowMany(t, p, 3)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err := p.GetContext(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded, "three may still come back")
	waiting := make(chan error)
	go func() { waiting <- ping(context.Background(), p) }()
	redistest.Eventually(t, func() bool { return p.Stats().Waiting == 1 }, "one waits")
	giveBack(t, conns[0])
	require.NoError(t, <-waiting)

	s.ConfigSet("maxclients", "1000")
	giveBack(t, conns[1:]...)
	requireReady(t, p)
	requireSimultaneous(t, p, 8)
}

func TestAFailedDialSaysWhyAndCostsNoSlot(t *testing.T) {
	const secret = "pa55word"
	var healed atomic.Bool
	panicking := func(s *redistest.Server) rediscache.PoolOption {
		return rediscache.WithDialFunc(func(ctx context.Context) (redis.Conn, error) {
			if !healed.Load() {
				panic("no dial today")
			}
			return redis.DialContext(ctx, "tcp", s.Addr, redis.DialPassword(secret))
		})
	}
	credentials := func(bad func() (string, string, error)) func(*redistest.Server) rediscache.PoolOption {
		return func(*redistest.Server) rediscache.PoolOption {
			return rediscache.WithCredentials(func(context.Context) (string, string, error) {
				if healed.Load() {
					return "", secret, nil
				}
				return bad()
			})
		}
	}
	errVault := errors.New("the vault is shut")
	for name, c := range map[string]struct {
		option func(*redistest.Server) rediscache.PoolOption
		says   string
		is     error
	}{
		"a wrong password": {credentials(func() (string, string, error) { return "", "wr0ng", nil }), "WRONGPASS", nil},
		"no password":      {credentials(func() (string, string, error) { return "", "", nil }), "NOAUTH", nil},
		"no credentials":   {credentials(func() (string, string, error) { return "", "", errVault }), "credentials", errVault},
		"a panic":          {panicking, "no dial today", nil},
	} {
		t.Run(name, func(t *testing.T) {
			healed.Store(false)
			s := poolServer(t, "--requirepass", secret)
			p := startPool(t, s, sizes(2, 5, c.option(s))...)
			for range 3 {
				_, err := p.GetContext(context.Background())
				require.ErrorIs(t, err, rediscache.ErrUnavailable)
				require.ErrorContains(t, err, c.says)
				require.NotContains(t, err.Error(), secret)
				require.NotContains(t, err.Error(), "wr0ng")
				if c.is != nil {
					require.ErrorIs(t, err, c.is)
				}
			}
			healed.Store(true)
			requireReady(t, p)
			requireSimultaneous(t, p, 5)
		})
	}
}

func TestAServerThatIsFullFromTheStartIsToldFromABusyPool(t *testing.T) {
	s := poolServer(t)
	s.ConfigSet("maxclients", "1")
	p := startPool(t, s, sizes(2, 5)...)
	_, err := p.GetContext(context.Background())
	require.ErrorIs(t, err, rediscache.ErrUnavailable)
	require.NotErrorIs(t, err, rediscache.ErrPoolExhausted)
	require.ErrorContains(t, err, "max number of clients")
	s.ConfigSet("maxclients", "1000")
	requireReady(t, p)
	requireSimultaneous(t, p, 5)
}

// Of the first redigo panics, after an AUTH in a goroutine of its own, the second takes all memory and
// the third all stack. In a dial or in the janitor's PING it is a failure.
func TestAReplyThatRedigoDoesNotSurviveEndsAConnectionAndNothingElse(t *testing.T) {
	redistest.Long(t)
	panics := fmt.Sprintf("*%d\r\n", math.MaxInt)
	for name, c := range map[string]struct{ userinfo, reply string }{
		"length":         {"", panics},
		"length to AUTH": {":password@", panics},
		"array":          {"", "*1000000000\r\n"},
		"nesting":        {"", strings.Repeat("*1\r\n", 10_000_000)},
	} {
		t.Run(name, func(t *testing.T) {
			redistest.NoLeaks(t)
			script := redistest.NewScript(t, func(call redistest.Call) ([]byte, bool) {
				if call.Conn == 0 || call.Conn == 1 && call.Name() == "PING" && call.Seq > 1 {
					return []byte(c.reply), false
				}
				return redistest.Default(call), false
			})
			p, err := rediscache.NewPool("redis://"+c.userinfo+script.Addr, sizes(1, 1, rediscache.WithHealthCheckAfter(time.Millisecond))...)
			require.NoError(t, err)
			defer p.Close()
			redistest.Eventually(t, func() bool { return p.Stats().DialFailures == 1 }, "a dial that failed")
			redistest.Eventually(t, func() bool { return p.Stats().Closed.Broken == 1 }, "a connection that failed")
			requireReady(t, p)
			require.NoError(t, ping(context.Background(), p))
			require.Equal(t, 3, script.Accepted())
		})
	}
}

func TestAConnectionThatTheServerRefusesToServeIsReplaced(t *testing.T) {
	for _, refusal := range []string{
		"NOAUTH Authentication required.", "READONLY You can't write against a read only replica.",
		"MASTERDOWN Link with MASTER is down", "ERR max number of clients reached",
	} {
		t.Run(refusal, func(t *testing.T) {
			redistest.NoLeaks(t)
			script := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
				if c.Name() == "SET" && c.Conn == 0 {
					return []byte("-" + refusal + "\r\n"), false
				}
				return redistest.Default(c), false
			})
			p, err := rediscache.NewPool(script.URL(), sizes(1, 1)...)
			require.NoError(t, err)
			defer p.Close()
			conn := borrowOne(t, p)
			_, err = conn.Do("SET", "k", "v")
			require.EqualError(t, err, refusal)
			giveBack(t, conn)
			conn = borrowOne(t, p)
			_, err = conn.Do("SET", "k", "v")
			require.NoError(t, err)
			giveBack(t, conn)
			require.EqualValues(t, 1, p.Stats().Closed.Broken)
		})
	}
}

// That it is a replica, a server says of every write, on new connections too.
func TestAReplicaThatRefusesWritesCostsFewDials(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	s.Do("REPLICAOF", "127.0.0.1", "1")
	for _, conns := range []int{0, rediscache.DefaultPipelineConns} {
		pool := newPool(t, s.URL(), rediscache.WithMinIdle(1))
		c := newCache(t, pool, rediscache.WithPipelineConns(conns), rediscache.WithTimeout(100*time.Millisecond))
		began := time.Now()
		redistest.Together(16, func(int) {
			for time.Since(began) < time.Second {
				err := c.Set(t.Context(), "k", nil, 0)
				if !errors.Is(err, rediscache.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded) { // of a slow machine
					t.Errorf("%v", err)
				}
			}
		})
		dials := pool.Stats().Dials
		t.Logf("%d dials with %d shared connections", dials, conns)
		require.Greater(t, dials, int64(4), "another server may be there by now")
		require.Less(t, dials, int64(16+1+2*20))
	}
}

// redigo allows one goroutine to send while another receives, and both may find the end.
func TestASenderAndAReceiverMayFindTheEndAtOnce(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(0, 1)...)
	for range 20 {
		conn := borrowOne(t, p)
		var wg sync.WaitGroup
		wg.Go(func() {
			for conn.Send("ECHO", "x") == nil && conn.Flush() == nil {
			}
		})
		wg.Go(func() {
			for range 10 {
				_, _ = conn.Receive()
			}
			s.KillClients()
			for {
				if _, err := conn.Receive(); err != nil {
					return
				}
			}
		})
		wg.Wait()
		_ = conn.Close() // says what broke it
	}
	require.NoError(t, ping(context.Background(), p))
	require.EqualValues(t, 20, p.Stats().Closed.Broken)
}

// Two lanes break at once. The lane that replaces the first must not end with the second.
func TestAServerThatStandsStillCostsTheLaneAndNoMore(t *testing.T) {
	redistest.NoLeaks(t)
	var still atomic.Pointer[chan struct{}]
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if until := still.Load(); until != nil {
			select {
			case <-*until:
			case <-c.Done:
			}
		}
		if c.Name() == "GET" {
			return []byte("$-1\r\n"), false
		}
		return redistest.Default(c), false
	})
	pool := newPool(t, "redis://"+s.Addr, rediscache.WithReadTimeout(time.Second))
	require.NoError(t, pool.Ready(t.Context()))
	c := newCache(t, pool, rediscache.WithTimeout(100*time.Millisecond))
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for ctx.Err() == nil {
				_, _ = c.Get(ctx, "k")
			}
		})
	}
	redistest.Eventually(t, func() bool { return pool.Stats().InUse > 0 }, "a lane is in use")
	until := make(chan struct{})
	still.Store(&until)
	redistest.Eventually(t, func() bool { return pool.Stats().Closed.Broken > 0 }, "the lane is given up")
	redistest.Wait(t.Context(), 150*time.Millisecond)
	close(until)
	redistest.Eventually(t, func() bool {
		_, err := c.Get(t.Context(), "k")
		return errors.Is(err, rediscache.ErrNotFound)
	}, "it goes on")
	cancel()
	callers.Wait()
	require.NoError(t, c.Close())
	require.EqualValues(t, 1, pool.Stats().Closed.Broken)
}
