// Package warm is the store of physical connections: it keeps a floor of them
// open and spare, a strict cap on how many are open, and all of them healthy.
//
// One mutex guards the store. Under it these hold, always:
//
//  1. open = idle + inUse + probing + dialing + closing <= MaxActive. open
//     rises only in fillLocked, and falls only after the socket is gone: on
//     the server's side too, see [Socket].
//  2. A waiter is queued only while idle is empty, and while something will
//     come to it: a connection in use or probed, a dial, a close that frees
//     the slot for one, or the end of a back-off or of the pace. Whatever frees
//     a connection or a slot grants or dials in the same critical section.
//  3. A grant is used once: the channel holds one, a waiter is unlinked under
//     the lock before it is granted, and one that was cancelled meanwhile
//     passes its grant on under the lock.
//  4. Nobody passes a waiter: what comes free goes to the head of the queue and
//     is idle only where nobody waits, so who finds one idle passes nobody.
//  5. Every idle connection has proved that it is alive since the last
//     connection broke and since the process was last suspended. Connections to a
//     condemned server are lent last, see suspect.go.
//
// Neither a dial nor a read, a write or a close happens under the lock, and
// no borrower dials.
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
	maxDials   = 8                      // at once; one while Redis is down
	minBackoff = 20 * time.Millisecond  // after the first failed dial
	maxBackoff = 800 * time.Millisecond // so that a server that is back has a client within a second
	sweepEvery = 250 * time.Millisecond // how soon a dead idle connection is found with nobody asking
	peekAfter  = time.Millisecond       // a connection known to be sound since is not worth a system call
	blindAfter = 100 * time.Millisecond // where nobody can look, a connection unused since is worth a round trip
	patience   = 100 * time.Millisecond // how long a dial or a probe may take before the store looks elsewhere
	linger     = 250 * time.Millisecond // how long a close waits for the server's
)

// Config is what a store is made of. New does not check it.
type Config struct {
	MinIdle, MaxActive int
	IdleTimeout        time.Duration // 0: never trim
	MaxLifetime        time.Duration // 0: never retire
	HealthCheckAfter   time.Duration // 0: never probe
	DialTimeout        time.Duration
	ReadTimeout        time.Duration // 0: the connection's own
	Transport          Transport     // of what Dial dials
	Database           int           // that Dial selects; negative: unknown

	Dial func(ctx context.Context) (Dialed, error)
}

// Dialed is an open connection and its socket, nil where it is hidden. Plain
// says that the socket itself carries RESP.
type Dialed struct {
	Conn   redis.Conn
	Socket *Socket
	Plain  bool
}

// Store lends connections and takes them back.
type Store struct {
	cfg       Config             // immutable
	base      time.Time          // immutable; times below are durations since
	startDial func(turn int64)   // immutable; its goroutine is one of wg
	stopDials context.CancelFunc // immutable
	stop      chan struct{}      // closed when the store closes: ends the janitor and the prober
	wg        sync.WaitGroup     // dials, probes, closes, the janitor and the prober

	mu       sync.Mutex         // guards all below
	all      map[*Conn]struct{} // every open connection
	idle     []*Conn            // least recently lent first; the last is lent first
	inUse    int
	probing  int // counts as idle for the floor: it will be back in a moment
	overdue  int // of probing: without an answer within patience; waiters do not count on these
	cutting  int // of overdue: cut because a dial needs the slot
	dialing  int
	closing  int
	turn     int64 // counts what is handed back, dialled, probed or condemned; starts above zero
	doubted  int64 // the turn when the process was last seen to have been suspended
	pulse    pulse
	waiters  list.List // of *waiter, in the order of their arrivals
	arrivals int64
	changed  chan struct{} // closed at the next change that Ready or Shutdown waits for; may be nil
	closed   bool

	fails      int // dials failed in a row
	failure    error
	salvo      int  // dials under way that were begun before the first of those failed
	backingOff bool // no dial before retry fires
	retry      *time.Timer

	renewal renewal

	stats Stats
}

type waiter struct {
	grant   chan grant    // holds one
	since   time.Duration // when it was queued
	arrival int64         // orders the borrowers by their calls of Acquire
	place   *list.Element // in the queue; nil once it has left
}

type grant struct {
	conn   *Conn
	err    error
	waited time.Duration
}

// New starts a store, which fills to its floor at once.
func New(cfg Config) *Store {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Store{
		cfg: cfg, base: time.Now(), stopDials: cancel,
		stop: make(chan struct{}), all: make(map[*Conn]struct{}), turn: 1,
		renewal: renewal{next: -renewBurst * renewEvery},
	}
	s.startDial = func(turn int64) { s.wg.Go(func() { s.dial(ctx, turn) }) }
	s.pulse.beat(s.base)
	s.wg.Go(s.janitor)
	s.wg.Go(s.prober)
	s.mu.Lock()
	s.fillLocked()
	s.mu.Unlock()
	return s
}

func (s *Store) now() time.Duration { return time.Since(s.base) }

// Acquire lends a connection, which the borrower hands back with its Close.
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
		// The one look at the clock of a loan: it is a sixth of its price.
		if c.lentAt = s.now(); c.lentAt-c.soundAt < peekAfter {
			return c, nil
		}
		if s.sound(c) {
			return c, nil
		}
		c, w, err = s.swap(c, arrival)
	}
}

// AcquireTested lends a connection that passes test. A connection that fails is
// closed and counts against the server, as an answer that condemns it does. The
// error is that of a connection which was dialled meanwhile: none can do better.
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

// sound has a last look at a connection before its borrower gets it.
func (s *Store) sound(c *Conn) bool {
	if c.Dead() {
		c.Fail()
		return false
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pulse.missed(now) {
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

// swap takes back a connection that is not sound, and serves its borrower again in
// the order of arrival. The store closes the connection or has it answer a PING.
// A PING without an answer delays the borrower by patience at most.
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
	// It was granted before it could leave.
	g := <-w.grant
	if g.err != nil {
		return nil, g.err
	}
	s.stats.Waits--
	s.stats.WaitTime -= g.waited
	s.stats.Timeouts++
	err := s.waitErrorLocked(ctx.Err()) // while that one counts
	s.putLocked(g.conn)
	return nil, err
}

// leaveLocked unlinks a waiter.
func (s *Store) leaveLocked(w *waiter) {
	s.waiters.Remove(w.place)
	w.place = nil
}

// Late is the error of one who waits for a connection no longer, for cause.
func (s *Store) Late(cause error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waitErrorLocked(cause)
}

// waitErrorLocked tells a pool whose connections are all busy from one that
// is still dialling.
func (s *Store) waitErrorLocked(cause error) error {
	switch {
	case s.dialing > 0:
		return fmt.Errorf("rediscache: no connection in time, %d being dialled%v: %w", s.dialing, s.cfg.Transport, cause)
	case s.failure == nil && s.openLocked() < s.cfg.MaxActive: // it was about to be served
		return fmt.Errorf("rediscache: no connection in time: %w", cause)
	}
	err := fmt.Errorf("%w: %d of %d connections in use: %w", ErrPoolExhausted, s.inUse, s.cfg.MaxActive, cause)
	if s.failure != nil {
		err = fmt.Errorf("%w (the last dial failed: %s)", err, s.failure.Error())
	}
	return err
}

// put takes a lent connection back from its borrower. A connection that was lent
// before the process was suspended is not proven by its return.
func (s *Store) put(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.used = true
	if !s.unprovenLocked(c) {
		s.nextLocked(c)
	}
	s.putLocked(c)
}

// nextLocked makes c the last that was handed back; a suspect keeps its place
// below. Where only the order counts it does for a clock, at a fraction of the
// price.
func (s *Store) nextLocked(c *Conn) {
	s.turn++
	c.proven = s.turn
	if !s.suspectLocked(c) {
		c.place = s.turn
	}
}

// putLocked takes a lent connection back, unless it was killed while it was
// out.
func (s *Store) putLocked(c *Conn) {
	if c.phase == lent {
		s.inUse--
		s.keepLocked(c)
	}
}

// keepLocked passes on a connection that is counted nowhere else, has it prove
// that it is alive, or closes it if it may not be lent again.
func (s *Store) keepLocked(c *Conn) {
	switch reason := s.unfitLocked(c); {
	case reason != nil:
		s.discardLocked(c, reason)
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

// unprovenLocked reports that nobody knows whether a connection is alive.
func (s *Store) unprovenLocked(c *Conn) bool {
	return c.verdict == unproven || c.proven <= s.doubted
}

// unfitLocked returns the counter of the reason for which c may not be lent
// again, nil if it may.
func (s *Store) unfitLocked(c *Conn) *int64 {
	switch {
	case s.closed:
		return &s.stats.Closed.Shutdown
	case c.verdict == useless || c.writing || c.failed != 0,
		s.cfg.HealthCheckAfter == 0 && s.unprovenLocked(c),
		s.suspectLocked(c) && s.replaceableLocked(1):
		return &s.stats.Closed.Broken
	case c.session.Load() >= changed:
		return &s.stats.Closed.State
	case c.expired(c.lentAt):
		return &s.stats.Closed.Lifetime
	}
	return nil
}

// giveLocked hands a healthy connection, which is counted nowhere else, to
// the head of the queue, or lays it with the idle ones.
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

// fillLocked dials what the waiters and the floor want. It is called after
// whatever adds a waiter, takes an idle connection, frees a slot, ends a dial,
// a back-off or a pause of the pace, or makes a probe overdue or connections
// suspect; nothing else raises want or room.
func (s *Store) fillLocked() {
	if s.closed || s.backingOff {
		return
	}
	waiters := s.waiters.Len()
	want := waiters + s.cfg.MinIdle - s.trustedLocked() - s.probing
	// A waiter does not wait for overdue probes. The floor does, or a slow link would churn.
	want = max(want, waiters-(s.probing-s.overdue)) - s.dialing
	limit := maxDials
	if s.fails > 0 { // one probe at a time, wanted or not: nobody else finds out that Redis is back
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
		s.startDial(s.turn)
	}
}

// cutOverdueLocked gives up n probes whose slots dials need. The connections may
// not be ours, so they are cut without the lock.
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

// dial runs a dial that was begun at turn. The dialer may be the user's code, so
// it may panic or call runtime.Goexit.
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
	if err != nil {
		s.dialFailedLocked(err)
	} else {
		s.addLocked(c, turn)
	}
	s.fillLocked()
	s.notifyLocked()
}

// addLocked takes in a new connection, whose dial was begun at turn.
func (s *Store) addLocked(c *Conn, turn int64) {
	s.all[c] = struct{}{}
	c.born = turn
	if s.suspectLocked(c) {
		s.renewal.suspects++
	}
	if s.closed {
		s.discardLocked(c, &s.stats.Closed.Shutdown)
		return
	}
	s.fails, s.failure, s.salvo = 0, nil, 0
	s.nextLocked(c)
	s.giveLocked(c)
}

// dialFailedLocked backs off, once for dials that failed together.
func (s *Store) dialFailedLocked(err error) {
	s.stats.DialFailures++
	s.failure = err
	if s.closed {
		return
	}
	if !s.backingOff {
		if s.fails == 0 {
			s.salvo = s.dialing
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

// downLocked reports that the last dial failed, that none is under way which
// was begun before anything was known to be wrong, and that no connection is
// left that could come back.
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

// discardLocked closes a connection that is counted nowhere else. The slot is
// free when the socket is gone. The connection may be the user's: its Close may
// panic or call runtime.Goexit.
func (s *Store) discardLocked(c *Conn, reason *int64) {
	*reason++
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

// doubtOlderLocked makes the idle connections that nobody used since the turn at
// which one failed prove that they are alive: what broke it has probably broken
// them. Those above most are closed, to leave their slots to dials; where nothing
// is ever probed all are.
func (s *Store) doubtOlderLocked(failed int64, most int) {
	var doubtful []*Conn
	s.keepIdleLocked(func(c *Conn) *int64 {
		switch {
		case c.proven > failed:
		case s.cfg.HealthCheckAfter == 0 || c.Dead() || len(doubtful) >= most:
			return &s.stats.Closed.Broken
		default:
			doubtful = append(doubtful, c)
		}
		return nil
	})
	for _, c := range doubtful {
		s.takeIdleLocked(slices.Index(s.idle, c))
		s.startProbeLocked(c)
	}
}

// takeIdleLocked removes an idle connection, which is then counted nowhere.
func (s *Store) takeIdleLocked(i int) *Conn {
	c := s.idle[i]
	s.idle = slices.Delete(s.idle, i, i+1)
	return c
}

// keepIdleLocked discards each idle connection for which reason gives one.
func (s *Store) keepIdleLocked(reason func(*Conn) *int64) {
	kept := s.idle[:0]
	for _, c := range s.idle {
		if r := reason(c); r != nil {
			s.discardLocked(c, r)
		} else {
			kept = append(kept, c)
		}
	}
	clear(s.idle[len(kept):])
	s.idle = kept
}
