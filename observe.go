package rediscache

import (
	"context"
	"time"
)

// Observer is told what becomes of a cache's calls. Observe is called by many
// goroutines at once and by the one that it holds up: it must be quick.
type Observer interface {
	Observe(ctx context.Context, e Event)
}

// ObserverFunc is a function that is an [Observer].
type ObserverFunc func(ctx context.Context, e Event)

// Observe calls f.
func (f ObserverFunc) Observe(ctx context.Context, e Event) { f(ctx, e) }

// Event is what became of one key, or of a call that failed. A call that gets
// or loads values of keys has one event for each: how it was served, or that
// there was a miss and then, if it shared another's load, that. A load has an
// event of its own.
type Event struct {
	// Op is the method in lower case, such as "get" or "get or load", or what
	// is done within one: "load", "lease" or "fill".
	Op string
	// Key is without the cache's prefix. It is empty if a call for many keys
	// failed.
	Key     string
	Outcome Outcome
	// Took is the time since the method, or that part of it, began.
	Took time.Duration
	// Err is why: of a load its error, of a miss what could not be decoded, of
	// a stale value the failed load for which it stands in.
	Err error
}

// Outcome is what an [Event] tells of.
type Outcome string

// The outcomes.
const (
	OutcomeHit      Outcome = "hit"      // there was a value
	OutcomeMiss     Outcome = "miss"     // there was none, none that can be decoded, or a stale one that was replaced in time
	OutcomeStale    Outcome = "stale"    // a value past its TTL was returned
	OutcomeNegative Outcome = "negative" // it was remembered that there is none
	OutcomeLoad     Outcome = "load"     // a load ended
	OutcomeShared   Outcome = "shared"   // a load that another call began was waited for
	OutcomeRefused  Outcome = "refused"  // what was loaded was not stored: something came between
	OutcomeError    Outcome = "error"    // Redis could not be asked, or told
)

// Stats are the counts of a [Cache], its Subs and its views since it was made.
type Stats struct {
	Hits    int64 // keys that held a value, which was returned
	Misses  int64 // keys that held none, or a stale one that Soft waited to replace
	Sets    int64 // values stored
	Deletes int64 // keys that Delete found
	Errors  int64 // calls that failed, misses not among them

	// What views count besides.
	Stale     int64 // of the hits, those past their TTL
	Negatives int64 // keys known to have no value, neither hits nor misses
	Loads     int64 // calls of a load
	Shared    int64 // keys for which a load that another call began was waited for
	Refused   int64 // keys whose value was loaded and not stored: something came between
}

// Stats returns the counts of this moment.
func (c *Cache) Stats() Stats {
	n := c.counts
	return Stats{
		Hits: n.hits.Load(), Misses: n.misses.Load(), Sets: n.sets.Load(),
		Deletes: n.deletes.Load(), Errors: n.errs.Load(),
		Stale: n.stale.Load(), Negatives: n.negatives.Load(), Loads: n.loads.Load(),
		Shared: n.shared.Load(), Refused: n.refused.Load(),
	}
}

// begin is when a call began, if anybody wants to know.
func (c *Cache) begin() time.Time {
	if c.observer == nil {
		return time.Time{}
	}
	return time.Now()
}

func (c *Cache) observe(ctx context.Context, op, key string, o Outcome, begin time.Time, err error) {
	if c.observer != nil {
		c.observer.Observe(ctx, Event{Op: op, Key: key, Outcome: o, Took: time.Since(begin), Err: err})
	}
}

// fail counts an error, tells of it, and says which of the sentinels it
// amounts to.
func (c *Cache) fail(ctx context.Context, op, key string, begin time.Time, err error) error {
	c.counts.errs.Add(1)
	fault := &opError{op: op, is: sentinel(err), cause: err}
	c.observe(ctx, op, key, OutcomeError, begin, fault)
	return fault
}

func (c *Cache) hit(ctx context.Context, op, key string, begin time.Time) {
	c.counts.hits.Add(1)
	c.observe(ctx, op, key, OutcomeHit, begin, nil)
}

func (c *Cache) missed(ctx context.Context, op, key string, begin time.Time, err error) {
	c.counts.misses.Add(1)
	c.observe(ctx, op, key, OutcomeMiss, begin, err)
}

func (c *Cache) stale(ctx context.Context, op, key string, begin time.Time, err error) {
	c.counts.hits.Add(1)
	c.counts.stale.Add(1)
	c.observe(ctx, op, key, OutcomeStale, begin, err)
}

func (c *Cache) negative(ctx context.Context, op, key string, begin time.Time) {
	c.counts.negatives.Add(1)
	c.observe(ctx, op, key, OutcomeNegative, begin, nil)
}
