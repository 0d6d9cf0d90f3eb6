package pipeline

import (
	"context"

	"github.com/rediscache/rediscache/internal/resp"
)

// DoRun sends c right after first, as one call: see [Call.After]. The reply and err are those of Do
// for c. Where Redis executed c, refused is the error with which it refused first.
func (p *Pipeline) DoRun(ctx context.Context, first, c *Call) (reply resp.Reply, refused, err error) {
	write := c.write
	both, err := p.Do(ctx, c.After(first))
	if err != nil {
		return resp.Reply{}, nil, err
	}
	reply = both.Elems[1]
	if err = answerError(reply, write); err != nil {
		return resp.Reply{}, nil, err
	}
	return reply, answerError(both.Elems[0], false), nil
}

// Talk lends a connection to talk, for several round trips under the timeout of one call. Its ask
// sends calls together and returns their replies, which may be of Kind Error; an error means that the
// connection is of no use any more. Nothing is retried.
//
// Where the server may hold state for the connection, such as that of WATCH, talk ends that state or
// returns an error: then the connection is closed. Talk may return before talk does, with an error,
// when ctx or the timeout ends. So talk must not write to anything that its caller reads then.
func (p *Pipeline) Talk(ctx context.Context, talk func(ask Ask) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	result := errExited // unless talk returns
	err := p.borrowed(ctx, new(Call), func(l loan) (spent bool, failed error) {
		result = talk(func(calls ...*Call) ([]resp.Reply, error) {
			x := l.exchange(calls)
			spent = p.condemnedBy(l, calls, x.replies) || x.hungUp || spent
			switch {
			case x.err != nil:
				failed = x.lost(len(x.replies))
			case l.link.extra(): // the next command would be answered with it
				failed = &lostError{cause: errExtra, sent: true}
			}
			return x.replies, failed
		})
		return spent || result != nil, failed
	})
	if err != nil {
		return err
	}
	return result
}

// Ask sends calls on the connection that [Pipeline.Talk] lends.
type Ask func(calls ...*Call) ([]resp.Reply, error)
