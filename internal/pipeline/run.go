package pipeline

import (
	"context"

	"github.com/rediscache/rediscache/internal/resp"
)

// DoRun sends first and c as one call, see [Call.After]. reply and err are those of Do for c. If c was
// executed, before is the reply to first, and refused is that reply as an error if it is one.
func (p *Pipeline) DoRun(ctx context.Context, first, c *Call) (before, reply resp.Reply, refused, err error) {
	write := c.write
	both, err := p.Do(ctx, c.After(first))
	if err != nil {
		return resp.Reply{}, resp.Reply{}, nil, err
	}
	before, reply = both.Elems[0], both.Elems[1]
	if err = answerError(reply, write); err != nil {
		return resp.Reply{}, resp.Reply{}, nil, err
	}
	return before, reply, answerError(before, false), nil
}

// Talk lends a connection to talk, for several round trips within the timeout of one call. ask sends
// calls together and returns their replies, which may be of Kind Error. After an error of ask the
// connection cannot be used any more. Talk retries nothing.
//
// If talk leaves state on the server, such as that of WATCH, it must return an error, so that Talk
// closes the connection. If ctx or the timeout ends, Talk may return an error while talk still runs.
// So talk must not write to variables that the caller of Talk reads after an error.
func (p *Pipeline) Talk(ctx context.Context, talk func(ask Ask) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	result := errExited // unless talk returns
	l, err := p.borrowed(ctx, []*Call{new(Call)}, func(l *loan) {
		l.spent, l.failed = false, nil
		failed := errExited // unless talk returns
		defer func() { l.spent = l.spent || failed != nil }()
		failed = talk(func(calls ...*Call) ([]resp.Reply, error) {
			x := l.exchange(calls, make([]resp.Reply, 0, len(calls)))
			l.spent = l.condemned(calls, x.replies) || x.hungUp || l.spent
			switch {
			case x.err != nil:
				l.failed = x.lost(len(x.replies))
			case l.link.extra(): // the next command would get the extra reply
				l.failed = &lostError{cause: errExtra, sent: true}
			}
			return x.replies, l.failed
		})
		result = failed
	})
	if err != nil {
		return err
	}
	l.end()
	return result
}

// Ask sends calls on the connection that [Pipeline.Talk] lends.
type Ask func(calls ...*Call) ([]resp.Reply, error)
