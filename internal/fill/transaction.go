package fill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
)

// transaction does what a script does, with WATCH, reads, and MULTI.
type transaction struct {
	lease, token string

	store       *pipeline.Call // nil: a release, which stores nothing
	prefix, key string         // the name of the key; set if store is
	before      Value          // what the key held when the load began; set if store is

	done bool
	err  error
}

const (
	transactTogether = 32 // jobs in one transaction: two round trips for all of them
	transactTries    = 3  // of an aborted transaction: the change that aborted it may not matter
)

// transaction returns the transaction of a job. It copies the fields of the
// job, because the function that Talk calls in try may still read them when the job is used again.
func (j *Job) transaction(how *ending) *transaction {
	t := &transaction{lease: j.lease, token: j.token}
	if how.stores {
		t.store = j.write().Queued()
		t.prefix, t.key, t.before = j.Prefix, j.Key, j.Before
	}
	return t
}

// transact ends the leases of jobs by transactions. If Redis refuses WATCH or MULTI for good, it
// returns the error, and the number of the jobs before the refusal.
func (l *Leases) transact(ctx context.Context, jobs []*Job, how *ending) (n int, err error) {
	for part := range slices.Chunk(jobs, transactTogether) {
		all := make([]*transaction, len(part))
		for i, j := range part {
			all[i] = j.transaction(how)
		}
		if err := l.transactAll(ctx, all); err != nil {
			return n, err
		}
		for i, t := range all {
			part[i].endedBy(how, t.done, t.err)
		}
		n += len(part)
	}
	return n, nil
}

// transactAll runs transactions as one, and as two halves if that is aborted.
func (l *Leases) transactAll(ctx context.Context, all []*transaction) error {
	for range transactTries {
		aborted, err := l.try(ctx, all)
		var refused *refusedError
		switch half := len(all) / 2; {
		case errors.As(err, &refused):
			return err
		case err != nil:
			for _, t := range all {
				t.err = err
			}
			return nil
		case !aborted:
			return nil
		case half > 0:
			if err := l.transactAll(ctx, all[:half]); err != nil {
				return err
			}
			return l.transactAll(ctx, all[half:])
		}
	}
	all[0].err = errContended
	return nil
}

var errContended = errors.New("the key or its lease changed during each of three transactions")

// refusedError means that Redis refuses for good a command that every transaction needs.
type refusedError struct{ cause error }

func (e *refusedError) Error() string { return e.cause.Error() }
func (e *refusedError) Unwrap() error { return e.cause }

// try tries transactions as one. If it is aborted, nothing was done.
func (l *Leases) try(ctx context.Context, all []*transaction) (aborted bool, err error) {
	a := &attempt{all: all, outcomes: make([]attempted, len(all))}
	err = l.pipe.Talk(ctx, func(ask pipeline.Ask) error {
		replies, err := ask(a.reads()...)
		if err != nil {
			return err
		}
		if err := a.prepare(replies); err != nil || a.refused != nil {
			return err
		}
		replies, err = ask(append(a.calls, pipeline.Write("EXEC", 0, pipeline.Results))...)
		if err != nil {
			return fmt.Errorf("%w: %w", pipeline.ErrOutcomeUnknown, err)
		}
		return a.finish(replies)
	})
	if err != nil { // the function may still write to a
		return false, err
	}
	for i, t := range all {
		t.done, t.err = a.outcomes[i].done, a.outcomes[i].err
	}
	return a.aborted, a.refused
}

// attempt is the state of one try. The function that Talk calls may outlast Talk, so it writes to
// nothing else.
type attempt struct {
	all      []*transaction // read only
	outcomes []attempted    // of each transaction

	calls   []*pipeline.Call // the commands between MULTI and EXEC
	indexes []int            // the index in all of the transaction of each call
	refused error            // set if Redis refuses both WATCH and MULTI for good
	aborted bool             // EXEC executed nothing, because a watched key has changed
}

// attempted is the outcome of a transaction in one attempt.
type attempted struct {
	done bool
	err  error
}

// reads returns WATCH, the reads of the watched keys, and MULTI. The commands of the transactions are
// sent after the reply to MULTI: if Redis refused MULTI, it would execute them at once.
func (a *attempt) reads() []*pipeline.Call {
	names := len(a.all)
	for _, t := range a.all {
		if t.store != nil {
			names++
		}
	}
	watch := pipeline.Read("WATCH", names, pipeline.Status)
	calls := []*pipeline.Call{watch}
	for _, t := range a.all {
		watch.String(t.lease)
		calls = append(calls, pipeline.Read("GET", 1, pipeline.Value).String(t.lease))
		if t.store != nil {
			watch.Key(t.prefix, t.key)
			calls = append(calls, pipeline.Read("GET", 1, pipeline.Value).Key(t.prefix, t.key),
				pipeline.Read("PTTL", 1, pipeline.Count).Key(t.prefix, t.key))
		}
	}
	return append(calls, pipeline.Read("MULTI", 0, pipeline.Status))
}

// prepare takes the replies to reads, and sets the commands of the transactions. There may be none; EXEC
// then ends the WATCH. If Redis refuses both WATCH and MULTI, prepare sets a.refused instead of an error,
// because the connection has no state that Talk must undo by closing it.
func (a *attempt) prepare(replies []resp.Reply) error {
	watch, multi := essential(replies[0]), essential(replies[len(replies)-1])
	if watch != nil && multi != nil {
		a.refused = watch
		return nil
	}
	if err := cmp.Or(watch, multi); err != nil {
		return err
	}
	replies = replies[1:]
	for i, t := range a.all {
		n := 1
		if t.store != nil {
			n = 3
		}
		holds, matches, err := t.check(replies[:n])
		replies = replies[n:]
		a.outcomes[i] = attempted{matches, err}
		if !holds || err != nil {
			continue
		}
		a.add(i, pipeline.Write("DEL", 1, pipeline.Queued).String(t.lease))
		if matches && t.store != nil {
			a.add(i, t.store)
		}
	}
	return nil
}

// add adds a command of the transaction with that index.
func (a *attempt) add(index int, call *pipeline.Call) {
	a.calls, a.indexes = append(a.calls, call), append(a.indexes, index)
}

// finish takes the replies to the commands of the transactions, each QUEUED or an error, and to EXEC.
func (a *attempt) finish(replies []resp.Reply) error {
	for i, r := range replies[:len(a.calls)] {
		err := essential(r)
		if a.calls[i] == a.all[a.indexes[i]].store {
			err = r.Err() // Redis may refuse SET or DEL of the key although transactions work
		}
		if err != nil {
			return err
		}
	}
	exec := replies[len(a.calls)]
	if err := essential(exec); err != nil {
		return err
	}
	if exec.Kind == resp.Array && len(exec.Elems) != len(a.calls) {
		return fmt.Errorf("%w: EXEC has %d replies to %d commands",
			pipeline.ErrOutcomeUnknown, len(exec.Elems), len(a.calls))
	}
	a.aborted = exec.Kind == resp.Nil && len(a.calls) > 0
	for i, r := range exec.Elems {
		if err := r.Err(); err != nil {
			a.outcomes[a.indexes[i]] = attempted{err: err}
		}
	}
	return nil
}

// check reports whether the load still holds its lease, and whether it may store because no Delete and
// no Set came between. replies are to GET of the lease and, unless t is a release, to GET and PTTL of the
// key.
func (t *transaction) check(replies []resp.Reply) (holds, matches bool, err error) {
	for _, r := range replies {
		if err := r.Err(); err != nil {
			return false, false, err
		}
	}
	holds = string(replies[0].Bytes) == t.token
	if t.store == nil || !holds {
		return holds, holds, nil
	}
	return true, t.before.matches(replies[1].Bytes, replies[2].Int), nil
}

// matches reports whether a key with the value held and the PTTL left holds the same value as before,
// which was not stored again. fill.lua does the same.
func (v Value) matches(held []byte, left int64) bool {
	switch {
	case Digest(held) != v.Digest:
		return false
	case held == nil:
		return true
	case left == -1: // it does not expire
		return v.Left == Forever
	}
	return left >= 0 && left <= millis(v.Left)
}

// essential returns the error in a reply to a command that every transaction needs.
func essential(r resp.Reply) error {
	err := r.Err()
	if RefusedForGood(err) {
		return &refusedError{err}
	}
	return err
}
