package warm

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"
)

// lateConn answers its second PING as the timer for that ends it.
type lateConn struct {
	redis.Conn
	pings  int
	closed chan struct{}
}

func (c *lateConn) Do(string, ...any) (any, error) {
	if c.pings++; c.pings == 2 {
		<-c.closed
	}
	return "PONG", nil
}

func (c *lateConn) Err() error { return nil }

func (c *lateConn) Close() error {
	select {
	case <-c.closed:
	default:
		close(c.closed)
	}
	return nil
}

func TestAConnectionThatTheTimerOfItsProbeEndedIsNotLent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{
			MinIdle: 1, MaxActive: 1, HealthCheckAfter: time.Second, DialTimeout: time.Second, ReadTimeout: time.Second,
			Dial: func(context.Context) (Dialed, error) {
				return Dialed{Conn: &lateConn{closed: make(chan struct{})}}, nil
			},
		})
		defer s.Close()
		requireReady(t, s)
		time.Sleep(2500 * time.Millisecond)
		c, err := s.Acquire(t.Context())
		require.NoError(t, err)
		defer func() { require.NoError(t, c.Close()) }()
		select {
		case <-c.Conn.(*lateConn).closed:
			t.Error("it is lent")
		default:
		}
	})
}

func TestASharedConnectionIsWantedWhenADialTakesLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		s := New(Config{
			MaxActive: 2, DialTimeout: time.Minute, ReadTimeout: time.Second,
			Dial: func(ctx context.Context) (Dialed, error) {
				if dials++; dials > 1 {
					<-ctx.Done()
					return Dialed{}, ctx.Err()
				}
				return Dialed{Conn: &lateConn{closed: make(chan struct{})}}, nil
			},
		})
		defer s.Close()
		c, err := s.Acquire(t.Context())
		require.NoError(t, err)
		require.False(t, c.Wanted())
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _, _ = s.Acquire(ctx) }()
		time.Sleep(patience)
		require.False(t, c.Wanted(), "it is being dialled")
		time.Sleep(time.Millisecond)
		require.True(t, c.Wanted())
		cancel()
		synctest.Wait()
		require.False(t, c.Wanted())
		require.NoError(t, c.Close())
	})
}
