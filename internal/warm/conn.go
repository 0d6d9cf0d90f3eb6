package warm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
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
	writing bool          // a command; where that panicked, half of it may be in the buffer
	session atomic.Uint32 // the sender and the receiver may write it at once
	verdict verdict
	lentAt  time.Duration // when it was last lent, at first when it was dialled
	soundAt time.Duration // when a look, an answer or a loan last showed that it is alive

	// Guarded by store.mu.
	phase     phase
	born      int64         // the turn of the store when its dial began
	place     int64         // among the idle ones: the turn of the store when it was handed back
	proven    int64         // the turn of the store when it was last known to be good
	failed    int64         // the turn of the store when it broke by itself; zero: it did not
	used      bool          // since the janitor last saw it
	idleSince time.Duration // when the janitor first saw it idle
	seen      time.Duration // when the janitor last saw that it had been used, or probed it
}

// phase says by which of the store's counts a connection is counted.
type phase uint8

const (
	idle phase = iota
	lent
	probed
	overdue // probed, without an answer within patience
	givenUp // overdue, and cut as its slot is needed
	closing
)

// A Conn's session is what its borrower did to the state that the server keeps
// for the connection. Each loan begins anew.
const (
	asNew       uint32 = iota
	transaction        // WATCH or MULTI, which redigo undoes; after an error nobody knows
	changed            // differs from that of a new connection, or may
	unpaired           // likewise, and a command may have no reply, or several
)

// verdict says what the borrower found out about the connection.
type verdict uint8

const (
	good     verdict = iota
	unproven         // may be dead: it has to answer before it is lent again
	useless          // must not be lent again
)

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
		return nil, s.cfg.Transport.explain(d, err)
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
		return nil, s.cfg.Transport.explain(d, err)
	}
	now := s.now()
	c.lentAt, c.soundAt, c.idleSince, c.seen = now, now, now, now
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

// ping sends a PING and returns nil for every reply that Answered accepts. A reply
// on which redigo panics is an error.
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
	return Answered(err)
}

// Answered returns nil for the error reply of a server that refuses a command
// for its own reasons: the command is unknown, renamed or denied, or nothing is
// written while a disk is full. Such a server is up. The error of a connection
// that failed, and of a server that will not serve on this connection, is
// returned as it is.
func Answered(err error) error {
	var answer redis.Error
	if errors.As(err, &answer) && !resp.MeaningOf(string(answer)).Has(resp.Condemns) {
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

// Wanted reports that a borrower that shares the connection should return it:
// the store is closed, the lifetime of the connection is over, others wait for a
// connection and not just for a dial that is under way, or the connection goes to
// a server that was condemned and can be replaced.
func (c *Conn) Wanted() bool {
	s := c.store
	if now := s.now(); c.expired(now) {
		c.lentAt = now // so that put sees it, without a look at the clock
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if first := s.waiters.Front(); first != nil && (s.dialing == 0 || s.now()-first.Value.(*waiter).since > patience) {
		return true
	}
	return s.closed || s.suspectLocked(c) && s.replaceableLocked(0)
}

// Close hands the connection back to the store.
func (c *Conn) Close() error {
	defer c.store.put(c)
	if c.socket == nil && c.Err() != nil { // else every error was noted
		c.Retire()
	}
	return nil
}

// Err is redigo's.
func (c *Conn) Err() (err error) {
	if c.socket != nil {
		return c.Conn.Err()
	}
	c.survive(func() { err = c.Conn.Err() }, &err)
	return err
}

// survive calls f, which redigo's pool needs for the return of a connection. The
// connection may be the user's: if f panics or calls runtime.Goexit, redigo's pool
// loses the connection. So a panic becomes an error, and after runtime.Goexit the
// store takes the connection back here.
func (c *Conn) survive(f func(), err *error) {
	ended := false
	defer func() {
		if ended {
			return
		}
		c.Retire()
		if r := recover(); r != nil {
			*err = fmt.Errorf("rediscache: the connection panicked: %v", r)
			return
		}
		c.store.put(c)
	}()
	f()
	ended = true
}

// Do is redigo's, as are the others.
func (c *Conn) Do(cmd string, args ...any) (any, error) {
	if cmd == "" {
		return c.drain()
	}
	c.noteCommand(cmd, args)
	reply, err := c.Conn.Do(cmd, args...)
	c.writing = false
	return reply, c.noteError(err)
}

// LastUsed returns when the last borrower returned the connection, or when it was
// dialled. The time may be up to a quarter of a second late, as the janitor sets
// it.
func (c *Conn) LastUsed() time.Time {
	s := c.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.used {
		return time.Now()
	}
	return s.base.Add(c.idleSince)
}

// drain sends what is buffered and reads the replies that nobody has read. A
// borrower may ask for that, and redigo's pool does when a connection is returned, after the commands that undo what the borrower did. So
// an error among the replies may mean that the server refused to undo it.
func (c *Conn) drain() (reply any, err error) {
	if c.session.Load() == unpaired {
		return nil, nil // it will be closed, and what is waited for here may never come
	}
	c.survive(func() { reply, err = c.Conn.Do("") }, &err)
	if replies, ok := reply.([]any); ok && c.session.Load() == transaction {
		for _, r := range replies {
			if _, refused := r.(redis.Error); refused {
				c.raise(changed)
			}
		}
	}
	return reply, c.noteError(err)
}

// DoWithTimeout bounds the wait for the reply.
func (c *Conn) DoWithTimeout(timeout time.Duration, cmd string, args ...any) (any, error) {
	c.noteCommand(cmd, args)
	reply, err := doTimeout(c.Conn, timeout, cmd, args...)
	c.writing = false
	return reply, c.noteError(err)
}

// DoContext does nothing if ctx is over. It runs on the caller's goroutine, so
// that args are not read after it returned, which redigo's own does. A context
// that ends meanwhile costs the connection.
func (c *Conn) DoContext(ctx context.Context, cmd string, args ...any) (any, error) {
	return c.underContext(ctx, func(timeout time.Duration) (any, error) {
		c.noteCommand(cmd, args)
		reply, err := doTimeout(c.Conn, timeout, cmd, args...)
		c.writing = false
		return reply, err
	})
}

// Send writes to the connection's buffer.
func (c *Conn) Send(cmd string, args ...any) error {
	c.noteCommand(cmd, args)
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
		c.Retire()
		if err != nil && ended != nil {
			err = fmt.Errorf("rediscache: %w: %w", ended, err)
		}
		return reply, err
	}
	return reply, c.noteError(err)
}

// noteCommand remembers that cmd is being written, and what it does to the
// session. redigo undoes WATCH and MULTI when the connection is returned. It
// undoes SUBSCRIBE as well, but stops in the middle where the server refuses one
// of the commands for that, and an UNSUBSCRIBE has as many replies as channels.
func (c *Conn) noteCommand(cmd string, args []any) {
	if c.writing { // the last one panicked
		c.Retire()
	}
	c.writing = true
	if len(cmd) < 4 || len(cmd) > 12 {
		return
	}
	switch strings.ToUpper(cmd) {
	case "WATCH", "MULTI":
		c.session.CompareAndSwap(asNew, transaction)
	case "SELECT":
		if !c.selectsOwn(args) {
			c.raise(changed)
		}
	case "SCRIPT":
		if isFirst(args, "DEBUG") {
			c.raise(changed)
		}
	case "CLIENT":
		if isFirst(args, "REPLY") {
			c.raise(unpaired)
		}
		c.raise(changed)
	case "AUTH", "HELLO", "RESET", "READONLY", "READWRITE", "ASKING", "REPLCONF":
		c.raise(changed)
	case "MONITOR", "QUIT", "SHUTDOWN", "SYNC", "PSYNC",
		"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE":
		c.raise(unpaired)
	}
}

func isFirst(args []any, word string) bool {
	return len(args) > 0 && strings.EqualFold(fmt.Sprint(args[0]), word)
}

// raise moves the session on, never back.
func (c *Conn) raise(to uint32) {
	for was := c.session.Load(); was < to && !c.session.CompareAndSwap(was, to); {
		was = c.session.Load()
	}
}

// selectsOwn reports that the arguments of a SELECT name the database that the
// connection is in anyway.
func (c *Conn) selectsOwn(args []any) bool {
	return len(args) == 1 && fmt.Sprint(args[0]) == strconv.Itoa(c.store.cfg.Database)
}

// noteError remembers what an error says of the connection. Which command of a
// transaction an error answers is not known here, so each makes it doubtful
// whether the transaction can be undone.
func (c *Conn) noteError(err error) error {
	switch {
	case err == nil:
		return nil
	case isBroken(err):
		c.Fail()
		return err
	case c.session.Load() == transaction && !errors.Is(err, redis.ErrNil):
		c.raise(changed)
	}
	if c.Condemn(err.Error()) {
		c.Retire()
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
func (c *Conn) Retire() { c.verdict = useless }

// Doubt tells the store, before Close, that the connection may be dead, so that
// it has to answer a PING before it is lent again. The store itself doubts what
// was borrowed while the process was suspended.
func (c *Conn) Doubt() { c.verdict = max(c.verdict, unproven) }

// isBroken tells a failure of the connection from an answer of the server.
func isBroken(err error) bool {
	var re redis.Error
	return err != nil && !errors.As(err, &re) && !errors.Is(err, redis.ErrNil)
}

// Dead looks at the socket of a connection that nobody uses. A hidden one is
// taken to be alive.
func (c *Conn) Dead() bool { return c.socket != nil && !c.socket.quiet() }

func (c *Conn) expired(now time.Duration) bool { return c.ends != 0 && now >= c.ends }

// blind reports that nobody can look at the socket: it is hidden, or the
// platform has no way.
func (c *Conn) blind() bool { return c.socket == nil || c.socket.peek == nil }

// Cut ends all use of the connection at once, whoever is using it. It is still
// open until it is handed back.
func (c *Conn) Cut() {
	if c.socket != nil {
		_ = c.socket.Close() // never fails
		return
	}
	c.end()
}

// shut closes the connection, and where its socket is seen waits until the
// server has done so too.
func (c *Conn) shut() {
	if c.socket != nil {
		c.socket.Shut()
	}
	c.end()
}

// end calls the Close of the connection below. The connection may be the user's,
// and no caller of end could recover from its panic.
func (c *Conn) end() {
	defer func() { _ = recover() }() // the connection is given up anyway
	c.Conn.Close()
}
