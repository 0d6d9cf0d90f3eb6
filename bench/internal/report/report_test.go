package report_test

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
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
		s = append(s, load.Sample{Ops: 1000, OpsPerSec: n, P50: p99 / 2, P99: p99, AllocsPerOp: 1.5, BytesPerOp: 120})
	}
	return s
}

func condition(callers int) report.Condition {
	return report.Condition{ValueSize: 10_000, Mix: load.Mix{Gets: 9, Sets: 1}, Callers: callers}
}

// run is a report of two rows: in the first this library leads clearly, in the
// second it is behind, within noise, and one peer made errors.
func run() *report.Report {
	bad := samples(4*time.Millisecond, 100, 110, 120)
	bad[1].Errors, bad[1].FirstError = 7, "something broke"
	return &report.Report{
		Machine: report.ThisMachine(), Redis: "9.9.9", Command: "go run . -quick", Started: time.Unix(0, 0),
		Rounds: 3, Slice: time.Second, Keys: 10, Clients: client.All(), Versions: report.Versions(),
		Measured: map[time.Duration]time.Duration{2 * time.Millisecond: 2100 * time.Microsecond},
		Rows: []report.Row{
			{Condition: condition(1), Cells: []report.Cell{
				{Client: client.Own, Samples: samples(time.Millisecond, 300_000, 250_000, 350_000)},
				{Client: "redigo", Samples: samples(2*time.Millisecond, 100_000, 125_000, 140_000)},
				{Client: "radix", Samples: samples(1500*time.Microsecond, 200_000, 150_000, 150_000)},
			}},
			{Condition: condition(64), Cells: []report.Cell{
				{Client: client.Own, Samples: samples(time.Millisecond, 100, 90, 120)},
				{Client: "redigo", Samples: bad},
				{Client: "radix", Failed: "could not dial"},
			}},
		},
		HTTP: []report.HTTPLine{
			{Name: "ours", PerSec: report.Stat{Median: 30_000, Min: 29_000, Max: 31_000}},
			{Name: "bare", PerSec: report.Stat{Median: 60_000, Min: 59_000, Max: 61_000}, Errors: 2, First: "reset"},
		},
		Limit:    []report.LimitLine{{Test: "GET", PerSec: 2_600_000}},
		LimitCmd: "redis-benchmark -P 64",
		Large: []report.LargeLine{{
			Name: "ours", Alone: report.StatOf([]float64{1e6}), Beside: report.StatOf([]float64{2e6, 3e6, 5e6}),
			Times: report.StatOf([]float64{2, 3, 5}), Waited: report.StatOf([]float64{0, 27, 30}),
			Longest: report.StatOf([]float64{40e6}), Stood: report.StatOf([]float64{33e6}), Among: 45 * time.Millisecond, Got: 60,
		}},
		LargeRate: 1000, LargeWindow: 10 * time.Second,
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
		"| redigo | 125 k (100 k - 140 k) |",         // median and spread
		"| rediscache | **300 k** (250 k - 350 k) |", // the best in bold
		"### round trip 0, 10 kB, 9:1, 64 callers",   // a table of details
		"| 1.50 | 120 |",                                                  // allocations
		"ours / bare: **0.50**", "2, such as `reset`", "| GET | 2.60 M |", // the extras
		"beside 1000 of 100 B", "For 10s at a time",
		"| 3.00 ms (2.00 ms - 5.00 ms) | **3.00 (2.00 - 5.00)** | 27 (0 - 30) |", "| 45.0 ms, 60 of them |",
	} {
		require.Contains(t, text, want)
	}
}

func TestTheRatioIsToTheBestPeerOfTheRow(t *testing.T) {
	text := written(t, run())
	// 300 k over 150 k; round by round 1.5, 1.67 and 2.33; the tail is radix'.
	require.Contains(t, text, "| 0 | 10 kB | 9:1 | 1 | 300 k | 150 k (radix) | **2.00** (1.50 - 2.33) | 1.00 ms | 1.50 ms (radix) |")
	// 100 over 110, and the ranges overlap.
	require.Contains(t, text, "| 0 | 10 kB | 9:1 | 64 | 100 | 110 (redigo) | **0.91** ~ (0.82 - 1.00) |")
}

func TestErrorsAreShownBeforeTheNumbers(t *testing.T) {
	text := written(t, run())
	section := text[strings.Index(text, "## Errors"):strings.Index(text, "## At a glance")]
	require.Contains(t, section, "redigo, round trip 0, 10 kB, 9:1, 64 callers: 7 errors, such as `something broke`")
	require.Contains(t, section, "radix, round trip 0, 10 kB, 9:1, 64 callers: could not dial")

	fine := run()
	fine.Rows = fine.Rows[:1]
	require.Contains(t, written(t, fine), "None: every operation")
}

func TestAReportWithoutThisLibraryHasNoRatio(t *testing.T) {
	r := run()
	for i := range r.Rows {
		r.Rows[i].Cells = r.Rows[i].Cells[1:]
	}
	require.Contains(t, written(t, r), "| *rediscache / best peer* | - | - |")
}

func TestDrawWritesAWellFormedPlotOfEachGroup(t *testing.T) {
	r := run()
	other := r.Rows[0]
	other.RTT, other.Mix = 2*time.Millisecond, load.Mix{Gets: 1}
	r.Rows = append(r.Rows, other)
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
