// Package flight shares work by key: callers that ask for a key while its work is in
// flight wait for one result.
//
// The work runs in a goroutine of its own. Its context has the values of the first
// caller's context, but not its deadline and cancellation. The context is cancelled
// when the last caller has stopped waiting. Work for several keys delivers each result
// as soon as it is ready. If the work panics, every caller that still waits gets a
// [PanicError]. If the work calls runtime.Goexit, every caller that still waits does the
// same.
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

// PanicError is the error of each waiting caller when the work panics.
type PanicError struct {
	Value any    // the value of the panic
	Stack []byte // the stack of the goroutine that panicked
}

func (e *PanicError) Error() string { return fmt.Sprintf("the work panicked: %v", e.Value) }

// errExpired is the cause of a context that ended because Limit or Keep was over. It
// is private, so no caller's context can have the same cause.
var errExpired = fmt.Errorf("the time of the work is over: %w", context.DeadlineExceeded)

var errUndelivered = errors.New("flight: the work returned without a result for this key")

// Expired reports whether the context of work, or one derived from it, ended because
// [Options.Limit] or [Options.Keep] was over. It returns false if the context ended
// because no caller waited any more.
func Expired(ctx context.Context) bool {
	return context.Cause(ctx) == errExpired //nolint:errorlint // this value, not what matches it
}

// Options bound the work that a caller begins. If the caller joins existing work, they
// are ignored, except that the first Keep applies.
type Options struct {
	// Limit bounds the context of the work, and the wait for it. Zero sets no bound.
	Limit time.Duration
	// Keep is how long the work goes on without a waiter, from now or until the owner
	// closes. With zero it does not. After Keep, waiters still get the result, but a
	// new caller begins new work.
	Keep time.Duration
}

// Group shares work by key. Its methods are safe for concurrent use.
type Group[R any] struct {
	owner *Owner // immutable
	ended atomic.Uint64

	mu    sync.Mutex // guards calls, and the fields marked "guarded by Group.mu"
	calls map[string]*Call[R]
}

// run is one goroutine and its work, for one key or several.
type run[R any] struct {
	g      *Group[R]       // immutable
	ctx    context.Context // of the work
	cancel context.CancelCauseFunc
	calls  []*Call[R] // immutable

	waiters int    // guarded by Group.mu; of the calls without an outcome, and the owner if it keeps the run
	kept    func() // guarded by Group.mu; releases the timer of Keep; nil: never kept
	cause   error  // guarded by Group.mu; why the owner stopped keeping the run; nil: it did not
}

// Call is one key of a run. Its outcome is written before done is closed, and read only
// after done is closed, so the two do not race.
type Call[R any] struct {
	Key string // immutable

	run     *run[R]       // immutable
	waiters int           // guarded by Group.mu; zero once there is an outcome
	done    chan struct{} // closed, under Group.mu, when there is an outcome

	result   R
	panicked *PanicError
	exited   bool // by runtime.Goexit
}

// NewGroup makes a group. owner waits for its goroutines.
func NewGroup[R any](owner *Owner) *Group[R] {
	return &Group[R]{owner: owner, calls: make(map[string]*Call[R])}
}

// Ticket is one caller's wait for one key. The caller must call either Wait or Leave,
// once.
type Ticket[R any] struct {
	// Shared reports that another caller began the work.
	Shared bool

	c *Call[R]
}

// Join returns a ticket for each of the keys, which must be distinct. It calls work in a
// new goroutine for the keys without work in flight, in the order of keys. work must
// deliver one result for each of its calls before it returns. Join reports false if the
// owner is closed.
//
// The context of the work ends with the limit, or when no caller waits for a key without
// a result; [Expired] distinguishes these. A caller never joins work whose context has
// ended. It begins new work, even if the old work still runs.
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
			t.c.waiters-- // without leaveLocked, so that Close still waits for existing work
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

// detach returns a context with the values of ctx and with limit, but without the
// deadline and the cancellation of ctx.
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

// keepLocked makes the owner a waiter of r for o.Keep, once.
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

// Forget makes later callers begin new work for the keys. Callers that have joined still
// get the result.
func (g *Group[R]) Forget(keys ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, key := range keys {
		delete(g.calls, key)
	}
}

// Ended counts outcomes. The outcome of a key is counted before Join begins new work for
// the key, unless the key was forgotten. So if the count has not changed since a caller
// read the key elsewhere, the work that the caller begins does not repeat work that ended
// in between.
func (g *Group[R]) Ended() uint64 { return g.ended.Load() }

// do runs work, and gives every call an outcome. The deferred function distinguishes
// three ways to end: work returned; work panicked, so recover returns a value; or work
// called runtime.Goexit.
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

// end gives each call without a result the panic p as its outcome, or runtime.Goexit if p
// is nil.
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

// Deliver gives the result to the waiters of the key. It must be called at most once.
// Later callers begin new work.
func (c *Call[R]) Deliver(result R) {
	c.run.g.mu.Lock()
	defer c.run.g.mu.Unlock()
	c.result = result
	c.endLocked()
}

// Forget makes later callers begin new work instead of joining the call.
func (c *Call[R]) Forget() {
	c.run.g.mu.Lock()
	defer c.run.g.mu.Unlock()
	c.forgetLocked()
}

// endLocked publishes the outcome. It removes the call from the map before it closes done,
// so a caller that has the outcome and calls Join again begins new work. It removes the
// waiters from the run after it closes done, so a waiter that sees the context end while
// done is open knows that there is no outcome.
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

// forgetLocked removes the call from the map, unless another call has replaced it.
func (c *Call[R]) forgetLocked() {
	if calls := c.run.g.calls; calls[c.Key] == c {
		delete(calls, c.Key)
	}
}

// Wait returns the result, even if ctx has ended by then. If there is no result when ctx
// or the context of the work ends, Wait returns the error of that context, or of ctx if
// both ended. If the work panicked, Wait returns a [*PanicError]; the caller should panic
// too. If the work called runtime.Goexit, Wait does the same.
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
		var none R
		return none, c.panicked
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
	if c.waiters > 0 { // zero after an outcome
		c.waiters--
		c.run.leaveLocked(1)
	}
}

// letGo ends the owner's wait for r. If Keep is over, it also forgets the calls:
// otherwise a series of callers could keep work that hangs in flight forever.
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

// leaveLocked removes n waiters, and cancels the work after the last one. The same lock
// guards the count and the map. So a caller either joins before the last waiter leaves,
// and the work goes on, or it sees that the context has ended and begins new work.
func (r *run[R]) leaveLocked(n int) {
	if r.waiters -= n; r.waiters == 0 {
		r.cancel(r.cause) // it only wakes goroutines, so the lock may be held
	}
}
