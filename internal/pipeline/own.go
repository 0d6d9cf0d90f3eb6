package pipeline

import (
	"slices"

	"github.com/rediscache/rediscache/internal/resp"
)

// ownReader is what a wire must do for a caller that reads its own reply.
type ownReader interface {
	fill() error
	whole() bool
	kick()
	unkick()
}

// maxOwn is how many calls of a caller that is alone it reads the replies to.
const maxOwn = 2

// areOwn reports that what was claimed are a caller's first calls, and few.
func areOwn(claimed []entry, own []*Call) bool {
	if len(claimed) > min(len(own), maxOwn) {
		return false
	}
	for i, e := range claimed {
		if e.call != own[i] {
			return false
		}
	}
	return true
}

// mayReadOwn ends the writer, whose own calls are all that it has claimed, if
// nobody else has any.
func (l *lane) mayReadOwn() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.alone == nil || l.err != nil || l.own || !l.parked || len(l.flight) > 0 || len(l.queue) > 0 {
		return false
	}
	l.writing, l.claims, l.own, l.ownAt = false, nil, true, l.p.clock.Load()
	return true
}

// readOwn receives the replies to the caller's own calls, and returns to how
// many. When more of a reply is to come than is there, or the clock sends the
// caller off, the rest is the reader's. Other calls, which may have joined
// meanwhile, are the reader's anyway.
func (l *lane) readOwn(mine []entry) (answered int) {
	var replies [maxOwn]resp.Reply
	var wrong error
	for answered < len(mine) && l.alone.fill() == nil && l.alone.whole() {
		var err error
		if replies[answered], err = l.wire.receive(); err != nil {
			break
		}
		if wrong = mine[answered].check(replies[answered]); wrong != nil {
			break
		}
		answered++
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.own = false
	l.unkickLocked()
	for i, e := range mine[:answered] {
		e.call.reply, e.call.err = replies[i], nil
		e.move(claimed, ended) // nobody else knows of it
		l.judgeLocked(replies[i])
	}
	l.out.Add(int64(answered))
	l.flight = slices.Insert(l.flight, 0, mine[answered:]...)
	l.solo = len(l.flight) == 0 && !l.writing
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
