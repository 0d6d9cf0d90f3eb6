package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rediscache/rediscache/internal/resp"
)

// exchange is the result of calls on a loan. The calls without a reply failed with err.
type exchange struct {
	replies []resp.Reply // to the first calls
	sent    int          // how many calls the server can have received as a whole
	err     error
	left    bool // the caller's context ended
	hungUp  bool // the server closed the connection during the write
}

// exchange writes calls and appends their replies to replies. It reads no byte of a call after it has
// returned.
//
// If a write fails because the server has closed the connection, an error reply may say why: Redis
// refuses a value above proto-max-bulk-len when it has read the length, and closes the connection while
// the value is still being sent. Linux keeps the bytes that arrived before the reset. That error reply is
// the outcome of the call that was being written. The call was not executed, because a part of it was
// not sent.
func (l *loan) exchange(calls []*Call, replies []resp.Reply) exchange {
	x := exchange{replies: replies, sent: len(calls)}
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
	x.err, x.left = l.cause(x.err)
	return x
}

// cause returns why the calls without a reply failed with err, and whether the caller must leave.
func (l *loan) cause(err error) (cause error, left bool) {
	l.mu.Lock()
	if l.cut {
		err = errStalled
	}
	l.mu.Unlock()
	ended := l.ctx.Err()
	if ended == nil && !l.until.IsZero() && !time.Now().Before(l.until) {
		ended = context.DeadlineExceeded // the socket's timer was first
	}
	if ended != nil {
		return fmt.Errorf("%w: %w", ended, err), true
	}
	return err, false
}

func (l *loan) send(calls []*Call) error {
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
func (l *loan) receive(calls []*Call, x *exchange) error {
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
