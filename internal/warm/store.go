// Package warm is the store of connections. It keeps MinIdle connections idle, never
// has more than MaxActive open, and checks that idle connections are alive.
//
// One mutex guards the store. While it is not held, these invariants hold:
//
//  1. open = idle + inUse + probing + dialing + closing <= MaxActive. open rises only
//     in fillLocked. It falls only after the socket is closed on the server's side too,
//     see [Socket].
//  2. A waiter is queued only while no connection is idle and an event to come can
//     serve it: the return or the probe of a connection, a dial, a close that frees a
//     slot, or the end of a back-off or of the pace. Code that frees a connection or a
//     slot grants the connection or dials in the same critical section.
//  3. A grant is used once. The channel holds one, and a waiter is unlinked under the
//     lock before it gets the grant. A waiter that was cancelled meanwhile passes its
//     grant on under the lock.
//  4. No borrower overtakes a waiter: a free connection goes to the head of the queue,
//     and becomes idle only if the queue is empty.
//  5. Every idle connection has proved that it is alive since the last connection
//     broke and since the process was last suspended. The store lends connections to a
//     condemned server last, see suspect.go.
//
// No dial, read, write or close happens under the lock, and no borrower dials.
package warm

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	maxDials   = 8                      // at the same time; one while Redis is down
	minBackoff = 20 * time.Millisecond  // after the first failed dial
	maxBackoff = 800 * time.Millisecond // so that the pool reconnects within a second after Redis is back
	sweepEvery = 250 * time.Millisecond // how soon the janitor finds a dead idle connection
	peekAfter  = time.Millisecond       // a connection that was sound within this time is not checked again
	blindAfter = 100 * time.Millisecond // a connection with a hidden socket that was idle for this long gets a PING
	patience   = 100 * time.Millisecond // how long a dial or a probe may take before the store does not count on it
	linger     = 250 * time.Millisecond // how long a close waits until the server has closed the connection too
)

// Config configures a store. New does not check it.
type Config struct {
	MinIdle, MaxActive int
	IdleTimeout        time.Duration // 0: no limit
	MaxLifetime        time.Duration // 0: no limit
	HealthCheckAfter   time.Duration // 0: never probe
	DialTimeout        time.Duration
	ReadTimeout        time.Duration // 0: the connection's own timeout
	Transport          Transport     // of the connections of Dial
	Database           int           // the database that Dial selects; negative: unknown

	Dial func(ctx context.Context) (Dialed, error)

	OnConnect func(ctx context.Context, c redis.Conn) error // nil: nothing

	Observe func(Event) // nil: nobody
}

// Dialed is an open connection of redigo. Socket is nil if it is hidden. Stream carries
// RESP between Conn and Socket; it is nil if only redigo may read and write. A dial that
// failed returns what it had.
type Dialed struct {
	Conn   redis.Conn
	Socket *Socket
	Stream Stream
}

// Store lends connections.
type Store struct {
	cfg       Config                                // immutable
	base      time.Time                             // immutable; times below are durations since base
	startDial func(ctx context.Context, turn int64) // immutable; its goroutine is one of wg
	stop      chan struct{}                         // closed when the store closes, to end the janitor and the prober
	wg        sync.WaitGroup                        // dials, probes, closes, the janitor, the prober and the reporter
	events    chan Event                            // for the reporter; nil without Config.Observe
	ended     sync.Once                             // closes events

	mu        sync.Mutex         // guards all below
	all       map[*Conn]struct{} // every open connection
	idle      []*Conn            // ordered by the last return; the last is lent first
	inUse     int
	probing   int // counts as idle for MinIdle, because a probe is short
	overdue   int // of probing: no reply within patience; waiters do not count on these
	cutting   int // of overdue: cut because a dial needs the slot
	dialing   int
	closing   int
	turn      int64              // counts returns, dials, probes and condemnations; starts above zero
	dials     context.Context    // of the dials that begin now
	stopDials context.CancelFunc // ends dials
	doubted   int64              // the turn when the store last noticed a suspension of the process
	renewed   int64              // the turn of the last Renew; connections whose dial began before are closed; zero: none
	pulse     Pulse
	waiters   list.List // of *waiter, in the order of their arrivals
	arrivals  int64
	changed   chan struct{} // closed at the next change that Ready or Shutdown waits for; may be nil
	closed    bool

	fails      int           // failed dials in a row
	downSince  time.Duration // when the first of these failed
	failure    error
	salvo      int  // dials in flight that began before the first of these failed
	backingOff bool // no dial before retry fires
	retry      *time.Timer

	renewal renewal

	stats Stats
}

type waiter struct {
	grant   chan grant    // holds one
	since   time.Duration // when the waiter was queued
	arrival int64         // orders the borrowers by their calls of Acquire
	place   *list.Element // in the queue; nil after the waiter has left it
}

type grant struct {
	conn   *Conn
	err    error
	waited time.Duration
}

// New starts a store, which dials MinIdle connections in the background.
func New(cfg Config) *Store {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Store{
		cfg: cfg, base: time.Now(), dials: ctx, stopDials: cancel,
		stop: make(chan struct{}), all: make(map[*Conn]struct{}), turn: 1,
		renewal: renewal{next: -renewBurst * renewEvery},
	}
	s.startDial = func(ctx context.Context, turn int64) { s.wg.Go(func() { s.dial(ctx, turn) }) }
	s.pulse.Beat(s.base)
	s.wg.Go(s.janitor)
	s.wg.Go(s.prober)
	if cfg.Observe != nil {
		s.events = make(chan Event, maxEvents)
		s.wg.Go(s.report)
	}
	s.mu.Lock()
	s.fillLocked()
	s.mu.Unlock()
	return s
}

func (s *Store) now() time.Duration { return time.Since(s.base) }

// Acquire lends a connection. Close on the connection returns it.
func (s *Store) Acquire(ctx context.Context) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.arrivals++
	arrival := s.arrivals
	c, w, err := s.takeLocked(arrival)
	s.mu.Unlock()
	for {
		if w != nil {
			c, err = s.wait(ctx, w)
		}
		if err != nil {
			return nil, err
		}
		// A loan reads the clock only here, because that is a sixth of its cost.
		if c.lentAt = s.now(); c.lentAt-c.soundAt < peekAfter {
			return c, nil
		}
		if s.sound(c) {
			return c, nil
		}
		c, w, err = s.swap(c, arrival)
	}
}

// AcquireTested lends a connection that passes test. A connection that fails is closed
// and condemns the server. If a connection that was dialled during the call fails,
// AcquireTested returns its error, because no other connection can be better.
func (s *Store) AcquireTested(ctx context.Context, test func(*Conn) error) (*Conn, error) {
	s.mu.Lock()
	began := s.turn
	s.mu.Unlock()
	for {
		c, err := s.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		if err = c.pass(test); err == nil {
			return c, nil
		}
		if c.born > began {
			return nil, err
		}
	}
}

// sound checks a connection before its borrower gets it.
func (s *Store) sound(c *Conn) bool {
	if c.Dead() {
		c.Fail()
		return false
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pulse.Missed(now) {
		s.resumeLocked(now)
	}
	if c.blind() && s.cfg.HealthCheckAfter > 0 && c.lentAt-c.soundAt >= blindAfter {
		c.Doubt()
	}
	if s.unprovenLocked(c) {
		return false
	}
	c.soundAt = c.lentAt
	return true
}

// swap takes back a connection that is not sound, and serves its borrower again in the
// order of arrival. The store closes the connection or sends it a PING. A PING without a
// reply delays the borrower by at most patience.
func (s *Store) swap(c *Conn, arrival int64) (*Conn, *waiter, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.putLocked(c)
	return s.takeLocked(arrival)
}

// takeLocked lends an idle connection or queues a waiter. The queue is in the
// order of arrival, also for a borrower whose connection was not sound.
func (s *Store) takeLocked(arrival int64) (*Conn, *waiter, error) {
	if s.closed {
		return nil, nil, ErrClosed
	}
	if n := len(s.idle); n > 0 {
		c := s.takeIdleLocked(n - 1)
		s.lendLocked(c)
		s.fillLocked()
		return c, nil, nil
	}
	if s.downLocked() {
		return nil, nil, &DialError{s.failure}
	}
	w := &waiter{grant: make(chan grant, 1), since: s.now(), arrival: arrival}
	before := s.waiters.Back()
	for before != nil && before.Value.(*waiter).arrival > arrival {
		before = before.Prev()
	}
	if before != nil {
		w.place = s.waiters.InsertAfter(w, before)
	} else {
		w.place = s.waiters.PushFront(w)
	}
	s.fillLocked()
	return nil, w, nil
}

func (s *Store) wait(ctx context.Context, w *waiter) (*Conn, error) {
	select {
	case g := <-w.grant:
		return g.conn, g.err
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.place != nil {
		s.leaveLocked(w)
		s.stats.Timeouts++
		return nil, s.waitErrorLocked(ctx.Err())
	}
	// The waiter got its grant before it could leave the queue.
	g := <-w.grant
	if g.err != nil {
		return nil, g.err
	}
	s.stats.Waits--
	s.stats.WaitTime -= g.waited
	s.stats.Timeouts++
	err := s.waitErrorLocked(ctx.Err()) // before putLocked, so that inUse includes this connection
	s.putLocked(g.conn)
	return nil, err
}

// leaveLocked removes a waiter from the queue.
func (s *Store) leaveLocked(w *waiter) {
	s.waiters.Remove(w.place)
	w.place = nil
}

// GaveUp returns the error for a caller that gave up waiting because of cause.
func (s *Store) GaveUp(cause error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waitErrorLocked(cause)
}

// waitErrorLocked returns the error for a borrower that waited in vain. It matches
// ErrPoolExhausted if no slot was left for a dial, and ErrUnavailable if the last dial
// failed, or an answer condemned the server and no dial has succeeded since. Otherwise a
// connection was being dialled, or the store was about to serve the borrower.
func (s *Store) waitErrorLocked(cause error) error {
	switch {
	case s.openLocked()-s.dialing >= s.cfg.MaxActive:
		err := fmt.Errorf("%w: %d of %d connections in use: %w", ErrPoolExhausted, s.inUse, s.cfg.MaxActive, cause)
		if s.failure != nil {
			err = fmt.Errorf("%w (the last dial failed: %s)", err, s.failure.Error())
		}
		return err
	case s.failure != nil:
		return fmt.Errorf("%w: no connection in time, the last dial failed: %w: %w", ErrUnavailable, s.failure, cause)
	case s.renewal.answer != nil:
		return fmt.Errorf("%w: no connection in time, the server answered: %w: %w", ErrUnavailable, s.renewal.answer, cause)
	case s.dialing > 0:
		return fmt.Errorf("rediscache: no connection in time, %d being dialled%v: %w", s.dialing, s.cfg.Transport, cause)
	}
	return fmt.Errorf("rediscache: no connection in time: %w", cause)
}

// put takes a connection back from its borrower. The return does not prove that a
// connection is alive if it was lent before the process was suspended.
func (s *Store) put(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.used = true
	if !s.unprovenLocked(c) {
		s.nextLocked(c)
	}
	s.putLocked(c)
}

// nextLocked makes c the connection that was returned last, but a suspect keeps its
// place. The turn replaces a clock, because only the order matters and a clock is slower.
func (s *Store) nextLocked(c *Conn) {
	s.turn++
	c.proven = s.turn
	if !s.suspectLocked(c) {
		c.place = s.turn
	}
}

// putLocked takes a borrowed connection back, unless kill has closed it.
func (s *Store) putLocked(c *Conn) {
	if c.phase == lent {
		s.inUse--
		s.keepLocked(c)
	}
}

// keepLocked decides what to do with a connection that no count includes: it closes the
// connection, sends it a PING, or gives it away.
func (s *Store) keepLocked(c *Conn) {
	switch why := s.unfitLocked(c); {
	case why != fit:
		s.discardLocked(c, why)
		s.doubtOlderLocked(c.failed, s.cfg.MaxActive/2)
	case s.unprovenLocked(c):
		s.startProbeLocked(c)
	default:
		s.giveLocked(c)
		return
	}
	s.fillLocked()
	s.failWaitersIfDownLocked()
}

// unprovenLocked reports whether a connection may be dead, so that it must answer a PING.
func (s *Store) unprovenLocked(c *Conn) bool {
	return c.verdict == unproven || c.proven <= s.doubted
}

// unfitLocked returns the reason why c must not be lent again.
func (s *Store) unfitLocked(c *Conn) reason {
	switch {
	case s.closed:
		return closedShutdown
	case c.verdict == useless || c.writing || c.failed != 0, c.born <= s.renewed,
		s.cfg.HealthCheckAfter == 0 && s.unprovenLocked(c),
		s.suspectLocked(c) && s.replaceableLocked(1):
		return closedBroken
	case c.session.Load() >= changed:
		return closedState
	case c.expired(c.lentAt):
		return closedLifetime
	}
	return fit
}

// giveLocked gives a healthy connection that no count includes to the first waiter, or
// makes it idle if the queue is empty.
func (s *Store) giveLocked(c *Conn) {
	if e := s.waiters.Front(); e != nil {
		w := e.Value.(*waiter)
		waited := s.now() - w.since
		s.leaveLocked(w)
		s.lendLocked(c)
		s.stats.Waits++
		s.stats.WaitTime += waited
		w.grant <- grant{conn: c, waited: waited}
		return
	}
	c.phase = idle
	i := len(s.idle)
	s.idle = append(s.idle, c)
	for ; i > 0 && s.idle[i-1].place > c.place; i-- {
		s.idle[i-1], s.idle[i] = s.idle[i], s.idle[i-1]
	}
	s.trimSuspectsLocked()
	s.notifyLocked()
}

func (s *Store) lendLocked(c *Conn) {
	s.inUse++
	c.phase = lent
	c.session.Store(asNew)
}

func (s *Store) openLocked() int {
	return len(s.idle) + s.inUse + s.probing + s.dialing + s.closing
}

// fillLocked dials connections for the waiters and for MinIdle. It must be called after
// each event that raises want or room: a new waiter, a loan of an idle connection, a
// freed slot, the end of a dial, a back-off or a pause of the pace, an overdue probe,
// and new suspects.
func (s *Store) fillLocked() {
	if s.closed || s.backingOff {
		return
	}
	waiters := s.waiters.Len()
	want := waiters + s.cfg.MinIdle - s.trustedLocked() - s.probing
	// Waiters do not count on overdue probes. MinIdle does, or a slow network would cause
	// a dial for each probe.
	want = max(want, waiters-(s.probing-s.overdue)) - s.dialing
	limit := maxDials
	if s.fails > 0 { // dial one connection at a time, even if none is wanted, to find out when Redis is back
		want, limit = max(want, 1), 1
	}
	if s.renewal.suspects > 0 {
		want = s.renewLocked(want)
	}
	room := s.cfg.MaxActive - s.openLocked()
	if n := waiters - s.dialing - room - s.closing - s.cutting; n > 0 && s.overdue > s.cutting {
		s.cutOverdueLocked(n)
	}
	for range min(want, room, limit-s.dialing) {
		if !s.paceLocked() {
			return
		}
		s.dialing++
		s.stats.Dials++
		s.startDial(s.dials, s.turn)
	}
}

// cutOverdueLocked gives up n overdue probes, because dials need their slots. A
// connection may be the user's code, so Cut runs without the lock.
func (s *Store) cutOverdueLocked(n int) {
	for c := range s.all {
		if n == 0 {
			return
		}
		if c.phase == overdue {
			n--
			c.phase = givenUp
			s.cutting++
			s.wg.Go(c.Cut)
		}
	}
}

var errExited = errors.New("the dialer ended its goroutine")

// dial runs a dial that began at turn. The dialer may be the user's code, and panic or
// call runtime.Goexit.
func (s *Store) dial(ctx context.Context, turn int64) {
	var c *Conn
	err := errExited
	defer func() { s.endDial(c, turn, err) }()
	c, err = s.connect(ctx)
}

func (s *Store) endDial(c *Conn, turn int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dialing--
	s.salvo = max(s.salvo-1, 0)
	switch {
	case err != nil && turn <= s.renewed: // Renew has ended it
	case err != nil:
		s.dialFailedLocked(err)
	default:
		s.addLocked(c, turn)
	}
	s.fillLocked()
	s.notifyLocked()
}

// addLocked adds a new connection, whose dial began at turn.
func (s *Store) addLocked(c *Conn, turn int64) {
	s.all[c] = struct{}{}
	c.born = turn
	if s.suspectLocked(c) {
		s.renewal.suspects++
	} else {
		s.renewal.answer = nil
	}
	if s.closed {
		s.discardLocked(c, closedShutdown)
		return
	}
	if turn <= s.renewed { // it may lead to the old server, so it does not show that the new one is up
		s.discardLocked(c, closedBroken)
		return
	}
	if s.fails > 0 {
		s.emitLocked(Event{Kind: Up, After: s.now() - s.downSince})
	}
	s.fails, s.failure, s.salvo = 0, nil, 0
	s.nextLocked(c)
	s.giveLocked(c)
}

// Renew closes all connections whose dial has begun, the borrowed ones by a cut. A
// connection may be the user's code, so Cut runs without the lock.
func (s *Store) Renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.renewed = s.turn
	s.turn++ // connections whose dial begins from now on are new
	s.stopDials()
	s.dials, s.stopDials = context.WithCancel(context.Background())
	s.keepIdleLocked(func(*Conn) reason { return closedBroken })
	for c := range s.all {
		if c.phase == lent || c.phase == probed || c.phase == overdue {
			s.wg.Go(c.Cut)
		}
	}
	s.fillLocked()
}

// dialFailedLocked backs off, but only once for dials that fail together.
func (s *Store) dialFailedLocked(err error) {
	s.stats.DialFailures++
	s.failure = err
	if s.closed {
		return
	}
	if !s.backingOff {
		if s.fails == 0 {
			s.salvo, s.downSince = s.dialing, s.now()
			s.emitLocked(Event{Kind: Down, Err: &DialError{err}})
		}
		d := min(minBackoff<<min(s.fails, 10), maxBackoff)
		s.fails++
		s.backingOff = true
		s.retry = time.AfterFunc(d/2+rand.N(d/2), s.endBackoff)
	}
	s.failWaitersIfDownLocked()
}

func (s *Store) endBackoff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backingOff = false
	s.fillLocked()
}

// downLocked reports whether borrowers should fail at once: the last dial failed, no dial
// is in flight that began before the first failure, and no open connection can serve a
// borrower.
func (s *Store) downLocked() bool {
	return s.fails > 0 && s.salvo == 0 && s.inUse == 0 && s.probing == s.overdue && len(s.idle) == 0
}

func (s *Store) failWaitersIfDownLocked() {
	if s.downLocked() {
		s.failWaitersLocked(&DialError{s.failure})
	}
}

func (s *Store) failWaitersLocked(err error) {
	for e := s.waiters.Front(); e != nil; e = s.waiters.Front() {
		w := e.Value.(*waiter)
		s.leaveLocked(w)
		w.grant <- grant{err: err}
	}
}

// discardLocked closes a connection that no other count includes. The slot is free when
// the socket is closed. The connection may be the user's code: its Close may panic or
// call runtime.Goexit.
func (s *Store) discardLocked(c *Conn, why reason) {
	s.countClosedLocked(why)
	if s.suspectLocked(c) {
		s.renewal.suspects--
	}
	c.phase = closing
	s.closing++
	s.wg.Go(func() {
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.closing--
			delete(s.all, c)
			s.fillLocked()
			s.notifyLocked()
		}()
		c.shut()
	})
}

// doubtOlderLocked sends a PING to the idle connections that were not used since turn
// failed, when a connection broke: the same cause has probably broken them. It closes
// those above most, to free slots for dials. If HealthCheckAfter is zero it closes all.
func (s *Store) doubtOlderLocked(failed int64, most int) {
	var doubtful []*Conn
	s.keepIdleLocked(func(c *Conn) reason {
		switch {
		case c.proven > failed:
		case s.cfg.HealthCheckAfter == 0 || c.Dead() || len(doubtful) >= most:
			return closedBroken
		default:
			doubtful = append(doubtful, c)
		}
		return fit
	})
	for _, c := range doubtful {
		s.takeIdleLocked(slices.Index(s.idle, c))
		s.startProbeLocked(c)
	}
}

// takeIdleLocked removes an idle connection. After that no count includes it.
func (s *Store) takeIdleLocked(i int) *Conn {
	c := s.idle[i]
	s.idle = slices.Delete(s.idle, i, i+1)
	return c
}

// keepIdleLocked closes each idle connection that is not fit.
func (s *Store) keepIdleLocked(judge func(*Conn) reason) {
	kept := s.idle[:0]
	for _, c := range s.idle {
		if why := judge(c); why != fit {
			s.discardLocked(c, why)
		} else {
			kept = append(kept, c)
		}
	}
	clear(s.idle[len(kept):])
	s.idle = kept
}
