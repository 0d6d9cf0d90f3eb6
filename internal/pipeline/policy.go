package pipeline

import (
	"math"
	"time"
)

// These times decide when a lane is opened and when it returns its connection, because
// other borrowers share the pool. A tick is 10 ms.
const (
	// After 20 ms without a call, the lane checks its socket before the next call. If
	// the pool has no other connection to lend, the lane returns this one.
	quietTicks = 2
	// After a second without a call the lane ends, so that an idle cache holds no
	// connection.
	idleTicks = 100
	// After five seconds the lane ends in any case, because the pool may have rules for
	// its connections that a connection does not report.
	heldTicks = 500
	// After half a second a lane on a foreign pool ends. Its connection reports
	// nothing, and must not outlive its lifetime by more than a second.
	foreignTicks = 50
	// After 20 ms a lane on a foreign pool ends if the pool has no other connection,
	// because other borrowers may wait unseen. They should be served within 50 ms: this
	// time, twice if another lane was first in the pool's queue, and the time of the
	// calls in flight.
	briefTicks = 2
	// After the pool had no connection to spare, for a second no lane is opened beside
	// another, and one lane gets all calls.
	tightTicks = 100

	// After a batch whose calls and replies have largeEnough bytes each, calls are spread
	// over the lanes for 50 ms.
	largeEnough = 2 << 10
	spreadTicks = 5

	// gap is how long lanes do not borrow after a return, if borrowers cannot wait in
	// the queue of the pool: such borrowers retry every few milliseconds.
	gap = 5 * time.Millisecond

	// refusedFor is how long a borrower retries after the pool refused it while others
	// hold all connections: most borrowers need a connection for milliseconds.
	refusedFor = 100 * time.Millisecond
)

// spare returns how many connections the pool can lend without a wait. For a foreign
// pool without Spare it is zero.
func (p *Pipeline) spare() int {
	switch {
	case p.cfg.Spare != nil:
		return p.cfg.Spare()
	case p.cfg.Foreign:
		return 0
	}
	return math.MaxInt
}

// mayOpenLocked reports whether one more lane may be opened. A lane beside another must
// leave a connection in the pool for others. All lanes that end count as one lane, so at
// most Lanes+1 exist: with a server that does not answer they end one after the other.
func (p *Pipeline) mayOpenLocked() bool {
	lanes := *p.lanes.Load()
	taking := 0
	for _, l := range lanes {
		switch l.life.Load() {
		case borrowing:
			return false
		case open:
			taking++
		case broken:
			if !p.cfg.Foreign { // wait until the store knows that it broke, and checks its idle connections
				return false
			}
		}
	}
	now := p.clock.Load()
	switch {
	case len(lanes) > p.cfg.Lanes, taking >= p.cfg.Lanes:
		return false
	case taking == 0:
		return true
	case now < p.refused.Load():
		return false
	case p.cfg.Spare != nil && p.cfg.Spare() < 2:
		p.tighten()
		return false
	}
	return true
}

// due is what the clock must do with a lane.
type due uint8

const (
	stays    due = iota
	finishes     // ends in order and returns its connection
	breaks
)

// dueLocked decides what the clock does with a lane that has a connection.
func (l *lane) dueLocked(now int64) due {
	p := l.p
	silent, idle, held := now-l.at, now-l.active, now-l.opened
	switch {
	case p.stallTicks > 0 && silent > p.stallTicks, silent > p.abandonTicks():
		return breaks
	case l.life.Load() != open:
		return stays
	case idle >= idleTicks, held >= heldTicks:
		return finishes
	case l.wire.wanted():
		p.tighten()
		return finishes
	case p.cfg.Foreign && held >= foreignTicks, l.scarce && idle >= quietTicks:
		return finishes
	case l.scarce && p.cfg.Foreign && held >= briefTicks:
		return finishes
	case p.stallTicks == 0 && p.timeoutTicks > 0 && silent > p.timeoutTicks: // the first call in flight has timed out
		return finishes
	}
	return stays
}

// restLocked ends a scarce lane without calls at once, if others wait for its connection
// or may wait, so that a cache that is not in use holds none. If the pool reports
// nothing, the lane keeps the connection for briefTicks, because the pool may have more.
func (l *lane) restLocked() {
	if !l.scarce || l.life.Load() != open || l.load() > 0 || l.writer != nobody {
		return
	}
	if l.p.cfg.Foreign && l.p.cfg.Spare != nil || l.wire.wanted() {
		l.ageLocked(finishing)
	}
}

// abandonTicks is how long a lane without a read timeout waits for any reply: it takes
// calls until the first one times out, and then waits until the last one times out.
func (p *Pipeline) abandonTicks() int64 {
	if p.stallTicks > 0 || p.timeoutTicks == 0 {
		return math.MaxInt64
	}
	return 2 * p.timeoutTicks
}

// laneTimeout is how long redigo waits for a reply on a lane. With zero only the
// connection's own timeout applies. A foreign connection cannot be cut, so without a
// read timeout laneTimeout is a little more than abandonTicks.
func (p *Pipeline) laneTimeout() time.Duration {
	if p.cfg.ReadTimeout == 0 && p.cfg.Timeout > 0 && p.cfg.Foreign {
		return 2*p.cfg.Timeout + 4*tick
	}
	return p.cfg.ReadTimeout
}
