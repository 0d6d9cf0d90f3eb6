package warm

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

var errFake = errors.New("fake server")

// mood is how a fakeServer treats dials and PINGs.
type mood int

const (
	healthy mood = iota
	flaky        // every outcome there is
	down         // refuses
	silent       // never answers
	prompt       // answers at once
)

// fakeServer counts the sockets that are open, from the moment a dial begins.
type fakeServer struct {
	mu            sync.Mutex
	rng           *rand.Rand
	mood          mood
	open, highest int
}

func (f *fakeServer) set(m mood) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mood = m
}

func (f *fakeServer) add(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open += n
	f.highest = max(f.highest, f.open)
}

// opened returns how many sockets are open and how many were at once.
func (f *fakeServer) opened() (now, highest int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open, f.highest
}

func (f *fakeServer) n(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rng.IntN(n)
}

func (f *fakeServer) upTo(d time.Duration) time.Duration { return time.Duration(f.n(int(d))) }

// outcomes of a dial or a PING.
const (
	succeeds = iota
	isSlow
	fails
	hangs
	panics
)

func (f *fakeServer) outcome() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.mood {
	case flaky:
		return f.rng.IntN(panics + 1)
	case down:
		return fails
	case silent:
		return hangs
	case prompt:
		return succeeds
	default:
		return f.rng.IntN(isSlow + 1)
	}
}

func (f *fakeServer) dial(ctx context.Context) (Dialed, error) {
	f.add(1)
	ok := false
	defer func() { // also after a panic
		if !ok {
			f.add(-1)
		}
	}()
	if err := f.respond(ctx.Done(), nil); err != nil {
		return Dialed{}, err
	}
	ok = true
	c := &fakeConn{server: f, cut: make(chan struct{})}
	if f.n(4) == 0 {
		c.hidden = true
		return Dialed{Conn: c}, nil
	}
	return Dialed{Conn: c, Socket: &Socket{Conn: &fakeSocket{fakeConn: c}, peek: c.quiet}}, nil
}

// respond takes the time that an answer takes, but ends when stop or timeout does.
func (f *fakeServer) respond(stop <-chan struct{}, timeout <-chan time.Time) error {
	var answer <-chan time.Time // nil: never
	switch f.outcome() {
	case succeeds:
		return nil
	case isSlow:
		answer = time.After(f.upTo(300 * time.Millisecond))
	case fails:
		return errFake
	case panics:
		panic(errFake)
	}
	select {
	case <-answer:
		return nil
	case <-stop:
	case <-timeout:
	}
	return errFake
}

// fakeConn stands for redigo's half of a connection.
type fakeConn struct {
	server *fakeServer
	hidden bool // has no socket to look at

	mu     sync.Mutex
	dead   bool // the server has closed it
	closed bool
	cut    chan struct{} // closed when this side ends
	over   bool          // cut is closed
}

func (c *fakeConn) quiet() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.dead
}

func (c *fakeConn) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
}

func (c *fakeConn) DoWithTimeout(timeout time.Duration, _ string, _ ...any) (any, error) {
	c.mu.Lock()
	broken := c.dead || c.over
	c.mu.Unlock()
	if broken {
		return nil, io.EOF
	}
	return "PONG", c.server.respond(c.cut, time.After(timeout))
}

func (c *fakeConn) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.over = true
		close(c.cut)
	}
}

// Close is the end of a hidden connection. A socket's comes before.
func (c *fakeConn) Close() error {
	c.end()
	if c.hidden {
		c.gone()
	}
	return nil
}

func (c *fakeConn) gone() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.server.add(-1)
	}
}

func (c *fakeConn) Err() error                           { return nil }
func (c *fakeConn) Do(cmd string, _ ...any) (any, error) { return c.DoWithTimeout(time.Hour, cmd) }
func (c *fakeConn) Send(string, ...any) error            { return nil }
func (c *fakeConn) Flush() error                         { return nil }
func (c *fakeConn) Receive() (any, error)                { return nil, redis.ErrNil }
func (c *fakeConn) ReceiveWithTimeout(time.Duration) (any, error) {
	return nil, redis.ErrNil
}

// fakeSocket is what the store closes. The server takes its time to follow.
type fakeSocket struct {
	*fakeConn
	net.Conn // nil: what is not overridden is not called
	deadline time.Time
}

func (s *fakeSocket) CloseWrite() error { return nil }

func (s *fakeSocket) SetDeadline(t time.Time) error {
	s.mu.Lock()
	s.deadline = t
	s.mu.Unlock()
	s.end()
	return nil
}

func (s *fakeSocket) Read([]byte) (int, error) {
	s.mu.Lock()
	left := time.Until(s.deadline)
	s.mu.Unlock()
	time.Sleep(min(left, s.server.upTo(2*linger)))
	return 0, io.EOF
}

func (s *fakeSocket) Close() error {
	s.gone()
	return nil
}
