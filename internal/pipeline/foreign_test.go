package pipeline_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// hooked is a foreign connection that calls a hook before or after a method of redigo.
type hooked struct {
	redis.Conn
	send    func(args []any) // before
	flushed func()           // after
	err     func()           // before
	closed  func()           // after
}

func (c *hooked) Close() error {
	err := c.Conn.Close()
	if c.closed != nil {
		c.closed()
	}
	return err
}

func (c *hooked) Send(name string, args ...any) error {
	if c.send != nil {
		c.send(args)
	}
	return c.Conn.Send(name, args...)
}

func (c *hooked) Flush() error {
	err := c.Conn.Flush()
	if c.flushed != nil {
		c.flushed()
	}
	return err
}

func (c *hooked) Err() error {
	if c.err != nil {
		c.err()
	}
	return c.Conn.Err()
}

func (c *hooked) ReceiveWithTimeout(d time.Duration) (any, error) {
	return redis.ReceiveWithTimeout(c.Conn, d)
}

func (c *hooked) DoWithTimeout(d time.Duration, name string, args ...any) (any, error) {
	return redis.DoWithTimeout(c.Conn, d, name, args...)
}

// openHooked makes a pipeline on hooked connections.
func openHooked(t *testing.T, addr string, lanes int, hook hooked) *pipeline.Pipeline {
	t.Helper()
	p := pipeline.New(pipeline.Config{
		Borrow: func(context.Context) (redis.Conn, error) {
			c, err := redis.Dial("tcp", addr, redis.DialReadTimeout(time.Second))
			if err != nil {
				return nil, err
			}
			hook := hook
			hook.Conn = c
			return &hook, nil
		},
		Spare:   func() int { return 10 },
		Foreign: true, Lanes: lanes, Timeout: 10 * time.Second,
	})
	t.Cleanup(p.Close)
	return p
}

func answers(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false }

func set(key string) *pipeline.Call {
	return pipeline.Write("SET", 2, pipeline.Status).String(key).Value([]byte("v"))
}

// The caller of DoAll may use its slice for other calls as soon as DoAll has returned.
func TestACallerThatGaveUpMayReuseItsSlice(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, answers)
	first, goOn := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var sent []string
	p := openHooked(t, s.Addr, 0, hooked{send: func(args []any) {
		mu.Lock()
		sent = append(sent, args[0].(string))
		n := len(sent)
		mu.Unlock()
		if n == 1 {
			close(first)
			<-goOn
		}
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-first
		cancel()
	}()
	calls := []*pipeline.Call{set("a"), set("b")}
	_, errs := p.DoAll(ctx, calls...)
	require.ErrorIs(t, errs[1], context.Canceled)
	calls[1] = set("another")
	close(goOn)
	p.Close()
	mu.Lock()
	defer mu.Unlock()
	require.False(t, slices.Contains(sent, "another"), "%v", sent)
}

// A worker that returns its connection has no outcome to hand over yet, but the call was sent.
func TestAWriteWhoseCallerLeavesWhileTheConnectionIsReturnedIsUnknown(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, answers)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan struct{})
	p := openHooked(t, s.Addr, 0, hooked{closed: func() {
		cancel()
		<-left
	}})
	_, err := p.Do(ctx, set("k"))
	close(left)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, pipeline.ErrOutcomeUnknown)
	require.Equal(t, 1, s.Count("SET"))
}

// asked is a context that calls deadline whenever somebody asks for its deadline.
type asked struct {
	context.Context
	deadline func()
}

func (c asked) Deadline() (time.Time, bool) {
	c.deadline()
	return c.Context.Deadline()
}

// The worker asks for the deadline when it has borrowed the connection and before it uses it.
func TestAWriteWhoseCallerLeavesBeforeTheConnectionIsUsedIsNotSent(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, answers)
	var borrowed atomic.Bool
	p := pipeline.New(pipeline.Config{
		Borrow: func(context.Context) (redis.Conn, error) {
			borrowed.Store(true)
			return redis.Dial("tcp", s.Addr)
		},
		Idle: func() bool { return true }, Foreign: true, Timeout: 10 * time.Second,
	})
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan struct{})
	_, err := p.Do(asked{ctx, func() {
		if borrowed.Load() {
			cancel()
			<-left
		}
	}}, set("k"))
	close(left)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, pipeline.ErrOutcomeUnknown)
	p.Close()
	require.Zero(t, s.Count("SET"))
}

// If a connection panics after the write, the write may still have been applied.
func TestAWriteWhoseFlushDoesNotReturnIsUnknownAndNotRepeated(t *testing.T) {
	for lanes := range 2 {
		t.Run(fmt.Sprintf("lanes=%d", lanes), func(t *testing.T) {
			redistest.NoLeaks(t)
			s := redistest.NewScript(t, answers)
			p := openHooked(t, s.Addr, lanes, hooked{flushed: func() { panic("a fault of the pool") }})
			_, err := p.Do(t.Context(), set("k"))
			require.ErrorIs(t, err, pipeline.ErrOutcomeUnknown)
			require.ErrorContains(t, err, "a fault of the pool")
			p.Close()
			require.LessOrEqual(t, s.Count("SET"), 1)
		})
	}
}

func TestATalkWhoseConnectionCallsGoexitHasAnError(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, answers)
	p := openHooked(t, s.Addr, 0, hooked{flushed: runtime.Goexit})
	require.ErrorContains(t, p.Talk(t.Context(), func(ask pipeline.Ask) error {
		_, err := ask(read("k"))
		return err
	}), "ended the goroutine")
}

// After a pause a lane checks its connection before it takes a call.
func TestAConnectionThatPanicsWhereALaneLooksAtItFailsNoCall(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, answers)
	var looks, panics atomic.Int64
	p := openHooked(t, s.Addr, 1, hooked{err: func() {
		if looks.Add(1); panics.CompareAndSwap(1, 2) {
			panic("a fault of the pool")
		}
	}})
	_, err := p.Do(t.Context(), set("k"))
	require.NoError(t, err)
	panics.Store(1)
	redistest.Eventually(t, func() bool {
		_, err := p.Do(t.Context(), set("k"))
		require.NoError(t, err)
		time.Sleep(50 * time.Millisecond) // the lane is quiet then
		return panics.Load() == 2
	}, "a look at the connection")
}

// A pool may return ErrPoolExhausted after the call timed out. Then the call must not be sent.
func TestACallThatTimedOutIsNotSent(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, answers)
	lease := leaseOf(t, s.Addr, 1)
	var other atomic.Bool // there is a lane, and no other connection
	p := openOn(t, func(ctx context.Context) (redis.Conn, error) {
		if other.Swap(true) {
			<-ctx.Done()
			return nil, fmt.Errorf("%w: %w", redis.ErrPoolExhausted, ctx.Err())
		}
		return lease(ctx)
	}, 1, 500*time.Millisecond)
	_, err := p.Do(t.Context(), set("k"))
	require.NoError(t, err)
	require.Equal(t, 1, s.Count("SET"))
	_, err = p.Do(t.Context(), pipeline.Bounced(set("k"), 2))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, pipeline.ErrOutcomeUnknown)
	require.ErrorIs(t, err, redis.ErrPoolExhausted)
	p.Close()
	require.Equal(t, 1, s.Count("SET"))
}

// Neither the pipeline nor the connection has a timeout: the context bounds the retries.
func TestARefusalIsRetriedWithoutTimeouts(t *testing.T) {
	redistest.NoLeaks(t)
	var refusals atomic.Int64
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "SET" && refusals.Add(1) < 3 {
			return []byte("-LOADING Redis is loading the dataset in memory\r\n"), false
		}
		return redistest.Default(c), false
	})
	p := pipeline.New(pipeline.Config{
		Borrow: func(context.Context) (redis.Conn, error) { return redis.Dial("tcp", s.Addr) }, Foreign: true, Lanes: 1,
	})
	defer p.Close()
	_, err := p.Do(t.Context(), set("k"))
	require.NoError(t, err)
}

// No command of a talk may get a reply that the server sent before the command.
func TestAnExtraReplyEndsATalk(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		switch {
		case c.Name() != "GET":
			return redistest.Default(c), false
		case c.Args[1] == "a":
			return append(bulk("a"), "$6\r\nstolen\r\n"...), false
		}
		return bulk(c.Args[1]), false
	})
	p := openOn(t, storeOf(t, s.Addr, 1, 1, true), 0, 10*time.Second)
	var second []resp.Reply
	require.Error(t, p.Talk(t.Context(), func(ask pipeline.Ask) error {
		if _, err := ask(read("a")); err != nil {
			return err
		}
		var err error
		second, err = ask(read("b"))
		return err
	}))
	require.Empty(t, second)
	reply, err := get(t.Context(), p, "b")
	require.NoError(t, err)
	require.Equal(t, "b", string(reply.Bytes))
}

// The clock cuts a connection without progress. After that calls must still time out.
func TestACloseThatCallsGoexitDoesNotStopTheClock(t *testing.T) {
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" {
			return nil, false
		}
		return redistest.Default(c), false
	})
	store := warm.New(warm.Config{
		MaxActive: 10, DialTimeout: time.Second, ReadTimeout: time.Minute,
		Dial: func(context.Context) (warm.Dialed, error) {
			c, err := redis.Dial("tcp", s.Addr)
			return warm.Dialed{Conn: &hooked{Conn: c, closed: runtime.Goexit}}, err
		},
	})
	t.Cleanup(store.Close)
	p := pipeline.New(pipeline.Config{
		Borrow: func(ctx context.Context) (redis.Conn, error) { return store.Acquire(ctx) },
		Lanes:  1, Timeout: 300 * time.Millisecond, ReadTimeout: 100 * time.Millisecond,
	})
	t.Cleanup(p.Close)
	for range 2 {
		over := make(chan error, 1)
		go func() {
			_, err := get(t.Context(), p, "k")
			over <- err
		}()
		select {
		case err := <-over:
			require.Error(t, err)
		case <-time.After(10 * time.Second):
			t.Fatal("the call has no end")
		}
	}
}

// A pool may report an idle connection and then lend none, because another borrower was faster.
func TestCloseEndsTheWaitForAConnectionThatWasIdle(t *testing.T) {
	redistest.NoLeaks(t)
	waits := make(chan struct{})
	p := pipeline.New(pipeline.Config{
		Borrow: func(ctx context.Context) (redis.Conn, error) {
			close(waits)
			<-ctx.Done()
			return nil, ctx.Err()
		},
		Idle: func() bool { return true }, Foreign: true,
	})
	failed := make(chan error, 1)
	go func() {
		_, err := p.Do(context.Background(), set("k"))
		failed <- err
	}()
	<-waits
	p.Close()
	require.ErrorIs(t, <-failed, warm.ErrClosed)
}
