package pipeline

import (
	"errors"
	"runtime"
)

// enqueue takes all calls or, if the lane is over or full, none.
func (l *lane) enqueue(calls []*Call) seat {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, load := l.p.clock.Load(), l.load()
	if !l.takes() || load >= maxQueued {
		return seat{}
	}
	if load == 0 && !l.writing && l.wire != nil {
		switch {
		case now-l.active > quietTicks && !l.wire.quiet():
			l.breakLocked(errQuiet)
			return seat{}
		case l.p.suspended(): // the clock has not seen it yet
			l.suspectLocked()
			return seat{}
		}
	}
	l.active = now
	for _, c := range calls {
		l.queue = append(l.queue, c.queue(now))
	}
	l.in.Add(int64(len(calls)))
	s := seat{lane: l}
	switch {
	case l.gathers && len(l.queue) >= batchOf(load):
		l.turn++
		l.gathers = false
		s.writes = true
	case l.writing || l.wire == nil:
	default:
		l.writing = true
		l.gathers = !l.solo || load > 0
		s.writes, s.gathers = true, l.gathers
	}
	s.turn = l.turn
	return s
}

// batchOf is how many calls are written without waiting for more, while so many
// are under way: enough of them to be worth a system call on either side, and
// few enough that both sides work at the same time.
func batchOf(load int64) int { return int(min(max(load/4, minBatch), maxBatch)) }

const (
	minBatch = 16
	maxBatch = 64

	smallCall = 2 << 10 // bytes both ways
)

// write is the writer. It lets callers that are ready join, and goes on until
// the queue is empty. A caller that writes for others than its own calls stops
// once the first of those has ended, or where it might have to wait for the
// server: then a goroutine goes on, for which the lane waits as writing stays
// set. As many of its own calls as it returns have ended without a word on their
// channels.
func (l *lane) write(own []*Call, gather bool, turn int) (answered int) {
	for ; ; gather = true {
		if gather { // Gosched also wakes an idle processor, which a lone caller pays for
			runtime.Gosched()
		}
		w, mine, waits := l.claim(turn)
		if len(mine) == 0 {
			return 0
		}
		if waits && own != nil {
			go l.writeOn(turn, func() bool {
				announced, _, err := l.put(w, mine)
				return l.flushed(w, mine, announced, err)
			})
			return 0
		}
		announced, whole, err := l.put(w, mine)
		alone := announced == 0 && areOwn(mine, own) // those that the reader has are its to receive
		var first [maxOwn]entry                      // mine is the next writer's once this one has left
		claims := copy(first[:], mine)
		switch {
		case err == nil && !whole:
			l.announce(mine[announced:])
			go l.writeOn(turn, func() bool { return l.flushed(w, mine, len(mine), w.flushRest()) })
			return 0
		case err == nil && alone && l.mayReadOwn():
			return l.readOwn(first[:claims])
		case !l.flushed(w, mine, announced, err):
			return 0
		case len(own) > 0 && !own[0].in(queued) && !own[0].in(claimed):
			go l.write(nil, true, turn)
			return 0
		}
	}
}

// writeOn is a writer that is no caller, which first does what one has left.
func (l *lane) writeOn(turn int, rest func() bool) {
	if rest() {
		l.write(nil, true, turn)
	}
}

// put writes claimed calls, as much as goes without waiting where the wire can
// tell. When they are many bytes the reader gets the first of them while the
// others are written, or neither side might read while both write.
// A connection of another maker may panic or end the goroutine in it, after
// which nobody would know that the writer is gone: the lane breaks.
func (l *lane) put(w wire, mine []entry) (announced int, whole bool, err error) {
	err = errExited
	defer func() {
		if errors.Is(err, errExited) {
			l.flushed(w, mine, announced, err)
		}
	}()
	size := 0
	for i, e := range mine {
		if err := w.put(e.call); err != nil {
			return announced, false, err
		}
		if size += e.size; size > maxUnannounced {
			l.announce(mine[announced : i+1])
			announced, size = i+1, 0
		}
	}
	whole, err = w.flush()
	return announced, whole, err
}

// claim takes the calls of the queue that were not left. If there is none the
// writer leaves; one that has lost its turn has left already. If waits is true
// then to write them may take until the server has read what came before.
func (l *lane) claim(turn int) (w wire, mine []entry, waits bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if turn != l.turn {
		return nil, nil, false
	}
	l.gathers = false
	if l.err != nil {
		l.leaveLocked()
		return nil, nil, false
	}
	mine = l.queue[:0]
	for _, e := range l.queue {
		if e.move(queued, claimed) {
			mine = append(mine, e)
		}
	}
	if left := len(l.queue) - len(mine); left > 0 {
		l.in.Add(-int64(left))
		l.p.room()
	}
	l.queue, l.spare, l.claims = l.spare[:0], mine, mine
	if len(mine) == 0 {
		l.leaveLocked()
	}
	l.solo = l.solo && len(mine) <= maxOwn
	return l.wire, mine, l.wire.waits() && l.unreadLocked()
}

// unreadLocked reports that the server may have more of claimed calls to read
// than maxUnread.
func (l *lane) unreadLocked() bool {
	n := 0
	for _, entries := range [][]entry{l.batch[l.pos.Load():], l.flight, l.claims} {
		for _, e := range entries {
			if n += e.size; n > maxUnread {
				return true
			}
		}
	}
	return false
}

// maxUnread is how many bytes any socket holds for a server that does not read.
const maxUnread = 16 << 10

// leaveLocked ends the writer. If the lane is over the reader waits for that.
func (l *lane) leaveLocked() {
	l.writing = false
	if !l.takes() {
		l.wakeLocked()
	}
}

// announce hands claimed calls to the reader.
func (l *lane) announce(mine []entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flyLocked(mine)
	l.wakeLocked()
}

// flushed hands claimed calls to the reader, but those that it has already. It
// reports whether the writer goes on.
func (l *lane) flushed(w wire, mine []entry, announced int, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flyLocked(mine[announced:])
	l.claims = nil
	if err != nil {
		l.unsent = unsent(mine, w.written())
		l.breakLocked(err)
	}
	l.writing = l.err == nil && len(l.queue) > 0
	l.gathers = l.writing
	l.wakeLocked()
	return l.writing
}

// unsent counts the calls of which the server has not received the last byte.
func unsent(mine []entry, written int) int {
	for i, e := range mine {
		if written -= e.size; written < 0 {
			return len(mine) - i
		}
	}
	return 0
}
