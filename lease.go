package rediscache

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"time"

	"github.com/rediscache/rediscache/internal/lease"
	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
)

// A lease is a token in a key of its own, beside the key of the value. The load that
// set the token loads the value, and other loads wait: that saves loads. The token
// also shows that no Delete came between: every Delete removes the token, and a Set
// leaves another value than the load began from. A fill, by fill.lua or by a
// transaction, stores only if neither has happened.
//
//  1. A sets the token, finds no value, and loads the old value.
//  2. B changes the database, and deletes the token and then the key.
//  3. A fills: the token is gone, so nothing is stored.
//
// If 3 comes before 2, A stores the old value and B deletes it. If 1 comes after B
// has deleted the token, A loads the new value.

//go:embed scripts/fill.lua
var fillSource string

//go:embed scripts/release.lua
var releaseSource string

var (
	fillScript    = newScript(fillSource, pipeline.Write)
	releaseScript = newScript(releaseSource, pipeline.Read) // a retry is harmless: the token is this load's alone
)

type script struct {
	source, sum string // sum is the SHA-1 of source, by which Redis knows the script
	begin       func(name string, n int, form pipeline.Form) *pipeline.Call
}

func newScript(source string, begin func(string, int, pipeline.Form) *pipeline.Call) script {
	return script{source, digest([]byte(source)), begin}
}

// maxRelease bounds the release of a lease, because Close waits for it. A shorter
// Policy.Lease bounds it further.
const maxRelease = 5 * time.Second

// acquire tries to take the leases of the jobs, and then reads the keys, in one round
// trip. A job whose key has a value now gets it as its result. held are the jobs to
// load; another process loads the busy ones. All leases of one acquire hold the same
// token, so that other processes see that they belong to one load.
func (v *View[V]) acquire(ctx context.Context, jobs []*job[V]) (held, busy []*job[V]) {
	if len(jobs) == 0 {
		return nil, nil
	}
	begin := v.c.begin()
	calls := make([]*pipeline.Call, 0, 3*len(jobs))
	token := rand.Text()
	for _, j := range jobs {
		calls = append(calls,
			pipeline.Write("SET", 5, pipeline.Done).String(j.lease).String(token).
				String("NX").String("PX").Int(v.policy.Lease.Milliseconds()),
			pipeline.Read("GET", 1, pipeline.Value).Key(v.c.name(j.key)),
			pipeline.Read("PTTL", 1, pipeline.Count).Key(v.c.name(j.key)))
	}
	replies, errs := v.c.pipe.DoAll(ctx, calls...)
	for i, j := range jobs { // before anything can panic
		// If the outcome of the SET is unknown, keep the token, so that the lease is
		// released: otherwise other processes could wait for a load that nobody runs.
		if errs[3*i] == nil && replies[3*i].Kind != resp.Nil || errors.Is(errs[3*i], ErrOutcomeUnknown) {
			j.token = token
		}
	}
	var surplus []*job[V]
	for i, j := range jobs {
		r, err := replies[3*i:3*i+3], errors.Join(errs[3*i:3*i+3]...)
		var e entry[V]
		if err == nil {
			e = v.entry(r[1], r[2], true)
		}
		switch {
		case isForGood(errs[3*i]):
			v.c.cannotLease(ctx, errs[3*i])
			j.lease = ""
			held = append(held, j)
		case err != nil:
			if ctx.Err() == nil {
				_ = v.c.fail(ctx, opLease, j.key, begin, err) // for the observer: the load goes on
			}
			j.lost = true
			held = append(held, j)
		case v.found(j, e):
			surplus = append(surplus, j)
		case j.token != "":
			j.from = e
			held = append(held, j)
		case j.has() && v.policy.Soft == 0:
			j.fallBack(nil) // another process loads it, and nobody waits
		default:
			j.wait = lease.Item{Name: j.lease, Before: e.digest}
			j.wait.Prefix, j.wait.Key = v.c.name(j.key)
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
// caller waits any more, await also returns all as free, and load finds ctx done. When
// the cache closes, all jobs fail with ErrClosed.
func (v *View[V]) await(ctx context.Context, since, end time.Time, jobs []*job[V]) (free, wanted, waiting []*job[V]) {
	if len(jobs) == 0 {
		return nil, nil, nil
	}
	within, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	var changed []*lease.Item
	over := within.Err() != nil
	if !over {
		items := make([]*lease.Item, len(jobs))
		for i, j := range jobs {
			items[i] = &j.wait
		}
		changed = v.c.leases.watch.Wait(within, since, items)
	}
	switch {
	case isClosed(v.c.loads.Done()):
		begin := v.c.begin()
		for _, j := range jobs {
			j.fallBack(v.c.fail(ctx, opLease, j.key, begin, ErrClosed))
		}
		return nil, nil, nil
	case over || ctx.Err() != nil:
		for _, j := range jobs {
			j.late = true
		}
		return jobs, nil, nil
	case len(changed) == 0:
		return nil, jobs, nil
	}
	moved := make(map[*lease.Item]bool, len(changed))
	for _, item := range changed {
		moved[item] = true
	}
	var stored []*job[V]
	for _, j := range jobs {
		switch {
		case !moved[&j.wait]:
			waiting = append(waiting, j)
		case j.wait.Held != nil:
			stored = append(stored, j)
		default:
			wanted = append(wanted, j)
		}
	}
	return nil, append(wanted, v.take(ctx, stored)...), waiting
}

// take gives each job the value that its key holds now as its result, and returns the
// jobs for which found rejects that value.
func (v *View[V]) take(ctx context.Context, jobs []*job[V]) (left []*job[V]) {
	lives, errs := make([]resp.Reply, len(jobs)), make([]error, len(jobs))
	if v.timed && len(jobs) > 0 {
		calls := make([]*pipeline.Call, len(jobs))
		for i, j := range jobs {
			calls[i] = pipeline.Read("PTTL", 1, pipeline.Count).Key(v.c.name(j.key))
		}
		lives, errs = v.c.pipe.DoAll(ctx, calls...)
	}
	for i, j := range jobs {
		held := resp.Reply{Kind: resp.Bulk, Bytes: j.wait.Held}
		if errs[i] != nil || !v.found(j, v.entry(held, lives[i], true)) {
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

// fill stores the data of jobs that hold a lease, unless a Delete or a Set came between.
func (v *View[V]) fill(ctx context.Context, jobs []*job[V]) {
	begin := v.c.begin()
	refused := v.end(ctx, jobs, ending[V]{
		script: fillScript, argc: 7,
		args: func(call *pipeline.Call, j *job[V]) {
			call.Int(2).Key(v.c.name(j.key)).String(j.lease).
				String(j.token).String(j.from.digest).Int(millis(j.from.left)).Value(j.data).Int(millis(j.life))
		},
		transaction: func(j *job[V]) *transaction {
			t := &transaction{lease: j.lease, token: j.token, digest: j.from.digest, left: j.from.left}
			t.store = v.write(j).Queued()
			t.prefix, t.key = v.c.name(j.key)
			return t
		},
		tell: func(j *job[V], done bool, err error) {
			// A fill that timed out may still run, so its lease must not be released.
			// After any other error the lease is released; a fill that runs later
			// finds no token and stores nothing.
			if err == nil || errors.Is(err, ErrOutcomeUnknown) && pipeline.TooLate(err) {
				j.token = ""
			}
			switch {
			case err != nil: // a Delete may have come between
				j.result.doubtful = true
				v.stored(ctx, j, begin, err)
			case done:
				v.stored(ctx, j, begin, nil)
			default:
				j.result.doubtful = true
				v.refused(ctx, j, begin)
			}
		},
	})
	v.writeAll(ctx, refused) // load releases their leases after that
}

// millis converts a time for the script: -1 never ends, 0 deletes the key.
func millis(d time.Duration) int64 {
	switch d {
	case NoExpiry:
		return -1
	case remove:
		return 0
	case forever:
		return 1 << 53
	}
	return d.Milliseconds()
}

// release ends the leases that jobs still hold, also if ctx is done. If a lease is
// already gone, the result of its job is doubtful.
func (v *View[V]) release(ctx context.Context, jobs []*job[V]) {
	held := make([]*job[V], 0, len(jobs))
	for _, j := range jobs {
		if j.token != "" {
			held = append(held, j)
		}
	}
	if len(held) == 0 {
		return
	}
	begin := v.c.begin()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(v.policy.Lease, maxRelease))
	defer cancel()
	refused := v.end(ctx, held, ending[V]{
		script: releaseScript, argc: 2,
		args: func(call *pipeline.Call, j *job[V]) { call.Int(1).String(j.lease).String(j.token) },
		transaction: func(j *job[V]) *transaction {
			return &transaction{lease: j.lease, token: j.token}
		},
		tell: func(j *job[V], done bool, err error) {
			j.token = ""
			if err != nil {
				_ = v.c.fail(ctx, opLease, j.key, begin, err) // for the observer: the lease expires by itself
			}
			if j.result != nil && !done {
				j.result.doubtful = true
			}
		},
	})
	v.dropUnchecked(ctx, refused)
}

// dropUnchecked deletes leases without a check of their tokens, because Redis refuses
// scripts and transactions. Otherwise other processes would wait for these leases.
func (v *View[V]) dropUnchecked(ctx context.Context, jobs []*job[V]) {
	if len(jobs) == 0 {
		return
	}
	keys := make([]string, len(jobs))
	for i, j := range jobs {
		keys[i] = j.key
		j.token = ""
		if j.result != nil {
			j.result.doubtful = true
		}
	}
	_, _ = v.c.pipe.Do(ctx, v.c.endLeases(keys)) // if Redis refuses this too, the leases expire
}

// ending is a way to end leases: a fill or a release.
type ending[V any] struct {
	script script
	argc   int
	args   func(*pipeline.Call, *job[V]) // appends argc arguments
	// transaction does what the script does.
	transaction func(*job[V]) *transaction
	// tell is called once for each job. done reports that the script returned 1, or
	// that the transaction did the same.
	tell func(j *job[V], done bool, err error)
}

// end ends the leases of jobs by a script, or by a transaction if Redis refuses
// scripts. It returns the jobs for which Redis refuses both.
func (v *View[V]) end(ctx context.Context, jobs []*job[V], e ending[V]) (refused []*job[V]) {
	way := v.c.leases.way()
	if way == byScript {
		if jobs = v.runScript(ctx, jobs, e); len(jobs) == 0 {
			v.c.leases.found(byScript)
			return nil
		}
		way = byTransaction
	}
	if way == byTransaction {
		transactions := make([]*transaction, len(jobs))
		for i, j := range jobs {
			transactions[i] = e.transaction(j)
		}
		left, err := v.c.transact(ctx, transactions)
		for i, t := range transactions[:len(jobs)-left] {
			e.tell(jobs[i], t.done, t.err)
		}
		if jobs = jobs[len(jobs)-left:]; left > 0 {
			v.c.cannotLease(ctx, err)
		} else {
			v.c.leases.found(byTransaction)
		}
	}
	return jobs
}

// runScript runs the script once for each job, all in one pipeline: by its SHA-1 and,
// if the server does not hold the script, by its text. It returns the jobs for which
// Redis refuses scripts for good.
func (v *View[V]) runScript(ctx context.Context, jobs []*job[V], e ending[V]) (refused []*job[V]) {
	for _, how := range []struct{ command, script string }{{"EVALSHA", e.script.sum}, {"EVAL", e.script.source}} {
		if len(jobs) == 0 {
			break
		}
		calls := make([]*pipeline.Call, len(jobs))
		for i, j := range jobs {
			calls[i] = e.script.begin(how.command, e.argc+2, pipeline.Count).String(how.script)
			e.args(calls[i], j)
		}
		replies, errs := v.c.pipe.DoAll(ctx, calls...)
		var unknown []*job[V]
		for i, j := range jobs {
			switch meaning, _ := resp.MeaningOfError(errs[i]); {
			case meaning.Has(resp.NoScript) && how.command == "EVALSHA":
				unknown = append(unknown, j)
			case isForGood(errs[i]):
				refused = append(refused, j)
			default:
				e.tell(j, replies[i].Int == 1, errs[i])
			}
		}
		jobs = unknown
	}
	return refused
}
