package pipeline

import (
	"context"
	"errors"
	"slices"
	"sort"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// DoEach sends n writes whose replies have one form, and returns the error of each, or nil if all
// succeeded. add appends the command i to a call; it may be called again to retry the command. The timeout
// bounds each 512 writes and each large one. After one timed out, the writes that are not sent yet time out
// too.
//
// If the pool has a connection to spare, the commands have it to themselves: they are encoded into one
// buffer, and one goroutine writes them and reads their replies. So they cost no call, no allocation and no
// other goroutine, and do not hold up the calls on the lanes. Otherwise, and for commands that need a retry
// or a connection of their own, each command is a call.
func (p *Pipeline) DoEach(ctx context.Context, n int, form Form, add func(c *Call, i int)) []error {
	s := stream{p: p, n: n, form: form, add: add}
	err := ctx.Err()
	for err == nil && s.next < n && !s.stopped && n > 1 && p.streams() {
		err = s.borrow(ctx)
	}
	if p.turnedAway(err) {
		err = nil
	}
	return s.finish(ctx, err)
}

// streams reports whether commands may have a connection to themselves: the pool has one to spare, and its
// connections are ours, so a caller that leaves in the middle costs no goroutine.
func (p *Pipeline) streams() bool {
	return !p.cfg.Foreign && (p.cfg.Lanes == 0 || p.spare() > 0)
}

// manyKeys is how many keys give a command a connection of its own if the pool has one to spare: it takes both
// sides so long that the calls behind it on a lane would notice.
const manyKeys = 8

func (p *Pipeline) isWide(c *Call) bool {
	switch c.name {
	case "MGET", "DEL", "UNLINK":
		return c.argc >= manyKeys && p.streams()
	}
	return false
}

const (
	streamPiece  = 16 << 10    // bytes of commands that are written at once, so that the server begins early
	streamWindow = maxTogether // writes in flight
	// streamLeast is how many replies are awaited before more commands are encoded. Then the server has
	// 384 commands left, so it does not wait for them.
	streamLeast = 128
)

// stream sends the writes of one DoEach on connections that it borrows, one after the other.
type stream struct {
	p    *Pipeline
	n    int
	form Form
	add  func(c *Call, i int)

	next     int   // the first write that was not encoded
	skipped  []int // writes that were left out: large ones, and those that may break their connection
	sent     int   // writes, but for skipped ones, that the server can have received as a whole
	answered int   // of sent
	since    int64 // the clock when the time of the last 512 writes began
	stopped  bool  // no write may be sent any more
	errs     []error
	refused  []int // writes that Redis refused for now
	replies  []resp.Reply
	lost     *lostError // of the writes that were sent and not answered
}

// borrow sends writes on one connection, until all are sent, others want the connection, or it breaks.
func (s *stream) borrow(ctx context.Context) error {
	c := newCall(s.form, true)
	l, err := s.p.borrowed(ctx, []*Call{c}, func(l *loan) { s.use(l, c) })
	if err != nil {
		return err
	}
	l.end()
	if s.lost == nil { // otherwise a goroutine may await late replies to the call
		c.release()
	}
	return nil
}

// use is the use of a loan. It encodes the writes into c.
func (s *stream) use(l *loan, c *Call) {
	s.since = l.since
	link, ok := l.link.(*directLink)
	if !ok { // the socket is hidden
		s.stopped, l.spent, l.failed = true, false, nil
		return
	}
	l.spent = false
	if l.failed = s.exchange(l, link, c); l.failed == nil {
		l.spent = l.spent || link.extra()
		return
	}
	s.stopped = true
	cause, left := l.cause(l.failed)
	s.lost = &lostError{cause: cause, sent: true, left: left, company: s.sent - s.answered}
	if link.sent == len(link.out) { // no part of a write was sent
		l.undrained = s.sent - s.answered
	}
}

func (s *stream) exchange(l *loan, link *directLink, c *Call) error {
	begun, wanted := s.answered, false
	for {
		goesOn := !wanted && !s.stopped && s.next < s.n
		if goesOn {
			if err := s.write(link, c); err != nil {
				return s.unsent(l, link, err)
			}
			goesOn = s.next < s.n
		}
		ahead := 0 // replies that are awaited later
		if goesOn {
			ahead = streamWindow - streamLeast
		} else if s.sent == s.answered {
			return nil
		}
		for s.sent-s.answered > ahead {
			if err := s.receive(l, link); err != nil {
				return err
			}
			if s.answered-begun >= maxTogether {
				begun, s.since = s.answered, l.restart()
				wanted = l.conn.(*warm.Conn).Wanted()
			}
		}
	}
}

// write writes some of the next writes.
func (s *stream) write(link *directLink, c *Call) error {
	encoded := 0
	c.req = c.req[:0]
	for s.next < s.n && s.sent+encoded-s.answered < streamWindow && len(c.req) < streamPiece {
		at := len(c.req)
		s.add(c, s.next)
		if s.joins(c, at) {
			encoded++
		} else {
			c.req, s.skipped = c.req[:at], append(s.skipped, s.next)
		}
		s.next++
	}
	if encoded == 0 {
		return nil
	}
	_ = link.put(c) // never fails
	if _, err := link.flush(); err != nil {
		s.sent += commandsIn(c.req, link.written())
		return err
	}
	s.sent += encoded
	return nil
}

// joins reports whether the write that begins at the index at of c may be sent with the others.
func (s *stream) joins(c *Call, at int) bool {
	if len(c.req)-at >= largeCall {
		return false
	}
	return !s.p.hints.any.Load() || !s.p.hints.direct(&Call{name: c.name, req: c.req[at:], value: c.value - at})
}

// unsent receives the last replies of a server that has closed the connection during a write. It may have
// answered the write of which it has received a part.
func (s *stream) unsent(l *loan, link *directLink, err error) error {
	var hungUp *hungUpError
	if !errors.As(err, &hungUp) {
		return err
	}
	for s.answered < s.sent {
		if s.receive(l, link) != nil {
			return err
		}
	}
	if reply, broken := link.receive(); broken == nil && reply.Kind == resp.Error {
		s.fail(s.index(s.sent), answerError(reply, true))
		s.sent++
		s.answered++
	}
	return err
}

func (s *stream) receive(l *loan, link *directLink) error {
	reply, err := shape{form: s.form}.receiveOne(link)
	if err != nil {
		return err
	}
	i := s.answered
	s.answered++
	if reply.Kind != resp.Error {
		return nil
	}
	if i = s.index(i); retriable(reply) {
		s.refused, s.replies, s.stopped = append(s.refused, i), append(s.replies, reply), true
	} else {
		s.fail(i, answerError(reply, true))
	}
	if s.p.condemned(l.conn, shape{}, reply) {
		l.spent, s.stopped = true, true
	}
	return nil
}

func (s *stream) fail(i int, err error) {
	if s.errs == nil {
		s.errs = make([]error, s.n)
	}
	s.errs[i] = err
}

// index returns which write was sent as the nth.
func (s *stream) index(n int) int {
	for _, i := range s.skipped {
		if i <= n {
			n++
		}
	}
	return n
}

// call returns the write i as a call.
func (s *stream) call(i int) *Call {
	c := newCall(s.form, true)
	s.add(c, i)
	return c
}

// finish gives each write its outcome that has none: after a break, a refusal, or without a connection. err
// is the error of the writes that were not sent.
func (s *stream) finish(ctx context.Context, err error) []error {
	if s.answered == s.n && s.errs == nil && s.refused == nil {
		return nil
	}
	if s.errs == nil {
		s.errs = make([]error, s.n)
	}
	s.settle(ctx)
	if err == nil && slices.ContainsFunc(s.errs, TooLate) {
		err = context.DeadlineExceeded
	}
	first := s.index(s.sent)
	rest := s.skipped[:sort.SearchInts(s.skipped, first)]
	for i := first; i < s.n; i++ {
		rest = append(rest, i)
	}
	calls := make([]*Call, 0, min(len(rest), maxTogether))
	for group := range slices.Chunk(rest, maxTogether) {
		if err == nil {
			calls = calls[:0]
			for _, i := range group {
				calls = append(calls, s.call(i))
			}
			_, errs := s.p.DoAll(ctx, calls...)
			for n, i := range group {
				s.errs[i] = errs[n]
			}
			if slices.ContainsFunc(errs, TooLate) {
				err = context.DeadlineExceeded
			}
			continue
		}
		for _, i := range group {
			s.errs[i] = err
		}
	}
	if !slices.ContainsFunc(s.errs, func(err error) bool { return err != nil }) {
		return nil
	}
	return s.errs
}

// settle gives the writes that were refused for now, and those that were lost, their outcome.
func (s *stream) settle(ctx context.Context) {
	which, replies := s.refused, s.replies
	errs := make([]error, len(which), len(which)+maxTogether)
	if s.lost != nil {
		for n := s.answered; n < s.sent; n++ {
			which, replies, errs = append(which, s.index(n)), append(replies, resp.Reply{}), append(errs, s.lost)
		}
	}
	if len(which) == 0 {
		return
	}
	calls := make([]*Call, len(which))
	for n, i := range which {
		calls[n] = s.call(i)
		calls[n].startTimeout(s.since)
	}
	s.p.settle(ctx, calls, replies, errs)
	for n, i := range which {
		s.errs[i] = errs[n]
	}
}

// commandsIn returns how many commands are in the first n bytes of req as a whole.
func commandsIn(req []byte, n int) (commands int) {
	for at := 0; at < len(req); commands++ {
		args, next := length(req, at)
		for range args {
			size, body := length(req, next)
			next = body + size + len("\r\n")
		}
		if at = next; at > n {
			break
		}
	}
	return commands
}
