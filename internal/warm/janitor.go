package warm

import (
	"slices"
	"time"
)

// janitor looks after the idle connections while nobody asks. It ends when
// the store closes.
func (s *Store) janitor() {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
			s.sweep()
			for next := s.now() + sweepEvery; s.now() < next && s.probeOne(); {
			}
		}
	}
}

// sweep closes the idle connections that are dead, too old, or above the
// floor and not wanted for long, the least recently used first.
func (s *Store) sweep() {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	spare := len(s.idle) + s.probing
	s.keepIdleLocked(func(c *Conn) *int64 {
		if c.used {
			c.used = false
			c.idleSince, c.seen = now, now
		}
		reason := s.staleLocked(c, now, spare)
		if reason != nil {
			spare--
		}
		return reason
	})
	s.fillLocked()
}

// staleLocked returns the counter of the reason to close an idle connection,
// or nil. A peek does not wait, so it may happen under the lock.
func (s *Store) staleLocked(c *Conn, now time.Duration, spare int) *int64 {
	switch idle := s.cfg.IdleTimeout; {
	case c.Dead():
		return &s.stats.Closed.Broken
	case c.expired(now):
		return &s.stats.Closed.Lifetime
	case idle > 0 && spare > s.cfg.MinIdle && now-c.idleSince >= idle:
		return &s.stats.Closed.Idle
	}
	return nil
}

// probeOne looks after one cold connection and reports whether there was one.
func (s *Store) probeOne() bool {
	c := s.takeCold()
	if c == nil {
		return false
	}
	s.probe(c)
	return true
}

func (s *Store) takeCold() *Conn {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.HealthCheckAfter == 0 || s.closed {
		return nil
	}
	for i, c := range s.idle {
		if now-c.seen >= s.cfg.HealthCheckAfter {
			return s.probeLocked(i)
		}
	}
	return nil
}

// probeLocked takes an idle connection, for probe.
func (s *Store) probeLocked(i int) *Conn {
	c := s.idle[i]
	s.idle = slices.Delete(s.idle, i, i+1)
	s.probing++
	c.probed = true
	return c
}

// probe sends a PING, which may take as long as a dial: that is what a
// connection without an answer costs. Its place among the idle ones stays: only
// borrowers make it warmer.
func (s *Store) probe(c *Conn) {
	timer := time.AfterFunc(s.cfg.DialTimeout, c.Cut) // for those who know no timeouts
	_ = c.noteError(c.ping(s.cfg.DialTimeout))
	if !timer.Stop() {
		c.Retire() // it may be cut once it is lent
	}
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probing--
	c.probed = false
	c.seen = now
	s.turn++
	c.proven = s.turn
	s.keepLocked(c)
}
