package pipeline

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/warm"
)

// A timer of a socket does not know how long the process was suspended during a batch.
func TestTheTimeOfACallIsATimerOfTheSocketOnlyWhereNothingCutsIt(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false })
	store := warm.New(warm.Config{
		MaxActive: 1, DialTimeout: time.Minute,
		Dial: func(context.Context) (warm.Dialed, error) {
			raw, err := net.Dial("tcp", s.Addr)
			if err != nil {
				return warm.Dialed{}, err
			}
			socket := warm.NewSocket(raw, nil)
			return warm.Dialed{Conn: redis.NewConn(socket, 0, 0), Socket: socket, Stream: socket}, nil
		},
	})
	defer store.Close()
	patience := func(lease func(context.Context) (redis.Conn, error)) (d time.Duration) {
		p := New(Config{Borrow: lease, Timeout: time.Minute, ReadTimeout: time.Hour})
		l, err := p.borrowed(t.Context(), []*Call{Read("PING", 0, Status)}, func(l *loan) {
			if link, ok := l.link.(*redigoWire); ok {
				d = link.patience()
			}
			l.spent, l.failed = false, nil
		})
		require.NoError(t, err)
		l.end()
		return d
	}
	require.Zero(t, patience(func(ctx context.Context) (redis.Conn, error) { return store.Acquire(ctx) }))
	require.LessOrEqual(t, patience(func(context.Context) (redis.Conn, error) { return redis.Dial("tcp", s.Addr) }), time.Minute)
}
