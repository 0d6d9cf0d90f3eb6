package pipeline

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// A lane is one borrowed connection that callers share. A caller appends its call to the
// queue. If there is no writer, the caller becomes the writer: it lets other callers
// join, claims all queued calls, writes them at once, and hands them to the reader. If
// the queue reaches the size of a batch while the writer lets others join, the caller
// that filled the batch takes the turn of the writer, so that the server has work while
// other callers still come.
//
// A lone caller reads its reply itself, which saves two goroutine switches. If the reply
// takes long, the clock makes it hand the read over to the reader.
//
// The reader goroutine borrows the connection and receives replies in order. It returns
// the connection when the lane is over: the writer has ended, and so have all claimed
// calls. The calls without an outcome are, in the order of their replies, batch[pos:],
// flight, the calls that the writer has claimed, and queue.
type lane struct {
	p      *Pipeline
	second bool          // immutable; the lane was opened beside another
	wake   chan struct{} // holds one

	// Read without mu, to choose a lane; in, slow and life are written under mu.
	in   atomic.Int64 // calls queued
	out  atomic.Int64 // calls ended before batch
	pos  atomic.Int64 // how many calls of batch have ended; written by the reader
	slow atomic.Bool  // a large reply is arriving
	life atomic.Int32 // borrowing to broken; it only rises

	mu     sync.Mutex   // guards all below
	wire   wire         // nil until the connection is borrowed
	conn   redis.Conn   // the connection of wire
	direct directReader // wire, if a caller may read from it
	queue  []entry
	writer writer
	turn   int // of the current writer; a writer with an older turn has lost it
	flight []entry
	batch  []entry // changed by the reader under mu, read by the clock
	reader reader
	solo   bool    // the last caller was alone
	err    error   // why the lane broke
	unsent int     // how many of the last claimed calls the server cannot have received
	spent  bool    // the connection must not be lent again
	spare  []entry // a second slice, which claim swaps with queue
	claims []entry // the calls that the writer has claimed; some may be in flight

	opened, active int64 // the clock when the lane was opened, and when it last had a call
	replacedAt     int64 // the clock when a caller began to read its own reply
	progress, at   int64 // of the wire, and the clock when it reached this progress
	scarce         bool  // the pool had no other connection to lend at the last tick
}

// The life of a lane.
const (
	borrowing int32 = iota // the reader borrows a connection; calls are queued
	open                   // calls are sent
	finishing              // the lane takes no more calls, and finishes those that it has
	suspected              // as finishing, but the connection may be dead: reads are retried elsewhere
	broken                 // the connection failed, or the pool lent none
)

// writer is what the writer of a lane does.
type writer uint8

const (
	nobody    writer = iota // there is no writer
	gathering               // it lets others join, and may lose its turn to one of them
	writing                 // it has claimed the queue, or is about to
)

// reader is what the reader goroutine of a lane does.
type reader uint8

const (
	receiving   reader = iota // it borrows the connection, or receives replies
	parked                    // it waits for wake
	replaced                  // it is parked, and a caller reads its own reply
	interrupted               // the same, and the clock has interrupted that caller
)

// takes reports whether the lane takes calls.
func (l *lane) takes() bool { return l.life.Load() <= open }

// ageLocked moves the life of the lane on, never back.
func (l *lane) ageLocked(to int32) { l.life.Store(max(l.life.Load(), to)) }

// connected reports whether the lane has had a connection.
func (l *lane) connected() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wire != nil
}

var (
	errSuspended = errors.New("rediscache: the process was suspended with the call in flight")
	errStalled   = errors.New("rediscache: no reply within the read timeout")
	errExtra     = errors.New("rediscache: the server sent a reply without a command")
	errHeldUp    = errors.New("rediscache: the call was behind a large reply")
	errQuiet     = errors.New("rediscache: the server closed an idle connection")
)

// load returns how many calls have no outcome.
func (l *lane) load() int64 { return l.in.Load() - l.out.Load() - l.pos.Load() }

// judgeLocked makes the lane end in order, and its connection with it, after an error
// reply that condemns the connection.
func (l *lane) judgeLocked(s shape, reply resp.Reply) {
	if l.p.condemned(l.conn, s, reply) {
		l.spent = true
		l.ageLocked(finishing)
	}
}

// condemned reports whether an error reply means that the connection must not be used
// again.
func (p *Pipeline) condemned(conn redis.Conn, s shape, reply resp.Reply) bool {
	if s.before != 0 {
		return p.condemned(conn, shape{}, reply.Elems[0]) || p.condemned(conn, shape{}, reply.Elems[1])
	}
	return reply.Kind == resp.Error && (p.farewells.ends(conn, reply.Text) || resp.MeaningOf(reply.Text).Has(resp.Closes))
}

// breakLocked ends the lane with err, unless it broke before.
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
	if l.reader == parked {
		l.reader = receiving
		l.wake <- struct{}{}
	}
}

// run is the goroutine of the reader, one of the pipeline's wait group. The code of a
// foreign pool may call runtime.Goexit in it; then the deferred function ends the lane.
func (l *lane) run(ctx context.Context) {
	err := errExited
	defer func() {
		if errors.Is(err, errOver) {
			l.close()
		} else {
			l.fail(err)
		}
	}()
	err = l.borrow(ctx)
	for err == nil {
		err = errExited
		err = l.read()
	}
}

var errOver = errors.New("over")

// close ends a lane in order.
func (l *lane) close() {
	defer l.p.forget(l) // also if giveBack calls runtime.Goexit
	l.mu.Lock()
	spent := l.spent
	l.mu.Unlock()
	l.giveBack(false, spent)
}

// borrow borrows the connection while calls are being queued.
func (l *lane) borrow(ctx context.Context) error {
	scarce := l.p.spare() == 0
	c, err := l.p.borrowForLane(ctx, l)
	if err == nil && ctx.Err() != nil {
		l.p.returned(func() { c.Close() })
		err = warm.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		if l.second {
			l.p.tighten()
		}
		return err
	}
	l.conn, l.wire = c, newWire(c, l.p.laneTimeout(), l.p.cfg.WriteTimeout, l.holdUp)
	l.direct, _ = l.wire.(directReader)
	l.scarce = scarce
	l.ageLocked(open)
	l.opened, l.at = l.p.clock.Load(), l.p.clock.Load()
	if len(l.queue) > 0 {
		l.writer = writing
		go l.write(nil, true, l.turn)
	}
	return nil
}

// read receives the replies to a batch, and waits for one if no call is in flight.
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
	if bytes >= len(batch)*largeEnough {
		l.p.spread.Store(l.p.clock.Load() + spreadTicks)
	}
	return nil
}

// holdUp is called while the reader receives a large reply. The reads behind it are
// retried elsewhere, and their replies here are dropped. flyLocked does the same for
// calls that are being written now.
func (l *lane) holdUp(slow bool) {
	l.mu.Lock()
	l.slow.Store(slow)
	var behind []entry
	if at := int(l.pos.Load()); slow && at < len(l.batch) {
		behind = append(append(behind, l.batch[at+1:]...), l.flight...)
	}
	l.mu.Unlock()
	goElsewhere(behind, errHeldUp)
}

// goElsewhere ends the reads among the calls with cause, so that they are retried on
// another connection.
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

// judge checks for a condemning error, and after the last reply for bytes that no command
// asked for. It runs before the caller gets the reply and can send more. While another
// caller writes, such bytes may be its reply, so judge does not check for them.
func (l *lane) judge(s shape, reply resp.Reply, last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.judgeLocked(s, reply)
	if last && len(l.flight) == 0 && l.writer == nobody && l.wire.extra() {
		l.breakLocked(errExtra)
	}
}

// next waits for a batch.
func (l *lane) next() ([]entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
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
		case !l.takes() && l.writer == nobody && len(l.queue) == 0:
			return nil, errOver
		}
		l.waitLocked()
	}
}

// waitLocked waits for wake without the lock.
func (l *lane) waitLocked() {
	l.reader = parked
	l.mu.Unlock()
	<-l.wake
	l.mu.Lock()
}

// finish makes the lane end in order. With spent its connection is closed too. It does
// nothing with spent if the lane has no connection yet, because that will be a new one.
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

// suspect ends a lane after a suspension of the process, because the server or a firewall
// may have forgotten the connection meanwhile. The reads of the lane are retried
// elsewhere; its writes wait for their replies. A warm store sends the connection a PING
// before it lends it again. A foreign pool does not know of the suspension, so its
// connection is closed.
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

// fail ends a broken lane and its calls, after the writer has ended.
func (l *lane) fail(err error) {
	l.mu.Lock()
	if l.err == nil {
		l.breakLocked(err)
	}
	for l.writer != nobody {
		l.waitLocked()
	}
	err, connected, sent := l.err, l.wire != nil, len(l.batch)+len(l.flight)-int(l.pos.Load())-l.unsent
	flying := append(append([]entry(nil), l.batch[l.pos.Load():]...), l.flight...)
	waiting := l.queue
	l.batch, l.flight, l.queue = nil, nil, nil
	l.pos.Store(0)
	l.mu.Unlock()

	defer func() { // also if giveBack calls runtime.Goexit
		if connected || l.second { // a retry may work: on a new connection, or on the other lane
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
	if connected {
		l.giveBack(true, true)
		l.p.finishAll(true) // the same cause may have broken the other lanes: retries go to new connections
	}
}

// tick is called by the clock. It times out calls, and breaks or ends the lane if
// dueLocked says so. scarce means that the pool has no connection to lend.
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
	if l.load() > 0 || l.writer != nobody {
		l.active = now
	}
	if l.reader == replaced && now-l.replacedAt > 1 {
		l.reader = interrupted
		l.direct.interrupt()
	}
	if p := l.wire.progress(); p != l.progress || len(flying)+len(l.flight) == 0 && l.writer == nobody && l.reader < replaced {
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

// expireLocked times out calls. It checks all entries, because a retried call is older
// than the calls before it.
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
