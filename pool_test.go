package rediscache_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

var (
	poolServer          = systest.PoolServer
	startPool           = systest.StartPool
	startPoolAt         = systest.StartPoolAt
	sizes               = systest.Sizes
	eventuallyClients   = systest.EventuallyClients
	clientIDs           = systest.ClientIDs
	requireReady        = systest.RequireReady
	borrowOne           = systest.BorrowOne
	borrowMany          = systest.BorrowMany
	giveBack            = systest.GiveBack
	requireSimultaneous = systest.RequireSimultaneous
	letRest             = systest.LetRest
	ping                = systest.Ping
)

func TestAPoolStartsWithExactlyItsFloor(t *testing.T) {
	s := poolServer(t)
	before := s.TotalConnections()
	p := startPool(t, s)
	requireReady(t, p)
	require.Len(t, s.Clients(t.Name()), rediscache.DefaultMinIdle)
	require.Equal(t, rediscache.DefaultMinIdle, s.TotalConnections()-before)
	require.Equal(t, rediscache.PoolStats{Open: 10, Idle: 10, Dials: 10}, p.Stats())
}

func TestReadyReturnsTheCauseWhileRedisIsDown(t *testing.T) {
	s := poolServer(t)
	s.Kill()
	p := startPool(t, s, sizes(3, 5)...)
	redistest.Eventually(t, func() bool { return p.Stats().DialFailures > 0 }, "a dial failed")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	err := p.Ready(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	systest.RequireDown(t, err)

	s.Restart()
	requireReady(t, p)
	require.Len(t, s.Clients(t.Name()), 3)
	require.NoError(t, p.Ready(ctx), "nothing to wait for any more")
}

func TestAPoolWithoutAFloorIsReadyAtOnceAndDialsNothing(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(0, 5)...)
	requireReady(t, p)
	require.Zero(t, p.Stats().Dials)
}

func TestTheFloorComesBackAfterTheServerKilledIt(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(6, 20)...)
	requireReady(t, p)
	killed := clientIDs(t, s)
	require.Equal(t, 6, s.KillClients())
	redistest.Eventually(t, func() bool {
		ids := clientIDs(t, s)
		return len(ids) == 6 && !slices.ContainsFunc(ids, func(id int64) bool { return slices.Contains(killed, id) })
	}, "six new clients")
	require.EqualValues(t, 6, p.Stats().Closed.Broken)
}

func TestTheServersIdleTimeoutDoesNotReachTheFloor(t *testing.T) {
	redistest.Long(t)
	s := poolServer(t)
	p := startPool(t, s, sizes(4, 20, rediscache.WithHealthCheckAfter(200*time.Millisecond))...)
	requireReady(t, p)
	ids := clientIDs(t, s)
	s.ConfigSet("timeout", "2")
	redistest.Eventually(t, func() bool { return aged(s.Clients(t.Name()), 5*time.Second) }, "clients of five seconds")
	require.Equal(t, ids, clientIDs(t, s))
	require.EqualValues(t, 4, p.Stats().Dials)
}

func aged(clients []redistest.Client, d time.Duration) bool {
	return !slices.ContainsFunc(clients, func(c redistest.Client) bool { return c.Age < d })
}

func TestTheIdleTimeoutTrimsToTheFloorAndNoFurther(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(3, 20, rediscache.WithIdleTimeout(100*time.Millisecond))...)
	giveBack(t, borrowMany(t, p, 9)...)
	eventuallyClients(t, s, 3)
	ids, dials := clientIDs(t, s), p.Stats().Dials
	redistest.Eventually(t, func() bool { return aged(s.Clients(t.Name()), time.Second) }, "clients of one second")
	require.Equal(t, ids, clientIDs(t, s))
	require.Equal(t, dials, p.Stats().Dials)
	require.Equal(t, dials-3, p.Stats().Closed.Idle)
}

func TestTheFloorStandsUnderLoadAndGivesWayToTheMaximum(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(5, 20, rediscache.WithIdleTimeout(100*time.Millisecond))...)
	counts := func(open, idle, inUse int) func() bool {
		return func() bool {
			st := p.Stats()
			return st.Open == open && st.Idle == idle && st.InUse == inUse && len(s.Clients(t.Name())) == open
		}
	}
	conns := borrowMany(t, p, 15)
	redistest.Eventually(t, counts(20, 5, 15), "five idle beside fifteen in use")
	conns = append(conns, borrowMany(t, p, 3)...)
	redistest.Eventually(t, counts(20, 2, 18), "two idle, as the maximum leaves no more")
	conns = append(conns, borrowMany(t, p, 2)...)
	require.True(t, counts(20, 0, 20)(), "none idle at the maximum: %+v", p.Stats())
	giveBack(t, conns...)
	redistest.Eventually(t, counts(5, 5, 0), "the floor again")
}

func TestWaitersAreServedInTheOrderInWhichTheyCame(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(0, 1)...)
	conn := borrowOne(t, p)
	var (
		mu     sync.Mutex
		served []int
		wg     sync.WaitGroup
		leave  []context.CancelFunc
		want   []int
	)
	for i := range 60 {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		if i%3 == 0 {
			leave = append(leave, cancel)
		} else {
			want = append(want, i)
		}
		wg.Go(func() {
			conn, err := p.GetContext(ctx)
			if i%3 == 0 {
				if !errors.Is(err, context.Canceled) || !errors.Is(err, rediscache.ErrPoolExhausted) {
					t.Errorf("%d: %v", i, err)
				}
				return
			}
			if err != nil {
				t.Errorf("%d: %v", i, err)
				return
			}
			mu.Lock()
			served = append(served, i)
			mu.Unlock()
			_ = conn.Close()
		})
		redistest.Eventually(t, func() bool { return p.Stats().Waiting == i+1 }, "%d waiting", i+1)
	}
	for _, cancel := range leave {
		cancel()
	}
	redistest.Eventually(t, func() bool { return p.Stats().Waiting == 40 }, "40 waiting")
	giveBack(t, conn)
	wg.Wait()
	require.Equal(t, want, served)
	st := p.Stats()
	require.EqualValues(t, 41, st.Waits, "with the first, who waited for the dial")
	require.EqualValues(t, 20, st.Timeouts)
	require.Positive(t, st.WaitTime)
}

func TestABusyPoolIsExhaustedAtTheDeadline(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(0, 2)...)
	conns := borrowMany(t, p, 2)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err := p.GetContext(ctx)
	require.ErrorIs(t, err, rediscache.ErrPoolExhausted)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, rediscache.ErrUnavailable)
	giveBack(t, conns...)
	requireSimultaneous(t, p, 2)
}

func TestGetTellsItsErrorAtTheFirstUse(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(0, 1)...)
	conn := p.Get()
	_, err := conn.Do("SET", "k", "v")
	require.NoError(t, err)
	giveBack(t, conn)
	require.NoError(t, p.Close())
	_, err = p.Get().Do("GET", "k")
	require.ErrorIs(t, err, rediscache.ErrClosed)
}

func TestAContextThatIsOverTouchesNothing(t *testing.T) {
	s := poolServer(t)
	over, cancel := context.WithCancel(context.Background())
	cancel()

	p := startPool(t, s, sizes(0, 5)...)
	_, err := p.GetContext(over)
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, p.Stats().Dials)

	conn := borrowOne(t, p)
	ids := clientIDs(t, s)
	_, err = redis.DoContext(conn, over, "SET", "k", "v")
	require.ErrorIs(t, err, context.Canceled)
	_, err = redis.ReceiveContext(conn, over)
	require.ErrorIs(t, err, context.Canceled)
	reply, err := conn.Do("EXISTS", "k")
	require.NoError(t, err, "the connection lives on")
	require.EqualValues(t, 0, reply)
	giveBack(t, conn)
	require.NoError(t, ping(context.Background(), p))
	require.Equal(t, ids, clientIDs(t, s))
	require.EqualValues(t, 1, p.Stats().Dials)
}

// A stopped server keeps its sockets open, so nothing but the deadline ends a call. How far it is
// overrun depends on who else uses the machine: the best of some attempts shows what the pool adds.
func TestADeadlineIsNotOverrunBesideStaleConnections(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(8, 8, rediscache.WithHealthCheckAfter(time.Millisecond))...)
	requireReady(t, p)
	s.Stop()
	defer s.Cont()
	best := time.Hour
	for range 5 {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		err := ping(ctx, p)
		deadline, _ := ctx.Deadline()
		overrun := time.Since(deadline)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, overrun, time.Second)
		best = min(best, overrun)
	}
	t.Logf("overrun by %v", best)
	require.Less(t, best, 50*time.Millisecond)
}

// What the command waits for: an answer, or room for its bytes.
func TestACancelledCommandReturnsAtOnce(t *testing.T) {
	for name, args := range map[string][]any{
		"while it reads":  {"BLPOP", "nothing", 0},
		"while it writes": {"SET", "k", make([]byte, 32<<20)},
	} {
		t.Run(name, func(t *testing.T) {
			s := poolServer(t)
			p := startPool(t, s, sizes(0, 1,
				rediscache.WithReadTimeout(15*time.Second), rediscache.WithWriteTimeout(15*time.Second))...)
			conn := borrowOne(t, p)
			s.Stop()
			ctx, cancel := context.WithCancel(context.Background())
			failed := make(chan error)
			go func() {
				_, err := redis.DoContext(conn, ctx, args[0].(string), args[1:]...)
				failed <- err
			}()
			select {
			case err := <-failed:
				t.Fatalf("it did not block: %v", err)
			case <-time.After(50 * time.Millisecond): // it is blocked by now, or will never be
			}
			start := time.Now()
			cancel()
			require.ErrorIs(t, <-failed, context.Canceled)
			require.Less(t, time.Since(start), 10*time.Second)
			s.Cont()
			giveBack(t, conn)
			require.NoError(t, ping(context.Background(), p))
			require.EqualValues(t, 1, p.Stats().Closed.Broken)
		})
	}
}

// redigo's own DoContext leaves a goroutine behind that goes on reading the arguments: the race
// detector would see it here.
func TestTheCallersBytesAreFreeOnceACancelledCommandReturned(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(0, 1)...)
	conn := borrowOne(t, p)
	s.Stop()
	value := make([]byte, 32<<20) // more than the socket's buffers take
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := redis.DoContext(conn, ctx, "SET", "k", value)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	clear(value)
	s.Cont()
	giveBack(t, conn)
	require.NoError(t, ping(context.Background(), p))
	require.EqualValues(t, 1, p.Stats().Closed.Broken)
}

func TestADialOutlivesTheRequestThatAskedForIt(t *testing.T) {
	s := poolServer(t)
	dialling, goOn := make(chan struct{}, 1), make(chan struct{})
	p := startPool(t, s, sizes(0, 5, rediscache.WithCredentials(func(context.Context) (string, string, error) {
		dialling <- struct{}{}
		<-goOn
		return "", "", nil
	}))...)
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error)
	go func() {
		_, err := p.GetContext(ctx)
		failed <- err
	}()
	<-dialling
	cancel()
	err := <-failed
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, rediscache.ErrPoolExhausted, "nothing is busy")
	close(goOn)
	redistest.Eventually(t, func() bool { return p.Stats().Idle == 1 }, "an idle connection")
	eventuallyClients(t, s, 1)
	require.NoError(t, ping(context.Background(), p))
	require.EqualValues(t, 1, p.Stats().Dials)
}
