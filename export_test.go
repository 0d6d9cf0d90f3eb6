package rediscache

import "time"

// SetBackoff replaces LoadBackoff.
func (v *View[V]) SetBackoff(d time.Duration) { v.failed.wait = d }

// SetLoadTime says how long loads took.
func (v *View[V]) SetLoadTime(d time.Duration) { v.took.add(d) }

// LeaseKey names the lease of a key.
var LeaseKey = leaseKey
