// Package warm is the store of physical connections: it keeps a floor of them
// open and spare, a strict cap on how many are open, and all of them healthy.
//
// One mutex guards the store. Under it these hold, always:
//
//  1. open = idle + inUse + probing + dialing + closing <= MaxActive. open
//     rises only in fillLocked, and falls only after the socket is gone.
//  2. A waiter is queued only while idle is empty, and while something will
//     come to it: a connection in use or probed, a dial, a close that frees
//     the slot for one, or the end of a back-off. Whatever frees a connection
//     or a slot grants or dials in the same critical section.
//  3. A grant is used once: the channel holds one, a waiter is unlinked under
//     the lock before it is granted, and one that was cancelled meanwhile
//     passes its grant on under the lock.
//  4. Nobody passes a waiter: the fast path is refused while one is queued.
//
// Neither a dial nor a read, a write or a close happens under the lock, and
// no borrower dials.
package warm

import (
	"container/list"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	maxDials   = 8                      // at once; one while Redis is down
	minBackoff = 20 * time.Millisecond  // after the first failed dial
	maxBackoff = 800 * time.Millisecond // so that a server that is back has a client within a second
	sweepEvery = 250 * time.Millisecond // how soon a dead idle connection is found with nobody asking
	peekAfter  = time.Millisecond       // a socket used since is not worth a system call
	linger     = 250 * time.Millisecond // how long a close waits for the server's
)

// Config is what a store is made of. New does not check it.
type Config struct {
	MinIdle, MaxActive int
	IdleTimeout        time.Duration // 0: never trim
	MaxLifetime        time.Duration // 0: never retire
	HealthCheckAfter   time.Duration // 0: never probe
	DialTimeout        time.Duration
	ReadTimeout        time.Duration

	Dial func(ctx context.Context) (Dialed, error)
}

// Dialed is an open connection and its socket, nil where it is hidden. Plain
// says that the socket itself carries RESP.
type Dialed struct {
	Conn   redis.Conn
	Socket net.Conn
	Plain  bool
}

// Store lends connections and takes them back.
type Store struct {
	cfg       Config             // immutable
	startDial func()             // immutable; its goroutine is one of wg
	stopDials context.CancelFunc // immutable
	stop      chan struct{}      // closed when the store closes: ends the janitor
	wg        sync.WaitGroup     // dials, closes and the janitor

	mu      sync.Mutex         // guards all below
	all     map[*Conn]struct{} // every open connection
	idle    []*Conn            // least recently lent first; the last is lent first
	inUse   int
	probing int // counts as idle for the floor: it will be back in a moment
	dialing int
	closing int
	waiters list.List     // of *waiter
	changed chan struct{} // closed at the next change that Ready or Shutdown waits for; may be nil
	closed  bool

	fails      int // dials failed in a row
	failure    error
	backingOff bool // no dial before retry fires
	retry      *time.Timer

	stats Stats
}

type waiter struct {
	grant chan grant // holds one
	since time.Time
}

type grant struct {
	conn *Conn
	err  error
}

// Stats is documented where users see it, as rediscache.PoolStats.
type Stats struct {
	Open, Idle, InUse, Waiting int
	Dials, DialFailures        int64
	Waits                      int64
	WaitTime                   time.Duration
	Timeouts                   int64
	Closed                     Closed
}

// Closed counts the connections that were closed, by reason.
type Closed struct {
	Idle, Lifetime, Broken, State, Shutdown int64
}

// New starts a store, which fills to its floor at once.
func New(cfg Config) *Store {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Store{cfg: cfg, stopDials: cancel, stop: make(chan struct{}), all: make(map[*Conn]struct{})}
	s.startDial = func() { s.wg.Go(func() { s.dial(ctx) }) }
	s.wg.Go(s.janitor)
	s.mu.Lock()
	s.fillLocked()
	s.mu.Unlock()
	return s
}

// Acquire lends a connection, which the borrower hands back with its Close.
func (s *Store) Acquire(ctx context.Context) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for first := true; ; first = false {
		c, w, err := s.take(first)
		if w != nil {
			c, err = s.wait(ctx, w)
		}
		if err != nil {
			return nil, err
		}
		if time.Since(c.idleSince) < peekAfter || !c.Dead() {
			return c, nil
		}
		c.fail(time.Now())
		s.put(c)
	}
}

// take lends an idle connection or queues a waiter. One whose connection was
// found dead comes a second time, and goes to the head as it was there.
func (s *Store) take(first bool) (*Conn, *waiter, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, ErrClosed
	}
	if n := len(s.idle); n > 0 && (s.waiters.Len() == 0 || !first) {
		c := s.idle[n-1]
		s.idle = s.idle[:n-1]
		s.lendLocked(c)
		s.fillLocked()
		return c, nil, nil
	}
	if s.downLocked() {
		return nil, nil, &DialError{s.failure}
	}
	w := &waiter{grant: make(chan grant, 1), since: time.Now()}
	if first {
		s.waiters.PushBack(w)
	} else {
		s.waiters.PushFront(w)
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
	for e := s.waiters.Front(); e != nil; e = e.Next() {
		if e.Value == w {
			s.waiters.Remove(e)
			s.stats.Timeouts++
			return nil, s.waitErrorLocked(ctx.Err())
		}
	}
	// It was granted before it could leave.
	g := <-w.grant
	if g.err != nil {
		return nil, g.err
	}
	s.inUse--
	s.giveLocked(g.conn)
	s.stats.Timeouts++
	return nil, s.waitErrorLocked(ctx.Err())
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
	if s.dialing > 0 {
		return fmt.Errorf("rediscache: no connection in time, %d being dialled: %w", s.dialing, cause)
	}
	err := fmt.Errorf("%w: %d of %d connections in use: %w",
		ErrPoolExhausted, s.inUse, s.cfg.MaxActive, cause)
	if s.failure != nil {
		err = fmt.Errorf("%w (the last dial failed: %v)", err, s.failure)
	}
	return err
}

// put takes a lent connection back.
func (s *Store) put(c *Conn) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.lent {
		return // killed while it was out
	}
	s.inUse--
	c.lent = false
	if reason := s.unfitLocked(c, now); reason != nil {
		s.discardLocked(c, reason)
		s.dropOlderLocked(c.failed)
		s.fillLocked()
		s.failWaitersIfDownLocked()
		return
	}
	c.idleSince, c.seen = now, now
	s.giveLocked(c)
}

// unfitLocked returns the counter of the reason for which c may not be lent
// again, nil if it may.
func (s *Store) unfitLocked(c *Conn, now time.Time) *int64 {
	switch {
	case s.closed:
		return &s.stats.Closed.Shutdown
	case c.retired || !c.failed.IsZero() || c.Conn.Err() != nil:
		return &s.stats.Closed.Broken
	case c.tainted:
		return &s.stats.Closed.State
	case c.expired(now):
		return &s.stats.Closed.Lifetime
	}
	return nil
}

// giveLocked hands a healthy connection, which is counted nowhere else, to
// the head of the queue, or lays it with the idle ones.
func (s *Store) giveLocked(c *Conn) {
	if e := s.waiters.Front(); e != nil {
		w := s.waiters.Remove(e).(*waiter)
		s.lendLocked(c)
		s.stats.Waits++
		s.stats.WaitTime += time.Since(w.since)
		w.grant <- grant{conn: c}
		return
	}
	i := len(s.idle)
	s.idle = append(s.idle, c)
	for ; i > 0 && s.idle[i-1].idleSince.After(c.idleSince); i-- {
		s.idle[i-1], s.idle[i] = s.idle[i], s.idle[i-1]
	}
	s.notifyLocked()
}

func (s *Store) lendLocked(c *Conn) {
	s.inUse++
	c.lent = true
}

func (s *Store) openLocked() int {
	return len(s.idle) + s.inUse + s.probing + s.dialing + s.closing
}

// fillLocked dials what the waiters and the floor want. It is called after
// whatever adds a waiter, takes an idle connection, frees a slot, ends a dial
// or ends a back-off; nothing else raises want or room.
func (s *Store) fillLocked() {
	if s.closed || s.backingOff {
		return
	}
	want := s.waiters.Len() + s.cfg.MinIdle - len(s.idle) - s.probing - s.dialing
	limit := maxDials
	if s.fails > 0 { // one probe at a time, wanted or not: nobody else finds out that Redis is back
		want, limit = max(want, 1), 1
	}
	for range min(want, s.cfg.MaxActive-s.openLocked(), limit-s.dialing) {
		s.dialing++
		s.stats.Dials++
		s.startDial()
	}
}

func (s *Store) dial(ctx context.Context) {
	c, err := s.connect(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dialing--
	switch {
	case err != nil:
		s.dialFailedLocked(err)
	case s.closed:
		s.all[c] = struct{}{}
		s.discardLocked(c, &s.stats.Closed.Shutdown)
	default:
		s.all[c] = struct{}{}
		s.fails, s.failure = 0, nil
		s.giveLocked(c)
	}
	s.fillLocked()
	s.notifyLocked()
}

// dialFailedLocked backs off, once for dials that failed together.
func (s *Store) dialFailedLocked(err error) {
	s.stats.DialFailures++
	s.failure = err
	if s.closed {
		return
	}
	if !s.backingOff {
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

// downLocked reports that the last dial failed and that no connection is left
// that could come back.
func (s *Store) downLocked() bool {
	return s.fails > 0 && s.inUse == 0 && s.probing == 0 && len(s.idle) == 0
}

func (s *Store) failWaitersIfDownLocked() {
	if s.downLocked() {
		s.failWaitersLocked(&DialError{s.failure})
	}
}

func (s *Store) failWaitersLocked(err error) {
	for e := s.waiters.Front(); e != nil; e = s.waiters.Front() {
		s.waiters.Remove(e).(*waiter).grant <- grant{err: err}
	}
}

// discardLocked closes a connection that is counted nowhere else. The slot is
// free when the socket is gone.
func (s *Store) discardLocked(c *Conn, reason *int64) {
	*reason++
	s.closing++
	s.wg.Go(func() {
		c.shut()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.closing--
		delete(s.all, c)
		s.fillLocked()
		s.notifyLocked()
	})
}

// dropOlderLocked closes the idle connections that were not seen since one of
// their kind failed: what broke it has probably broken them.
func (s *Store) dropOlderLocked(failed time.Time) {
	s.keepIdleLocked(func(c *Conn) *int64 {
		if c.seen.Before(failed) {
			return &s.stats.Closed.Broken
		}
		return nil
	})
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

// Ready waits until the floor stands: MinIdle spare connections have
// answered, or as many as the maximum leaves. An error matches the context's
// and, if a dial failed, wraps a *DialError.
func (s *Store) Ready(ctx context.Context) error {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return ErrClosed
		}
		spare := len(s.idle) + s.probing
		ready := spare >= s.cfg.MinIdle || spare+s.inUse == s.cfg.MaxActive
		failure, changed := s.failure, s.changedLocked()
		s.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if failure != nil {
				return fmt.Errorf("%w (%w)", &DialError{failure}, ctx.Err())
			}
			return fmt.Errorf("rediscache: pool not ready: %w", ctx.Err())
		}
	}
}

// Stats returns the counts of this moment.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Open, st.Idle, st.InUse, st.Waiting = s.openLocked(), len(s.idle)+s.probing, s.inUse, s.waiters.Len()
	return st
}

// Shutdown lends no more and waits until all that is lent is back and closed.
// When ctx ends it closes what is left under its borrowers and says how many.
func (s *Store) Shutdown(ctx context.Context) error {
	s.refuse()
	var err error
	if !s.waitGone(ctx) {
		if n := s.kill(); n > 0 {
			err = fmt.Errorf("rediscache: shutdown: %d connections were still borrowed: %w", n, ctx.Err())
		}
		s.waitGone(context.Background())
	}
	s.wg.Wait()
	return err
}

// Close closes all connections now, lent ones too, and waits until they are
// gone and nothing of the store runs any more.
func (s *Store) Close() {
	s.refuse()
	s.kill()
	s.waitGone(context.Background())
	s.wg.Wait()
}

// refuse ends lending, waiting, dialling and probing.
func (s *Store) refuse() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	close(s.stop)
	if s.retry != nil {
		s.retry.Stop()
	}
	s.failWaitersLocked(ErrClosed)
	s.keepIdleLocked(func(*Conn) *int64 { return &s.stats.Closed.Shutdown })
	var probed []*Conn
	for c := range s.all {
		if c.probed {
			probed = append(probed, c)
		}
	}
	s.notifyLocked()
	s.mu.Unlock()
	s.stopDials()
	for _, c := range probed {
		c.Cut()
	}
}

// kill closes the lent connections under their borrowers, and counts them.
func (s *Store) kill() int {
	var lent []*Conn
	s.mu.Lock()
	for c := range s.all {
		if c.lent {
			c.lent = false
			lent = append(lent, c)
		}
	}
	s.stats.Closed.Shutdown += int64(len(lent))
	s.mu.Unlock()
	for _, c := range lent {
		c.Cut()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range lent {
		s.inUse--
		delete(s.all, c)
	}
	s.notifyLocked()
	return len(lent)
}

// waitGone waits until no connection is open and no dial under way. After
// refuse nothing raises open, so it stays so.
func (s *Store) waitGone(ctx context.Context) bool {
	for {
		s.mu.Lock()
		gone, changed := s.openLocked() == 0, s.changedLocked()
		s.mu.Unlock()
		if gone {
			return true
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

func (s *Store) changedLocked() <-chan struct{} {
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

func (s *Store) notifyLocked() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}
