package flight

import (
	"context"
	"sync"
)

// Owner waits for the goroutines of its groups.
type Owner struct {
	ctx context.Context // cancelled when Close begins, which ends every Keep
	end context.CancelFunc

	mu      sync.Mutex // guards the fields below, so that no wg.Add comes after wg.Wait
	closed  bool
	running int        // goroutines
	idle    *sync.Cond // of mu: running is zero
	wg      sync.WaitGroup
}

// NewOwner makes an owner. The caller must close it.
func NewOwner() *Owner {
	o := new(Owner)
	o.idle = sync.NewCond(&o.mu)
	o.ctx, o.end = context.WithCancel(context.Background())
	return o
}

// start runs f in a goroutine, unless the owner is closed.
func (o *Owner) start(f func()) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	o.running++
	o.wg.Go(func() {
		defer o.ended() // f may call runtime.Goexit
		f()
	})
	return true
}

func (o *Owner) ended() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.running--; o.running == 0 {
		o.idle.Broadcast()
	}
}

// WaitIdle waits until no goroutine runs.
func (o *Owner) WaitIdle() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.running > 0 {
		o.idle.Wait()
	}
}

// Go runs f in a goroutine that Close waits for. The context of f ends when Close begins. If the owner
// is closed, Go does not run f and reports false.
func (o *Owner) Go(f func(context.Context)) bool {
	return o.start(func() { f(o.ctx) })
}

// Done is closed when Close begins.
func (o *Owner) Done() <-chan struct{} { return o.ctx.Done() }

// Close cancels the work that no caller waits for, and waits for all goroutines. After
// Close no goroutine starts. It may be called more than once.
func (o *Owner) Close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.end()
	o.wg.Wait()
}
