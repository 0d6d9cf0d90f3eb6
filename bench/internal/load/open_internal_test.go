package load

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/internal/arrivals"
)

// TestMain lets the test binary be the clock of an open loop.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == arrivals.Command {
		if err := arrivals.Main(os.Args[2:], os.Stdout); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestQuantile(t *testing.T) {
	require.Zero(t, Quantile(nil, 990))
	var took []time.Duration
	for i := range 1000 {
		took = append(took, time.Duration(i+1))
	}
	require.EqualValues(t, 500, Quantile(took, 500))
	require.EqualValues(t, 990, Quantile(took, 990))
	require.EqualValues(t, 999, Quantile(took, 999))
	require.EqualValues(t, 1, Quantile(took, 0))
	require.EqualValues(t, 2, Quantile(took[:2], 990), "of two, the second")
}

// outcomes are n at 1000 a second that took what took says.
func outcomes(n int, took func(i int) time.Duration) []outcome {
	var all []outcome
	for i := range n {
		due := arrivals.Due(time.Unix(0, 0), i, 1000)
		all = append(all, outcome{due: due, end: due.Add(took(i))})
	}
	return all
}

func TestTheLatencyOfAnOpenLoopCountsFromWhenACallWasDue(t *testing.T) {
	all := outcomes(1000, func(i int) time.Duration {
		if i >= 100 && i < 120 { // a stop of 20 ms: all that were due meanwhile end with it
			return time.Duration(120-i) * time.Millisecond
		}
		return time.Microsecond
	})
	all[500].err = errors.New("broken")
	s := summary(all, 1000)
	require.EqualValues(t, 999, s.Ops)
	require.EqualValues(t, 1, s.Errors)
	require.Equal(t, "broken", s.FirstError)
	require.Equal(t, time.Microsecond, s.P50)
	require.Equal(t, 11*time.Millisecond, s.P99, "20 of 1000 are at least 1 ms late")
	require.Equal(t, 20*time.Millisecond, s.P999)
	require.InEpsilon(t, 999, s.OpsPerSec, 0.001, "the stop is over: the rate was kept")
}

func TestAnOpenLoopThatFallsBehindHadALowerRate(t *testing.T) {
	s := summary(outcomes(1000, func(i int) time.Duration { // one in 1.25 ms
		return time.Duration(i) * 250 * time.Microsecond
	}), 1000)
	require.InEpsilon(t, 800, s.OpsPerSec, 0.02)
	require.EqualValues(t, 1000, s.Asked)
	require.Zero(t, summary(nil, 1000).OpsPerSec)
}

func TestAnOpenLoopBeginsCallsWithoutWaitingForThoseBefore(t *testing.T) {
	r := NewRunner(func() time.Duration { return 0 })
	all := make(chan struct{})
	count := make(chan int, 100)
	go func() {
		for range 100 {
			<-count
		}
		close(all)
	}()
	s, err := r.Open(t.Context(), func(i int) error {
		count <- i
		<-all // the last one's
		return nil
	}, 1000, 0, 100*time.Millisecond)
	require.NoError(t, err)
	require.EqualValues(t, 100, s.Ops)
	require.Positive(t, s.P50)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = r.Open(ctx, func(int) error { return nil }, 1000, time.Hour, time.Hour)
	require.ErrorIs(t, err, context.Canceled)
}
