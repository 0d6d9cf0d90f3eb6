package report_test

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/report"
)

func TestStatOf(t *testing.T) {
	require.Zero(t, report.StatOf(nil))
	require.Equal(t, report.Stat{Median: 5, Min: 5, Max: 5}, report.StatOf([]float64{5}))
	require.Equal(t, report.Stat{Median: 3, Min: 1, Max: 9}, report.StatOf([]float64{9, 1, 3}))
	require.Equal(t, report.Stat{Median: 2.5, Min: 1, Max: 9}, report.StatOf([]float64{9, 1, 2, 3}))

	given := []float64{3, 1, 2}
	report.StatOf(given)
	require.Equal(t, []float64{3, 1, 2}, given, "the caller's order stays")
}

func samples(p99 time.Duration, opsPerSec ...float64) []load.Sample {
	var s []load.Sample
	for _, n := range opsPerSec {
		s = append(s, load.Sample{
			Ops: 1000, OpsPerSec: n, P50: p99 / 2, P99: p99, AllocsPerOp: 1.5, BytesPerOp: 120,
			CPUPerOp: 7 * time.Microsecond, ServerCPUPerOp: 3 * time.Microsecond,
		})
	}
	return s
}

// row is one of 10 kB, 9:1.
func row(callers int, cells ...report.Cell) report.Row {
	return report.Row{
		At:     []string{"0", "10 kB", "9:1", strconv.Itoa(callers)},
		Group:  "round trip 0, 10 kB, 9:1",
		Column: report.Callers(callers),
		Cells:  cells,
	}
}

func peer(name string, samples []load.Sample) report.Cell {
	return report.Cell{Client: name, Peer: true, Samples: samples}
}

// of is a report of one section.
func of(s report.Section) *report.Report { return &report.Report{Sections: []*report.Section{&s}} }

// run is a report of two rows: in the first this library leads clearly, in the
// second it is behind, within noise, and one peer made errors.
func run() *report.Report {
	bad := samples(4*time.Millisecond, 100, 110, 120)
	bad[1].Errors, bad[1].FirstError = 7, "something broke"
	return &report.Report{
		Machine: report.ThisMachine(), Redis: "9.9.9", Command: "go run . -quick", Started: time.Unix(0, 0),
		Rounds: 3, Slice: time.Second, Keys: 10, Clients: client.All(), Versions: report.Versions(),
		Measured: map[time.Duration]time.Duration{2 * time.Millisecond: 2100 * time.Microsecond},
		Sections: []*report.Section{{
			Name: "matrix", Title: "Ops/s", Unit: "op", Axes: []string{"round trip", "value", "GET:SET", "callers"},
			Main: report.PerSec, Tail: report.P99, Plot: true,
			Rows: []report.Row{
				row(1, report.Cell{Client: client.Own, Samples: samples(time.Millisecond, 300_000, 250_000, 350_000)},
					peer("redigo", samples(2*time.Millisecond, 100_000, 125_000, 140_000)),
					peer("radix", samples(1500*time.Microsecond, 200_000, 150_000, 150_000))),
				row(64, report.Cell{Client: client.Own, Samples: samples(time.Millisecond, 100, 90, 120)},
					peer("redigo", bad),
					report.Cell{Client: "radix", Peer: true, Failed: "could not dial"}),
			},
			Remarks: []string{"A remark."},
		}},
		Limit:    []report.LimitLine{{Test: "GET", PerSec: 2_600_000}},
		LimitCmd: "redis-benchmark -P 64",
		Beside: []report.BesideLine{{
			Name: "ours", Alone: report.StatOf([]float64{1e6}), Beside: report.StatOf([]float64{2e6, 3e6, 5e6}),
			Times: report.StatOf([]float64{2, 3, 5}), Waited: report.StatOf([]float64{0, 27, 30}),
			Longest: report.StatOf([]float64{40e6}), Stood: report.StatOf([]float64{33e6}), Among: 45 * time.Millisecond, Got: 60,
		}},
		BesideRate: 1000, BesideWindow: 10 * time.Second,
		Notes: []string{"Interrupted."},
	}
}

func written(t *testing.T, r *report.Report) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, r.Write(&b))
	return b.String()
}

func TestAReportSaysWhatWasMeasuredWhereAndHow(t *testing.T) {
	text := written(t, run())
	for _, want := range []string{
		"**Interrupted.**", "Redis 9.9.9", "`go run . -quick`", "3 rounds", "a PING through it took 2.1ms",
		"## Clients", "rueidis-1conn", "MaxFlushDelay 20 us",
		"| redigo | 125 k (100 k - 140 k) |",              // median and spread
		"| rediscache | **300 k** (250 k - 350 k) |",      // the best in bold
		"### Ops/s: round trip 0, 10 kB, 9:1, 64 callers", // a table of details
		"| client | ops/s | p50 | p99 | allocs/op | B/op | client CPU/op | server CPU/op | errors |", "A remark.",
		"| 1.50 | 120 | 7.00 us | 3.00 us |", // allocations and CPU
		"| GET | 2.60 M |",                   // the server's limit
		"beside 1000 of 100 B", "For 10s at a time",
		"| 3.00 ms (2.00 ms - 5.00 ms) | **3.00 (2.00 - 5.00)** | 27 (0 - 30) |", "| 45.0 ms, 60 of them |",
	} {
		require.Contains(t, text, want)
	}
}

func TestTheRatioIsToTheBestPeerOfTheRow(t *testing.T) {
	text := written(t, run())
	// 300 k over 150 k; round by round 1.5, 1.67 and 2.33; the tail is radix'.
	require.Contains(t, text, "| 0 | 10 kB | 9:1 | 1 | 300 k | 150 k (radix) | **2.00** (1.50 - 2.33) | 1.00 ms (1.50 ms radix) | 1.50 (1.50 redigo) | 7.00 us (7.00 us redigo) |")
	// 100 over 110, and the ranges overlap.
	require.Contains(t, text, "| 0 | 10 kB | 9:1 | 64 | 100 | 110 (redigo) | **0.91** ~ (0.82 - 1.00) |")
}

func TestErrorsAreShownBeforeTheNumbers(t *testing.T) {
	text := written(t, run())
	section := text[strings.Index(text, "## Errors"):strings.Index(text, "## At a glance")]
	require.Contains(t, section, "redigo, Ops/s: round trip 0, 10 kB, 9:1, 64 callers: 7 errors, such as `something broke`")
	require.Contains(t, section, "radix, Ops/s: round trip 0, 10 kB, 9:1, 64 callers: could not dial")

	fine := run()
	fine.Sections[0].Rows = fine.Sections[0].Rows[:1]
	require.Contains(t, written(t, fine), "None: every operation")
}

func TestAReportWithoutThisLibraryHasNoRatio(t *testing.T) {
	r := run()
	for i := range r.Sections[0].Rows {
		r.Sections[0].Rows[i].Cells = r.Sections[0].Rows[i].Cells[1:]
	}
	text := written(t, r)
	require.NotContains(t, text, "best peer* |")
	require.Contains(t, text, "| radix | **150 k**")
}

func TestOfTimesTheLowestIsTheBestAndARatioAboveOneIsAhead(t *testing.T) {
	text := written(t, of(report.Section{
		Title: "Many", Unit: "key", Axes: []string{"keys"}, Main: report.NsEach, Tail: report.P99,
		Rows: []report.Row{{At: []string{"10"}, Column: "10 keys", Cells: []report.Cell{
			{Client: client.Own, Samples: samples(time.Millisecond, 2e6, 2e6, 2e6)},
			peer("redigo", samples(time.Millisecond, 1e6, 1e6, 1e6)),
			peer("radix", samples(time.Millisecond, 4e6, 4e6, 4e6)),
		}}},
	}))
	require.Contains(t, text, "### time/key")
	require.Contains(t, text, "| rediscache | 500 ns (500 ns - 500 ns) |")
	require.Contains(t, text, "| radix | **250 ns** (250 ns - 250 ns) |")
	require.Contains(t, text, "| 10 | 500 ns | 250 ns (radix) | **0.50** (0.50 - 0.50) |")
	require.Contains(t, text, "| client | keys/s |")
}

func TestWhatIsNoPeerHasARatioOfItsOwnAndIsNeverTheBest(t *testing.T) {
	section := report.Section{
		Title: "HTTP", Unit: "request", Axes: []string{"connections"}, Main: report.PerSec, Tail: report.P99,
		More: []report.Metric{report.P999, report.Spinning},
		Rows: []report.Row{{At: []string{"8"}, Column: "8 connections", Cells: []report.Cell{
			{Client: client.Own, Samples: samples(time.Millisecond, 300)},
			{Client: "(no Redis)", Samples: samples(time.Millisecond, 600)},
			peer("redigo", samples(time.Millisecond, 200)),
		}}},
	}
	text := written(t, of(section))
	require.Contains(t, text, "| rediscache | **300**")
	require.Contains(t, text, "| (no Redis) | 600 (600 - 600) |")
	require.Contains(t, text, "| *rediscache / best peer* | **1.50** (1.50 - 1.50) |")
	require.Contains(t, text, "| *rediscache / (no Redis)* | **0.50** (0.50 - 0.50) |")
	require.Contains(t, text, "| p99 | p99.9 | others' CPU | allocs/request |")

	section.Main = report.P99
	require.NotContains(t, written(t, of(section)), "rediscache / (no Redis)", "the floor of a latency")
}

func TestAReportIsEmptyUntilSomethingWasMeasured(t *testing.T) {
	require.True(t, of(report.Section{}).Empty())
	require.False(t, run().Empty())
	require.False(t, (&report.Report{Limit: []report.LimitLine{{}}}).Empty())
}

func TestSize(t *testing.T) {
	for n, want := range map[int]string{1: "1 B", 100: "100 B", 1500: "1500 B", 60_000: "60 kB", 1_000_000: "1 MB", 1_500_000: "1500 kB"} {
		require.Equal(t, want, report.Size(n))
	}
}

func TestDrawWritesAWellFormedPlotOfEachGroup(t *testing.T) {
	r := run()
	other := r.Sections[0].Rows[0]
	other.Group = "round trip 2ms, 10 kB, GET only"
	r.Sections[0].Rows = append(r.Sections[0].Rows, other)
	r.Sections = append(r.Sections, &report.Section{Title: "Not drawn", Main: report.PerSec, Tail: report.P99, Rows: r.Sections[0].Rows[:1]})
	dir := t.TempDir()
	require.NoError(t, r.Draw(filepath.Join(dir, "results.md")))

	text := written(t, r)
	for _, name := range []string{"results-rtt0-10kB-9to1.svg", "results-rtt2ms-10kB-GETonly.svg"} {
		require.Contains(t, text, "]("+name+")")
		svg, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		requireXML(t, svg)
		require.Contains(t, string(svg), ">rediscache</text>")
		require.Contains(t, string(svg), ">300 k</text>")
	}
}

func requireXML(t *testing.T, text []byte) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(string(text)))
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		require.NoError(t, err)
	}
}
