package rediscache

import (
	"cmp"
	"math"
	"math/rand/v2"
	"time"
)

// Policy says how a [View] keeps values and loads them. A Policy with nothing
// but a TTL is plain cache-aside, whose loads are shared within the process.
// Each time is zero or a millisecond or more.
type Policy struct {
	// TTL is how long a value is fresh: a time, [DefaultTTL] (zero) for that of
	// [WithTTL], or [NoExpiry] for values that never expire. On a cache without
	// WithTTL zero is an error: values without an end fill the memory of Redis,
	// and where Redis evicts only keys that expire (volatile-lru and the like)
	// it then refuses every write. So the program has to ask for them. Stale,
	// Jitter and Early need a TTL that ends.
	TTL time.Duration

	// Stale is how much longer a value is kept to be served while it is loaded
	// anew, in the background and with the values of the caller's context (see
	// [View.GetOrLoad]), and when that fails. Zero keeps none. With Lease what is loaded
	// while that time ends is not stored, as if the key had been deleted.
	//
	// A stored value is fresh while Redis would keep it for longer than Stale,
	// so a new Stale, once deployed, applies to what is stored already.
	Stale time.Duration

	// Negative is how long it is remembered that a load returned
	// [ErrNotFound]. Zero does not remember. What is stored for that is the
	// empty string, so a codec may not encode anything to that.
	Negative time.Duration

	// Soft is how long a caller that found a stale value waits for a fresh one
	// before it takes the stale one; the load goes on. Zero does not wait. It
	// needs Stale, and is less than Hard if there is one.
	Soft time.Duration

	// Hard is when a load is given up: its context ends, and its callers get
	// [context.DeadlineExceeded] or a stale value, whether or not the load has
	// noticed. Zero leaves that to the callers' contexts, and to
	// [DefaultRefreshTimeout] if none waits.
	Hard time.Duration

	// Lease lets one process at a time load a key, and keeps a load that began
	// before a Delete, of a View, a Cache or a handler, or before a View's Set
	// from storing its value, and from returning it to callers that came after
	// that Delete. A load that began before a Cache's Set stores nothing over the
	// value of that Set. Lease is how long the other processes wait for that
	// process before they load for themselves, and must be longer than a load
	// takes: the value of a load that takes longer is returned and not stored.
	// With Hard they wait for half of that at most, and [Cache.Close] ends the
	// wait with [ErrClosed]. Zero shares loads within the process alone, and a
	// value that is deleted during a load may be stored again by it, until its
	// TTL ends.
	//
	// A lease is a key of its own, in the slot of its key: the name of the key
	// and then five letters, such as in user:1:klnhj:rediscache-lease. No key
	// that a cache stores is named so, see [Cache]. All waits of a
	// cache share their looks at leases: one MGET every 5 ms at most. Each call has
	// one more for each 512 of its keys when it begins to wait, and when what it
	// waits for has ended. Looks at one load become rarer the longer it takes, from
	// every 5 ms to every 100 ms. A call that cannot look, or finds a lease free and
	// does not get it, tries again as rarely.
	//
	// Leases are ended by scripts, or by WATCH and MULTI where Redis refuses
	// scripts. Where it refuses both, or the keys of leases, no lease is taken for
	// a minute: values are stored as with Lease zero, nobody waits, and an [Event]
	// of "lease" with OutcomeError says so once.
	Lease time.Duration

	// Jitter shortens each TTL by a random fraction of it, up to this one, so
	// that what was stored together does not end together. It is below 1.
	Jitter float64

	// Early loads a value anew before its TTL ends, the earlier the longer
	// loads take, at random and in the background, as with Stale: XFetch of Vattani, Chierichetti
	// and Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB
	// 2015, of which this is beta. Zero does not, 1 is a good value, more is
	// earlier.
	Early float64
}

// Times that a [Policy] does not say.
const (
	// DefaultRefreshTimeout bounds a load that goes on in the background when
	// there is no [Policy.Hard].
	DefaultRefreshTimeout = time.Minute

	// LoadBackoff is how long a process does not ask for a key again whose load
	// has failed, while it has a stale value to return.
	LoadBackoff = time.Second
)

// validate reports every fault, not the first. own is the TTL that the cache
// was given, or DefaultTTL if none.
func (p *Policy) validate(f *faults, own time.Duration) {
	for _, d := range []struct {
		name string
		time.Duration
	}{
		{"Stale", p.Stale}, {"Negative", p.Negative}, {"Soft", p.Soft}, {"Hard", p.Hard}, {"Lease", p.Lease},
	} {
		f.check(d.Duration == 0 || d.Duration >= time.Millisecond,
			"Policy.%s: %v is neither zero nor a millisecond or more", d.name, d.Duration)
	}
	ttl := cmp.Or(p.TTL, own)
	f.check(ttl != DefaultTTL, "Policy.TTL: it is zero and the cache has no WithTTL:"+
		" write a time in either, or NoExpiry for values that never expire")
	f.check(ttl == DefaultTTL || ttl == NoExpiry || ttl >= time.Millisecond,
		"Policy.TTL: %v is none of DefaultTTL, NoExpiry and a millisecond or more", ttl)
	f.check(p.Jitter >= 0 && p.Jitter < 1, "Policy.Jitter: %v is not in [0, 1)", p.Jitter)
	f.check(p.Early >= 0 && !math.IsInf(p.Early, 1), "Policy.Early: %v is not a number from 0 on", p.Early)
	f.check(ttl != NoExpiry || p.Stale == 0, "Policy.Stale: nothing is ever stale with NoExpiry")
	f.check(ttl != NoExpiry || p.Jitter == 0, "Policy.Jitter: there is no TTL to shorten with NoExpiry")
	f.check(ttl != NoExpiry || p.Early == 0, "Policy.Early: nothing is ever early with NoExpiry")
	f.check(ttl <= math.MaxInt64-max(p.Stale, 0), "Policy.Stale: %v and the TTL exceed the longest time", p.Stale)
	f.check(p.Soft == 0 || p.Stale != 0, "Policy.Soft: there is no stale value to return without Stale")
	f.check(p.Soft == 0 || p.Hard == 0 || p.Soft < p.Hard, "Policy.Soft: %v is not before Hard, %v", p.Soft, p.Hard)
}

// life is how long Redis is to keep a value with that TTL, which is valid.
func (p *Policy) life(ttl time.Duration) time.Duration {
	if ttl == NoExpiry {
		return NoExpiry
	}
	ttl -= time.Duration(p.Jitter * rand.Float64() * float64(ttl))
	if ttl = max(ttl, time.Millisecond); ttl > math.MaxInt64-p.Stale {
		return math.MaxInt64
	}
	return ttl + p.Stale
}

// early draws whether a value that is fresh for left is to be loaded anew now,
// where a load takes delta.
func (p *Policy) early(left, delta time.Duration) bool {
	return p.Early > 0 && -p.Early*float64(delta)*math.Log(1-rand.Float64()) >= float64(left)
}
