// Package near keeps copies of what Redis holds in the memory of the process. Redis reports
// every write under the prefix of the cache to a tracking connection, and the report removes
// the copy.
package near

import (
	"bytes"
	"context"
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/maypok86/otter/v2"
)

// Reads use connections of their own, so a report can overtake the reply to a read, and a reply
// can overtake a report. These are the interleavings that lose or delay a report, and the step that
// makes each harmless.
//
// A late reply:
//
//  1. A reads key k: Redis executes GET and returns v1, but the reply is slow.
//  2. Another process writes v2. Redis reports k, and there is no copy to remove.
//  3. A gets v1 and stores it. No report follows, so v1 stays.
//
// So A puts a placeholder (a Fill in pending) before it sends GET, and stores v1 only if the same
// placeholder is still there. The report in 2 removes the placeholder. A write that Redis executes
// after the GET is reported later, and that report removes the copy instead. PTTL is sent after the
// placeholder too, so a write between GET and PTTL is such a write.
//
// A lost connection:
//
//  1. A puts its placeholder, and Redis executes its GET.
//  2. The tracking connection breaks, a write is not reported, and a new connection is ready.
//  3. A stores.
//
// So the epoch rises after a connection is subscribed and before copies are served. Begin loads the
// epoch first and then checks that copies are served. The copy carries the epoch of its placeholder,
// and Get serves it only in that epoch. If both checks pass in one epoch, one connection was subscribed
// from before the placeholder until Get. Get compares the epoch last, so a copy that it found before
// the epoch rose is not served either. A flush raises the epoch too, and so does the loss of a
// connection, to free the memory.
//
// A write of this process:
//
//  1. A sets v2 and gets the reply.
//  2. B finds the copy v1, joins a placeholder from before 1, or begins to fill. The report of 1 is
//     still under way.
//
// So A marks the key before it sends the write. The mark removes the copy and the placeholder, and
// while the key is marked nobody puts a placeholder, so nothing is found, joined or stored. A read
// that begins after the mark has ended is sent after the reply to the write. The mark ends after an
// error too. If Redis executes a write after its caller got an error, that write is reported like
// the write of another process.
//
// A read that stores nothing, because the key is marked or no copies are served:
//
//  1. Another process writes v2. The report is under way, and the copy is v1.
//  2. A reads v2 from Redis.
//  3. B finds the copy v1, which is older than what A returned.
//
// So before such a read returns, it removes every placeholder of the key, and a copy that differs
// from its reply (Saw). A fill that lost its placeholder does the same.
//
// A silent connection, or a process that was suspended, gets no reports at all. So copies are served
// only during a lease: until a fixed time after a PING was sent that the connection has answered.
// Reports and PONGs come in order, but Redis may send the PONG before the reports of writes of the
// same turn of its event loop. So the lease counts from the PING before the last one that was
// answered: that turn had ended when Redis executed the last one.
//
// So reads and writes of one Cache are linearizable for each key, as far as other processes do not
// write it. A write of another process is seen as soon as its report is processed, and no later than
// Lease after the write, plus the time that Get takes after its check.

// Lease is how long copies are served after the PING before the last one that was answered.
const Lease = time.Second

// between is the time between two PINGs. A lease has room for two of them and for a reply that takes
// half a second.
const between = Lease / 4

// Config configures a [Cache].
type Config struct {
	Bytes   int64         // bounds the memory of the copies
	TTL     time.Duration // bounds the time that a copy is kept; 0: only Redis does
	Prefix  string        // begins the names of all keys
	Borrow  func(ctx context.Context) (redis.Conn, error)
	Changed func(s State, err error) // is called after the state has changed, with the cause, if any
}

// State is the state of the tracking connection.
type State uint32

// The states.
const (
	Down    State = iota // no connection is subscribed, or it does not answer: no copies are served
	Live                 // copies are served
	Refused              // the server refuses tracking: no copies are served
	Closed
)

// Cache holds the copies. Its methods are safe for concurrent use.
type Cache struct {
	cfg    Config                      // immutable
	seed   maphash.Seed                // immutable
	base   time.Time                   // immutable; all times below count from it, by the monotonic clock
	copies *otter.Cache[uint64, *Copy] // by the hash of the name
	shards [shards]shard               // by the hash of the name
	epoch  atomic.Uint64               // raised when copies may be out of date
	until  atomic.Int64                // copies are served before this time
	state  atomic.Uint32               // a State
	stop   context.CancelFunc          // ends the goroutine of wg
	wg     sync.WaitGroup              // of the goroutine that keeps the tracking connection

	hits, misses, invalidations, drops atomic.Int64
}

const shards = 64

// shard holds the placeholders and the write marks of some keys. otter cannot hold them: it may evict
// an entry at any time, and an evicted mark would let a read store an old value. A copy is stored and
// removed under mu, so that it agrees with them. It is found without mu.
type shard struct {
	mu      sync.Mutex         // guards pending
	pending map[uint64]pending // by the hash of the name; only of keys that have one
}

type pending struct {
	fill    *Fill // the placeholder, if any; nil while there are writers
	writers int   // writes under way
}

// Copy is what a key held. It is immutable, but for decoded.
type Copy struct {
	data    []byte // the name, then the value
	name    int    // the length of the name
	found   bool
	epoch   uint64
	ends    int64 // the copy is not served from this time on
	expires int64 // Redis removes the key then, or up to slack later; never: it does not expire
	slack   int64
	decoded atomic.Pointer[decoded] // nil: none
}

// decoded is the value of a Copy as one owner decodes it.
type decoded struct{ owner, value any }

// Decoded returns the value that the owner has kept with KeepDecoded, or nil.
func (c *Copy) Decoded(owner any) any {
	if d := c.decoded.Load(); d != nil && d.owner == owner {
		return d.value
	}
	return nil
}

// KeepDecoded keeps the value that the owner has decoded, instead of that of another owner.
func (c *Copy) KeepDecoded(owner, value any) { c.decoded.Store(&decoded{owner, value}) }

const never = math.MaxInt64

// Found reports whether the key existed.
func (c *Copy) Found() bool { return c.found }

// Value returns the value, which the caller must not change.
func (c *Copy) Value() []byte { return c.data[c.name:] }

func (c *Copy) is(prefix, key string) bool {
	return c.name == len(prefix)+len(key) &&
		string(c.data[:len(prefix)]) == prefix && string(c.data[len(prefix):c.name]) == key
}

// overhead is about what an entry takes besides its name and value: the Copy, the rounding of its data
// to a size class, the node of otter and its places in the hash table and the sketch of frequencies.
const overhead = 288

func (c *Copy) weight() int64 { return int64(len(c.data)) + overhead }

// New makes a Cache and the goroutine that keeps its tracking connection. The caller must close it.
func New(cfg Config) *Cache {
	ctx, stop := context.WithCancel(context.Background())
	c := newCache(cfg)
	c.stop = stop
	c.wg.Go(func() { c.run(ctx) })
	return c
}

// newCache makes a Cache without a tracking connection.
func newCache(cfg Config) *Cache {
	c := &Cache{cfg: cfg, seed: maphash.MakeSeed(), base: time.Now(), stop: func() {}}
	for i := range c.shards {
		c.shards[i].pending = make(map[uint64]pending)
	}
	c.copies = otter.Must(&otter.Options[uint64, *Copy]{
		MaximumWeight: uint64(cfg.Bytes),
		Weigher:       func(_ uint64, copied *Copy) uint32 { return uint32(min(copied.weight(), math.MaxUint32)) },
	})
	return c
}

func (c *Cache) now() int64 { return int64(time.Since(c.base)) }

// hash returns the hash of a name. Two names may share a hash: a copy is served only under its own
// name, and removing the copy of another name is harmless.
func (c *Cache) hash(prefix, key string) uint64 {
	var room [128]byte
	return maphash.Bytes(c.seed, append(append(room[:0], prefix...), key...))
}

func (c *Cache) shard(hash uint64) *shard { return &c.shards[hash%shards] }

// Get returns the copy of a key, if it may be served now.
func (c *Cache) Get(prefix, key string) (*Copy, bool) {
	copied, ok := c.copies.GetIfPresent(c.hash(prefix, key))
	if ok && copied.is(prefix, key) {
		now := c.now()
		if now < copied.ends && now < c.until.Load() && copied.epoch == c.epoch.Load() { // the epoch last
			c.hits.Add(1)
			return copied, true
		}
	}
	c.misses.Add(1)
	return nil, false
}

// Left returns how long Redis keeps the key: at least left, and at most left plus slack. If the key does
// not expire, forever is true.
func (c *Cache) Left(copied *Copy) (left, slack time.Duration, forever bool) {
	if copied.expires == never {
		return 0, 0, true
	}
	return time.Duration(copied.expires - c.now()), time.Duration(copied.slack), false
}

// Fill is one read of a key from Redis, which may store a copy.
type Fill struct {
	c     *Cache
	hash  uint64
	name  string
	epoch uint64
	sent  int64 // before GET was sent

	done   chan struct{} // closed when the fields below are set
	copied *Copy         // nil: the read failed
	err    error         // of the read; nil if only its own caller has given up
}

// Begin begins a read of a key from Redis. If leads is true, the caller must read the key with GET and
// PTTL, and then call [Fill.Store] or [Fill.Fail]. Otherwise another caller does that, and [Fill.Wait]
// waits for it. If f is nil, the caller must read the key and then call [Cache.Saw].
func (c *Cache) Begin(prefix, key string) (f *Fill, leads bool) {
	epoch := c.epoch.Load() // first
	now := c.now()
	if now >= c.until.Load() {
		return nil, false
	}
	hash := c.hash(prefix, key)
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pending[hash]
	switch {
	case p.writers > 0:
		return nil, false
	case p.fill == nil || p.fill.epoch != epoch:
		f = &Fill{c: c, hash: hash, name: prefix + key, epoch: epoch, sent: now, done: make(chan struct{})}
		s.pending[hash] = pending{fill: f}
		return f, true
	case p.fill.name != prefix+key:
		return nil, false
	}
	return p.fill, false
}

// Special replies to PTTL.
const (
	noExpiry = -1
	missing  = -2
)

// Store ends the fill with the replies to GET and PTTL; value is nil if the key held none. It returns
// the copy for the caller, which other callers may share.
func (f *Fill) Store(value []byte, pttl int64) *Copy {
	c := f.c
	copied := f.copy(value, pttl)
	// A key with a time to live and without a value is of another type than a string, or was
	// stored between GET and PTTL.
	keeps := (copied.found || pttl == missing) && copied.weight() <= c.cfg.Bytes/4
	s := c.shard(f.hash)
	s.mu.Lock()
	if s.pending[f.hash].fill == f && keeps {
		c.copies.Set(f.hash, copied)
	} else {
		c.sawLocked(f.hash, f.name, copied.Value(), copied.found)
	}
	s.removeFillLocked(f.hash)
	s.mu.Unlock()
	f.copied = copied
	close(f.done)
	return copied
}

func (f *Fill) copy(value []byte, pttl int64) *Copy {
	copied := &Copy{
		name: len(f.name), found: value != nil && pttl != missing, epoch: f.epoch, ends: never, expires: never,
		slack: f.c.now() - f.sent + int64(2*time.Millisecond), // Redis counts whole milliseconds
	}
	if !copied.found {
		value = nil
	}
	copied.data = append(append(make([]byte, 0, len(f.name)+len(value)), f.name...), value...)
	if copied.found && pttl != noExpiry {
		pttl = min(pttl, never/4/int64(time.Millisecond)) // so that no sum overflows
		// Redis counted pttl after sent, so it keeps the key at least until then.
		copied.expires = f.sent + pttl*int64(time.Millisecond)
		copied.ends = copied.expires
	}
	if f.c.cfg.TTL > 0 {
		copied.ends = min(copied.ends, f.sent+int64(f.c.cfg.TTL))
	}
	return copied
}

// Fail ends the fill after an error of the read. gaveUp means that the context of its own caller ended,
// so the callers that wait must read the key again.
func (f *Fill) Fail(err error, gaveUp bool) {
	s := f.c.shard(f.hash)
	s.mu.Lock()
	if s.pending[f.hash].fill == f {
		s.removeFillLocked(f.hash)
	}
	s.mu.Unlock()
	if !gaveUp {
		f.err = err
	}
	close(f.done)
}

// Wait waits for the end of a fill. If both results are nil, the caller must read the key and then call
// [Cache.Saw].
func (f *Fill) Wait(ctx context.Context) (*Copy, error) {
	select {
	case <-f.done:
		return f.copied, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// removeFillLocked removes the placeholder of a key, if there is one.
func (s *shard) removeFillLocked(hash uint64) {
	if s.pending[hash].writers == 0 { // writers have removed it
		delete(s.pending, hash)
	}
}

// Saw must be called with the reply to a read from Redis that began no fill, before the reader returns.
func (c *Cache) Saw(prefix, key string, value []byte, found bool) {
	hash := c.hash(prefix, key)
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	c.sawLocked(hash, prefix+key, value, found)
	s.removeFillLocked(hash)
}

// sawLocked removes the copy of a key if it differs from what Redis returned.
func (c *Cache) sawLocked(hash uint64, name string, value []byte, found bool) {
	e, ok := c.copies.GetEntryQuietly(hash)
	if ok && (!e.Value.is("", name) || e.Value.found != found || !bytes.Equal(e.Value.Value(), value)) {
		c.copies.Invalidate(hash)
	}
}

// Mark is the mark of a key that is being written.
type Mark uint64

// BeginWrite marks a key before its write is sent. The caller must call [Cache.EndWrite] after the
// reply or the error, before the write returns.
func (c *Cache) BeginWrite(prefix, key string) Mark {
	hash := c.hash(prefix, key)
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[hash] = pending{writers: s.pending[hash].writers + 1}
	c.copies.Invalidate(hash)
	return Mark(hash)
}

// EndWrite ends a mark. There is no copy to remove: storing one needs a placeholder.
func (c *Cache) EndWrite(m Mark) {
	s := c.shard(uint64(m))
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.pending[uint64(m)].writers; n > 1 {
		s.pending[uint64(m)] = pending{writers: n - 1}
	} else {
		delete(s.pending, uint64(m))
	}
}

// invalidate removes the copy and the placeholder of a key that was written.
func (c *Cache) invalidate(name []byte) {
	hash := maphash.Bytes(c.seed, name)
	s := c.shard(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeFillLocked(hash)
	c.copies.Invalidate(hash)
}

// drop removes all copies, and makes all placeholders worthless.
func (c *Cache) drop() {
	c.epoch.Add(1)
	c.copies.InvalidateAll()
	c.drops.Add(1)
}

// Stats are the counts of a [Cache].
type Stats struct {
	State                              State
	Hits, Misses, Invalidations, Drops int64
	Entries, Bytes                     int64
}

// Stats returns the current counts.
func (c *Cache) Stats() Stats {
	return Stats{
		State: c.State(), Hits: c.hits.Load(), Misses: c.misses.Load(),
		Invalidations: c.invalidations.Load(), Drops: c.drops.Load(),
		Entries: int64(c.copies.EstimatedSize()), Bytes: int64(c.copies.WeightedSize()),
	}
}

// State returns the current state.
func (c *Cache) State() State {
	if s := State(c.state.Load()); s != Live || c.now() < c.until.Load() {
		return s
	}
	return Down
}

// Close ends the tracking connection and waits for its goroutine, for about a [Lease] if Redis does not
// answer. No copies are served after it. It may be called more than once.
func (c *Cache) Close() {
	c.stop()
	c.wg.Wait()
}
