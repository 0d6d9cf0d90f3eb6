package pipeline_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/redistest"
)

// Bytes after the reply on a borrowed connection must not reach the next borrower.
func TestAnExtraReplyClosesABorrowedConnection(t *testing.T) {
	redistest.NoLeaks(t)
	var last atomic.Int64
	var extra atomic.Bool
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() != "GET" {
			return redistest.Default(c), false
		}
		last.Store(int64(c.Conn))
		if extra.Load() {
			return append(bulk(c.Args[1]), "$6\r\nstolen\r\n"...), false
		}
		return bulk(c.Args[1]), false
	})
	p := openOn(t, storeOf(t, s.Addr, 1, 1, true), 0, 10*time.Second)
	for i := range 3 {
		extra.Store(true)
		reply, err := get(t.Context(), p, "a")
		require.NoError(t, err)
		require.Equal(t, "a", string(reply.Bytes))
		before := last.Load()
		extra.Store(false)
		for range 2 {
			reply, err = get(t.Context(), p, "b")
			require.NoError(t, err)
			require.Equal(t, "b", string(reply.Bytes))
			require.NotEqual(t, before, last.Load(), i)
		}
	}
}

// The server answers the first of two calls and closes the connection without reading the rest. The
// first call has its reply. The second was not sent as a whole, so it was not executed.
func TestRepliesBeforeAHangUpAreRead(t *testing.T) {
	redistest.NoLeaks(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	refusal := []byte("-ERR Protocol error: invalid bulk length\r\n")
	var accepted atomic.Int64
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			b := make([]byte, 14)
			if _, err = c.Read(b); err == nil { // PING
				_, _ = c.Write([]byte("+PONG\r\n"))
			}
			if _, err = c.Read(b); err == nil {
				_, _ = c.Write(refusal)
			}
			_ = c.Close() // a reset, as not all was read
		}
	}()
	for name, lease := range map[string]struct {
		p    *pipeline.Pipeline
		said bool
	}{
		"our own": {openOn(t, storeOf(t, ln.Addr().String(), 1, 0, true), 1, 10*time.Second), true},
		"redigo":  {openOn(t, storeOf(t, ln.Addr().String(), 1, 0, false), 1, 10*time.Second), false},
	} {
		before := accepted.Load()
		_, err := lease.p.Do(t.Context(), pipeline.Write("SET", 2, pipeline.Status).String("k").Value(make([]byte, 32<<20)))
		require.Error(t, err, name)
		require.NotErrorIs(t, err, pipeline.ErrOutcomeUnknown, name)
		if lease.said {
			var answer redis.Error
			require.True(t, errors.As(err, &answer), "%s: %v", name, err)
		}
		require.LessOrEqual(t, accepted.Load()-before, int64(2), "%s: the size is the likely reason", name)
	}
}

// The caller leaves when the reply has come so far. A goroutine reads the rest, and the connection serves
// the next call.
func TestACallerThatLeavesItsConnectionCostsNone(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	const array = "*3\r\n$4\r\nlate\r\n*2\r\n:1\r\n$2\r\nab\r\n$-1\r\n"
	value := "$100000\r\n" + strings.Repeat("x", 100_000) + "\r\n"
	for reply, call := range map[string]func() *pipeline.Call{
		"$4\r\nlate\r\n": func() *pipeline.Call { return read("k") },
		value:            func() *pipeline.Call { return read("k") },
		"*2\r\n$4\r\nlate\r\n$-1\r\n": func() *pipeline.Call {
			return pipeline.Read("GET", 2, pipeline.Values).String("a").String("b")
		},
		":1\r\n$4\r\nlate\r\n": func() *pipeline.Call { return read("k").After(pipeline.Write("DEL", 1, pipeline.Count).String("k")) },
		array:                  func() *pipeline.Call { return pipeline.Read("GET", 0, pipeline.Results) },
	} {
		for cut := 0; cut < len(reply); cut += 1 + len(reply)/20 {
			asked, late := make(chan struct{}), false
			s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
				switch {
				case c.Name() == "DEL":
					return nil, false // its reply is the first of the run
				case c.Name() != "GET":
					return redistest.Default(c), false
				case late:
					return bulk(c.Args[1]), false
				}
				late = true
				defer close(asked)
				return []byte(reply[:cut]), false
			})
			p := openOn(t, storeOf(t, s.Addr, 1, 1, true), 0, time.Minute)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-asked
				cancel()
			}()
			_, err := p.Do(ctx, call())
			require.ErrorIs(t, err, context.Canceled)
			s.Push([]byte(reply[cut:]))
			next, err := get(t.Context(), p, "next")
			require.NoError(t, err, "%.20q after %d", reply, cut)
			require.Equal(t, "next", string(next.Bytes))
			require.Equal(t, 1, s.Accepted(), "%.20q after %d", reply, cut)
			p.Close()
		}
	}
}

// A late reply that does not come within a second is not worth the wait.
func TestAConnectionWhoseLateReplyDoesNotComeIsReplaced(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" {
			if c.Conn == 0 {
				return nil, false
			}
			return bulk(c.Args[1]), false
		}
		return redistest.Default(c), false
	})
	p := openOn(t, storeOf(t, s.Addr, 1, 1, true), 0, time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := get(ctx, p, "k")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	reply, err := get(t.Context(), p, "k")
	require.NoError(t, err)
	require.Equal(t, "k", string(reply.Bytes))
}

func TestCloseDoesNotWaitForALateReply(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" {
			return nil, false
		}
		return redistest.Default(c), false
	})
	p := openOn(t, storeOf(t, s.Addr, 1, 1, true), 0, time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := get(ctx, p, "k")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	began := time.Now()
	p.Close()
	require.Less(t, time.Since(began), 500*time.Millisecond)
}

// Without a timeout of the call the read timeout ends the wait. The read is retried once.
func TestASilentServerEndsACallWithAConnectionOfItsOwn(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" {
			return nil, false
		}
		return redistest.Default(c), false
	})
	p := pipeline.New(pipeline.Config{Borrow: storeOf(t, s.Addr, 2, 2, true), ReadTimeout: 50 * time.Millisecond})
	defer p.Close()
	_, err := get(t.Context(), p, "k")
	require.ErrorContains(t, err, "no reply within the read timeout")
	require.Equal(t, 2, s.Count("GET"))
}
