// Package pipeline lets many callers share few connections, full duplex.
//
// A [Call] has exactly one outcome. One whose caller leaves costs nothing but
// its reply, which is read and dropped. When a lane breaks, a call that was
// not written is sent on another, one that only reads is sent once more, and
// any other has an outcome that nobody knows.
package pipeline

import (
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
	maxGathered    = 1024 // calls in a lane before others go to the next one, see offer
	maxQueued      = 8192 // calls in a lane before callers wait
	maxUnannounced = 64 << 10
	maxTogether    = 512      // calls of one caller
	largeCall      = 64 << 10 // bytes of a command that gets a connection of its own

	tick       = 10 * time.Millisecond
	quietTicks = 2   // after which a look at the socket is worth it
	idleTicks  = 100 // a lane without calls ends
	heldTicks  = 500 // a lane ends, so that the pool's rules reach its connection
	denseTicks = 5   // calls are gathered after a dense batch
	tightTicks = 100 // and after the pool wanted a connection back or had none to lend, when no lane is opened beside another
	maxStep    = 5   // ticks that one turn of the clock may count
)

// Config is what a pipeline is made of.
type Config struct {
	// Lease borrows a connection.
	Lease func(ctx context.Context) (redis.Conn, error)
	// Late says why a call is over, for cause, before a connection was leased;
	// nil: for cause.
	Late func(cause error) error

	Lanes   int           // 0: each call borrows a connection of its own
	Timeout time.Duration // of a call; 0: its context's
	// How long a connection that makes no progress is waited for. WriteTimeout is of a call that has
	// a connection of its own: on a lane the clock sees to both.
	ReadTimeout, WriteTimeout time.Duration
}

// Pipeline sends calls. All methods are safe for concurrent use.
type Pipeline struct {
	cfg          Config             // immutable
	timeoutTicks int64              // immutable
	stallTicks   int64              // immutable
	start        func(*lane)        // immutable; its goroutine is one of wg
	ctx          context.Context    // immutable; over when leases are to end
	stop         context.CancelFunc // immutable; ends ctx
	clock        atomic.Int64       // ticks, while there is a lane
	gathered     atomic.Int64       // the clock until which one lane gets all calls
	refused      atomic.Int64       // the clock until which no lane is opened beside another
	lanes        atomic.Pointer[[]*lane]
	waiting      atomic.Int64 // callers that wait for changed
	hints        hints
	farewells    warm.Farewells
	wg           sync.WaitGroup

	mu      sync.Mutex    // guards below, and the replacement of lanes
	changed chan struct{} // closed when there is room in a lane, or for one
	closed  bool
	ticking bool // keepTime runs
	pausing int  // calls that will be tried again
}

// New makes a pipeline, which borrows nothing before it is used.
func New(cfg Config) *Pipeline {
	ctx, stop := context.WithCancel(context.Background())
	p := &Pipeline{cfg: cfg, ctx: ctx, stop: stop, changed: make(chan struct{})}
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
// then share one.
func (p *Pipeline) turnedAway(err error) bool {
	return p.cfg.Lanes > 0 && errors.Is(err, redis.ErrPoolExhausted)
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
	if !l.leased.Load() {
		cause = p.cfg.Late(cause)
	}
	return resp.Reply{}, &lostError{cause: cause, sent: c.in(abandoned), left: true}
}

// send gives the calls to a lane, and waits while none has room. The first of
// them, as many as it says, are answered when it returns.
func (p *Pipeline) send(ctx context.Context, calls []*Call) (l *lane, answered int, err error) {
	if l, answered = p.offer(calls); l != nil {
		return l, answered, nil
	}
	p.waiting.Add(1) // from before the look that finds no room
	defer p.waiting.Add(-1)
	for {
		changed, err := p.open()
		if err != nil {
			return nil, 0, err
		}
		if l, answered = p.offer(calls); l != nil {
			return l, answered, nil
		}
		if err := p.await(ctx, changed, calls); err != nil {
			return nil, 0, err
		}
	}
}

// offer gives the calls to the lane with the fewest, so that client and server
// work at the same time. When there are many small calls that is the first one:
// a batch is worth more then, and while one busy lane keeps all processors at
// work the runtime does not look whether another's socket has something to
// read. One in which a large reply is arriving is as good as full. So is one
// that is not leased yet, as the pool may refuse or take its time.
func (p *Pipeline) offer(calls []*Call) (_ *lane, answered int) {
	var few int64 = 1
	if p.clock.Load() < p.gathered.Load() {
		few = maxGathered
	}
	var best *lane
	var least int64 = math.MaxInt64
	leasing := false
	lanes := *p.lanes.Load()
	for _, l := range lanes {
		if l.over.Load() {
			continue
		}
		load := l.load()
		switch {
		case l.leasing():
			load += maxQueued
			leasing = true
		case l.slow.Load():
			load += 2 * maxQueued
		}
		if load < least {
			best, least = l, load
		}
		if least < few {
			break
		}
	}
	if best == nil || least >= few && !leasing && len(lanes) < p.cfg.Lanes && p.clock.Load() >= p.refused.Load() {
		return nil, 0
	}
	ok, write, gather, turn := best.enqueue(calls)
	if !ok {
		return nil, 0
	}
	if write {
		answered = best.write(calls, gather, turn)
	}
	return best, answered
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

// open adds a lane if there may be one more, none is being leased, and the pool
// has not just refused: a connection that it lacks may be that of a lane which
// ends. The channel is closed at the next change after that.
func (p *Pipeline) open() (changed <-chan struct{}, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, warm.ErrClosed
	}
	lanes := *p.lanes.Load()
	now := p.clock.Load()
	if len(lanes) >= p.cfg.Lanes || slices.ContainsFunc(lanes, (*lane).leasing) ||
		len(lanes) > 0 && now < p.refused.Load() {
		return p.changed, nil
	}
	l := &lane{p: p, beside: len(lanes) > 0, wake: make(chan struct{}, 1), opened: now, active: now, at: now}
	more := append(append([]*lane(nil), lanes...), l)
	p.lanes.Store(&more)
	p.tickLocked()
	p.start(l)
	return p.changed, nil
}

func (p *Pipeline) tickLocked() {
	if !p.ticking {
		p.ticking = true
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
	p.changedLocked()
}

// room tells callers that wait, if any, that a lane has less to do.
func (p *Pipeline) room() {
	if p.waiting.Load() > 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.changedLocked()
	}
}

func (p *Pipeline) changedLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// await waits for a change, under the context and the timeout of calls, which
// begins for all of them.
func (p *Pipeline) await(ctx context.Context, changed <-chan struct{}, calls []*Call) error {
	now := p.clock.Load()
	for _, c := range calls {
		c.begin(now)
	}
	if p.cfg.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = warm.Within(ctx, p.remaining(calls[0]))
		defer cancel()
	}
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
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
// that will have one. A pause of the whole process counts as a few ticks, so that nothing expires for it.
func (p *Pipeline) keepTime() {
	t := time.NewTicker(tick)
	defer t.Stop()
	last := time.Now()
	for range t.C {
		lanes := *p.lanes.Load()
		if len(lanes) == 0 && p.mayStop() {
			return
		}
		now := time.Now()
		at := p.clock.Add(min(max(int64((now.Sub(last)+tick/2)/tick), 1), maxStep))
		last = now
		if refused := p.refused.Load(); refused > 0 && at >= refused && p.refused.CompareAndSwap(refused, 0) {
			p.room()
		}
		for _, l := range lanes {
			l.tick(at)
		}
	}
}

func (p *Pipeline) mayStop() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ticking = len(*p.lanes.Load()) > 0 || p.pausing > 0
	return !p.ticking
}

// Close takes no more calls, lets those that were sent end, and waits until
// the connections are handed back. It may be called more than once.
func (p *Pipeline) Close() {
	p.mu.Lock()
	p.closed = true
	p.changedLocked()
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
