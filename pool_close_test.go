package rediscache_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

func TestShutdownWaitsForBorrowersWhoseConnectionsGoOnWorking(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(2, 3)...)
	conns := borrowMany(t, p, 3)
	waiter := make(chan error)
	go func() { waiter <- ping(context.Background(), p) }()
	redistest.Eventually(t, func() bool { return p.Stats().Waiting == 1 }, "one waits")

	shut := make(chan error, 1)
	go func() { shut <- p.Shutdown(context.Background()) }()
	require.ErrorIs(t, <-waiter, rediscache.ErrClosed)
	_, err := p.GetContext(context.Background())
	require.ErrorIs(t, err, rediscache.ErrClosed)
	require.ErrorIs(t, p.Ready(context.Background()), rediscache.ErrClosed)
	for i, conn := range conns {
		require.NoError(t, systest.Second(conn.Do("SET", "k", "v")))
		giveBack(t, conn)
		eventuallyClients(t, s, len(conns)-1-i)
		if i < len(conns)-1 {
			require.Empty(t, shut, "it waits for the others")
		}
	}
	require.NoError(t, <-shut)
	require.EqualValues(t, 3, p.Stats().Closed.Shutdown)
}

func TestShutdownUnblocksBorrowersWhenItsContextEnds(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(1, 5)...)
	blocked := make(chan error)
	for range 2 {
		conn := borrowOne(t, p)
		go func() {
			_, err := redis.DoWithTimeout(conn, 0, "BLPOP", "nothing", 0)
			_ = conn.Close()
			blocked <- err
		}()
	}
	redistest.Eventually(t, func() bool { return blockedClients(s, t.Name()) == 2 }, "two blocked")
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := p.Shutdown(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "2 connections")
	require.Zero(t, p.Stats().Open)
	require.Error(t, <-blocked)
	require.Error(t, <-blocked)
	eventuallyClients(t, s, 0)
}

func blockedClients(s *redistest.Server, name string) (n int) {
	for _, c := range s.Clients(name) {
		if c.Cmd == "blpop" {
			n++
		}
	}
	return n
}

func TestCloseEndsBorrowersAndWaitersAtOnce(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(0, 1)...)
	conn := borrowOne(t, p)
	blocked, waiter := make(chan error), make(chan error)
	go func() {
		_, err := redis.DoWithTimeout(conn, 0, "BLPOP", "nothing", 0)
		blocked <- err
	}()
	go func() { waiter <- ping(context.Background(), p) }()
	redistest.Eventually(t, func() bool { return blockedClients(s, t.Name()) == 1 && p.Stats().Waiting == 1 }, "both")
	require.NoError(t, p.Close())
	require.Empty(t, s.Clients(t.Name()), "Close waits until the server is done with them")
	require.Error(t, <-blocked)
	require.ErrorIs(t, <-waiter, rediscache.ErrClosed)
	_ = conn.Close() // late, and of no effect
	require.Zero(t, p.Stats().Open)
	require.NoError(t, p.Close())
	require.NoError(t, p.Shutdown(context.Background()))
}

func TestCloseDoesNotWaitForAServerThatIsStopped(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(5, 10)...)
	conn := borrowOne(t, p)
	requireReady(t, p)
	s.Stop()
	start := time.Now()
	require.NoError(t, p.Close())
	require.Less(t, time.Since(start), 3*time.Second)
	require.Zero(t, p.Stats().Open)
	_ = conn.Close()
	s.Cont()
}

// A server that accepts and says nothing holds a dial in the TLS handshake, in AUTH or in the PING.
func TestCloseEndsADialThatHangs(t *testing.T) {
	for _, url := range []string{"rediss://", "redis://:secret@", "redis://"} {
		t.Run(url, func(t *testing.T) {
			redistest.NoLeaks(t)
			addr, accepted := redistest.SilentListener(t)
			p, err := rediscache.NewPool(url+addr, sizes(1, 2, rediscache.WithDialTimeout(15*time.Second))...)
			require.NoError(t, err)
			<-accepted
			start := time.Now()
			require.NoError(t, p.Close())
			require.Less(t, time.Since(start), 5*time.Second)
			require.Zero(t, p.Stats().Open)
		})
	}
}

func TestADialThatHangsEndsAtTheDialTimeout(t *testing.T) {
	for _, url := range []string{"rediss://", "redis://:secret@", "redis://"} {
		t.Run(url, func(t *testing.T) {
			redistest.NoLeaks(t)
			addr, _ := redistest.SilentListener(t)
			p, err := rediscache.NewPool(url+addr, sizes(0, 2, rediscache.WithDialTimeout(100*time.Millisecond))...)
			require.NoError(t, err)
			defer p.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_, err = p.GetContext(ctx)
			require.ErrorIs(t, err, rediscache.ErrUnavailable)
			require.NotErrorIs(t, err, context.DeadlineExceeded, "that would be the caller's")
			require.ErrorContains(t, err, "100ms")
			require.NotContains(t, err.Error(), "closed network connection", "the cut is ours")
			require.NotContains(t, err.Error(), "secret")
			require.NoError(t, ctx.Err())
		})
	}
}

func TestReadyEndsWithItsContextWhileADialHangs(t *testing.T) {
	for _, url := range []string{"rediss://", "redis://:secret@", "redis://"} {
		t.Run(url, func(t *testing.T) {
			redistest.NoLeaks(t)
			addr, accepted := redistest.SilentListener(t)
			p, err := rediscache.NewPool(url+addr, sizes(1, 2, rediscache.WithDialTimeout(15*time.Second))...)
			require.NoError(t, err)
			defer p.Close()
			<-accepted
			ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
			defer cancel()
			start := time.Now()
			require.ErrorIs(t, p.Ready(ctx), context.DeadlineExceeded)
			require.Less(t, time.Since(start), 5*time.Second)
		})
	}
}

// The server's side tells: a socket that is gone answers bytes with a reset, one that only ended its
// stream takes them.
func TestAFailedDialLeavesNoSocket(t *testing.T) {
	redistest.NoLeaks(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = ln.Close() }()
	p, err := rediscache.NewPool("redis://:secret@"+ln.Addr().String(), sizes(1, 1)...)
	require.NoError(t, err)
	defer p.Close()
	conn, err := ln.Accept()
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = conn.Write([]byte("-ERR go away\r\n")) // to the AUTH
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, conn)
	require.NoError(t, err)
	redistest.Eventually(t, func() bool { _, err := conn.Write([]byte("x")); return err != nil }, "a reset")
}

func TestAllEndsAtOnceLeaveNothing(t *testing.T) {
	s := poolServer(t)
	for range 20 {
		p := startPool(t, s, sizes(2, 6, rediscache.WithCredentials(func(context.Context) (string, string, error) {
			time.Sleep(rand.N(3 * time.Millisecond)) // dials are under way at any moment
			return "", "", nil
		}))...)
		var callers, ends sync.WaitGroup
		for range 24 {
			callers.Go(func() {
				for {
					ctx, cancel := context.WithTimeout(context.Background(), rand.N(5*time.Millisecond))
					err := ping(ctx, p)
					cancel()
					if errors.Is(err, rediscache.ErrClosed) {
						return
					}
				}
			})
		}
		redistest.Eventually(t, func() bool { return p.Stats().Dials >= 4 }, "some dials")
		for range 2 {
			ends.Go(func() { _ = p.Close() })
			ends.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), rand.N(5*time.Millisecond))
				defer cancel()
				_ = p.Shutdown(ctx)
			})
		}
		ends.Wait()
		require.Zero(t, p.Stats().Open)
		callers.Wait()
		eventuallyClients(t, s, 0)
	}
}
