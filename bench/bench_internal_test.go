package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/report"
	"github.com/rediscache/rediscache/bench/internal/server"
)

// TestMain lets the test binary be the program's child processes, as the program is.
func TestMain(m *testing.M) {
	if as, ok := asChild(os.Args[1:]); ok {
		if err := as(); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func requireServer(t *testing.T) {
	t.Helper()
	if server.Available() {
		return
	}
	if os.Getenv("REDISCACHE_REQUIRE_SERVER") != "" {
		t.Fatal("no redis-server, and REDISCACHE_REQUIRE_SERVER is set")
	}
	t.Skip("no redis-server")
}

func TestARunMeasuresEveryClientAndWritesItsReport(t *testing.T) {
	requireServer(t)
	out := filepath.Join(t.TempDir(), "new", "results.md")
	profile := filepath.Join(t.TempDir(), "cpu.prof")
	o, err := parse([]string{
		"-rounds", "1", "-slice", "10ms", "-callers", "2,8", "-values", "100", "-mixes", "9:1", "-rtts", "0,1ms",
		"-extras=false", "-cpuprofile", profile, "-o", out,
	})
	require.NoError(t, err)
	require.NoError(t, bench(t.Context(), o))

	text, err := os.ReadFile(out)
	require.NoError(t, err)
	for _, c := range client.All() {
		require.Contains(t, string(text), "| "+c.Name+" |")
	}
	require.Contains(t, string(text), "None: every operation of every client was answered")
	require.Contains(t, string(text), "round trip of 1ms")
	require.FileExists(t, filepath.Join(filepath.Dir(out), "results-rtt0-100B-9to1.svg"))
	require.FileExists(t, profile)
}

func TestEverySectionMeasuresItsClients(t *testing.T) {
	requireServer(t)
	o, err := parse([]string{
		"-quick", "-sections", "matrix,tls,many,large,open,busy,http,loads", "-rounds", "1", "-slice", "10ms",
		"-clients", "rediscache,rueidis", "-callers", "2", "-values", "100", "-mixes", "9:1", "-rtts", "0",
	})
	require.NoError(t, err)
	b, err := newSession(t.Context(), o)
	require.NoError(t, err)
	defer func() { require.NoError(t, b.close()) }()
	require.NoError(t, b.run(t.Context()))

	var names []string
	for _, s := range b.report.Sections {
		names = append(names, s.Name)
		require.NotEmpty(t, s.Rows, s.Name)
		for _, row := range s.Rows {
			require.Len(t, row.At, len(s.Axes), s.Name)
			require.GreaterOrEqual(t, len(row.Cells), 2, s.Name)
			for _, c := range row.Cells {
				n, first := c.Errors()
				require.Zero(t, n, "%s: %s: %s: %s", s.Name, row, c.Client, first)
				require.Empty(t, c.Failed, "%s: %s: %s", s.Name, row, c.Client)
				require.Len(t, c.Samples, 1)
				require.Positive(t, c.Samples[0].OpsPerSec, "%s: %s: %s", s.Name, row, c.Client)
				require.Equal(t, c.Client == "rueidis", c.Peer)
				if s.Name == client.SectionBusy {
					require.Positive(t, c.Samples[0].Spinning)
				}
			}
		}
	}
	require.Equal(t, []string{"matrix", "tls", "many", "large", "open", "busy", "http", "loads"}, names)
}

func TestTheSmallBesideTheLargeAreMeasured(t *testing.T) {
	requireServer(t)
	o, err := parse([]string{"-rounds", "1", "-slice", "10ms", "-sections", "beside"})
	require.NoError(t, err)
	b, err := newSession(t.Context(), o)
	require.NoError(t, err)
	defer func() { require.NoError(t, b.close()) }()
	require.NoError(t, b.run(t.Context()))
	require.GreaterOrEqual(t, len(b.report.Beside)+len(b.report.Notes), besideWays)
	for _, l := range b.report.Beside {
		require.Positive(t, l.Alone.Median, l.Name)
		require.Positive(t, l.Beside.Median, l.Name)
		require.Positive(t, l.Stood.Median, l.Name)
		require.Positive(t, l.Got, l.Name)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, b.run(ctx), context.Canceled)
}

func TestAHandlerByHandAnswersWithTheBytesOfTheLibrarys(t *testing.T) {
	addr := miniredis.RunT(t).Addr()
	answer := func(name string) string {
		chosen, err := client.Choose(name)
		require.NoError(t, err)
		c, err := chosen[0].Open(t.Context(), client.Target{Addr: addr})
		require.NoError(t, err)
		defer func() { require.NoError(t, c.Close()) }()
		require.NoError(t, c.Set(t.Context(), "k", []byte("a value")))
		w := httptest.NewRecorder()
		handlerOf(c).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/cache/k", nil))
		require.Equal(t, http.StatusOK, w.Code)
		require.Equal(t, "application/json", w.Header().Get("Content-Type"))
		return w.Body.String()
	}
	require.JSONEq(t, `{"key":"k","value":"a value"}`, answer(client.Own))
	require.Equal(t, answer(client.Own), answer("redigo"))
}

func TestShare(t *testing.T) {
	require.InDelta(t, 75, share(3*time.Second, 2*time.Second, 2), 0.001)
}

func TestARemarkNamesWhoDidNotKeepTheRate(t *testing.T) {
	sample := func(perSec float64) load.Sample { return load.Sample{Ops: 1, OpsPerSec: perSec, Asked: 1000} }
	s := &report.Section{Rows: []report.Row{{Column: "1.00 k calls/s", Cells: []report.Cell{
		{Client: "redigo", Samples: []load.Sample{sample(999), sample(990), sample(985)}},
		{Client: "radix", Samples: []load.Sample{sample(999), sample(700), sample(900)}},
	}}}}
	fellBehind(s)
	require.Equal(t, []string{"**radix did not keep 1.00 k calls/s in 2 of 3 rounds: 700 at worst.**"}, s.Remarks)

	s.Rows[0].Cells, s.Remarks = s.Rows[0].Cells[:1], nil
	fellBehind(s)
	require.Equal(t, []string{"Every client kept every rate."}, s.Remarks)
}

func TestBatchesHoldEveryKeyOnce(t *testing.T) {
	keys := load.Keys(35)
	all := batches(keys, 10)
	require.Len(t, all, 3, "what is left over is no batch")
	for i, b := range all {
		require.Equal(t, keys[10*i:10*i+10], b.Keys)
		require.Len(t, b.Items, 10)
		for j, key := range b.Keys {
			require.True(t, load.Check(b.Values[j], key, small))
			require.Equal(t, b.Values[j], b.Items[key])
		}
	}
}

func TestSectionsAreChosenByName(t *testing.T) {
	chosen := func(args ...string) (names []string) {
		o, err := parse(args)
		require.NoError(t, err)
		for _, s := range sections {
			if o.has(s.name) {
				names = append(names, s.name)
			}
		}
		return names
	}
	all := []string{"matrix", "tls", "many", "large", "open", "busy", "http", "loads", "limit", "beside"}
	require.Equal(t, all, chosen())
	require.Equal(t, all, chosen("-quick", "-sections", "all"))
	require.Equal(t, []string{"matrix", "http", "loads", "limit"}, chosen("-quick"))
	require.Equal(t, []string{"matrix"}, chosen("-quick", "-extras=false"))
	require.Equal(t, []string{"tls", "many"}, chosen("-sections", "many, tls"))
}

// An interrupt is the end of the run's context.
func TestAnInterruptedRunReportsTheRowsThatItFinished(t *testing.T) {
	requireServer(t)
	out := filepath.Join(t.TempDir(), "results.md")
	o, err := parse([]string{
		"-rounds", "1", "-slice", "20ms", "-clients", "redigo", "-callers", "1,2", "-values", "100", "-mixes", "9:1",
		"-rtts", "0", "-extras=false", "-o", out,
	})
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	open := o.clients[0].Open
	opened := 0
	o.clients[0].Open = func(ctx context.Context, target client.Target) (client.Client, error) {
		if opened++; opened == 2 { // in the second row
			cancel()
		}
		return open(ctx, target)
	}
	require.NoError(t, bench(ctx, o))
	text, err := os.ReadFile(out)
	require.NoError(t, err)
	require.Contains(t, string(text), "Interrupted")
	require.Contains(t, string(text), "1 caller |")
	require.NotContains(t, string(text), "2 callers")

	o.out = filepath.Join(t.TempDir(), "none.md")
	require.ErrorIs(t, bench(ctx, o), context.Canceled)
	require.NoFileExists(t, o.out)
}

func TestAClientThatFailsIsReportedAndStopsNothing(t *testing.T) {
	requireServer(t)
	out := filepath.Join(t.TempDir(), "results.md")
	o, err := parse([]string{
		"-rounds", "2", "-slice", "10ms", "-clients", "redigo,radix", "-callers", "1", "-values", "100", "-mixes", "9:1",
		"-rtts", "0", "-extras=false", "-o", out,
	})
	require.NoError(t, err)
	o.clients[0].Open = func(context.Context, client.Target) (client.Client, error) { return nil, os.ErrPermission }
	require.NoError(t, bench(t.Context(), o))
	text, err := os.ReadFile(out)
	require.NoError(t, err)
	require.Contains(t, string(text), "redigo, Ops/s: round trip 0, 100 B, 9:1, 1 caller: permission denied")
	require.Contains(t, string(text), "| radix | **")
}

func TestTheFullMatrixHasEveryCombination(t *testing.T) {
	o, err := parse(nil)
	require.NoError(t, err)
	require.Len(t, o.conditions, 8*2*3*2)
	require.Equal(t, []int{1, 2, 4, 8, 16, 32, 64, 512}, o.callers)
	require.Equal(t, fullRounds, o.rounds)
	require.Len(t, o.clients, len(client.All()))
}

func TestAQuickRunVariesOneThingAtATime(t *testing.T) {
	o, err := parse([]string{"-quick"})
	require.NoError(t, err)
	mix := load.Mix{Gets: 9, Sets: 1}
	require.Equal(t, []condition{
		{ValueSize: 100, Mix: mix, Callers: 1},
		{ValueSize: 100, Mix: mix, Callers: 8},
		{ValueSize: 100, Mix: mix, Callers: 64},
		{ValueSize: 100, Mix: mix, Callers: 512},
		{ValueSize: 100, Mix: load.Mix{Gets: 1, Sets: 1}, Callers: 64},
		{ValueSize: 100, Mix: load.Mix{Gets: 1}, Callers: 64},
		{ValueSize: 10_000, Mix: mix, Callers: 64},
		{RTT: 2 * time.Millisecond, ValueSize: 100, Mix: mix, Callers: 512},
	}, o.conditions)

	_, steps := (&session{o: o, keys: load.Keys(keyCount)}).plans()
	require.Less(t, time.Duration(steps)*(o.slice+o.warmup()), 100*time.Second, "under two minutes in all")
}

func TestBadFlagsAreErrors(t *testing.T) {
	for _, args := range [][]string{
		{"-clients", "nobody"},
		{"-callers", "0"},
		{"-values", "x"},
		{"-mixes", "1"},
		{"-rtts", "-1ms"},
		{"-rounds", "-1"},
		{"-slice", "-1s"},
		{"-sections", "matrix,nothing"},
		{"more"},
	} {
		_, err := parse(args)
		require.Error(t, err, args)
	}
}

func TestParseLimitReadsOldAndNewColumns(t *testing.T) {
	lines, err := parseLimit("\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"1250000.00\",\"0.1\"\n\"GET\",\"2500000.00\",\"0.1\"\n")
	require.NoError(t, err)
	require.Equal(t, []report.LimitLine{{Test: "SET", PerSec: 1.25e6}, {Test: "GET", PerSec: 2.5e6}}, lines)
	lines, err = parseLimit("\"GET\",\"100.00\"\n")
	require.NoError(t, err)
	require.Equal(t, []report.LimitLine{{Test: "GET", PerSec: 100}}, lines)
}
