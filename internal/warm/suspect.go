package warm

import (
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
)

// A failover may close no connection: a DNS name or a load balancer points to the new
// primary, and the old primary goes on as a replica, which answers writes with
// READONLY. A PING does not show that. So an answer such as READONLY condemns the
// server: every connection that was dialled before the answer becomes a suspect, and
// new dials replace the suspects:
//
//   - The store lends a suspect only if no newer connection is idle. Until a dial
//     succeeds, the suspects still serve reads.
//   - The store closes idle suspects above the minimum at once, and the others one by
//     one as new connections come. It closes a borrowed suspect on its return, if a
//     newer connection is idle or there is no slot to dial one.
//   - While there are suspects, and for a second after the answer, a pace bounds the
//     dials. As long as the name still points to the old primary, new connections
//     reach it too. A write on one of them condemns the server again.
//   - The last of these connections may never get a write, because the next dial reaches
//     the new primary. So settleAfter after the last answer, all connections become
//     suspects once more. Only the few that were dialled since are replaced for that.
const (
	condemnEvery = 100 * time.Millisecond // so that a new connection serves reads for at least this long
	renewEvery   = time.Second / 16       // with renewBurst at most 20 dials in any second
	renewBurst   = 4
	paceFor      = time.Second      // after the last time that the server was condemned
	settleAfter  = 2 * condemnEvery // a refused write is retried within 100 ms, so this is longer than between two answers
)

// renewal is guarded by Store.mu.
type renewal struct {
	condemned int64         // the turn of the last answer that condemned the server; zero: none
	at        time.Duration // when that answer came
	answer    error         // what it said; nil if a dial that began later has succeeded
	suspects  int           // open connections dialled before that answer, without those that are closing
	next      time.Duration // when the pace allows the next dial
	timer     *time.Timer   // calls fillLocked at next; nil if no dial waits
	settle    *time.Timer   // calls suspectAllLocked settleAfter after the last answer; nil before the first
}

// Condemn handles an error reply on a borrowed connection. If the error condemns the
// server, all connections become suspects. Condemn reports whether the borrower should
// return the connection, because a new one may work.
func (c *Conn) Condemn(answer string) bool {
	means := resp.MeaningOf(answer)
	if !means.Has(resp.Condemns) {
		return false
	}
	s := c.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.suspectLocked(c) {
		s.renewal.answer = redis.Error(answer)
	}
	s.condemnLocked(c)
	return !means.Has(resp.Retry) || s.suspectLocked(c) && s.replaceableLocked(0)
}

// pass runs test on a borrowed connection. If test fails, pass condemns the server and
// returns the connection to the store. test is the user's code: it may panic or call
// runtime.Goexit.
func (c *Conn) pass(test func(*Conn) error) (err error) {
	err = errExited
	defer func() {
		if err != nil {
			c.Retire()
			c.store.mu.Lock()
			c.store.condemnLocked(c)
			c.store.mu.Unlock()
			_ = c.Close() // never fails
		}
	}()
	return test(c)
}

// condemnLocked makes all open connections suspects, now and after settleAfter. It does
// nothing if c is a suspect already, and nothing now if the server was condemned within
// the last condemnEvery.
func (s *Store) condemnLocked(c *Conn) {
	r := &s.renewal
	if s.closed || s.suspectLocked(c) {
		return
	}
	if r.settle == nil {
		r.settle = time.AfterFunc(settleAfter, s.suspectAll)
	} else {
		r.settle.Reset(settleAfter)
	}
	if r.condemned == 0 || s.now()-r.at >= condemnEvery {
		s.suspectAllLocked()
	}
}

func (s *Store) suspectAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.suspectAllLocked()
	}
}

// suspectAllLocked makes all open connections suspects, and dials in flight too.
func (s *Store) suspectAllLocked() {
	r := &s.renewal
	r.condemned, r.at = s.turn, s.now()
	s.turn++ // connections whose dial begins from now on are no suspects
	r.suspects = 0
	for c := range s.all {
		if c.phase != closing {
			r.suspects++
		}
	}
	s.trimSuspectsLocked()
	s.fillLocked()
}

// suspectLocked reports whether the server was condemned after the dial of c began.
func (s *Store) suspectLocked(c *Conn) bool { return c.born <= s.renewal.condemned }

// trimSuspectsLocked closes the idle suspects above the minimum. It keeps one even if the
// minimum is zero, because dials may fail.
func (s *Store) trimSuspectsLocked() {
	for len(s.idle) > max(s.cfg.MinIdle, 1) && s.suspectLocked(s.idle[0]) {
		s.discardLocked(s.takeIdleLocked(0), closedBroken)
	}
}

// trustedLocked counts the idle connections that are no suspects. They come last in idle.
func (s *Store) trustedLocked() int {
	n := len(s.idle)
	if s.renewal.suspects == 0 {
		return n
	}
	for i, c := range s.idle {
		if !s.suspectLocked(c) {
			return n - i
		}
	}
	return 0
}

// replaceableLocked reports whether to close a borrowed suspect: a newer connection is
// idle, or nothing is idle and a dial needs the slot of the suspect. uncounted is 1 if no
// count includes the suspect because it is being returned, and 0 otherwise.
func (s *Store) replaceableLocked(uncounted int) bool {
	return s.trustedLocked() > 0 || len(s.idle) == 0 && s.fullLocked(uncounted)
}

// fullLocked reports whether a dial could begin now if a suspect freed its slot.
func (s *Store) fullLocked(uncounted int) bool {
	return s.openLocked()+uncounted >= s.cfg.MaxActive && s.dialing == 0 && s.closing == 0 &&
		!s.backingOff && s.renewal.next <= s.now()
}

// renewLocked returns how many dials to make while there are suspects: want, or one more
// to replace a suspect. If there is no slot, it closes an idle suspect.
func (s *Store) renewLocked(want int) int {
	if s.trustedLocked() == 0 && s.probing == s.overdue {
		want = max(want, 1-s.dialing)
	}
	if want <= 0 || len(s.idle) == 0 || !s.suspectLocked(s.idle[0]) {
		return want
	}
	if s.fullLocked(0) {
		s.discardLocked(s.takeIdleLocked(0), closedBroken)
	} else if wait := s.renewal.next - s.now(); wait > 0 {
		s.fillAfterLocked(wait)
	}
	return want
}

// paceLocked reports whether the pace allows a dial now. If not, a timer calls fillLocked
// when it does.
func (s *Store) paceLocked() bool {
	r := &s.renewal
	if r.condemned == 0 {
		return true
	}
	now := s.now()
	if r.suspects == 0 && now-r.at >= paceFor {
		return true
	}
	r.next = max(r.next, now-(renewBurst-1)*renewEvery)
	if r.next <= now {
		r.next += renewEvery
		return true
	}
	s.fillAfterLocked(r.next - now)
	return false
}

// fillAfterLocked calls fillLocked after d, unless such a call is scheduled already.
func (s *Store) fillAfterLocked(d time.Duration) {
	if s.renewal.timer != nil {
		return
	}
	s.renewal.timer = time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.renewal.timer = nil
		s.fillLocked()
	})
}
