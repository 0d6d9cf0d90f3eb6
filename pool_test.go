package rediscache_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

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
