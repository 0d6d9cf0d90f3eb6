package rediscache

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/rediscache/rediscache/internal/warm"
)

// Observer receives the events of a cache. Many goroutines call Observe at once, and
// the call that caused the event waits for it, so Observe must be quick. An Observer may
// also be a [Starter] and an [Ender], for example to make a span of each call.
type Observer interface {
	Observe(ctx context.Context, e Event)
}

// Starter is an [Observer] that wants to know when a call begins.
type Starter interface {
	// Start is called before each method call that has events, and before each call of a
	// load, for which op is "load". op and key are those of [Event]. Start returns ctx or
	// a context that was made from it. That is the context of the call, of its events and
	// of its load, so a span in it is the parent of the spans of the load. A load may go
	// on after the call has ended, and has events with the context of the call.
	Start(ctx context.Context, op, key string) context.Context
}

// Ender is an [Observer] that wants to know when a call ends.
type Ender interface {
	// End is called after the last event of a call, or of a load, with the context of the
	// [Starter] and the same op. err is the error that the call returns: [ErrNotFound]
	// after a miss.
	End(ctx context.Context, op string, err error)
}

// ObserverFunc adapts a function to an [Observer].
type ObserverFunc func(ctx context.Context, e Event)

// Observe calls f.
func (f ObserverFunc) Observe(ctx context.Context, e Event) { f(ctx, e) }

// Event is the outcome for one key, or of a call. A call that gets or loads values has
// one event for each key. After a miss it has a second event for the key if it waited
// for the load of another call. Any other call has one event, and a load has an event of
// its own. A call with an invalid argument, or without keys, has none.
type Event struct {
	// Op is the method in lower case, such as "get" or "get or load", or a step
	// of a load: "load", "lease" or "fill". It is "group" for the version of a [Group]
	// that could not be read, and "near" for [WithNearCache].
	Op string
	// Prefix is that of the cache: of [WithPrefix] and [Cache.Sub].
	Prefix string
	// Key has no prefix. It is the name of a [Group] for "group" and "invalidate". It is
	// empty for a load of many keys, for the error of a call with many keys, for a "set
	// many", for a "delete" of many keys, and for a call without a key.
	Key     string
	Outcome Outcome
	// Count is the number of values that the call stored or of keys that it removed. It
	// is zero for any other call, and after an error.
	Count int64
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
	OutcomeOK       Outcome = "ok"       // a call that gets no value succeeded, or a step of a load that stores one
	OutcomeError    Outcome = "error"    // a command or the codec failed
)

// PoolEvent is something that happened to a [WarmPool], for the function of
// [WithPoolObserver].
type PoolEvent struct {
	Kind PoolEventKind
	// Err is why Redis is down: a [*DialError].
	Err error
	// After is how long Redis was down before it was up.
	After time.Duration
	// Reason is why a connection was closed: "idle", "lifetime", "broken", "state" or
	// "shutdown", as the fields of [PoolClosed].
	Reason string
}

// PoolEventKind is the kind of a [PoolEvent].
type PoolEventKind string

// The kinds of pool events.
const (
	PoolDown       PoolEventKind = "down"              // a dial failed, the first since a dial succeeded; open connections may still work
	PoolUp         PoolEventKind = "up"                // a dial succeeded, the first after PoolDown
	PoolConnClosed PoolEventKind = "connection closed" // the pool closes a connection
)

// poolObserver returns f as an observer of the store, or nil.
func poolObserver(f func(PoolEvent)) func(warm.Event) {
	if f == nil {
		return nil
	}
	kinds := map[warm.EventKind]PoolEventKind{warm.Down: PoolDown, warm.Up: PoolUp, warm.ConnClosed: PoolConnClosed}
	return func(e warm.Event) {
		f(PoolEvent{Kind: kinds[e.Kind], Err: exportDialError(e.Err), After: e.After, Reason: e.Reason})
	}
}

// Stats are the counts of a [Cache], with its Subs and its views, since it was made.
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

	Near NearStats // of WithNearCache; a Sub has those of the whole cache
}

// Stats returns the current counts. Those of a [Cache.Sub] are its own, and the cache of
// which it is a Sub includes them.
func (c *Cache) Stats() Stats {
	n := func(k count) int64 { return c.counts.n[k].Load() }
	return Stats{
		Hits: n(countHits), Misses: n(countMisses), Sets: n(countSets), Deletes: n(countDeletes), Errors: n(countErrors),
		Stale: n(countStale), Negatives: n(countNegatives), Loads: n(countLoads), Shared: n(countShared), Refused: n(countRefused),
		Near: c.nearStats(),
	}
}

// counts are the counts of a cache or a Sub.
type counts struct {
	parent *counts // includes these; nil for a cache that is no Sub
	n      [numCounts]atomic.Int64
}

type count int

const (
	countHits count = iota
	countMisses
	countSets
	countDeletes
	countErrors
	countStale
	countNegatives
	countLoads
	countShared
	countRefused
	numCounts
)

func (n *counts) add(k count, by int64) {
	for ; n != nil; n = n.parent {
		n.n[k].Add(by)
	}
}

// watchers are the observers of a cache.
type watchers struct {
	observers []Observer
	starters  []Starter // of observers
	enders    []Ender   // of observers, the last first
}

func newWatchers(observers []Observer) (w watchers) {
	w.observers = observers
	for _, o := range observers {
		if s, ok := o.(Starter); ok {
			w.starters = append(w.starters, s)
		}
		if e, ok := o.(Ender); ok {
			w.enders = slices.Insert(w.enders, 0, e)
		}
	}
	return w
}

// operation is a call of a method, or a step of a load, that is counted and observed.
type operation struct {
	c     *Cache
	ctx   context.Context
	name  string // Event.Op
	key   string
	began time.Time // zero without an observer
}

// begin begins a call of a method or of a load. The caller must use the context that
// begin returns, and call end.
func (c *Cache) begin(ctx context.Context, name, key string) (context.Context, operation) {
	for _, s := range c.watchers.starters {
		ctx = s.Start(ctx, name, key)
	}
	return ctx, c.step(ctx, name, key)
}

// step begins a step of a load, which has no context of its own.
func (c *Cache) step(ctx context.Context, name, key string) operation {
	o := operation{c: c, ctx: ctx, name: name, key: key}
	if len(c.watchers.observers) > 0 {
		o.began = time.Now()
	}
	return o
}

// end ends a call that begin began.
func (o operation) end(err *error) {
	for _, e := range o.c.watchers.enders {
		e.End(o.ctx, o.name, *err)
	}
}

// of returns the part of o for one of its keys.
func (o operation) of(key string) operation {
	o.key = key
	return o
}

func (o operation) observe(outcome Outcome, count int64, err error) {
	if len(o.c.watchers.observers) == 0 {
		return
	}
	e := Event{
		Op: o.name, Prefix: o.c.prefix, Key: o.key, Outcome: outcome,
		Count: count, Took: time.Since(o.began), Err: err,
	}
	for _, w := range o.c.watchers.observers {
		w.Observe(o.ctx, e)
	}
}

// fail counts and observes an error, and returns it with its sentinel.
func (o operation) fail(err error) error {
	o.c.counts.add(countErrors, 1)
	fault := newOpError(o.name, err)
	o.observe(OutcomeError, 0, fault)
	return fault
}

func (o operation) hit() {
	o.c.counts.add(countHits, 1)
	o.observe(OutcomeHit, 0, nil)
}

func (o operation) missed(err error) {
	o.c.counts.add(countMisses, 1)
	o.observe(OutcomeMiss, 0, err)
}

func (o operation) stale(err error) {
	o.c.counts.add(countHits, 1)
	o.c.counts.add(countStale, 1)
	o.observe(OutcomeStale, 0, err)
}

func (o operation) negative() {
	o.c.counts.add(countNegatives, 1)
	o.observe(OutcomeNegative, 0, nil)
}

func (o operation) shared(err error) {
	o.c.counts.add(countShared, 1)
	o.observe(OutcomeShared, 0, err)
}

func (o operation) stored(n int64) {
	o.c.counts.add(countSets, n)
	o.observe(OutcomeOK, n, nil)
}

func (o operation) refused() {
	o.c.counts.add(countRefused, 1)
	o.observe(OutcomeRefused, 0, nil)
}
