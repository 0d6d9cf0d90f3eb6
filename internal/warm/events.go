package warm

import "time"

// Event is documented as rediscache.PoolEvent.
type Event struct {
	Kind   EventKind
	Err    error
	After  time.Duration
	Reason string
}

// EventKind is the kind of an Event.
type EventKind uint8

// The kinds of events.
const (
	Down EventKind = iota
	Up
	ConnClosed
)

// reason is why a connection is closed.
type reason uint8

const (
	fit reason = iota // it is not closed
	closedIdle
	closedLifetime
	closedBroken
	closedState
	closedShutdown
)

// countClosedLocked counts a connection that is being closed, and reports it.
func (s *Store) countClosedLocked(why reason) {
	var count *int64
	var text string
	switch closed := &s.stats.Closed; why {
	case closedIdle:
		count, text = &closed.Idle, "idle"
	case closedLifetime:
		count, text = &closed.Lifetime, "lifetime"
	case closedBroken:
		count, text = &closed.Broken, "broken"
	case closedState:
		count, text = &closed.State, "state"
	case closedShutdown:
		count, text = &closed.Shutdown, "shutdown"
	case fit:
		return
	}
	*count++
	s.emitLocked(Event{Kind: ConnClosed, Reason: text})
}

// maxEvents is how many events wait for an observer that is slow. Later ones are dropped,
// so that the observer cannot hold up the store.
const maxEvents = 1024

// emitLocked hands an event to the reporter. Events are emitted under the lock, so they
// have the order in which the store changed.
func (s *Store) emitLocked(e Event) {
	select {
	case s.events <- e:
	default: // also if nobody observes, because events is nil
	}
}

// report calls the observer until the store has ended.
func (s *Store) report() {
	for e := range s.events {
		s.observe(e)
	}
}

// observe calls the observer, which is the user's code. No caller could recover from its
// panic, which would end the process, so observe drops it.
func (s *Store) observe(e Event) {
	defer func() { _ = recover() }()
	s.cfg.Observe(e)
}
