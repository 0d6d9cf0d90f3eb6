package load

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/rediscache/rediscache/bench/internal/arrivals"
)

// Open warms up and measures an open loop: rate operations a second begin, each in a
// goroutine of its own, whether or not those before have ended. The latency of one
// counts from when it was due. Open returns when all have ended, or ctx.
func (r *Runner) Open(ctx context.Context, do func(i int) error, rate int, warmup, slice time.Duration) (Sample, error) {
	if n := calls(rate, warmup); n > 0 {
		if _, err := open(ctx, do, rate, n); err != nil {
			return Sample{}, err
		}
	}
	var err error
	s := r.metered(func() (s Sample) {
		s, err = open(ctx, do, rate, calls(rate, slice))
		return s
	})
	return s, err
}

// calls returns how many operations begin in d.
func calls(rate int, d time.Duration) int { return int(float64(rate) * d.Seconds()) }

func open(ctx context.Context, do func(i int) error, rate, n int) (Sample, error) {
	outcomes := make([]outcome, n)
	var under sync.WaitGroup
	err := arrivals.Run(rate, n, func(i int, due time.Time) bool {
		under.Go(func() {
			outcomes[i].err = do(i)
			outcomes[i].due, outcomes[i].end = due, time.Now()
		})
		return ctx.Err() == nil
	})
	under.Wait()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return Sample{}, err
	}
	return summary(outcomes, rate), nil
}

// outcome is what became of one operation of an open loop.
type outcome struct {
	due, end time.Time
	err      error
}

// summary counts the outcomes of an open loop, which are in the order of their times.
// A client that does not keep the rate ends its last calls later and later: the median
// of the last tenth is how late it is, and the rate that it had is the calls over the
// time until then.
func summary(all []outcome, rate int) Sample {
	s := Sample{Asked: float64(rate)}
	took := make([]time.Duration, 0, len(all))
	for _, o := range all {
		if o.err != nil {
			s.Errors++
			if s.FirstError == "" {
				s.FirstError = o.err.Error()
			}
			continue
		}
		took = append(took, o.end.Sub(o.due))
	}
	s.Ops = int64(len(took))
	if s.Ops == 0 {
		return s
	}
	last := slices.Sorted(slices.Values(took[len(took)*9/10:]))
	elapsed := float64(len(all))/float64(rate) + Quantile(last, 500).Seconds()
	s.OpsPerSec = float64(s.Ops) / elapsed
	slices.Sort(took)
	s.P50, s.P99, s.P999 = Quantile(took, 500), Quantile(took, 990), Quantile(took, 999)
	return s
}

// Quantile returns the smallest of sorted that is at least as large as thousandths of
// them. It is zero where there are none.
func Quantile(sorted []time.Duration, thousandths int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max(0, (len(sorted)*thousandths+999)/1000-1)]
}
