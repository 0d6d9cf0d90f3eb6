package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/proxy"
	"github.com/rediscache/rediscache/bench/internal/report"
	"github.com/rediscache/rediscache/bench/internal/server"
)

// TestMain lets the test binary be the delay proxy, as the program is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == proxy.Command {
		if err := proxy.Main(os.Args[2:], os.Stdin, os.Stdout); err != nil {
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

func TestTheExtrasAreMeasured(t *testing.T) {
	requireServer(t)
	srv, err := server.Start(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, srv.Close()) }()
	b := &session{
		o: &options{rounds: 1, slice: 50 * time.Millisecond}, srv: srv, report: &report.Report{},
		progress: newProgress(os.Stderr, 1),
	}
	require.NoError(t, b.http(t.Context()))
	require.Len(t, b.report.HTTP, 2)
	for _, l := range b.report.HTTP {
		require.Zero(t, l.Errors, l.First)
		require.Positive(t, l.PerSec.Median, l.Name)
	}
}

func TestTheSmallBesideTheLargeAreMeasured(t *testing.T) {
	requireServer(t)
	srv, err := server.Start(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, srv.Close()) }()
	b := &session{
		o: &options{rounds: 1, slice: 10 * time.Millisecond}, srv: srv, report: &report.Report{},
		progress: newProgress(os.Stderr, 1),
	}
	require.NoError(t, b.large(t.Context()))
	require.GreaterOrEqual(t, len(b.report.Large)+len(b.report.Notes), largeWays)
	for _, l := range b.report.Large {
		require.Positive(t, l.Alone.Median, l.Name)
		require.Positive(t, l.Beside.Median, l.Name)
		require.Positive(t, l.Stood.Median, l.Name)
		require.Positive(t, l.Got, l.Name)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, b.large(ctx), context.Canceled)
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
	o.clients[0].Open = func(ctx context.Context, addr string) (client.Client, error) {
		if opened++; opened == 2 { // in the second row
			cancel()
		}
		return open(ctx, addr)
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
	o.clients[0].Open = func(context.Context, string) (client.Client, error) { return nil, os.ErrPermission }
	require.NoError(t, bench(t.Context(), o))
	text, err := os.ReadFile(out)
	require.NoError(t, err)
	require.Contains(t, string(text), "redigo, round trip 0, 100 B, 9:1, 1 caller: permission denied")
	require.Contains(t, string(text), "| radix | **")
}

func TestTheFullMatrixHasEveryCombination(t *testing.T) {
	o, err := parse(nil)
	require.NoError(t, err)
	require.Len(t, o.conditions, 4*2*3*2)
	require.Equal(t, fullRounds, o.rounds)
	require.Len(t, o.clients, len(client.All()))
}

func TestAQuickRunVariesOneThingAtATime(t *testing.T) {
	o, err := parse([]string{"-quick"})
	require.NoError(t, err)
	mix := load.Mix{Gets: 9, Sets: 1}
	require.Equal(t, []report.Condition{
		{ValueSize: 100, Mix: mix, Callers: 1},
		{ValueSize: 100, Mix: mix, Callers: 8},
		{ValueSize: 100, Mix: mix, Callers: 64},
		{ValueSize: 100, Mix: mix, Callers: 512},
		{ValueSize: 100, Mix: load.Mix{Gets: 1, Sets: 1}, Callers: 64},
		{ValueSize: 100, Mix: load.Mix{Gets: 1}, Callers: 64},
		{ValueSize: 10_000, Mix: mix, Callers: 64},
		{RTT: 2 * time.Millisecond, ValueSize: 100, Mix: mix, Callers: 512},
	}, o.conditions)

	turns := time.Duration(len(o.conditions) * o.rounds * len(o.clients))
	require.Less(t, turns*(o.slice+o.warmup()), 100*time.Second, "with its extras it takes under two minutes")
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
