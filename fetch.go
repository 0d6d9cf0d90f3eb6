package rediscache

import (
	"context"
	"crypto/sha1" // names what a key held, and keeps no secret
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rediscache/rediscache/internal/flight"
	"github.com/rediscache/rediscache/internal/lease"
	"github.com/rediscache/rediscache/internal/pipeline"
)

// job is one key of a load. One goroutine at a time uses it.
type job[V any] struct {
	key   string
	from  entry[V]                // what the key held when the load began
	seen  uint64                  // flights.Ended before from was read
	call  *flight.Call[result[V]] // takes the result
	lease string                  // the name of the lease; "": no lease is taken
	token string                  // of the lease while this job holds it; "": it does not
	wait  lease.Item              // while another process holds the lease
	lost  bool                    // a read from Redis failed: nothing is stored
	late  bool                    // the wait for the lease timed out: nothing is stored

	result *result[V]    // nil: none yet
	data   []byte        // to store
	life   time.Duration // of data; 0: nothing is stored
}

// remove, as a life, deletes the key.
const remove time.Duration = -2

func (v *View[V]) job(key string, e entry[V], seen uint64) *job[V] {
	j := &job[V]{key: key, from: e, seen: seen, lost: e.state == unread}
	if v.policy.Lease > 0 && v.c.leases.way() != noWay {
		j.lease = v.c.leaseName(key)
	}
	return j
}

// digestOf returns the digest of data, or "" for nil.
func digestOf(data []byte) string {
	if data == nil {
		return ""
	}
	return digest(data)
}

func digest(data []byte) string {
	sum := sha1.Sum(data)
	return hex.EncodeToString(sum[:])
}

// has reports whether there is an older value to fall back on.
func (j *job[V]) has() bool { return j.from.state >= stale }

// fallBack gives a job without a loaded value its result.
func (j *job[V]) fallBack(err error) {
	if j.has() {
		j.result = &result[V]{value: j.from.value, stale: true, err: err}
	} else {
		j.result = &result[V]{err: err}
	}
}

// found reports whether the entry e, read after the job began, makes the load
// unnecessary, and then makes e the result. It does so for any value if there was
// none, a value that differs from the old one, or the old value stored again.
func (v *View[V]) found(j *job[V], e entry[V]) bool {
	switch {
	case e.state == negative:
		j.result = &result[V]{err: ErrNotFound, doubtful: true}
	case e.state < stale:
		return false
	case j.has() && e.left <= j.from.left && (j.from.digest == "" || e.digest == j.from.digest):
		return false
	default:
		j.result = &result[V]{value: e.value, doubtful: true}
	}
	return true
}

// deliver delivers the results that the jobs have, and returns the jobs without a
// result. The view read or loaded these results in turn.
func deliver[V any](jobs []*job[V], turn uint64) (open []*job[V]) {
	for _, j := range jobs {
		if j.result == nil {
			open = append(open, j)
			continue
		}
		j.result.since = turn
		j.call.Deliver(*j.result)
	}
	return open
}

// resolve gives each job a result, under a lease if possible. It delivers each result
// at once, so the callers of one key do not wait for the lease of another key.
func (v *View[V]) resolve(ctx context.Context, jobs []*job[V], load loader[V]) {
	defer v.release(ctx, jobs) // also after a panic of an observer or a codec
	turn := v.turns.Add(1)
	v.lookAgain(ctx, jobs)
	open := deliver(jobs, turn)
	var free, wanted []*job[V]
	for _, j := range open {
		if j.lease == "" || j.lost {
			free = append(free, j)
		} else {
			wanted = append(wanted, j)
		}
	}
	var since, end time.Time // of the wait for leases
	var waiting []*job[V]
	for len(open) > 0 {
		turn := v.turns.Add(1)
		held, busy := v.acquire(ctx, wanted)
		if since.IsZero() {
			since = time.Now()
			end = v.endOfWait(ctx, since)
		}
		open = deliver(open, turn)
		if held = append(free, held...); len(held) > 0 {
			v.load(ctx, held, load)
			open = deliver(open, turn)
		}
		turn = v.turns.Add(1)
		free, wanted, waiting = v.await(ctx, since, end, append(waiting, busy...))
		open = deliver(open, turn)
	}
}

// expiryMargin is how much longer than Policy.Lease a load waits for a lease. Redis
// counts whole milliseconds, and its clock may run a little slower than ours.
const expiryMargin = 10 * time.Millisecond

// endOfWait returns when a wait ends that began at since, after another process had
// taken the lease. By then that lease has expired.
func (v *View[V]) endOfWait(ctx context.Context, since time.Time) time.Time {
	end := since.Add(v.policy.Lease + expiryMargin)
	if hard, ok := ctx.Deadline(); ok && hard.Before(end) {
		return since.Add(time.Until(hard) / 2) // the other half is for a load without the lease
	}
	return end
}

// lookAgain gives a result to the jobs that need no load any more: since the caller
// read the key, another load of the key may have stored a value or failed. It does
// not read keys with a lease, because acquire does.
func (v *View[V]) lookAgain(ctx context.Context, jobs []*job[V]) {
	var late []*job[V]
	var keys []string
	ended := v.flights.Ended()
	for _, j := range jobs {
		switch {
		case j.has() && v.failed.hold(j.key):
			j.fallBack(nil)
		case j.lease == "" && !j.lost && j.seen != ended:
			late, keys = append(late, j), append(keys, j.key)
		}
	}
	if len(late) == 0 {
		return
	}
	begin := v.c.begin()
	entries, err := v.readMany(ctx, keys, v.timed)
	if err != nil {
		_ = v.c.fail(ctx, opLoad, "", begin, err) // for the observer: the load goes on
	}
	for i, j := range late {
		switch {
		case err != nil || entries[i].state == unread:
			j.lost = true
		case !v.found(j, entries[i]):
			j.from = entries[i]
		}
	}
}

// load calls load for the jobs, and stores the values.
func (v *View[V]) load(ctx context.Context, jobs []*job[V], load loader[V]) {
	defer v.release(ctx, jobs)        // the leases left by a panic, an error or NoStore
	if err := ctx.Err(); err != nil { // no caller waits any more, or Hard expired
		for _, j := range jobs {
			j.fallBack(fmt.Errorf("rediscache: load: %w", err))
		}
		return
	}
	items, err := v.ask(ctx, jobs, load)
	for _, j := range jobs {
		if j.token != "" {
			// No caller joins after Forget, so every caller joined before Redis
			// checks the token. If Redis still finds the token, no Delete since the
			// begin of the load had returned when these callers joined.
			j.call.Forget()
		}
		v.settle(ctx, j, items, err)
		// If the reply to the SET of the lease was lost (j.lost), Redis may have set the
		// lease after a Delete, so the lease proves nothing.
		j.result.doubtful = v.policy.Lease > 0 && (j.token == "" || j.lost)
	}
	v.store(ctx, jobs)
}

var errUnfinished = errors.New("rediscache: load: it panicked or ended its goroutine")

// ask calls load and observes its outcome. It does not recover from a panic of load,
// but observes it as an error.
func (v *View[V]) ask(ctx context.Context, jobs []*job[V], load loader[V]) (items map[string]Item[V], err error) {
	keys := make([]string, len(jobs))
	for i, j := range jobs {
		keys[i] = j.key
	}
	v.c.counts.loads.Add(1)
	begin := time.Now()
	err = errUnfinished
	// A load that ignores its context counts as failed when its time is over.
	stop := context.AfterFunc(ctx, func() {
		if flight.Expired(ctx) {
			v.backOff(jobs)
		}
	})
	defer func() { // also if load panics or calls runtime.Goexit
		stop()
		switch {
		case err == nil:
			v.took.add(time.Since(begin))
			v.failed.forget(keys)
		case !errors.Is(err, ErrNotFound) && (ctx.Err() == nil || flight.Expired(ctx)):
			v.backOff(jobs) // but not if the load failed because its last caller cancelled
		}
		key := keys[0]
		if len(keys) > 1 {
			key = ""
		}
		v.c.observe(ctx, opLoad, key, OutcomeLoad, begin, err)
	}()
	return load.call(ctx, keys)
}

// backOff keeps the keys that have a value from being loaded for LoadBackoff.
func (v *View[V]) backOff(jobs []*job[V]) {
	for _, j := range jobs {
		if j.has() {
			v.failed.add(j.key)
		}
	}
}

// settle gives a job its result, and the data to store.
func (v *View[V]) settle(ctx context.Context, j *job[V], items map[string]Item[V], err error) {
	item, ok := items[j.key]
	if err == nil && !ok {
		err = ErrNotFound
	}
	switch {
	case err == nil:
		j.result = &result[V]{value: item.Value}
	case !errors.Is(err, ErrNotFound):
		j.fallBack(err)
		return
	default:
		j.result = &result[V]{err: err}
		if j.data = []byte{}; v.policy.Negative > 0 {
			j.life = v.policy.Negative
		} else if j.has() {
			j.life = remove
		}
		return
	}
	ttl := item.TTL
	if ttl == 0 {
		ttl = v.policy.TTL
	}
	if item.NoStore {
		return
	}
	begin := v.c.begin()
	if j.data, err = v.encode(item.Value); err != nil {
		v.c.counts.errs.Add(1)
		v.c.observe(ctx, opFill, j.key, OutcomeError, begin, &opError{op: opFill, cause: err}) // callers still get the value
		return
	}
	j.life = v.policy.life(ttl)
}

// store stores the data of the jobs, as far as their leases allow.
func (v *View[V]) store(ctx context.Context, jobs []*job[V]) {
	if ctx.Err() != nil {
		return // no caller waits any more, or Hard expired
	}
	var plain, held []*job[V]
	for _, j := range jobs {
		switch {
		case j.life == 0 || j.lost:
		case j.token != "":
			held = append(held, j)
		case j.late:
			v.refused(ctx, j, v.c.begin())
		default:
			plain = append(plain, j)
		}
	}
	v.writeAll(ctx, plain)
	v.fill(ctx, held)
}

// write returns the command that stores the data of a job.
func (v *View[V]) write(j *job[V]) *pipeline.Call {
	if j.life == remove {
		return pipeline.Write("DEL", 1, pipeline.Count).Key(v.c.name(j.key))
	}
	return v.c.set(j.key, j.data, j.life)
}

// writeAll stores the data of jobs without a lease.
func (v *View[V]) writeAll(ctx context.Context, jobs []*job[V]) {
	if len(jobs) == 0 {
		return
	}
	begin := v.c.begin()
	calls := make([]*pipeline.Call, len(jobs))
	for i, j := range jobs {
		calls[i] = v.write(j)
	}
	_, errs := v.c.pipe.DoAll(ctx, calls...)
	for i, j := range jobs {
		v.stored(ctx, j, begin, errs[i])
	}
}

// stored counts a write that succeeded. An error goes to the observer only, because
// the caller still gets its value.
func (v *View[V]) stored(ctx context.Context, j *job[V], begin time.Time, err error) {
	switch {
	case err != nil:
		_ = v.c.fail(ctx, opFill, j.key, begin, err)
	case j.result.err == nil:
		v.c.counts.sets.Add(1)
	}
}

func (v *View[V]) refused(ctx context.Context, j *job[V], begin time.Time) {
	v.c.counts.refused.Add(1)
	v.c.observe(ctx, opFill, j.key, OutcomeRefused, begin, nil)
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

// hold reports whether key must not be loaded now.
func (b *backoffs) hold(key string) bool {
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
