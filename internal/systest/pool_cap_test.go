package systest_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// The server must never see more than MaxActive connections, whatever befalls them.
func TestTheServerNeverSeesMoreThanMaxActive(t *testing.T) {
	redistest.Long(t)
	for name, c := range map[string]struct {
		minIdle, maxActive int
		slow               bool
	}{
		"a floor below the cap":      {2, 8, false},
		"the floor is the cap":       {8, 8, false},
		"the floor is one below":     {7, 8, true},
		"no floor and a slow dialer": {0, 8, true},
		"one connection":             {1, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := poolServer(t)
			p := startPool(t, s, sizes(c.minIdle, c.maxActive, rediscache.WithMaxConnLifetime(time.Millisecond),
				rediscache.WithCredentials(func(context.Context) (string, string, error) {
					if c.slow {
						time.Sleep(rand.N(5 * time.Millisecond)) // a dial that takes its time
					}
					return "", "", nil
				}))...)
			chaos(t, s, p, c.maxActive, time.Second)
		})
	}
}

// chaos does all that moves connections for d and wants no sample above maxActive, some at it, and
// no slot lost.
func chaos(t *testing.T, s *redistest.Server, p *rediscache.WarmPool, maxActive int, d time.Duration) {
	t.Helper()
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for range 4 * maxActive {
		callers.Go(func() { chaosCaller(t, p, stop) })
	}
	samples, highest, over := watchClients(t, s, d, maxActive)
	close(stop)
	callers.Wait()
	t.Logf("%d samples, at most %d clients, %d over; %+v", samples, highest, over, p.Stats())
	require.Zero(t, over, "samples above the cap")
	require.Equal(t, maxActive, highest)
	letRest(t)
	redistest.Eventually(t, func() bool { return ping(context.Background(), p) == nil }, "one that was not killed")
	requireSimultaneous(t, p, maxActive)
}

// chaosCaller borrows under contexts that end at any moment: in the queue, in a command, after it.
func chaosCaller(t *testing.T, p *rediscache.WarmPool, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), rand.N(8*time.Millisecond))
		conn, err := p.GetContext(ctx)
		if err == nil {
			if rand.N(2) == 0 {
				_, _ = redis.DoContext(conn, ctx, "BLPOP", "nothing", "0.003") // the context may end first
			} else {
				_, _ = conn.Do("PING") // fails where the connection was killed
			}
			_ = conn.Close()
		} else if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, rediscache.ErrUnavailable) {
			t.Errorf("unexpected: %v", err)
		}
		cancel()
	}
}

// watchClients lists the clients as fast as it can for d, longer where the limit was not reached
// because the machine is busy, and now and then kills one of them.
func watchClients(t *testing.T, s *redistest.Server, d time.Duration, limit int) (samples, highest, over int) {
	t.Helper()
	admin := s.Admin()
	start := time.Now()
	for ; time.Since(start) < d || highest < limit && time.Since(start) < 10*d; samples++ {
		ids := listIDs(t, admin)
		n := len(ids) - 1 // the admin's
		if n > limit {
			// The server may serve a new connection and CLIENT LIST before it handles the end of an old
			// connection. The next list no longer holds the old connection.
			next := listIDs(t, admin)
			ids = slices.DeleteFunc(ids, func(id string) bool { return !slices.Contains(next, id) })
			n = len(ids) - 1
		}
		highest = max(highest, n)
		if n > limit {
			over++
		}
		if samples%20 == 0 && n > 0 {
			_, err := admin.Do("CLIENT", "KILL", "ID", ids[rand.N(len(ids))], "SKIPME", "yes")
			require.NoError(t, err)
		}
	}
	return samples, highest, over
}

// listIDs returns the ids of all clients, the admin's included.
func listIDs(t *testing.T, admin redis.Conn) (ids []string) {
	t.Helper()
	list, err := redis.String(admin.Do("CLIENT", "LIST"))
	require.NoError(t, err)
	for line := range strings.Lines(list) {
		id, _, _ := strings.Cut(strings.TrimPrefix(line, "id="), " ")
		ids = append(ids, id)
	}
	return ids
}

// Under TLS as without: a dead idle connection is found, and the server never sees more than the maximum.
func TestTheRulesHoldUnderTLS(t *testing.T) {
	redistest.NoLeaks(t)
	certs := redistest.NewCerts(t)
	s := redistest.StartTLS(t, certs, certs.Server)
	p := startPoolAt(t, s, "rediss://"+s.TLSAddr, sizes(3, 3, rediscache.WithMaxConnLifetime(time.Millisecond),
		rediscache.WithTLSConfig(certs.ClientConfig()))...)
	requireReady(t, p)
	chaos(t, s, p, 3, 500*time.Millisecond)
}
