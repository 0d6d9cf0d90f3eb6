package systest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

// frozenURL makes TestFaultAFrozenProcessExpiresNothing the process that is frozen: it is where that
// finds Redis, under which it also says how it fares.
const frozenURL = "REDISCACHE_FROZEN_URL"

// frozenReport is what the frozen process says.
type frozenReport struct {
	Tallies       []string // in words
	Failed, Wrong int
	Failure       string
	Loads         int64 // of what Redis holds fresh
	Dials, Broken int64
}

// A process that stands still for longer than all of its timeouts, as for a debugger, a laptop's lid
// or a hypervisor, goes on where it was; a pause of the collector is a short one of these. A context
// of the caller's own is the caller's matter.
func TestFaultAFrozenProcessExpiresNothing(t *testing.T) {
	redistest.NoLeaks(t)
	if url := os.Getenv(frozenURL); url != "" {
		beFrozen(t, url)
		return
	}
	redistest.Long(t)
	s := redistest.Start(t)
	frozen, times := 1200*time.Millisecond, 2
	if systest.Soak > 0 {
		frozen, times = 4*time.Second, max(2, int(systest.Soak/(4*time.Second)))
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout="+(2*time.Minute+2*systest.Soak).String(), "-soak="+systest.Soak.String())
	cmd.Env = append(os.Environ(), frozenURL+"="+s.URL())
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_, _ = cmd.Process.Kill(), cmd.Wait() // errors mean that it is gone
		if t.Failed() {
			t.Logf("it said: %s", &out)
		}
	})
	exists := func(key string) func() bool {
		return func() bool { return s.Do("EXISTS", key) == int64(1) }
	}
	redistest.Eventually(t, exists("at work"), "it is at work")
	for range times {
		thaw := redistest.Freeze(t, cmd.Process)
		redistest.Wait(t.Context(), frozen)
		thaw()
		redistest.Wait(t.Context(), 200*time.Millisecond)
	}
	s.Do("SET", "enough", "")
	require.NoError(t, cmd.Wait())
	var r frozenReport
	require.NoError(t, json.Unmarshal(s.Do("GET", "report").([]byte), &r))
	for _, tally := range r.Tallies {
		t.Logf("SIGSTOP of the process itself for %v, %d times, %s", frozen, times, tally)
	}
	t.Logf("%d dials, %d connections lost, %d loads of fresh values", r.Dials, r.Broken, r.Loads)
	require.Zero(t, r.Failed, r.Failure)
	require.Zero(t, r.Wrong)
	require.Zero(t, r.Loads, "what Redis says is fresh is served")
	require.LessOrEqual(t, r.Broken, int64(2), "and no connection given up, but by chance on a busy machine")
	require.LessOrEqual(t, r.Dials, rediscache.DefaultMaxActive+r.Broken)
}

// beFrozen is the process that is frozen, by its parent, until that has had enough.
func beFrozen(t *testing.T, url string) {
	pool := newPool(t, url, rediscache.WithReadTimeout(time.Second)) // shorter than any freeze
	c := newCache(t, pool)
	require.NoError(t, pool.Ready(t.Context()))
	ints := systest.NewView(t, c, rediscache.JSON[int](), rediscache.Policy{
		TTL: time.Hour, Stale: time.Hour, Negative: time.Hour, Lease: time.Second, Soft: time.Second / 2, Hard: time.Second,
	})
	var loads atomic.Int64
	load := func(of int, err error) func(context.Context) (int, error) {
		return func(context.Context) (int, error) { loads.Add(1); return of, err }
	}
	one := func() bool {
		got, err := ints.GetOrLoad(t.Context(), "one", load(1, nil))
		return got == 1 && err == nil
	}
	none := func() bool {
		_, err := ints.GetOrLoad(t.Context(), "none", load(0, rediscache.ErrNotFound))
		return errors.Is(err, rediscache.ErrNotFound)
	}
	require.True(t, one() && none())
	require.EqualValues(t, 2, loads.Swap(0))

	var shared, single tally
	each := newCache(t, pool, rediscache.WithPipelineConns(0))
	callers, writers := 16, 2 // which leave a slow machine idle time, so that no call is late for want of it
	if systest.Soak > 0 {
		callers, writers = 64, 8
	}
	end, endSingle := shared.callers(t, c, callers), single.callers(t, each, callers)
	many := make(map[string][]byte)
	for n := range 200 {
		many[fmt.Sprint("many ", n)] = nil
	}
	require.NoError(t, c.Set(t.Context(), "at work", nil, 0))
	redistest.Together(writers, func(int) {
		for enough := rediscache.ErrNotFound; enough != nil; _, enough = c.Get(t.Context(), "enough") {
			if !one() || !none() {
				t.Errorf("a view")
			}
			single.add(each.SetMany(t.Context(), many, 0))
			redistest.Wait(t.Context(), time.Millisecond)
		}
	})
	end()
	endSingle()
	stats := pool.Stats()
	report, err := json.Marshal(frozenReport{
		[]string{shared.line(fmt.Sprint(callers, " callers")), single.line(fmt.Sprint(callers, " callers with a connection each"))},
		shared.failed + shared.unknown + single.failed + single.unknown, shared.wrong + single.wrong,
		fmt.Sprint(shared.failure, "; ", single.failure),
		loads.Load(), stats.Dials, stats.Closed.Broken,
	})
	require.NoError(t, err)
	require.NoError(t, c.Set(t.Context(), "report", report, 0))
}
