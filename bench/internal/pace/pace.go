// Package pace sleeps to within microseconds. The Go scheduler rounds the sleep
// of an idle process up to a millisecond.
package pace

import "time"

// untilDue returns how long to sleep. What is closer than near is due.
func untilDue(due time.Time) time.Duration {
	const near = 5 * time.Microsecond
	return max(0, time.Until(due)-near)
}
