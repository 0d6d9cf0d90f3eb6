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

// holdings counts the connections that a pipeline has borrowed. If a pool refuses a
// connection because all are in use, and the pipeline holds one of them, the borrower
// waits for its return. So a cache does not fail because of connections that it holds.
type holdings struct {
	mu      sync.Mutex // guards all below
	held    int
	returns int       // counts returned connections
	refused list.List // of chan struct{}: calls that wait for a return, in order
	free    time.Time // lanes borrow nothing before this time
}

// refusal is the state of a borrower that the pool has refused a connection.
type refusal struct {
	at     time.Time // the first refusal; zero: none
	before int       // holdings.returns before the last attempt
}

// borrowConn borrows a connection that calls of one caller have to themselves.
func (p *Pipeline) borrowConn(ctx context.Context) (redis.Conn, error) {
	h := &p.holdings
	for r := new(refusal); ; {
		if p.spare() == 0 {
			p.yield() // a lane returns its connection, for the first borrower in the pool's queue
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

// borrowForLane borrows a connection for a lane. It does not borrow for a moment after a
// return, so that borrowers outside the cache, which cannot wait, get the connection. If
// another lane takes calls, it does not retry.
func (p *Pipeline) borrowForLane(ctx context.Context, l *lane) (redis.Conn, error) {
	h := &p.holdings
	for r := new(refusal); ; {
		if err := p.leaveGap(ctx); err != nil {
			return nil, err
		}
		h.asks(r)
		c, err := p.ask(ctx)
		if err == nil || !errors.Is(err, redis.ErrPoolExhausted) || p.anotherTakes(l) || !h.mayRetry(r) {
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

// mayRetry reports whether a borrower that was refused may retry: while the pipeline
// holds a connection or has just returned one, and otherwise for refusedFor.
func (h *holdings) mayRetry(r *refusal) bool {
	if r.at.IsZero() {
		r.at = time.Now()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held > 0 || h.returns != r.before || time.Since(r.at) < refusedFor
}

// await waits for the next return by the pipeline, but at most for gap, because other
// borrowers return connections too. It reports false if ctx has ended.
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
	h.refused.Remove(place) // no-op if a return has woken this call meanwhile
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

// leave makes lanes borrow nothing for gap.
func (h *holdings) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.free = time.Now().Add(gap)
}

// leaveGap waits until lanes may borrow again.
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

// anotherTakes reports whether another lane takes calls.
func (p *Pipeline) anotherTakes(l *lane) bool {
	for _, other := range *p.lanes.Load() {
		if other != l && other.life.Load() == open {
			return true
		}
	}
	return false
}

// yield makes one open lane end, so that it returns its connection.
func (p *Pipeline) yield() {
	for _, l := range *p.lanes.Load() {
		if l.life.Load() == open {
			l.finish(false)
			return
		}
	}
}

// returned calls giveBack, which returns a connection, and counts the return, even if
// giveBack panics or calls runtime.Goexit.
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
	_ = foreign(giveBack) // an error in the pool's own code needs no handling here
}

// errExited is the error of a call whose goroutine the code of a pool has ended.
var errExited = errors.New("rediscache: the pool ended the goroutine")

// ask borrows a connection from the pool.
func (p *Pipeline) ask(ctx context.Context) (c redis.Conn, err error) {
	panicked := foreign(func() { c, err = p.cfg.Borrow(ctx) })
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

// isClosed reports whether err is that of a closed redigo pool, which has no exported
// name.
func isClosed(err error) bool { return err.Error() == "redigo: get on closed pool" }

// foreign runs code of a foreign pool. It returns a panic as an error, because in most
// goroutines of a pipeline a panic would end the process. The callers of foreign must be
// prepared for runtime.Goexit.
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
