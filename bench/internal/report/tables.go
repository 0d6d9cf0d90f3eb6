package report

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/rediscache/rediscache/bench/client"
)

// glance is the table that answers the question: how does this library stand
// against the best of all peers' configurations, row by row.
func (r *Report) glance(b *strings.Builder) {
	fmt.Fprintf(b, "\n## At a glance\n\nRatio: this library / the best of the peers' configurations, by the medians; "+
		"(min - max) of the same ratio round by round. ~ marks a row where the ranges of the two overlap: noise.\n\n")
	fmt.Fprintf(b, "| round trip | value | GET:SET | callers | %s ops/s | best peer ops/s | ratio | %s p99 | lowest p99 of a peer |\n"+
		"|---|---|---|---|---|---|---|---|---|\n", client.Own, client.Own)
	for _, row := range r.Rows {
		c, ok := row.compare(client.Own)
		if !ok {
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %s | %d | %s | %s (%s) | %s | %s | %s (%s) |\n",
			rtt(row.RTT), size(row.ValueSize), row.Mix, row.Callers,
			rate(c.own.Median), rate(c.best.Median), c.bestName, c.written(),
			took(c.ownP99), took(c.bestP99), c.bestP99Name)
	}
}

// written is the ratio as the table shows it.
func (c comparison) written() string {
	mark := ""
	if c.noise() {
		mark = " ~"
	}
	return fmt.Sprintf("**%.2f**%s (%.2f - %.2f)", c.ratio(), mark, c.rounds.Min, c.rounds.Max)
}

// group writes ops/s of every client by callers, the best of each column in
// bold, and the ratio below.
func (r *Report) group(b *strings.Builder, rows []Row) {
	fmt.Fprintf(b, "\n## Ops/s: %s\n\n| client |", rows[0].group())
	for _, row := range rows {
		fmt.Fprintf(b, " %s |", row.callers())
	}
	fmt.Fprintf(b, "\n|---|%s\n", strings.Repeat("---|", len(rows)))
	for i, cell := range rows[0].Cells {
		fmt.Fprintf(b, "| %s |", cell.Client)
		for _, row := range rows {
			fmt.Fprintf(b, " %s |", row.opsCell(i))
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(b, "| *%s / best peer* |", client.Own)
	for _, row := range rows {
		ratio := "-"
		if c, ok := row.compare(client.Own); ok {
			ratio = c.written()
		}
		fmt.Fprintf(b, " %s |", ratio)
	}
	b.WriteByte('\n')
}

// opsCell writes the i-th client's ops/s, in bold where it is the row's best.
func (r Row) opsCell(i int) string {
	if i >= len(r.Cells) {
		return "-"
	}
	ops := over(r.Cells[i].Samples, opsPerSec)
	for _, c := range r.Cells {
		if over(c.Samples, opsPerSec).Median > ops.Median {
			return spread(ops, rate)
		}
	}
	return "**" + rate(ops.Median) + "**" + strings.TrimPrefix(spread(ops, rate), rate(ops.Median))
}

// details writes all that was measured, a table for each row.
func (r *Report) details(b *strings.Builder) {
	fmt.Fprintf(b, "\n## Everything measured\n")
	for _, row := range r.Rows {
		fmt.Fprintf(b, "\n### %s\n\n", row.Condition)
		fmt.Fprintf(b, "| client | ops/s | p50 | p99 | allocs/op | B/op | client CPU/op | server CPU/op | errors |\n"+
			"|---|---|---|---|---|---|---|---|---|\n")
		for _, c := range row.Cells {
			c.detail(b)
		}
	}
}

func (c Cell) detail(b *strings.Builder) {
	n, _ := c.errors()
	fmt.Fprintf(b, "| %s | %s | %s | %s | %.2f | %.0f | %s | %s | %d |\n", c.Client,
		spread(over(c.Samples, opsPerSec), rate), spread(over(c.Samples, p50), took), spread(over(c.Samples, p99), took),
		over(c.Samples, allocs).Median, over(c.Samples, allocBytes).Median,
		took(over(c.Samples, clientCPU).Median), took(over(c.Samples, serverCPU).Median), n)
}

func (r *Report) http(b *strings.Builder) {
	if len(r.HTTP) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## HTTP\n\nGET /cache/k over 64 keep-alive connections. Load and server share the process and the "+
		"machine, so only the ratio means something: the bare handler writes the same headers and bytes and does "+
		"nothing else.\n\n| handler | requests/s | p50 | p99 | failed connections |\n|---|---|---|---|---|\n")
	for _, l := range r.HTTP {
		fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", l.Name, spread(l.PerSec, rate),
			spread(l.P50, took), spread(l.P99, took), l.failures())
	}
	if len(r.HTTP) == 2 && r.HTTP[1].PerSec.Median > 0 {
		fmt.Fprintf(b, "\n%s / %s: **%.2f**\n", r.HTTP[0].Name, r.HTTP[1].Name,
			r.HTTP[0].PerSec.Median/r.HTTP[1].PerSec.Median)
	}
}

func (l HTTPLine) failures() string {
	if l.Errors == 0 {
		return "0"
	}
	return fmt.Sprintf("%d, such as `%s`", l.Errors, cmp.Or(l.First, "?"))
}

func (r *Report) limit(b *strings.Builder) {
	if len(r.Limit) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## The server's limit\n\n`%s`, a C program that only sends and counts:\n\n"+
		"| test | requests/s |\n|---|---|\n", r.LimitCmd)
	for _, l := range r.Limit {
		fmt.Fprintf(b, "| %s | %s |\n", l.Test, rate(l.PerSec))
	}
}

func (r *Report) large(b *strings.Builder) {
	if len(r.Large) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## A GET of 50 MiB beside %d of 100 B a second\n\nFor %v at a time, %d rounds: median (min - max). "+
		"The server executes one command at a time; its stop is what it says itself that the large GET took it (SLOWLOG).\n\n"+
		"| small GETs by | p99 alone | p99 beside one large GET | times | small GETs that took more than 10 times the p99 alone | "+
		"the slowest | the server's stop | p99 beside one large GET after another |\n|---|---|---|---|---|---|---|---|\n",
		r.LargeRate, r.LargeWindow, r.Rounds)
	for _, l := range r.Large {
		fmt.Fprintf(b, "| %s | %s | %s | **%s** | %s | %s | %s | %s, %d of them |\n", l.Name,
			spread(l.Alone, took), spread(l.Beside, took), spread(l.Times, digits), spread(l.Waited, count),
			spread(l.Longest, took), spread(l.Stood, took), took(float64(l.Among)), l.Got)
	}
}
