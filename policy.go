package rediscache

import (
	"cmp"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Policy configures how a [View] stores and loads values. A Policy with only a TTL
// is plain cache-aside, whose loads are shared within the process. Each time is
// zero or at least a millisecond.
type Policy struct {
	// TTL is how long a value is fresh: a time, [DefaultTTL] (zero) for that of
	// [WithTTL], or [NoExpiry] for values that never expire. On a cache without
	// WithTTL zero is an error, because values that never expire must be the
	// program's choice: they fill the memory of Redis, and a Redis that evicts only
	// keys with a TTL (volatile-lru and the like) then refuses every write. Stale,
	// Jitter and Early need a TTL other than NoExpiry.
	TTL time.Duration

	// Stale is how much longer than TTL Redis keeps a value. [View.GetOrLoad]
	// returns such a stale value while a load in the background replaces it, and
	// when that load fails. Zero keeps no stale values. With Lease, if the stale
	// value expires during a load, the new value is not stored, as after a Delete.
	//
	// A stored value is fresh while Redis would keep it for longer than Stale, so a
	// new Stale also applies to values that are already stored.
	Stale time.Duration

	// Negative is how long a View remembers that a load returned [ErrNotFound].
	// Zero does not remember it. A View stores the empty string for that, so a
	// codec must not encode a value to the empty string.
	Negative time.Duration

	// Soft is how long a caller that found a stale value waits for a fresh value
	// before it returns the stale one; the load goes on. Zero does not wait. Soft
	// needs Stale, and must be less than Hard if Hard is set.
	Soft time.Duration

	// Hard bounds a load: after that time its context is cancelled, and its callers
	// get [context.DeadlineExceeded] or a stale value, even if the load ignores its
	// context. Zero sets no bound but the contexts of the callers, and
	// [DefaultRefreshTimeout] for a load in the background.
	Hard time.Duration

	// Lease lets one process at a time load a key. A load that began before a
	// Delete, by a View, a Cache or a handler in any process, or before a
	// [View.Set], stores nothing after it, and callers that come after the Delete do
	// not get its value. A load that began before a [Cache.Set], or a [Cache.Add] that
	// stored, does not overwrite that value. A [Cache.Touch] that gives the key more
	// time counts as a Set of the same value.
	//
	// Lease is how long other processes wait for the load before they load the key
	// themselves. It must be longer than a load takes: the value of a longer load is
	// returned but not stored. If Hard ends before Lease, other processes wait for
	// half of Hard. [Cache.Close] ends the wait with [ErrClosed]. Zero takes no
	// lease: loads are shared within the process only, and a load may store a value
	// that was deleted during the load, where it stays until its TTL ends.
	//
	// A lease is a Redis key in the same cluster slot as its key. Its name is the
	// key, five letters and a suffix, as in user:1:klnhj:rediscache-lease. A [Cache]
	// stores no value under such a name. All waits of a cache share their reads of
	// leases: at most one MGET every 5 ms. Each call adds one MGET for each 512 of
	// its keys when it begins to wait, and when a load that it waits for has ended.
	// A cache checks a lease every 5 ms at first, and every 100 ms if the load takes
	// long. A call that cannot read leases, or finds a lease free but cannot take
	// it, retries at the same rate.
	//
	// A cache ends leases with scripts, or with WATCH and MULTI if Redis refuses
	// scripts. If Redis refuses both, or refuses access to the keys of leases, the
	// cache takes no lease for a minute: it stores values as with a Lease of zero,
	// no caller waits, and an [Event] of "lease" with OutcomeError reports this once.
	Lease time.Duration

	// Jitter shortens each TTL by a random fraction between zero and Jitter, so that
	// values stored together do not expire together. It must be below 1; zero is no
	// jitter.
	Jitter float64

	// Early loads a value again before its TTL ends, in the background, with a
	// probability that rises towards the end and with the time that loads take. It
	// is the beta of XFetch (Vattani, Chierichetti and Lowenstein, "Optimal
	// Probabilistic Cache Stampede Prevention", VLDB 2015). Zero disables it, 1 is a
	// good value, a larger value loads earlier.
	Early float64

	// KeepDecoded keeps the decoded value beside each copy of [WithNearCache], so that a
	// hit of [View.Get], [View.GetOrLoad] and [View.GetOrLoadItem] decodes nothing. All
	// callers of a key get the same value: they must not change it, nor what it points
	// to. The memory of decoded values is not part of the bytes of WithNearCache. It is an
	// error without WithNearCache.
	KeepDecoded bool
}

// Times that no field of a [Policy] sets.
const (
	// DefaultRefreshTimeout bounds a load in the background when [Policy.Hard] is
	// zero.
	DefaultRefreshTimeout = time.Minute

	// LoadBackoff is how long a [View] does not load a key again after its load
	// failed, while the View has a stale value to return.
	LoadBackoff = time.Second
)

// validate reports all faults. cacheTTL is the TTL of the cache, or
// DefaultTTL if the cache has none.
func (p *Policy) validate(f *faults, cacheTTL time.Duration) {
	for _, d := range []struct {
		name string
		time.Duration
	}{
		{"Stale", p.Stale}, {"Negative", p.Negative}, {"Soft", p.Soft}, {"Hard", p.Hard}, {"Lease", p.Lease},
	} {
		f.check(d.Duration == 0 || d.Duration >= time.Millisecond,
			"Policy.%s: %v is neither zero nor a millisecond or more", d.name, d.Duration)
	}
	ttl := cmp.Or(p.TTL, cacheTTL)
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

// life returns how long Redis keeps a value with ttl, which is valid.
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

// early decides at random whether to load a value that is still fresh for left. delta
// is the average time of a load.
func (p *Policy) early(left, delta time.Duration) bool {
	return p.Early > 0 && -p.Early*float64(delta)*math.Log(1-rand.Float64()) >= float64(left)
}

// average is a moving average of durations, in which a new one weighs a quarter. The
// zero average is zero.
type average struct{ bits atomic.Uint64 }

func (a *average) get() time.Duration { return time.Duration(math.Float64frombits(a.bits.Load())) }

func (a *average) add(d time.Duration) {
	for {
		bits := a.bits.Load()
		next := float64(d)
		if bits != 0 {
			old := math.Float64frombits(bits)
			next = old + (next-old)/4
		}
		if a.bits.CompareAndSwap(bits, math.Float64bits(next)) {
			return
		}
	}
}

// backoffs holds the keys that must not be loaded before a time.
type backoffs struct {
	wait time.Duration // immutable

	mu    sync.Mutex // guards below
	until map[string]time.Time
	swept int // how many keys were left after add last removed the expired ones
}

// holds reports whether key must not be loaded now.
func (b *backoffs) holds(key string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	until, ok := b.until[key]
	return ok && time.Now().Before(until)
}

// add backs off for key. When the map has grown to twice its size after the last
// sweep and a thousand more, add removes the expired keys. So the sweeps cost little
// on average, and the map stays within about twice the keys that matter.
func (b *backoffs) add(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.until == nil {
		b.until = make(map[string]time.Time)
	}
	now := time.Now()
	if len(b.until) >= 2*b.swept+1000 {
		for key, until := range b.until {
			if !now.Before(until) {
				delete(b.until, key)
			}
		}
		b.swept = len(b.until)
	}
	b.until[key] = now.Add(b.wait)
}

func (b *backoffs) forget(keys []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, key := range keys {
		delete(b.until, key)
	}
}
