package rediscache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/flight"
	"github.com/rediscache/rediscache/internal/lease"
	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
)

// leases is what the leases of a cache, its Subs and its views have in common.
type leases struct {
	watch *lease.Watch // immutable

	mu    sync.Mutex // guards below
	known leaseWay
	since time.Time // when that was found out
}

// leaseWay is how Redis lets a lease be ended by its holder, and no other.
type leaseWay uint8

const (
	byScript      leaseWay = iota // in one round trip
	byTransaction                 // WATCH and MULTI, in two, where it refuses scripts
	noWay                         // no leases are taken: values are stored as without Policy.Lease
)

// askAgain is how long a way that Redis refused is not tried. An ACL may change, and an attempt that
// is refused costs one round trip.
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

// lookAtLeases looks at leases and at their keys, by one command.
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

// way is the first way that Redis is not known to refuse.
func (l *leases) way() leaseWay {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isOldLocked() {
		return byScript
	}
	return l.known
}

func (l *leases) isOldLocked() bool { return time.Since(l.since) >= askAgain }

// found keeps the way that Redis does not refuse, and reports whether that is news.
func (l *leases) found(way leaseWay) (news bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	news = l.known != way
	if news || l.isOldLocked() {
		l.known, l.since = way, time.Now()
	}
	return news
}

// cannotLease keeps that Redis refuses leases, and tells the observer if that is news.
func (c *Cache) cannotLease(ctx context.Context, err error) {
	if c.leases.found(noWay) {
		_ = c.fail(ctx, opLease, "", c.begin(), fmt.Errorf("values are stored as without Policy.Lease, as Redis refuses what leases need: %w", err))
	}
}

// isForGood reports whether Redis refused a command that it will refuse again: the user may not run
// it, the server does not know it, or the error is one that this package does not know.
func isForGood(err error) bool {
	meaning, answered := meaningOf(err)
	return answered && (meaning == 0 || meaning.Has(resp.Denied|resp.UnknownCommand) && !meaning.Has(resp.Condemns))
}

// transaction does what a script does, by WATCH, a look, and MULTI.
type transaction struct {
	lease, token string

	store       *pipeline.Call // nil: it ends the lease and stores nothing
	prefix, key string         // of the value, with store
	digest      string         // of what the key held when the load began; "": nothing
	left        time.Duration  // that it had to live then

	done bool
	err  error
}

const (
	transactTogether = 32 // jobs in one transaction: two round trips for all of them
	transactTries    = 3  // of one that is aborted, as something has changed that may be of no importance
)

// transact does transactions. It returns how many of the last are left because Redis refuses WATCH or
// MULTI for good, and the error that says so.
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

// transactAll does transactions as one, and as two halves where that is aborted.
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

// refusedError is a command without which there are no transactions, and which Redis refuses for good.
type refusedError struct{ cause error }

func (e *refusedError) Error() string { return e.cause.Error() }
func (e *refusedError) Unwrap() error { return e.cause }

// transactOnce tries transactions as one. If it is aborted, nothing was done.
func (c *Cache) transactOnce(ctx context.Context, all []*transaction) (aborted bool, err error) {
	// The talk may outlast this call, so it writes to nothing else.
	type outcome struct {
		done bool
		err  error
	}
	outcomes := make([]outcome, len(all))
	var neither error // why Redis knows neither WATCH nor MULTI
	look := lookForTransactions(all)
	err = c.pipe.Talk(ctx, func(ask pipeline.Ask) error {
		replies, err := ask(look...)
		if err != nil {
			return err
		}
		watch, multi := essential(replies[0]), essential(replies[len(replies)-1])
		if watch != nil && multi != nil {
			neither = watch
			return nil // the connection is as it was
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
		// Where there is nothing to do EXEC ends the watch.
		replies, err = ask(append(calls, pipeline.Write("EXEC", 0, pipeline.Results))...)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		}
		for i, r := range replies[:len(calls)] { // they are queued
			if calls[i] == all[of[i]].store {
				err = answerOf(r)
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
			if err := answerOf(r); err != nil {
				outcomes[of[i]] = outcome{err: err}
			}
		}
		return nil
	})
	if err == nil { // else the talk may still write to neither
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

// lookForTransactions begins to watch, looks at what is watched, and begins the transaction. So that
// is answered before anything is sent that is to be part of it: behind a MULTI that Redis refuses it
// would be executed at once.
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

// judge says what the lease, the key and its time to live mean, of which a release has the first: whether the
// load holds its lease, and whether it may store, as nothing has come between.
func (t *transaction) judge(seen []resp.Reply) (holds, matches bool, err error) {
	for _, r := range seen {
		if err := answerOf(r); err != nil {
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

// answerOf returns the error in a reply.
func answerOf(r resp.Reply) error {
	if r.Kind != resp.Error {
		return nil
	}
	return redis.Error(resp.Discreet(r.Text))
}

// essential is answerOf for a command without which there are no transactions.
func essential(r resp.Reply) error {
	err := answerOf(r)
	if isForGood(err) {
		return &refusedError{err}
	}
	return err
}
