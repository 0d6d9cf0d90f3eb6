// Package report turns what was measured into Markdown and SVG.
package report

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rediscache/rediscache/bench/client"
)

// Report is a whole run.
type Report struct {
	Machine  Machine
	Redis    string // the server's version
	Command  string // what was typed
	Started  time.Time
	Took     time.Duration
	Rounds   int
	Slice    time.Duration
	Warmup   time.Duration
	Keys     int
	Clients  []client.Config
	Versions map[string]string               // by module path
	Measured map[time.Duration]time.Duration // the round trip of a PING, by what was asked for
	Sections []*Section
	Limit    []LimitLine
	LimitCmd string // how Limit was measured
	Beside   []BesideLine
	// BesideRate is how many small GETs a second Beside is about, BesideWindow for how long each time.
	BesideRate   int
	BesideWindow time.Duration
	Notes        []string // what the reader must know first
	Plots        []Plot
}

// LimitLine is one test of redis-benchmark.
type LimitLine struct {
	Test   string
	PerSec float64
}

// BesideLine is what small GETs waited for beside a large one. The statistics
// are over rounds; times are in nanoseconds.
type BesideLine struct {
	Name          string
	Alone, Beside Stat          // their p99
	Times         Stat          // Beside / Alone
	Waited        Stat          // how many took more than ten times the p99 alone
	Longest       Stat          // the slowest of them
	Stood         Stat          // how long the server executed the large GET, as it says itself
	Among         time.Duration // their p99 beside Got large ones, one after another
	Got           int
}

// Plot is a picture beside the report.
type Plot struct{ Title, File string }

// Write writes the report as Markdown.
func (r *Report) Write(w io.Writer) error {
	var b strings.Builder
	r.header(&b)
	r.clients(&b)
	r.errors(&b)
	r.glance(&b)
	for _, s := range r.Sections {
		s.tables(&b)
	}
	r.limit(&b)
	r.beside(&b)
	fmt.Fprintf(&b, "\n## Everything measured\n")
	for _, s := range r.Sections {
		s.details(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *Report) header(b *strings.Builder) {
	fmt.Fprintf(b, "# rediscache beside its peers\n\n")
	for _, note := range r.Notes {
		fmt.Fprintf(b, "**%s**\n\n", note)
	}
	fmt.Fprintf(b, "- Machine: %s, %d CPUs for Go, %s\n", r.Machine.CPU, r.Machine.Cores, r.Machine.OS)
	fmt.Fprintf(b, "- Go %s, Redis %s on the same machine, over loopback TCP\n",
		strings.TrimPrefix(r.Machine.Go, "go"), cmp.Or(r.Redis, "of unknown version"))
	fmt.Fprintf(b, "- %s, took %s, load average before it: %s\n", r.Started.UTC().Format("2006-01-02 15:04 MST"),
		r.Took.Round(time.Second), cmp.Or(r.Machine.Load, "unknown"))
	fmt.Fprintf(b, "- Command: `%s`\n", r.Command)
	fmt.Fprintf(b, "- %d rounds; in each, every client once, in random order, on fresh connections: %v of warm-up, then %v counted\n",
		r.Rounds, r.Warmup, r.Slice)
	fmt.Fprintf(b, "- %d keys, all present, drawn evenly; each GET checks that its own key's value came back\n", r.Keys)
	for _, asked := range slices.Sorted(maps.Keys(r.Measured)) {
		fmt.Fprintf(b, "- A round trip of %v is made by a delay proxy in a process of its own; a PING through it took %v\n",
			asked, r.Measured[asked].Round(10*time.Microsecond))
	}
	fmt.Fprintf(b, "\nEvery number is the median of the rounds, with (min - max) where there is room. "+
		"Allocations, bytes and CPU an operation are the client process's, the load itself included, "+
		"except for the server's CPU.\n")
	for _, p := range r.Plots {
		fmt.Fprintf(b, "\n![%s](%s)\n", p.Title, p.File)
	}
}

func (r *Report) clients(b *strings.Builder) {
	fmt.Fprintf(b, "\n## Clients\n\n| name | module | version | configuration |\n|---|---|---|---|\n")
	for _, c := range r.Clients {
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", c.Name, c.Module, cmp.Or(r.Versions[c.Module], "-"), c.About)
	}
}

// errors lists whatever went wrong, in front of the numbers.
func (r *Report) errors(b *strings.Builder) {
	var lines []string
	for _, s := range r.Sections {
		for _, row := range s.Rows {
			for _, c := range row.Cells {
				at := fmt.Sprintf("%s, %s: %s", c.Client, s.Title, row)
				if n, first := c.Errors(); n > 0 {
					lines = append(lines, fmt.Sprintf("%s: %d errors, such as `%s`", at, n, first))
				}
				if c.Failed != "" {
					lines = append(lines, fmt.Sprintf("%s: %s", at, c.Failed))
				}
			}
		}
	}
	fmt.Fprintf(b, "\n## Errors\n\n")
	if len(lines) == 0 {
		fmt.Fprintf(b, "None: every operation of every client was answered, and every GET with its own key's value.\n")
	}
	for _, l := range lines {
		fmt.Fprintf(b, "- %s\n", l)
	}
}

// glance writes each section in a table of its own.
func (r *Report) glance(b *strings.Builder) {
	fmt.Fprintf(b, "\n## At a glance\n\nRatio: how many times as good this library is as the best of the peers' "+
		"configurations, by the medians: above 1 it is ahead, for times as for rates; (min - max) of the same ratio round by "+
		"round. ~ marks a row where the ranges of the two overlap: noise. The best peer may be another one for each column.\n")
	for _, s := range r.Sections {
		s.glance(b)
	}
}

// Empty reports whether nothing was measured.
func (r *Report) Empty() bool {
	for _, s := range r.Sections {
		if len(s.Rows) > 0 {
			return false
		}
	}
	return len(r.Limit) == 0 && len(r.Beside) == 0
}
