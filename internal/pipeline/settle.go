package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
)

const (
	maxRepeats = 3               // retries of a call that was not sent
	maxBroken  = 12              // connections that may break under one read: two lanes, and ten for the halves of 512 calls
	maxRefused = 3 * time.Second // how long a refused call without a timeout is retried; also the default read timeout
	minBackoff = 2 * time.Millisecond
	maxBackoff = 100 * time.Millisecond
)

// settleOne is settle for one call.
func (p *Pipeline) settleOne(ctx context.Context, c *Call, reply resp.Reply, err error) (resp.Reply, error) {
	calls, replies, errs := []*Call{c}, []resp.Reply{reply}, []error{err}
	p.settle(ctx, calls, replies, errs)
	return replies[0], errs[0]
}

// settle retries calls that may be retried, and puts the outcome of each call in its place. The timeout
// of a call bounds all its retries.
//
// If a connection broke, any call without a reply may be the cause, because a server or a proxy may
// close the connection instead of a reply to one command. Such reads are retried on connections of their
// own: first together, then in halves each time the connection breaks, so that in the end only the read
// that breaks its connection fails.
func (p *Pipeline) settle(ctx context.Context, calls []*Call, replies []resp.Reply, errs []error) {
	var again []int
	refused, broke := false, false
	settle := func(i int) { replies[i], errs[i] = calls[i].outcome(ctx, replies[i], errs[i]) }
	judge := func(i int) {
		c := calls[i]
		var lost *lostError
		if errors.As(errs[i], &lost) {
			p.suspect(c, lost)
		}
		switch c.fate(ctx, replies[i], errs[i]) {
		case settled:
			settle(i)
			return
		case later:
			refused = true
		case inDoubt:
			c.direct = c.broke > 1 || lost.company-len(calls) <= maxAlone
			broke = broke || c.direct
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
	together, losses := len(calls), 0
	for round := 1; len(again) > 0; round++ {
		rest := again
		if refused && !p.pause(ctx, give, round) {
			losses = maxLosses
		}
		if broke {
			together = (together + 1) / 2
		}
		again, refused, broke = nil, false, false
		for len(rest) > 0 {
			if losses >= maxLosses {
				for _, i := range rest {
					settle(i)
				}
				break
			}
			part := rest[:1]
			for len(part) < min(together, len(rest)) && calls[rest[len(part)]].direct == calls[part[0]].direct {
				part = rest[:len(part)+1]
			}
			rest = rest[len(part):]
			if p.retry(ctx, part, calls, replies, errs) {
				losses++
			}
			for _, i := range part {
				judge(i)
			}
		}
	}
}

// retry sends the calls of a part together, and reports whether their connection broke.
func (p *Pipeline) retry(ctx context.Context, part []int, calls []*Call, replies []resp.Reply, errs []error) (broke bool) {
	some := make([]*Call, len(part))
	for n, i := range part {
		some[n] = calls[i]
	}
	r, e := make([]resp.Reply, len(part)), make([]error, len(part))
	p.try(ctx, some, r, e)
	for n, i := range part {
		replies[i], errs[i] = r[n], e[n]
		var lost *lostError
		broke = broke || errors.As(e[n], &lost) && !errors.Is(lost.cause, errHeldUp)
	}
	return broke
}

const (
	// maxAlone is how many calls of other callers may be lost with a read that is then retried on a
	// connection of its own. A pool has enough idle connections for so few calls. More calls would need
	// dials just when connections break, so their first retry is on a lane, and only the second alone.
	maxAlone = 8
	// maxLosses is how many connections the retries of one DoAll may break. It takes about that many to
	// find three calls that break their connection among 512, and they cause no storm of dials if a
	// server closes every connection.
	maxLosses = 32
)

// suspect records a hint about a call that may have broken its connection. A read that was lost with
// other calls gets no hint, because its retry shows whether it is the cause. A write is not retried, so
// the next write of its key is sent alone, or the one after that if many calls were lost.
func (p *Pipeline) suspect(c *Call, lost *lostError) {
	switch cause := lost.cause; {
	case p.cfg.Lanes == 0, !lost.sent, lost.left, errors.Is(cause, errHeldUp), errors.Is(cause, errSuspended):
	case errors.Is(cause, errStalled), errors.Is(cause, os.ErrDeadlineExceeded): // this side closed the connection
	case lost.alone():
		p.hints.strike(c)
	case c.write && lost.company <= maxAlone:
		p.hints.remember(c)
	case c.write:
		p.hints.doubt(c)
	}
}

// fate is what settle does with a call after a try.
type fate uint8

const (
	settled fate = iota
	atOnce       // retried
	later        // retried after a pause
	inDoubt      // retried; the call may have broken its connection
)

// fate decides whether the call is retried, and counts the retries.
func (c *Call) fate(ctx context.Context, reply resp.Reply, err error) fate {
	var lost *lostError
	switch {
	case err == nil && retriable(reply):
		c.refusal = reply.Text
		return later
	case err == nil, !errors.As(err, &lost), lost.left, ctx.Err() != nil:
		return settled
	case errors.Is(lost.cause, errHeldUp): // nothing failed
		c.heldUp++
		return atOnce
	case !lost.sent && c.unsent < c.maxUnsent():
		c.unsent++
		return atOnce
	case lost.sent && !c.write && errors.Is(lost.cause, errSuspended): // no call broke the connection
		if c.broke++; c.broke > 1 {
			return settled
		}
		return atOnce
	case lost.sent && !c.write:
		c.broke++
		if lost.alone() && c.broke > 1 || c.broke > maxBroken {
			return settled
		}
		return inDoubt
	}
	return settled
}

// maxUnsent returns how often a call may be retried because it was not sent as a whole. A large call may
// itself be the cause: a server closes the connection when it refuses the length of a value.
func (c *Call) maxUnsent() int {
	if small(c) {
		return maxRepeats
	}
	return 1
}

// outcome returns the result of a call that is not retried. If the context has ended, the error also
// matches that of the context. If the call was refused before, and its last retry has no reply, the error
// wraps the refusal too.
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
			err = withContext(ctx, err)
		}
	case errors.As(err, &lost):
		err = withContext(ctx, c.withRefusal(lost.cause))
		if lost.sent && c.write {
			err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		}
	default:
		err = withContext(ctx, c.withRefusal(err))
	}
	return resp.Reply{}, err
}

// withRefusal returns err, wrapped so that it also matches the last refusal of the call, unless err holds a
// later answer or the call was never refused.
func (c *Call) withRefusal(err error) error {
	if _, answered := resp.MeaningOfError(err); answered || c.refusal == "" {
		return err
	}
	return fmt.Errorf("%w: %w", redis.Error(resp.Discreet(c.refusal)), err)
}

// answerError returns an error reply as an error, and nil for any other reply.
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

// withContext returns err, wrapped so that it also matches the error of ctx if ctx has ended.
func withContext(ctx context.Context, err error) error {
	if ended := ctx.Err(); ended != nil && !errors.Is(err, ended) {
		return fmt.Errorf("%w: %w", ended, err)
	}
	return err
}

// deadline returns until when a call that Redis refuses for now is retried.
func (p *Pipeline) deadline(ctx context.Context, c *Call) time.Time {
	d := cmp.Or(p.cfg.ReadTimeout, maxRefused)
	if p.cfg.Timeout > 0 {
		d = p.remaining(c)
	}
	give := time.Now().Add(d)
	if own, ok := ctx.Deadline(); ok && own.Before(give) {
		return own
	}
	return give
}

// pause waits before the next round. It reports false if the next round would come after
// give, or if ctx ends. It keeps the clock running, so that the timeouts of calls go on.
func (p *Pipeline) pause(ctx context.Context, give time.Time, round int) bool {
	d := min(minBackoff<<min(round, 10), maxBackoff)
	d = d/2 + rand.N(d/2)
	if time.Until(give) < 2*d {
		return false
	}
	p.mu.Lock()
	p.pausing++
	p.tickLocked()
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
