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

// Within returns a context that ends once the process has run for d, for which
// Ended has a name. It has no deadline of its own, as that may move.
func Within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	var arm func(time.Duration) *time.Timer
	arm = func(d time.Duration) *time.Timer {
		due := time.Now().Add(d)
		return time.AfterFunc(d, func() {
			if more := lost(due, d); more > 0 && ctx.Err() == nil {
				arm(more)
				return
			}
			cancel(context.DeadlineExceeded)
		})
	}
	if d <= 0 {
		cancel(context.DeadlineExceeded)
	}
	first := arm(d)
	return ctx, func() {
		first.Stop()
		cancel(nil)
	}
}

// Ended is the error of a context, and for the own end of one of Within
// context.DeadlineExceeded.
func Ended(ctx context.Context) error {
	err := ctx.Err()
	if err != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		return context.DeadlineExceeded
	}
	return err
}

// pulse knows when the process was last seen to run. A suspended process leaves
// its monotonic clock running, a suspended machine may not, but sets the wall
// clock forward when it goes on.
type pulse struct{ last time.Time }

// suspendedAfter is longer than a busy machine delays the janitor, and shorter
// than anything between client and server takes to forget a connection.
const suspendedAfter = 2 * time.Second

func (p *pulse) beat(now time.Time) { p.last = now }

// missed reports that the process was not seen to run for long.
func (p *pulse) missed(now time.Time) bool {
	return max(now.Sub(p.last), now.Round(0).Sub(p.last.Round(0))) > suspendedAfter
}
