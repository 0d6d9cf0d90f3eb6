// Package flight shares work: callers that ask for the same key while it is
// worked on wait for one result.
//
// The work belongs to nobody who waits for it. It runs in a goroutine of its
// own, under a context that keeps the first caller's values and not its end,
// and that is cancelled when the last who waits has left. A panic in it, or a
// runtime.Goexit, comes up in every caller that waits.
package flight

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// PanicError is what a caller panics with whose shared work has panicked.
type PanicError struct {
	Value any    // what the work panicked with
	Stack []byte // of the goroutine that did
}

func (e *PanicError) Error() string { return fmt.Sprintf("%v\n\n%s", e.Value, e.Stack) }

// Unwrap returns the value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// Options say how work that a caller begins is bounded. They do nothing for
// work that it joins, but for Keep, of which a work's first counts.
type Options struct {
	// Limit ends the context of the work, and the wait for it; 0: never.
	Limit time.Duration
	// Keep is how long from now the work goes on when nobody waits, unless its
	// owner closes; 0: not at all. When that is over who waits goes on waiting,
	// and who comes begins anew.
	Keep time.Duration
}

// Group shares work by key. Its methods are safe for concurrent use.
type Group[R any] struct {
	owner *Owner // immutable
	ended atomic.Uint64

	mu    sync.Mutex // guards calls, and in each run what says so
	calls map[string]*call[R]
}

// run is one goroutine, which works for one key or several.
type run[R any] struct {
	ctx    context.Context // what the work runs under
	cancel context.CancelCauseFunc
	calls  []*call[R] // immutable

	waiters int    // guarded by Group.mu; who keeps it counts as one
	kept    func() // guarded by Group.mu; ends the owner's wait; nil: not kept
	cause   error  // guarded by Group.mu; why it is no longer kept; nil: it is, or was not
	ended   bool   // guarded by Group.mu
}

// call is one key of a run. The rest is written before done is closed and read
// only after that, which is what orders the two.
type call[R any] struct {
	key  string  // immutable
	run  *run[R] // immutable
	done chan struct{}

	result   R
	panicked *PanicError
	exited   bool // by runtime.Goexit
}

// NewGroup makes a group whose goroutines the owner waits for.
func NewGroup[R any](owner *Owner) *Group[R] {
	return &Group[R]{owner: owner, calls: make(map[string]*call[R])}
}

// Ticket is one caller's wait for one key: Wait or Leave ends it, and is to be
// called once.
type Ticket[R any] struct {
	// Shared says that somebody else began the work.
	Shared bool

	g *Group[R]
	c *call[R]
}

// Join returns a ticket for each of the keys, which differ. Those that nobody
// works on are worked on by work, in one goroutine: it gets them in the order
// of keys, and returns as many results. It reports false if the owner is
// closed.
//
// The context of the work ends with the limit, or when nobody waits. Its cause
// is context.DeadlineExceeded if the limit or what keeps it was over then. Work
// whose context is over is never joined: who comes then begins anew, although
// the old work may not have noticed yet. Work that forgets a key of its own lets
// nobody join that any more.
func (g *Group[R]) Join(
	ctx context.Context, keys []string, o Options,
	work func(ctx context.Context, keys []string, forget func(key string)) []R,
) ([]Ticket[R], bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	tickets := make([]Ticket[R], len(keys))
	fresh := &run[R]{}
	var own []string
	for i, key := range keys {
		c := g.calls[key]
		if c == nil || c.run.ctx.Err() != nil {
			c = &call[R]{key: key, run: fresh, done: make(chan struct{})}
			fresh.calls = append(fresh.calls, c)
			own = append(own, key)
		} else {
			tickets[i].Shared = true
			c.run.waiters++
			g.keepLocked(c.run, o)
		}
		tickets[i].g, tickets[i].c = g, c
	}
	if len(own) == 0 {
		return tickets, true
	}
	fresh.ctx, fresh.cancel = detach(ctx, o.Limit)
	if !g.owner.start(func() { g.do(fresh, own, work) }) {
		fresh.cancel(nil)
		for _, t := range tickets {
			if t.Shared {
				t.c.run.waiters-- // Close waits for what it does: nothing is cancelled here
			}
		}
		return nil, false
	}
	for _, c := range fresh.calls {
		g.calls[c.key] = c
	}
	fresh.waiters = len(own)
	g.keepLocked(fresh, o)
	return tickets, true
}

// detach keeps the values of ctx, and not its end.
func detach(ctx context.Context, limit time.Duration) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	if limit == 0 {
		return ctx, cancel
	}
	ctx, stop := context.WithTimeout(ctx, limit)
	return ctx, func(cause error) {
		cancel(cause)
		stop()
	}
}

// keepLocked makes the owner one of those who wait for r.
func (g *Group[R]) keepLocked(r *run[R], o Options) {
	if o.Keep == 0 || r.kept != nil || r.ended {
		return
	}
	r.waiters++
	ctx, cancel := context.WithTimeout(g.owner.ctx, o.Keep)
	stop := context.AfterFunc(ctx, func() { g.letGo(r, ctx.Err()) })
	r.kept = func() {
		stop()
		cancel()
	}
}

// Forget makes later callers begin anew. Who has joined gets the result still.
func (g *Group[R]) Forget(keys ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, key := range keys {
		delete(g.calls, key)
	}
}

// Ended counts the goroutines that are through. One that was about a key is
// counted before Join begins another for it. So if the count is what it was
// before a caller looked for a result elsewhere, the work that it begins then is
// not a repetition of what has just been done.
func (g *Group[R]) Ended() uint64 { return g.ended.Load() }

// do works, and says so whatever becomes of it. The three ways out of work are
// told apart by what has happened when the deferred function runs: work has
// returned; or it has not and there is something to recover, a panic; or there
// is nothing, and the goroutine is exiting.
func (g *Group[R]) do(r *run[R], keys []string, work func(context.Context, []string, func(string)) []R) {
	returned := false
	defer func() {
		if returned {
			g.end(r)
			return
		}
		var p *PanicError
		if v := recover(); v != nil {
			p = &PanicError{Value: v, Stack: debug.Stack()}
		}
		for _, c := range r.calls {
			c.panicked, c.exited = p, p == nil
		}
		g.end(r)
	}()
	results := work(r.ctx, keys, func(key string) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.forgetLocked(r, key)
	})
	for i, c := range r.calls {
		c.result = results[i]
	}
	returned = true
}

// end hands the results out. A call leaves the map before done is closed: who
// has seen a result and asks again begins anew. The context is ended after
// that: who sees its end before done is closed knows that the work was given
// up, by the limit or by everybody.
func (g *Group[R]) end(r *run[R]) {
	g.mu.Lock()
	for _, c := range r.calls {
		g.forgetLocked(r, c.key)
	}
	r.ended = true
	g.ended.Add(1)
	if r.kept != nil {
		r.kept()
	}
	g.mu.Unlock()
	for _, c := range r.calls {
		close(c.done)
	}
	r.cancel(nil)
}

// forgetLocked takes a key out of the map, unless another run has it by now.
func (g *Group[R]) forgetLocked(r *run[R], key string) {
	if c := g.calls[key]; c != nil && c.run == r {
		delete(g.calls, key)
	}
}

// Wait returns the result. It gives up when ctx ends or the limit is reached,
// and returns that context's error. It panics with a [*PanicError] if the work
// panicked, and ends the goroutine if the work ended its own.
func (t Ticket[R]) Wait(ctx context.Context) (R, error) {
	c := t.c
	defer t.Leave()
	var none R
	select {
	case <-c.done:
	case <-ctx.Done():
		return none, ctx.Err()
	case <-c.run.ctx.Done():
		select {
		case <-c.done:
		default:
			return none, c.run.ctx.Err()
		}
	}
	switch {
	case c.panicked != nil:
		panic(c.panicked)
	case c.exited:
		runtime.Goexit()
	}
	return c.result, nil
}

// Leave ends the wait without a result.
func (t Ticket[R]) Leave() {
	t.g.mu.Lock()
	defer t.g.mu.Unlock()
	t.c.run.leaveLocked()
}

// letGo ends what keeps r. When that is for its time nobody joins r any more:
// one after the other, callers who wait could keep for ever what has hung.
func (g *Group[R]) letGo(r *run[R], cause error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.cause = cause; errors.Is(cause, context.DeadlineExceeded) {
		for _, c := range r.calls {
			g.forgetLocked(r, c.key)
		}
	}
	r.leaveLocked()
}

// leaveLocked takes one away of those who wait. The count and the map have one lock:
// either a caller joins before the last one leaves, and the work goes on, or it
// finds that context ended and begins anew.
func (r *run[R]) leaveLocked() {
	if r.waiters--; r.waiters == 0 {
		r.cancel(r.cause) // wakes goroutines, and runs nobody's code here
	}
}
