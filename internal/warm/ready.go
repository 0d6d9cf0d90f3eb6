package warm

import (
	"context"
	"fmt"
)

// Ready waits until the floor stands: MinIdle spare connections have
// answered, or as many as the maximum leaves. err matches that of ctx if ctx ends
// first; then failure is the cause of the last dial if that failed, and otherwise nil.
func (s *Store) Ready(ctx context.Context) (failure, err error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, ErrClosed
		}
		spare := len(s.idle) + s.probing
		ready := spare >= s.cfg.MinIdle || spare+s.inUse == s.cfg.MaxActive
		failure, changed := s.failure, s.changedLocked()
		s.mu.Unlock()
		if ready {
			return nil, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return failure, fmt.Errorf("rediscache: pool not ready: %w", ctx.Err())
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
