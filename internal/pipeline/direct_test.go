package pipeline_test

import (
	"errors"
	"net"
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
