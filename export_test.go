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

// StoredName returns the Redis key of the cache key whose name with the prefix is full.
func StoredName(full string) string { return lease.Stored("", full) }

// AgeRefusals acts as if a minute had passed, so that the cache retries what Redis refused.
func (c *Cache) AgeRefusals(d time.Duration) {
	c.leases.mu.Lock()
	defer c.leases.mu.Unlock()
	c.leases.since = c.leases.since.Add(-d)
}
