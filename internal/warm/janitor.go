package warm

import "time"

// janitor checks the idle connections in the background. It ends when the store closes.
func (s *Store) janitor() {
	s.everySweep(func() bool {
		s.sweep()
		return false
	})
}

// prober sends a PING to connections that were silent for long, one after another. It is
// a goroutine of its own, so that a slow PING does not delay the janitor.
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

// sweep closes the idle connections that are dead, too old, or above the minimum and
// idle for too long, the least recently used first.
func (s *Store) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	ran := time.Now()
	if s.pulse.Missed(ran) {
		s.resumeLocked(ran)
	}
	s.pulse.Beat(ran)
	now := ran.Sub(s.base)
	spare := len(s.idle) + s.probing
	s.keepIdleLocked(func(c *Conn) reason {
		if c.used {
			c.used = false
			c.idleSince, c.seen = now, now
		}
		why := s.staleLocked(c, now, spare)
		if why != fit {
			spare--
		}
		return why
	})
	s.fillLocked()
}

// staleLocked returns the reason to close an idle connection. Dead does not block, so it may be called under the lock.
func (s *Store) staleLocked(c *Conn, now time.Duration, spare int) reason {
	switch idle := s.cfg.IdleTimeout; {
	case c.Dead():
		return closedBroken
	case c.expired(now):
		return closedLifetime
	case idle > 0 && spare > s.cfg.MinIdle && now-c.idleSince >= idle:
		return closedIdle
	}
	return fit
}

// probeOne probes one connection that was silent for long, and reports whether there was
// one.
func (s *Store) probeOne() bool {
	answered := s.probeCold()
	if answered == nil {
		return false
	}
	<-answered
	return true
}

// probeCold begins to probe the first idle connection that was silent for
// HealthCheckAfter. It returns nil if there is none.
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

// startProbeLocked sends a PING to a connection that no count includes. The channel is
// closed when the probe is over, and the connection is idle, lent or closing.
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

// probeIsLate marks a probe as overdue, so that waiters get a dial instead. It does
// nothing if this probe is over: then the connection was proven after since.
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

// probe sends a PING, which may take as long as a dial. The connection keeps its place
// among the idle connections, because only a loan moves it. The connection may be the
// user's code and call runtime.Goexit.
func (s *Store) probe(c *Conn) {
	timer := time.AfterFunc(s.cfg.DialTimeout, c.Cut) // for a connection without timeouts
	err := errExited
	defer func() {
		if c.verdict == unproven {
			c.verdict = good
		}
		_ = c.noteError(err)
		if !timer.Stop() {
			c.Retire() // the timer may cut the connection after it is lent
		}
		s.endProbe(c)
	}()
	err = c.ping(s.cfg.DialTimeout)
}

func (s *Store) endProbe(c *Conn) {
	now := s.now()
	if c.blind() {
		c.soundAt = now // otherwise sound looks at the socket, which also shows what came after the answer
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
	s.fillLocked() // a suspect that is idle again does not count for the minimum
}

// resumeLocked makes all idle connections answer a PING after a suspension of the
// process, and closes dead ones. A NAT or a server may have forgotten the connections
// meanwhile, and a look at the sockets does not show that.
func (s *Store) resumeLocked(now time.Time) {
	s.pulse.Beat(now)
	s.doubted = s.turn
	s.doubtOlderLocked(s.doubted, s.cfg.MaxActive)
	s.fillLocked()
	s.failWaitersIfDownLocked()
}
