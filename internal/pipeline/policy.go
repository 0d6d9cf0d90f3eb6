package pipeline

import (
	"math"
	"time"
)

// When a lane is opened, and when it returns its connection. A pool is shared
// with others, and so is each of its connections in turn.
const (
	// A lane had no call for so long: its socket is worth a look before the next
	// call, and a pool that has no other connection gets this one.
	quietTicks = 2
	// A lane had no call for a second: it ends, so that an idle cache holds nothing.
	idleTicks = 100
	// A lane ends after five seconds, so that the pool's rules reach its
	// connection: those that the connection does not report.
	heldTicks = 500
	// The connection of a foreign pool reports nothing. It may outlive its lifetime
	// by a second, so a lane ends after half of one.
	foreignTicks = 50
	// A lane ends where somebody may wait whom nobody sees. Others are to be served
	// within 50 ms: that is this time, twice where a lane was first in the pool's
	// queue, and the calls that are in flight then.
	briefTicks = 2
	// After the pool had no connection to spare, no lane is opened beside another
	// for a second, and calls are gathered.
	tightTicks = 100

	// gap is how long a lane leaves a connection to others that nobody can wait
	// for: those ask again and again, once in a few milliseconds.
	gap = 5 * time.Millisecond

	// refusedFor is how long a borrower asks a pool that refuses again while
	// others have all connections: they use one for milliseconds as a rule.
	refusedFor = 100 * time.Millisecond
)

// spare returns how many connections the pool can lend without a wait. What
// nobody knows of a foreign pool is none.
func (p *Pipeline) spare() int {
	switch {
	case p.cfg.Spare != nil:
		return p.cfg.Spare()
	case p.cfg.Foreign:
		return 0
	}
	return math.MaxInt
}

// mayOpenLocked reports whether one more lane may be opened. A lane beside
// another leaves the pool a connection for others, and is not opened while the
// connection that it lacks may be that of a lane that ends. Lanes that end count
// once: with a server that does not answer they end one after the other.
func (p *Pipeline) mayOpenLocked() bool {
	lanes := *p.lanes.Load()
	taking := 0
	for _, l := range lanes {
		switch l.life.Load() {
		case leasing:
			return false
		case open:
			taking++
		case broken:
			if !p.cfg.Foreign { // the store hears in a moment that it broke, and then doubts what it would lend
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
		p.refused.Store(now + tightTicks)
		return false
	}
	return true
}

// due is what the clock does with a lane.
type due uint8

const (
	stays    due = iota
	finishes     // and returns its connection
	breaks
)

// dueLocked decides over a lane that has a connection.
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
		p.gather(tightTicks)
		return finishes
	case p.cfg.Foreign && held >= foreignTicks, l.scarce && idle >= quietTicks:
		return finishes
	case l.scarce && p.cfg.Foreign && held >= briefTicks:
		return finishes
	case p.stallTicks == 0 && p.timeoutTicks > 0 && silent > p.timeoutTicks: // the time of its first call is over
		return finishes
	}
	return stays
}

// restLocked ends a lane without calls at once where others wait for its
// connection, or may wait, so that a cache that is not in use holds none. Where
// nothing can be seen of the pool the lane keeps the connection for a moment, as
// the pool may have plenty.
func (l *lane) restLocked() {
	if !l.scarce || l.life.Load() != open || l.load() > 0 || l.writing {
		return
	}
	if l.p.cfg.Foreign && l.p.cfg.Spare != nil || l.wire.wanted() {
		l.ageLocked(finishing)
	}
}

// abandonTicks is how long a lane without a timeout of its own goes on without
// a reply: it takes calls until the time of the first one is over, and then
// waits until that of the last one is.
func (p *Pipeline) abandonTicks() int64 {
	if p.stallTicks > 0 || p.timeoutTicks == 0 {
		return math.MaxInt64
	}
	return 2 * p.timeoutTicks
}

// laneTimeout is how long redigo waits for a reply on a lane: zero leaves it to
// the connection. Where nothing can cut the connection it is what abandonTicks is.
func (p *Pipeline) laneTimeout() time.Duration {
	if p.cfg.ReadTimeout == 0 && p.cfg.Timeout > 0 && p.cfg.Foreign {
		return 2*p.cfg.Timeout + 4*tick
	}
	return p.cfg.ReadTimeout
}
