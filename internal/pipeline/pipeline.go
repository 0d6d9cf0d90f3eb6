// Package pipeline lets many callers share few connections, full duplex.
//
// A [Call] has exactly one outcome. One whose caller leaves costs nothing but
// its reply, which is read and dropped. When a lane breaks, a call that was
// not written is sent on another, one that only reads is sent once more, and
// any other has an outcome that nobody knows.
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

// ErrOutcomeUnknown is given to users under the same name.
var ErrOutcomeUnknown = errors.New("rediscache: outcome unknown")

const (
	maxGathered    = 1024 // calls in a lane before others go to the next one, see choose
	maxQueued      = 8192 // calls in a lane before callers wait
	maxUnannounced = 64 << 10
	maxTogether    = 512      // calls of one caller
	largeCall      = 64 << 10 // bytes of a command that gets a connection of its own

	tick       = 10 * time.Millisecond
	denseTicks = 5 // calls are gathered after a dense batch
	maxStep    = 5 // ticks that one turn of the clock may count
)

// Config is what a pipeline is made of.
type Config struct {
	// Lease borrows a connection.
	Lease func(ctx context.Context) (redis.Conn, error)
	// Late says why a call is over, for cause, before a connection was leased;
	// nil: for cause.
	Late func(cause error) error
	// Spare returns how many connections the pool can lend without a wait; nil:
	// nobody knows.
	Spare func() int

	// Foreign means that the connections of the pool do not say when somebody
	// else waits for one.
	Foreign bool
	// Refuses means that nobody can wait for a connection of the pool: it returns
	// an error at once when all are in use.
	Refuses bool

	Lanes   int           // 0: each call borrows a connection of its own
	Timeout time.Duration // of a call; 0: its context's
	// How long to wait for a connection on which nothing comes, and which takes no more of what is
	// written; 0: the connection's own timeouts.
	ReadTimeout, WriteTimeout time.Duration
}

// Pipeline sends calls. All methods are safe for concurrent use.
type Pipeline struct {
	cfg          Config                    // immutable
	timeoutTicks int64                     // immutable
	stallTicks   int64                     // immutable
	start        func(*lane)               // immutable; its goroutine is one of wg
	ctx          context.Context           // immutable; over when leases are to end
	stop         context.CancelFunc        // immutable; ends ctx
	clock        atomic.Int64              // ticks, while there is a lane
	beat         atomic.Pointer[time.Time] // when the clock last moved; nil: it has not
	gathered     atomic.Int64              // the clock until which one lane gets all calls
	refused      atomic.Int64              // the clock until which no lane is opened beside another
	lanes        atomic.Pointer[[]*lane]
	waiting      atomic.Int64 // callers in queue
	hints        hints
	farewells    farewells
	holdings     holdings
	wg           sync.WaitGroup

	mu      sync.Mutex // guards below, and the replacement of lanes
	queue   list.List  // of *waiter: callers that found no room in a lane, in order
	coming  int        // calls of waiters that were woken and have not looked yet
	closed  bool
	ticking bool // keepTime runs
	pausing int  // calls that will be tried again
}

// New makes a pipeline, which borrows nothing before it is used.
func New(cfg Config) *Pipeline {
	ctx, stop := context.WithCancel(context.Background())
	p := &Pipeline{cfg: cfg, ctx: ctx, stop: stop}
	if cfg.Late == nil {
		p.cfg.Late = func(cause error) error { return cause }
	}
	p.timeoutTicks = ticks(cfg.Timeout)
	p.stallTicks = ticks(cfg.ReadTimeout)
	p.lanes.Store(new([]*lane))
	p.clock.Store(1) // 0 is no time
	p.start = func(l *lane) { p.wg.Go(func() { l.run(ctx) }) }
	return p
}

// ticks rounds up, and counts the tick that has begun.
func ticks(d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return int64((d-1)/tick) + 2
}

// Do sends a call and returns its reply, which is never of kind Error: that is
// a redis.Error. The call is the pipeline's from here on. An error of a Write
// matches ErrOutcomeUnknown if it may have been applied, and means that it was
// not if it does not match.
func (p *Pipeline) Do(ctx context.Context, c *Call) (resp.Reply, error) {
	if err := ctx.Err(); err != nil {
		c.release()
		return resp.Reply{}, err
	}
	reply, err := p.once(ctx, c)
	if err == nil && reply.Kind != resp.Error {
		c.release()
		return reply, nil
	}
	return p.settleOne(ctx, c, reply, err)
}

// DoAll sends calls together, at most 512 at once, and waits for all. A call that is large, or
// whose reply was large or broke its connection the last time, is sent apart. They are sent in their
// order, and the outcomes are in it. After a call that timed out the calls that are not sent yet
// time out too.
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
func (p *Pipeline) joins(c *Call) bool { return small(c) && !p.hints.apart(c) }

// TooLate reports that a call ended with its time.
func TooLate(err error) bool { return errors.Is(err, context.DeadlineExceeded) }

// try tries calls one time, together if there are several. All of these are small.
func (p *Pipeline) try(ctx context.Context, calls []*Call, replies []resp.Reply, errs []error) {
	if len(calls) == 1 {
		replies[0], errs[0] = p.once(ctx, calls[0])
		return
	}
	if p.cfg.Lanes == 0 || p.heldUp() || slices.ContainsFunc(calls, (*Call).mustPart) {
		if p.borrowAll(ctx, slices.Clone(calls), replies, errs); !p.turnedAway(errs[0]) {
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

// once tries a call one time.
func (p *Pipeline) once(ctx context.Context, c *Call) (resp.Reply, error) {
	if p.cfg.Lanes == 0 || !small(c) {
		return p.borrow(ctx, c)
	}
	if p.heldUp() || c.mustPart() || p.hints.apart(c) {
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

// turnedAway reports that a pool which makes nobody wait has no connection to spare. A call can
// then share one, if it has time left.
func (p *Pipeline) turnedAway(err error) bool {
	return p.cfg.Lanes > 0 && errors.Is(err, redis.ErrPoolExhausted) &&
		!TooLate(err) && !errors.Is(err, context.Canceled)
}

// heldUp reports that a large reply is arriving in every lane that there may be.
func (p *Pipeline) heldUp() bool {
	lanes := *p.lanes.Load()
	for _, l := range lanes {
		if !l.slow.Load() {
			return false
		}
	}
	return len(lanes) >= p.cfg.Lanes
}

// mustPart reports that this try must be on a connection of its own.
func (c *Call) mustPart() bool { return c.apart || c.bounced() }

// bounced reports that the call came behind a large reply on one lane and on the
// next. It has a connection of its own then, as its replies on those are read
// and dropped: large ones would hold up each other for ever.
func (c *Call) bounced() bool { return c.heldUp > 1 }

// wait is for the outcome of a call that a lane has, which may be there.
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
	if !l.leased() {
		cause = p.cfg.Late(cause)
	}
	return resp.Reply{}, &lostError{cause: cause, sent: c.in(abandoned), left: true}
}

// send gives the calls to a lane, and waits while none has room. The first of
// them, as many as it returns, are answered then.
func (p *Pipeline) send(ctx context.Context, calls []*Call) (l *lane, answered int, err error) {
	var s seat
	if p.waiting.Load() == 0 { // else others are first
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

// seat is what became of calls that were offered: the lane that has them, if
// any has, and what is left to do for the caller.
type seat struct {
	lane    *lane
	writes  bool // the caller is the lane's writer now,
	turn    int  // in this turn,
	gathers bool // and others are likely to join it
}

// offer gives the calls to a lane, which it opens if the calls are worth one
// more. No lane has them if none has room.
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

// choose returns the lane with the fewest calls, so that client and server
// work at the same time. When there are many small calls that is the first one:
// a batch is worth more then, and while one busy lane keeps all processors at
// work the runtime does not look whether another's socket has something to
// read. A lane in which a large reply is arriving is as good as full. So is a
// lane without a connection, as the pool may refuse or take its time. It
// reports, too, whether the calls are worth one more lane.
func (p *Pipeline) choose() (best *lane, more bool) {
	var few int64 = 1
	if p.clock.Load() < p.gathered.Load() {
		few = maxGathered
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
		case life == leasing:
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

// gather lets one lane have all calls for a while.
func (p *Pipeline) gather(ticks int64) {
	until := p.clock.Load() + ticks
	for {
		was := p.gathered.Load()
		if was >= until || p.gathered.CompareAndSwap(was, until) {
			return
		}
	}
}

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
	l := &lane{p: p, beside: len(lanes) > 0, wake: make(chan struct{}, 1), opened: now, active: now, at: now}
	more := append(append([]*lane(nil), lanes...), l)
	p.lanes.Store(&more)
	p.tickLocked()
	p.start(l)
	return true, nil
}

// tickLocked starts the clock, if it is to run. Once the pipeline is closed Close
// may be waiting for wg, or have returned.
func (p *Pipeline) tickLocked() {
	if !p.ticking && !p.closed {
		p.ticking = true
		now := time.Now()
		p.beat.Store(&now)
		p.wg.Go(p.keepTime)
	}
}

// forget takes out a lane that is over.
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

// remaining is what is left of the timeout of c, which is not zero.
func (p *Pipeline) remaining(c *Call) time.Duration {
	switch {
	case !c.began.IsZero():
		return p.cfg.Timeout - time.Since(c.began)
	case c.since == 0:
		return p.cfg.Timeout
	}
	return p.cfg.Timeout - time.Duration(p.clock.Load()-c.since)*tick
}

// keepTime is the clock, one of wg: it runs while there is a lane, or a call
// that will have one. While the process is suspended it counts a few ticks at
// most, so that nothing expires for that.
func (p *Pipeline) keepTime() {
	t := time.NewTicker(tick)
	defer t.Stop()
	last := time.Now()
	for range t.C {
		lanes := *p.lanes.Load()
		if len(lanes) == 0 && p.mayStop() {
			return
		}
		suspended := p.suspended()
		now := time.Now()
		p.beat.Store(&now)
		at := p.clock.Add(min(max(int64((now.Sub(last)+tick/2)/tick), 1), maxStep))
		last = now
		if refused := p.refused.Load(); refused > 0 && at >= refused && p.refused.CompareAndSwap(refused, 0) {
			p.room()
		}
		if p.waiting.Load() > 0 {
			p.expireWaiters(at)
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

func (p *Pipeline) mayStop() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ticking = len(*p.lanes.Load()) > 0 || p.pausing > 0 || p.queue.Len() > 0
	return !p.ticking
}

// suspended reports whether the clock is so late that the process must have
// been suspended.
func (p *Pipeline) suspended() bool {
	beat := p.beat.Load()
	return beat != nil && warm.Suspended(*beat, time.Now())
}

// Close takes no more calls, lets those that were sent end, and waits until
// the connections are handed back. It may be called more than once.
func (p *Pipeline) Close() {
	p.mu.Lock()
	p.closed = true
	p.wakeLocked()
	p.mu.Unlock()
	p.stop()
	p.finishAll(false)
	p.wg.Wait()
}

// finishAll lets the lanes that there are end in order, their connections too
// if they are spent.
func (p *Pipeline) finishAll(spent bool) {
	for _, l := range *p.lanes.Load() {
		l.finish(spent)
	}
}
