package flight

import (
	"context"
	"sync"
)

// Owner waits for the goroutines of its groups.
type Owner struct {
	ctx context.Context // over once Close has begun: what is kept is let go
	end context.CancelFunc

	mu     sync.Mutex // guards closed, and wg against an Add that meets Wait
	closed bool
	wg     sync.WaitGroup
}

// NewOwner makes an owner, which is to be closed.
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

// Go runs f in a goroutine that Close waits for. The context of f ends when Close begins. Go reports
// false, and does not run f, if the owner is closed.
func (o *Owner) Go(f func(context.Context)) bool {
	return o.start(func() { f(o.ctx) })
}

// Done is closed when Close begins.
func (o *Owner) Done() <-chan struct{} { return o.ctx.Done() }

// Close lets go of what nobody waits for, and waits for what somebody does:
// after it no goroutine is left and none will be started. It may be called
// more than once.
func (o *Owner) Close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.end()
	o.wg.Wait()
}
