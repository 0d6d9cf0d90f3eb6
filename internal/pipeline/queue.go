package pipeline

import (
	"container/list"
	"context"

	"github.com/rediscache/rediscache/internal/warm"
)

// waiter is a caller that found no room in a lane. Room that comes is for the
// waiters, in their order: a caller that comes meanwhile queues behind them, and
// no more of them are woken than there is room for, as each wake has its price.
type waiter struct {
	calls int
	since int64         // the clock when the first of its calls began
	woken chan error    // holds one; nil: there is room
	place *list.Element // in Pipeline.queue; nil once it is woken
}

// await waits until a lane has room for the calls, and gives them to it. The
// time of all calls begins.
func (p *Pipeline) await(ctx context.Context, calls []*Call) (seat, error) {
	now := p.clock.Load()
	for _, c := range calls {
		c.begin(now)
	}
	w := &waiter{calls: len(calls), since: calls[0].since, woken: make(chan error, 1)}
	p.waiting.Add(1) // before it looks: from now on whoever makes room sees it
	defer p.waiting.Add(-1)
	p.mu.Lock()
	w.place = p.queue.PushBack(w)
	p.tickLocked()
	p.wakeLocked()
	p.mu.Unlock()
	for {
		var err error
		select {
		case err = <-w.woken:
		case <-ctx.Done():
			p.leave(w)
			err = ctx.Err()
		}
		if err != nil {
			return seat{}, err
		}
		if s, err := p.arrive(w, calls); s.lane != nil || err != nil {
			return s, err
		}
	}
}

// arrive gives the calls of a waiter that was woken to a lane. If another had
// the room the waiter is the first in the queue again. A lane looks at its
// connection, whose code may end the goroutine.
func (p *Pipeline) arrive(w *waiter, calls []*Call) (s seat, err error) {
	err = errExited
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.coming -= w.calls
		if s.lane == nil && err == nil {
			w.place = p.queue.PushFront(w)
		}
		p.wakeLocked() // what it did not take, or what it was thought to take
	}()
	return p.offer(calls)
}

// leave takes a waiter out. If it was woken its room is the next one's.
func (p *Pipeline) leave(w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case w.place != nil:
		p.queue.Remove(w.place)
	case <-w.woken == nil:
		p.coming -= w.calls
	}
	p.wakeLocked()
}

// room wakes waiters, if there are any, after something made room.
func (p *Pipeline) room() {
	if p.waiting.Load() > 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.wakeLocked()
	}
}

// wakeLocked wakes as many waiters as there is room for, and all once the
// pipeline is closed.
func (p *Pipeline) wakeLocked() {
	if p.queue.Len() == 0 {
		return
	}
	room := p.roomLocked() - int64(p.coming)
	for e := p.queue.Front(); e != nil && (room > 0 || p.closed); e = p.queue.Front() {
		w := e.Value.(*waiter)
		if p.closed {
			p.wakeOneLocked(w, warm.ErrClosed)
			continue
		}
		room -= int64(w.calls)
		p.coming += w.calls
		p.wakeOneLocked(w, nil)
	}
}

func (p *Pipeline) wakeOneLocked(w *waiter, err error) {
	p.queue.Remove(w.place)
	w.place = nil
	w.woken <- err
}

// roomLocked returns how many calls the lanes have room for, one that may be
// opened included.
func (p *Pipeline) roomLocked() (room int64) {
	for _, l := range *p.lanes.Load() {
		if l.takes() {
			room += max(maxQueued-l.load(), 0)
		}
	}
	if room == 0 && p.mayOpenLocked() {
		room = maxQueued
	}
	return room
}

// expireWaiters ends the waits of calls whose time is over, for the clock. It
// looks at all: calls that are retried are older than those before them.
func (p *Pipeline) expireWaiters(now int64) {
	if p.timeoutTicks == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for e := p.queue.Front(); e != nil; {
		w := e.Value.(*waiter)
		e = e.Next()
		if now-w.since >= p.timeoutTicks {
			p.wakeOneLocked(w, context.DeadlineExceeded)
		}
	}
}
