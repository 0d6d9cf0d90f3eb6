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

// mayReadOwn ends the writer if its own call is all that there is.
func (l *lane) mayReadOwn(claimed int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.alone == nil || l.err != nil || l.own || !l.parked ||
		claimed > 1 || len(l.flight) > 0 || len(l.queue) > 0 {
		return false
	}
	l.writing, l.own, l.ownAt = false, true, l.p.clock.Load()
	return true
}

// readOwn receives the reply to the caller's own call, unless more is to come
// or the clock sends it off: then the call is the reader's. The others, which
// may have joined meanwhile, are the reader's anyway.
func (l *lane) readOwn(e entry) (answered bool) {
	var reply resp.Reply
	if l.alone.fill() == nil && l.alone.whole() {
		var err error
		reply, err = l.wire.receive()
		answered = err == nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.own = false
	l.solo = answered && len(l.flight) == 0 && !l.writing
	if l.kicked {
		l.kicked = false
		l.alone.unkick()
	}
	if !answered {
		l.flight = slices.Insert(l.flight, 0, e)
		l.wakeLocked()
		return false
	}
	l.out.Add(1)
	e.call.reply, e.call.err = reply, nil
	e.move(claimed, ended) // nobody else knows of it
	l.judgeLocked(reply)
	if len(l.flight) == 0 && !l.writing && l.wire.extra() {
		l.breakLocked(errExtra)
	}
	if len(l.flight) > 0 || l.over.Load() {
		l.wakeLocked()
	}
	return true
}
