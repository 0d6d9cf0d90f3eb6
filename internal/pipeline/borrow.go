package pipeline

import (
	"context"
	"fmt"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// borrow sends a call on a connection of its own.
func (p *Pipeline) borrow(ctx context.Context, c *Call) (reply resp.Reply, err error) {
	leaseErr := p.borrowed(ctx, c, func(ctx context.Context, conn redis.Conn) (spent bool, failed error) {
		reply, err = fromRedigo(guard(func() (any, error) { return p.do(ctx, conn, c) }))
		if err == nil {
			err = c.check(reply)
		}
		if err != nil {
			err = lost(ctx, err)
		}
		return reply.Kind == resp.Error && p.farewells.Hear(reply.Text), err
	})
	if leaseErr != nil {
		return resp.Reply{}, leaseErr
	}
	return reply, err
}

// borrowAll sends calls together on a connection of their own, and returns
// what tells the outcome of each, in their order.
func (p *Pipeline) borrowAll(ctx context.Context, calls []*Call) func(*Call) (resp.Reply, error) {
	replies := make([]resp.Reply, 0, len(calls))
	var broken error
	leaseErr := p.borrowed(ctx, calls[0], func(ctx context.Context, conn redis.Conn) (spent bool, failed error) {
		w := &redigoWire{conn: conn}
		for _, c := range calls {
			if broken == nil {
				broken = w.put(c)
			}
		}
		if broken == nil {
			_, broken = w.flush()
		}
		for _, c := range calls {
			if broken != nil {
				break
			}
			w.timeout = p.patience(ctx)
			var reply resp.Reply
			if reply, broken = w.receive(); broken == nil {
				broken = c.check(reply)
			}
			if broken == nil {
				replies = append(replies, reply)
				spent = spent || reply.Kind == resp.Error && p.farewells.Hear(reply.Text)
			}
		}
		if broken != nil {
			broken = lost(ctx, broken)
		}
		return spent, broken
	})
	next := 0
	return func(*Call) (resp.Reply, error) {
		next++
		switch {
		case leaseErr != nil:
			return resp.Reply{}, leaseErr
		case next > len(replies):
			return resp.Reply{}, broken
		}
		return replies[next-1], nil
	}
}

// borrowed lends a connection to use, under the timeout of c. It returns an
// error only if use was not called.
func (p *Pipeline) borrowed(
	ctx context.Context, c *Call, use func(context.Context, redis.Conn) (spent bool, failed error),
) error {
	if p.cfg.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.remaining(c))
		defer cancel()
	}
	if p.closing() {
		return warm.ErrClosed
	}
	conn, err := p.cfg.Lease(ctx)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		conn.Close()
		return err
	}
	stop := func() bool { return true }
	l, ours := conn.(*warm.Conn)
	if ours {
		stop = context.AfterFunc(ctx, l.Cut) // a write has no other bound
	}
	spent, failed := use(ctx, conn)
	spent = !stop() || spent
	end(conn, failed != nil && ctx.Err() == nil, spent || failed != nil)
	return nil
}

// lost is a call whose connection failed, or whose context ended it.
func lost(ctx context.Context, err error) error {
	left := ctx.Err()
	if deadline, ok := ctx.Deadline(); ok && left == nil && !time.Now().Before(deadline) {
		left = context.DeadlineExceeded // the socket's timer was first
	}
	if left != nil {
		err = fmt.Errorf("%w: %w", left, err)
	}
	return &lostError{cause: err, sent: true, left: left != nil}
}

// do is bounded by the deadline of ctx; args are read by nobody once it has
// returned.
func (p *Pipeline) do(ctx context.Context, conn redis.Conn, c *Call) (any, error) {
	args := c.args(nil)
	if t, ok := conn.(redis.ConnWithTimeout); ok {
		if reply, err := t.DoWithTimeout(p.patience(ctx), c.name, args...); !unsupported(err) {
			return reply, err
		}
	}
	return conn.Do(c.name, args...)
}

// patience is how long a reply may take.
func (p *Pipeline) patience(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(p.cfg.ReadTimeout, max(time.Until(deadline), 1))
	}
	return p.cfg.ReadTimeout
}

func (p *Pipeline) closing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}
