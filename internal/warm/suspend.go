package warm

import (
	"sync/atomic"
	"time"
)

// When a process resumes after a suspension, by a debugger or a hypervisor, its timers
// have expired although its sockets may hold the awaited data. A timer that fires this
// much late shows that the process was suspended.
const lateTimer = 50 * time.Millisecond

// lost returns how far to extend a wait of d that expired at due while the process was
// suspended: as long as the timer is late, at most d, and zero if it is not late.
func lost(due time.Time, d time.Duration) time.Duration {
	if late := time.Since(due); late > lateTimer {
		return min(late, d)
	}
	return 0
}

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
