package warm

import "time"

// janitor looks after the idle connections while nobody asks. It ends when
// the store closes.
func (s *Store) janitor() {
	s.everySweep(func() bool {
		s.sweep()
		return false
	})
}

// prober has cold connections answer, one after another. A connection that does
// not answer must not hold up the janitor.
func (s *Store) prober() { s.everySweep(s.probeOne) }

// everySweep calls do every sweepEvery until the store closes, and again at once
// while do returns true.
func (s *Store) everySweep(do func() (again bool)) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
			for next := s.now() + sweepEvery; do() && s.now() < next; {
			}
		}
	}
}

// sweep closes the idle connections that are dead, too old, or above the
// floor and not wanted for long, the least recently used first.
func (s *Store) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	ran := time.Now()
	if s.pulse.missed(ran) {
		s.resumeLocked(ran)
	}
	s.pulse.beat(ran)
	now := ran.Sub(s.base)
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
	answered := s.probeCold()
	if answered == nil {
		return false
	}
	<-answered
	return true
}

// probeCold begins to probe the connection that was silent for longest. It
// returns nil where none was silent for long.
func (s *Store) probeCold() <-chan struct{} {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cfg.HealthCheckAfter == 0 || s.closed {
		return nil
	}
	for i, c := range s.idle {
		if now-c.seen >= s.cfg.HealthCheckAfter {
			return s.startProbeLocked(s.takeIdleLocked(i))
		}
	}
	return nil
}

// startProbeLocked has a connection that is counted nowhere answer a PING. The
// channel is closed when the connection is idle, lent or being closed again.
func (s *Store) startProbeLocked(c *Conn) <-chan struct{} {
	s.probing++
	c.phase = probed
	since, due := c.proven, time.Now().Add(patience)
	late := time.AfterFunc(patience, func() {
		if more := lost(due, patience); more > 0 {
			time.AfterFunc(more, func() { s.probeIsLate(c, since) })
			return
		}
		s.probeIsLate(c, since)
	})
	done := make(chan struct{})
	s.wg.Go(func() {
		defer close(done)
		defer late.Stop()
		s.probe(c)
	})
	return done
}

// probeIsLate lets dials take the place of a probe that may never be answered,
// if the connection was not proven since.
func (s *Store) probeIsLate(c *Conn, since int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.phase == probed && c.proven == since {
		c.phase = overdue
		s.overdue++
		s.fillLocked()
		s.failWaitersIfDownLocked()
	}
}

// probe sends a PING, which may take as long as a dial: that is what a
// connection without an answer costs. Its place among the idle ones stays: only
// borrowers make it warmer. The connection may be the user's, and call
// runtime.Goexit.
func (s *Store) probe(c *Conn) {
	timer := time.AfterFunc(s.cfg.DialTimeout, c.Cut) // for those who know no timeouts
	err := errExited
	defer func() {
		if c.verdict == unproven {
			c.verdict = good
		}
		_ = c.noteError(err)
		if !timer.Stop() {
			c.Retire() // it may be cut once it is lent
		}
		s.endProbe(c)
	}()
	err = c.ping(s.cfg.DialTimeout)
}

func (s *Store) endProbe(c *Conn) {
	now := s.now()
	if c.blind() {
		c.soundAt = now // else the borrower looks, which is cheap and sees what came after the answer
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probing--
	switch c.phase {
	case givenUp:
		s.cutting--
		s.overdue--
		c.Retire()
	case overdue:
		s.overdue--
	}
	c.seen = now
	s.turn++
	c.proven = s.turn
	s.keepLocked(c)
	s.fillLocked() // a suspect that is idle again is no spare connection
}

// resumeLocked puts all idle connections in doubt after a suspension of the
// process. A NAT or a server may have forgotten the connections meanwhile, and a
// look at the sockets does not show that.
func (s *Store) resumeLocked(now time.Time) {
	s.pulse.beat(now)
	s.doubted = s.turn
	s.doubtOlderLocked(s.doubted, s.cfg.MaxActive)
	s.fillLocked()
	s.failWaitersIfDownLocked()
}
