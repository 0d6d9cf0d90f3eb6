package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// borrow sends a call on a connection of its own.
func (p *Pipeline) borrow(ctx context.Context, c *Call) (resp.Reply, error) {
	var reply [1]resp.Reply
	var err [1]error
	p.borrowAll(ctx, []*Call{c}, reply[:], err[:])
	return reply[0], err[0]
}

// borrowAll sends calls together on a connection of their own. It owns the slice of calls from here on,
// because the exchange may go on after the caller gave up.
func (p *Pipeline) borrowAll(ctx context.Context, calls []*Call, replies []resp.Reply, errs []error) {
	// If borrowed returns an error, its goroutine may still write x, so x is not read then. The initial x
	// is the result if code of the pool ends the goroutine.
	x := exchange{sent: len(calls), err: errExited}
	left := p.borrowed(ctx, calls, func(l loan) (spent bool, failed error) {
		x = l.exchange(calls)
		return p.condemnedBy(l, calls, x.replies) || x.hungUp || l.link.extra(), x.err
	})
	for i := range calls {
		switch {
		case left != nil:
			errs[i] = left
		case i < len(x.replies):
			replies[i], errs[i] = x.replies[i], nil
		default:
			errs[i] = x.lost(i)
		}
	}
}

// condemnedBy reports whether one of the replies condemns the connection.
func (p *Pipeline) condemnedBy(l loan, calls []*Call, replies []resp.Reply) (condemned bool) {
	for i, reply := range replies {
		condemned = p.condemned(l.conn, calls[i].shape, reply) || condemned
	}
	return condemned
}

// borrowed borrows a connection for calls and calls use with it, within the timeout of the
// first call. An error means that use was not called, or still runs because the caller gave
// up.
func (p *Pipeline) borrowed(
	ctx context.Context, calls []*Call, use func(loan) (spent bool, failed error),
) error {
	if !p.enter() {
		return warm.ErrClosed
	}
	defer p.wg.Done()
	// The rest of the timeout comes first: a new call has all of it, and if the process is
	// suspended between two of these lines, the suspension takes none of it.
	d, now := p.remaining(calls[0]), time.Now()
	for _, c := range calls {
		c.ask(now)
	}
	var until time.Time
	var cancel context.CancelFunc
	if p.cfg.Timeout > 0 {
		until = now.Add(d)
		if deadline, ok := ctx.Deadline(); ok && deadline.Before(until) {
			until = deadline
		}
		ctx, cancel = warm.Within(ctx, d)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	defer cancel()
	waits := context.AfterFunc(p.ctx, cancel) // Close ends the wait for a connection
	conn, err := p.lend(ctx)
	closed, ended := !waits(), ctx.Err()
	if err == nil && (closed || ended != nil) {
		p.returned(func() { conn.Close() })
	}
	switch {
	case closed:
		return warm.ErrClosed
	case err == nil && ended != nil:
		return ended
	case ended != nil && errors.Is(err, context.Canceled):
		return p.cfg.Late(ended)
	case err != nil:
		return err
	}
	if ours, ok := conn.(*warm.Conn); ok { // its socket extends deadlines by a suspension of the process
		stop := context.AfterFunc(ctx, ours.Cut)
		l := loan{ctx, conn, newLink(conn, p.cfg.ReadTimeout, p.cfg.WriteTimeout, time.Time{}), time.Time{}}
		spent, failed := true, errExited // unless use returns
		defer func() {
			spent = !stop() || spent
			p.returned(func() { l.link.giveBack(failed != nil && ctx.Err() == nil, spent || failed != nil) })
		}()
		spent, failed = use(l)
		return nil
	}
	// The connection of a foreign pool cannot be cut. So use runs in a goroutine of its own, and goes on
	// after the caller gave up.
	done := make(chan struct{})
	p.wg.Go(func() {
		defer close(done)
		l := loan{ctx, conn, newLink(conn, p.cfg.ReadTimeout, p.cfg.WriteTimeout, until), until}
		spent, failed := true, errExited // unless use returns
		defer func() {
			p.returned(func() { l.link.giveBack(failed != nil && ctx.Err() == nil, spent || failed != nil) })
		}()
		spent, failed = use(l)
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return &lostError{cause: ctx.Err(), sent: true, left: true}
	}
}

// loan is a connection that one caller has to itself.
type loan struct {
	ctx   context.Context // of the caller; only its Err is used
	conn  redis.Conn
	link  link
	until time.Time // when the call times out, if the connection cannot be cut; zero otherwise
}

// exchange is the result of calls on a loan. The calls without a reply failed with err.
type exchange struct {
	replies []resp.Reply // to the first calls
	sent    int          // how many calls the server can have received as a whole
	err     error
	left    bool // the caller's context ended
	hungUp  bool // the server closed the connection during the write
}

// exchange writes calls and receives their replies. It reads no byte of a call after it has
// returned.
//
// If a write fails because the server has closed the connection, an error reply may say why: Redis
// refuses a value above proto-max-bulk-len when it has read the length, and closes the connection while
// the value is still being sent. Linux keeps the bytes that arrived before the reset. That error reply is
// the outcome of the call that was being written. The call was not executed, because a part of it was
// not sent.
func (l loan) exchange(calls []*Call) exchange {
	x := exchange{replies: make([]resp.Reply, 0, len(calls)), sent: len(calls)}
	unsent := l.send(calls)
	if unsent != nil {
		x.sent = received(calls, l.link.written())
		var hungUp *hungUpError
		x.hungUp = errors.As(unsent, &hungUp)
	}
	if unsent == nil || x.hungUp {
		x.err = l.receive(calls, &x)
	}
	switch {
	case len(x.replies) == len(calls):
		x.err = nil
		return x
	case unsent != nil:
		x.err = unsent
	}
	ended := l.ctx.Err()
	if ended == nil && !l.until.IsZero() && !time.Now().Before(l.until) {
		ended = context.DeadlineExceeded // the socket's timer was first
	}
	if x.left = ended != nil; x.left {
		x.err = fmt.Errorf("%w: %w", ended, x.err)
	}
	return x
}

func (l loan) send(calls []*Call) error {
	for _, c := range calls {
		if err := l.link.put(c); err != nil {
			return err
		}
	}
	_, err := l.link.flush()
	return err
}

// receive receives the replies until one is missing. A call that the server has not received as a whole
// can only have an error reply, which must be the last reply.
func (l loan) receive(calls []*Call, x *exchange) error {
	for i, c := range calls {
		reply, err := c.receive(l.link)
		switch {
		case err != nil:
			return err
		case i < x.sent:
			x.replies = append(x.replies, reply)
			continue
		case reply.Kind == resp.Error:
			x.replies = append(x.replies, reply)
		}
		return errForm
	}
	return nil
}

// received returns how many calls the server can have received to the last byte.
func received(calls []*Call, written int) int {
	for i, c := range calls {
		if written -= len(c.req); written < 0 {
			return i
		}
	}
	return len(calls)
}

// lost returns the error of call i, which has no reply.
func (x exchange) lost(i int) error {
	return &lostError{cause: x.err, sent: i < x.sent, left: x.left, company: x.sent - len(x.replies)}
}

// enter makes Close wait for a call. It reports false if the pipeline is closed.
func (p *Pipeline) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.wg.Add(1)
	}
	return !p.closed
}
