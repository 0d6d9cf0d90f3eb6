package warm

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"
)

// newFake returns a server with no randomness but that of seed, in a mood.
func newFake(seed uint64, m mood) *fakeServer {
	return &fakeServer{rng: rand.New(rand.NewPCG(seed, 1)), mood: m}
}

// A context ends while a connection comes back for its owner: half of the time one goroutine does
// each, half of the time both happen before the waiter can move, which is the case that matters.
func TestAWaiterThatLeavesAsItIsServedLosesNothing(t *testing.T) {
	rounds := 100_000
	if testing.Short() {
		rounds /= 10
	}
	const limit = 2
	s := New(Config{MaxActive: limit, DialTimeout: time.Minute, ReadTimeout: time.Minute, Dial: newFake(1, prompt).dial})
	defer s.Close()
	held := take(t, s)
	c := take(t, s)
	type answer struct {
		conn *Conn
		err  error
	}
	answers := make(chan answer)
	served, left := 0, 0
	for i := range rounds {
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			c, err := s.Acquire(ctx)
			answers <- answer{c, err}
		}()
		for waiting(s) == 0 {
			runtime.Gosched()
		}
		if i%2 == 0 {
			s.mu.Lock()
			cancel() // decides what the waiter does when it can
			s.putLocked(c)
			s.mu.Unlock()
		} else {
			go cancel()
			_ = c.Close()
		}
		a := <-answers
		cancel()
		if a.err == nil {
			served++
			c = a.conn
			continue
		}
		left++
		if !errors.Is(a.err, context.Canceled) {
			t.Fatal(a.err)
		}
		c = take(t, s)
	}
	t.Logf("%d were served, %d left", served, left)
	require.Positive(t, served)
	require.Greater(t, left, rounds/3, "half of them, but for those who were not yet waiting when both had happened")
	_ = c.Close()
	_ = held.Close()
	for range limit {
		take(t, s)
	}
	st := s.Stats()
	require.Equal(t, limit, st.InUse)
	require.EqualValues(t, limit, st.Dials)
	require.EqualValues(t, left, st.Timeouts)
}

// Its context ends while the connection that was dialled for it comes.
func TestAPoolWithRoomIsNotExhausted(t *testing.T) {
	s := New(Config{MaxActive: 100, DialTimeout: time.Minute, ReadTimeout: time.Minute, Dial: newFake(1, prompt).dial})
	defer s.Close()
	dials := make(chan int64, 1)
	s.mu.Lock()
	s.startDial = func(_ context.Context, turn int64) { dials <- turn }
	s.mu.Unlock()
	var held []*Conn
	for range 20 {
		ctx, cancel := context.WithCancel(context.Background())
		var c *Conn
		left := make(chan error)
		go func() {
			var err error
			c, err = s.Acquire(ctx)
			left <- err
		}()
		turn := <-dials
		dialled, err := s.connect(t.Context())
		require.NoError(t, err)
		s.mu.Lock()
		cancel()
		s.dialing--
		s.addLocked(dialled, turn)
		s.mu.Unlock()
		if err := <-left; err != nil {
			require.ErrorIs(t, err, context.Canceled)
			require.NotErrorIs(t, err, ErrPoolExhausted)
			c = take(t, s)
		}
		held = append(held, c) // the next has to dial
	}
	for _, c := range held {
		_ = c.Close()
	}
}

// A borrower that gives up learns what the store knows about the server.
func TestABorrowerThatGivesUpLearnsWhyNoConnectionCame(t *testing.T) {
	const loading = "LOADING Redis is loading the dataset in memory"
	dialFails := func(_ *Store, f *fakeServer, _ *Conn) {
		f.set(down)
	}
	answers := func(_ *Store, f *fakeServer, held *Conn) {
		f.set(silent)
		held.Condemn(loading)
	}
	for name, c := range map[string]struct {
		maxActive int
		happens   func(s *Store, f *fakeServer, held *Conn)
		want      []error
	}{
		"all in use":     {1, func(*Store, *fakeServer, *Conn) {}, []error{ErrPoolExhausted}},
		"a dial is slow": {2, func(_ *Store, f *fakeServer, _ *Conn) { f.set(silent) }, nil},
		"a dial failed":  {2, dialFails, []error{ErrUnavailable, errFake}},
		"a dial failed, and the next is slow": {2, func(s *Store, f *fakeServer, held *Conn) {
			dialFails(s, f, held)
			require.Error(t, giveUp(s))
			f.set(silent)
			time.Sleep(maxBackoff)
		}, []error{ErrUnavailable, errFake}},
		"the server is loading":                {2, answers, []error{ErrUnavailable, redis.Error(loading)}},
		"the server is loading and all in use": {1, answers, []error{ErrPoolExhausted}},
		"the server was loading": {20, func(s *Store, f *fakeServer, held *Conn) {
			held.Condemn(loading)
			synctest.Wait()
			f.set(silent)
			for s.Stats().Idle > 0 { // dialled since
				take(t, s)
			}
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(2, prompt)
				s := New(Config{MaxActive: c.maxActive, DialTimeout: time.Minute, ReadTimeout: time.Minute, Dial: f.dial})
				defer s.Close()
				c.happens(s, f, take(t, s))
				err := giveUp(s)
				for _, one := range []error{ErrPoolExhausted, ErrUnavailable, errFake, redis.Error(loading)} {
					require.Equal(t, slices.Contains(c.want, one), errors.Is(err, one), "%v: %v", one, err)
				}
				require.ErrorIs(t, err, context.DeadlineExceeded)
			})
		})
	}
}

// giveUp waits for a connection for a second, in vain.
func giveUp(s *Store) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := s.Acquire(ctx)
	return err
}

func waiting(s *Store) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiters.Len()
}

// take borrows what must be there.
func take(t *testing.T, s *Store) *Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := s.Acquire(ctx)
	require.NoError(t, err)
	return c
}

func TestConnectionsThatWereDialledTogetherDoNotEndTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, life = 50, 30 * time.Minute
		s := New(Config{
			MinIdle: n, MaxActive: n, MaxLifetime: life,
			DialTimeout: time.Second, ReadTimeout: time.Second, Dial: newFake(1, prompt).dial,
		})
		defer s.Close()
		requireReady(t, s)
		start, ends := time.Now(), make([]time.Duration, 0, n)
		for len(ends) < n && time.Since(start) < 2*life {
			time.Sleep(sweepEvery)
			for range int(s.Stats().Closed.Lifetime) - len(ends) {
				ends = append(ends, time.Since(start))
			}
		}
		require.Len(t, ends, n)
		require.GreaterOrEqual(t, ends[0], life*9/10)
		require.LessOrEqual(t, ends[n-1], life+sweepEvery)
		for i, end := range ends { // 50 in three minutes: by chance not eight in the same second
			j, _ := slices.BinarySearch(ends, end+time.Second)
			require.Less(t, j-i, 8, "ended within a second: %v", ends[i:j])
		}
		time.Sleep(3 * linger) // the last is closed, and another dialled
		require.Equal(t, n, s.Stats().Idle)
	})
}

func TestTheFloorOfAHotPoolIsRetiredToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{
			MaxActive: 1, MaxLifetime: time.Minute,
			DialTimeout: time.Second, ReadTimeout: time.Second, Dial: newFake(1, prompt).dial,
		})
		defer s.Close()
		for range 100 { // it is never idle for as long as a sweep could see
			c := take(t, s)
			time.Sleep(time.Second)
			_ = c.Close()
		}
		require.EqualValues(t, 1, s.Stats().Closed.Lifetime)
	})
}

// Each loan falls within a millisecond of the last; the sweep is far off.
func TestADeadConnectionThatIsPassedRoundUnusedIsFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{MaxActive: 1, DialTimeout: time.Second, ReadTimeout: time.Second, Dial: newFake(2, prompt).dial})
		defer s.Close()
		c := take(t, s)
		require.NotNil(t, c.socket, "another seed is needed")
		c.Conn.(*fakeConn).kill()
		for range 10 {
			_ = c.Close()
			time.Sleep(peekAfter / 2)
			c = take(t, s)
		}
		require.EqualValues(t, 1, s.Stats().Closed.Broken)
	})
}

// A connection that breaks puts those that were not used since in doubt: they answer, or are closed,
// before anybody gets one of them.
func TestABrokenConnectionPutsTheIdleOnesInDoubt(t *testing.T) {
	for _, test := range []struct {
		mood             mood
		healthCheckAfter time.Duration
		closed           int64
		within           time.Duration
	}{
		{mood: prompt, healthCheckAfter: time.Hour, closed: 1 + 3},
		{mood: prompt, closed: 1 + 8},
		{mood: silent, healthCheckAfter: time.Hour, closed: 1 + 8, within: time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(1, prompt)
			s := New(Config{
				MinIdle: 8, MaxActive: 10, HealthCheckAfter: test.healthCheckAfter,
				DialTimeout: time.Second, ReadTimeout: time.Millisecond, Dial: f.dial,
			})
			defer s.Close()
			requireReady(t, s)
			c := take(t, s)
			synctest.Wait() // for the dial of a spare one in its stead
			f.set(test.mood)
			c.Fail()
			s.mu.Lock()
			s.putLocked(c)
			require.Empty(t, s.idle, "none is lent before it has answered")
			s.mu.Unlock()
			time.Sleep(test.within + 2*linger)
			require.Equal(t, test.closed, s.Stats().Closed.Broken)
			f.set(prompt)
			time.Sleep(10 * time.Second)
			require.Equal(t, 8, s.Stats().Idle)
		})
	}
}

// Between a failed dial and the next the pause grows, to a bound.
func TestDialsBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{MinIdle: 5, MaxActive: 10, DialTimeout: time.Second, ReadTimeout: time.Second, Dial: newFake(1, down).dial})
		defer s.Close()
		time.Sleep(10 * time.Second)
		first := s.Stats().Dials
		require.Less(t, first, int64(40))
		time.Sleep(100 * time.Second)
		require.InDelta(t, 100*time.Second/(maxBackoff*3/4), s.Stats().Dials-first, 40)
	})
}

// bomb is a redigo connection whose Do meets an argument that panics.
type bomb struct{ *fakeConn }

func (bomb) Do(string, ...any) (any, error) { panic("bomb") }

func TestAConnectionWithHalfACommandIsNotLentAgain(t *testing.T) {
	s := New(Config{MaxActive: 1, DialTimeout: time.Minute, ReadTimeout: time.Minute, Dial: newFake(1, prompt).dial})
	defer s.Close()
	c := take(t, s)
	c.Conn = bomb{c.Conn.(*fakeConn)}
	require.Panics(t, func() { _, _ = c.Do("SET", "k", "v") })
	_ = c.Close()
	take(t, s)
	require.EqualValues(t, 1, s.Stats().Closed.Broken)
}

func requireReady(t *testing.T, s *Store) {
	t.Helper()
	_, err := s.Ready(t.Context())
	require.NoError(t, err)
}
