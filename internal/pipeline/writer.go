package pipeline

import (
	"errors"
	"runtime"
	"time"
)

// enqueue queues all calls or, if the lane is over or full, none of them.
func (l *lane) enqueue(calls []*Call) seat {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, load := l.p.clock.Load(), l.load()
	if !l.takes() || load >= maxQueued {
		return seat{}
	}
	if load == 0 && l.writer == nobody && l.wire != nil {
		switch {
		case now-l.active > quietTicks && !l.wire.quiet():
			l.breakLocked(errQuiet)
			return seat{}
		case l.p.pulse.Missed(time.Now()): // the clock has not noticed the suspension yet
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
	case l.writer == gathering && len(l.queue) >= batchOf(load):
		l.turn++
		l.writer = writing
		s.writes = true
	case l.writer != nobody || l.wire == nil:
	case l.solo && load == 0:
		l.writer = writing
		s.writes = true
	default:
		l.writer = gathering
		s.writes, s.gathers = true, true
	}
	s.turn = l.turn
	return s
}

// batchOf returns how many queued calls are written without waiting for more, while load
// calls are in flight: enough for one system call on either side, and few enough that
// both sides work at the same time.
func batchOf(load int64) int { return int(min(max(load/4, minBatch), maxBatch)) }

const (
	minBatch = 16
	maxBatch = 64
)

// write is the writer. It lets other callers join, and goes on until the queue is empty.
// If a caller is the writer, it stops after the first of its own calls has ended, or
// before it would wait for the server. Then a new goroutine goes on as the same writer,
// so the lane waits for this goroutine. The first answered calls of ownCalls have ended
// without a send on their done channels.
func (l *lane) write(ownCalls []*Call, gather bool, turn int) (answered int) {
	for ; ; gather = true {
		if gather { // not for a lone caller: Gosched also wakes an idle processor, which costs time
			runtime.Gosched()
		}
		w, mine, waits := l.claim(turn)
		if len(mine) == 0 {
			return 0
		}
		if waits && ownCalls != nil {
			go l.writeOn(turn, func() bool {
				announced, _, err := l.put(w, mine)
				return l.flushed(w, mine, announced, err)
			})
			return 0
		}
		announced, whole, err := l.put(w, mine)
		alone := announced == 0 && onlyFrom(mine, ownCalls) // the reader receives the replies to announced calls
		var first [maxDirect]entry                          // a copy, because the next writer reuses mine
		claims := copy(first[:], mine)
		switch {
		case err == nil && !whole:
			l.announce(mine[announced:])
			go l.writeOn(turn, func() bool { return l.flushed(w, mine, len(mine), w.flushRest()) })
			return 0
		case err == nil && alone && l.mayReadDirectly():
			return l.readDirectly(first[:claims])
		case !l.flushed(w, mine, announced, err):
			return 0
		case len(ownCalls) > 0 && !ownCalls[0].in(queued) && !ownCalls[0].in(claimed):
			go l.write(nil, true, turn)
			return 0
		}
	}
}

// writeOn goes on for a writer that stopped. It first does rest, the step that the writer
// left.
func (l *lane) writeOn(turn int, rest func() bool) {
	if rest() {
		l.write(nil, true, turn)
	}
}

// put writes claimed calls, as much as the wire can write without waiting. When it has
// buffered more than maxUnannounced bytes it announces the first calls to the reader:
// otherwise both the client and the server could write while neither reads. A foreign
// connection may end the goroutine in put; then the lane breaks, because the writer is
// gone.
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

// claim takes the queued calls that were not given up. If there are none, the writer
// ends; a writer that has lost its turn has ended already. waits reports whether the
// write may wait until the server has read earlier calls.
func (l *lane) claim(turn int) (w wire, mine []entry, waits bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if turn != l.turn {
		return nil, nil, false
	}
	l.writer = writing
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
	l.solo = l.solo && len(mine) <= maxDirect
	return l.wire, mine, l.wire.waits() && l.unreadLocked()
}

// unreadLocked reports whether the calls in flight are more than maxUnread bytes, which
// the server may not have read.
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

// maxUnread is how many bytes every socket buffers for a server that does not read.
const maxUnread = 16 << 10

// leaveLocked ends the writer. If the lane is over, it wakes the reader, which waits for
// the writer.
func (l *lane) leaveLocked() {
	l.writer = nobody
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

// flushed hands the claimed calls to the reader, except those that put has announced. It
// reports whether the writer must go on.
func (l *lane) flushed(w wire, mine []entry, announced int, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flyLocked(mine[announced:])
	l.claims = nil
	if err != nil {
		l.unsent = unsent(mine, w.written())
		l.breakLocked(err)
	}
	l.writer = nobody
	if l.err == nil && len(l.queue) > 0 {
		l.writer = gathering
	}
	l.wakeLocked()
	return l.writer != nobody
}

// unsent returns how many calls the server has not received to the last byte.
func unsent(mine []entry, written int) int {
	for i, e := range mine {
		if written -= e.size; written < 0 {
			return len(mine) - i
		}
	}
	return 0
}
