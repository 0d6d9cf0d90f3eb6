package rediscache

import (
	"context"
	"time"
)

// Observer receives the events of a cache. Many goroutines call Observe at once, and
// the call that caused the event waits for it, so Observe must be quick.
type Observer interface {
	Observe(ctx context.Context, e Event)
}

// ObserverFunc adapts a function to an [Observer].
type ObserverFunc func(ctx context.Context, e Event)

// Observe calls f.
func (f ObserverFunc) Observe(ctx context.Context, e Event) { f(ctx, e) }

// Event is the outcome for one key, or the error of a call. A call that gets or loads
// values has one event for each key. After a miss it has a second event for the key if
// it waited for the load of another call. A load has an event of its own.
type Event struct {
	// Op is the method in lower case, such as "get" or "get or load", or a step
	// of a load: "load", "lease" or "fill".
	Op string
	// Key has no prefix. It is empty for the error of a call for many keys, and
	// for a load of many keys.
	Key     string
	Outcome Outcome
	// Took is the time since the method, or the step of the load, began.
	Took time.Duration
	// Err is the error of a call or a load. For a miss it is the error of the
	// codec, for a stale value the error of the load, if any.
	Err error
}

// Outcome is the kind of an [Event].
type Outcome string

// The outcomes.
const (
	OutcomeHit      Outcome = "hit"      // the key had a value
	OutcomeMiss     Outcome = "miss"     // the key had no value, a value that the codec cannot decode, or a stale value that was replaced in time
	OutcomeStale    Outcome = "stale"    // the call returned a value past its TTL
	OutcomeNegative Outcome = "negative" // the View remembers that there is no value
	OutcomeLoad     Outcome = "load"     // a load ended
	OutcomeShared   Outcome = "shared"   // the call waited for a load that another call began
	OutcomeRefused  Outcome = "refused"  // a loaded value was not stored, because a Delete or a Set came between, or the wait for the lease timed out
	OutcomeError    Outcome = "error"    // a command or the codec failed
)

// Stats are the counts of a [Cache], its Subs and its views since the cache was made.
type Stats struct {
	Hits    int64 // keys whose value was returned, stale ones included
	Misses  int64 // keys without a value, or with a stale value that was replaced within Soft
	Sets    int64 // values stored
	Deletes int64 // keys that Delete removed
	Errors  int64 // failed calls; a miss is no error

	// Only views raise these.
	Stale     int64 // hits past their TTL
	Negatives int64 // keys remembered to have no value; neither hits nor misses
	Loads     int64 // calls of a load
	Shared    int64 // keys for which a call waited for the load of another call
	Refused   int64 // loaded values that were not stored, see OutcomeRefused

	Near NearStats // of WithNearCache
}

// Stats returns the current counts.
func (c *Cache) Stats() Stats {
	n := c.counts
	return Stats{
		Hits: n.hits.Load(), Misses: n.misses.Load(), Sets: n.sets.Load(),
		Deletes: n.deletes.Load(), Errors: n.errs.Load(),
		Stale: n.stale.Load(), Negatives: n.negatives.Load(), Loads: n.loads.Load(),
		Shared: n.shared.Load(), Refused: n.refused.Load(),
		Near: c.nearStats(),
	}
}

// now returns the time when a call begins, or the zero time without an observer.
func (c *Cache) now() time.Time {
	if c.observer == nil {
		return time.Time{}
	}
	return time.Now()
}

func (c *Cache) observe(ctx context.Context, op, key string, o Outcome, start time.Time, err error) {
	if c.observer != nil {
		c.observer.Observe(ctx, Event{Op: op, Key: key, Outcome: o, Took: time.Since(start), Err: err})
	}
}

// fail counts and observes an error, and returns it with its sentinel.
func (c *Cache) fail(ctx context.Context, op, key string, start time.Time, err error) error {
	c.counts.errs.Add(1)
	fault := newOpError(op, err)
	c.observe(ctx, op, key, OutcomeError, start, fault)
	return fault
}

func (c *Cache) hit(ctx context.Context, op, key string, start time.Time) {
	c.counts.hits.Add(1)
	c.observe(ctx, op, key, OutcomeHit, start, nil)
}

func (c *Cache) missed(ctx context.Context, op, key string, start time.Time, err error) {
	c.counts.misses.Add(1)
	c.observe(ctx, op, key, OutcomeMiss, start, err)
}

func (c *Cache) stale(ctx context.Context, op, key string, start time.Time, err error) {
	c.counts.hits.Add(1)
	c.counts.stale.Add(1)
	c.observe(ctx, op, key, OutcomeStale, start, err)
}

func (c *Cache) negative(ctx context.Context, op, key string, start time.Time) {
	c.counts.negatives.Add(1)
	c.observe(ctx, op, key, OutcomeNegative, start, nil)
}
