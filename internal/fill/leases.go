// Package fill stores what loads return. With a lease, a load stores its value only if no
// Delete and no Set came between, in any process, and other loads of the key wait for it.
package fill

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
)

// A lease is a token in a key of its own, beside the key of the value. The load that
// set the token loads the value, and other loads wait: that saves loads. The token
// also shows that no Delete came between: every Delete removes the token, and a Set
// leaves another value than the load began from. Store, by a script or by a
// transaction, stores only if neither has happened.
//
//  1. A sets the token, finds no value, and loads the old value.
//  2. B changes the database, and deletes the token and then the key.
//  3. A stores: the token is gone, so nothing is stored.
//
// If 3 comes before 2, A stores the old value and B deletes it. If 1 comes after B
// has deleted the token, A loads the new value.

// Pipeline is what this package needs of a [pipeline.Pipeline].
type Pipeline interface {
	Do(ctx context.Context, c *pipeline.Call) (resp.Reply, error)
	DoAll(ctx context.Context, calls ...*pipeline.Call) ([]resp.Reply, []error)
	Talk(ctx context.Context, talk func(ask pipeline.Ask) error) error
}

// Owner waits for goroutines. A flight.Owner is an Owner.
type Owner interface {
	// Go runs f in a goroutine, or reports false after Done is closed.
	Go(f func(context.Context)) bool
	// Done is closed to end all waits.
	Done() <-chan struct{}
}

// Config configures [Leases]. All fields are required.
type Config struct {
	Pipeline Pipeline
	Owner    Owner
	// Refused is called when Redis refuses the commands of leases for good, but not
	// again while the cache takes no leases because of that.
	Refused func(ctx context.Context, err error)
}

// Leases takes and ends the leases of loads, and stores what the loads return. A cache, its
// Subs and its views share one Leases. Its methods are safe for concurrent use, but only
// one goroutine at a time may use a [Job].
type Leases struct {
	pipe    Pipeline                             // immutable
	refused func(ctx context.Context, err error) // immutable
	watch   *watch                               // immutable
	ways    ways
}

// New makes Leases.
func New(cfg Config) *Leases {
	l := &Leases{pipe: cfg.Pipeline, refused: cfg.Refused}
	l.watch = newWatch(l.look, cfg.Owner)
	return l
}

// Job is one key of a load: its lease, and what the load stores.
type Job struct {
	// Prefix and Key are the two parts of the key's name in Redis.
	Prefix, Key string

	// Before is what the key held when the load began. The caller sets it before Store.
	Before Value
	// Data is what Store and StoreUnchecked store for Life, which is a time, [NoExpiry] or
	// [Remove]. The caller sets both.
	Data []byte
	Life time.Duration

	// Outcome is set by Store, StoreUnchecked and Release. Err is set if it is Failed.
	Outcome Outcome
	Err     error

	// Change is set by Wait. Held is the new value if Change is Replaced.
	Change Change
	Held   []byte

	lease string // the name of the lease; "": the load takes no lease
	token string // of the lease while the job holds it; "": it does not
	wait  item   // while another load holds the lease
}

// Value describes what a key holds.
type Value struct {
	Digest string        // see [Digest]
	Left   time.Duration // to live, in whole milliseconds; [Forever] if it does not expire
}

// Outcome is how a job ended.
type Outcome uint8

// The outcomes.
const (
	_ Outcome = iota
	// Done: the data was stored, or the lease was released, which the job held until then.
	Done
	// Lost: nothing was stored, because the job had lost its lease, or the key holds
	// another value than before; or the lease was gone before its release.
	Lost
	// Failed: a command failed.
	Failed
)

// Change is why a job may stop waiting for its lease.
type Change uint8

// The changes.
const (
	Unchanged Change = iota
	// Freed: the lease is free, or could not be read.
	Freed
	// Replaced: the key holds another value than when the wait began.
	Replaced
)

// maxRelease bounds the release of a lease, because Close of a cache waits for it. A shorter
// lease bounds it further.
const maxRelease = 5 * time.Second

// Job returns a job for a key. The job takes a lease if leased is true, unless Redis refuses
// the commands of leases.
func (l *Leases) Job(prefix, key string, leased bool) Job {
	j := Job{Prefix: prefix, Key: key}
	if leased && l.ways.current() != noWay {
		j.lease = LeaseName(prefix, key)
	}
	return j
}

// Leased reports whether the job takes a lease.
func (j *Job) Leased() bool { return j.lease != "" }

// Holds reports whether the job holds its lease, or may hold it because the outcome of Take is
// unknown.
func (j *Job) Holds() bool { return j.token != "" }

// Taken is the result of Take for one job.
type Taken struct {
	// Value and Left are the replies to GET and PTTL of the key, which Redis executed
	// after it set the lease or refused to.
	Value, Left resp.Reply
	Err         error // of any command of the job
}

// Take tries to take the leases of jobs for ttl, and reads their keys in the same round trip.
// Then Holds reports which jobs have their leases. If Redis refuses the commands of leases for
// good, the job is not Leased any more. All leases of one Take hold the same token, so that
// other processes see that they belong to one load.
func (l *Leases) Take(ctx context.Context, jobs []*Job, ttl time.Duration) []Taken {
	calls := make([]*pipeline.Call, 0, 3*len(jobs))
	token := rand.Text()
	for _, j := range jobs {
		calls = append(calls,
			pipeline.Write("SET", 5, pipeline.Done).String(j.lease).String(token).
				String("NX").String("PX").Int(ttl.Milliseconds()),
			pipeline.Read("GET", 1, pipeline.Value).Key(j.Prefix, j.Key),
			pipeline.Read("PTTL", 1, pipeline.Count).Key(j.Prefix, j.Key))
	}
	replies, errs := l.pipe.DoAll(ctx, calls...)
	for i, j := range jobs { // before l.refused, which may panic
		// If the outcome of the SET is unknown, keep the token, so that the lease is
		// released: otherwise other processes could wait for a load that nobody runs.
		if errs[3*i] == nil && replies[3*i].Kind != resp.Nil || errors.Is(errs[3*i], pipeline.ErrOutcomeUnknown) {
			j.token = token
		}
	}
	taken := make([]Taken, len(jobs))
	for i, j := range jobs {
		taken[i] = Taken{Value: replies[3*i+1], Left: replies[3*i+2], Err: errors.Join(errs[3*i : 3*i+3]...)}
		if RefusedForGood(errs[3*i]) {
			j.lease = ""
			l.Refuse(ctx, errs[3*i])
		}
	}
	return taken
}

// Park prepares a job for Wait after another load has taken its lease. digest is that of
// what the key holds now.
func (j *Job) Park(digest string) {
	j.wait = item{name: j.lease, prefix: j.Prefix, key: j.Key, before: digest}
}

// Wait waits for the leases of jobs until one of the jobs has a Change, and reports whether one
// has. It reports false if ctx ends or the owner is done. Each job must have been parked.
// since is when the wait for these jobs began, perhaps in an earlier call.
func (l *Leases) Wait(ctx context.Context, since time.Time, jobs []*Job) (changed bool) {
	items := make([]*item, len(jobs))
	of := make(map[*item]*Job, len(jobs))
	for i, j := range jobs {
		j.Change, j.Held = Unchanged, nil
		items[i], of[&j.wait] = &j.wait, j
	}
	moved := l.watch.wait(ctx, since, items)
	for _, it := range moved {
		j := of[it]
		if j.Change, j.Held = Freed, it.held; it.held != nil {
			j.Change = Replaced
		}
	}
	return len(moved) > 0
}

// look reads the leases and the keys of items with one command.
func (l *Leases) look(ctx context.Context, items []*item) ([]seen, error) {
	call := pipeline.Read("MGET", 2*len(items), pipeline.Values)
	for _, it := range items {
		call.String(it.name)
	}
	for _, it := range items {
		call.Key(it.prefix, it.key)
	}
	reply, err := l.pipe.Do(ctx, call)
	if err != nil {
		return nil, err
	}
	found := make([]seen, len(items))
	for i := range items {
		found[i] = seen{token: string(reply.Elems[i].Bytes), held: reply.Elems[len(items)+i].Bytes}
	}
	return found, nil
}

// Store stores the data of jobs that hold their leases, and ends the leases, unless a Delete
// or a Set came between. If Redis refuses scripts and transactions, Store stores the data
// without a check, and the jobs still hold their leases. After an error a job may hold its
// lease too. Release ends these leases.
func (l *Leases) Store(ctx context.Context, jobs []*Job) {
	if len(jobs) > 0 {
		l.StoreUnchecked(ctx, l.end(ctx, jobs, &storing))
	}
}

// StoreUnchecked stores the data of jobs, whatever their keys hold.
func (l *Leases) StoreUnchecked(ctx context.Context, jobs []*Job) {
	if len(jobs) == 0 {
		return
	}
	calls := make([]*pipeline.Call, len(jobs))
	for i, j := range jobs {
		calls[i] = j.write()
	}
	_, errs := l.pipe.DoAll(ctx, calls...)
	for i, j := range jobs {
		j.ended(true, errs[i])
	}
}

// Release ends the leases that jobs hold, which were taken for ttl, also if ctx is done.
func (l *Leases) Release(ctx context.Context, jobs []*Job, ttl time.Duration) {
	if len(jobs) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(ttl, maxRelease))
	defer cancel()
	l.drop(ctx, l.end(ctx, jobs, &releasing))
}

// drop deletes leases without a check of their tokens, because Redis refuses scripts and
// transactions. Otherwise other processes would wait for these leases.
func (l *Leases) drop(ctx context.Context, jobs []*Job) {
	if len(jobs) == 0 {
		return
	}
	call := pipeline.Write("DEL", len(jobs), pipeline.Count)
	for _, j := range jobs {
		call.String(j.lease)
		j.token, j.Outcome, j.Err = "", Lost, nil
	}
	_, _ = l.pipe.Do(ctx, call) // if Redis refuses this too, the leases expire
}

// end ends the leases of jobs by a script, or by a transaction if Redis refuses scripts. It
// returns the jobs for which Redis refuses both.
func (l *Leases) end(ctx context.Context, jobs []*Job, how *ending) (refused []*Job) {
	way := l.ways.current()
	if way == byScript {
		if jobs = l.runScripts(ctx, jobs, how); len(jobs) == 0 {
			l.ways.record(byScript)
			return nil
		}
		way = byTransaction
	}
	if way == byTransaction {
		n, err := l.transact(ctx, jobs, how)
		if jobs = jobs[n:]; err != nil {
			l.Refuse(ctx, err)
		} else {
			l.ways.record(byTransaction)
		}
	}
	return jobs
}

// endedBy sets the outcome of a job whose lease was to be ended. done reports that the
// script returned 1, or that the transaction did the same.
func (j *Job) endedBy(how *ending, done bool, err error) {
	// A script that timed out may still run, so the lease of a value that it may store must
	// not be released. After any other error the lease is released; a script that runs later
	// finds no token and stores nothing.
	if !how.stores || err == nil || errors.Is(err, pipeline.ErrOutcomeUnknown) && pipeline.TooLate(err) {
		j.token = ""
	}
	j.ended(done, err)
}

func (j *Job) ended(done bool, err error) {
	switch {
	case err != nil:
		j.Outcome = Failed
	case done:
		j.Outcome = Done
	default:
		j.Outcome = Lost
	}
	j.Err = err
}
