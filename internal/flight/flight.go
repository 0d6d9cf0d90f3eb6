// Package flight shares work: callers that ask for the same key while it is
// worked on wait for one result.
//
// The work belongs to none of its waiters. It runs in a goroutine of its own,
// under a context that keeps the first caller's values, but neither its deadline
// nor its cancellation, and that is cancelled when the last waiter has left.
// Work for several keys delivers each key's result as soon as there is one. A
// panic in the work, or a runtime.Goexit, comes up in every caller that still
// waits then.
package flight

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// PanicError is the value that each waiting caller panics with when the shared
// work has panicked.
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

// errExpired is the cause with which the context of work ends when its limit, or
// the time for which its owner keeps it, is over. It is a value of this package
// alone, so no cause of a caller's can be taken for it.
var errExpired = fmt.Errorf("the time of the work is over: %w", context.DeadlineExceeded)

var errUndelivered = errors.New("flight: the work returned without a result for this key")

// Expired reports whether the context of work, or one derived from it, ended
// because the time of the work was over: [Options.Limit] or [Options.Keep]. It
// is false of a context that ended because no caller was left.
func Expired(ctx context.Context) bool {
	return context.Cause(ctx) == errExpired //nolint:errorlint // this value, not what matches it
}

// Options bound the work that a caller begins. Work that the caller joins keeps
// its own, but it is kept for Keep if no earlier caller asked for that.
type Options struct {
	// Limit ends the context of the work, and the wait for it; 0: never.
	Limit time.Duration
	// Keep is how long from now the work goes on without a waiter, unless its
	// owner closes; 0: not at all. After that, waiters still get the result, and
	// a new caller begins new work.
	Keep time.Duration
}

// Group shares work by key. Its methods are safe for concurrent use.
type Group[R any] struct {
	owner *Owner // immutable
	ended atomic.Uint64

	mu    sync.Mutex // guards calls, and the fields of runs and calls that name it
	calls map[string]*Call[R]
}

// run is one goroutine, which works for one key or several.
type run[R any] struct {
	g      *Group[R]       // immutable
	ctx    context.Context // what the work runs under
	cancel context.CancelCauseFunc
	calls  []*Call[R] // immutable

	waiters int    // guarded by Group.mu; of the calls without an outcome, and one if the run is kept
	kept    func() // guarded by Group.mu; ends the owner's wait; nil: not kept
	cause   error  // guarded by Group.mu; why the run is no longer kept; nil: it is kept, or never was
}

// Call is one key of a run. Its outcome is written before done is closed and
// read only after that, which is what orders the two.
type Call[R any] struct {
	Key string // immutable

	run     *run[R]       // immutable
	waiters int           // guarded by Group.mu; zero once there is an outcome
	done    chan struct{} // closed, under Group.mu, when there is an outcome

	result   R
	panicked *PanicError
	exited   bool // by runtime.Goexit
}

// NewGroup makes a group whose goroutines the owner waits for.
func NewGroup[R any](owner *Owner) *Group[R] {
	return &Group[R]{owner: owner, calls: make(map[string]*Call[R])}
}

// Ticket is one caller's wait for one key. Each ticket is used once, by Wait or
// by Leave.
type Ticket[R any] struct {
	// Shared reports that another caller began the work.
	Shared bool

	c *Call[R]
}

// Join returns a ticket for each of the keys, which differ. Keys without work in
// flight are given to work, in one goroutine and in the order of keys. The work
// delivers one result for each of its calls before it returns. Join reports false
// if the owner is closed.
//
// The context of the work ends with the limit, or when nobody waits for a key
// that has no result yet; [Expired] tells these apart. A caller never joins work
// whose context has ended: it begins new work, although the old work may not have
// noticed yet.
func (g *Group[R]) Join(
	ctx context.Context, keys []string, o Options, work func(ctx context.Context, calls []*Call[R]),
) ([]Ticket[R], bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	tickets := make([]Ticket[R], len(keys))
	fresh := &run[R]{g: g}
	for i, key := range keys {
		c := g.calls[key]
		if c == nil || c.run.ctx.Err() != nil {
			c = &Call[R]{Key: key, run: fresh, done: make(chan struct{})}
			fresh.calls = append(fresh.calls, c)
		} else {
			tickets[i].Shared = true
			g.keepLocked(c.run, o)
		}
		c.waiters++
		c.run.waiters++
		tickets[i].c = c
	}
	if len(fresh.calls) == 0 {
		return tickets, true
	}
	fresh.ctx, fresh.cancel = detach(ctx, o.Limit)
	if !g.owner.start(func() { fresh.do(work) }) {
		fresh.cancel(nil)
		for _, t := range tickets {
			t.c.waiters-- // Close waits for what others do: nothing is cancelled here
			t.c.run.waiters--
		}
		return nil, false
	}
	for _, c := range fresh.calls {
		g.calls[c.Key] = c
	}
	g.keepLocked(fresh, o)
	return tickets, true
}

// detach returns a context with the values of ctx, and without its deadline and
// its cancellation.
func detach(ctx context.Context, limit time.Duration) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	if limit == 0 {
		return ctx, cancel
	}
	ctx, stop := context.WithTimeoutCause(ctx, limit, errExpired)
	return ctx, func(cause error) {
		cancel(cause)
		stop()
	}
}

// keepLocked makes the owner a waiter of r.
func (g *Group[R]) keepLocked(r *run[R], o Options) {
	if o.Keep == 0 || r.kept != nil {
		return
	}
	r.waiters++
	ctx, cancel := context.WithTimeoutCause(g.owner.ctx, o.Keep, errExpired)
	stop := context.AfterFunc(ctx, func() { g.letGo(r, context.Cause(ctx)) })
	r.kept = func() {
		stop()
		cancel()
	}
}

// Forget makes later callers begin new work. Callers that have joined still get
// the result.
func (g *Group[R]) Forget(keys ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, key := range keys {
		delete(g.calls, key)
	}
}

// Ended counts outcomes. The outcome of a key is counted before Join begins other
// work for that key, unless the key was forgotten. So if the count is what it was
// before a caller looked for a result elsewhere, the work that this caller begins
// does not repeat work that has just ended.
func (g *Group[R]) Ended() uint64 { return g.ended.Load() }

// do works, and gives every call an outcome however the work ends. The deferred
// function tells the three ways apart: the work has returned; it has not and there
// is a panic to recover; or there is none, and the goroutine is exiting.
func (r *run[R]) do(work func(context.Context, []*Call[R])) {
	returned := false
	defer func() {
		var p *PanicError
		if returned {
			p = &PanicError{Value: errUndelivered}
		} else if v := recover(); v != nil {
			p = &PanicError{Value: v, Stack: debug.Stack()}
		}
		r.end(p)
	}()
	work(r.ctx, r.calls)
	returned = true
}

// end gives the calls that the work left without a result the panic, or the exit
// if p is nil, as their outcome.
func (r *run[R]) end(p *PanicError) {
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	for _, c := range r.calls {
		if !c.over() {
			c.panicked, c.exited = p, p == nil
			c.endLocked()
		}
	}
	if r.kept != nil {
		r.kept()
	}
	r.cancel(nil)
}

// Deliver gives the waiters of the key its result, once. Callers that come later
// begin new work.
func (c *Call[R]) Deliver(result R) {
	c.run.g.mu.Lock()
	defer c.run.g.mu.Unlock()
	c.result = result
	c.endLocked()
}

// Forget lets no further caller join the call.
func (c *Call[R]) Forget() {
	c.run.g.mu.Lock()
	defer c.run.g.mu.Unlock()
	c.forgetLocked()
}

// endLocked hands the outcome out. The call leaves the map before done is closed:
// a caller that has seen the outcome and asks again begins new work. The waiters
// leave the run after done is closed: a waiter that sees the context end while
// done is open knows that the work was given up.
func (c *Call[R]) endLocked() {
	c.forgetLocked()
	c.run.g.ended.Add(1)
	close(c.done)
	c.run.leaveLocked(c.waiters)
	c.waiters = 0
}

// over reports whether there is an outcome.
func (c *Call[R]) over() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// forgetLocked takes the call out of the map, unless another has its place by now.
func (c *Call[R]) forgetLocked() {
	if calls := c.run.g.calls; calls[c.Key] == c {
		delete(calls, c.Key)
	}
}

// Wait returns the result. Without one it returns when ctx ends or the limit is
// reached, with that context's error, and with the error of ctx if both are over.
// A result that is there is returned although ctx has ended. Wait panics with a
// [*PanicError] if the work panicked, and ends the goroutine if the work ended its
// own.
func (t Ticket[R]) Wait(ctx context.Context) (R, error) {
	c := t.c
	defer t.Leave()
	select {
	case <-c.done:
	case <-ctx.Done():
	case <-c.run.ctx.Done():
	}
	switch {
	case !c.over():
		var none R
		return none, cmp.Or(ctx.Err(), c.run.ctx.Err())
	case c.panicked != nil:
		panic(c.panicked)
	case c.exited:
		runtime.Goexit()
	}
	return c.result, nil
}

// Leave ends the wait without a result.
func (t Ticket[R]) Leave() {
	c := t.c
	c.run.g.mu.Lock()
	defer c.run.g.mu.Unlock()
	if c.waiters > 0 { // or there is an outcome, and nobody waits any more
		c.waiters--
		c.run.leaveLocked(1)
	}
}

// letGo ends the owner's wait for r, for cause. If the time is over no caller joins
// r any more: one after the other, callers could else keep work that hangs for ever.
func (g *Group[R]) letGo(r *run[R], cause error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.cause = cause; cause == errExpired { //nolint:errorlint // this value, not what matches it
		for _, c := range r.calls {
			c.forgetLocked()
		}
	}
	r.leaveLocked(1)
}

// leaveLocked takes n waiters away. Their count and the map have one lock: either
// a caller joins before the last waiter leaves, and the work goes on, or the caller
// finds that the context has ended and begins new work.
func (r *run[R]) leaveLocked(n int) {
	if r.waiters -= n; r.waiters == 0 {
		r.cancel(r.cause) // wakes goroutines, and runs no other code here
	}
}
