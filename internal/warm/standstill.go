package warm

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// When a process resumes after a suspension, by a debugger or a hypervisor, its timers
// have expired although its sockets may hold the awaited data. A timer that fires this
// much late shows that the process was suspended.
const standstill = 50 * time.Millisecond

// lost returns how far to extend a wait of d that expired at due while the process was
// suspended: as long as the timer is late, at most d, and zero if it is not late.
func lost(due time.Time, d time.Duration) time.Duration {
	if late := time.Since(due); late > standstill {
		return min(late, d)
	}
	return 0
}

// Within returns a context that ends with ctx, or with context.DeadlineExceeded after d. A suspension of the
// process extends d by at most d. The context reports no deadline of its own, because a suspension moves it.
func Within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	expired := &expiry{context.DeadlineExceeded}
	var arm func(time.Duration) *time.Timer
	arm = func(d time.Duration) *time.Timer {
		due := time.Now().Add(d)
		return time.AfterFunc(d, func() {
			if more := lost(due, d); more > 0 && ctx.Err() == nil {
				arm(more)
				return
			}
			cancel(expired)
		})
	}
	if d <= 0 {
		cancel(expired)
	}
	first := arm(d)
	return &within{ctx, expired}, func() {
		first.Stop()
		cancel(nil)
	}
}

// within returns context.DeadlineExceeded from Err if its own time expired. It recognizes that by a cause that
// no other context has. A caller's context may be cancelled with a cause that matches
// context.DeadlineExceeded; then Err returns context.Canceled, as that of the caller's context does.
type within struct {
	context.Context // cancelled with expired when the time runs out
	expired         *expiry
}

func (w *within) Err() error {
	err := w.Context.Err()
	if err != nil && errors.Is(context.Cause(w.Context), w.expired) {
		return context.DeadlineExceeded
	}
	return err
}

// expiry is the cause of one within context. It matches context.DeadlineExceeded.
type expiry struct{ error }

func (e *expiry) Unwrap() error { return e.error }

// Pulse is when the process was last seen to run. While a process is suspended its
// monotonic clock runs on. While a machine is suspended the monotonic clock may stop,
// but the wall clock jumps when the machine resumes. So Missed looks at both. The methods
// are safe for concurrent use.
type Pulse struct {
	beaten          atomic.Bool
	monotonic, wall atomic.Int64 // nanoseconds
}

// suspendedAfter is longer than a busy machine delays the janitor, and shorter
// than anything between client and server takes to forget a connection.
const suspendedAfter = 2 * time.Second

// epoch makes monotonic times comparable as numbers.
var epoch = time.Now()

// Beat records that the process runs.
func (p *Pulse) Beat(now time.Time) {
	p.monotonic.Store(int64(now.Sub(epoch)))
	p.wall.Store(now.UnixNano())
	p.beaten.Store(true)
}

// Missed reports whether the process was suspended since the last Beat. Before the first
// Beat it reports false.
func (p *Pulse) Missed(now time.Time) bool {
	since := max(int64(now.Sub(epoch))-p.monotonic.Load(), now.UnixNano()-p.wall.Load())
	return p.beaten.Load() && time.Duration(since) > suspendedAfter
}
