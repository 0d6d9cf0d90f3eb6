package report

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/rediscache/rediscache/bench/client"
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

// Metric is one number of a sample.
type Metric struct {
	name  string // may hold a %s for what the section counts
	lower bool   // whether less is better
	of    func(load.Sample) float64
	write func(float64) string
}

// The numbers that a section can be about.
var (
	PerSec   = Metric{"%ss/s", false, func(s load.Sample) float64 { return s.OpsPerSec }, rate}
	NsEach   = Metric{"time/%s", true, each, took}
	P50      = Metric{"p50", true, func(s load.Sample) float64 { return float64(s.P50) }, took}
	P99      = Metric{"p99", true, func(s load.Sample) float64 { return float64(s.P99) }, took}
	P999     = Metric{"p99.9", true, func(s load.Sample) float64 { return float64(s.P999) }, took}
	Spinning = Metric{"others' CPU", false, func(s load.Sample) float64 { return s.Spinning }, percent}

	clientCPU  = Metric{"client CPU/%s", true, func(s load.Sample) float64 { return float64(s.CPUPerOp) }, took}
	allocs     = Metric{"allocs/%s", true, func(s load.Sample) float64 { return s.AllocsPerOp }, digits}
	allocBytes = Metric{"B/%s", true, func(s load.Sample) float64 { return s.BytesPerOp }, whole}
	serverCPU  = Metric{"server CPU/%s", true, func(s load.Sample) float64 { return float64(s.ServerCPUPerOp) }, took}
)

// each is the time of one operation: that of all callers together.
func each(s load.Sample) float64 {
	if s.OpsPerSec == 0 {
		return 0
	}
	return 1e9 / s.OpsPerSec
}

// over summarizes the metric of some samples. A sample in which nothing succeeded has
// no numbers.
func (m Metric) over(samples []load.Sample) Stat {
	var values []float64
	for _, s := range samples {
		if s.Ops > 0 {
			values = append(values, m.of(s))
		}
	}
	return StatOf(values)
}

// title writes the metric's name for a section that counts units.
func (m Metric) title(unit string) string {
	if m.name == P50.name || m.name == P99.name || m.name == P999.name || m.name == Spinning.name {
		return m.name
	}
	return fmt.Sprintf(m.name, unit)
}

// better returns how many times a is as good as b.
func (m Metric) better(a, b float64) float64 {
	if m.lower {
		a, b = b, a
	}
	if b == 0 {
		return 0
	}
	return a / b
}

// Section is one kind of measurement: rows that differ in their axes, and for each
// row what every client did.
type Section struct {
	Name  string   // what -sections calls it
	Title string   // of its tables
	About string   // what the reader must know
	Unit  string   // what is counted: "op", "key", "request"
	Axes  []string // what the rows differ in
	// Main is the number that decides, Tail the latency beside it.
	Main, Tail Metric
	More       []Metric // further columns of the details
	Plot       bool     // whether to draw it
	Rows       []Row
	Remarks    []string // what the rows say and the tables do not
}

// Row is one condition and what each client did under it.
type Row struct {
	At     []string // its place on each of the section's axes
	Group  string   // the condition without the last axis
	Column string   // the last axis: "8 callers"
	Cells  []Cell
}

// String writes the condition as one phrase.
func (r Row) String() string {
	if r.Group == "" {
		return r.Column
	}
	return r.Group + ", " + r.Column
}

// Cell is what one client did under one condition.
type Cell struct {
	Client  string
	Peer    bool          // of another library: what this one is compared with
	Samples []load.Sample // one a round
	Failed  string        // why there are fewer samples than rounds, if so
}

// inRace says whether the cell is what the ratio is about: this library with its
// defaults, or a peer. What is neither is there to be looked at.
func (c Cell) inRace() bool { return c.Peer || c.Client == client.Own }

// Errors counts what the cell's rounds got wrong.
func (c Cell) Errors() (n int64, first string) {
	for _, s := range c.Samples {
		n += s.Errors
		first = cmp.Or(first, s.FirstError)
	}
	return n, first
}

// cell returns the one of a client, empty where there is none.
func (r Row) cell(name string) Cell {
	for _, c := range r.Cells {
		if c.Client == name {
			return c
		}
	}
	return Cell{}
}

// best returns the peer with the best median, false where no peer has one.
func (r Row) best(m Metric) (best Cell, ok bool) {
	for _, c := range r.Cells {
		median := m.over(c.Samples).Median
		if c.Peer && median > 0 && (!ok || m.better(median, m.over(best.Samples).Median) > 1) {
			best, ok = c, true
		}
	}
	return best, ok
}

// comparison is this library beside another cell of the row.
type comparison struct {
	own, other Stat
	name       string
	ratio      float64 // how many times as good, by the medians
	rounds     Stat    // the same round by round
}

// noise says that the ranges of the two overlap.
func (c comparison) noise() bool { return c.own.Max >= c.other.Min && c.other.Max >= c.own.Min }

// compare returns false where this library or the other has nothing.
func (r Row) compare(m Metric, other Cell) (comparison, bool) {
	mine := r.cell(client.Own)
	c := comparison{own: m.over(mine.Samples), other: m.over(other.Samples), name: other.Client}
	if c.own.Median <= 0 || c.other.Median <= 0 {
		return c, false
	}
	c.ratio = m.better(c.own.Median, c.other.Median)
	var ratios []float64
	for i := range min(len(mine.Samples), len(other.Samples)) {
		if ratio := m.better(m.of(mine.Samples[i]), m.of(other.Samples[i])); ratio > 0 {
			ratios = append(ratios, ratio)
		}
	}
	c.rounds = StatOf(ratios)
	return c, true
}

// toBest compares this library with the best peer.
func (r Row) toBest(m Metric) (comparison, bool) {
	best, ok := r.best(m)
	if !ok {
		return comparison{}, false
	}
	return r.compare(m, best)
}
