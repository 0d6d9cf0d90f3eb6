package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/rediscache/rediscache/bench/client"
)

// glance is the table that answers the question: how does this library stand
// against the best of all peers' configurations, row by row.
func (s *Section) glance(b *strings.Builder) {
	if !slices.ContainsFunc(s.Rows, func(r Row) bool { _, ok := r.toBest(s.Main); return ok }) {
		return
	}
	beside := []Metric{s.Tail, allocs, clientCPU, serverCPU}
	fmt.Fprintf(b, "\n### %s\n\n| %s | %s %s | best peer | ratio |", s.Title,
		strings.Join(s.Axes, " | "), client.Own, s.Main.title(s.Unit))
	for _, m := range beside {
		fmt.Fprintf(b, " %s (best peer) |", m.title(s.Unit))
	}
	fmt.Fprintf(b, "\n|%s\n", strings.Repeat("---|", len(s.Axes)+3+len(beside)))
	for _, row := range s.Rows {
		c, ok := row.toBest(s.Main)
		if !ok {
			continue
		}
		fmt.Fprintf(b, "| %s | %s | %s (%s) | %s |", strings.Join(row.At, " | "),
			s.Main.write(c.own.Median), s.Main.write(c.other.Median), c.name, c.written())
		for _, m := range beside {
			c, _ := row.toBest(m)
			fmt.Fprintf(b, " %s (%s %s) |", m.write(c.own.Median), m.write(c.other.Median), c.name)
		}
		b.WriteByte('\n')
	}
}

// written writes the ratio, with its mark and its range.
func (c comparison) written() string {
	mark := ""
	if c.noise() {
		mark = " ~"
	}
	return fmt.Sprintf("**%.2f**%s (%.2f - %.2f)", c.ratio, mark, c.rounds.Min, c.rounds.Max)
}

// tables writes the main number of every client, a table for each group of rows, the
// best of each column in bold, and the ratios below.
func (s *Section) tables(b *strings.Builder) {
	if len(s.Rows) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## %s\n", s.Title)
	if s.About != "" {
		fmt.Fprintf(b, "\n%s\n", s.About)
	}
	for _, group := range s.groups() {
		s.group(b, group)
	}
	for _, remark := range s.Remarks {
		fmt.Fprintf(b, "\n%s\n", remark)
	}
}

func (s *Section) group(b *strings.Builder, rows []Row) {
	title := s.Main.title(s.Unit)
	if rows[0].Group != "" {
		title += ": " + rows[0].Group
	}
	fmt.Fprintf(b, "\n### %s\n\n| client |", title)
	for _, row := range rows {
		fmt.Fprintf(b, " %s |", row.Column)
	}
	fmt.Fprintf(b, "\n|---|%s\n", strings.Repeat("---|", len(rows)))
	for _, cell := range rows[0].Cells {
		fmt.Fprintf(b, "| %s |", cell.Client)
		for _, row := range rows {
			fmt.Fprintf(b, " %s |", row.main(s.Main, cell.Client))
		}
		b.WriteByte('\n')
	}
	s.ratios(b, rows, "best peer", func(r Row) (comparison, bool) { return r.toBest(s.Main) })
	for _, cell := range rows[0].Cells {
		// The floor of a latency is nothing to be compared with.
		if cell.inRace() || s.Main.lower {
			continue
		}
		s.ratios(b, rows, cell.Client, func(r Row) (comparison, bool) {
			return r.compare(s.Main, r.cell(cell.Client))
		})
	}
}

// ratios writes a line of ratios, where there are any.
func (s *Section) ratios(b *strings.Builder, rows []Row, to string, compare func(Row) (comparison, bool)) {
	found := false
	line := fmt.Sprintf("| *%s / %s* |", client.Own, to)
	for _, row := range rows {
		ratio := "-"
		if c, ok := compare(row); ok {
			ratio, found = c.written(), true
		}
		line += " " + ratio + " |"
	}
	if found {
		fmt.Fprintln(b, line)
	}
}

// main writes a client's number, in bold where it is the best of this library's and
// the peers'.
func (r Row) main(m Metric, name string) string {
	cell := r.cell(name)
	mine := m.over(cell.Samples)
	if mine.Median <= 0 {
		return "-"
	}
	if cell.inRace() && !slices.ContainsFunc(r.Cells, func(c Cell) bool {
		other := m.over(c.Samples).Median
		return c.inRace() && other > 0 && m.better(other, mine.Median) > 1
	}) {
		return "**" + m.write(mine.Median) + "**" + strings.TrimPrefix(spread(mine, m.write), m.write(mine.Median))
	}
	return spread(mine, m.write)
}

// details writes all that was measured, a table for each row.
func (s *Section) details(b *strings.Builder) {
	columns := append([]Metric{PerSec, P50, P99}, s.More...)
	columns = append(columns, allocs, allocBytes, clientCPU, serverCPU)
	for _, row := range s.Rows {
		fmt.Fprintf(b, "\n### %s: %s\n\n| client |", s.Title, row)
		for _, m := range columns {
			fmt.Fprintf(b, " %s |", m.title(s.Unit))
		}
		fmt.Fprintf(b, " errors |\n|---|%s---|\n", strings.Repeat("---|", len(columns)))
		for _, c := range row.Cells {
			fmt.Fprintf(b, "| %s |", c.Client)
			for i, m := range columns {
				stat := m.over(c.Samples)
				if i < 3+len(s.More) {
					fmt.Fprintf(b, " %s |", spread(stat, m.write))
				} else {
					fmt.Fprintf(b, " %s |", m.write(stat.Median))
				}
			}
			n, _ := c.Errors()
			fmt.Fprintf(b, " %d |\n", n)
		}
	}
}

// groups returns the rows by their groups, in their order.
func (s *Section) groups() [][]Row {
	var groups [][]Row
	at := map[string]int{}
	for _, row := range s.Rows {
		if _, ok := at[row.Group]; !ok {
			at[row.Group] = len(groups)
			groups = append(groups, nil)
		}
		groups[at[row.Group]] = append(groups[at[row.Group]], row)
	}
	return groups
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

func (r *Report) beside(b *strings.Builder) {
	if len(r.Beside) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## A GET of 50 MiB beside %d of 100 B a second\n\nFor %v at a time, %d rounds: median (min - max). "+
		"The server executes one command at a time; its stop is what it says itself that the large GET took it (SLOWLOG).\n\n"+
		"| small GETs by | p99 alone | p99 beside one large GET | times | small GETs that took more than 10 times the p99 alone | "+
		"the slowest | the server's stop | p99 beside one large GET after another |\n|---|---|---|---|---|---|---|---|\n",
		r.BesideRate, r.BesideWindow, r.Rounds)
	for _, l := range r.Beside {
		fmt.Fprintf(b, "| %s | %s | %s | **%s** | %s | %s | %s | %s, %d of them |\n", l.Name,
			spread(l.Alone, took), spread(l.Beside, took), spread(l.Times, digits), spread(l.Waited, count),
			spread(l.Longest, took), spread(l.Stood, took), took(float64(l.Among)), l.Got)
	}
}
