package warm

import (
	"context"
	"fmt"
	"time"
)

// Shutdown stops lending and waits until all borrowed connections are returned and
// closed. If ctx ends first, it closes the borrowed connections that are left, and
// returns an error with their number.
func (s *Store) Shutdown(ctx context.Context) error {
	s.refuse()
	var err error
	if !s.waitGone(ctx) {
		if n := s.kill(); n > 0 {
			err = fmt.Errorf("rediscache: shutdown: %d connections were still borrowed: %w", n, ctx.Err())
		}
	}
	s.finish()
	return err
}

// Close closes all connections at once, also borrowed ones, and waits for all goroutines
// of the store.
func (s *Store) Close() {
	s.refuse()
	s.kill()
	s.finish()
}

// finish waits until nothing of the store is left.
func (s *Store) finish() {
	s.waitGone(context.Background())
	if s.events != nil { // no event comes after the last connection
		s.ended.Do(func() { close(s.events) })
	}
	s.wg.Wait()
}

// refuse closes the store: it ends all loans to come, waits, dials and probes.
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
	for _, t := range []*time.Timer{s.renewal.timer, s.renewal.settle} {
		if t != nil {
			t.Stop()
		}
	}
	s.failWaitersLocked(ErrClosed)
	s.keepIdleLocked(func(*Conn) reason { return closedShutdown })
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

// kill closes the borrowed connections, and returns how many there were.
func (s *Store) kill() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.all {
		if c.phase == lent {
			s.inUse--
			s.discardLocked(c, closedShutdown)
			n++
		}
	}
	return n
}

// waitGone waits until no connection is open and no dial is in flight, and reports false
// if ctx ends first. After refuse nothing raises open, so it stays zero.
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
