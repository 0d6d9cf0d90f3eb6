package redistest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
)

func TestProxyPassesBothWaysAndCounts(t *testing.T) {
	redistest.NoLeaks(t)
	p, client, server := wire(t)
	sends(t, client, server, "to the server")
	sends(t, server, client, "to the client")
	require.Equal(t, 1, p.Accepted())
	require.NoError(t, client.CloseWrite())
	requireEOF(t, server)
	sends(t, server, client, "still open this way")
	require.NoError(t, server.Close())
	requireEOF(t, client)
}

func TestProxyDelaysWithoutSerialising(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.StartMini(t)
	p := redistest.NewProxy(t, s.Addr)
	p.Delay(redistest.Up, 20*time.Millisecond, 0)
	p.Delay(redistest.Down, 20*time.Millisecond, time.Millisecond)
	c := dial(t, p.Addr)
	began := time.Now()
	_, err := c.Do("PING")
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(began), 40*time.Millisecond)

	began = time.Now()
	const n = 200
	for range n {
		require.NoError(t, c.Send("PING"))
		require.NoError(t, c.Flush())
	}
	for range n {
		_, err := c.Receive()
		require.NoError(t, err)
	}
	require.Less(t, time.Since(began), n*40*time.Millisecond/4, "the round trips did not overlap")
}

func TestProxyCutsAfterExactlySoManyBytes(t *testing.T) {
	for _, reset := range []bool{false, true} {
		for _, n := range []int{0, 1, 5, 10} {
			p, client, server := wire(t)
			sends(t, client, server, "before the call")
			p.Cut(redistest.Up, n, reset)
			_, err := client.Write([]byte("0123456789"))
			require.NoError(t, err)
			got, err := io.ReadAll(server)
			require.Equal(t, "0123456789"[:n], string(got))
			if !reset {
				require.NoError(t, err)
				requireEOF(t, client)
				for range 2 { // the second would fail after a reset
					_, err = client.Write([]byte("late"))
					require.NoError(t, err)
				}
			} else {
				require.ErrorIs(t, err, syscall.ECONNRESET)
				_, err = client.Read(make([]byte, 1))
				require.ErrorIs(t, err, syscall.ECONNRESET)
			}
			p.Close()
		}
	}
}

func TestProxyCutsOneConnectionOnly(t *testing.T) {
	s := redistest.StartMini(t)
	p := redistest.NewProxy(t, s.Addr)
	p.Cut(redistest.Down, 3, false) // of "+PONG\r\n"
	_, err := dial(t, p.Addr).Do("PING")
	require.ErrorIs(t, err, io.EOF)
	_, err = dial(t, p.Addr).Do("PING")
	require.NoError(t, err)
}

func TestProxyBlackholesAndResumes(t *testing.T) {
	redistest.NoLeaks(t)
	p, client, server := wire(t)
	p.Blackhole()
	_, err := client.Write([]byte("held"))
	require.NoError(t, err)
	require.NoError(t, server.CloseWrite())
	requireSilence(t, server)
	requireSilence(t, client)
	p.Resume()
	got := make([]byte, 4)
	_, err = io.ReadFull(server, got)
	require.NoError(t, err)
	require.Equal(t, "held", string(got))
	requireEOF(t, client)
}

func TestProxyClosesInABlackhole(t *testing.T) {
	redistest.NoLeaks(t)
	p, client, _ := wire(t)
	p.Delay(redistest.Up, time.Hour, 0)
	p.Blackhole()
	_, err := client.Write([]byte("lost"))
	require.NoError(t, err)
	p.Close()
	p.Close()
	_, err = client.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestProxyTricklesAndCorrupts(t *testing.T) {
	p, client, server := wire(t)
	p.Trickle(redistest.Up, time.Millisecond)
	p.Corrupt(redistest.Up, 3)
	began := time.Now()
	_, err := client.Write([]byte("0123456789"))
	require.NoError(t, err)
	got := make([]byte, 10)
	_, err = io.ReadFull(server, got)
	require.NoError(t, err)
	require.Equal(t, []byte("012\xcc456789"), got)
	require.GreaterOrEqual(t, time.Since(began), 9*time.Millisecond)
	p.Heal()
	sends(t, client, server, "whole again")
}

func TestProxyResetsAndRefuses(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.StartMini(t)
	p := redistest.NewProxy(t, s.Addr)
	a, b := dial(t, p.Addr), dial(t, p.Addr)
	for _, c := range []redis.Conn{a, b} {
		_, err := c.Do("PING")
		require.NoError(t, err)
	}
	p.Refuse()
	_, err := net.Dial("tcp", p.Addr)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	_, err = a.Do("PING")
	require.NoError(t, err, "an open connection stays")
	p.Heal()
	dial(t, p.Addr)
	p.Reset()
	for _, c := range []redis.Conn{a, b} {
		_, err := c.Do("PING")
		require.True(t, errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE), "%v", err)
	}
}

func TestProxySendsNewConnectionsElsewhere(t *testing.T) {
	redistest.NoLeaks(t)
	one, other := redistest.StartMini(t), redistest.StartMini(t)
	p := redistest.NewProxy(t, one.Addr)
	before := dial(t, p.Addr)
	_, err := before.Do("PING") // so that the proxy has taken it
	require.NoError(t, err)
	p.Redirect(other.Addr)
	after := dial(t, p.Addr)
	for _, c := range []redis.Conn{before, after} {
		_, err := c.Do("SET", "k", "v")
		require.NoError(t, err)
		require.EqualValues(t, 1, one.Do("DBSIZE"))
	}
	require.EqualValues(t, 1, other.Do("DBSIZE"))
}

func TestProxyToADeadServerResets(t *testing.T) {
	s := redistest.Start(t)
	p := redistest.NewProxy(t, s.Addr)
	s.Kill()
	c, err := redis.Dial("tcp", p.Addr)
	if err == nil { // the reset may come as early as in connect
		_, err = c.Do("PING")
	}
	require.Error(t, err)
	s.Restart()
	_, err = dial(t, p.Addr).Do("PING")
	require.NoError(t, err)
}

func TestProxyCarriesMegabytes(t *testing.T) {
	p, client, server := wire(t)
	p.Delay(redistest.Up, time.Millisecond, time.Millisecond)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	failed := make(chan error, 1)
	go func() {
		_, err := client.Write(sent)
		failed <- err
	}()
	got := make([]byte, len(sent))
	_, err := io.ReadFull(server, got)
	require.NoError(t, err)
	require.NoError(t, <-failed)
	require.True(t, bytes.Equal(sent, got), "the bytes changed on their way")
}

func TestScriptPlaysWhatItIsTold(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		switch {
		case c.Name() == "GET" && c.Args[1] == "extra":
			return []byte("$1\r\na\r\n$1\r\nb\r\n"), false
		case c.Name() == "GET" && c.Args[1] == "cut":
			return []byte("$10\r\nabc"), true
		case c.Name() == "GET" && c.Args[1] == "loading":
			return []byte("-LOADING Redis is loading\r\n"), false
		case c.Name() == "WHO":
			return fmt.Appendf(nil, "+%d.%d\r\n", c.Conn, c.Seq), false
		case c.Name() == "WAIT":
			<-c.Done
			return nil, true
		}
		return redistest.Default(c), false
	})
	c := dial(t, s.Addr, redis.DialClientName("x"))
	_, err := c.Do("get", "loading")
	require.ErrorContains(t, err, "LOADING")
	got, err := redis.String(c.Do("GET", "extra"))
	require.NoError(t, err)
	require.Equal(t, "a", got)
	got, err = redis.String(c.Do("PING"))
	require.NoError(t, err)
	require.Equal(t, "b", got, "the extra reply is read as PING's")

	other := dial(t, s.Addr)
	got, err = redis.String(other.Do("WHO"))
	require.NoError(t, err)
	require.Equal(t, "1.0", got)
	got, err = redis.String(other.Do("WHO"))
	require.NoError(t, err)
	require.Equal(t, "1.1", got)
	_, err = other.Do("GET", "cut")
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Equal(t, 3, s.Count("GET"))
	// CLIENT SETNAME too, and PING, which was answered before it was read.
	redistest.Eventually(t, func() bool { return s.Count("") == 7 }, "not 7 commands: %d", s.Count(""))
	require.Equal(t, 2, s.Accepted())

	waiting := dial(t, s.Addr)
	require.NoError(t, waiting.Send("WAIT"))
	require.NoError(t, waiting.Flush())
	redistest.Eventually(t, func() bool { return s.Count("WAIT") == 1 }, "WAIT was not received")
}

func TestScriptPushesAndHangsUp(t *testing.T) {
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false })
	c := dial(t, s.Addr)
	_, err := c.Do("PING")
	require.NoError(t, err)
	s.Push([]byte("+unasked\r\n"))
	got, err := redis.String(c.Receive())
	require.NoError(t, err)
	require.Equal(t, "unasked", got)
	s.HangUp()
	_, err = c.Receive()
	require.Error(t, err)
}

func TestScriptRefusesWhatIsNoCommand(t *testing.T) {
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false })
	for _, bad := range []string{
		"PING\r\n", "*0\r\n", "*-1\r\n", "*99999999\r\n", "*1\r\n$-1\r\n", "*1\r\n$999999999999\r\n",
		"*1\r\n$4\r\nPINGxx", "*\r\n", "\r\n", "*1\n",
	} {
		c, err := net.Dial("tcp", s.Addr)
		require.NoError(t, err)
		_, err = c.Write([]byte(bad))
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(5*time.Second)))
		n, err := c.Read(make([]byte, 1))
		require.Zero(t, n)
		require.False(t, isTimeout(err), "%q was not refused", bad)
		require.NoError(t, c.Close())
	}
	require.Zero(t, s.Count(""))
}

// wire returns the two ends of a connection through a new proxy.
func wire(t *testing.T) (p *redistest.Proxy, client, server *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = ln.Close() }()
	p = redistest.NewProxy(t, ln.Addr().String())
	c, err := net.Dial("tcp", p.Addr)
	require.NoError(t, err)
	s, err := ln.Accept()
	require.NoError(t, err)
	for _, conn := range []net.Conn{c, s} {
		t.Cleanup(func() { _ = conn.Close() })
		require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	}
	return p, c.(*net.TCPConn), s.(*net.TCPConn)
}

func sends(t *testing.T, from, to net.Conn, what string) {
	t.Helper()
	_, err := from.Write([]byte(what))
	require.NoError(t, err)
	got := make([]byte, len(what))
	_, err = io.ReadFull(to, got)
	require.NoError(t, err)
	require.Equal(t, what, string(got))
}

func requireEOF(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

func requireSilence(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err := c.Read(make([]byte, 1))
	require.True(t, isTimeout(err), "%v", err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}
