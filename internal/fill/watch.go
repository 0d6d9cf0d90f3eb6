package fill

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// How often a process reads the leases that other loads hold. All waiting loads of a cache share one
// [watch], so these are the bounds of a cache for any number of loads and keys.
const (
	// A round reads the leases that are due, with one command. So there are at most 200 rounds a second,
	// and the first round for a single key comes 5 ms after its wait began. In addition each wait reads
	// its own items when it begins and when a holder has moved, as rarely as rounds read one holder.
	betweenRounds = 5 * time.Millisecond

	// The time between two reads for a holder is at most half of the time since the first wait for it,
	// and at most this. So a wait lasts at most half as long again as necessary, and at most 100 ms more.
	betweenLooks = 100 * time.Millisecond

	// A round reads at most this many keys, which are 128 names of an MGET, so that Redis is not blocked.
	// It reads one key of each holder that is due, and more keys while there is room. One key of a holder
	// shows when to read the others, because a load of 5,000 keys ends its leases together.
	perRound = 64

	// When a holder has moved, wait reads all its keys, at most this many with one command.
	perLook = 512
)

// item is a key whose lease another load holds.
type item struct {
	name   string // of the lease
	prefix string // of the key
	key    string
	before string // the digest of what the key held when the wait began
	token  string // the token in the lease; "": unknown before wait, free after wait

	held []byte // set by wait if the key holds another value than before
}

// seen is the result of a look at an item.
type seen struct {
	token string // "": the lease is free
	held  []byte // the value of the key; nil: none
}

// watch waits for leases. Its methods are safe for concurrent use.
type watch struct {
	look  func(ctx context.Context, items []*item) ([]seen, error) // immutable; reads the leases and the keys
	owner Owner                                                    // immutable

	mu      sync.Mutex // guards below
	holders map[string]*holder
	looking bool // the goroutine of rounds runs
}

// holder is a load in another process. All its leases hold one token, the key of watch.holders.
type holder struct {
	since time.Time // when the first wait for it began
	due   time.Time // when to read it next
	waits []waiting // not empty
	next  int       // index in waits of the next item to read
}

// waiting is the wait of a party for one item.
type waiting struct {
	item  *item
	party *party
}

// party is one call of wait. A holder "moves" when its lease or its key changes.
type party struct {
	moved  map[string]bool // whether a holder has moved, by its token; guarded by watch.mu
	signal chan struct{}   // holds one
}

// newWatch makes a watch. It has a goroutine only while a call of wait waits.
func newWatch(look func(context.Context, []*item) ([]seen, error), owner Owner) *watch {
	return &watch{look: look, owner: owner, holders: make(map[string]*holder)}
}

// wait waits until the lease of an item is free or its key holds another value than before, and
// returns the items for which that is so. If look returns an error, wait returns all items after a
// pause. It returns none if ctx ends or the owner is done. since is when the wait for these items began,
// perhaps in an earlier call.
//
// For an item without a token the caller has just failed to take the lease. If wait then finds the
// lease free or the value changed, it also pauses before it returns. Otherwise the caller could retry
// all the time while it cannot take the lease: a proxy may read from a replica that is behind or return
// an error for the key, or the key of the lease may hold another type than a string.
func (w *watch) wait(ctx context.Context, since time.Time, items []*item) (changed []*item) {
	var unread []*item
	for _, it := range items {
		if it.token == "" {
			unread = append(unread, it)
		}
	}
	for first := true; ; first = false {
		for part := range slices.Chunk(unread, perLook) {
			seen, err := w.look(ctx, part)
			if err != nil {
				w.pause(ctx, interval(time.Since(since)))
				return items
			}
			for i, it := range part {
				if it.token = seen[i].token; w.note(it, seen[i]) {
					changed = append(changed, it)
				}
			}
		}
		if len(changed) > 0 {
			if first {
				w.pause(ctx, interval(time.Since(since)))
			}
			return changed
		}
		if unread = w.park(ctx, since, items); len(unread) == 0 {
			return nil
		}
	}
}

// note reports whether wait returns the item: its key holds another value, which note keeps, or its
// lease is free.
func (w *watch) note(it *item, seen seen) bool {
	if Digest(seen.held) != it.before {
		it.held = seen.held
		return true
	}
	return seen.token == ""
}

// pause waits for d, or until ctx ends or the owner is done.
func (w *watch) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-w.owner.Done():
	}
}

// park waits until a holder of items has moved, and returns the items of the holders that have. It
// returns none if ctx ends or the owner is done first.
func (w *watch) park(ctx context.Context, since time.Time, items []*item) (moved []*item) {
	p := &party{moved: make(map[string]bool), signal: make(chan struct{}, 1)}
	if !w.join(p, since, items) {
		return nil
	}
	select {
	case <-p.signal:
	case <-ctx.Done():
	case <-w.owner.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for token := range p.moved {
		w.leaveLocked(p, token)
	}
	for _, it := range items {
		if p.moved[it.token] {
			moved = append(moved, it)
		}
	}
	return moved
}

// join adds the waits of a party, and starts rounds if it does not run. It reports false after the owner is done.
func (w *watch) join(p *party, since time.Time, items []*item) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range items {
		h := w.holders[it.token]
		if h == nil {
			h = &holder{since: since, due: time.Now().Add(betweenRounds)}
			w.holders[it.token] = h
		}
		h.waits = append(h.waits, waiting{it, p})
		p.moved[it.token] = false
	}
	w.looking = w.looking || w.owner.Go(w.rounds)
	return w.looking
}

// leaveLocked removes the waits of a party for a holder.
func (w *watch) leaveLocked(p *party, token string) {
	h := w.holders[token]
	if h == nil {
		return
	}
	h.waits = slices.DeleteFunc(h.waits, func(o waiting) bool { return o.party == p })
	if len(h.waits) == 0 {
		delete(w.holders, token)
	}
}

// rounds is the goroutine of the watch. It reads what is due until no party waits. If code of a pool
// calls runtime.Goexit in look, another goroutine takes over.
func (w *watch) rounds(ctx context.Context) {
	done := false
	defer func() {
		if !done {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.looking = w.owner.Go(w.rounds)
		}
	}()
	t := time.NewTicker(betweenRounds)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		due, ok := w.due(ctx, time.Now())
		if done = !ok; done {
			return
		}
		if len(due) == 0 {
			continue
		}
		items := make([]*item, len(due))
		for i := range due {
			items[i] = &due[i]
		}
		seen, err := w.look(ctx, items)
		w.wake(due, seen, err)
	}
}

// due returns copies of the items that a round reads. If no party waits it reports false, and rounds
// must end.
func (w *watch) due(ctx context.Context, now time.Time) (items []item, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.looking = len(w.holders) > 0 && ctx.Err() == nil; !w.looking {
		return nil, false
	}
	var due []*holder
	for _, h := range w.holders {
		if !now.Before(h.due) {
			due = append(due, h)
		}
	}
	if len(due) > perRound { // the others stay due for the next round
		slices.SortFunc(due, func(a, b *holder) int { return a.due.Compare(b.due) })
		due = due[:perRound]
	}
	for _, h := range due {
		for range min(perRound/len(due), len(h.waits)) {
			h.next++
			items = append(items, *h.waits[h.next%len(h.waits)].item)
		}
		h.due = now.Add(interval(now.Sub(h.since)))
	}
	return items, true
}

// interval returns the time until the next read of a holder for which parties have waited that long.
// It is random, so that processes do not read at the same time.
func interval(waited time.Duration) time.Duration {
	d := min(max(waited/2, betweenRounds), betweenLooks)
	return d/2 + rand.N(d/2)
}

// wake wakes the parties that wait for a holder that has moved: its lease is free or has another
// token, its key holds another value, or the read failed.
func (w *watch) wake(items []item, seen []seen, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, it := range items {
		if err == nil && seen[i].token == it.token && Digest(seen[i].held) == it.before {
			continue
		}
		h := w.holders[it.token]
		if h == nil {
			continue
		}
		for _, o := range h.waits {
			o.party.moved[it.token] = true
			select {
			case o.party.signal <- struct{}{}:
			default:
			}
		}
	}
}
