package warm

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestASocketPollsWhileRepliesComeWithinTheWindow(t *testing.T) {
	var s turns
	polled := func(reads int) (n int) {
		for range reads {
			if s.polls() {
				n++
			}
		}
		return n
	}
	for range mostDebt / missCosts {
		require.Equal(t, 1, polled(1), "a few misses are no sign")
		s.missed()
	}
	require.Equal(t, 1, polled(1))
	for _, parked := range []int{8, 16, 32, 64, 128, 256, 512, 1024, 1024} {
		s.missed()
		require.Zero(t, polled(parked), "a far server costs less and less")
		require.Equal(t, 1, polled(1))
	}
	s.hit() // the server is near again
	require.Equal(t, 100, polled(100))
	s.missed()
	require.Zero(t, polled(1024), "no, that was one reply of many")

	s = turns{}
	for range 1000 {
		for range missCosts {
			require.True(t, s.polls(), "four of five replies come within the window")
			s.hit()
		}
		require.True(t, s.polls())
		s.missed()
	}
	for range mostDebt / missCosts {
		require.True(t, s.polls(), "no debt is below zero")
		s.missed()
	}
	require.False(t, s.polls())
}

func TestNoSocketPollsWhileOthersWantTheProcessor(t *testing.T) {
	p := NewPoll(time.Microsecond)
	now := epoch
	require.True(t, p.pays(now))
	for _, pause := range []time.Duration{10, 20, 40, 80, 160, 320, 640, 1280, 2000, 2000} {
		pause *= time.Millisecond
		p.contended(now)
		p.contended(now.Add(pause - 1)) // another socket saw the same
		require.False(t, p.pays(now.Add(pause-1)))
		now = now.Add(pause)
		require.True(t, p.pays(now), pause)
	}
	now = now.Add(2*longestPause + 1)
	p.contended(now)
	require.True(t, p.pays(now.Add(shortestPause)), "after a long time without the sign the pause is short")

	require.Nil(t, NewPoll(0))
}

// A polling socket returns what a socket that does not poll returns.
func TestAReadThatPolls(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no socket polls there")
	}
	const long = time.Hour // so that a read which does not see the bytes never ends
	pair := func(window time.Duration) (*Socket, *net.TCPConn) {
		plain, far := socketPair(t)
		s := NewSocket(plain.Conn, NewPoll(window))
		s.setTerse(false)
		t.Cleanup(func() { _ = s.Conn.Close() })
		require.NotNil(t, s.poll)
		return s, far
	}
	buf := make([]byte, 10)
	for name, window := range map[string]time.Duration{"within the window": long, "parked": 1} {
		t.Run(name, func(t *testing.T) {
			s, far := pair(window)
			for _, said := range []string{"a", "0123456789", "b"} {
				read := make(chan []byte)
				go func() {
					n, err := s.Read(buf)
					require.NoError(t, err)
					read <- buf[:n]
				}()
				runtime.Gosched()
				_, err := io.WriteString(far, said)
				require.NoError(t, err)
				require.Equal(t, said, string(<-read))
			}
			n, err := s.Read(nil)
			require.NoError(t, err)
			require.Zero(t, n)

			require.NoError(t, far.CloseWrite())
			_, err = s.Read(buf)
			require.Equal(t, io.EOF, err)
		})
	}
	t.Run("a deadline that is over", func(t *testing.T) {
		s, _ := pair(long)
		require.NoError(t, s.SetReadDeadline(time.Unix(1, 0)))
		_, err := s.Read(buf)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		var op *net.OpError
		require.ErrorAs(t, err, &op)
		require.Equal(t, "read", op.Op)
	})
	t.Run("a deadline that passes while the read is parked", func(t *testing.T) {
		s, _ := pair(1)
		require.NoError(t, s.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
		_, err := s.Read(buf)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	})
	t.Run("Close while the read is parked", func(t *testing.T) {
		s, _ := pair(1)
		read := make(chan error)
		go func() {
			_, err := s.Read(buf)
			read <- err
		}()
		require.NoError(t, s.Close())
		require.ErrorIs(t, <-read, net.ErrClosed)
	})
	t.Run("a reset", func(t *testing.T) {
		s, far := pair(long)
		require.NoError(t, far.SetLinger(0))
		require.NoError(t, far.Close())
		_, err := s.Read(buf)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		var op *net.OpError
		require.True(t, errors.As(err, &op) && op.Op == "read" && op.Addr != nil, "%v", err)
	})
	t.Run("much", func(t *testing.T) {
		s, far := pair(50 * time.Microsecond)
		said := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		go func() {
			_, _ = far.Write(said)
			_ = far.CloseWrite()
		}()
		heard, err := io.ReadAll(s)
		require.NoError(t, err)
		require.True(t, bytes.Equal(said, heard))
	})
}

func TestAPollThatTakesNoMemory(t *testing.T) {
	plain, far := socketPair(t)
	s := NewSocket(plain.Conn, NewPoll(time.Hour))
	defer func() { _ = s.Conn.Close() }()
	s.setTerse(false)
	buf := make([]byte, 8)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, err := far.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(s, buf); err != nil {
			t.Fatal(err)
		}
	}))
}
