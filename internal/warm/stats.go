package warm

import "time"

// Stats is documented as rediscache.PoolStats.
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

// Stats returns the current counts.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Open, st.Idle, st.InUse, st.Waiting = s.openLocked(), len(s.idle)+s.probing, s.inUse, s.waiters.Len()
	return st
}

// Limits returns MinIdle and MaxActive of the configuration.
func (s *Store) Limits() (minIdle, maxActive int) { return s.cfg.MinIdle, s.cfg.MaxActive }

// Spare returns how many connections the store can lend before a borrower has to wait
// for the return of a connection.
func (s *Store) Spare() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg.MaxActive - s.inUse
}
