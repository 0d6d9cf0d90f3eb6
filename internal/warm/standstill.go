package warm

import (
	"context"
	"errors"
	"time"
)

// A process that stands still, for a debugger or a hypervisor, finds its timers
// over when it goes on, and in its sockets what it waited for. That a timer
// comes so late tells.
const standstill = 50 * time.Millisecond

// lost is how much longer may last what had d until due: the time that the
// process is seen to have stood still, but not more than d again.
func lost(due time.Time, d time.Duration) time.Duration {
	if late := time.Since(due); late > standstill {
		return min(late, d)
	}
	return 0
}

// Within returns a context that ends with ctx, or with context.DeadlineExceeded once the process has
// run for d. The context reports no deadline of its own, because a suspension moves it.
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

// within returns context.DeadlineExceeded from Err where its own time ran out. It tells that by a
// cause that no other context has: a caller's context may be cancelled with a cause that matches
// context.DeadlineExceeded too, and then Err returns context.Canceled, as the caller's does.
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

// expiry is the cause of one context's end. It matches context.DeadlineExceeded.
type expiry struct{ error }

func (e *expiry) Unwrap() error { return e.error }
