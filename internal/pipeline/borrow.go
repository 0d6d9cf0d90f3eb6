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
	if c.before != 0 {
		return p.borrowAll(ctx, []*Call{c})(c)
	}
	var reply resp.Reply // not to be read by one that has left
	err := error(&lostError{cause: errExited, sent: true})
	leftErr := p.borrowed(ctx, c, func(l loan) (spent bool, failed error) {
		reply, err = fromRedigo(guard(func() (any, error) { return l.do(c) }))
		if err == nil {
			err = c.check(reply)
		}
		if err != nil {
			err = l.lost(err)
		}
		return reply.Kind == resp.Error && p.farewells.ends(l.conn, reply.Text), err
	})
	if leftErr != nil {
		return resp.Reply{}, leftErr
	}
	return reply, err
}

// borrowAll sends calls together on a connection of their own, and returns
// what tells the outcome of each, in their order.
func (p *Pipeline) borrowAll(ctx context.Context, calls []*Call) func(*Call) (resp.Reply, error) {
	now := time.Now()
	for _, c := range calls {
		c.ask(now)
	}
	var replies []resp.Reply // not to be read by one that has left
	var broken error
	leftErr := p.borrowed(ctx, calls[0], func(l loan) (spent bool, failed error) {
		replies, spent, broken = p.exchange(l, &redigoWire{conn: l.conn}, calls)
		if broken != nil {
			broken = l.lost(broken)
		}
		return spent, broken
	})
	next := 0
	return func(*Call) (resp.Reply, error) {
		next++
		switch {
		case leftErr != nil:
			return resp.Reply{}, leftErr
		case next > len(replies):
			return resp.Reply{}, broken
		}
		return replies[next-1], nil
	}
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
	closed, ended := !waits(), warm.Ended(ctx)
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
	if ours, ok := conn.(*warm.Conn); ok { // its sockets know when this process stood still
		stop := context.AfterFunc(ctx, ours.Cut)
		spent, failed := use(loan{ctx, conn, p.cfg.ReadTimeout, time.Time{}})
		spent = !stop() || spent
		p.returned(func() { end(conn, failed != nil && ctx.Err() == nil, spent || failed != nil) })
		return nil
	}
	// Nothing cuts another's, so the caller leaves it, and the call has it to its end.
	done := make(chan struct{})
	p.wg.Go(func() {
		defer close(done)
		spent, failed := true, errExited // unless it returns
		defer func() {
			p.returned(func() { end(conn, failed != nil && ctx.Err() == nil, spent || failed != nil) })
		}()
		spent, failed = use(loan{ctx, conn, p.cfg.ReadTimeout, until})
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return &lostError{cause: warm.Ended(ctx), sent: true, left: true}
	}
}

// loan is a connection that one caller has.
type loan struct {
	ctx         context.Context
	conn        redis.Conn
	readTimeout time.Duration
	until       time.Time // when the time of the call is over, if nothing cuts the connection then
}

// lost is a call whose connection failed, or whose context ended it.
func (l loan) lost(err error) error {
	left := warm.Ended(l.ctx)
	if left == nil && !l.until.IsZero() && !time.Now().Before(l.until) {
		left = context.DeadlineExceeded // the socket's timer was first
	}
	if left != nil {
		err = fmt.Errorf("%w: %w", left, err)
	}
	return &lostError{cause: err, sent: true, left: left != nil}
}

// do reads the arguments of c no more once it has returned.
func (l loan) do(c *Call) (any, error) {
	args := c.args(nil)
	if t, ok := l.conn.(redis.ConnWithTimeout); ok && l.patience() > 0 {
		if reply, err := t.DoWithTimeout(l.patience(), c.name, args...); !unsupported(err) {
			return reply, err
		}
	}
	return l.conn.Do(c.name, args...)
}

// patience is how long a reply may take. Zero leaves it to the connection.
func (l loan) patience() time.Duration {
	if l.until.IsZero() {
		return l.readTimeout
	}
	rest := max(time.Until(l.until), 1)
	if l.readTimeout == 0 {
		return rest
	}
	return min(l.readTimeout, rest)
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
