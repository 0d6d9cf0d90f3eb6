package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/warm"
)

// fullHouse makes a pipeline with one full lane, and callers that wait for room in the order in which
// they came. Each caller sends one call.
func fullHouse(t *testing.T, callers int) (p *Pipeline, l *lane, came func() []int, outcome <-chan error) {
	p, give := crowd(t, 1, true)
	give(maxQueued)
	l = (*p.lanes.Load())[0]
	var mu sync.Mutex
	var order []int
	outcomes := make(chan error, callers)
	for i := range callers {
		go func() {
			_, _, err := p.send(t.Context(), []*Call{Read("GET", 1, Value).Key("", fmt.Sprint(i))})
			if err == nil {
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
			}
			outcomes <- err
		}()
		redistest.Eventually(t, func() bool { return p.queued() == i+1 }, "caller %d waits", i)
	}
	return p, l, func() []int {
		mu.Lock()
		defer mu.Unlock()
		return append([]int(nil), order...)
	}, outcomes
}

func (p *Pipeline) queued() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queue.Len()
}

func TestWaitersGetRoomInTheirOrder(t *testing.T) {
	const callers = 20
	p, l, came, outcomes := fullHouse(t, callers)
	for i := range callers {
		require.Equal(t, callers-i, p.queued(), "no more are woken than there is room for")
		l.out.Add(1)
		p.room()
		require.NoError(t, <-outcomes)
		redistest.Eventually(t, func() bool { return len(came()) == i+1 }, "one is served")
	}
	for i, who := range came() {
		require.Equal(t, i, who)
	}
	require.Zero(t, p.Waiting())
	l.out.Add(100)
	_, _, err := p.send(t.Context(), []*Call{Read("PING", 0, Status)})
	require.NoError(t, err, "nobody waits where there is room")
}

func TestACallerDoesNotOvertakeWaiters(t *testing.T) {
	p, l, came, outcomes := fullHouse(t, 1)
	l.out.Add(1) // there is room, which nobody has been told
	last := make(chan error, 1)
	go func() {
		_, _, err := p.send(t.Context(), []*Call{Read("PING", 0, Status)})
		last <- err
	}()
	require.NoError(t, <-outcomes)
	require.Equal(t, []int{0}, came())
	redistest.Eventually(t, func() bool { return p.queued() == 1 }, "it waits itself")
	l.out.Add(1)
	p.room()
	require.NoError(t, <-last)
}

func TestRoomForManyWakesMany(t *testing.T) {
	p, l, came, outcomes := fullHouse(t, 20)
	l.out.Add(7)
	p.room()
	for range 7 {
		require.NoError(t, <-outcomes)
	}
	require.Equal(t, 13, p.queued())
	require.ElementsMatch(t, []int{0, 1, 2, 3, 4, 5, 6}, came())
}

func TestTheRoomOfACancelledWaiterGoesToTheNext(t *testing.T) {
	p, l, came, outcomes := fullHouse(t, 1)
	w := &waiter{calls: 1, woken: make(chan error, 1)}
	p.mu.Lock()
	w.place = p.queue.PushFront(w)
	p.mu.Unlock()
	l.out.Add(1)
	p.room()
	require.Len(t, w.woken, 1)
	require.Empty(t, came())
	p.leave(w)
	require.NoError(t, <-outcomes)
	require.Equal(t, []int{0}, came())
}

func TestCloseEndsTheWaitForRoom(t *testing.T) {
	p, _, _, outcomes := fullHouse(t, 20)
	p.lanes.Store(new([]*lane))
	p.Close()
	for range 20 {
		require.Equal(t, warm.ErrClosed, <-outcomes)
	}
}

func TestTheWaitForRoomCountsForTheTimeout(t *testing.T) {
	p, _, _, outcomes := fullHouse(t, 3)
	p.timeoutTicks = 10
	p.expireWaiters(p.clock.Load() + 9)
	require.Equal(t, 3, p.queued())
	p.expireWaiters(p.clock.Load() + 10)
	for range 3 {
		require.Equal(t, context.DeadlineExceeded, <-outcomes)
	}
}

// wantedWire is a wire whose connection other borrowers want, or not.
type wantedWire struct {
	scripted
	wantedNow bool
}

func (w *wantedWire) wanted() bool { return w.wantedNow }

func TestWhenALaneReturnsItsConnection(t *testing.T) {
	type state struct {
		foreign, scarce, wanted bool
		idle, held, silent      int64
		timeout                 int64
	}
	for _, test := range []struct {
		what string
		is   state
		want due
	}{
		{"nothing happens", state{held: 10}, stays},
		{"no calls for long", state{idle: idleTicks}, finishes},
		{"held for long", state{held: heldTicks}, finishes},
		{"others wait", state{wanted: true}, finishes},
		{"no calls, and the pool has nothing else", state{scarce: true, idle: quietTicks}, finishes},
		{"calls, and the pool has nothing else, but would say who waits", state{scarce: true, held: 10}, stays},
		{"a foreign pool with connections to spare", state{foreign: true, held: foreignTicks - 1}, stays},
		{"whose rules must reach it", state{foreign: true, held: foreignTicks}, finishes},
		{"a foreign pool without", state{foreign: true, scarce: true, held: briefTicks}, finishes},
		{"which was leased just now", state{foreign: true, scarce: true, held: briefTicks - 1}, stays},
		{"no reply within the time of a call", state{timeout: 10, silent: 11}, finishes},
		{"nor of those that came until then", state{timeout: 10, silent: 21}, breaks},
	} {
		p := New(Config{Lanes: 1, Foreign: test.is.foreign})
		p.timeoutTicks = test.is.timeout
		l := &lane{p: p, wire: &wantedWire{wantedNow: test.is.wanted}, scarce: test.is.scarce}
		l.ageLocked(open)
		l.at, l.active, l.opened = -test.is.silent, -test.is.idle, -test.is.held
		require.Equal(t, test.want, l.dueLocked(0), test.what)
	}
}

func TestALaneWithoutCallsReturnsAWantedConnectionAtOnce(t *testing.T) {
	for _, wanted := range []bool{true, false} {
		l := &lane{p: New(Config{Lanes: 1}), wire: &wantedWire{wantedNow: wanted}, scarce: true}
		l.ageLocked(open)
		l.restLocked()
		require.Equal(t, wanted, !l.takes())
	}
	l := &lane{p: New(Config{Lanes: 1}), wire: &wantedWire{wantedNow: true}, scarce: true}
	l.ageLocked(open)
	l.in.Store(1)
	l.restLocked()
	require.True(t, l.takes(), "it has a call")
}

func TestALaneBesideAnotherLeavesThePoolAConnection(t *testing.T) {
	p, give := crowd(t, 2, true)
	spare := 1
	p.cfg.Spare = func() int { return spare }
	p.spread.Store(math.MaxInt64)
	require.Equal(t, []int64{8}, give(8))
	require.True(t, p.Refused(), "and no lane is opened for a while")
	spare = 2
	require.Equal(t, []int64{16}, give(8))
	p.refused.Store(0)
	require.Equal(t, []int64{16, 8}, give(8))
}

// forgetful is a server that forgets its first connection when the test says so. When release is
// called, its replies on that connection still arrive.
func forgetful(t *testing.T) (p *Pipeline, forget, release func(), count func(name string) int) {
	forgotten, goOn := make(chan struct{}), make(chan struct{})
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		select {
		case <-forgotten:
			if c.Conn == 0 {
				<-goOn
			}
		default:
		}
		if c.Name() == "GET" {
			return []byte("$1\r\nv\r\n"), false
		}
		return redistest.Default(c), false
	})
	p = New(Config{
		Borrow:  func(ctx context.Context) (redis.Conn, error) { return redis.DialContext(ctx, "tcp", s.Addr) },
		Foreign: true, Spare: func() int { return 10 }, Lanes: 1, Timeout: 5 * time.Second,
	})
	t.Cleanup(p.Close)
	release = sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(release)
	return p, func() { close(forgotten) }, release, s.Count
}

func TestAnIdleLaneIsNotUsedAfterASuspension(t *testing.T) {
	redistest.NoLeaks(t)
	p, forget, release, _ := forgetful(t)
	_, err := p.Do(t.Context(), Read("GET", 1, Value).String("k"))
	require.NoError(t, err)
	forget()
	l := (*p.lanes.Load())[0]
	p.pulse.Beat(time.Now().Add(-time.Minute)) // either the clock or the call sees it
	began := time.Now()
	_, err = p.Do(t.Context(), Write("SET", 2, Status).String("k").String("v"))
	require.NoError(t, err)
	require.Less(t, time.Since(began), 2*time.Second)
	require.EqualValues(t, suspected, l.life.Load())
	release()
}

func TestAfterASuspensionReadsGoElsewhereAndWritesWait(t *testing.T) {
	redistest.NoLeaks(t)
	p, forget, release, count := forgetful(t)
	_, err := p.Do(t.Context(), Read("GET", 1, Value).String("k"))
	require.NoError(t, err)
	l := (*p.lanes.Load())[0]
	forget()
	wrote, read := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := p.Do(t.Context(), Write("SET", 2, Status).String("k").String("v"))
		wrote <- err
	}()
	redistest.Eventually(t, func() bool { return count("SET") == 1 }, "the write is on its way")
	go func() {
		_, err := p.Do(t.Context(), Read("GET", 1, Value).String("k"))
		read <- err
	}()
	redistest.Eventually(t, func() bool { return l.load() == 2 }, "the read is behind it")
	redistest.Eventually(t, func() bool {
		p.pulse.Beat(time.Now().Add(-time.Minute))
		return l.life.Load() == suspected
	}, "the clock sees it")
	require.NoError(t, <-read, "from another connection")
	require.Empty(t, wrote)
	release()
	require.NoError(t, <-wrote, "the reply was only late")
	require.Equal(t, 1, count("SET"))
}

func TestALeaseThatPanicsFailsTheCallsThatWaitForIt(t *testing.T) {
	redistest.NoLeaks(t)
	cause := errors.New("a nil map")
	p := New(Config{Borrow: func(context.Context) (redis.Conn, error) { panic(cause) }, Lanes: 1, Timeout: time.Second})
	defer p.Close()
	_, err := p.Do(t.Context(), Read("PING", 0, Status))
	require.ErrorIs(t, err, cause)
	require.ErrorContains(t, err, "the pool panicked")
}
