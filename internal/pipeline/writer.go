package pipeline

import "runtime"

// enqueue takes all calls or, if the lane is over or full, none. If write is
// true then the caller is the writer now, in that turn, and gather that others
// are likely to join it.
func (l *lane) enqueue(calls []*Call) (ok, write, gather bool, turn int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now, load := l.p.clock.Load(), l.load()
	if l.over.Load() || load >= maxQueued {
		return false, false, false, 0
	}
	if load == 0 && !l.writing && l.wire != nil && now-l.active > quietTicks && !l.wire.quiet() {
		l.breakLocked(errQuiet)
		return false, false, false, 0
	}
	l.active = now
	for _, c := range calls {
		l.queue = append(l.queue, c.queue(now))
	}
	l.in.Add(int64(len(calls)))
	switch {
	case l.gathers && len(l.queue) >= batchOf(load):
		l.turn++
		l.gathers = false
		return true, true, false, l.turn
	case l.writing || l.wire == nil:
		return true, false, false, 0
	}
	l.writing = true
	l.gathers = !l.solo || load > 0
	return true, true, l.gathers, l.turn
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
// once the first of those has ended, or when the socket takes no more: then a
// goroutine goes on, for which the lane waits as writing stays set. As many of
// its own calls as it returns have ended without a word on their channels.
func (l *lane) write(own []*Call, gather bool, turn int) (answered int) {
	for ; ; gather = true {
		if gather { // Gosched also wakes an idle processor, which a lone caller pays for
			runtime.Gosched()
		}
		w, mine := l.claim(turn)
		if len(mine) == 0 {
			return 0
		}
		size := 0
		var err error
		for _, e := range mine {
			if err = w.put(e.call); err != nil {
				break
			}
			size += e.size
		}
		early := size > maxUnannounced
		alone := !early && areOwn(mine, own) // those that the reader has are its to receive
		var first [maxOwn]entry              // mine is the next writer's once this one has left
		claims := copy(first[:], mine)
		if early { // or neither side might read while both write
			l.announce(mine)
		}
		var whole bool
		if err == nil {
			whole, err = w.flush()
		}
		switch {
		case err == nil && !whole:
			if !early {
				l.announce(mine)
			}
			go func() {
				if l.flushed(w, mine, true, w.flushRest()) {
					l.write(nil, true, turn)
				}
			}()
			return 0
		case err == nil && alone && l.mayReadOwn():
			return l.readOwn(first[:claims])
		case !l.flushed(w, mine, early, err):
			return 0
		case len(own) > 0 && !own[0].in(queued) && !own[0].in(claimed):
			go l.write(nil, true, turn)
			return 0
		}
	}
}

// claim takes the calls of the queue that were not left. If there is none the
// writer leaves; one that has lost its turn has left already.
func (l *lane) claim(turn int) (wire, []entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if turn != l.turn {
		return nil, nil
	}
	l.gathers = false
	if l.err != nil {
		l.leaveLocked()
		return nil, nil
	}
	mine := l.queue[:0]
	for _, e := range l.queue {
		if e.move(queued, claimed) {
			mine = append(mine, e)
		}
	}
	if left := len(l.queue) - len(mine); left > 0 {
		l.in.Add(-int64(left))
		l.p.room()
	}
	l.queue, l.spare = l.spare[:0], mine
	if len(mine) == 0 {
		l.leaveLocked()
	}
	l.solo = l.solo && len(mine) <= maxOwn
	return l.wire, mine
}

// leaveLocked ends the writer. If the lane is over the reader waits for that.
func (l *lane) leaveLocked() {
	l.writing = false
	if l.over.Load() {
		l.wakeLocked()
	}
}

// announce hands claimed calls to the reader.
func (l *lane) announce(mine []entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flight = append(l.flight, mine...)
	l.wakeLocked()
}

// flushed hands claimed calls to the reader, unless it has them already. It
// reports whether the writer goes on.
func (l *lane) flushed(w wire, mine []entry, announced bool, err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !announced {
		l.flight = append(l.flight, mine...)
	}
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
