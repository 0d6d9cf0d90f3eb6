package pipeline

import "math"

// Load is how many calls the lanes have that have not ended.
func (p *Pipeline) Load() (n int) {
	for _, l := range *p.lanes.Load() {
		n += int(l.load())
	}
	return n
}

// Finish lets the lanes end in order, as after five seconds.
func (p *Pipeline) Finish() { p.finishAll(false) }

// Waiting is how many callers wait for room.
func (p *Pipeline) Waiting() int { return int(p.waiting.Load()) }

// Lanes is how many there are.
func (p *Pipeline) Lanes() int { return len(*p.lanes.Load()) }

// Finishing reports that no lane takes calls any more.
func (p *Pipeline) Finishing() bool {
	for _, l := range *p.lanes.Load() {
		if l.takes() {
			return false
		}
	}
	return true
}

// AfterWrite makes the writer of the next batch on the only lane call f after the write, as
// if it lost the processor then. No call may be queued.
func (p *Pipeline) AfterWrite(f func()) {
	l := (*p.lanes.Load())[0]
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.wire.(*socketWire)
	try := w.try
	w.try = func(b []byte) (int, error) {
		w.try = try
		n, err := try(b)
		f()
		return n, err
	}
}

// Spread makes calls go to the lane with the fewest calls, as after large replies.
func (p *Pipeline) Spread() { p.spread.Store(math.MaxInt64) }

// Resting reports that the reader of the only lane waits, and has nothing to receive.
func (p *Pipeline) Resting() bool {
	l := (*p.lanes.Load())[0]
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reader == parked && len(l.flight) == 0 && len(l.batch) == int(l.pos.Load())
}

// Bounced is c after it came behind a large reply n times.
func Bounced(c *Call, n int) *Call {
	c.heldUp = n
	return c
}

// Refused reports that no second lane is opened for now.
func (p *Pipeline) Refused() bool { return p.refused.Load() > 0 }

// Receiving reports that the only lane's reader has something to receive, and nobody writes.
func (p *Pipeline) Receiving() bool {
	l := (*p.lanes.Load())[0]
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.batch) > int(l.pos.Load()) && l.writer == nobody && l.reader < replaced
}

// Slow reports that a large reply is arriving in the only lane, and that the calls behind it that
// were written before are to go elsewhere.
func (p *Pipeline) Slow() bool {
	lanes := *p.lanes.Load()
	if len(lanes) == 0 {
		return false
	}
	lanes[0].mu.Lock()
	defer lanes[0].mu.Unlock()
	return lanes[0].slow.Load()
}

// Writing reports that the writer of the only lane has claimed calls.
func (p *Pipeline) Writing() bool {
	l := (*p.lanes.Load())[0]
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.claims) > 0
}
