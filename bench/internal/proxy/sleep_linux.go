package proxy

import (
	"time"

	"golang.org/x/sys/unix"
)

// preciseSleep asks for timers without slack for this thread: the default lets
// the kernel be 50 us late.
func preciseSleep() {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // refused: the delay is a little longer
}

// sleepUntil sleeps in the kernel, which is exact to a few microseconds. A
// signal may end a sleep early, hence the loop.
func sleepUntil(due time.Time) {
	for d := untilDue(due); d > 0; d = untilDue(due) {
		t := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&t, nil) // interrupted: the loop goes on
	}
}
