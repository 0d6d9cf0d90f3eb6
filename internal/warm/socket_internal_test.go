package warm

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// socketPair returns both ends of a connection.
func socketPair(t *testing.T) (*Socket, *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = ln.Close() }()
	near, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	far, err := ln.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = far.Close() })
	return NewSocket(near), far.(*net.TCPConn)
}

func TestCloseUnblocksAReaderAndTellsTheServer(t *testing.T) {
	s, far := socketPair(t)
	read := make(chan error)
	go func() {
		_, err := s.Read(make([]byte, 1))
		read <- err
	}()
	require.NoError(t, s.Close())
	require.ErrorIs(t, <-read, net.ErrClosed)
	_, err := far.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)

	require.ErrorIs(t, s.SetDeadline(time.Time{}), net.ErrClosed, "nobody takes the end back")
	require.ErrorIs(t, s.SetReadDeadline(time.Time{}), net.ErrClosed)
	require.ErrorIs(t, s.SetWriteDeadline(time.Time{}), net.ErrClosed)
	_, err = s.Write([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed)
	require.False(t, s.quiet())
	require.NoError(t, s.Close())
	s.Shut()
}

func TestShutWaitsForTheServerWhoeverClosedFirst(t *testing.T) {
	for _, closed := range []bool{false, true} {
		s, far := socketPair(t)
		if closed {
			require.NoError(t, s.Close())
		}
		_, err := far.Write([]byte("what nobody reads"))
		require.NoError(t, err)
		shut := make(chan struct{})
		go func() {
			defer close(shut)
			s.Shut()
		}()
		_, err = far.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		select {
		case <-shut:
			t.Fatal("it did not wait for the server")
		default:
		}
		require.NoError(t, far.Close())
		<-shut
	}
}

func TestShutDoesNotWaitForEver(t *testing.T) {
	s, _ := socketPair(t)
	start := time.Now()
	s.Shut()
	require.GreaterOrEqual(t, time.Since(start), linger)
	require.Less(t, time.Since(start), 20*linger)
}

func TestASocketIsQuietUntilSomethingComes(t *testing.T) {
	s, far := socketPair(t)
	if s.peek == nil {
		t.Skip("sockets cannot be looked at here")
	}
	require.True(t, s.quiet())
	_, err := far.Write([]byte("x"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !s.quiet() }, 5*time.Second, time.Millisecond)
	_, err = s.Read(make([]byte, 1))
	require.NoError(t, err)
	require.True(t, s.quiet())
	require.NoError(t, far.Close())
	require.Eventually(t, func() bool { return !s.quiet() }, 5*time.Second, time.Millisecond)
	s.Shut()
}
