package warm

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Socket is the socket of a connection. It is closed in two steps, because the server
// counts a connection until it has read the end of the stream. Close, which redigo calls
// after the first error, ends reads and writes and closes the stream to the server. Shut
// then waits for the server. Until then the connection keeps its slot.
//
// During a dial or a probe the socket is terse: it accepts only replies of one line,
// which are all that redigo needs then, and a bulk PONG. redigo panics on some lengths
// and nestings, and in a dial it does so in a goroutine where nobody can recover. While
// the socket is terse, a failed write does not hide the error reply that the server sent
// before it closed the connection: the next read returns the reply first.
type Socket struct {
	net.Conn
	peek func() bool                 // nil if the platform cannot check the socket
	try  func(p []byte) (int, error) // nil if the platform cannot write without waiting
	poll *poller                     // nil: reads do not poll

	received atomic.Int64 // bytes
	terse    atomic.Bool
	sealed   bool  // used by the reader: the socket carries TLS, so lines cannot be checked
	lines    lines // used by the reader while terse

	mu       sync.Mutex // guards the fields below, and that no deadline is set after ended
	ended    bool
	broken   error         // of a write while terse; the next read returns it
	due      time.Time     // the deadline of reads
	patience time.Duration // from when due was set until due; zero or less: no deadline
}

const tlsAlert, tlsHandshake = 0x15, 0x16 // the first byte of a TLS server may be one of these

// NewSocket wraps a socket, whose reads poll as poll says. The caller must call Shut. The Socket is terse
// at first.
func NewSocket(c net.Conn, poll *Poll) *Socket {
	s := &Socket{Conn: c, peek: peeker(c), try: nonblocking(c), poll: newPoller(c, poll)}
	s.terse.Store(true)
	return s
}

func (s *Socket) setTerse(on bool) {
	s.lines = lines{}
	s.terse.Store(on)
}

// Read returns net.ErrClosed after Close.
func (s *Socket) Read(p []byte) (int, error) {
	n, err := s.poll.read(s.Conn, p)
	for errors.Is(err, os.ErrDeadlineExceeded) && s.goesOn() {
		n, err = s.poll.read(s.Conn, p)
	}
	s.received.Add(int64(n))
	if s.terse.Load() && !s.isTerse(p[:n]) {
		return 0, errNotRedis
	}
	if err == nil {
		return n, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil && !s.ended {
		return n, s.broken
	}
	return n, s.reasonLocked(err)
}

// goesOn extends the deadline of a read that expired while the process was suspended. It
// reports false if it did not extend the deadline.
func (s *Socket) goesOn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.patience <= 0 {
		return false
	}
	more := lost(s.due, s.patience)
	if more == 0 {
		return false
	}
	s.due = time.Now().Add(more)
	return s.Conn.SetReadDeadline(s.due) == nil
}

// isTerse checks the bytes that were read. It accepts bytes that begin as TLS: the TLS
// layer reads them, or redigo returns an error for them if there is none.
func (s *Socket) isTerse(p []byte) bool {
	if s.lines.heard == 0 && len(p) > 0 && (p[0] == tlsHandshake || p[0] == tlsAlert) {
		s.sealed = true
	}
	return s.sealed || s.lines.accept(p)
}

// Write returns net.ErrClosed after Close. While the socket is terse, Write keeps any
// other error but a timeout for the next Read, which returns it after the last bytes.
func (s *Socket) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	if err == nil {
		return n, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terse.Load() && !s.ended && !errors.Is(err, os.ErrDeadlineExceeded) {
		s.broken = err
		return len(p), nil
	}
	return n, s.reasonLocked(err)
}

// CarriesTLS reports whether the server has answered with TLS. It is known after a dial.
func (s *Socket) CarriesTLS() bool { return s.sealed }

// TryWrite waits as Write does if the platform has no other write.
func (s *Socket) TryWrite(p []byte) (int, error) {
	if s.try == nil {
		return s.Write(p)
	}
	return s.try(p)
}

// Waits reports whether TryWrite waits.
func (s *Socket) Waits() bool { return s.try == nil }

// Received returns how many bytes have arrived.
func (s *Socket) Received() int64 { return s.received.Load() }

// reasonLocked returns net.ErrClosed if this side closed the socket, because that looks
// like a timeout, and err otherwise.
func (s *Socket) reasonLocked(err error) error {
	if s.ended {
		return net.ErrClosed
	}
	return err
}

func (s *Socket) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// SetDeadline returns net.ErrClosed after Close.
func (s *Socket) SetDeadline(t time.Time) error { return s.arm(s.Conn.SetDeadline, t, true) }

// SetReadDeadline returns net.ErrClosed after Close.
func (s *Socket) SetReadDeadline(t time.Time) error { return s.arm(s.Conn.SetReadDeadline, t, true) }

// SetWriteDeadline returns net.ErrClosed after Close.
func (s *Socket) SetWriteDeadline(t time.Time) error { return s.arm(s.Conn.SetWriteDeadline, t, false) }

func (s *Socket) arm(set func(time.Time) error, t time.Time, reads bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return net.ErrClosed
	}
	if reads {
		s.due, s.patience = t, time.Until(t)
	}
	return set(t)
}

// SyscallConn returns that of the wrapped socket.
func (s *Socket) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := s.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// quiet reports whether the connection is open and has no unread bytes. It does not wait.
func (s *Socket) quiet() bool { return !s.over() && (s.peek == nil || s.peek()) }

// Close makes all reads and writes fail, now and later, and ends the stream to the
// server. It does not wait.
func (s *Socket) Close() error {
	if s.end(time.Unix(1, 0)) {
		s.endStream()
	}
	return nil
}

// Shut waits up to linger until the server has closed its side, and closes the socket. A
// suspension of the process during the wait extends the wait, at most by linger.
func (s *Socket) Shut() {
	until := time.Now().Add(linger)
	s.end(until)
	for more := linger; s.endStream() && more > 0 && s.Conn.SetDeadline(until) == nil; {
		_, err := io.Copy(io.Discard, s.Conn)
		if more = 0; errors.Is(err, os.ErrDeadlineExceeded) {
			more = lost(until, linger)
		}
		until = time.Now().Add(more)
	}
	_ = s.Conn.Close()
}

// end marks the socket as ended and sets deadline. It reports whether this was the first
// call. After it only Shut sets a deadline.
func (s *Socket) end(deadline time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.ended = true
	_ = s.Conn.SetDeadline(deadline) // an error means that the socket is closed
	return true
}

// endStream closes the stream to the server, and reports whether this kind of connection
// supports that. It may be called again.
func (s *Socket) endStream() bool {
	half, ok := s.Conn.(interface{ CloseWrite() error })
	if ok {
		_ = half.CloseWrite() // an error means that the server closed the connection first
	}
	return ok
}
