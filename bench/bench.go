package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/proxy"
	"github.com/rediscache/rediscache/bench/internal/report"
	"github.com/rediscache/rediscache/bench/internal/server"
)

// bench runs everything and writes the report. An interrupted run reports the
// rows that it finished.
func bench(ctx context.Context, o *options) (err error) {
	srv, err := server.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, srv.Close()) }()

	r := newReport(o, srv)
	b := &session{o: o, srv: srv, report: r, proxies: map[time.Duration]*proxy.Child{}}
	b.runner = load.NewRunner(load.Keys(keyCount), srv.CPU)
	b.progress = newProgress(os.Stderr, b.steps())
	runErr := b.run(ctx)
	b.progress.finish()
	if ctx.Err() != nil {
		r.Notes = append(r.Notes, "Interrupted: these are the rows that were finished.")
		runErr = nil
	}
	if runErr != nil {
		return runErr
	}
	if len(r.Rows) == 0 {
		return ctx.Err()
	}
	r.Took = time.Since(r.Started)
	return write(r, o.out)
}

func newReport(o *options, srv *server.Server) *report.Report {
	return &report.Report{
		Machine: report.ThisMachine(), Redis: srv.Version(), Command: o.command, Started: time.Now(),
		Rounds: o.rounds, Slice: o.slice, Warmup: o.warmup(), Keys: keyCount,
		Clients: o.clients, Versions: report.Versions(), Measured: map[time.Duration]time.Duration{},
	}
}

// write writes the plots and the report, which names them.
func write(r *report.Report, file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := r.Draw(file); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := r.Write(f); err != nil {
		return errors.Join(err, f.Close())
	}
	fmt.Println(file)
	return f.Close()
}

// session is one run.
type session struct {
	o        *options
	srv      *server.Server
	runner   *load.Runner
	report   *report.Report
	progress *progress
	proxies  map[time.Duration]*proxy.Child
	filled   int // the size of the values that are in the server
}

func (b *session) steps() int {
	n := len(b.o.conditions) * b.o.rounds * len(b.o.clients)
	if b.o.extras {
		n += 3 + b.o.rounds
	}
	if b.o.large {
		n += largeWays * b.o.rounds
	}
	return n
}

func (b *session) run(ctx context.Context) (err error) {
	defer func() {
		for _, p := range b.proxies {
			err = errors.Join(err, p.Close())
		}
	}()
	if err := b.profiled(func() error { return b.rows(ctx) }); err != nil {
		return err
	}
	var more []func(context.Context) error
	if b.o.extras {
		more = append(more, b.http, b.loads, b.limit)
	}
	if b.o.large {
		more = append(more, b.large)
	}
	for _, measure := range more {
		if err := measure(ctx); err != nil {
			return err
		}
	}
	return nil
}

// profiled runs f under the CPU profiler where that is asked for.
func (b *session) profiled(f func() error) error {
	if b.o.cpuProfile == "" {
		return f()
	}
	file, err := os.Create(b.o.cpuProfile)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return errors.Join(err, file.Close())
	}
	err = f()
	pprof.StopCPUProfile()
	return errors.Join(err, file.Close())
}

func (b *session) rows(ctx context.Context) error {
	for _, c := range b.o.conditions {
		row, err := b.row(ctx, c)
		if err != nil {
			return err
		}
		b.report.Rows = append(b.report.Rows, row)
	}
	return nil
}

// row measures one condition: each client once in each round, in an order of
// its own, as what a client leaves of the machine to the next one differs.
func (b *session) row(ctx context.Context, c report.Condition) (report.Row, error) {
	row := report.Row{Condition: c, Cells: make([]report.Cell, len(b.o.clients))}
	addr, err := b.addr(c.RTT)
	if err != nil {
		return row, err
	}
	if err := b.fill(c.ValueSize); err != nil {
		return row, err
	}
	for range b.o.rounds {
		for _, at := range rand.Perm(len(b.o.clients)) {
			if err := b.turn(ctx, addr, c, b.o.clients[at], &row.Cells[at]); err != nil {
				return row, err
			}
		}
	}
	return row, nil
}

// turn measures one client once, on connections of its own. A client that
// fails is not measured further in this row; the report says why. The error
// is the context's.
func (b *session) turn(
	ctx context.Context, addr string, c report.Condition, cfg client.Config, cell *report.Cell,
) error {
	cell.Client = cfg.Name
	b.progress.step(fmt.Sprintf("%s: %s", c, cfg.Name))
	if cell.Failed != "" {
		return ctx.Err()
	}
	cl, err := cfg.Open(ctx, addr)
	if err != nil {
		cell.Failed = err.Error()
		return ctx.Err()
	}
	sample, err := b.runner.Run(ctx, cl, load.Spec{
		Callers: c.Callers, ValueSize: c.ValueSize, Mix: c.Mix, Warmup: b.o.warmup(), Slice: b.o.slice,
	})
	if closeErr := cl.Close(); closeErr != nil {
		cell.Failed = "close: " + closeErr.Error()
	}
	cell.Samples = append(cell.Samples, sample)
	return err
}

// fill makes the values in the server be of one size.
func (b *session) fill(size int) error {
	if b.filled == size {
		return nil
	}
	value := make([]byte, size)
	err := b.srv.Fill(load.Keys(keyCount), func(key string) []byte {
		load.Fill(value, key)
		return value
	})
	if err == nil {
		b.filled = size
	}
	return err
}

// addr returns where to dial for a round trip that takes rtt more.
func (b *session) addr(rtt time.Duration) (string, error) {
	if rtt == 0 {
		return b.srv.Addr(), nil
	}
	if p := b.proxies[rtt]; p != nil {
		return p.Addr(), nil
	}
	p, err := proxy.Start(b.srv.Addr(), rtt)
	if err != nil {
		return "", err
	}
	b.proxies[rtt] = p
	measured, err := roundTrip(p.Addr())
	b.report.Measured[rtt] = measured
	return p.Addr(), err
}

// roundTrip returns the median of some PINGs.
func roundTrip(addr string) (time.Duration, error) {
	conn, err := redis.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	took := make([]time.Duration, 21)
	for i := range took {
		start := time.Now()
		if _, err := conn.Do("PING"); err != nil {
			return 0, err
		}
		took[i] = time.Since(start)
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}
