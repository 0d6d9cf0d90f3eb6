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

// borrowAll sends calls together on a connection of their own. The slice of calls is its own from here
// on: the exchange goes on if the caller has left.
func (p *Pipeline) borrowAll(ctx context.Context, calls []*Call, replies []resp.Reply, errs []error) {
	now := time.Now()
	for _, c := range calls {
		c.ask(now)
	}
	// The exchange is still written to if the caller has left, so it is read only if the caller has not.
	// This is what becomes of it if code of the pool ends the goroutine.
	x := exchange{sent: len(calls), err: errExited}
	left := p.borrowed(ctx, calls[0], func(l loan) (spent bool, failed error) {
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

// condemnedBy reports whether one of the replies to calls says that the connection is of no use.
func (p *Pipeline) condemnedBy(l loan, calls []*Call, replies []resp.Reply) (condemned bool) {
	for i, reply := range replies {
		condemned = p.condemned(l.conn, calls[i].shape, reply) || condemned
	}
	return condemned
}

// borrowed lends a connection to use, under the timeout of c. An error means
// that use was not called, or is going on: the caller has left then.
func (p *Pipeline) borrowed(
	ctx context.Context, c *Call, use func(loan) (spent bool, failed error),
) error {
	if !p.enter() {
		return warm.ErrClosed
	}
	defer p.wg.Done()
	var until time.Time
	var cancel context.CancelFunc
	if p.cfg.Timeout > 0 {
		now := time.Now()
		c.ask(now)
		d := p.remaining(c)
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
	if ours, ok := conn.(*warm.Conn); ok { // its sockets know how long this process was suspended
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
	// Nothing cuts the connection of a foreign pool, so a caller that leaves leaves the call behind.
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

// loan is a connection that one caller has.
type loan struct {
	ctx   context.Context // of the caller; only its end is looked at
	conn  redis.Conn
	link  link
	until time.Time // when the time of the call is over, if nothing cuts the connection then
}

// exchange is what became of calls on a loan. Those without a reply failed with err.
type exchange struct {
	replies []resp.Reply // of the first calls
	sent    int          // how many calls the server can have received as a whole
	err     error
	left    bool // err is the end of the caller's context
	hungUp  bool // the server has closed the connection, whatever it has answered
}

// exchange writes calls and receives their replies. It reads no byte of a call after it has
// returned.
//
// Where a write fails because the server has hung up, the server may have said why: Redis refuses a
// value above proto-max-bulk-len when it has read the length, and closes the connection while the
// value is still on its way. Linux keeps what had arrived before the reset. That answer is the
// outcome of the call that was being written, and proves that it was not executed, as does every
// byte of it that was not sent.
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

// receive takes the replies until one is missing. A call that the server has not received as a whole
// has no reply but an error, which is the last.
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

// received counts the calls of which the server can have received the last byte.
func received(calls []*Call, written int) int {
	for i, c := range calls {
		if written -= len(c.req); written < 0 {
			return i
		}
	}
	return len(calls)
}

// lost is the error of call i, which has no reply.
func (x exchange) lost(i int) error {
	return &lostError{cause: x.err, sent: i < x.sent, left: x.left, company: x.sent - len(x.replies)}
}

// enter has Close wait for a call, if it is not closed.
func (p *Pipeline) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.wg.Add(1)
	}
	return !p.closed
}
