package warm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

// Conn is a connection on loan. It is used as redigo's are: one goroutine may
// Send and Flush while another Receives. Close hands it back.
type Conn struct {
	redis.Conn
	store  *Store
	socket net.Conn // nil where it is hidden
	plain  bool     // the socket itself carries RESP
	peek   func() bool
	ends   time.Time // of its lifetime; zero: never

	// Written by the borrower, read by the store when it is back.
	tainted bool      // its state is not that of a new connection
	retired bool      // the server answered that it serves no more here, or a context ended
	failed  time.Time // when it broke by itself

	// Guarded by store.mu.
	lent, probed bool
	idleSince    time.Time // when it was last handed back
	seen         time.Time // when it was last known to be good
}

var (
	_ redis.ConnWithContext = (*Conn)(nil)
	_ redis.ConnWithTimeout = (*Conn)(nil)
)

// connect opens a connection that has answered a PING.
func (s *Store) connect(ctx context.Context) (_ *Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.DialTimeout)
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the dialer panicked: %v", r)
		}
		if errors.Is(err, context.DeadlineExceeded) || err != nil && ctx.Err() != nil {
			// It is the dial's time that ended, not that of whoever hears of it.
			err = fmt.Errorf("no connection within %v: %s", s.cfg.DialTimeout, err.Error())
		}
	}()
	d, err := s.cfg.Dial(ctx)
	if err != nil {
		return nil, err
	}
	c := &Conn{Conn: d.Conn, store: s, socket: d.Socket, plain: d.Plain, peek: peeker(d.Socket)}
	stop := context.AfterFunc(ctx, c.Cut)
	deadline, _ := ctx.Deadline()
	if err := c.ping(time.Until(deadline)); err != nil {
		c.Cut()
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	now := time.Now()
	c.idleSince, c.seen = now, now
	if life := s.cfg.MaxLifetime; life > 0 {
		c.ends = now.Add(life - time.Duration(rand.Float64()*0.1*float64(life)))
	}
	return c, nil
}

// ping wants an answer. That PING is not allowed is one too.
func (c *Conn) ping(timeout time.Duration) error {
	if timeout <= 0 {
		return context.DeadlineExceeded
	}
	_, err := doTimeout(c.Conn, timeout, "PING")
	if re := redis.Error(""); errors.As(err, &re) && strings.HasPrefix(string(re), "NOPERM") {
		return nil
	}
	return err
}

// doTimeout bounds the wait for the reply where the connection can.
func doTimeout(c redis.Conn, timeout time.Duration, cmd string, args ...any) (any, error) {
	if t, ok := c.(redis.ConnWithTimeout); ok {
		return t.DoWithTimeout(timeout, cmd, args...)
	}
	return c.Do(cmd, args...)
}

// Socket returns what the connection reads from and writes to, for those who
// speak RESP themselves, or nil where there is none that carries it.
func (c *Conn) Socket() net.Conn {
	if !c.plain {
		return nil
	}
	return c.socket
}

// Wanted is false once the store waits for the connection to come back.
func (c *Conn) Wanted() bool {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	return !c.store.closed
}

// Close hands the connection back to the store.
func (c *Conn) Close() error {
	c.store.put(c)
	return nil
}

// Do is redigo's, as are the others.
func (c *Conn) Do(cmd string, args ...any) (any, error) {
	c.noteCommand(cmd)
	reply, err := c.Conn.Do(cmd, args...)
	return reply, c.noteError(err)
}

// DoWithTimeout bounds the wait for the reply.
func (c *Conn) DoWithTimeout(timeout time.Duration, cmd string, args ...any) (any, error) {
	c.noteCommand(cmd)
	reply, err := doTimeout(c.Conn, timeout, cmd, args...)
	return reply, c.noteError(err)
}

// DoContext does nothing if ctx is over. It runs on the caller's goroutine, so
// that args are not read after it returned, which redigo's own does. A context
// that ends meanwhile costs the connection.
func (c *Conn) DoContext(ctx context.Context, cmd string, args ...any) (any, error) {
	c.noteCommand(cmd)
	return c.underContext(ctx, func(timeout time.Duration) (any, error) {
		return doTimeout(c.Conn, timeout, cmd, args...)
	})
}

// Send writes to the connection's buffer.
func (c *Conn) Send(cmd string, args ...any) error {
	c.noteCommand(cmd)
	return c.noteError(c.Conn.Send(cmd, args...))
}

// Flush writes the buffer to the socket.
func (c *Conn) Flush() error { return c.noteError(c.Conn.Flush()) }

// Receive reads one reply.
func (c *Conn) Receive() (any, error) {
	reply, err := c.Conn.Receive()
	return reply, c.noteError(err)
}

// ReceiveWithTimeout bounds the wait for the reply.
func (c *Conn) ReceiveWithTimeout(timeout time.Duration) (any, error) {
	reply, err := redis.ReceiveWithTimeout(c.Conn, timeout)
	return reply, c.noteError(err)
}

// ReceiveContext is bounded as DoContext is.
func (c *Conn) ReceiveContext(ctx context.Context) (any, error) {
	return c.underContext(ctx, func(timeout time.Duration) (any, error) {
		return redis.ReceiveWithTimeout(c.Conn, timeout)
	})
}

// underContext closes the socket when ctx ends before f does: the only way to
// unblock a write as well as a read.
func (c *Conn) underContext(ctx context.Context, f func(time.Duration) (any, error)) (any, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	timeout := c.store.cfg.ReadTimeout
	deadline, bounded := ctx.Deadline()
	if bounded {
		timeout = min(timeout, max(time.Until(deadline), 1))
	}
	stop := func() bool { return true }
	if ctx.Done() != nil {
		stop = context.AfterFunc(ctx, c.Cut)
	}
	reply, err := f(timeout)
	ended := ctx.Err()
	if ended == nil && bounded && err != nil && !time.Now().Before(deadline) {
		ended = context.DeadlineExceeded // the socket's timer was first
	}
	if !stop() || (ended != nil && isBroken(err)) {
		c.retired = true
		if err != nil && ended != nil {
			err = fmt.Errorf("rediscache: %w: %w", ended, err)
		}
		return reply, err
	}
	return reply, c.noteError(err)
}

// noteCommand remembers that cmd leaves the connection in a state that redigo
// does not undo when it is handed back.
func (c *Conn) noteCommand(cmd string) {
	if len(cmd) < 4 || len(cmd) > 10 {
		return
	}
	switch strings.ToUpper(cmd) {
	case "SELECT", "AUTH", "HELLO", "CLIENT", "MONITOR", "QUIT", "RESET", "READONLY",
		"READWRITE", "ASKING", "SSUBSCRIBE", "SYNC", "PSYNC", "REPLCONF", "SHUTDOWN":
		c.tainted = true
	}
}

// noteError remembers what an error says of the connection.
func (c *Conn) noteError(err error) error {
	if err == nil {
		return nil
	}
	if isBroken(err) {
		c.fail(time.Now())
	} else if isRefusal(err) {
		c.retired = true
	}
	return err
}

func (c *Conn) fail(now time.Time) {
	if c.failed.IsZero() {
		c.failed = now
	}
}

// Fail tells the store, before Close, that the connection broke by itself.
func (c *Conn) Fail() { c.fail(time.Now()) }

// Retire tells the store, before Close, to lend the connection no more.
func (c *Conn) Retire() { c.retired = true }

// isBroken tells a failure of the connection from an answer of the server.
func isBroken(err error) bool {
	var re redis.Error
	return err != nil && !errors.As(err, &re) && !errors.Is(err, redis.ErrNil)
}

// isRefusal knows the answers after which a new connection, to another server
// or with another password, may do better.
func isRefusal(err error) bool {
	for _, p := range []string{"NOAUTH", "READONLY", "MASTERDOWN", "ERR max number of clients"} {
		if strings.HasPrefix(err.Error(), p) {
			return true
		}
	}
	return false
}

// Dead looks at the socket of a connection that nobody uses. A hidden one is
// taken to be alive.
func (c *Conn) Dead() bool { return c.peek != nil && !c.peek() }

func (c *Conn) expired(now time.Time) bool {
	return !c.ends.IsZero() && !now.Before(c.ends)
}

// Cut closes the connection at once, whoever is using it.
func (c *Conn) Cut() {
	if c.socket != nil {
		c.socket.Close()
		return
	}
	c.Conn.Close()
}

// shut closes the connection in order: it tells the server and waits, not for
// long, until the server has closed its side, so that by then the server does
// not count it any more either.
func (c *Conn) shut() {
	if half, ok := c.socket.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		if c.socket.SetReadDeadline(time.Now().Add(linger)) == nil {
			_, _ = io.Copy(io.Discard, c.socket)
		}
	}
	c.Conn.Close()
}
