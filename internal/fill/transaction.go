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

// transaction returns the transaction of a job. It copies what it needs, because it may outlast the
// use of the job: see try.
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
	// The function below may outlast Talk, so it must write to these variables only.
	type outcome struct {
		done bool
		err  error
	}
	outcomes := make([]outcome, len(all))
	var neither error // set if Redis refuses both WATCH and MULTI
	look := lookForTransactions(all)
	err = l.pipe.Talk(ctx, func(ask pipeline.Ask) error {
		replies, err := ask(look...)
		if err != nil {
			return err
		}
		watch, multi := essential(replies[0]), essential(replies[len(replies)-1])
		if watch != nil && multi != nil {
			neither = watch
			return nil // the connection has no state to undo
		}
		if err := cmp.Or(watch, multi); err != nil {
			return err
		}
		replies = replies[1:]
		var calls []*pipeline.Call
		var of []int // of: the transaction of each call
		for i, t := range all {
			n := 1
			if t.store != nil {
				n = 3
			}
			holds, matches, err := t.check(replies[:n])
			replies = replies[n:]
			outcomes[i] = outcome{matches, err}
			if holds && err == nil {
				calls, of = append(calls, pipeline.Write("DEL", 1, pipeline.Queued).String(t.lease)), append(of, i)
				if matches && t.store != nil {
					calls, of = append(calls, t.store), append(of, i)
				}
			}
		}
		// Even without commands, EXEC ends the WATCH.
		replies, err = ask(append(calls, pipeline.Write("EXEC", 0, pipeline.Results))...)
		if err != nil {
			return fmt.Errorf("%w: %w", pipeline.ErrOutcomeUnknown, err)
		}
		for i, r := range replies[:len(calls)] { // QUEUED or an error
			if calls[i] == all[of[i]].store {
				err = r.Err()
			} else {
				err = essential(r)
			}
			if err != nil {
				return err
			}
		}
		exec := replies[len(calls)]
		if err := essential(exec); err != nil {
			return err
		}
		if exec.Kind == resp.Array && len(exec.Elems) != len(calls) {
			return fmt.Errorf("%w: EXEC has %d replies to %d commands", pipeline.ErrOutcomeUnknown, len(exec.Elems), len(calls))
		}
		aborted = exec.Kind == resp.Nil && len(calls) > 0
		for i, r := range exec.Elems {
			if err := r.Err(); err != nil {
				outcomes[of[i]] = outcome{err: err}
			}
		}
		return nil
	})
	if err == nil { // after an error the function may still write to neither
		err = neither
	}
	if err != nil {
		return false, err
	}
	for i, t := range all {
		t.done, t.err = outcomes[i].done, outcomes[i].err
	}
	return aborted, nil
}

// lookForTransactions returns WATCH, the reads of the watched keys, and MULTI. The commands of the
// transaction are sent after the reply to MULTI: if Redis refused MULTI, it would execute them at once.
func lookForTransactions(all []*transaction) []*pipeline.Call {
	names := len(all)
	for _, t := range all {
		if t.store != nil {
			names++
		}
	}
	watch := pipeline.Read("WATCH", names, pipeline.Status)
	calls := []*pipeline.Call{watch}
	for _, t := range all {
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

// check reports whether the load still holds its lease, and whether it may store because no Delete and no Set
// came between. seen has the lease and, unless t is a release, the value and its PTTL.
func (t *transaction) check(seen []resp.Reply) (holds, matches bool, err error) {
	for _, r := range seen {
		if err := r.Err(); err != nil {
			return false, false, err
		}
	}
	holds = string(seen[0].Bytes) == t.token
	if t.store == nil || !holds {
		return holds, holds, nil
	}
	held, left := seen[1].Bytes, seen[2].Int
	return true, Digest(held) == t.before.Digest && (held == nil || left >= 0 && left <= millis(t.before.Left) || left == -1 && t.before.Left == Forever), nil
}

// essential returns the error in a reply to a command that every transaction needs.
func essential(r resp.Reply) error {
	err := r.Err()
	if RefusedForGood(err) {
		return &refusedError{err}
	}
	return err
}
