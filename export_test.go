package rediscache

import (
	"time"

	"github.com/rediscache/rediscache/internal/lease"
)

// SetBackoff replaces LoadBackoff.
func (v *View[V]) SetBackoff(d time.Duration) { v.failed.wait = d }

// SetLoadTime says how long loads took.
func (v *View[V]) SetLoadTime(d time.Duration) { v.took.add(d) }

// LeaseKey names the lease of a key.
func LeaseKey(prefix, key string) string { return (&Cache{prefix: prefix}).leaseName(key) }

// StoredName returns the name under which Redis holds a key, of which full is the whole name.
func StoredName(full string) string { return lease.Stored("", full) }

// AgeRefusals is what time does: what Redis refused a minute ago is tried again.
func (c *Cache) AgeRefusals(d time.Duration) {
	c.leases.mu.Lock()
	defer c.leases.mu.Unlock()
	c.leases.since = c.leases.since.Add(-d)
}
