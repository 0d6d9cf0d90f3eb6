package lease

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// How often a process looks at leases that others hold. All loads of a cache that wait share one
// [Watch], so the bounds are those of a cache, whatever the number of loads and of keys.
const (
	// A round looks at what is due, with one command. So rounds are at most 200 commands a second,
	// and a lone key is looked at 5 ms after the wait for it began. What a call looks at by itself, when
	// its wait begins and when a holder has moved, is on top of that, and at the pace of looks.
	betweenRounds = 5 * time.Millisecond

	// The wait between two looks at a holder is half of the time that it has been waited for, up to
	// this. So the wait ends at most half as late again as it could, and at most 100 ms late.
	betweenLooks = 100 * time.Millisecond

	// A round looks at so many keys, which are 128 names for an MGET, so that Redis is not held up. It
	// looks at a key of each holder that is due, and at more of them in turn while there is room: a load
	// of 5,000 keys ends its leases together, so one of them says when to look at the others.
	perRound = 64

	// All keys of a holder that has moved are looked at, by commands for so many each.
	perLook = 512
)

// Item is a key whose lease another load holds.
type Item struct {
	Name   string // of the lease
	Prefix string // of the key
	Key    string
	Before string // what Digest returned for what the key held when the load began
	Token  string // what the lease holds; "": that is not known yet, and after Wait that it is free

	Held []byte // after Wait, what the key holds if that is not what it held before
}

// Seen is what a look at an item found.
type Seen struct {
	Token string // "": the lease is free
	Held  []byte // nil: nothing
}

// Config is what a [Watch] is made of.
type Config struct {
	// Look looks at the leases and at the keys of items.
	Look func(ctx context.Context, items []*Item) ([]Seen, error)
	// Digest tells values apart. It is "" for nil.
	Digest func(value []byte) string
	// Go runs a function in a goroutine that somebody waits for. It reports false after Done.
	Go func(func(context.Context)) bool
	// Done is closed when all waits are to end.
	Done <-chan struct{}
}

// Watch waits for leases. Its methods are safe for concurrent use.
type Watch struct {
	cfg Config // immutable

	mu      sync.Mutex // guards below
	holders map[string]*holder
	looking bool // the goroutine of rounds runs
}

// holder is a load elsewhere, by the token that all its leases hold.
type holder struct {
	since time.Time // when somebody began to wait for it
	due   time.Time // for a look
	waits []wait    // not empty
	next  int       // of waits, to look at
}

// wait is for one item of a party.
type wait struct {
	item  *Item
	party *party
}

// party is one call of Wait.
type party struct {
	moved  map[string]bool // whether a holder has moved, by its token; guarded by Watch.mu
	signal chan struct{}   // holds one
}

// NewWatch makes a watch, which has a goroutine while somebody waits.
func NewWatch(cfg Config) *Watch {
	return &Watch{cfg: cfg, holders: make(map[string]*holder)}
}

// Wait waits until the lease of an item is free, or its key holds another value than before, and
// returns those items. If it cannot look it returns all items, after a pause. It returns none if ctx
// ends or Done is closed. The wait for these items began at since, maybe in an earlier call.
//
// The caller has just failed to get the lease of an item without a Token. If Wait finds that lease free
// or the value changed, it pauses too before it returns: the item may look so each time although
// nobody can have the lease, where a proxy asks a replica that is behind or answers with an error, or
// where the key of the lease holds something else than a string.
func (w *Watch) Wait(ctx context.Context, since time.Time, items []*Item) (changed []*Item) {
	var look []*Item
	for _, it := range items {
		if it.Token == "" {
			look = append(look, it)
		}
	}
	for first := true; ; first = false {
		for part := range slices.Chunk(look, perLook) {
			seen, err := w.cfg.Look(ctx, part)
			if err != nil {
				w.pause(ctx, interval(time.Since(since)))
				return items
			}
			for i, it := range part {
				if it.Token = seen[i].Token; w.note(it, seen[i]) {
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
		if look = w.park(ctx, since, items); len(look) == 0 {
			return nil
		}
	}
}

// note keeps what an item holds if that is news, and reports whether a load should do something.
func (w *Watch) note(it *Item, seen Seen) bool {
	if w.cfg.Digest(seen.Held) != it.Before {
		it.Held = seen.Held
		return true
	}
	return seen.Token == ""
}

// pause waits for d, unless the wait is to end.
func (w *Watch) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-w.cfg.Done:
	}
}

// park waits for holders of items to move, and returns the items of those that did, or none if the
// wait is to end.
func (w *Watch) park(ctx context.Context, since time.Time, items []*Item) (moved []*Item) {
	p := &party{moved: make(map[string]bool), signal: make(chan struct{}, 1)}
	if !w.join(p, since, items) {
		return nil
	}
	select {
	case <-p.signal:
	case <-ctx.Done():
	case <-w.cfg.Done:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for token := range p.moved {
		w.leaveLocked(p, token)
	}
	for _, it := range items {
		if p.moved[it.Token] {
			moved = append(moved, it)
		}
	}
	return moved
}

// join makes a party wait, and has rounds begin if it is the first.
func (w *Watch) join(p *party, since time.Time, items []*Item) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, it := range items {
		h := w.holders[it.Token]
		if h == nil {
			h = &holder{since: since, due: time.Now().Add(betweenRounds)}
			w.holders[it.Token] = h
		}
		h.waits = append(h.waits, wait{it, p})
		p.moved[it.Token] = false
	}
	w.looking = w.looking || w.cfg.Go(w.rounds)
	return w.looking
}

// leaveLocked takes a party out of those that wait for a holder, if it is one.
func (w *Watch) leaveLocked(p *party, token string) {
	h := w.holders[token]
	if h == nil {
		return
	}
	h.waits = slices.DeleteFunc(h.waits, func(o wait) bool { return o.party == p })
	if len(h.waits) == 0 {
		delete(w.holders, token)
	}
}

// rounds looks while somebody waits. It is the goroutine of the watch. Another one takes over if Look
// ends it, which the code of a pool can do by runtime.Goexit.
func (w *Watch) rounds(ctx context.Context) {
	done := false
	defer func() {
		if !done {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.looking = w.cfg.Go(w.rounds)
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
		items := make([]*Item, len(due))
		for i := range due {
			items[i] = &due[i]
		}
		seen, err := w.cfg.Look(ctx, items)
		w.tell(due, seen, err)
	}
}

// due returns copies of the items that a round looks at. It reports false, for good, if nobody waits.
func (w *Watch) due(ctx context.Context, now time.Time) (items []Item, ok bool) {
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
	if len(due) > perRound { // the others are due still
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

// interval is how long to wait between two looks at what has been waited for that long. It differs
// from process to process, so that they do not look together.
func interval(waited time.Duration) time.Duration {
	d := min(max(waited/2, betweenRounds), betweenLooks)
	return d/2 + rand.N(d/2)
}

// tell wakes who waits for a holder that has moved: a lease is free or another's, a key holds
// something else, or nobody can look.
func (w *Watch) tell(items []Item, seen []Seen, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, it := range items {
		if err == nil && seen[i].Token == it.Token && w.cfg.Digest(seen[i].Held) == it.Before {
			continue
		}
		h := w.holders[it.Token]
		if h == nil {
			continue
		}
		for _, o := range h.waits {
			o.party.moved[it.Token] = true
			select {
			case o.party.signal <- struct{}{}:
			default:
			}
		}
	}
}
