package main

import (
	"context"
	"errors"
	"runtime"
	"strconv"
	"time"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/report"
	"github.com/rediscache/rediscache/bench/internal/spin"
)

// busy is the section beside processes that leave no processor idle.
func (b *session) busy() plan {
	p := plan{section: &report.Section{
		Title: "Beside busy processors", Unit: "op", Axes: []string{"callers"},
		About: "As many other processes as there are processors compute without end, at normal priority. Their share is what they had of all " +
			"processors during the turn: what a client costs others. 100 B, 9:1.",
		Main: report.PerSec, Tail: report.P99, More: []report.Metric{report.Spinning},
	}}
	var group *spin.Group // started before the first row
	p.around = func(_ context.Context, rows func() error) (err error) {
		if group, err = spin.Start(runtime.NumCPU()); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, group.Close()) }()
		return rows()
	}
	for _, callers := range []int{1, 8, 64} {
		measure := b.closedLoop(callers, b.keys, small, nineToOne)
		p.rows = append(p.rows, rowPlan{
			row:     report.Row{At: []string{strconv.Itoa(callers)}, Column: report.Callers(callers)},
			prepare: b.fill(b.keys, small),
			turns: b.turns(client.SectionBusy, b.plain(callers), func(ctx context.Context, c client.Client) (load.Sample, error) {
				before, err := group.CPU()
				if err != nil {
					return load.Sample{}, err
				}
				begin := time.Now()
				sample, err := measure(ctx, c)
				if err != nil {
					return sample, err
				}
				after, err := group.CPU()
				sample.Spinning = share(after-before, time.Since(begin), runtime.NumCPU())
				return sample, err
			}),
		})
	}
	return p
}

// share returns how much of n processors something had, in per cent.
func share(used, elapsed time.Duration, n int) float64 {
	return 100 * float64(used) / (float64(elapsed) * float64(n))
}
