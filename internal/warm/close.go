package warm

import (
	"context"
	"fmt"
)

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
	if s.renewal.timer != nil {
		s.renewal.timer.Stop()
	}
	s.failWaitersLocked(ErrClosed)
	s.keepIdleLocked(func(*Conn) *int64 { return &s.stats.Closed.Shutdown })
	var cut []*Conn
	for c := range s.all {
		if c.phase == probed || c.phase == overdue || c.phase == givenUp {
			cut = append(cut, c)
		}
	}
	s.notifyLocked()
	s.mu.Unlock()
	s.stopDials()
	for _, c := range cut {
		c.Cut()
	}
}

// kill closes the lent connections under their borrowers, and counts them.
func (s *Store) kill() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.all {
		if c.phase == lent {
			s.inUse--
			s.discardLocked(c, &s.stats.Closed.Shutdown)
			n++
		}
	}
	return n
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
