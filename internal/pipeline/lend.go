package pipeline

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/warm"
)

// holdings are the connections that a pipeline has borrowed. Where a pool
// refuses one because all are in use, and one of them is the pipeline's, the
// borrower waits for that: a cache does not fail for its own use of the pool.
type holdings struct {
	mu      sync.Mutex // guards all below
	held    int
	returns int       // counts the connections that were returned
	refused list.List // of chan struct{}: calls that wait for a return, in order
	free    time.Time // until then lanes leave what was returned to others
}

// refusal is a borrower whom the pool has refused a connection.
type refusal struct {
	at     time.Time // the first time; zero: not yet
	before int       // the count of returns when it asked last
}

// lend borrows a connection for calls that share it with nobody.
func (p *Pipeline) lend(ctx context.Context) (redis.Conn, error) {
	h := &p.holdings
	for r := new(refusal); ; {
		if p.spare() == 0 {
			p.yield() // before it queues in the pool: the lane's connection is for the next in that queue
		}
		h.asks(r)
		c, err := p.ask(ctx)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, redis.ErrPoolExhausted) || !h.mayRetry(r) || !h.await(ctx, r) {
			h.next()
			if ended := ctx.Err(); ended != nil && errors.Is(err, redis.ErrPoolExhausted) {
				err = fmt.Errorf("%w: %w", warm.ErrPoolExhausted, ended)
			}
			return nil, err
		}
	}
}

// lendToLane borrows a connection for a lane. It leaves a connection that was
// just returned to others that cannot wait for it, and gives up at once where
// another lane takes calls.
func (p *Pipeline) lendToLane(ctx context.Context, l *lane) (redis.Conn, error) {
	h := &p.holdings
	for r := new(refusal); ; {
		if err := p.leaveGap(ctx); err != nil {
			return nil, err
		}
		h.asks(r)
		c, err := p.ask(ctx)
		if err == nil || !errors.Is(err, redis.ErrPoolExhausted) || p.takenBesides(l) || !h.mayRetry(r) {
			return c, err
		}
		h.leave()
	}
}

func (h *holdings) asks(r *refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r.before = h.returns
}

// mayRetry reports whether a borrower that was refused may ask again: while the
// pipeline has a connection that it will return, and for a moment otherwise.
func (h *holdings) mayRetry(r *refusal) bool {
	if r.at.IsZero() {
		r.at = time.Now()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held > 0 || h.returns != r.before || time.Since(r.at) < refusedFor
}

// await waits for the next return, not for long, because others return
// connections too. It reports false if ctx ends first.
func (h *holdings) await(ctx context.Context, r *refusal) bool {
	h.mu.Lock()
	if h.returns != r.before {
		h.mu.Unlock()
		return ctx.Err() == nil
	}
	returned := make(chan struct{})
	place := h.refused.PushBack(returned)
	h.mu.Unlock()
	t := time.NewTimer(gap)
	defer t.Stop()
	select {
	case <-returned:
		return true
	case <-t.C:
	case <-ctx.Done():
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused.Remove(place) // which does nothing if a return has just woken it
	return ctx.Err() == nil
}

// next wakes the first of the calls that wait for a return.
func (h *holdings) next() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.nextLocked()
}

func (h *holdings) nextLocked() {
	if e := h.refused.Front(); e != nil {
		close(h.refused.Remove(e).(chan struct{}))
	}
}

// leave makes lanes leave what is returned to others for a while.
func (h *holdings) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.free = time.Now().Add(gap)
}

// leaveGap waits while connections are left to others.
func (p *Pipeline) leaveGap(ctx context.Context) error {
	p.holdings.mu.Lock()
	d := time.Until(p.holdings.free)
	p.holdings.mu.Unlock()
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// takenBesides reports whether another lane takes calls.
func (p *Pipeline) takenBesides(l *lane) bool {
	for _, other := range *p.lanes.Load() {
		if other != l && other.life.Load() == open {
			return true
		}
	}
	return false
}

// yield lets a lane return its connection.
func (p *Pipeline) yield() {
	for _, l := range *p.lanes.Load() {
		if l.life.Load() == open {
			l.finish(false)
			return
		}
	}
}

// returned counts a connection that giveBack returns, whatever becomes of that.
func (p *Pipeline) returned(giveBack func()) {
	left := p.cfg.Refuses && p.spare() == 0
	h := &p.holdings
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.held--
		h.returns++
		if left {
			h.free = time.Now().Add(gap)
		}
		h.nextLocked()
	}()
	_ = foreign(giveBack) // the connection is the pool's, its faults are too
}

// errExited is why a call is lost whose goroutine the code of a pool has ended.
var errExited = errors.New("rediscache: the pool ended the goroutine")

// ask borrows a connection from the pool.
func (p *Pipeline) ask(ctx context.Context) (c redis.Conn, err error) {
	panicked := foreign(func() { c, err = p.cfg.Lease(ctx) })
	switch {
	case panicked != nil:
		return nil, panicked
	case err == nil && c == nil:
		return nil, errors.New("rediscache: the pool returned neither a connection nor an error")
	case err == nil:
		p.holdings.mu.Lock()
		p.holdings.held++
		p.holdings.mu.Unlock()
		return c, nil
	}
	if c != nil {
		_ = foreign(func() { c.Close() })
	}
	if isClosed(err) {
		return nil, fmt.Errorf("%w: %w", warm.ErrClosed, err)
	}
	return nil, err
}

// isClosed knows what redigo's pool returns once it is closed. The error has no
// name.
func isClosed(err error) bool { return err.Error() == "redigo: get on closed pool" }

// foreign runs code of a pool's maker. A panic in it becomes an error: in most
// goroutines of a pipeline it would end the process. runtime.Goexit in it ends
// the goroutine, which the callers of foreign are prepared for.
func foreign(f func()) (err error) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case error:
			err = fmt.Errorf("rediscache: the pool panicked: %w", v)
		default:
			err = fmt.Errorf("rediscache: the pool panicked: %v", v)
		}
	}()
	f()
	return nil
}
