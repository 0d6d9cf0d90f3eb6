package rediscache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rediscache/rediscache/internal/fill"
	"github.com/rediscache/rediscache/internal/flight"
	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
)

// job is one key of a load. One goroutine at a time uses it.
type job[V any] struct {
	fill.Job // its lease, and what it stores

	key      string
	from     entry[V]                // what the key held when the load began
	seen     uint64                  // flights.Ended before from was read
	call     *flight.Call[result[V]] // takes the result
	lost     bool                    // a read from Redis failed: nothing is stored
	timedOut bool                    // the wait for the lease timed out: nothing is stored

	result *result[V] // nil: none yet
}

func (v *View[V]) job(key string, e entry[V], seen uint64) *job[V] {
	prefix, stored := v.c.name(key)
	return &job[V]{
		Job: v.c.leases.Job(prefix, stored, v.policy.Lease > 0),
		key: key, from: e, seen: seen, lost: e.state == unread,
	}
}

// fills returns the parts of jobs that package fill uses.
func fills[V any](jobs []*job[V]) []*fill.Job {
	list := make([]*fill.Job, len(jobs))
	for i, j := range jobs {
		list[i] = &j.Job
	}
	return list
}

// hasOld reports whether there is an older value to fall back on.
func (j *job[V]) hasOld() bool { return j.from.state >= stale }

// fallBack gives a job without a loaded value its result.
func (j *job[V]) fallBack(err error) {
	if j.hasOld() {
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
	case j.hasOld() && e.left <= j.from.left && (j.from.digest == "" || e.digest == j.from.digest):
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
		if !j.Leased() || j.lost {
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
			v.runLoad(ctx, held, load)
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

// acquire tries to take the leases of the jobs, and then reads the keys, in one round
// trip. A job whose key has a value now gets it as its result. held are the jobs to
// load; another process loads the busy ones.
func (v *View[V]) acquire(ctx context.Context, jobs []*job[V]) (held, busy []*job[V]) {
	if len(jobs) == 0 {
		return nil, nil
	}
	op := v.c.step(ctx, opLease, "")
	var surplus []*job[V]
	for i, taken := range v.c.leases.Take(ctx, fills(jobs), v.policy.Lease) {
		j := jobs[i]
		var e entry[V]
		if taken.Err == nil {
			v.c.saw(j.key, &taken.Value)
			e = v.entry(taken.Value, taken.Left, true)
		}
		switch {
		case !j.Leased(): // Redis refuses it
			held = append(held, j)
		case taken.Err != nil:
			if ctx.Err() == nil {
				_ = op.of(j.key).fail(taken.Err) // for the observer: the load goes on
			}
			j.lost = true
			held = append(held, j)
		case v.found(j, e):
			surplus = append(surplus, j)
		case j.Holds():
			j.from = e
			held = append(held, j)
		case j.hasOld() && v.policy.Soft == 0:
			j.fallBack(nil) // another process loads it, and nobody waits
		default:
			j.Park(e.digest)
			busy = append(busy, j)
		}
	}
	v.release(ctx, surplus)
	return held, busy
}

// await waits for the leases that other processes hold. A job whose key has a value
// now gets it as its result. The other jobs are returned: free ones are loaded without
// a lease, the leases of wanted ones may be free now, and waiting ones wait on.
//
// When the wait reaches end, await returns all jobs as wanted once, because the lease
// of a process that died has expired by then. The next call returns all as free. If no
// caller waits any more, await also returns all as free, and runLoad finds ctx done. When
// the cache closes, all jobs fail with ErrClosed.
func (v *View[V]) await(ctx context.Context, since, end time.Time, jobs []*job[V]) (free, wanted, waiting []*job[V]) {
	if len(jobs) == 0 {
		return nil, nil, nil
	}
	within, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	over := within.Err() != nil
	changed := !over && v.c.leases.Wait(within, since, fills(jobs))
	switch {
	case isClosed(v.c.loads.Done()):
		for _, j := range jobs {
			j.fallBack(v.c.step(ctx, opLease, j.key).fail(ErrClosed))
		}
		return nil, nil, nil
	case over || ctx.Err() != nil:
		for _, j := range jobs {
			j.timedOut = true
		}
		return jobs, nil, nil
	case !changed:
		return nil, jobs, nil
	}
	var stored []*job[V]
	for _, j := range jobs {
		switch j.Change {
		case fill.Unchanged:
			waiting = append(waiting, j)
		case fill.Replaced:
			stored = append(stored, j)
		case fill.Freed:
			wanted = append(wanted, j)
		}
	}
	return nil, append(wanted, v.adopt(ctx, stored)...), waiting
}

// adopt gives each job the value that its key holds now as its result, and returns the
// jobs for which found rejects that value.
func (v *View[V]) adopt(ctx context.Context, jobs []*job[V]) (left []*job[V]) {
	lives, errs := make([]resp.Reply, len(jobs)), make([]error, len(jobs))
	if v.timed && len(jobs) > 0 {
		calls := make([]*pipeline.Call, len(jobs))
		for i, j := range jobs {
			calls[i] = pipeline.Read("PTTL", 1, pipeline.Count).Key(j.Prefix, j.Key)
		}
		lives, errs = v.c.pipe.DoAll(ctx, calls...)
	}
	for i, j := range jobs {
		value := resp.Reply{Kind: resp.Bulk, Bytes: j.Held}
		v.c.saw(j.key, &value)
		if errs[i] != nil || !v.found(j, v.entry(value, lives[i], true)) {
			left = append(left, j)
		}
	}
	return left
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// lookAgain gives a result to the jobs that need no load any more: since the caller
// read the key, another load of the key may have stored a value or failed. It does
// not read keys with a lease, because acquire does.
func (v *View[V]) lookAgain(ctx context.Context, jobs []*job[V]) {
	var unchecked []*job[V]
	var keys []string
	ended := v.flights.Ended()
	for _, j := range jobs {
		switch {
		case j.hasOld() && v.backoffs.holds(j.key):
			j.fallBack(nil)
		case !j.Leased() && !j.lost && j.seen != ended:
			unchecked, keys = append(unchecked, j), append(keys, j.key)
		}
	}
	if len(unchecked) == 0 {
		return
	}
	op := v.c.step(ctx, opLoad, "")
	entries, err := v.readManyDirect(ctx, keys, v.timed)
	if err != nil {
		_ = op.fail(err) // for the observer: the load goes on
	}
	for i, j := range unchecked {
		switch {
		case err != nil || entries[i].state == unread:
			j.lost = true
		case !v.found(j, entries[i]):
			j.from = entries[i]
		}
	}
}

// runLoad calls load for the jobs, and stores the values.
func (v *View[V]) runLoad(ctx context.Context, jobs []*job[V], load loader[V]) {
	defer v.release(ctx, jobs)        // the leases left by a panic, an error or NoStore
	if err := ctx.Err(); err != nil { // no caller waits any more, or Hard expired
		for _, j := range jobs {
			j.fallBack(fmt.Errorf("rediscache: load: %w", err))
		}
		return
	}
	items, err := v.callLoad(ctx, jobs, load)
	for _, j := range jobs {
		if j.Holds() {
			// No caller joins after Forget, so every caller joined before Redis
			// checks the token. If Redis still finds the token, no Delete since the
			// start of the load had returned when these callers joined.
			j.call.Forget()
		}
		v.conclude(ctx, j, items, err)
		// If the reply to the SET of the lease was lost (j.lost), Redis may have set the
		// lease after a Delete, so the lease proves nothing.
		j.result.doubtful = v.policy.Lease > 0 && (!j.Holds() || j.lost)
	}
	v.store(ctx, jobs)
}

var errUnfinished = errors.New("rediscache: load: it panicked or ended its goroutine")

// callLoad calls load and observes its outcome. It does not recover from a panic of load,
// but observes it as an error.
func (v *View[V]) callLoad(ctx context.Context, jobs []*job[V], load loader[V]) (items map[string]Item[V], err error) {
	keys := make([]string, len(jobs))
	for i, j := range jobs {
		keys[i] = j.key
	}
	key := keys[0]
	if len(keys) > 1 {
		key = ""
	}
	v.c.counts.add(countLoads, 1)
	ctx, op := v.c.begin(ctx, opLoad, key)
	start := time.Now()
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
			v.loadTimes.add(time.Since(start))
			v.backoffs.forget(keys)
		case !errors.Is(err, ErrNotFound) && (ctx.Err() == nil || flight.Expired(ctx)):
			v.backOff(jobs) // but not if the load failed because its last caller cancelled
		}
		op.observe(OutcomeLoad, 0, err)
		op.end(&err)
	}()
	return load.call(ctx, keys)
}

// backOff keeps the keys that have a value from being loaded for LoadBackoff.
func (v *View[V]) backOff(jobs []*job[V]) {
	for _, j := range jobs {
		if j.hasOld() {
			v.backoffs.add(j.key)
		}
	}
}

// conclude gives a job its result, and the data to store.
func (v *View[V]) conclude(ctx context.Context, j *job[V], items map[string]Item[V], err error) {
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
		if j.Data = []byte{}; v.policy.Negative > 0 {
			j.Life = v.policy.Negative
		} else if j.hasOld() {
			j.Life = fill.Remove
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
	op := v.c.step(ctx, opFill, j.key)
	if j.Data, err = v.encode(item.Value); err != nil {
		v.c.counts.add(countErrors, 1)
		op.observe(OutcomeError, 0, &opError{op: opFill, cause: err}) // callers still get the value
		return
	}
	j.Life = v.policy.life(ttl)
}

// store stores the data of the jobs, as far as their leases allow.
func (v *View[V]) store(ctx context.Context, jobs []*job[V]) {
	if ctx.Err() != nil {
		return // no caller waits any more, or Hard expired
	}
	if v.c.near != nil {
		keys := make([]string, len(jobs))
		for i, j := range jobs {
			keys[i] = j.key
		}
		defer v.c.endWrites(v.c.beginWrites(keys...))
	}
	var plain, held []*job[V]
	for _, j := range jobs {
		switch {
		case j.Life == 0 || j.lost:
		case j.Holds():
			j.Before = fill.Value{Digest: j.from.digest, Left: j.from.left}
			held = append(held, j)
		case j.timedOut:
			v.c.step(ctx, opFill, j.key).refused()
		default:
			plain = append(plain, j)
		}
	}
	if len(plain) > 0 {
		op := v.c.step(ctx, opFill, "")
		v.c.leases.StoreUnchecked(ctx, fills(plain))
		for _, j := range plain {
			v.countStored(op, j)
		}
	}
	if len(held) > 0 {
		op := v.c.step(ctx, opFill, "")
		v.c.leases.Store(ctx, fills(held))
		for _, j := range held { // a Delete may have come between, unless the outcome is Done
			j.result.doubtful = j.result.doubtful || j.Outcome != fill.Done
			v.countStored(op, j)
		}
	}
}

// countStored counts and observes the outcome of a job. An error goes to the observer only,
// because the caller still gets its value.
func (v *View[V]) countStored(op operation, j *job[V]) {
	switch op = op.of(j.key); {
	case j.Outcome == fill.Failed:
		_ = op.fail(j.Err)
	case j.Outcome == fill.Lost:
		op.refused()
	case j.result.err == nil:
		op.stored(1)
	default: // the memory of an ErrNotFound, or a removal
		op.observe(OutcomeOK, 0, nil)
	}
}

// release ends the leases that jobs still hold, also if ctx is done. If a lease is
// already gone, the result of its job is doubtful.
func (v *View[V]) release(ctx context.Context, jobs []*job[V]) {
	held := make([]*job[V], 0, len(jobs))
	for _, j := range jobs {
		if j.Holds() {
			held = append(held, j)
		}
	}
	if len(held) == 0 {
		return
	}
	op := v.c.step(context.WithoutCancel(ctx), opLease, "")
	v.c.leases.Release(ctx, fills(held), v.policy.Lease)
	for _, j := range held {
		if j.Outcome == fill.Failed {
			_ = op.of(j.key).fail(j.Err) // for the observer: the lease expires
		}
		if j.result != nil && j.Outcome != fill.Done {
			j.result.doubtful = true
		}
	}
}
