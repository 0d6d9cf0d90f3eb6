package rediscache

import (
	"time"

	"github.com/rediscache/rediscache/internal/fill"
)

// SetBackoff replaces LoadBackoff.
func (v *View[V]) SetBackoff(d time.Duration) { v.backoffs.wait = d }

// SetLoadTime acts as if loads took d.
func (v *View[V]) SetLoadTime(d time.Duration) { v.loadTimes.add(d) }

// LeaseKey returns the Redis key of the lease of a cache key.
func LeaseKey(prefix, key string) string {
	return fill.LeaseName(prefix, fill.StoredName(prefix, key))
}
