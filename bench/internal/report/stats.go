package report

import (
	"cmp"
	"slices"
	"time"

	"github.com/rediscache/rediscache/bench/internal/load"
)

// Stat is what the rounds of one measurement say: the median and the spread.
type Stat struct{ Median, Min, Max float64 }

// StatOf summarizes values; it is zero where there are none.
func StatOf(values []float64) Stat {
	if len(values) == 0 {
		return Stat{}
	}
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return Stat{Median: median(sorted), Min: sorted[0], Max: sorted[len(sorted)-1]}
}

// median is the middle of sorted, or the mean of the two in the middle.
func median(sorted []float64) float64 {
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// over summarizes one number of the samples.
func over(samples []load.Sample, number func(load.Sample) float64) Stat {
	values := make([]float64, len(samples))
	for i, s := range samples {
		values[i] = number(s)
	}
	return StatOf(values)
}

func opsPerSec(s load.Sample) float64  { return s.OpsPerSec }
func p50(s load.Sample) float64        { return float64(s.P50) }
func p99(s load.Sample) float64        { return float64(s.P99) }
func allocs(s load.Sample) float64     { return s.AllocsPerOp }
func allocBytes(s load.Sample) float64 { return s.BytesPerOp }
func clientCPU(s load.Sample) float64  { return float64(s.CPUPerOp) }
func serverCPU(s load.Sample) float64  { return float64(s.ServerCPUPerOp) }

// Condition is what all clients of a row were measured under.
type Condition struct {
	RTT       time.Duration // what the delay proxy adds; zero goes without it
	ValueSize int
	Mix       load.Mix
	Callers   int
}

// Cell is what one client did under one condition.
type Cell struct {
	Client  string
	Samples []load.Sample // one a round
	Failed  string        // why there are fewer samples than rounds, if so
}

// Row is one condition and what each client did under it.
type Row struct {
	Condition
	Cells []Cell
}

// errors counts what the cell's rounds got wrong.
func (c Cell) errors() (n int64, first string) {
	for _, s := range c.Samples {
		n += s.Errors
		first = cmp.Or(first, s.FirstError)
	}
	return n, first
}

// split returns this library's cell and all others.
func (r Row) split(own string) (mine Cell, peers []Cell) {
	for _, c := range r.Cells {
		if c.Client == own {
			mine = c
		} else {
			peers = append(peers, c)
		}
	}
	return mine, peers
}

// comparison is a row in one line: this library against the best of the peers,
// which may be one peer for the throughput and another for the latency.
type comparison struct {
	own, best   Stat // ops a second
	bestName    string
	rounds      Stat // own / best, round by round
	ownP99      float64
	bestP99     float64
	bestP99Name string
}

// ratio is own / best by the medians.
func (c comparison) ratio() float64 { return c.own.Median / c.best.Median }

// noise says that the ranges of the two overlap.
func (c comparison) noise() bool { return c.own.Max >= c.best.Min && c.best.Max >= c.own.Min }

// compare returns false where this library or every peer is missing.
func (r Row) compare(own string) (comparison, bool) {
	mine, peers := r.split(own)
	c := comparison{own: over(mine.Samples, opsPerSec), ownP99: over(mine.Samples, p99).Median}
	var bestSamples []load.Sample
	for _, p := range peers {
		ops, tail := over(p.Samples, opsPerSec), over(p.Samples, p99).Median
		if ops.Median > c.best.Median {
			c.best, c.bestName, bestSamples = ops, p.Client, p.Samples
		}
		if tail > 0 && (c.bestP99 == 0 || tail < c.bestP99) {
			c.bestP99, c.bestP99Name = tail, p.Client
		}
	}
	var ratios []float64
	for i := range min(len(mine.Samples), len(bestSamples)) {
		if bestSamples[i].OpsPerSec > 0 {
			ratios = append(ratios, mine.Samples[i].OpsPerSec/bestSamples[i].OpsPerSec)
		}
	}
	c.rounds = StatOf(ratios)
	return c, c.own.Median > 0 && c.best.Median > 0
}
