package warm

import (
	"context"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

const readOnly = "READONLY You can't write against a read only replica."

// newPrompt returns a store on a server that answers at once.
func newPrompt(t *testing.T, minIdle, maxActive int) (*Store, *fakeServer) {
	t.Helper()
	f := newFake(2, prompt) // whose first connection has a socket
	s := New(Config{
		MinIdle: minIdle, MaxActive: maxActive, HealthCheckAfter: time.Hour,
		DialTimeout: time.Second, ReadTimeout: time.Second, Dial: f.dial,
	})
	requireReady(t, s)
	return s, f
}

// suspectsLeft counts the open connections that are suspects.
func suspectsLeft(s *Store) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.renewal.suspects
}

// The error comes on one connection. No connection as old is lent while a newer one is idle.
func TestAnAnswerThatCondemnsReplacesAllOlderConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newPrompt(t, 5, 20)
		defer s.Close()
		all := make([]*Conn, 20)
		for i := range all {
			all[i] = take(t, s)
		}
		for _, c := range all {
			_ = c.Close()
		}
		c := take(t, s)
		require.False(t, c.Condemn("WRONGTYPE Operation against a key holding the wrong kind of value"))
		require.False(t, c.Condemn(readOnly), "there is no newer connection yet, so this one still serves reads")
		synctest.Wait()
		require.Equal(t, 5, s.Stats().Idle, "idle suspects above the minimum are closed")
		require.Equal(t, 5-renewBurst+1, suspectsLeft(s), "and one for each new connection")
		require.True(t, c.Wanted())
		require.True(t, c.Condemn(readOnly))
		_ = c.Close()
		synctest.Wait()
		next := take(t, s)
		require.False(t, slices.Contains(all, next))
		suspects := suspectsLeft(s)
		next.Condemn(readOnly)
		require.Equal(t, suspects, suspectsLeft(s), "a new connection has a moment before it is condemned")
		_ = next.Close()
		time.Sleep(2 * time.Second)
		require.Zero(t, suspectsLeft(s))
		require.Equal(t, 5, s.Stats().Idle)
		require.EqualValues(t, 20+5, s.Stats().Closed.Broken, "and the five that were dialled within settleAfter")
	})
}

// The name points to another server just after the dials that an answer caused. No write reaches the
// connections of these dials, so no answer condemns them.
func TestConnectionsDialledJustAfterTheLastAnswerAreReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newPrompt(t, 5, 20)
		defer s.Close()
		open := func() []*Conn {
			s.mu.Lock()
			defer s.mu.Unlock()
			return slices.Collect(maps.Keys(s.all))
		}
		c := take(t, s)
		c.Condemn(readOnly)
		_ = c.Close()
		time.Sleep(condemnEvery)
		old := open()
		require.GreaterOrEqual(t, s.Stats().Dials, int64(5+renewBurst))
		time.Sleep(3 * time.Second)
		for _, c := range open() {
			require.False(t, slices.Contains(old, c))
		}
		require.Zero(t, suspectsLeft(s))
		require.Equal(t, 5, s.Stats().Idle)
		require.LessOrEqual(t, s.Stats().Dials, int64(5+1+5+5), "the floor, one beside the borrowed connection, and the floor twice")
	})
}

// The server is condemned on the new connections too, and the pace holds in any second.
func TestDialsKeepThePaceWhileTheServerIsCondemned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newPrompt(t, 10, 50)
		defer s.Close()
		var dials []int64
		for range 5 * 1000 {
			c := take(t, s)
			c.Condemn(readOnly)
			_ = c.Close()
			time.Sleep(time.Millisecond)
			dials = append(dials, s.Stats().Dials)
		}
		for i := 1000; i < len(dials); i++ {
			require.LessOrEqual(t, dials[i]-dials[i-1000], int64(20), "in the second before %d ms", i)
		}
		require.Greater(t, dials[len(dials)-1], int64(50), "the store keeps dialling")
	})
}

// While no dial succeeds the suspects are lent.
func TestSuspectsServeReadsWhileNoDialSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, f := newPrompt(t, 2, 2)
		defer s.Close()
		f.set(down)
		for range 100 {
			c := take(t, s)
			c.Condemn(readOnly)
			_ = c.Close()
			time.Sleep(10 * time.Millisecond)
		}
		require.GreaterOrEqual(t, suspectsLeft(s), 1)
		f.set(prompt)
		time.Sleep(2 * time.Second)
		require.Zero(t, suspectsLeft(s))
		require.Equal(t, 2, s.Stats().Idle)
	})
}

// A connection that was borrowed during a suspension, or that its borrower doubts, must answer a PING
// before it is lent again.
func TestAConnectionBorrowedDuringASuspensionIsProbed(t *testing.T) {
	for name, doubt := range map[string]func(s *Store, c *Conn){
		"suspended": func(s *Store, _ *Conn) {
			s.mu.Lock()
			s.pulse.Beat(time.Now().Add(-2 * suspendedAfter))
			s.mu.Unlock()
			time.Sleep(sweepEvery)
		},
		"doubted": func(_ *Store, c *Conn) { c.Doubt() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, f := newPrompt(t, 0, 1)
				defer s.Close()
				c := take(t, s)
				doubt(s, c)
				f.set(silent)
				_ = c.Close()
				synctest.Wait()
				require.Zero(t, s.Stats().Closed.Broken, "it has time to answer")
				began, got := time.Now(), make(chan *Conn)
				go func() {
					c, _ := s.Acquire(context.Background())
					got <- c
				}()
				time.Sleep(patience + time.Millisecond)
				synctest.Wait()
				f.set(prompt)
				require.False(t, c == <-got, "a dial took its slot")
				require.Less(t, time.Since(began), patience+2*linger, "and did not wait for the reply to the PING")
				require.EqualValues(t, 1, s.Stats().Closed.Broken)
			})
		})
	}
}

// If the monotonic clock stops while the machine is suspended, only the wall clock shows the suspension.
func TestASuspendedMachineIsNoticed(t *testing.T) {
	var p Pulse
	now := time.Now()
	p.Beat(now)
	require.False(t, p.Missed(now.Add(suspendedAfter)))
	require.True(t, p.Missed(now.Add(suspendedAfter+1)))
	p.Beat(now.Round(0).Add(-time.Hour)) // it has no monotonic reading
	require.True(t, p.Missed(now))
	p.Beat(now.Round(0).Add(time.Hour))
	require.False(t, p.Missed(now), "the clock was set back")
}

// A borrower whose connection was not sound keeps its place in the queue.
func TestABorrowerKeepsItsPlaceAfterADeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newPrompt(t, 0, 1)
		defer s.Close()
		held := take(t, s)
		var order []int64
		for _, arrival := range []int64{5, 2, 9, 3} {
			go func() {
				s.mu.Lock()
				_, w, _ := s.takeLocked(arrival)
				s.mu.Unlock()
				g := <-w.grant
				order = append(order, arrival)
				_ = g.conn.Close()
			}()
			synctest.Wait()
		}
		_ = held.Close()
		synctest.Wait()
		require.Equal(t, []int64{2, 3, 5, 9}, order)
	})
}

// Both connections are always in use, so only the return of a connection makes room.
func TestABorrowedSuspectMakesRoomWhereNoSlotIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newPrompt(t, 0, 2)
		defer s.Close()
		a, b := take(t, s), take(t, s)
		require.True(t, a.Condemn(readOnly), "no slot is left for a new connection")
		a.Retire()
		_ = a.Close()
		a = take(t, s)
		time.Sleep(time.Second)
		require.True(t, b.Wanted())
		_ = b.Close()
		require.False(t, b == take(t, s))
		require.Zero(t, suspectsLeft(s))
		_ = a.Close()
	})
}
