// Package pipeline lets many callers share a few connections, full duplex.
//
// A [Call] has exactly one outcome. If its caller gives up, the reply is read and
// dropped, and the connection stays. When a lane breaks, a call that was not written is
// retried, a read that was written is retried, and the outcome of a write that was
// written is unknown.
package pipeline

import (
	"container/list"
	"context"
	"errors"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// ErrOutcomeUnknown is exported by package rediscache under the same name.
var ErrOutcomeUnknown = errors.New("rediscache: outcome unknown")

const (
	maxGathered    = 1024 // calls in a lane before more calls go to the next lane, see choose
	maxQueued      = 8192 // calls in a lane before callers wait
	maxUnannounced = 64 << 10
	maxTogether    = 512      // calls of one caller
	largeCall      = 64 << 10 // bytes of a command that gets a connection of its own

	tick    = 10 * time.Millisecond
	maxStep = 5 // ticks that one turn of the clock may count
)

// MaxTogether is how many calls of one caller are sent together at most.
const MaxTogether = maxTogether

// Config configures a pipeline.
type Config struct {
	// Borrow borrows a connection.
	Borrow func(ctx context.Context) (redis.Conn, error)
	// GaveUp returns the error of a call that ended, because of cause, before a
	// connection was borrowed; nil: cause itself.
	GaveUp func(cause error) error
	// Spare returns how many connections the pool can lend without a wait; nil:
	// unknown.
	Spare func() int
	// Idle reports whether the pool can lend a connection without a wait and without a
	// dial; nil: unknown. It is for foreign pools only.
	Idle func() bool

	// Foreign means that the pool is not a warm.Store, so its connections do not
	// report that other borrowers wait.
	Foreign bool
	// Refuses means that borrowers cannot wait in the pool: it returns an error at
	// once when all connections are in use.
	Refuses bool

	Lanes   int           // 0: each call borrows a connection of its own
	Timeout time.Duration // of a call; 0: only its context bounds a call
	// ReadTimeout bounds the time without a byte from the server, and WriteTimeout the
	// time in which the server takes no byte. With zero only the connection's own
	// timeouts apply.
	ReadTimeout, WriteTimeout time.Duration
}

// Pipeline sends calls. All methods are safe for concurrent use.
type Pipeline struct {
	cfg          Config             // immutable
	timeoutTicks int64              // immutable
	stallTicks   int64              // immutable
	start        func(*lane)        // immutable; its goroutine is one of wg
	ctx          context.Context    // immutable; cancelled by Close, to end waits for a connection
	stop         context.CancelFunc // immutable; ends ctx
	clock        atomic.Int64       // ticks, while there is a lane
	pulse        warm.Pulse         // of the clock
	spread       atomic.Int64       // until this clock calls are spread over the lanes
	refused      atomic.Int64       // until this clock one lane gets all calls, and none is opened beside it
	lanes        atomic.Pointer[[]*lane]
	waiting      atomic.Int64 // callers in queue
	hints        hints
	farewells    farewells
	holdings     holdings
	wg           sync.WaitGroup

	mu      sync.Mutex // guards below, and the replacement of lanes
	queue   list.List  // of *waiter: callers that found no room in a lane, in order
	coming  int        // calls of waiters that were woken and have not called offer yet
	closed  bool
	ticking bool // keepTime runs
	pausing int  // calls that wait before a retry
	loans   *loan
}

// New makes a pipeline. It borrows no connection before the first call.
func New(cfg Config) *Pipeline {
	ctx, stop := context.WithCancel(context.Background())
	p := &Pipeline{cfg: cfg, ctx: ctx, stop: stop}
	if cfg.GaveUp == nil {
		p.cfg.GaveUp = func(cause error) error { return cause }
	}
	p.timeoutTicks = ticks(cfg.Timeout)
	p.stallTicks = ticks(cfg.ReadTimeout)
	p.lanes.Store(new([]*lane))
	p.clock.Store(1) // 0 means "not set"
	p.start = func(l *lane) { p.wg.Go(func() { l.run(ctx) }) }
	return p
}

// ticks converts d to ticks. It rounds up, and adds one for the current tick, of which
// a part is over.
func ticks(d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return int64((d-1)/tick) + 2
}

// Do sends a call and returns its reply. A reply of kind Error is returned as a
// redis.Error instead. The pipeline owns the call from here on. If a Write may have been
// applied in spite of an error, the error matches ErrOutcomeUnknown; otherwise the Write
// was not applied.
func (p *Pipeline) Do(ctx context.Context, c *Call) (resp.Reply, error) {
	if err := ctx.Err(); err != nil {
		c.release()
		return resp.Reply{}, err
	}
	reply, err := p.tryOne(ctx, c)
	if err == nil && reply.Kind != resp.Error {
		c.release()
		return reply, nil
	}
	return p.settleOne(ctx, c, reply, err)
}

// DoAll sends calls in their order, at most 512 together, and waits for all. The outcomes have the
// same order. A call is sent alone if it is large, or if its last reply was large or broke the
// connection. After a call timed out, the calls that are not sent yet time out too.
func (p *Pipeline) DoAll(ctx context.Context, calls ...*Call) ([]resp.Reply, []error) {
	replies, errs := make([]resp.Reply, len(calls)), make([]error, len(calls))
	var late error
	for at := 0; at < len(calls); {
		next := at + 1
		for p.joins(calls[at]) && next < len(calls) && p.joins(calls[next]) && next-at < maxTogether {
			next++
		}
		run, replies, errs := calls[at:next], replies[at:next], errs[at:next]
		at = next
		if late == nil {
			late = ctx.Err()
		}
		if late != nil {
			for i := range errs {
				errs[i] = late
			}
			continue
		}
		p.try(ctx, run, replies, errs)
		p.settle(ctx, run, replies, errs)
		if slices.ContainsFunc(errs, TooLate) {
			late = context.DeadlineExceeded
		}
	}
	return replies, errs
}

func small(c *Call) bool { return len(c.req) < largeCall }

// joins reports whether the call may be sent together with others.
func (p *Pipeline) joins(c *Call) bool { return small(c) && !p.hints.direct(c) }

// TooLate reports whether a call timed out.
func TooLate(err error) bool { return errors.Is(err, context.DeadlineExceeded) }

// try sends calls once, together if there are several. Several calls are all small.
func (p *Pipeline) try(ctx context.Context, calls []*Call, replies []resp.Reply, errs []error) {
	if len(calls) == 1 {
		replies[0], errs[0] = p.tryOne(ctx, calls[0])
		return
	}
	if p.cfg.Lanes == 0 || p.heldUp() || slices.ContainsFunc(calls, (*Call).mustBorrow) || slices.ContainsFunc(calls, p.isWide) {
		if p.borrowAll(ctx, calls, replies, errs); !p.turnedAway(errs[0]) {
			return
		}
	}
	l, answered, err := p.send(ctx, calls)
	for i, c := range calls {
		if replies[i], errs[i] = (resp.Reply{}), err; err == nil {
			replies[i], errs[i] = p.wait(ctx, l, c, i < answered)
		}
	}
}

// tryOne sends one call tryOne.
func (p *Pipeline) tryOne(ctx context.Context, c *Call) (resp.Reply, error) {
	if p.cfg.Lanes == 0 || !small(c) {
		return p.borrow(ctx, c)
	}
	if p.heldUp() || c.mustBorrow() || p.hints.direct(c) || p.isWide(c) {
		reply, err := p.borrow(ctx, c)
		if err == nil {
			p.hints.forget(c, reply)
		}
		if !p.turnedAway(err) {
			return reply, err
		}
	}
	one := [1]*Call{c}
	l, answered, err := p.send(ctx, one[:])
	if err != nil {
		return resp.Reply{}, err
	}
	return p.wait(ctx, l, c, answered > 0)
}

// turnedAway reports whether the pool refused a connection because all are in use, and the call has
// neither timed out nor been cancelled. The call is then sent on a lane instead.
func (p *Pipeline) turnedAway(err error) bool {
	return p.cfg.Lanes > 0 && errors.Is(err, redis.ErrPoolExhausted) &&
		!TooLate(err) && !errors.Is(err, context.Canceled)
}

// heldUp reports whether all lanes are open, and a large reply is arriving in each.
func (p *Pipeline) heldUp() bool {
	lanes := *p.lanes.Load()
	for _, l := range lanes {
		if !l.slow.Load() {
			return false
		}
	}
	return len(lanes) >= p.cfg.Lanes
}

// mustBorrow reports whether the next try must be on a connection of its own.
func (c *Call) mustBorrow() bool { return c.direct || c.bounced() }

// bounced reports whether the call came behind a large reply twice. Its next try is on a
// connection of its own. The lanes read and drop its earlier replies, so large calls
// could otherwise hold up each other forever.
func (c *Call) bounced() bool { return c.heldUp > 1 }

// wait waits for the outcome of a call that a lane has. With answered there is no wait.
func (p *Pipeline) wait(ctx context.Context, l *lane, c *Call, answered bool) (resp.Reply, error) {
	switch {
	case answered:
	case ctx.Done() == nil:
		<-c.done
	default:
		select {
		case <-c.done:
		case <-ctx.Done():
			if !c.leave() {
				<-c.done
			}
		}
	}
	if c.in(ended) {
		p.hints.learn(c, c.reply)
		return c.reply, c.err
	}
	cause := ctx.Err()
	if cause == nil {
		cause = context.DeadlineExceeded
	}
	if !l.connected() {
		cause = p.cfg.GaveUp(cause)
	}
	return resp.Reply{}, &lostError{cause: cause, sent: c.in(abandoned), left: true}
}

// send gives the calls to a lane, and waits while no lane has room. The first answered
// calls have their outcome already.
func (p *Pipeline) send(ctx context.Context, calls []*Call) (l *lane, answered int, err error) {
	var s seat
	if p.waiting.Load() == 0 { // otherwise the waiters come first
		s, err = p.offer(calls)
	}
	if s.lane == nil && err == nil {
		s, err = p.await(ctx, calls)
	}
	if err == nil && s.writes {
		answered = s.lane.write(calls, s.gathers, s.turn)
	}
	return s.lane, answered, err
}

// seat is the result of an offer: the lane that has the calls, nil if none had room, and
// what the caller must do.
type seat struct {
	lane    *lane
	writes  bool // the caller must write for the lane
	turn    int  // the turn of this writer
	gathers bool // the writer should let other callers join first
}

// offer gives the calls to a lane. It opens another lane if choose advises it.
func (p *Pipeline) offer(calls []*Call) (seat, error) {
	best, more := p.choose()
	if more {
		opened, err := p.open()
		if err != nil {
			return seat{}, err
		}
		if opened {
			best, _ = p.choose()
		}
	}
	if best == nil {
		return seat{}, nil
	}
	return best.enqueue(calls), nil
}

// choose returns the first lane with fewer than maxGathered calls: a batch of many small calls saves
// more than a second connection gives, and two readers that poll take the processor from each other.
// After large replies choose returns the lane with the fewest calls, so that client and server work at
// the same time.
//
// A lane in which a large reply is arriving is chosen last, and a lane without a
// connection before it, because the pool may refuse the connection or lend it late. more
// reports whether to open another lane.
func (p *Pipeline) choose() (best *lane, more bool) {
	var few int64 = maxGathered
	if p.spreads() {
		few = 1
	}
	var least int64 = math.MaxInt64
	taking, leases := 0, false
	lanes := *p.lanes.Load()
	for _, l := range lanes {
		life := l.life.Load()
		if life > open {
			continue
		}
		taking++
		load := l.load()
		if load >= maxQueued {
			continue
		}
		switch {
		case life == borrowing:
			load += maxQueued
			leases = true
		case l.slow.Load():
			load += 2 * maxQueued
		}
		if load < least {
			best, least = l, load
		}
		if least < few {
			return best, false
		}
	}
	more = best == nil || !leases && taking < p.cfg.Lanes && len(lanes) <= p.cfg.Lanes && p.clock.Load() >= p.refused.Load()
	return best, more
}

// spreads reports whether calls are spread over the lanes.
func (p *Pipeline) spreads() bool {
	now := p.clock.Load()
	return now < p.spread.Load() && now >= p.refused.Load()
}

// tighten is called when the pool has no connection to spare.
func (p *Pipeline) tighten() { p.refused.Store(p.clock.Load() + tightTicks) }

// open adds a lane, if there may be one more.
func (p *Pipeline) open() (opened bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false, warm.ErrClosed
	}
	if !p.mayOpenLocked() {
		return false, nil
	}
	lanes, now := *p.lanes.Load(), p.clock.Load()
	l := &lane{p: p, second: len(lanes) > 0, wake: make(chan struct{}, 1), opened: now, active: now, at: now}
	more := append(append([]*lane(nil), lanes...), l)
	p.lanes.Store(&more)
	p.tickLocked()
	p.start(l)
	return true, nil
}

// tickLocked starts the clock, unless it runs or the pipeline is closed: then Close may
// already wait for wg, or have returned.
func (p *Pipeline) tickLocked() {
	if !p.ticking && !p.closed {
		p.ticking = true
		p.pulse.Beat(time.Now())
		p.wg.Go(p.keepTime)
	}
}

// forget removes a lane that is over.
func (p *Pipeline) forget(gone *lane) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var rest []*lane
	for _, l := range *p.lanes.Load() {
		if l != gone {
			rest = append(rest, l)
		}
	}
	p.lanes.Store(&rest)
	p.wakeLocked()
}

// remaining returns what is left of the timeout of c. There must be a timeout.
func (p *Pipeline) remaining(c *Call) time.Duration {
	if c.since == 0 {
		return p.cfg.Timeout
	}
	return p.cfg.Timeout - time.Duration(p.clock.Load()-c.since)*tick
}

// keepTime is the clock, and a goroutine of wg. It runs while there is a lane, a loan, a
// waiter, or a call that waits before a retry. A suspension of the process counts as at most
// maxStep ticks, so that calls do not time out because of it.
func (p *Pipeline) keepTime() {
	t := time.NewTicker(tick)
	defer t.Stop()
	last := time.Now()
	var loans []*loan
	for range t.C {
		lanes := *p.lanes.Load()
		if len(lanes) == 0 && p.mayStop() {
			return
		}
		now := time.Now()
		suspended := p.pulse.Missed(now)
		p.pulse.Beat(now)
		at := p.clock.Add(min(max(int64((now.Sub(last)+tick/2)/tick), 1), maxStep))
		last = now
		if refused := p.refused.Load(); refused > 0 && at >= refused && p.refused.CompareAndSwap(refused, 0) {
			p.room()
		}
		if p.waiting.Load() > 0 {
			p.expireWaiters(at)
		}
		loans = p.loansNow(loans[:0])
		for _, l := range loans { // without p.mu; a loan that has ended meanwhile does nothing
			l.tick(p, at)
		}
		spare := 1
		if len(lanes) > 0 {
			spare = p.spare()
		}
		for _, l := range lanes {
			if suspended {
				l.suspect()
			}
			l.tick(at, spare == 0)
		}
	}
}

// loansNow appends the loans to into.
func (p *Pipeline) loansNow(into []*loan) []*loan {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := p.loans; l != nil; l = l.next {
		into = append(into, l)
	}
	return into
}

func (p *Pipeline) mayStop() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ticking = len(*p.lanes.Load()) > 0 || p.pausing > 0 || p.queue.Len() > 0 || p.loans != nil
	return !p.ticking
}

// Close makes new and waiting calls fail, waits for the calls in flight, and returns
// after all connections are returned. It may be called more than once.
func (p *Pipeline) Close() {
	p.mu.Lock()
	p.closed = true
	p.wakeLocked()
	for l := p.loans; l != nil; l = l.next {
		l.close()
	}
	p.mu.Unlock()
	p.stop()
	p.finishAll(false)
	p.wg.Wait()
}

// finishAll makes all lanes end in order. With spent their connections are closed.
func (p *Pipeline) finishAll(spent bool) {
	for _, l := range *p.lanes.Load() {
		l.finish(spent)
	}
}
