package main

import (
	"strconv"

	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/report"
)

// largeTotal bounds what the large values take in the server, in bytes.
const largeTotal = 100_000_000

// large is the section of values below and above the size of a client's buffers.
func (b *session) large() plan {
	p := plan{section: &report.Section{
		Title: "Large values", Unit: "op", Axes: []string{"value", "GET:SET", "callers"},
		About: "As many keys as make 100 MB, but not more than in the other sections.",
		Main:  report.PerSec, Tail: report.P99,
	}}
	mixes := []load.Mix{{Gets: 1}, {Gets: 1, Sets: 1}}
	for _, size := range pick(b.o.quick, []int{60_000, 70_000, 1_000_000}, []int{70_000}) {
		keys := b.keys[:min(len(b.keys), largeTotal/size)]
		for _, mix := range pick(b.o.quick, mixes, mixes[:1]) {
			for _, callers := range []int{1, 8, 64} {
				p.rows = append(p.rows, rowPlan{
					row: report.Row{
						At:     []string{report.Size(size), mix.String(), strconv.Itoa(callers)},
						Group:  report.Size(size) + ", " + mix.String(),
						Column: report.Callers(callers),
					},
					prepare: b.fill(keys, size),
					turns:   b.turns("large", b.plain(callers), b.closedLoop(callers, keys, size, mix)),
				})
			}
		}
	}
	return p
}
