package pipeline

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// A lane is one borrowed connection that callers share. A caller appends its
// call to the queue; if nobody is writing it becomes the writer, which lets
// others join, claims all that is queued, writes it at once, and hands it to
// the reader. Whoever brings the queue to a batch while the writer waits for
// others takes the turn to write from it, so that the server has something to
// do while the rest of the callers come.
//
// A caller that is alone reads its reply itself, which saves two switches from
// goroutine to goroutine; the clock sends it off when that takes long.
//
// One reader goroutine leases the connection, receives in order, and hands the
// connection back when the lane is over: when the writer has left and all that
// was claimed has ended. The calls that it has not ended are, in the order of
// their replies, batch[pos:], flight, what the writer has claimed, and queue.
type lane struct {
	p      *Pipeline
	beside bool          // immutable; there was another when it was opened
	wake   chan struct{} // holds one

	// Read by anyone, to choose a lane; in, over and leased are written under mu.
	in   atomic.Int64 // calls queued
	out  atomic.Int64 // calls ended before batch
	pos  atomic.Int64 // how many of batch have ended; the reader's
	slow atomic.Bool  // a large reply is arriving

	leased, over atomic.Bool // wire is set; takes no more calls

	mu      sync.Mutex // guards all below
	wire    wire       // nil until leased
	alone   ownReader  // wire, if a caller may read from it
	queue   []entry
	writing bool
	gathers bool // the writer lets others join, and may lose its turn to one of them
	turn    int  // the writer's; any other that thinks it writes has lost its own
	flight  []entry
	batch   []entry // the reader's; changed by it under mu, read by the clock
	parked  bool    // the reader waits for wake
	eager   bool    // the reader waits for bytes before there is a call
	own     bool    // a caller reads its own reply: the reader stays parked
	ownAt   int64   // the clock when that began
	solo    bool    // the last call was alone
	kicked  bool    // whoever waits for bytes is sent off
	err     error   // why it broke
	unsent  int     // how many of those claimed last the server cannot have received
	spent   bool    // its connection is not to be lent again
	spare   []entry // queue's other slice
	claims  []entry // what the writer has claimed, some of which may be in flight

	opened, active int64 // the clock when it began, when it last had something to do
	progress, at   int64 // of the wire, and the clock when that was seen first
}

var (
	errStalled = errors.New("rediscache: no reply within the read timeout")
	errExtra   = errors.New("rediscache: a reply that nobody asked for")
	errHeldUp  = errors.New("rediscache: behind a large reply")
	errQuiet   = errors.New("rediscache: the server closed an idle connection")
)

// load is how many calls have not ended.
func (l *lane) load() int64 { return l.in.Load() - l.out.Load() - l.pos.Load() }

// judgeLocked lets the lane end in order, and its connection with it, after an
// answer that says that it is of no use.
func (l *lane) judgeLocked(reply resp.Reply) {
	if reply.Kind == resp.Error && l.p.farewells.Hear(reply.Text) {
		l.spent = true
		l.over.Store(true)
	}
}

// breakLocked ends the lane, with an error.
func (l *lane) breakLocked(err error) {
	if l.err == nil {
		l.err = err
	}
	l.over.Store(true)
	if l.wire != nil {
		l.wire.cut()
	}
	l.wakeLocked()
}

func (l *lane) wakeLocked() {
	switch {
	case l.parked && !l.own:
		l.parked = false
		l.wake <- struct{}{}
	case l.eager && l.over.Load():
		l.kickLocked()
	}
}

// kickLocked sends off who waits for bytes, at no cost to what comes later.
func (l *lane) kickLocked() {
	if !l.kicked {
		l.kicked = true
		l.alone.kick()
	}
}

// unkickLocked is for who waited for bytes.
func (l *lane) unkickLocked() {
	if l.kicked {
		l.kicked = false
		l.alone.unkick()
	}
}

// run is the reader's goroutine, one of the pipeline's wait group.
func (l *lane) run(ctx context.Context) {
	err := l.lease(ctx)
	for err == nil {
		err = l.read()
	}
	if errors.Is(err, errOver) {
		l.wire.giveBack(false, l.isSpent())
		l.p.forget(l)
		return
	}
	l.fail(err)
}

func (l *lane) isSpent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.spent
}

var errOver = errors.New("over")

// lease borrows the connection while calls are being queued.
func (l *lane) lease(ctx context.Context) error {
	c, err := l.p.cfg.Lease(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil {
		err = warm.ErrClosed
	}
	if err != nil {
		if c != nil {
			c.Close()
		}
		l.p.gather(tightTicks)
		if l.beside {
			l.p.refused.Store(l.p.clock.Load() + tightTicks)
		}
		return err
	}
	l.wire = newWire(c, l.p.cfg.ReadTimeout, l.holdUp)
	l.alone, _ = l.wire.(ownReader)
	l.leased.Store(true)
	l.opened, l.at = l.p.clock.Load(), l.p.clock.Load()
	if len(l.queue) > 0 {
		l.writing = true
		go l.write(nil, true, l.turn)
	}
	return nil
}

// read receives what is in flight, and waits if nothing is.
func (l *lane) read() error {
	batch, err := l.next()
	if err != nil {
		return err
	}
	bytes := 0
	for i, e := range batch {
		reply, err := l.wire.receive()
		if err == nil {
			err = e.check(reply)
		}
		if err != nil {
			return err
		}
		if reply.Kind == resp.Error || i == len(batch)-1 && l.wire.extra() {
			l.judge(reply, i == len(batch)-1)
		}
		bytes += e.size + reply.Size()
		l.pos.Store(int64(i) + 1)
		e.end(claimed, reply, nil)
	}
	if len(batch) >= minBatch && bytes < len(batch)*smallCall {
		l.p.gather(denseTicks)
	}
	return nil
}

// holdUp is called while the reader receives a large reply: the reads behind it
// go elsewhere, and what comes for them here is dropped. Those that are being
// written now go when they join, see flyLocked.
func (l *lane) holdUp(slow bool) {
	l.slow.Store(slow)
	if !slow {
		return
	}
	l.mu.Lock()
	var behind []entry
	if at := int(l.pos.Load()); at < len(l.batch) {
		behind = append(append(behind, l.batch[at+1:]...), l.flight...)
	}
	l.mu.Unlock()
	goElsewhere(behind)
}

func goElsewhere(behind []entry) {
	for _, e := range behind {
		if !e.write {
			e.end(claimed, resp.Reply{}, &lostError{cause: errHeldUp, sent: true})
		}
	}
}

// flyLocked hands calls that are on the wire, or will be, to the reader.
func (l *lane) flyLocked(mine []entry) {
	l.flight = append(l.flight, mine...)
	if l.slow.Load() {
		goElsewhere(mine)
	}
}

// judge looks, before a caller that hears of the reply can send more, whether
// there is more than was asked for. That cannot be told while others write.
func (l *lane) judge(reply resp.Reply, last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.judgeLocked(reply)
	if last && len(l.flight) == 0 && !l.writing && l.wire.extra() {
		l.breakLocked(errExtra)
	}
}

// next waits for a batch. After one that callers shared the next is likely to
// be shared too, and the reader waits for its replies at once: whoever writes
// it need not wake the reader.
func (l *lane) next() ([]entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	eager := len(l.batch) > maxOwn && l.alone != nil
	for ; ; eager = false {
		l.out.Add(int64(len(l.batch)))
		l.pos.Store(0)
		l.batch, l.flight = l.flight, l.batch[:0]
		l.p.room()
		switch {
		case l.err != nil:
			return nil, l.err
		case len(l.batch) > 0:
			return l.batch, nil
		case l.over.Load() && !l.writing && len(l.queue) == 0:
			return nil, errOver
		}
		if !eager {
			l.waitLocked()
		} else if err := l.fillLocked(); err != nil {
			return nil, err
		}
	}
}

// fillLocked waits for bytes without the lock, until somebody kicks.
func (l *lane) fillLocked() error {
	l.eager = true
	l.mu.Unlock()
	err := l.alone.fill()
	l.mu.Lock()
	l.eager = false
	kicked := l.kicked
	l.unkickLocked()
	switch {
	case kicked && errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	case err == nil && len(l.flight) == 0 && !l.writing:
		return errExtra
	}
	return err
}

// waitLocked waits for wake without the lock.
func (l *lane) waitLocked() {
	l.parked = true
	l.mu.Unlock()
	<-l.wake
	l.mu.Lock()
}

// leasing reports that calls wait for the connection.
func (l *lane) leasing() bool { return !l.leased.Load() && !l.over.Load() }

// finish lets the lane end in order, its connection too if it is spent. One
// that is still to come is not.
func (l *lane) finish(spent bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if spent && l.wire == nil {
		return
	}
	l.spent = l.spent || spent
	l.finishLocked()
}

func (l *lane) finishLocked() {
	l.over.Store(true)
	l.wakeLocked()
}

// fail ends a broken lane and its calls, once the writer has left.
func (l *lane) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.breakLocked(err)
	}
	for l.writing {
		l.waitLocked()
	}
	err, leased, sent := l.err, l.wire != nil, len(l.batch)+len(l.flight)-int(l.pos.Load())-l.unsent
	flying := append(append([]entry(nil), l.batch[l.pos.Load():]...), l.flight...)
	waiting := l.queue
	l.batch, l.flight, l.queue = nil, nil, nil
	l.pos.Store(0)
	l.mu.Unlock()

	if leased {
		l.wire.giveBack(true, true)
		l.p.finishAll(true) // what broke it may have broken the others: a second try goes to a new one
	}
	if leased || l.beside { // there is another try: that one's, or with its connection
		err = &lostError{cause: err}
	}
	l.p.forget(l)
	for i, e := range flying {
		e.end(claimed, resp.Reply{}, &lostError{cause: l.err, sent: i < sent, company: sent})
	}
	for _, e := range waiting {
		e.end(queued, resp.Reply{}, err)
	}
}

// tick is the clock's: it ends calls whose time is over, breaks a lane without
// progress, and ends one that nobody uses or that has had its time.
func (l *lane) tick(now int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	flying := l.batch[l.pos.Load():]
	for _, entries := range [][]entry{flying, l.flight, l.claims, l.queue} {
		l.expireLocked(entries, now)
	}
	if l.wire == nil || l.err != nil {
		return
	}
	if l.load() > 0 || l.writing {
		l.active = now
	}
	if l.own && now-l.ownAt > 1 {
		l.kickLocked()
	}
	if p := l.wire.progress(); p != l.progress || len(flying)+len(l.flight) == 0 && !l.writing && !l.own {
		l.progress, l.at = p, now
	} else if now-l.at > l.p.stallTicks {
		l.breakLocked(errStalled)
	}
	wanted := l.wire.wanted()
	if wanted {
		l.p.gather(tightTicks)
	}
	if !l.over.Load() && (wanted || now-l.active >= idleTicks || now-l.opened >= heldTicks) {
		l.finishLocked()
	}
}

// expireLocked looks at all: one that is tried again is older than those that
// it came behind.
func (l *lane) expireLocked(entries []entry, now int64) {
	if l.p.timeoutTicks == 0 {
		return
	}
	for _, e := range entries {
		if now-e.since >= l.p.timeoutTicks {
			e.expire()
		}
	}
}
