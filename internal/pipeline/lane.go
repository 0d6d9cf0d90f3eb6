package pipeline

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"github.com/gomodule/redigo/redis"

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
// One reader goroutine borrows the connection, receives in order, and returns
// the connection when the lane is over: when the writer has left and all that
// was claimed has ended. The calls that it has not ended are, in the order of
// their replies, batch[pos:], flight, what the writer has claimed, and queue.
type lane struct {
	p      *Pipeline
	beside bool          // immutable; there was another when it was opened
	wake   chan struct{} // holds one

	// Read by anyone, to choose a lane; in and life are written under mu.
	in   atomic.Int64 // calls queued
	out  atomic.Int64 // calls ended before batch
	pos  atomic.Int64 // how many of batch have ended; the reader's
	slow atomic.Bool  // a large reply is arriving
	life atomic.Int32 // what follows; it only rises

	mu      sync.Mutex // guards all below
	wire    wire       // nil until leased
	conn    redis.Conn // that of wire
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
	scarce         bool  // the pool had no other connection to lend when that was last seen
}

// The life of a lane.
const (
	leasing   int32 = iota // calls are queued for the connection that is to come
	open                   // calls are sent
	finishing              // no more calls are taken; those that the lane has end in order
	suspected              // likewise, but nobody knows whether the connection still works: reads go elsewhere
	broken                 // the connection failed, or none came
)

// takes reports whether the lane takes calls.
func (l *lane) takes() bool { return l.life.Load() <= open }

// ageLocked moves the life of the lane on, never back.
func (l *lane) ageLocked(to int32) { l.life.Store(max(l.life.Load(), to)) }

// leased reports whether the lane has had a connection.
func (l *lane) leased() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wire != nil
}

var (
	errSuspended = errors.New("rediscache: the process was suspended with the call in flight")
	errStalled   = errors.New("rediscache: no reply within the read timeout")
	errExtra     = errors.New("rediscache: a reply that nobody asked for")
	errHeldUp    = errors.New("rediscache: behind a large reply")
	errQuiet     = errors.New("rediscache: the server closed an idle connection")
)

// load is how many calls have not ended.
func (l *lane) load() int64 { return l.in.Load() - l.out.Load() - l.pos.Load() }

// judgeLocked lets the lane end in order, and its connection with it, after an
// answer that says that it is of no use.
func (l *lane) judgeLocked(s shape, reply resp.Reply) {
	if l.p.condemned(l.conn, s, reply) {
		l.spent = true
		l.ageLocked(finishing)
	}
}

// condemned reports whether an answer says that its connection is of no use.
func (p *Pipeline) condemned(conn redis.Conn, s shape, reply resp.Reply) bool {
	if s.before != 0 {
		return p.condemned(conn, shape{}, reply.Elems[0]) || p.condemned(conn, shape{}, reply.Elems[1])
	}
	return reply.Kind == resp.Error && (p.farewells.ends(conn, reply.Text) || resp.MeaningOf(reply.Text).Has(resp.Closes))
}

// breakLocked ends the lane, with an error.
func (l *lane) breakLocked(err error) {
	if l.err == nil {
		l.err = err
	}
	l.ageLocked(broken)
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
	case l.eager && !l.takes():
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

// run is the reader's goroutine, one of the pipeline's wait group. The code of
// another maker's pool may end it: then the lane ends all the same.
func (l *lane) run(ctx context.Context) {
	err := errExited
	defer func() {
		if errors.Is(err, errOver) {
			l.close()
		} else {
			l.fail(err)
		}
	}()
	err = l.lease(ctx)
	for err == nil {
		err = errExited
		err = l.read()
	}
}

var errOver = errors.New("over")

// close ends a lane in order.
func (l *lane) close() {
	defer l.p.forget(l) // whatever becomes of the connection
	l.mu.Lock()
	spent := l.spent
	l.mu.Unlock()
	l.giveBack(false, spent)
}

// lease borrows the connection while calls are being queued.
func (l *lane) lease(ctx context.Context) error {
	scarce := l.p.spare() == 0
	c, err := l.p.lendToLane(ctx, l)
	if err == nil && ctx.Err() != nil {
		l.p.returned(func() { c.Close() })
		err = warm.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.p.gather(tightTicks)
		if l.beside {
			l.p.refused.Store(l.p.clock.Load() + tightTicks)
		}
		return err
	}
	l.conn, l.wire = c, newWire(c, l.p.laneTimeout(), l.p.cfg.WriteTimeout, l.holdUp)
	l.alone, _ = l.wire.(ownReader)
	l.scarce = scarce
	l.ageLocked(open)
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
		reply, err := e.receive(l.wire)
		if err != nil {
			return err
		}
		if reply.Kind == resp.Error || e.before != 0 || i == len(batch)-1 && l.wire.extra() {
			l.judge(e.shape, reply, i == len(batch)-1)
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
	goElsewhere(behind, errHeldUp)
}

// goElsewhere ends those of the calls that only read, for cause, so that they
// are retried on another connection.
func goElsewhere(calls []entry, cause error) {
	for _, e := range calls {
		if !e.write {
			e.end(claimed, resp.Reply{}, &lostError{cause: cause, sent: true})
		}
	}
}

// flyLocked hands calls that are on the wire, or will be, to the reader.
func (l *lane) flyLocked(mine []entry) {
	l.flight = append(l.flight, mine...)
	switch {
	case l.life.Load() == suspected:
		goElsewhere(mine, errSuspended)
	case l.slow.Load():
		goElsewhere(mine, errHeldUp)
	}
}

// judge looks, before a caller that hears of the reply can send more, whether
// there is more than was asked for. That cannot be told while others write.
func (l *lane) judge(s shape, reply resp.Reply, last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.judgeLocked(s, reply)
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
		l.restLocked()
		switch {
		case l.err != nil:
			return nil, l.err
		case len(l.batch) > 0:
			return l.batch, nil
		case !l.takes() && !l.writing && len(l.queue) == 0:
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
	l.ageLocked(finishing)
	l.wakeLocked()
}

// suspect ends a lane after a suspension of the process: the server, or a
// firewall on the way, may have forgotten the connection meanwhile. The reads of
// the lane go elsewhere, its writes wait for their replies. A warm store has the
// connection prove that it is alive before it lends it again; a foreign pool does
// not know, so that the connection is closed.
func (l *lane) suspect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.suspectLocked()
}

func (l *lane) suspectLocked() {
	if l.wire == nil || l.life.Load() >= suspected {
		return
	}
	l.spent = l.spent || l.p.cfg.Foreign
	l.ageLocked(suspected)
	goElsewhere(l.batch[l.pos.Load():], errSuspended)
	goElsewhere(l.flight, errSuspended)
	for _, e := range l.queue {
		e.end(queued, resp.Reply{}, &lostError{cause: errSuspended})
	}
	l.wakeLocked()
}

// giveBack returns the connection to the pool.
func (l *lane) giveBack(isBroken, spent bool) {
	l.p.returned(func() { l.wire.giveBack(isBroken, spent) })
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

	defer func() { // whatever becomes of the connection
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
	}()
	if leased {
		l.giveBack(true, true)
		l.p.finishAll(true) // what broke it may have broken the others: a second try goes to a new one
	}
}

// tick is the clock's: it ends calls whose time is over, breaks a lane without
// progress, and ends a lane whose time is over. scarce means that the pool has
// no connection to lend.
func (l *lane) tick(now int64, scarce bool) {
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
	}
	l.scarce = scarce
	switch l.dueLocked(now) {
	case breaks:
		l.breakLocked(errStalled)
	case finishes:
		l.finishLocked()
	case stays:
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
