package rediscache_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
)

// A rejected connection is closed, although it works, and the next one is tested. The
// server replies to ECHO with the number of the connection, because a connection that ran
// CLIENT ID would be closed for that.
func TestAConnectionThatTestOnBorrowRejectsIsClosedAndNeverLentAgain(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "ECHO" {
			return fmt.Appendf(nil, ":%d\r\n", c.Conn), false
		}
		return redistest.Default(c), false
	})
	p := newPool(t, s.URL(), sizes(3, 5)...)
	requireReady(t, p)
	r := p.Redigo()
	var rejected, accepted []int
	r.TestOnBorrow = func(c redis.Conn, _ time.Time) error {
		number, err := redis.Int(c.Do("ECHO", ""))
		require.NoError(t, err)
		if len(rejected) == 0 {
			rejected = append(rejected, number)
			return errors.New("not this one")
		}
		accepted = append(accepted, number)
		return nil
	}
	for range 20 {
		conn, err := r.GetContext(t.Context())
		require.NoError(t, err)
		giveBack(t, conn)
	}
	require.Len(t, accepted, 20, "each borrow was tested")
	require.NotContains(t, accepted, rejected[0])
	require.Positive(t, p.Stats().Closed.Broken)
	require.Zero(t, p.Stats().InUse)
}

// A connection that is borrowed outlives the Close of its redigo pool, and no Close of a
// redigo pool closes a connection of the WarmPool.
func TestCloseOfARedigoPoolLeavesTheWarmPoolOpen(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(2, 3)...)
	requireReady(t, p)
	tested, plain := p.Redigo(), p.Redigo()
	tested.TestOnBorrow = func(c redis.Conn, _ time.Time) error { return do(c, "PING") }
	for _, r := range []*redis.Pool{tested, plain} {
		conn := r.Get()
		closed := p.Stats().Closed
		require.NoError(t, r.Close())
		require.NoError(t, do(conn, "PING"))
		giveBack(t, conn)
		require.Equal(t, closed, p.Stats().Closed)
		require.Zero(t, p.Stats().InUse)
		require.Error(t, r.Get().Err())
	}
	requireSimultaneous(t, p, 3)
	require.NoError(t, p.Close())
	for _, get := range []func() redis.Conn{p.Get, p.Redigo().Get} {
		require.Error(t, get().Err())
	}
}

// MaxActive and Wait bound one library, and others borrow what it leaves.
func TestARedigoPoolThatWaitsLeavesConnectionsToOthers(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(1, 3)...)
	r := p.Redigo()
	r.MaxActive, r.Wait = 2, true
	first, second := r.Get(), r.Get()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := r.GetContext(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	other := borrowOne(t, p)
	require.Equal(t, 3, p.Stats().InUse)
	giveBack(t, first)
	third, err := r.GetContext(t.Context())
	require.NoError(t, err)
	require.NoError(t, do(third, "PING"))
	giveBack(t, second, third, other)
	require.Zero(t, p.Stats().InUse)
}

// do sends a command and drops its reply.
func do(c redis.Conn, cmd string, args ...any) error {
	_, err := c.Do(cmd, args...)
	return err
}
