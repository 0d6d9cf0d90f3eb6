package main

import (
	"context"
	"fmt"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/report"
)

const (
	// openSlices is how many slices a turn of an open loop lasts: a rate of 1,000 a second
	// needs 2 s for two calls beyond p99.9.
	openSlices = 4
	// openCallers is how many callers a pool is made for that takes their number.
	openCallers = 50
	// keptRate is the part of the rate below which a client did not keep it.
	keptRate = 0.98
	// noCall is the line of an operation that does nothing.
	noCall = "(no call)"
)

// open is the section of calls at a fixed rate.
func (b *session) open() plan {
	p := plan{section: &report.Section{
		Title: "A fixed rate", Unit: "op", Axes: []string{"calls a second"},
		About: fmt.Sprintf("An open loop: calls begin at a fixed rate, each in a goroutine of its own, whether or not those before "+
			"have ended. The latency of a call counts from when it was due, so that what waits behind a slow call is not left out. "+
			"Another process tells when a call is due, through a pipe; %s does nothing then, so that its latency and its CPU are those of the "+
			"clock. 100 B, 9:1, %v counted a turn; with few calls, p99.9 is that of one or two.", noCall, openSlices*b.o.slice),
		Main: report.P99, Tail: report.P999, More: []report.Metric{report.P999},
	}, after: fellBehind}
	for _, perSec := range []int{1_000, 10_000, 50_000} {
		run := func(ctx context.Context, do func(int) error) (load.Sample, error) {
			return b.runner.Open(ctx, do, perSec, b.o.warmup(), openSlices*b.o.slice)
		}
		turns := b.turns("open", b.plain(openCallers), func(ctx context.Context, c client.Client) (load.Sample, error) {
			return run(ctx, load.Arrivals(c, b.keys, small, nineToOne))
		})
		turns = append(turns, turn{client: noCall, run: func(ctx context.Context) (load.Sample, error) {
			return run(ctx, func(int) error { return nil })
		}})
		p.rows = append(p.rows, rowPlan{
			row:     report.Row{At: []string{report.Rate(perSec)}, Column: report.Rate(perSec) + " calls/s"},
			prepare: b.fill(b.keys, small),
			turns:   turns,
		})
	}
	return p
}

// fellBehind says which clients could not keep the rate.
func fellBehind(s *report.Section) {
	for _, row := range s.Rows {
		for _, c := range row.Cells {
			behind, worst := 0, load.Sample{}
			for _, sample := range c.Samples {
				if sample.OpsPerSec < keptRate*sample.Asked {
					behind++
					if worst.Asked == 0 || sample.OpsPerSec < worst.OpsPerSec {
						worst = sample
					}
				}
			}
			if behind > 0 {
				s.Remarks = append(s.Remarks, fmt.Sprintf("**%s did not keep %s in %d of %d rounds: %s at worst.**",
					c.Client, row.Column, behind, len(c.Samples), report.Rate(int(worst.OpsPerSec))))
			}
		}
	}
	if s.Remarks == nil && len(s.Rows) > 0 {
		s.Remarks = []string{"Every client kept every rate."}
	}
}
