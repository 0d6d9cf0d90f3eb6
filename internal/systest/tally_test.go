package systest_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// tally counts what the callers of a cache were told, and how long they waited for it. Each value
// is its key, so that a reply that reached another caller shows.
type tally struct {
	forgets bool // immutable; the server may, so a miss is right

	mu      sync.Mutex // guards below
	tried   int
	failed  int // but for unknown
	unknown int // ErrOutcomeUnknown
	wrong   int // another's value, or none
	stored  int
	failure error // the last
	slowest time.Duration
	late    time.Duration       // how long the latest call went on after its deadline
	times   [maxTime / step]int // calls that did not succeed, by how long that took
	well    time.Time           // the first success since the last failure
	back    time.Duration       // the longest wait in recovers
	hiccup  time.Duration       // how late a timer of this process was
}

const (
	maxTime = 2 * time.Second // what takes longer is counted with that
	step    = 50 * time.Microsecond
	grace   = 50 * time.Millisecond // what a call may take beyond its deadline
)

// read gets a key within limit, or with zero within the cache's own default.
func (y *tally) read(ctx context.Context, c *rediscache.Cache, key string, limit time.Duration) error {
	return y.call(ctx, limit, false, func(ctx context.Context) (right bool, err error) {
		got, err := c.Get(ctx, key)
		if errors.Is(err, rediscache.ErrNotFound) {
			return y.forgets, nil
		}
		return string(got) == key, err
	})
}

// write is read for a Set.
func (y *tally) write(ctx context.Context, c *rediscache.Cache, key string, limit time.Duration) error {
	return y.call(ctx, limit, true, func(ctx context.Context) (bool, error) {
		return true, c.Set(ctx, key, []byte(key), 0)
	})
}

func (y *tally) call(
	ctx context.Context, limit time.Duration, write bool, do func(context.Context) (right bool, err error),
) error {
	deadline := rediscache.DefaultTimeout
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
		deadline = min(deadline, limit)
	}
	began := time.Now()
	right, err := do(ctx)
	ended := time.Now()
	took := ended.Sub(began)

	y.mu.Lock()
	defer y.mu.Unlock()
	y.addLocked(err)
	y.slowest, y.late = max(y.slowest, took), max(y.late, took-deadline)
	if err == nil {
		if !right {
			y.wrong++
		}
		if write {
			y.stored++
		}
		if y.well.IsZero() {
			y.well = ended
		}
		return nil
	}
	y.failure, y.well = err, time.Time{}
	y.times[min(took, maxTime-1)/step]++
	return err
}

// add counts a call that was made in another way.
func (y *tally) add(err error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.addLocked(err)
}

func (y *tally) addLocked(err error) {
	y.tried++
	switch {
	case errors.Is(err, rediscache.ErrOutcomeUnknown):
		y.unknown++
	case err != nil:
		y.failed++
	}
}

// callers lets n callers read and write, each a key of its own, with the limits in turn. What it
// returns ends that, and may be called more than once.
func (y *tally) callers(t *testing.T, c *rediscache.Cache, n int, limits ...time.Duration) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	limits = append(limits, 0)
	var wg sync.WaitGroup
	for i := range n {
		key := fmt.Sprintf("key %d %s", i, strings.Repeat("+", i)) // no two replies have one length
		require.NoError(t, y.write(ctx, c, key, 0))
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				limit := limits[(i+n)%len(limits)]
				if n%5 == 0 {
					_ = y.write(t.Context(), c, key, limit) // counted
				} else {
					_ = y.read(t.Context(), c, key, limit)
				}
				redistest.Wait(ctx, rand.N(2*time.Millisecond)) // a caller has something else to do as well
			}
		})
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			began := time.Now()
			redistest.Wait(ctx, time.Millisecond)
			y.mu.Lock()
			y.hiccup = max(y.hiccup, time.Since(began)-time.Millisecond)
			y.mu.Unlock()
		}
	})
	return func() { cancel(); wg.Wait() }
}

// recovers waits until the callers are well again: some have succeeded, and none has failed for a
// while after that. It takes the time from now until the first of those successes.
func (y *tally) recovers(t *testing.T) {
	t.Helper()
	began := time.Now()
	y.mu.Lock()
	y.well = time.Time{}
	y.mu.Unlock()
	redistest.Eventually(t, func() bool {
		y.mu.Lock()
		defer y.mu.Unlock()
		if y.well.IsZero() || time.Since(y.well) < 200*time.Millisecond {
			return false
		}
		y.back = max(y.back, y.well.Sub(began))
		return true
	}, "the callers are well again")
}

// quantile is of the times that calls took which did not succeed, rounded up.
func (y *tally) quantile(q float64) time.Duration {
	n := 0
	for i, count := range y.times {
		if n += count; float64(n) >= q*float64(y.failed+y.unknown) {
			return min(time.Duration(i+1)*step, y.slowest)
		}
	}
	return y.slowest
}

// line says it in one, of what was done to the callers.
func (y *tally) line(what string) string {
	text := fmt.Sprintf("%s: %d tried, %d failed, %d unknown, %d wrong; slowest call %s",
		what, y.tried, y.failed, y.unknown, y.wrong, ms(y.slowest))
	if y.failed+y.unknown > 0 {
		text += fmt.Sprintf(", of those that failed the median %s, 99 %% within %s", ms(y.quantile(0.5)), ms(y.quantile(0.99)))
	}
	if y.back > 0 {
		text += "; recovered in " + ms(y.back)
	}
	if y.hiccup > 0 {
		text += "; timers here up to " + ms(y.hiccup) + " late"
	}
	return text
}

func ms(d time.Duration) string {
	if d < 10*time.Millisecond {
		return strconv.FormatFloat(float64(d)/1e6, 'g', 2, 64) + " ms"
	}
	return strconv.FormatInt(d.Round(time.Millisecond).Milliseconds(), 10) + " ms"
}

// slack is what this machine adds to a time: as much as to a timer's, on the way there and back.
func (y *tally) slack() time.Duration { return 2 * y.hiccup }

// requireSound wants what holds whatever the fault is.
func (y *tally) requireSound(t *testing.T) {
	t.Helper()
	require.Zero(t, y.wrong, "a caller got another's reply")
	require.LessOrEqual(t, y.late, grace+y.slack(), "a call ends with its deadline")
	require.Less(t, y.back, time.Second+y.slack(), "the service is back within a second")
}

// requireNoRepetition compares how many writes the server has had with what was said of them.
func (y *tally) requireNoRepetition(t *testing.T, received int) {
	t.Helper()
	require.GreaterOrEqual(t, received, y.stored, "what was applied was received")
	require.LessOrEqual(t, received, y.stored+y.unknown, "nothing was sent twice, nor after a refusal")
}

var setCalls = regexp.MustCompile(`cmdstat_set:calls=(\d+)`)

// sets is how many the server has executed since it was started.
func sets(s *redistest.Server) int {
	found := setCalls.FindSubmatch(s.Do("INFO", "commandstats").([]byte))
	n, _ := strconv.Atoi(string(found[1])) // digits
	return n
}
