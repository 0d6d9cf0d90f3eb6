package rediscache_test

import (
	"context"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

func TestAContextThatIsOverTouchesNothing(t *testing.T) {
	s := poolServer(t)
	over, cancel := context.WithCancel(context.Background())
	cancel()

	p := startPool(t, s, sizes(0, 5)...)
	_, err := p.GetContext(over)
	require.ErrorIs(t, err, context.Canceled)
	require.Zero(t, p.Stats().Dials)

	conn := borrowOne(t, p)
	ids := clientIDs(t, s)
	_, err = redis.DoContext(conn, over, "SET", "k", "v")
	require.ErrorIs(t, err, context.Canceled)
	_, err = redis.ReceiveContext(conn, over)
	require.ErrorIs(t, err, context.Canceled)
	reply, err := conn.Do("EXISTS", "k")
	require.NoError(t, err, "the connection lives on")
	require.EqualValues(t, 0, reply)
	giveBack(t, conn)
	require.NoError(t, ping(context.Background(), p))
	require.Equal(t, ids, clientIDs(t, s))
	require.EqualValues(t, 1, p.Stats().Dials)
}

// A stopped server keeps its sockets open, so nothing but the deadline ends a call. How far it is
// overrun depends on who else uses the machine: the best of some attempts shows what the pool adds.
func TestADeadlineIsNotOverrunBesideStaleConnections(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(8, 8, rediscache.WithHealthCheckAfter(time.Millisecond))...)
	requireReady(t, p)
	s.Stop()
	defer s.Cont()
	best := time.Hour
	for range 5 {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		err := ping(ctx, p)
		deadline, _ := ctx.Deadline()
		overrun := time.Since(deadline)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, overrun, time.Second)
		best = min(best, overrun)
	}
	t.Logf("overrun by %v", best)
	require.Less(t, best, 50*time.Millisecond)
}

// What the command waits for: an answer, or room for its bytes.
func TestACancelledCommandReturnsAtOnce(t *testing.T) {
	for name, args := range map[string][]any{
		"while it reads":  {"BLPOP", "nothing", 0},
		"while it writes": {"SET", "k", make([]byte, 32<<20)},
	} {
		t.Run(name, func(t *testing.T) {
			s := poolServer(t)
			p := startPool(t, s, sizes(0, 1,
				rediscache.WithReadTimeout(15*time.Second), rediscache.WithWriteTimeout(15*time.Second))...)
			conn := borrowOne(t, p)
			s.Stop()
			ctx, cancel := context.WithCancel(context.Background())
			failed := make(chan error)
			go func() {
				_, err := redis.DoContext(conn, ctx, args[0].(string), args[1:]...)
				failed <- err
			}()
			select {
			case err := <-failed:
				t.Fatalf("it did not block: %v", err)
			case <-time.After(50 * time.Millisecond): // it is blocked by now, or will never be
			}
			start := time.Now()
			cancel()
			require.ErrorIs(t, <-failed, context.Canceled)
			require.Less(t, time.Since(start), 10*time.Second)
			s.Cont()
			giveBack(t, conn)
			require.NoError(t, ping(context.Background(), p))
			require.EqualValues(t, 1, p.Stats().Closed.Broken)
		})
	}
}

// redigo's own DoContext leaves a goroutine behind that goes on reading the arguments: the race
// detector would see it here.
func TestTheCallersBytesAreFreeOnceACancelledCommandReturned(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(0, 1)...)
	conn := borrowOne(t, p)
	s.Stop()
	value := make([]byte, 32<<20) // more than the socket's buffers take
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := redis.DoContext(conn, ctx, "SET", "k", value)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	clear(value)
	s.Cont()
	giveBack(t, conn)
	require.NoError(t, ping(context.Background(), p))
	require.EqualValues(t, 1, p.Stats().Closed.Broken)
}

func TestADialOutlivesTheRequestThatAskedForIt(t *testing.T) {
	s := poolServer(t)
	dialling, goOn := make(chan struct{}, 1), make(chan struct{})
	p := startPool(t, s, sizes(0, 5, rediscache.WithCredentials(func(context.Context) (string, string, error) {
		dialling <- struct{}{}
		<-goOn
		return "", "", nil
	}))...)
	ctx, cancel := context.WithCancel(context.Background())
	failed := make(chan error)
	go func() {
		_, err := p.GetContext(ctx)
		failed <- err
	}()
	<-dialling
	cancel()
	err := <-failed
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, rediscache.ErrPoolExhausted, "nothing is busy")
	close(goOn)
	redistest.Eventually(t, func() bool { return p.Stats().Idle == 1 }, "an idle connection")
	eventuallyClients(t, s, 1)
	require.NoError(t, ping(context.Background(), p))
	require.EqualValues(t, 1, p.Stats().Dials)
}
