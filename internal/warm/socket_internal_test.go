package warm

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
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
	return NewSocket(near, nil), far.(*net.TCPConn)
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
		began := time.Now()
		shut := make(chan struct{})
		go func() {
			defer close(shut)
			s.Shut()
		}()
		_, err = far.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		select {
		case <-shut:
			require.GreaterOrEqual(t, time.Since(began), linger, "it did not wait for the server")
		default:
		}
		require.NoError(t, far.Close())
		<-shut
	}
}

// asleep is the socket of a process that stands still, for so long, while it reads.
type asleep struct {
	net.Conn // nil: what is not overridden is not called
	stands   []time.Duration
	deadline time.Time
	reads    int
}

func (a *asleep) CloseWrite() error               { return nil }
func (a *asleep) Close() error                    { return nil }
func (a *asleep) SetDeadline(due time.Time) error { a.deadline = due; return nil }

func (a *asleep) Read([]byte) (int, error) {
	time.Sleep(time.Until(a.deadline) + a.stands[a.reads])
	a.reads++
	return 0, os.ErrDeadlineExceeded
}

func TestShutOfAProcessThatStoodStillWaitsForTheServerAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &asleep{stands: []time.Duration{time.Minute, 2 * lateTimer, 0, 0}}
		began := time.Now()
		NewSocket(a, nil).Shut()
		require.Equal(t, 3, a.reads)
		require.Equal(t, time.Minute+2*linger+4*lateTimer, time.Since(began))
	})
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
	_, err := far.Write([]byte("+"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !s.quiet() }, 5*time.Second, time.Millisecond)
	_, err = s.Read(make([]byte, 1))
	require.NoError(t, err)
	require.True(t, s.quiet())
	require.NoError(t, far.Close())
	require.Eventually(t, func() bool { return !s.quiet() }, 5*time.Second, time.Millisecond)
	s.Shut()
}

// refusing is a server that has said why and hung up.
type refusing struct {
	net.Conn
	said io.Reader
}

var errReset = errors.New("reset")

func (r *refusing) Read(p []byte) (int, error)     { return r.said.Read(p) }
func (*refusing) Write([]byte) (int, error)        { return 0, errReset }
func (*refusing) SetDeadline(time.Time) error      { return nil }
func (*refusing) SetReadDeadline(time.Time) error  { return nil }
func (*refusing) SetWriteDeadline(time.Time) error { return nil }
func (*refusing) Close() error                     { return nil }

func TestWhatTheServerSaidIsReadBeforeAFailedWriteIsToldDuringADial(t *testing.T) {
	s := NewSocket(&refusing{said: strings.NewReader("-why\r\n")}, nil)
	n, err := s.Write([]byte("hello"))
	require.NoError(t, err)
	require.Equal(t, 5, n)
	said, err := io.ReadAll(s)
	require.Equal(t, "-why\r\n", string(said))
	require.ErrorIs(t, err, errReset, "and not the end of the stream")
	require.NoError(t, s.Close())
	_, err = s.Read(make([]byte, 1))
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = s.Write([]byte("hello"))
	require.ErrorIs(t, err, net.ErrClosed)

	s = NewSocket(&refusing{said: strings.NewReader("")}, nil)
	s.setTerse(false)
	_, err = s.Write([]byte("hello"))
	require.ErrorIs(t, err, errReset, "later it matters what was sent")
	_, err = s.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

func TestADialAndAProbeHearLinesOrTLSAndNothingElse(t *testing.T) {
	for said, passes := range map[string]bool{
		"+OK\r\n-ERR no\r\n":              true,
		"\x16\x03\x03 anything\n$*":       true,
		"\x15\x03\x03":                    true,
		"$9223372036854775807\r\n":        false,
		"*1000000000\r\n":                 false,
		"+OK\r\n*1\r\n*1\r\n":             false,
		"+OK\r\n\x16":                     false,
		"HTTP/1.1 400 Bad Request\r\n":    false,
		"\r\n":                            false,
		"+" + strings.Repeat("x", 64<<10): false,
	} {
		s := NewSocket(&refusing{said: iotest.OneByteReader(strings.NewReader(said))}, nil)
		_, err := io.ReadAll(s)
		require.Equal(t, passes, err == nil, said)
		if !passes {
			require.ErrorIs(t, err, errNotRedis)
		}
		s = NewSocket(&refusing{said: strings.NewReader(said)}, nil)
		s.setTerse(false)
		_, err = io.ReadAll(s)
		require.NoError(t, err, "others may say what they like")
	}
}
