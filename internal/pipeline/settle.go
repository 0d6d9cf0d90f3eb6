package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

const (
	maxRepeats = 3 // of a call that was not sent
	minBackoff = 2 * time.Millisecond
	maxBackoff = 100 * time.Millisecond
)

// settleOne is settle for one call.
func (p *Pipeline) settleOne(ctx context.Context, c *Call, reply resp.Reply, err error) (resp.Reply, error) {
	calls, replies, errs := []*Call{c}, []resp.Reply{reply}, []error{err}
	p.settle(ctx, calls, replies, errs)
	return replies[0], errs[0]
}

// settle tries again, together, what may be tried again, and says what came of
// each call. A call's timeout bounds all its tries.
func (p *Pipeline) settle(ctx context.Context, calls []*Call, replies []resp.Reply, errs []error) {
	var again []int
	refused := false
	judge := func(i int) {
		switch calls[i].fate(ctx, replies[i], errs[i]) {
		case settled:
			replies[i], errs[i] = calls[i].outcome(ctx, replies[i], errs[i])
			return
		case later:
			refused = true
		}
		again = append(again, i)
	}
	for i := range calls {
		judge(i)
	}
	if len(again) == 0 {
		return
	}
	give := p.deadline(ctx, calls[again[0]])
	for round := 1; len(again) > 0; round++ {
		rest := again
		if refused && !p.pause(ctx, give, round) {
			for _, i := range rest {
				replies[i], errs[i] = calls[i].outcome(ctx, replies[i], errs[i])
			}
			return
		}
		again, refused = nil, false
		some := make([]*Call, len(rest))
		for n, i := range rest {
			some[n] = calls[i]
		}
		r, e := make([]resp.Reply, len(rest)), make([]error, len(rest))
		p.try(ctx, some, r, e)
		for n, i := range rest {
			replies[i], errs[i] = r[n], e[n]
			judge(i)
		}
	}
}

// fate is what is to be done about a call.
type fate uint8

const (
	settled fate = iota
	atOnce       // tried again
	later        // likewise
)

// fate counts what it lets be tried again.
func (c *Call) fate(ctx context.Context, reply resp.Reply, err error) fate {
	var lost *lostError
	switch {
	case err == nil && retriable(reply):
		return later
	case err == nil, !errors.As(err, &lost), lost.left, ctx.Err() != nil:
		return settled
	case errors.Is(lost.cause, errHeldUp): // nothing failed
		c.heldUp++
		return atOnce
	case !lost.sent && c.unsent < maxRepeats:
		c.unsent++
		return atOnce
	case lost.sent && !c.write && !c.repeated:
		c.repeated = true
		return atOnce
	}
	return settled
}

// outcome is what a caller hears of a call that is not tried again.
func (c *Call) outcome(ctx context.Context, reply resp.Reply, err error) (resp.Reply, error) {
	var lost *lostError
	switch {
	case err == nil:
		write := c.write
		c.release()
		if reply.Kind != resp.Error {
			return reply, nil
		}
		err = answerError(reply, write)
		if retriable(reply) {
			err = besides(ctx, err)
		}
	case errors.As(err, &lost):
		if err = lost.cause; !lost.left {
			err = besides(ctx, err)
		}
		if lost.sent && c.write {
			err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		}
	}
	return resp.Reply{}, err
}

// answerError returns the error of a reply, or nil if it is none.
func answerError(reply resp.Reply, write bool) error {
	if reply.Kind != resp.Error {
		return nil
	}
	err := redis.Error(resp.Discreet(reply.Text))
	if write && resp.MeaningOf(reply.Text).Has(resp.Unproven) {
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	return err
}

// besides is err, for a caller that would have tried again had its context not
// ended.
func besides(ctx context.Context, err error) error {
	if ended := warm.Ended(ctx); ended != nil {
		return fmt.Errorf("%w: %w", ended, err)
	}
	return err
}

// deadline is when a call that is refused now is given up.
func (p *Pipeline) deadline(ctx context.Context, c *Call) time.Time {
	d := p.cfg.ReadTimeout
	if p.cfg.Timeout > 0 {
		d = p.remaining(c)
	}
	give := time.Now().Add(d)
	if own, ok := ctx.Deadline(); ok && own.Before(give) {
		return own
	}
	return give
}

// pause waits before the next round, unless that would come too late. The time
// counts although there may be no lane.
func (p *Pipeline) pause(ctx context.Context, give time.Time, round int) bool {
	d := min(minBackoff<<min(round, 10), maxBackoff)
	d = d/2 + rand.N(d/2)
	if time.Until(give) < 2*d {
		return false
	}
	p.mu.Lock()
	if p.pausing++; !p.closed {
		p.tickLocked()
	}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.pausing--
		p.mu.Unlock()
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
