package recorder_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/recorder"
)

func TestADurationIsInTheBucketOfItsBound(t *testing.T) {
	r := recorder.New()
	var wg sync.WaitGroup
	for _, took := range []time.Duration{0, 100 * time.Microsecond, 101 * time.Microsecond, time.Second, time.Minute} {
		for range 100 {
			wg.Go(func() {
				r.Observe(t.Context(), rediscache.Event{Op: "get", Outcome: rediscache.OutcomeHit, Took: took})
			})
		}
	}
	wg.Wait()
	r.Each(func(op, kind string, h *recorder.Histogram) {
		counts, n, sum := h.Read()
		if op != "get" {
			require.Zero(t, n, op)
			return
		}
		require.Empty(t, kind)
		require.EqualValues(t, 500, n)
		require.Equal(t, 100*(201*time.Microsecond+61*time.Second), sum)
		require.Equal(t, recorder.Counts{0: 200, 1: 100, 12: 100, 16: 100}, counts)
	})
}

func TestACallIsRecordedOnceWithTheKindOfItsError(t *testing.T) {
	r, ctx := recorder.New(), t.Context()
	failure := errors.New("the database is down")
	for _, e := range []rediscache.Event{
		{Op: "get", Outcome: rediscache.OutcomeHit},
		{Op: "get", Outcome: rediscache.OutcomeError, Err: context.Canceled},
		{Op: "get", Outcome: rediscache.OutcomeMiss, Err: failure}, // of the codec
		{Op: "get or load", Outcome: rediscache.OutcomeMiss},
		{Op: "get or load", Outcome: rediscache.OutcomeShared, Err: failure},
		{Op: "load", Outcome: rediscache.OutcomeLoad, Err: failure},
		{Op: "load", Outcome: rediscache.OutcomeLoad, Err: rediscache.ErrNotFound},
		{Op: "fill", Outcome: rediscache.OutcomeRefused},
		{Op: "touch", Outcome: rediscache.OutcomeOK},
		{Op: "get many", Outcome: rediscache.OutcomeHit},
		{Op: "get many", Outcome: rediscache.OutcomeMiss},
	} {
		r.Observe(ctx, e)
	}
	many := r.Start(ctx, "get many", "")
	require.Equal(t, ctx, r.Start(ctx, "get", "k"))
	r.End(r.Start(many, "get", "k"), "get", nil) // a call inside
	r.End(many, "get many", rediscache.ErrUnavailable)
	got := make(map[string]uint64)
	r.Each(func(op, kind string, h *recorder.Histogram) {
		if _, n, _ := h.Read(); n > 0 {
			got[op+"/"+kind] = n
		}
	})
	require.Equal(t, map[string]uint64{
		"get/": 2, "get/canceled": 1, "load/other": 1, "load/": 1, "fill/": 1, "touch/": 1,
		"get many/unavailable": 1,
	}, got)
}
