//go:build unix

package warm

import (
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
)

// poller reads from a socket, and polls before it parks. It is used by one goroutine at a time.
type poller struct {
	poll  *Poll                 // immutable
	raw   syscall.RawConn       // immutable
	look  func(fd uintptr) bool // immutable; lookOn
	turns turns

	// Of the read under way.
	buf   []byte
	began time.Time
	parks bool // it does not poll any more
	n     int
	err   error
}

// newPoller returns nil if reads of the socket cannot poll.
func newPoller(c net.Conn, poll *Poll) *poller {
	sc, ok := c.(syscall.Conn)
	if !ok || poll == nil {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	p := &poller{poll: poll, raw: raw}
	p.look = p.lookOn
	return p
}

// read reads from c, which must be the connection of the poller.
func (p *poller) read(c net.Conn, buf []byte) (int, error) {
	if p == nil || len(buf) == 0 || !p.turns.polls() {
		return c.Read(buf)
	}
	now := time.Now()
	if !p.poll.pays(now) {
		return c.Read(buf)
	}
	p.buf, p.began, p.parks, p.n, p.err = buf, now, false, 0, nil
	err := p.raw.Read(p.look)
	p.buf = nil
	switch {
	case err != nil:
		return c.Read(buf) // the connection has ended, or its deadline: Read says so as it always does
	case p.err != nil:
		return 0, &net.OpError{
			Op: "read", Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: p.err,
		}
	case p.n == 0:
		return 0, io.EOF
	}
	return p.n, nil
}

// lookOn looks at the socket until the read has an outcome, and then returns true. It returns false to
// park, and is called again when there may be an outcome.
func (p *poller) lookOn(fd uintptr) bool {
	for last := p.began; ; runtime.Gosched() {
		n, err := syscall.Read(int(fd), p.buf)
		found := err != syscall.EAGAIN && err != syscall.EINTR
		switch {
		case !found:
		case err != nil:
			p.err = os.NewSyscallError("read", err)
		default:
			p.n = n
		}
		if p.parks {
			return found
		}
		now := time.Now()
		switch {
		case now.Sub(last) > farApart:
			p.poll.contended(now)
			p.parks = true
		case found:
			p.turns.hit()
		case now.Sub(p.began) > p.poll.window:
			p.turns.missed()
			p.parks = true
		}
		if found || p.parks {
			return found
		}
		last = now
	}
}
