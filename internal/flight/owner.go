package flight

import (
	"context"
	"sync"
)

// Owner waits for the goroutines of its groups.
type Owner struct {
	ctx context.Context // cancelled when Close begins, which ends every Keep
	end context.CancelFunc

	mu     sync.Mutex // guards closed, so that no wg.Add comes after wg.Wait
	closed bool
	wg     sync.WaitGroup
}

// NewOwner makes an owner. The caller must close it.
func NewOwner() *Owner {
	o := new(Owner)
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
	o.wg.Go(f)
	return true
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
