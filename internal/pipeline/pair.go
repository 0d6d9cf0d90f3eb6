package pipeline

import (
	"context"

	"github.com/rediscache/rediscache/internal/resp"
)

// DoPair is DoAll for two small calls. It returns the first error. It allocates no slices,
// because it is on the path of a hit.
func (p *Pipeline) DoPair(ctx context.Context, a, b *Call) (first, second resp.Reply, err error) {
	if p.cfg.Lanes == 0 {
		replies, errs := p.DoAll(ctx, a, b)
		if err = errs[0]; err == nil {
			err = errs[1]
		}
		return replies[0], replies[1], err
	}
	if ctx.Err() != nil || p.hints.direct(a) || p.hints.direct(b) || p.heldUp() {
		if first, err = p.Do(ctx, a); err == nil {
			second, err = p.Do(ctx, b)
		}
		return first, second, err
	}
	two := [2]*Call{a, b}
	l, answered, err := p.send(ctx, two[:])
	if err != nil {
		return first, second, err
	}
	// The second reply comes after the first, so a caller that waits for the second first is woken once.
	second, err = p.collect(ctx, l, b, answered > 1)
	first, errA := p.collect(ctx, l, a, answered > 0) // also after an error, because the lane has the call
	if errA != nil {
		err = errA
	}
	return first, second, err
}

// collect waits for a call that a lane has, and settles it.
func (p *Pipeline) collect(ctx context.Context, l *lane, c *Call, answered bool) (resp.Reply, error) {
	reply, err := p.wait(ctx, l, c, answered)
	if err == nil && reply.Kind != resp.Error {
		c.release()
		return reply, nil
	}
	return p.settleOne(ctx, c, reply, err)
}
