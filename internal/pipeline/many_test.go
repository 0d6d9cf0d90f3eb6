package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/redistest"
)

// tally is a server that counts how often it executes the SET of each key, and the connections.
type tally struct {
	*redistest.Script
	mu    sync.Mutex
	sets  map[string]int
	conns map[int]bool
}

// newTally makes a tally. answer returns the reply to the nth SET, "" to execute it, or hangs up instead.
func newTally(t *testing.T, answer func(n int, c redistest.Call) (reply string, hangUp bool)) *tally {
	t.Helper()
	s := &tally{sets: make(map[string]int), conns: make(map[int]bool)}
	n := 0
	s.Script = redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() != "SET" {
			return redistest.Default(c), false
		}
		s.mu.Lock()
		s.conns[c.Conn] = true
		n++
		i := n
		s.mu.Unlock()
		reply, hangUp := answer(i, c)
		if reply == "" && !hangUp {
			s.mu.Lock()
			s.sets[c.Args[1]]++
			s.mu.Unlock()
			reply = "+OK\r\n"
		}
		return []byte(reply), hangUp
	})
	return s
}

func (s *tally) setsOf(i int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sets[fmt.Sprint(i)]
}

// doEach stores n values of size bytes.
func doEach(ctx context.Context, p *pipeline.Pipeline, n int, size func(i int) int) []error {
	return p.DoEach(ctx, n, pipeline.Status, func(c *pipeline.Call, i int) {
		c.Command("SET", 4).String(fmt.Sprint(i)).Value(make([]byte, size(i))).String("PX").Int(1000)
	})
}

func small(int) int { return 10 }

// requireHonest fails unless each error tells whether its write was executed.
func (s *tally) requireHonest(t *testing.T, n int, errs []error) (unknown int) {
	t.Helper()
	for i := range n {
		var err error
		if errs != nil {
			err = errs[i]
		}
		switch got := s.setsOf(i); {
		case err == nil:
			require.Equal(t, 1, got, "%d succeeded", i)
		case errors.Is(err, pipeline.ErrOutcomeUnknown):
			unknown++
			require.LessOrEqual(t, got, 1, "%d: %v", i, err)
		default:
			require.Zero(t, got, "%d: %v", i, err)
		}
	}
	return unknown
}

func TestManyWritesAreOneStream(t *testing.T) {
	redistest.NoLeaks(t)
	for _, n := range []int{1, 2, 100, 511, 512, 513, 5000} {
		s := newTally(t, func(int, redistest.Call) (string, bool) { return "", false })
		p := openWarm(t, s.Addr, 10*time.Second)
		require.Nil(t, doEach(t.Context(), p, n, small))
		s.requireHonest(t, n, nil)
		require.Len(t, s.conns, 1)
	}
}

func TestOfManyWritesEachHasItsOwnOutcome(t *testing.T) {
	redistest.NoLeaks(t)
	const n = 2000
	s := newTally(t, func(_ int, c redistest.Call) (string, bool) {
		if c.Args[1][0] == '7' {
			return "-ERR no sevens\r\n", false
		}
		return "", false
	})
	p := openWarm(t, s.Addr, 10*time.Second)
	// Every hundredth value is large, so that it has a connection of its own.
	errs := doEach(t.Context(), p, n, func(i int) int { return 10 + i%100/99*(64<<10) })
	for i, err := range errs {
		if fmt.Sprint(i)[0] == '7' {
			require.ErrorContains(t, err, "no sevens", i)
		} else {
			require.NoError(t, err, i)
		}
	}
	require.Len(t, errs, n)
	require.Zero(t, s.requireHonest(t, n, errs))
}

func TestOfManyWritesThoseThatAreRefusedForNowAreRetried(t *testing.T) {
	redistest.NoLeaks(t)
	s := newTally(t, func(n int, _ redistest.Call) (string, bool) {
		if n >= 700 && n < 800 || n == 1000 {
			return "-LOADING Redis is loading the dataset in memory\r\n", false
		}
		return "", false
	})
	p := openWarm(t, s.Addr, 10*time.Second)
	require.Nil(t, doEach(t.Context(), p, 2000, small))
	s.requireHonest(t, 2000, nil)
}

// The server closes a connection at each place of a window.
func TestOfManyWritesThoseThatWereSentAndNotAnsweredAreUnknown(t *testing.T) {
	redistest.NoLeaks(t)
	for _, at := range []int{1, 2, 128, 129, 384, 512, 513, 700, 1999, 2000} {
		s := newTally(t, func(n int, _ redistest.Call) (string, bool) { return "", n == at })
		p := openWarm(t, s.Addr, 10*time.Second)
		errs := doEach(t.Context(), p, 2000, small)
		require.Len(t, errs, 2000)
		for i := range at - 1 {
			require.NoError(t, errs[i], "%d was answered", i)
		}
		require.ErrorIs(t, errs[at-1], pipeline.ErrOutcomeUnknown)
		unknown := s.requireHonest(t, 2000, errs)
		require.LessOrEqual(t, unknown, 512)
	}
}

func TestACallerThatLeavesInTheMiddleOfManyWritesCostsNoConnection(t *testing.T) {
	redistest.NoLeaks(t)
	asked, more := make(chan struct{}), make(chan struct{})
	s := newTally(t, func(n int, _ redistest.Call) (string, bool) {
		if n == 700 {
			close(asked)
			<-more
		}
		return "", false
	})
	p := openOn(t, storeOf(t, s.Addr, 1, 1, true), 0, time.Minute)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	errs := doEach(ctx, p, 2000, small)
	close(more)
	require.ErrorIs(t, errs[699], context.Canceled)
	require.ErrorIs(t, errs[699], pipeline.ErrOutcomeUnknown)
	require.ErrorIs(t, errs[1999], context.Canceled)
	require.NotErrorIs(t, errs[1999], pipeline.ErrOutcomeUnknown)
	require.Nil(t, doEach(t.Context(), p, 1, func(int) int { return 1 })) // behind the late replies
	s.mu.Lock()
	delete(s.sets, "0")
	s.sets["0"] = 1
	s.mu.Unlock()
	s.requireHonest(t, 2000, errs)
	require.Equal(t, 1, s.Accepted())
}

// After a timeout nothing more is sent.
func TestTheTimeoutOfManyWritesIsForEach512(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	s := newTally(t, func(n int, c redistest.Call) (string, bool) {
		switch {
		case n%512 == 0 && n < 2000:
			time.Sleep(400 * time.Millisecond) // all together take longer than the timeout
		case n == 2500:
			<-c.Done
		}
		return "", false
	})
	p := openOn(t, storeOf(t, s.Addr, 2, 2, true), 0, time.Second)
	errs := doEach(t.Context(), p, 5000, small)
	require.NoError(t, errs[2000])
	require.ErrorIs(t, errs[2499], context.DeadlineExceeded)
	require.ErrorIs(t, errs[2499], pipeline.ErrOutcomeUnknown)
	require.ErrorIs(t, errs[4999], context.DeadlineExceeded)
	require.NotErrorIs(t, errs[4999], pipeline.ErrOutcomeUnknown)
	s.HangUp()
}
