package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/internal/proxy"
)

// echo answers each connection with what it sent, and at its end with the end.
func echo(t *testing.T) string {
	t.Helper()
	l := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// serve runs a proxy to target until the test ends or stop is called, which
// waits for its end.
func serve(t *testing.T, target string, delay time.Duration) (addr string, stop func()) {
	t.Helper()
	l := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- proxy.Serve(ctx, l, target, delay) }()
	stop = func() {
		cancel()
		if err, ok := <-done; ok {
			require.NoError(t, err)
			close(done)
		}
	}
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	return c.(*net.TCPConn)
}

func TestARoundTripTakesTheDelayTwice(t *testing.T) {
	const delay = 20 * time.Millisecond
	addr, _ := serve(t, echo(t), delay)
	c := dial(t, addr)
	for range 3 {
		begin := time.Now()
		_, err := c.Write([]byte("ping"))
		require.NoError(t, err)
		_, err = io.ReadFull(c, make([]byte, 4))
		require.NoError(t, err)
		require.GreaterOrEqual(t, time.Since(begin), 2*delay-100*time.Microsecond)
	}
}

// A proxy that sleeps after each read makes what comes meanwhile wait for the
// end of the sleep and then sleep itself: three chunks of four would be late by
// a quarter of the delay and more.
func TestAChunkDoesNotWaitForTheChunksBeforeIt(t *testing.T) {
	const delay, chunks = 200 * time.Millisecond, 200
	addr, _ := serve(t, echo(t), delay)
	c := dial(t, addr)
	sent := make(chan time.Time, chunks)
	go func() {
		tick := time.NewTicker(2 * time.Millisecond) // so that each is a chunk of its own
		defer tick.Stop()
		for range chunks {
			<-tick.C
			sent <- time.Now()
			_, _ = c.Write([]byte("x")) // the reader sees what is missing
		}
	}()
	var late int
	for range chunks {
		_, err := io.ReadFull(c, make([]byte, 1))
		require.NoError(t, err)
		if time.Since(<-sent) > 2*delay+delay/4 {
			late++
		}
	}
	require.Less(t, late, chunks/2)
}

func TestEveryByteArrivesInOrder(t *testing.T) {
	addr, _ := serve(t, echo(t), time.Millisecond)
	c := dial(t, addr)
	sent := make([]byte, 4<<20)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(sent)
	go func() {
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c) // up to the end, which is passed on both ways
	require.NoError(t, err)
	require.True(t, bytes.Equal(sent, got))
}

func TestServeEndsItsConnectionsWithItsContext(t *testing.T) {
	addr, stop := serve(t, echo(t), time.Millisecond)
	c := dial(t, addr)
	_, err := c.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)
	stop()
	_, err = c.Read(make([]byte, 1))
	require.Error(t, err)
	_, err = net.Dial("tcp", addr)
	require.Error(t, err)
}

func TestAClientOfADeadTargetIsHungUpOn(t *testing.T) {
	l := listen(t)
	require.NoError(t, l.Close())
	addr, _ := serve(t, l.Addr().String(), time.Millisecond)
	_, err := dial(t, addr).Read(make([]byte, 1))
	require.Error(t, err)
}

func TestMainPrintsItsAddressAndEndsWithItsInput(t *testing.T) {
	in, parent := io.Pipe()
	out, said := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- proxy.Main([]string{"-target", echo(t), "-delay", "1ms"}, in, said) }()
	addr, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	c := dial(t, strings.TrimSpace(addr))
	_, err = c.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, parent.Close())
	require.NoError(t, <-done)
}
