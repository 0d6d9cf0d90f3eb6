package warm

import (
	"context"
	"errors"
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

// pulse is when the process was last seen to run. While a process is suspended its
// monotonic clock runs on. While a machine is suspended the monotonic clock may stop,
// but the wall clock jumps when the machine resumes. So Suspended looks at both.
type pulse struct{ last time.Time }

// suspendedAfter is longer than a busy machine delays the janitor, and shorter
// than anything between client and server takes to forget a connection.
const suspendedAfter = 2 * time.Second

func (p *pulse) beat(now time.Time) { p.last = now }

// missed reports whether the process was suspended since the last beat.
func (p *pulse) missed(now time.Time) bool { return Suspended(p.last, now) }

// Suspended reports whether the process was suspended between last, when it was seen to
// run, and now.
func Suspended(last, now time.Time) bool {
	return max(now.Sub(last), now.Round(0).Sub(last.Round(0))) > suspendedAfter
}
