package rediscache

import "time"

// SetBackoff replaces LoadBackoff.
func (v *View[V]) SetBackoff(d time.Duration) { v.backoffs.wait = d }

// SetLoadTime acts as if loads took d.
func (v *View[V]) SetLoadTime(d time.Duration) { v.loadTimes.add(d) }
