package warm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
)

// Conn is a connection on loan. It is used as redigo's are: one goroutine may
// Send and Flush while another Receives. Close hands it back.
type Conn struct {
	redis.Conn
	store  *Store
	socket *Socket       // nil where it is hidden
	plain  bool          // the socket itself carries RESP
	ends   time.Duration // of its lifetime, on the store's clock; zero: never

	// Written by the borrower, read by the store when it is back.
	writing  bool          // a command; where that panicked, half of it may be in the buffer
	tainted  bool          // its state is not that of a new connection
	retired  bool          // the server answered that it serves no more here, or a context ended
	lentAt   time.Duration // when it was last lent, at first when it was dialled
	peekedAt time.Duration // when a borrower last looked at its socket, at first when it was dialled

	// Guarded by store.mu.
	lent, probed bool
	place        int64         // among the idle ones: the turn of the store when it was handed back
	proven       int64         // the turn of the store when it was last known to be good
	failed       int64         // the turn of the store when it broke by itself; zero: it did not
	used         bool          // since the janitor last saw it
	idleSince    time.Duration // when the janitor first saw it idle
	seen         time.Duration // when the janitor last saw that it had been used, or probed it
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
		err = discreet(err)
		// Where the dial's time has ended, that is not the time of whoever hears of it.
		switch late := errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil; {
		case err == nil || !late:
		case errors.Is(err, net.ErrClosed): // cut
			err = fmt.Errorf("connected, but no answer within %v", s.cfg.DialTimeout)
		default:
			err = fmt.Errorf("no connection within %v: %s", s.cfg.DialTimeout, err.Error())
		}
	}()
	d, err := s.cfg.Dial(ctx)
	if err != nil {
		return nil, err
	}
	c := &Conn{Conn: d.Conn, store: s, socket: d.Socket, plain: d.Plain}
	stop := context.AfterFunc(ctx, c.Cut)
	deadline, _ := ctx.Deadline()
	err = c.ping(time.Until(deadline))
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.shut()
		return nil, err
	}
	now := s.now()
	c.lentAt, c.peekedAt, c.idleSince, c.seen = now, now, now, now
	if life := s.cfg.MaxLifetime; life > 0 {
		c.ends = now + life - time.Duration(rand.Float64()*0.1*float64(life))
	}
	return c, nil
}

// discreet replaces an error in which the server repeats the password: it does
// not know AUTH, and says what it got.
func discreet(err error) error {
	var answer redis.Error
	if errors.As(err, &answer) && resp.Discreet(string(answer)) != string(answer) {
		return redis.Error(resp.Discreet(string(answer)))
	}
	return err
}

// ping wants an answer. That PING is not allowed is one too. A reply on which
// redigo panics is none.
func (c *Conn) ping(timeout time.Duration) (err error) {
	if timeout <= 0 {
		return context.DeadlineExceeded
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("PING panicked: %v", r)
		}
	}()
	if c.socket != nil {
		c.socket.setTerse(true)
		defer c.socket.setTerse(false)
	}
	_, err = doTimeout(c.Conn, timeout, "PING")
	if re := redis.Error(""); errors.As(err, &re) && strings.HasPrefix(string(re), "NOPERM") {
		return nil
	}
	return err
}

// doTimeout bounds the wait for the reply where the connection can. Zero leaves
// it to the connection's own timeout.
func doTimeout(c redis.Conn, timeout time.Duration, cmd string, args ...any) (any, error) {
	if t, ok := c.(redis.ConnWithTimeout); ok && timeout > 0 {
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

// Wanted reports whether a borrower that shares the connection should return
// it: the store is closed, the lifetime of the connection is over, or others
// wait for one, and not just for a dial that is under way.
func (c *Conn) Wanted() bool {
	s := c.store
	if now := s.now(); c.expired(now) {
		c.lentAt = now // so that put sees it, without a look at the clock
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.waiters.Front()
	return s.closed || first != nil && (s.dialing == 0 || s.now()-first.Value.(*waiter).since > patience)
}

// patience is how long somebody waits for a dial before a connection that is
// shared is handed over.
const patience = 100 * time.Millisecond

// Close hands the connection back to the store.
func (c *Conn) Close() error {
	c.store.put(c)
	return nil
}

// Do is redigo's, as are the others.
func (c *Conn) Do(cmd string, args ...any) (any, error) {
	c.noteCommand(cmd)
	reply, err := c.Conn.Do(cmd, args...)
	c.writing = false
	return reply, c.noteError(err)
}

// DoWithTimeout bounds the wait for the reply.
func (c *Conn) DoWithTimeout(timeout time.Duration, cmd string, args ...any) (any, error) {
	c.noteCommand(cmd)
	reply, err := doTimeout(c.Conn, timeout, cmd, args...)
	c.writing = false
	return reply, c.noteError(err)
}

// DoContext does nothing if ctx is over. It runs on the caller's goroutine, so
// that args are not read after it returned, which redigo's own does. A context
// that ends meanwhile costs the connection.
func (c *Conn) DoContext(ctx context.Context, cmd string, args ...any) (any, error) {
	return c.underContext(ctx, func(timeout time.Duration) (any, error) {
		c.noteCommand(cmd)
		reply, err := doTimeout(c.Conn, timeout, cmd, args...)
		c.writing = false
		return reply, err
	})
}

// Send writes to the connection's buffer.
func (c *Conn) Send(cmd string, args ...any) error {
	c.noteCommand(cmd)
	err := c.Conn.Send(cmd, args...)
	c.writing = false
	return c.noteError(err)
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
		if timeout == 0 {
			return c.Conn.Receive()
		}
		return redis.ReceiveWithTimeout(c.Conn, timeout)
	})
}

// underContext cuts the connection when ctx ends before f does: the only way to
// unblock a write as well as a read.
func (c *Conn) underContext(ctx context.Context, f func(time.Duration) (any, error)) (any, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	timeout := c.store.cfg.ReadTimeout
	deadline, bounded := ctx.Deadline()
	if bounded && timeout > 0 {
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

// noteCommand remembers that cmd is being written, and whether it leaves the
// connection in a state that redigo does not undo when it is handed back.
func (c *Conn) noteCommand(cmd string) {
	if c.writing { // the last one panicked
		c.retired = true
	}
	c.writing = true
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
		c.Fail()
	} else if c.store.farewells.Hear(err.Error()) {
		c.retired = true
	}
	return err
}

// Fail tells the store, before Close, that the connection broke by itself. A
// sender and a receiver may find that out at once.
func (c *Conn) Fail() {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if c.failed == 0 {
		c.failed = c.store.turn
	}
}

// Retire tells the store, before Close, to lend the connection no more.
func (c *Conn) Retire() { c.retired = true }

// isBroken tells a failure of the connection from an answer of the server.
func isBroken(err error) bool {
	var re redis.Error
	return err != nil && !errors.As(err, &re) && !errors.Is(err, redis.ErrNil)
}

// Farewells knows the answers after which a connection is of no use: a new one,
// to another server or with another password, may do better. That writes go
// elsewhere a replica says on a new connection too, and only of writes, so that
// dials go on: it is heard once in a while. The zero value is ready.
type Farewells struct{ last atomic.Pointer[time.Time] }

// Hear reports whether the connection is to be retired.
func (f *Farewells) Hear(answer string) bool {
	meaning := resp.MeaningOf(answer)
	if !meaning.Has(resp.Condemns) || strings.HasPrefix(answer, "LOADING") {
		return false
	}
	if !meaning.Has(resp.Retry) || strings.HasPrefix(answer, "MASTERDOWN") {
		return true
	}
	now, last := time.Now(), f.last.Load()
	return (last == nil || now.Sub(*last) >= pause) && f.last.CompareAndSwap(last, &now)
}

const pause = 100 * time.Millisecond // between two that are heard

// Dead looks at the socket of a connection that nobody uses. A hidden one is
// taken to be alive.
func (c *Conn) Dead() bool { return c.socket != nil && !c.socket.quiet() }

func (c *Conn) expired(now time.Duration) bool { return c.ends != 0 && now >= c.ends }

// Cut ends all use of the connection at once, whoever is using it. It is still
// open until it is handed back.
func (c *Conn) Cut() {
	if c.socket != nil {
		_ = c.socket.Close() // never fails
		return
	}
	c.Conn.Close()
}

// shut closes the connection, and where its socket is seen waits until the
// server has done so too.
func (c *Conn) shut() {
	if c.socket != nil {
		c.socket.Shut()
	}
	c.Conn.Close()
}
