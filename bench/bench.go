package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/cert"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/proxy"
	"github.com/rediscache/rediscache/bench/internal/report"
	"github.com/rediscache/rediscache/bench/internal/server"
)

// bench runs the chosen sections and writes the report. An interrupted run reports the
// rows that it finished.
func bench(ctx context.Context, o *options) (err error) {
	b, err := newSession(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()

	runErr := b.profiled(func() error { return b.run(ctx) })
	if ctx.Err() != nil {
		b.report.Notes = append(b.report.Notes, "Interrupted: these are the rows that were finished.")
		runErr = nil
	}
	if runErr != nil {
		return runErr
	}
	if b.report.Empty() {
		return ctx.Err()
	}
	b.report.Took = time.Since(b.report.Started)
	return write(b.report, o.out)
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
	dir      string // for the certificate
	pair     *cert.Pair
	srv      *server.Server
	runner   *load.Runner
	report   *report.Report
	progress *progress
	proxies  map[time.Duration]*proxy.Child
	keys     []string
	filled   filling // what is in the server
}

// filling is the values that the server holds; zero where they are not known.
type filling struct{ keys, size int }

// newSession starts the server. The caller must call close.
func newSession(ctx context.Context, o *options) (_ *session, err error) {
	b := &session{o: o, proxies: map[time.Duration]*proxy.Child{}, keys: load.Keys(keyCount)}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if o.has("tls") {
		if b.dir, err = os.MkdirTemp("", "rediscache-bench-"); err != nil {
			return nil, err
		}
		if b.pair, err = cert.Make(b.dir); err != nil {
			return nil, err
		}
	}
	if b.srv, err = server.Start(ctx, b.pair); err != nil {
		if b.pair != nil {
			err = fmt.Errorf("%w (the section tls needs a server that was built with TLS)", err)
		}
		return nil, err
	}
	b.runner = load.NewRunner(b.srv.CPU)
	b.report = newReport(o, b.srv)
	return b, nil
}

func (b *session) close() (err error) {
	for _, p := range b.proxies {
		err = errors.Join(err, p.Close())
	}
	if b.srv != nil {
		err = errors.Join(err, b.srv.Close())
	}
	if b.dir != "" {
		err = errors.Join(err, os.RemoveAll(b.dir))
	}
	return err
}

// plan is what a section will measure: rows, each with its clients' turns.
type plan struct {
	section *report.Section
	rows    []rowPlan
	around  func(context.Context, func() error) error // runs the rows; nil only runs them
	after   func(*report.Section)                     // adds remarks to what was measured; nil adds none
}

type rowPlan struct {
	row     report.Row
	prepare func() error // before the first turn
	turns   []turn
}

// turn measures one client once, on connections of its own.
type turn struct {
	client string
	peer   bool
	run    func(context.Context) (load.Sample, error)
}

// plans returns what the chosen sections with rows will measure, and how many steps
// all of the chosen sections have.
func (b *session) plans() (all []plan, steps int) {
	for _, s := range sections {
		switch {
		case !b.o.has(s.name):
		case s.plan == nil:
			steps += s.steps(b.o)
		default:
			p := s.plan(b)
			p.section.Name = s.name
			for _, r := range p.rows {
				steps += len(r.turns) * b.o.rounds
			}
			all = append(all, p)
		}
	}
	return all, steps
}

// run measures the chosen sections.
func (b *session) run(ctx context.Context) error {
	plans, steps := b.plans()
	b.progress = newProgress(os.Stderr, steps)
	defer b.progress.finish()
	for _, p := range plans {
		if err := b.measure(ctx, p); err != nil {
			return err
		}
	}
	for _, s := range sections {
		if s.run != nil && b.o.has(s.name) {
			if err := s.run(b, ctx); err != nil {
				return err
			}
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

// measure measures a section; the rows that were finished are in the report.
func (b *session) measure(ctx context.Context, p plan) error {
	b.report.Sections = append(b.report.Sections, p.section)
	rows := func() error {
		for _, r := range p.rows {
			row, err := b.row(ctx, p.section.Title, r)
			if err != nil {
				return err
			}
			p.section.Rows = append(p.section.Rows, row)
		}
		return nil
	}
	var err error
	if p.around == nil {
		err = rows()
	} else {
		err = p.around(ctx, rows)
	}
	if p.after != nil {
		p.after(p.section)
	}
	return err
}

// row measures one condition: each client once in each round, in an order of
// its own, as what a client leaves of the machine to the next one differs. A client
// that fails is not measured further in this row; the report says why.
func (b *session) row(ctx context.Context, section string, r rowPlan) (report.Row, error) {
	row := r.row
	row.Cells = make([]report.Cell, len(r.turns))
	if r.prepare != nil {
		if err := r.prepare(); err != nil {
			return row, errors.Join(ctx.Err(), err)
		}
	}
	for range b.o.rounds {
		for _, at := range rand.Perm(len(r.turns)) {
			t, cell := r.turns[at], &row.Cells[at]
			cell.Client, cell.Peer = t.client, t.peer
			b.progress.step(fmt.Sprintf("%s: %s: %s", section, row, t.client))
			if cell.Failed == "" {
				sample, err := t.run(ctx)
				if err != nil {
					cell.Failed = err.Error()
				} else {
					cell.Samples = append(cell.Samples, sample)
				}
			}
			if ctx.Err() != nil {
				return row, ctx.Err()
			}
		}
	}
	return row, nil
}

// turns returns a turn for each client that is for the section: it opens the client,
// measures it and closes it.
func (b *session) turns(
	section string, target func() (client.Target, error), measure func(context.Context, client.Client) (load.Sample, error),
) []turn {
	var all []turn
	for _, cfg := range b.o.clients {
		if !cfg.In(section) {
			continue
		}
		all = append(all, turn{cfg.Name, !cfg.Own(), func(ctx context.Context) (sample load.Sample, err error) {
			t, err := target()
			if err != nil {
				return sample, err
			}
			c, err := cfg.Open(ctx, t)
			if err != nil {
				return sample, err
			}
			defer func() {
				if closeErr := c.Close(); closeErr != nil {
					err = errors.Join(err, fmt.Errorf("close: %w", closeErr))
				}
			}()
			return measure(ctx, c)
		}})
	}
	return all
}

// plain is the target of most sections: the server itself.
func (b *session) plain(callers int) func() (client.Target, error) {
	return func() (client.Target, error) {
		return client.Target{Addr: b.srv.Addr(), Callers: callers}, nil
	}
}

// spec is the slice of the options.
func (b *session) spec(callers int) load.Spec {
	return load.Spec{Callers: callers, Warmup: b.o.warmup(), Slice: b.o.slice}
}

// closedLoop measures callers that GET and SET single keys.
func (b *session) closedLoop(callers int, keys []string, size int, mix load.Mix) func(context.Context, client.Client) (load.Sample, error) {
	return func(ctx context.Context, c client.Client) (load.Sample, error) {
		return b.runner.Run(ctx, load.Single(c, keys, size, mix), b.spec(callers))
	}
}

// fill returns what makes the server hold these keys with values of one size.
func (b *session) fill(keys []string, size int) func() error {
	return func() error {
		want := filling{len(keys), size}
		if b.filled == want {
			return nil
		}
		value := make([]byte, size)
		b.filled = filling{}
		err := b.srv.Fill(keys, func(key string) []byte {
			load.Fill(value, key)
			return value
		})
		if err == nil {
			b.filled = want
		}
		return err
	}
}
