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

// Socket is closed in two steps, because the server counts a connection until
// it has read its end. Close, which redigo calls at the first error, ends
// reads and writes and tells the server so; Shut then waits for the server.
// Between the two the slot is taken.
//
// During a dial or a probe it is terse: every command has a reply of one line,
// and nobody has sent anything that matters yet. So nothing else is let through
// then to redigo, which dies of some lengths and nestings, after an AUTH in a
// goroutine where nobody can recover. And why the server hangs up, which it says
// before it does, is heard although a write may find the end first.
type Socket struct {
	net.Conn
	peek func() bool // nil where it cannot be looked at

	terse  atomic.Bool
	sealed bool // the reader's: it carries TLS, so lines are not seen
	inLine bool // the reader's while terse
	inPONG int  // as inLine: how much of bulkPONG was read
	heard  int  // as inLine

	mu       sync.Mutex // guards what follows, and that no deadline is set after ended
	ended    bool
	broken   error         // of a write while terse, for the next read to tell
	due      time.Time     // the deadline of reads
	patience time.Duration // from when that was set; zero or less: there is none
}

const (
	maxTerse = 64 << 10         // bytes of all that is said in a dial or a probe
	bulkPONG = "$4\r\nPONG\r\n" // the one reply besides lines: some proxies answer PING so

	tlsAlert, tlsHandshake = 0x15, 0x16 // how what a TLS server says may begin
)

var errNotRedis = errors.New("the server does not answer as Redis does")

// NewSocket wraps a socket, whose owner then calls Shut. It begins terse.
func NewSocket(c net.Conn) *Socket {
	s := &Socket{Conn: c, peek: peeker(c)}
	s.terse.Store(true)
	return s
}

// setTerse begins or ends a dial or a probe, while nobody reads.
func (s *Socket) setTerse(on bool) {
	s.inLine, s.inPONG, s.heard = false, 0, 0
	s.terse.Store(on)
}

// Read fails with net.ErrClosed after Close.
func (s *Socket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	for errors.Is(err, os.ErrDeadlineExceeded) && s.goesOn() {
		n, err = s.Conn.Read(p)
	}
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

// goesOn gives a read the time that was lost.
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

// isTerse looks at what was read. Bytes that begin as TLS does are nothing to
// redigo where there is none.
func (s *Socket) isTerse(p []byte) bool {
	if s.heard == 0 && len(p) > 0 && (p[0] == tlsHandshake || p[0] == tlsAlert) {
		s.sealed = true
	}
	if s.sealed {
		return true
	}
	for _, b := range p {
		switch {
		case s.inPONG > 0 || !s.inLine && b == '$':
			if b != bulkPONG[s.inPONG] {
				return false
			}
			s.inPONG = (s.inPONG + 1) % len(bulkPONG)
		case !s.inLine && b != '+' && b != '-':
			return false
		default:
			s.inLine = b != '\n'
		}
	}
	s.heard += len(p)
	return s.heard <= maxTerse
}

// Write fails with net.ErrClosed after Close. While the socket is terse another
// failure is for the next read to tell, once it has read what there is.
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

// reasonLocked tells an end that this side wanted from the timeout that it
// looks like.
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

// SetDeadline fails after Close, as do the other two.
func (s *Socket) SetDeadline(t time.Time) error { return s.arm(s.Conn.SetDeadline, t, true) }

// SetReadDeadline is one of the other two.
func (s *Socket) SetReadDeadline(t time.Time) error { return s.arm(s.Conn.SetReadDeadline, t, true) }

// SetWriteDeadline is one of the other two.
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
// the socket. While the process stands still the server does not wait for it, and
// is given as much time again.
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
