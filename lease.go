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

// A lease is a token under a key of its own, beside the value's. The load that put
// it there loads; the others wait for the value. That is for efficiency. For
// correctness the token stands for "nothing has come between": every Delete
// removes it, a Set by anyone leaves another value than the load began from,
// and a fill, by fill.lua or by a transaction, stores only if neither has happened.
//
//  1. A takes the token, finds no value, and loads the old one.
//  2. B changes the database, and deletes: the token first, then the key.
//  3. A fills: the token is gone, nothing is stored.
//
// If 3 comes before 2, the old value is stored and then deleted. If 1 comes
// after B has removed the token, what A loads is new.

//go:embed scripts/fill.lua
var fillSource string

//go:embed scripts/release.lua
var releaseSource string

var (
	fillScript    = newScript(fillSource, pipeline.Write)
	releaseScript = newScript(releaseSource, pipeline.Read) // it may be repeated: nobody else has its token, and the result is in doubt at worst
)

type script struct {
	source, sum string // Redis knows it by its SHA-1
	begin       func(name string, n int, form pipeline.Form) *pipeline.Call
}

func newScript(source string, begin func(string, int, pipeline.Form) *pipeline.Call) script {
	return script{source, digest([]byte(source)), begin}
}

// maxRelease bounds the end of a lease where nothing else does, as Close waits for it.
const maxRelease = 5 * time.Second

// acquire tries to get the leases of the jobs, and looks at the keys after that,
// in one go. Those that have a value now get it as their result. What is left
// may be loaded, or is being loaded elsewhere. All leases of one acquire hold one
// token, so that other processes see that one load has them.
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
		// One of which nobody knows is ended like one that was got: else the
		// others would wait for nobody's load.
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

// await waits for the leases that other processes hold. It returns the jobs that
// have a value now with their results, and of the others those that should be
// loaded without a lease, those whose leases may be free, and those that wait on.
//
// When the time of the lease is over, all are looked at once more, as what a dead
// process has left is over too; then they are loaded without a lease. So they are
// when everybody has left, where the load finds that out. When the cache closes
// the wait ends with ErrClosed.
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

// take gives jobs the values that their keys hold now as results, and returns
// those for which that is not one.
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

// fill stores what the jobs with a token say, unless something came between.
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
			// A fill that timed out may still run, so its lease is not released.
			// Any other fill that failed leaves a lease to be ended: if the fill
			// runs after that, it does nothing.
			if err == nil || errors.Is(err, ErrOutcomeUnknown) && pipeline.TooLate(err) {
				j.token = ""
			}
			switch {
			case err != nil: // nobody knows whether a Delete came between
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
	v.writeAll(ctx, refused) // their leases are released after that
}

// millis is a time as the script takes it.
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

// release ends the leases that jobs hold still, also when everybody has left.
// One that was lost meanwhile leaves the job's result in doubt.
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
				_ = v.c.fail(ctx, opLease, j.key, begin, err) // for the observer: it ends by itself
			}
			if j.result != nil && !done {
				j.result.doubtful = true
			}
		},
	})
	v.dropUnchecked(ctx, refused)
}

// dropUnchecked ends leases where Redis lets nobody look whose they are by then,
// so that others do not wait for them.
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
	_, _ = v.c.pipe.Do(ctx, v.c.endLeases(keys)) // if that is refused too, they end by themselves
}

// ending is what ends leases: a fill or a release.
type ending[V any] struct {
	script script
	argc   int
	args   func(*pipeline.Call, *job[V]) // appends argc arguments
	// transaction does what the script does.
	transaction func(*job[V]) *transaction
	// tell is told of each job whether the script returned 1, or the transaction did that.
	tell func(j *job[V], done bool, err error)
}

// end ends the leases of jobs, in the way that Redis allows, and returns those
// for which it allows none.
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

// runScript runs the script once for each job, all in one go: by its name and,
// where the server does not know that, which proves that it did nothing, by its
// text. It returns the jobs for which Redis refuses scripts for good.
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
			switch meaning, _ := meaningOf(errs[i]); {
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
