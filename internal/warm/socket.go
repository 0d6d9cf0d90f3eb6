package warm

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Socket is closed in two steps, because the server counts a connection until
// it has read its end. Close, which redigo calls at the first error, ends
// reads and writes and tells the server so; Shut then waits for the server.
// Between the two the slot is taken.
type Socket struct {
	net.Conn
	peek func() bool // nil where it cannot be looked at

	mu    sync.Mutex // guards ended, and that no deadline is set after it
	ended bool
}

// NewSocket wraps a socket, whose owner then calls Shut.
func NewSocket(c net.Conn) *Socket { return &Socket{Conn: c, peek: peeker(c)} }

// Read fails with net.ErrClosed after Close.
func (s *Socket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	return n, s.reason(err)
}

// Write fails with net.ErrClosed after Close.
func (s *Socket) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	return n, s.reason(err)
}

// reason tells an end that this side wanted from the timeout that it looks like.
func (s *Socket) reason(err error) error {
	if err != nil && s.over() {
		return net.ErrClosed
	}
	return err
}

func (s *Socket) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// SetDeadline fails after Close, as do the other two.
func (s *Socket) SetDeadline(t time.Time) error { return s.arm(s.Conn.SetDeadline, t) }

// SetReadDeadline is one of the other two.
func (s *Socket) SetReadDeadline(t time.Time) error { return s.arm(s.Conn.SetReadDeadline, t) }

// SetWriteDeadline is one of the other two.
func (s *Socket) SetWriteDeadline(t time.Time) error { return s.arm(s.Conn.SetWriteDeadline, t) }

func (s *Socket) arm(set func(time.Time) error, t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return net.ErrClosed
	}
	return set(t)
}

// SyscallConn is that of the socket below.
func (s *Socket) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := s.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// quiet reports that the connection is open and that nothing came which
// nobody asked for. It does not wait.
func (s *Socket) quiet() bool { return !s.over() && (s.peek == nil || s.peek()) }

// Close unblocks whoever reads or writes, now or later, and ends the stream to
// the server. It does not wait.
func (s *Socket) Close() error {
	if s.end(time.Unix(1, 0)) {
		s.endStream()
	}
	return nil
}

// Shut waits, not for long, until the server has closed its side, and closes
// the socket.
func (s *Socket) Shut() {
	until := time.Now().Add(linger)
	s.end(until)
	if s.endStream() && s.Conn.SetDeadline(until) == nil {
		_, _ = io.Copy(io.Discard, s.Conn)
	}
	_ = s.Conn.Close()
}

// end reports whether it was the first; then it sets the last deadline but
// Shut's.
func (s *Socket) end(deadline time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.ended = true
	_ = s.Conn.SetDeadline(deadline) // an error means that it is closed
	return true
}

// endStream reports whether this kind of connection can end one way only. It
// may be called again.
func (s *Socket) endStream() bool {
	half, ok := s.Conn.(interface{ CloseWrite() error })
	if ok {
		_ = half.CloseWrite() // an error means that the server was first
	}
	return ok
}
