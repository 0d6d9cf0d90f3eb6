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

// Conn is a borrowed connection. As with redigo, one goroutine may call Send and Flush
// while another calls Receive. Close returns the connection.
type Conn struct {
	redis.Conn
	store  *Store
	socket *Socket       // nil if it is hidden
	stream Stream        // nil if only redigo may read and write
	ends   time.Duration // when the lifetime is over, on the store's clock; zero: never

	// Written by the borrower, read by the store after the return.
	writing bool          // a command is being written; after a panic, half of it may be in the buffer
	session atomic.Uint32 // the sender and the receiver may write it at once
	verdict verdict
	lentAt  time.Duration // when it was last lent, at first when it was dialled
	soundAt time.Duration // when a look at the socket or a reply last showed that it is alive

	// Guarded by store.mu.
	phase     phase
	born      int64         // the store's turn when the dial began
	place     int64         // orders the idle connections: the store's turn of the last return
	proven    int64         // the store's turn when the connection was last known to be good
	failed    int64         // the store's turn when the connection broke by itself; zero: it did not
	used      bool          // since the last sweep of the janitor
	idleSince time.Duration // when the janitor first saw it idle
	seen      time.Duration // when it was last probed, or the janitor saw that it had been used
}

// phase is the count of the store that includes the connection.
type phase uint8

const (
	idle phase = iota
	lent
	probed
	overdue // probed, without a reply within patience
	givenUp // overdue, and cut because a dial needs the slot
	closing
)

// The session of a Conn is what its borrower did to the state that the server keeps for
// the connection. Each loan begins with asNew.
const (
	asNew       uint32 = iota
	transaction        // WATCH or MULTI, which redigo undoes
	changed            // the state differs from that of a new connection, or may differ
	unpaired           // as changed, and a command may have no reply or several replies
)

// verdict is what the borrower found out about the connection.
type verdict uint8

const (
	good     verdict = iota
	unproven         // may be dead: it must answer a PING before it is lent again
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
		// The dial timed out, but not the borrower that gets this error, so the error must
		// not match context.DeadlineExceeded.
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
	c := &Conn{Conn: d.Conn, store: s, socket: d.Socket, stream: d.Stream}
	stop := context.AfterFunc(ctx, c.Cut)
	deadline, _ := ctx.Deadline()
	err = c.ping(time.Until(deadline))
	if err == nil && s.cfg.OnConnect != nil {
		err = s.cfg.OnConnect(ctx, c.Conn)
	}
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

// discreet removes the password from an error of a server that does not know AUTH and
// repeats the arguments.
func discreet(err error) error {
	var answer redis.Error
	if errors.As(err, &answer) && resp.Discreet(string(answer)) != string(answer) {
		return redis.Error(resp.Discreet(string(answer)))
	}
	return err
}

// ping sends a PING and returns nil for every reply that Answered accepts. If redigo
// panics on the reply, ping returns an error.
func (c *Conn) ping(timeout time.Duration) (err error) {
	if timeout <= 0 {
		return context.DeadlineExceeded
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("PING panicked: %v", r)
		}
	}()
	switch {
	case c.stream != nil:
		c.stream.setTerse(true)
		defer c.stream.setTerse(false)
	case c.socket != nil:
		c.socket.setTerse(true)
		defer c.socket.setTerse(false)
	}
	_, err = doTimeout(c.Conn, timeout, "PING")
	return Answered(err)
}

// Answered returns nil if err is the error reply of a server that is up but refuses the
// command: the command is unknown, renamed or denied, or a disk is full. It returns err
// if the connection failed, or if the error condemns the server.
func Answered(err error) error {
	var answer redis.Error
	if errors.As(err, &answer) && !resp.MeaningOf(string(answer)).Has(resp.Condemns) {
		return nil
	}
	return err
}

// doTimeout bounds the wait for the reply, if the connection supports it. With zero only
// the connection's own timeout applies.
func doTimeout(c redis.Conn, timeout time.Duration, cmd string, args ...any) (any, error) {
	if t, ok := c.(redis.ConnWithTimeout); ok && timeout > 0 {
		return t.DoWithTimeout(timeout, cmd, args...)
	}
	return c.Do(cmd, args...)
}

// Stream returns the stream of the connection, for a caller that speaks RESP itself. It
// returns nil if only redigo may read and write.
func (c *Conn) Stream() Stream { return c.stream }

// Wanted reports whether a borrower that shares the connection should return it:
//
//   - the store is closed;
//   - the lifetime of the connection is over;
//   - other borrowers wait, and no dial is in flight or the first has waited for longer
//     than patience;
//   - the connection is a suspect and can be replaced.
func (c *Conn) Wanted() bool {
	s := c.store
	if now := s.now(); c.expired(now) {
		c.lentAt = now // put compares lentAt with the lifetime, to save a look at the clock
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if first := s.waiters.Front(); first != nil && (s.dialing == 0 || s.now()-first.Value.(*waiter).since > patience) {
		return true
	}
	return s.closed || s.suspectLocked(c) && s.replaceableLocked(0)
}

// Close returns the connection to the store.
func (c *Conn) Close() error {
	defer c.store.put(c)
	if c.socket == nil && c.Err() != nil { // with a socket, every error was noted already
		c.Retire()
	}
	return nil
}

// Err returns the error of the redigo connection.
func (c *Conn) Err() (err error) {
	if c.socket != nil {
		return c.Conn.Err()
	}
	c.survive(func() { err = c.Conn.Err() }, &err)
	return err
}

// survive calls f, a step of the return of a connection by redigo's pool. The connection
// may be the user's code: if f panicked or called runtime.Goexit, redigo's pool would
// lose the connection. So survive returns a panic as an error, and after runtime.Goexit
// gives the connection to the store itself.
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

// Do does what redigo's Do does, and notes the command and the error. So do the methods
// below.
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
// dialled. The time may be up to a quarter of a second late, because the janitor sets it.
func (c *Conn) LastUsed() time.Time {
	s := c.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.used {
		return time.Now()
	}
	return s.base.Add(c.idleSince)
}

// drain sends the buffer and reads the replies that the borrower did not read. A borrower
// may call it by Do(""), and redigo's pool does so on the return of a connection, after
// the commands that undo MULTI and WATCH. So an error among the replies may mean that the
// server refused to undo them.
func (c *Conn) drain() (reply any, err error) {
	if c.session.Load() == unpaired {
		return nil, nil // the connection will be closed, and a reply may never come
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

// DoContext does nothing if ctx has already ended. It runs on the caller's goroutine,
// so that args are not read after it has returned; redigo's own DoContext reads them. If
// ctx ends during the call, the connection is closed.
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

// underContext cuts the connection if ctx ends before f does, because only that unblocks
// both a read and a write.
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

// noteCommand records that cmd is being written, and what it does to the session. redigo
// undoes WATCH and MULTI on the return of the connection, so they are allowed. It
// undoes SUBSCRIBE too, but not completely if the server refuses a command for that, and
// UNSUBSCRIBE has one reply for each channel.
func (c *Conn) noteCommand(cmd string, args []any) {
	if c.writing { // the last command panicked
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

// raise raises the session to to, and never lowers it.
func (c *Conn) raise(to uint32) {
	for was := c.session.Load(); was < to && !c.session.CompareAndSwap(was, to); {
		was = c.session.Load()
	}
}

// selectsOwn reports whether the arguments of a SELECT name the pool's own database.
func (c *Conn) selectsOwn(args []any) bool {
	return len(args) == 1 && fmt.Sprint(args[0]) == strconv.Itoa(c.store.cfg.Database)
}

// noteError records what an error means for the connection. An error in a transaction
// may answer any of its commands, so redigo may be unable to undo the transaction.
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

// Fail records, before Close, that the connection broke by itself. A sender and a
// receiver may call it at the same time.
func (c *Conn) Fail() {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if c.failed == 0 {
		c.failed = c.store.turn
	}
}

// Retire records, before Close, that the store must not lend the connection again.
func (c *Conn) Retire() { c.verdict = useless }

// Doubt records, before Close, that the connection may be dead, so that it must answer a
// PING before it is lent again. After a suspension of the process the store does this by
// itself.
func (c *Conn) Doubt() { c.verdict = max(c.verdict, unproven) }

// isBroken reports whether err is a failure of the connection, not an error reply.
func isBroken(err error) bool {
	var re redis.Error
	return err != nil && !errors.As(err, &re) && !errors.Is(err, redis.ErrNil)
}

// Dead reports whether the server has closed the connection, or sent bytes that no
// command asked for. The connection must not be in use. Dead returns false if the socket
// is hidden.
func (c *Conn) Dead() bool {
	if c.stream != nil {
		return !c.stream.quiet()
	}
	return c.socket != nil && !c.socket.quiet()
}

func (c *Conn) expired(now time.Duration) bool { return c.ends != 0 && now >= c.ends }

// blind reports whether the socket cannot be checked, because it is hidden or the
// platform does not support it.
func (c *Conn) blind() bool { return c.socket == nil || c.socket.peek == nil }

// Cut makes all reads and writes on the connection fail at once. The connection keeps
// its slot until it is returned.
func (c *Conn) Cut() {
	if c.socket != nil {
		_ = c.socket.Close() // never fails
		return
	}
	c.end()
}

// shut closes the connection and, unless the socket is hidden, waits until the server has
// closed it too.
func (c *Conn) shut() {
	if c.socket != nil {
		c.socket.Shut()
	}
	c.end()
}

// end closes the redigo connection. It may be the user's code, so end recovers from a
// panic, which no caller could do.
func (c *Conn) end() {
	defer func() { _ = recover() }() // the connection is given up anyway
	c.Conn.Close()
}
