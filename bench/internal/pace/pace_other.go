//go:build !linux

package pace

import "time"

// Thread does nothing: this system has no timer slack to set.
func Thread() {}

// SleepUntil sleeps until due.
func SleepUntil(due time.Time) { time.Sleep(untilDue(due)) }
