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
func (p *Pipeline) borrow(ctx context.Context, c *Call) (resp.Reply, error) {
	if p.cfg.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.remaining(c))
		defer cancel()
	}
	if p.closing() {
		return resp.Reply{}, warm.ErrClosed
	}
	conn, err := p.cfg.Lease(ctx)
	if err != nil {
		return resp.Reply{}, err
	}
	if err := ctx.Err(); err != nil {
		conn.Close()
		return resp.Reply{}, err
	}
	reply, err := fromRedigo(guard(func() (any, error) { return p.do(ctx, conn, c) }))
	if _, ours := conn.(*warm.Conn); ours {
		conn.Close() // it has seen for itself
	} else {
		end(conn, err != nil, reply.Kind == resp.Error && farewell(reply.Text))
	}
	if err == nil {
		return reply, nil
	}
	left := ctx.Err()
	if deadline, ok := ctx.Deadline(); ok && left == nil && !time.Now().Before(deadline) {
		left = context.DeadlineExceeded // the socket's timer was first
	}
	if left != nil {
		err = fmt.Errorf("%w: %w", left, err)
	}
	return resp.Reply{}, &lostError{cause: err, sent: true, left: left != nil}
}

// do ends with the context where the connection allows that without a hold on
// what the call is made of; redigo's own is bounded by the deadline alone.
func (p *Pipeline) do(ctx context.Context, conn redis.Conn, c *Call) (any, error) {
	args := c.args(nil)
	if l, ok := conn.(*warm.Conn); ok {
		return l.DoContext(ctx, c.name, args...)
	}
	timeout := p.cfg.ReadTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, max(time.Until(deadline), 1))
	}
	if t, ok := conn.(redis.ConnWithTimeout); ok {
		if reply, err := t.DoWithTimeout(timeout, c.name, args...); !unsupported(err) {
			return reply, err
		}
	}
	return conn.Do(c.name, args...)
}

func (p *Pipeline) closing() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}
