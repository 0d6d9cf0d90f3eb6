package rediscache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rediscache/rediscache/internal/flight"
	"github.com/rediscache/rediscache/internal/lease"
	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
)

// leases is what a cache, its Subs and its views share about leases.
type leases struct {
	watch *lease.Watch // immutable

	mu    sync.Mutex // guards below
	known leaseWay
	since time.Time // when known was last set or confirmed
}

// leaseWay is how the holder of a lease, and nobody else, ends it.
type leaseWay uint8

const (
	byScript      leaseWay = iota // in one round trip
	byTransaction                 // WATCH and MULTI, in two round trips, if Redis refuses scripts
	noWay                         // no leases are taken: values are stored as without Policy.Lease
)

// askAgain is how long a way that Redis refused is not retried. An ACL may change, and a refused attempt
// costs one round trip.
const askAgain = time.Minute

func newLeases(pipe *pipeline.Pipeline, owner *flight.Owner) *leases {
	return &leases{watch: lease.NewWatch(lease.Config{
		Look: func(ctx context.Context, items []*lease.Item) ([]lease.Seen, error) {
			return lookAtLeases(ctx, pipe, items)
		},
		Digest: digestOf,
		Go:     owner.Go,
		Done:   owner.Done(),
	})}
}

// lookAtLeases reads leases and their keys with one command.
func lookAtLeases(ctx context.Context, pipe *pipeline.Pipeline, items []*lease.Item) ([]lease.Seen, error) {
	call := pipeline.Read("MGET", 2*len(items), pipeline.Values)
	for _, it := range items {
		call.String(it.Name)
	}
	for _, it := range items {
		call.Key(it.Prefix, it.Key)
	}
	reply, err := pipe.Do(ctx, call)
	if err != nil {
		return nil, err
	}
	seen := make([]lease.Seen, len(items))
	for i := range items {
		seen[i] = lease.Seen{Token: string(reply.Elems[i].Bytes), Held: reply.Elems[len(items)+i].Bytes}
	}
	return seen, nil
}

// way returns the first way that Redis did not refuse within askAgain.
func (l *leases) way() leaseWay {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isOldLocked() {
		return byScript
	}
	return l.known
}

func (l *leases) isOldLocked() bool { return time.Since(l.since) >= askAgain }

// found records the way that works, and reports whether it differs from the last one.
func (l *leases) found(way leaseWay) (news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	news = l.known != way
	if news || l.isOldLocked() {
		l.known, l.since = way, time.Now()
	}
	return news
}

// cannotLease records that Redis refuses leases, and observes err the first time.
func (c *Cache) cannotLease(ctx context.Context, err error) {
	if c.leases.found(noWay) {
		_ = c.fail(ctx, opLease, "", c.begin(), fmt.Errorf("values are stored as without Policy.Lease, because Redis refuses the commands of leases: %w", err))
	}
}

// isForGood reports whether Redis would refuse the command again: the user may not run it, the server
// does not know it, or the error is unknown to this package.
func isForGood(err error) bool {
	meaning, answered := resp.MeaningOfError(err)
	return answered && (meaning == 0 || meaning.Has(resp.Denied|resp.UnknownCommand) && !meaning.Has(resp.Condemns))
}

// transaction does what a script does, with WATCH, reads, and MULTI.
type transaction struct {
	lease, token string

	store       *pipeline.Call // nil: a release, which stores nothing
	prefix, key string         // the name of the value; set if store is
	digest      string         // of what the key held when the load began; "": nothing
	left        time.Duration  // its time to live then

	done bool
	err  error
}

const (
	transactTogether = 32 // jobs in one transaction: two round trips for all of them
	transactTries    = 3  // of an aborted transaction: the change that aborted it may not matter
)

// transact runs transactions. If Redis refuses WATCH or MULTI for good, it returns how many of the last
// did not run, and the error.
func (c *Cache) transact(ctx context.Context, all []*transaction) (left int, err error) {
	left = len(all)
	for part := range slices.Chunk(all, transactTogether) {
		if err := c.transactAll(ctx, part); err != nil {
			return left, err
		}
		left -= len(part)
	}
	return 0, nil
}

// transactAll runs transactions as one, and as two halves if that is aborted.
func (c *Cache) transactAll(ctx context.Context, all []*transaction) error {
	for range transactTries {
		aborted, err := c.transactOnce(ctx, all)
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
			if err := c.transactAll(ctx, all[:half]); err != nil {
				return err
			}
			return c.transactAll(ctx, all[half:])
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

// transactOnce tries transactions as one. If it is aborted, nothing was done.
func (c *Cache) transactOnce(ctx context.Context, all []*transaction) (aborted bool, err error) {
	// The function below may outlast Talk, so it must write to these variables only.
	type outcome struct {
		done bool
		err  error
	}
	outcomes := make([]outcome, len(all))
	var neither error // set if Redis refuses both WATCH and MULTI
	look := lookForTransactions(all)
	err = c.pipe.Talk(ctx, func(ask pipeline.Ask) error {
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
		var of []int // the transaction of each
		for i, t := range all {
			n := 1
			if t.store != nil {
				n = 3
			}
			holds, matches, err := t.judge(replies[:n])
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
			return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
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
			return fmt.Errorf("%w: EXEC has %d replies to %d commands", ErrOutcomeUnknown, len(exec.Elems), len(calls))
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

// judge reports whether the load still holds its lease, and whether it may store because no Delete and no Set
// came between. seen has the lease and, unless t is a release, the value and its PTTL.
func (t *transaction) judge(seen []resp.Reply) (holds, matches bool, err error) {
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
	return true, digestOf(held) == t.digest && (held == nil || left >= 0 && left <= millis(t.left) || left == -1 && t.left == forever), nil
}

// essential returns the error in a reply to a command that every transaction needs.
func essential(r resp.Reply) error {
	err := r.Err()
	if isForGood(err) {
		return &refusedError{err}
	}
	return err
}
