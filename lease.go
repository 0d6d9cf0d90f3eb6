package rediscache

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	mathrand "math/rand/v2"
	"time"

	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
)

// A lease is a token under a key of its own, beside the value's. Whoever put it
// there loads; the others wait for the value. That is for efficiency. For
// correctness the token stands for "nothing has come between": a View's Delete
// removes it, a Set by anyone leaves another value than the load began from,
// and fill.lua stores only if neither has happened.
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

const (
	minPoll = 5 * time.Millisecond
	maxPoll = 100 * time.Millisecond

	maxRelease = 5 * time.Second // where there is no other bound, as Close waits
)

// poll waits before the next look, and reports false when there is none: the
// time of the lease is over, or everybody has left. The last look is at the end,
// when what a dead process has left is over too.
func (v *View[V]) poll(ctx context.Context, end time.Time, try int) bool {
	left := time.Until(end)
	if left <= 0 {
		return false
	}
	d := min(minPoll<<min(try, 10), maxPoll)
	d = min(d/2+mathrand.N(d/2), left)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// acquire tries to get the leases of the jobs, and looks at the keys after that,
// in one go. Those that have a value now get it as their result. What is left
// may be loaded, or is being loaded elsewhere.
func (v *View[V]) acquire(ctx context.Context, jobs []*job[V]) (held, busy []*job[V]) {
	if len(jobs) == 0 {
		return nil, nil
	}
	begin := v.c.begin()
	var calls []*pipeline.Call
	tokens := make([]string, len(jobs))
	for i, j := range jobs {
		tokens[i] = rand.Text()
		calls = append(calls,
			pipeline.Write("SET", 5, pipeline.Done).String(j.lease).String(tokens[i]).
				String("NX").String("PX").Int(v.policy.Lease.Milliseconds()),
			pipeline.Read("GET", 1, pipeline.Value).Key(v.c.name(j.key)),
			pipeline.Read("PTTL", 1, pipeline.Count).Key(v.c.name(j.key)))
	}
	replies, errs := v.c.pipe.DoAll(ctx, calls...)
	for i, j := range jobs { // before anything can panic
		// One of which nobody knows is ended like one that was got: else the
		// others would wait for nobody's load.
		if errs[3*i] == nil && replies[3*i].Kind != resp.Nil || errors.Is(errs[3*i], ErrOutcomeUnknown) {
			j.token = tokens[i]
		}
	}
	var surplus []*job[V]
	for i, j := range jobs {
		r, err := replies[3*i:3*i+3], errors.Join(errs[3*i:3*i+3]...)
		switch {
		case err != nil:
			if ctx.Err() == nil {
				_ = v.c.fail(ctx, opLease, j.key, begin, err) // for the observer: the load goes on
			}
			j.lost = true
			held = append(held, j)
		case v.found(j, v.entry(r[1], r[2])):
			surplus = append(surplus, j)
		case j.token != "":
			j.begin(v.entry(r[1], r[2]))
			held = append(held, j)
		case j.has() && v.policy.Soft == 0:
			j.fallBack(nil) // another process loads it, and nobody waits
		default:
			busy = append(busy, j)
		}
	}
	v.release(ctx, surplus)
	return held, busy
}

// found gives a job what its key holds as its result, and says whether it makes
// the load needless: any value where there was none, or another than there was,
// or the same stored again.
func (v *View[V]) found(j *job[V], e entry[V]) bool {
	switch {
	case e.state == negative:
		j.result = result[V]{err: ErrNotFound, doubtful: true}
	case e.state != stale && e.state != fresh:
		return false
	case j.has() && e.left <= j.from.left && (j.digest == "" || digest(e.held) == j.digest):
		return false
	default:
		j.result = result[V]{value: e.value, doubtful: true}
	}
	return true
}

// fill stores what the jobs with a token say, unless something came between.
func (v *View[V]) fill(ctx context.Context, jobs []*job[V]) {
	begin := v.c.begin()
	v.run(ctx, fillScript, 7, jobs, func(call *pipeline.Call, j *job[V]) {
		call.Int(2).Key(v.c.name(j.key)).String(j.lease).
			String(j.token).String(j.digest).Int(millis(j.from.left)).Value(j.data).Int(millis(j.life))
	}, func(j *job[V], done bool, err error) {
		// One that is late comes still. Any other that failed leaves a lease to be
		// ended: should it come after that, it does nothing.
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
	})
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
	v.run(ctx, releaseScript, 2, held, func(call *pipeline.Call, j *job[V]) {
		call.Int(1).String(j.lease).String(j.token)
	}, func(j *job[V], done bool, err error) {
		j.token = ""
		if err != nil {
			_ = v.c.fail(ctx, opLease, j.key, begin, err) // for the observer: it ends by itself
		}
		j.result.doubtful = j.result.doubtful || !done
	})
}

// run runs a script once for each job, all in one go: by its name and, where
// the server does not know that, which proves that it did nothing, by its text.
// args appends as many arguments as it says, and tell is told whether the
// script returned 1.
func (v *View[V]) run(
	ctx context.Context, s script, argc int, jobs []*job[V],
	args func(*pipeline.Call, *job[V]), tell func(j *job[V], done bool, err error),
) {
	for _, how := range []struct{ command, script string }{{"EVALSHA", s.sum}, {"EVAL", s.source}} {
		if len(jobs) == 0 {
			return
		}
		calls := make([]*pipeline.Call, len(jobs))
		for i, j := range jobs {
			calls[i] = s.begin(how.command, argc+2, pipeline.Count).String(how.script)
			args(calls[i], j)
		}
		replies, errs := v.c.pipe.DoAll(ctx, calls...)
		var unknown []*job[V]
		for i, j := range jobs {
			if meaning, _ := meaningOf(errs[i]); meaning.Has(resp.NoScript) && how.command == "EVALSHA" {
				unknown = append(unknown, j)
			} else {
				tell(j, replies[i].Int == 1, errs[i])
			}
		}
		jobs = unknown
	}
}
