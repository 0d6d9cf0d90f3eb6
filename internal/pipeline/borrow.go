package pipeline

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// A loan is one use of a connection that some calls, or a talk, have to themselves. The caller writes and
// reads itself, without a timer or a goroutine of its own. Instead the clock looks at each loan once a tick:
//
//  1. The caller waits for a connection. If its context or its timeout ends, the clock ends the wait.
//  2. The caller uses the connection. If its context or its timeout ends, the clock interrupts the
//     caller, which leaves. If the server is silent for the read timeout, the clock cuts the connection.
//  3. The caller has left, and all its calls were sent. A goroutine reads the late replies, and returns
//     the connection. If the server is silent for drainTicks, the clock cuts the connection.
//
// Only a directLink can be interrupted. A connection of a warm.Store whose socket is hidden is cut instead.
// The connection of another pool cannot be cut, so a goroutine uses it, and goes on after the caller left.
type loan struct {
	p          *Pipeline // written under mu, by the owner
	prev, next *loan     // guarded by p.mu

	calls     []*Call      // a copy, because the caller may leave
	use       func(*loan)  // of the connection; nil: calls are sent
	buffer    []resp.Reply // for the replies to calls
	out       exchange     // of calls
	undrained int          // late replies that use leaves, each of the form of the call
	spent     bool         // the connection must not be lent again
	failed    error        // why the connection cannot be used any more
	idle      bool         // a pool of another maker has an idle connection, so the worker borrows it
	refused   error        // why no connection was borrowed, for a caller that waits for the worker
	redigo    redigoWire   // the link, unless that is a directLink
	until     time.Time    // when the calls time out, if the connection cannot be cut; zero otherwise

	work    func()        // immutable; worker
	served  chan struct{} // holds one: the worker is over, and the caller has not left
	expired chan struct{} // holds one: the caller must leave
	reused  patience      // used again by the next loan

	mu     sync.Mutex // guards all below
	ctx    *patience  // nil while the loan is not in use
	since  int64      // the clock when the first call began
	conn   redis.Conn // nil before and after the use
	link   link       // nil before the use
	state  loanState
	closed bool  // the pipeline was closed
	cut    bool  // the clock has cut the connection of a silent server
	heard  int64 // the progress of link
	at     int64 // the clock when link reached this progress
}

type loanState uint8

const (
	callerWaits       loanState = iota
	callerInterrupted           // as callerWaits, and the clock has interrupted the caller
	callerLeft                  // a goroutine goes on
	callerServed                // the worker is over
)

// drainTicks is how long the server may be silent while a late reply is awaited. After a second a new
// connection is cheaper than the wait.
const drainTicks = 100

var loans = sync.Pool{New: func() any {
	l := &loan{served: make(chan struct{}, 1), expired: make(chan struct{}, 1)}
	l.work = l.worker
	return l
}}

// borrow sends a call on a connection of its own.
func (p *Pipeline) borrow(ctx context.Context, c *Call) (resp.Reply, error) {
	calls, replies, errs := [1]*Call{c}, [1]resp.Reply{}, [1]error{}
	p.borrowAll(ctx, calls[:], replies[:], errs[:])
	return replies[0], errs[0]
}

// borrowAll sends calls together on a connection of their own.
func (p *Pipeline) borrowAll(ctx context.Context, calls []*Call, replies []resp.Reply, errs []error) {
	l, err := p.borrowed(ctx, calls, nil)
	if err != nil {
		for i := range errs {
			errs[i] = err
		}
		return
	}
	for i := range calls {
		if i < len(l.out.replies) {
			replies[i], errs[i] = l.out.replies[i], nil
		} else {
			errs[i] = l.out.lost(i)
		}
	}
	l.end()
}

// borrowed borrows a connection, and sends calls on it or calls use, within the timeout of the first call.
// The caller must call end when it has read the outcome. An error means that nothing was done, or is still
// being done because the caller left. Then the caller must not read what use writes.
func (p *Pipeline) borrowed(ctx context.Context, calls []*Call, use func(*loan)) (*loan, error) {
	l, err := p.newLoan(ctx, calls, use)
	if err != nil {
		return nil, err
	}
	over := false
	defer func() {
		if over {
			return
		}
		// use has panicked, or code of the pool or of a connection has ended the goroutine.
		if l.conn != nil {
			l.giveBack()
		}
		l.leave()
	}()
	if !l.idle {
		if err := l.borrow(l.ctx); err != nil {
			return nil, err
		}
	}
	if _, ours := l.conn.(*warm.Conn); !ours {
		over = true
		return l, l.handOver()
	}
	l.run()
	if !l.drains() {
		l.giveBack()
	}
	over = true
	return l, nil
}

// newLoan makes a loan, for which Close waits.
func (p *Pipeline) newLoan(ctx context.Context, calls []*Call, use func(*loan)) (*loan, error) {
	l := loans.Get().(*loan)
	l.calls, l.use = append(l.calls[:0], calls...), use
	wait := &l.reused
	l.idle = p.cfg.Idle != nil && p.cfg.Idle()
	if p.cfg.Foreign && !l.idle {
		wait = new(patience) // because code of the pool may keep it for longer than the loan lasts
	}
	wait.caller = ctx
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, warm.ErrClosed
	}
	p.wg.Add(1)
	p.tickLocked()
	now := p.clock.Load()
	for _, c := range calls {
		c.startTimeout(now)
	}
	l.mu.Lock()
	l.p, l.ctx, l.since = p, wait, calls[0].since
	l.mu.Unlock()
	if l.next = p.loans; l.next != nil {
		l.next.prev = l
	}
	p.loans = l
	return l, nil
}

// borrow borrows the connection, and waits for it within ctx.
func (l *loan) borrow(ctx context.Context) error {
	p := l.p
	conn, err := p.borrowConn(ctx)
	var link link
	if err == nil {
		link = l.open(conn)
	}
	l.mu.Lock()
	closed, ended := l.closed, l.ctx.Err()
	if err == nil && !closed && ended == nil {
		// In the same critical section as the look at the context: a caller that leaves
		// before it was not sent, and one that leaves after it may have been.
		l.conn, l.link, l.at, l.heard = conn, link, p.clock.Load(), link.progress()
		l.mu.Unlock()
		return nil
	}
	l.mu.Unlock()
	if err == nil {
		p.returned(func() { link.giveBack(false, false) })
	}
	switch {
	case closed:
		return warm.ErrClosed
	case err == nil:
		return ended
	case ended != nil && errors.Is(err, context.Canceled):
		return p.cfg.GaveUp(ended)
	}
	return err
}

// open returns the link of a borrowed connection.
func (l *loan) open(conn redis.Conn) link {
	l.until = time.Time{}
	ours, _ := conn.(*warm.Conn)
	if ours != nil && ours.Stream() != nil {
		return newDirectLink(ours, l.p.cfg.WriteTimeout)
	}
	if ours == nil && l.p.cfg.Timeout > 0 {
		l.until = time.Now().Add(l.p.remaining(l.calls[0]))
		if deadline, ok := l.ctx.caller.Deadline(); ok && deadline.Before(l.until) {
			l.until = deadline
		}
	}
	l.redigo.reset(conn, l.p.cfg.ReadTimeout, l.until)
	return &l.redigo
}

// run uses the connection.
func (l *loan) run() {
	l.spent, l.failed = true, errExited // unless the use returns
	l.out = exchange{sent: len(l.calls), err: errExited}
	if l.use != nil {
		l.use(l)
		return
	}
	l.out = l.exchange(l.calls, l.buffer[:0])
	l.buffer, l.failed = l.out.replies, l.out.err
	l.spent = l.condemned(l.calls, l.out.replies) || l.out.hungUp || l.failed == nil && l.link.extra()
}

// condemned reports whether one of the replies condemns the connection.
func (l *loan) condemned(calls []*Call, replies []resp.Reply) (condemned bool) {
	for i, reply := range replies {
		condemned = l.p.condemned(l.conn, calls[i].shape, reply) || condemned
	}
	return condemned
}

// drains reports whether late replies are to be read: the caller was interrupted when all was sent.
func (l *loan) drains() bool {
	link, ok := l.link.(*directLink)
	sent := l.use == nil && l.out.sent == len(l.calls) || l.undrained > 0
	if !ok || !sent || !errors.Is(l.failed, os.ErrDeadlineExceeded) {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.state != callerInterrupted {
		return false
	}
	l.state, l.at = callerLeft, l.p.clock.Load()
	link.resume()
	return true
}

// drain reads the replies that are still to come after the caller has left.
func (l *loan) drain() {
	defer l.leave()
	defer l.giveBack()
	l.failed = l.receiveLate()
	l.spent = l.spent || l.link.extra()
}

func (l *loan) receiveLate() error {
	for range l.undrained {
		if err := l.receiveLateOne(shape{form: l.calls[0].form}); err != nil {
			return err
		}
	}
	if l.use != nil {
		return nil
	}
	n := 0
	for _, c := range l.calls {
		for _, one := range c.each() {
			if n++; n <= l.link.(*directLink).received {
				continue
			}
			if err := l.receiveLateOne(one); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *loan) receiveLateOne(s shape) error {
	reply, err := s.receiveOne(l.link)
	if err == nil {
		l.spent = l.p.condemned(l.conn, s, reply) || l.spent
	}
	return err
}

// restart begins the timeout anew, and returns the clock.
func (l *loan) restart() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.since = l.p.clock.Load()
	return l.since
}

// handOver makes a goroutine use the connection, and waits for it or until the caller must leave.
func (l *loan) handOver() error {
	ctx := l.ctx.caller // the worker may end the loan
	go l.work()
	select {
	case <-l.served:
	case <-l.expired:
		if cause, sent := l.goes(); cause != nil {
			return &lostError{cause: cause, sent: sent, left: true}
		}
		<-l.served
	case <-ctx.Done():
		if cause, sent := l.goes(); cause != nil {
			return &lostError{cause: cause, sent: sent, left: true}
		}
		<-l.served
	}
	if l.refused != nil {
		err := l.refused
		l.leave()
		return err
	}
	return nil
}

// goes makes the caller leave, and returns why it must. It returns nil if the worker was faster. sent
// reports whether calls may have been sent.
func (l *loan) goes() (cause error, sent bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state == callerServed {
		return nil, false
	}
	l.state = callerLeft
	used := l.link != nil // also after the worker has given the connection back
	if l.closed && !used {
		return warm.ErrClosed, false
	}
	return l.ctx.Err(), used
}

// worker uses a connection for a caller that may leave, and borrows it first if the pool has idle ones. Code
// of the pool or the connection may end the goroutine.
func (l *loan) worker() {
	l.refused = errExited
	defer l.endWork() // also if giveBack ends the goroutine
	defer func() {
		if l.refused == nil {
			l.giveBack()
		}
	}()
	if l.conn == nil {
		if err := l.borrow(l.p.ctx); err != nil { // without a context of the loan's own, because the pool may keep it
			l.refused = err
			return
		}
	}
	l.refused = nil
	l.run()
}

// endWork hands the outcome to the caller, or ends the loan if the caller has left.
func (l *loan) endWork() {
	l.mu.Lock()
	gone := l.state == callerLeft
	if !gone {
		l.state = callerServed
	}
	l.mu.Unlock()
	if gone {
		l.leave()
	} else {
		l.served <- struct{}{}
	}
}

// giveBack returns the connection.
func (l *loan) giveBack() {
	l.mu.Lock()
	ended := l.ctx.Err() != nil
	link, _ := l.link.(*directLink)
	if link != nil && l.state == callerInterrupted {
		link.resume()
	}
	l.conn = nil
	l.mu.Unlock()
	l.p.returned(func() { l.link.giveBack(l.failed != nil && !ended, l.spent || l.failed != nil) })
}

// end ends a loan when its caller has read the outcome.
func (l *loan) end() {
	if l.state == callerLeft { // drains has set it
		go l.drain()
		return
	}
	l.leave()
	clear(l.calls)
	clear(l.buffer)
	l.out, l.failed, l.refused, l.use, l.undrained, l.prev, l.next = exchange{}, nil, nil, nil, 0, nil, nil
	l.mu.Lock()
	ctx := l.ctx
	l.ctx, l.link, l.state, l.closed, l.cut = nil, nil, callerWaits, false, false
	l.mu.Unlock()
	if ctx == &l.reused {
		l.reused.caller, l.reused.ended, l.reused.done = nil, nil, nil
	} else {
		ctx.end(context.Canceled)
	}
	select {
	case <-l.expired:
	default:
	}
	loans.Put(l)
}

// leave makes the clock and Close forget a loan.
func (l *loan) leave() {
	p := l.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.prev != nil {
		l.prev.next = l.next
	} else {
		p.loans = l.next
	}
	if l.next != nil {
		l.next.prev = l.prev
	}
	p.wg.Done()
}

// tick is called by the clock of p. The loan may have ended meanwhile, and be that of another pipeline.
func (l *loan) tick(p *Pipeline, now int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.p != p || l.ctx == nil || l.state >= callerLeft && l.conn == nil {
		return
	}
	ended := l.ctx.Err()
	if ended == nil && p.timeoutTicks > 0 && now-l.since >= p.timeoutTicks {
		ended = context.DeadlineExceeded
	}
	if ended != nil {
		l.endLocked(ended)
	}
	if l.conn == nil {
		return
	}
	if n := l.link.progress(); n != l.heard {
		l.heard, l.at = n, now
	}
	silent := now - l.at
	link, ok := l.link.(*directLink)
	switch {
	case !ok && ended != nil && l.state == callerWaits:
		if ours, ok := l.conn.(*warm.Conn); ok {
			l.state = callerInterrupted
			go ours.Cut() // may be code of the user
		}
	case !ok:
	case l.state == callerLeft && silent > drainTicks, p.stallTicks > 0 && silent > p.stallTicks && !link.writing.Load():
		l.cut = true
		link.cut()
	case ended != nil && l.state != callerLeft:
		l.state = callerInterrupted
		link.interrupt()
	}
}

// endLocked ends the wait for a connection, or for a worker.
func (l *loan) endLocked(cause error) {
	if l.ctx.end(cause) {
		l.expired <- struct{}{}
	}
}

// close is called when the pipeline closes. It ends the wait for a connection and for late replies.
func (l *loan) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx == nil {
		return
	}
	l.closed = true
	if link, ok := l.link.(*directLink); ok && l.conn != nil && l.state == callerLeft {
		link.cut()
	} else if l.conn == nil && l.state == callerWaits {
		l.endLocked(context.Canceled)
	}
}
