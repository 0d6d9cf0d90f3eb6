package rediscache_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

func TestRenewReplacesEveryConnectionAndFailsNoRead(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		p := newPool(t, s.URL(), rediscache.WithMinIdle(3))
		c, ctx := newCache(t, p), t.Context()
		require.NoError(t, c.Set(ctx, "k", []byte("v"), 0))
		requireReady(t, p)
		var wg sync.WaitGroup
		stop := make(chan struct{})
		end := sync.OnceFunc(func() { close(stop); wg.Wait() })
		defer end()
		for range 16 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := c.Get(ctx, "k"); err != nil {
						t.Error(err)
					}
				}
			})
		}
		borrowed, err := p.GetContext(ctx)
		require.NoError(t, err)
		before := p.Stats()
		p.Renew()
		redistest.Eventually(t, func() bool { _, err := borrowed.Do("PING"); return err != nil }, "it is cut")
		require.NoError(t, borrowed.Close())
		requireReady(t, p)
		end()
		require.GreaterOrEqual(t, p.Stats().Closed.Broken-before.Closed.Broken, int64(before.Idle+before.InUse))
	})
}

// A server that hangs keeps dials for as long as their timeout.
func TestRenewEndsTheDialsInFlight(t *testing.T) {
	s := redistest.StartMini(t)
	silent := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		<-c.Done
		return nil, true
	})
	var address atomic.Value
	address.Store(silent.Addr)
	var heard poolEvents
	p := newPool(t, "redis://localhost", rediscache.WithDialTimeout(time.Minute), rediscache.WithPoolObserver(heard.observe),
		rediscache.WithAddress(func(context.Context) (string, error) { return address.Load().(string), nil }))
	redistest.Eventually(t, func() bool { return silent.Count("PING") > 0 }, "dials wait for an answer")
	address.Store(s.Addr)
	p.Renew()
	requireReady(t, p)
	require.Zero(t, p.Stats().DialFailures)
	require.Empty(t, heard.of(rediscache.PoolDown))
	silent.HangUp()
}

func TestTheErrorOfWithAddressOrWithOnConnectFailsTheDial(t *testing.T) {
	s := redistest.StartMini(t)
	failure := errors.New("not here")
	for name, opt := range map[string]rediscache.PoolOption{
		"WithAddress":   rediscache.WithAddress(func(context.Context) (string, error) { return "", failure }),
		"WithOnConnect": rediscache.WithOnConnect(func(context.Context, redis.Conn) error { return failure }),
	} {
		p := newPool(t, s.URL(), opt)
		redistest.Eventually(t, func() bool { return p.Stats().DialFailures > 0 }, "a dial failed")
		_, err := p.GetContext(t.Context())
		require.ErrorIs(t, err, failure, name)
		require.ErrorIs(t, err, rediscache.ErrUnavailable, name)
	}
	_, err := rediscache.NewPool(s.URL(),
		rediscache.WithAddress(func(context.Context) (string, error) { return "", nil }),
		rediscache.WithDialFunc(func(context.Context) (redis.Conn, error) { return nil, failure }))
	require.ErrorContains(t, err, "leave WithAddress out")
}

func TestWithOnConnectSeesEachConnectionOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for _, hidden := range []bool{false, true} {
			var seen atomic.Int64
			opts := []rediscache.PoolOption{rediscache.WithMinIdle(3), rediscache.WithOnConnect(func(_ context.Context, c redis.Conn) error {
				seen.Add(1)
				_, err := c.Do("GET", "k")
				return err
			})}
			if hidden {
				opts = append(opts, rediscache.WithDialFunc(func(ctx context.Context) (redis.Conn, error) {
					return redis.DialContext(ctx, "tcp", s.Addr)
				}))
			}
			p := newPool(t, s.URL(), opts...)
			requireReady(t, p)
			require.EqualValues(t, 3, seen.Load())
		}
	})
}
