package pipeline

import (
	"container/list"
	"context"

	"github.com/rediscache/rediscache/internal/warm"
)

// waiter is a caller that found no room in a lane. Waiters get room in their order, and a
// new caller queues behind them. Only as many waiters are woken as there is room for,
// because each wake costs time.
type waiter struct {
	calls int
	since int64         // the clock when the first of its calls began
	woken chan error    // holds one; nil: there is room
	place *list.Element // in Pipeline.queue; nil after the waiter is woken
}

// await waits until a lane has room for the calls, and gives the calls to the lane. The
// timeouts of the calls start now.
func (p *Pipeline) await(ctx context.Context, calls []*Call) (seat, error) {
	now := p.clock.Load()
	for _, c := range calls {
		c.startTimeout(now)
	}
	w := &waiter{calls: len(calls), since: calls[0].since, woken: make(chan error, 1)}
	p.waiting.Add(1) // before wakeLocked looks for room, so that room made later wakes this waiter
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

// arrive gives the calls of a woken waiter to a lane. If another caller took the room, the
// waiter becomes the first in the queue again. offer may run code of a foreign connection,
// which may call runtime.Goexit, so the rest is deferred.
func (p *Pipeline) arrive(w *waiter, calls []*Call) (s seat, err error) {
	err = errExited
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.coming -= w.calls
		if s.lane == nil && err == nil {
			w.place = p.queue.PushFront(w)
		}
		p.wakeLocked() // for the room that this waiter did not use
	}()
	return p.offer(calls)
}

// leave removes a waiter from the queue. If it was woken already, the next waiter gets its
// room.
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

// room wakes waiters. It is called after each event that makes room.
func (p *Pipeline) room() {
	if p.waiting.Load() > 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.wakeLocked()
	}
}

// wakeLocked wakes as many waiters as there is room for, or all if the pipeline is closed.
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

// roomLocked returns how many calls the lanes have room for. If none has room but one more
// lane may be opened, it returns the room of that lane.
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

// expireWaiters times out waiters, for the clock. It checks all waiters, because a retried
// call is older than the calls before it.
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
