package pace

import (
	"time"

	"golang.org/x/sys/unix"
)

// Thread asks for timers without slack for the calling thread, which the caller
// has locked: by default the kernel may be 50 us late.
func Thread() {
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // refused: the sleeps are a little longer
}

// SleepUntil sleeps in the kernel until due. A signal may end a sleep early, hence
// the loop.
func SleepUntil(due time.Time) {
	for d := untilDue(due); d > 0; d = untilDue(due) {
		t := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&t, nil) // interrupted: the loop goes on
	}
}
