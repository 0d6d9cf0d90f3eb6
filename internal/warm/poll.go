package warm

import (
	"sync/atomic"
	"time"
)

// A read that finds no bytes parks its goroutine, and their arrival wakes it. On a virtual machine with
// an idle processor that takes tens of microseconds, often longer than Redis needs for its reply. So a
// read may poll: it looks at its socket again and again before it parks, and lets other goroutines run
// between two looks.
//
// That must not cost more than it saves. Two signs say that it would:
//
//   - The bytes came after the window, because the server is far or busy. Each socket counts these misses
//     itself. If more than one poll of five misses, its next reads park at once, and twice as many each time.
//   - Two looks were far apart, because other programs want the processor. A thread that polls uses up the
//     time that the kernel grants it, and must then wait, while a parked thread is woken ahead of others.
//     So no socket of the pool polls for a while, and twice as long if the sign comes back soon.
const (
	farApart = time.Millisecond // more than Redis or the other goroutines take between two looks

	missCosts, mostDebt      = 4, 32   // hits
	fewestParked, mostParked = 8, 1024 // reads

	shortestPause, longestPause = 10 * time.Millisecond, 2 * time.Second
)

// Poll says for how long the sockets of a pool poll, and whether they do so now. Its methods are safe for
// concurrent use. A nil *Poll never polls.
type Poll struct {
	window time.Duration // immutable
	pause  atomic.Int64  // a time.Duration, the last pause
	until  atomic.Int64  // when it ends, as a time.Duration since epoch
}

// NewPoll returns a Poll with a window, and nil if the window is zero.
func NewPoll(window time.Duration) *Poll {
	if window <= 0 {
		return nil
	}
	return &Poll{window: window}
}

// pays reports whether sockets may poll now.
func (p *Poll) pays(now time.Time) bool { return int64(now.Sub(epoch)) >= p.until.Load() }

// contended is called when two looks were far apart.
func (p *Poll) contended(now time.Time) {
	pause, until, at := p.pause.Load(), p.until.Load(), int64(now.Sub(epoch))
	switch {
	case at < until: // another socket has seen it too
		return
	case pause == 0 || at-until > 2*pause:
		pause = int64(shortestPause)
	default:
		pause = min(2*pause, int64(longestPause))
	}
	if p.until.CompareAndSwap(until, at+pause) {
		p.pause.Store(pause)
	}
}

// turns decides which reads of a socket poll. It is used by the goroutine that reads. A miss adds to a
// debt, and a hit takes from it, so that a socket polls as long as at least four of five polls are hits.
type turns struct {
	debt   int // at most mostDebt
	parked int // how many reads park when the debt grows too large
	left   int // how many of them are to come
}

// polls reports whether the next read polls.
func (t *turns) polls() bool {
	if t.left > 0 {
		t.left--
		return false
	}
	return true
}

// hit is called when the bytes came within the window.
func (t *turns) hit() {
	t.debt = max(t.debt-1, 0)
	t.parked /= 2
}

// missed is called when they did not.
func (t *turns) missed() {
	if t.debt += missCosts; t.debt > mostDebt {
		t.debt = mostDebt
		t.parked = min(max(2*t.parked, fewestParked), mostParked)
		t.left = t.parked
	}
}
