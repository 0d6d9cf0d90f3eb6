package pipeline

import (
	"slices"

	"github.com/rediscache/rediscache/internal/resp"
)

// directReader is a wire from which a caller can read its own reply.
type directReader interface {
	fill() error
	whole(replies int) bool
	interrupt()
	resume()
}

// maxDirect is the most calls of a lone caller whose replies the caller reads itself.
const maxDirect = 2

// onlyFrom reports whether the claimed calls are the first calls of ownCalls, and at most maxDirect.
func onlyFrom(claimed []entry, ownCalls []*Call) bool {
	if len(claimed) > min(len(ownCalls), maxDirect) {
		return false
	}
	for i, e := range claimed {
		if e.call != ownCalls[i] {
			return false
		}
	}
	return true
}

// mayReadDirectly reports whether the writer, which has claimed only its own calls, may read
// their replies itself: if the lane has no other calls. Then it ends the writer.
func (l *lane) mayReadDirectly() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.direct == nil || l.err != nil || l.reader != parked || len(l.flight) > 0 || len(l.queue) > 0 {
		return false
	}
	l.writer, l.claims, l.reader, l.replacedAt = nobody, nil, replaced, l.p.clock.Load()
	return true
}

// readDirectly receives the replies to the caller's own calls, and returns how many it
// received. If a reply is not complete, or the clock interrupts the caller, the reader
// receives the rest. The reader also receives the replies to calls that joined meanwhile.
func (l *lane) readDirectly(mine []entry) (answered int) {
	var replies [maxDirect]resp.Reply
	var wrong error
	for answered < len(mine) && l.direct.fill() == nil && l.direct.whole(mine[answered].replies()) {
		if replies[answered], wrong = mine[answered].receive(l.wire); wrong != nil {
			break
		}
		answered++
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reader == interrupted {
		l.direct.resume()
	}
	l.reader = parked
	for i, e := range mine[:answered] {
		e.call.reply, e.call.err = replies[i], nil
		e.move(claimed, ended) // without done, because the caller itself is here
		l.judgeLocked(e.shape, replies[i])
	}
	l.out.Add(int64(answered))
	l.flight = slices.Insert(l.flight, 0, mine[answered:]...)
	l.solo = len(l.flight) == 0 && l.writer == nobody
	switch {
	case wrong != nil:
		l.breakLocked(wrong)
	case l.solo && l.wire.extra():
		l.breakLocked(errExtra)
	case l.life.Load() == suspected:
		goElsewhere(mine[answered:], errSuspended)
	case l.solo:
		l.restLocked()
	}
	if len(l.flight) > 0 || !l.takes() {
		l.wakeLocked()
	}
	return answered
}
