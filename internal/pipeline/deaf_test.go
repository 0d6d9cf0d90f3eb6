package pipeline_test

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/redistest"
)

// deaf is a server that answers PING, and reads no more of a connection once it was told STOP,
// or SET, which it does not answer.
func deaf(t *testing.T) (addr string, hangUp func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = ln.Close() })
	var mu sync.Mutex
	var conns []net.Conn
	hangUp = func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			_ = c.Close()
		}
	}
	t.Cleanup(hangUp)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			_ = c.(*net.TCPConn).SetReadBuffer(64 << 10) // so that it takes no more for long
			go func() {
				for r := bufio.NewReader(c); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					switch strings.TrimSpace(line) {
					case "PING":
						_, _ = c.Write([]byte("+PONG\r\n"))
					case "STOP":
						_, _ = c.Write([]byte("+OK\r\n"))
						return
					case "SET":
						return
					}
				}
			}()
		}
	}()
	return ln.Addr().String(), hangUp
}

// Whoever's goroutine writes, and whichever connection it writes to.
func TestNoCallerWaitsForAServerThatDoesNotRead(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	addr, hangUp := deaf(t)
	const patience = 20 * time.Second // of the connections
	pool := &redis.Pool{Dial: func() (redis.Conn, error) {
		return redis.Dial("tcp", addr, redis.DialReadTimeout(patience), redis.DialWriteTimeout(patience))
	}}
	defer pool.Close()
	for name, lease := range map[string]func(context.Context) (redis.Conn, error){
		"a store": leaseOf(t, addr, 10), "a store that redigo writes for": storeOf(t, addr, 10, 0, false), "redigo's pool": pool.GetContext,
	} {
		for _, lanes := range []int{1, 0} {
			p := pipeline.New(pipeline.Config{Borrow: lease, Lanes: lanes, Timeout: time.Second, ReadTimeout: patience})
			_, err := p.Do(t.Context(), pipeline.Read("STOP", 0, pipeline.Status))
			require.NoError(t, err)
			soon, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			var wg sync.WaitGroup
			set := func(ctx context.Context, n, size int) {
				calls := make([]*pipeline.Call, n)
				for i := range calls {
					calls[i] = pipeline.Write("SET", 2, pipeline.Status).String("k").Value(make([]byte, size))
				}
				began := time.Now()
				wg.Go(func() {
					_, errs := p.DoAll(ctx, calls...)
					took := time.Since(began)
					if !errors.Is(errs[0], context.DeadlineExceeded) || took > patience/2 {
						t.Errorf("%s, %d lanes: %d of %d bytes took %v: %v", name, lanes, n, size, took, errs[0])
					}
				})
			}
			set(t.Context(), 100, 60<<10)
			redistest.Eventually(t, func() bool { return lanes == 0 || p.Writing() }, "all are claimed at once")
			set(soon, 100, 60<<10)
			set(soon, 1, 8<<20)
			set(t.Context(), 1, 100)
			wg.Wait()
			cancel()
			hangUp()
			p.Close()
		}
	}
}

func TestACallerThatLeavesRedigosPoolLeavesAtOnceAndCostsNoConnection(t *testing.T) {
	redistest.NoLeaks(t)
	more := make(chan struct{})
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "SET" {
			<-more
		}
		return redistest.Default(c), false
	})
	pool := &redis.Pool{MaxIdle: 1, Dial: func() (redis.Conn, error) { return redis.Dial("tcp", s.Addr) }}
	defer pool.Close()
	p := pipeline.New(pipeline.Config{Borrow: pool.GetContext, Lanes: 0, ReadTimeout: 20 * time.Second})
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := p.Do(ctx, pipeline.Write("SET", 2, pipeline.Status).String("k").String("v"))
		left <- err
	}()
	redistest.Eventually(t, func() bool { return s.Count("SET") == 1 }, "it is on the wire")
	cancel()
	err := <-left
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, err, pipeline.ErrOutcomeUnknown)
	close(more)
	p.Close()
	require.Equal(t, 1, pool.IdleCount())
}

func TestTheWriteTimeoutEndsALaneWhoseServerDoesNotRead(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	addr, hangUp := deaf(t)
	defer hangUp()
	p := pipeline.New(pipeline.Config{
		Borrow: leaseOf(t, addr, 10), Lanes: 1, ReadTimeout: 2 * time.Minute, WriteTimeout: 100 * time.Millisecond,
	})
	defer p.Close()
	_, err := p.Do(t.Context(), pipeline.Read("STOP", 0, pipeline.Status))
	require.NoError(t, err)
	calls := make([]*pipeline.Call, 500) // what is left of them after three retries is still more than sockets hold
	for i := range calls {
		calls[i] = pipeline.Write("SET", 2, pipeline.Status).String("k").Value(make([]byte, 60<<10))
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, errs := p.DoAll(ctx, calls...)
	require.NoError(t, ctx.Err())
	require.ErrorIs(t, errs[0], os.ErrDeadlineExceeded)
	require.ErrorIs(t, errs[0], pipeline.ErrOutcomeUnknown)
}
