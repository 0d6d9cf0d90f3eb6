package warm

import (
	"time"

	"github.com/rediscache/rediscache/internal/resp"
)

// A failover may close no connection: a name or a balancer points to the new
// primary, and the old one goes on as a replica, which answers READONLY to
// writes. A PING proves nothing then, so an answer that condemns the server
// makes every connection that was dialled before it a suspect, which new dials
// replace:
//
//   - A suspect is lent only where no newer connection is idle. Until a dial
//     succeeds the suspects go on serving reads.
//   - Idle suspects above the floor are closed, and the others one by one as new
//     connections come. A borrowed suspect is closed when it is returned, if a
//     newer connection is idle or no slot is left for one.
//   - While there are suspects, and for a second after the answer, the pace
//     bounds the dials. New connections may reach the old primary too, as long as
//     the name has not moved. A write on one of them then condemns the server
//     again.
const (
	condemnEvery = 100 * time.Millisecond // so that a new connection serves reads for a moment at least
	renewEvery   = time.Second / 16       // with the burst at most 20 dials a second
	renewBurst   = 4
	paceFor      = time.Second // after the last answer that condemned the server
)

// renewal is guarded by Store.mu.
type renewal struct {
	condemned int64         // the turn of the last answer that condemned the server; zero: none did
	at        time.Duration // when that came
	suspects  int           // open connections whose dial was begun before; none of these is closing
	next      time.Duration // when the pace allows the next dial
	timer     *time.Timer   // calls fillLocked then; nil if no dial waits
}

// Condemn takes an error that the server answered on a borrowed connection. It
// reports whether the borrower should return the connection, because a new one
// may do better.
func (c *Conn) Condemn(answer string) bool {
	means := resp.MeaningOf(answer)
	if !means.Has(resp.Condemns) {
		return false
	}
	s := c.store
	s.mu.Lock()
	defer s.mu.Unlock()
	s.condemnLocked(c)
	return !means.Has(resp.Retry) || s.suspectLocked(c) && s.replaceableLocked(0)
}

// pass runs test on a borrowed connection, and returns the connection to the
// store if it fails. The test is the user's: it may panic or call runtime.Goexit.
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

// condemnLocked makes suspects of c and of all other connections, which are as old
// or older than the answer. It does nothing if c is a suspect already, or if the
// last answer that condemned the server is younger than condemnEvery.
func (s *Store) condemnLocked(c *Conn) {
	r, now := &s.renewal, s.now()
	if s.closed || s.suspectLocked(c) || r.condemned != 0 && now-r.at < condemnEvery {
		return
	}
	r.condemned, r.at = s.turn, now
	s.turn++ // dials that begin now are later
	r.suspects = 0
	for c := range s.all {
		if c.phase != closing {
			r.suspects++
		}
	}
	s.trimSuspectsLocked()
	s.fillLocked()
}

// suspectLocked reports that the server was condemned after the dial of c had
// begun.
func (s *Store) suspectLocked(c *Conn) bool { return c.born <= s.renewal.condemned }

// trimSuspectsLocked closes the idle suspects above the floor. One stays even
// without a floor, as dials may fail.
func (s *Store) trimSuspectsLocked() {
	for len(s.idle) > max(s.cfg.MinIdle, 1) && s.suspectLocked(s.idle[0]) {
		s.discardLocked(s.takeIdleLocked(0), &s.stats.Closed.Broken)
	}
}

// trustedLocked counts the idle connections that are no suspects. Those are the
// last.
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

// replaceableLocked reports that a borrowed suspect should be closed: a newer
// connection is idle, or there is no slot for the dial of one. One that is just
// being returned is counted by uncounted, and by nothing else.
func (s *Store) replaceableLocked(uncounted int) bool {
	return s.trustedLocked() > 0 || len(s.idle) == 0 && s.fullLocked(uncounted)
}

// fullLocked reports that only the end of a suspect makes room for a dial that
// may begin now.
func (s *Store) fullLocked(uncounted int) bool {
	return s.openLocked()+uncounted >= s.cfg.MaxActive && s.dialing == 0 && s.closing == 0 &&
		!s.backingOff && s.renewal.next <= s.now()
}

// renewLocked returns how many dials are wanted while there are suspects, and
// makes room for one.
func (s *Store) renewLocked(want int) int {
	if s.trustedLocked() == 0 && s.probing == s.overdue {
		want = max(want, 1-s.dialing)
	}
	if want <= 0 || len(s.idle) == 0 || !s.suspectLocked(s.idle[0]) {
		return want
	}
	if s.fullLocked(0) {
		s.discardLocked(s.takeIdleLocked(0), &s.stats.Closed.Broken)
	} else if wait := s.renewal.next - s.now(); wait > 0 {
		s.fillAfterLocked(wait)
	}
	return want
}

// paceLocked reports whether a dial may begin now. If not, a timer calls
// fillLocked when one may.
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

// fillAfterLocked has fillLocked called when the pace allows the next dial.
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
