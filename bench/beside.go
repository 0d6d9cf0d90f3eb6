package main

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"slices"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache"

	"github.com/rediscache/rediscache/bench/internal/arrivals"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/report"
)

const (
	besideValue  = 50 << 20 // bytes
	smallRate    = 1000     // a second
	besideWindow = 20       // slices; 10 s of a full run
	besideWays   = 3

	// cliProgram comes with Redis, too.
	cliProgram = "redis-cli"
)

// way is how small values and a large one beside them are asked for.
type way struct {
	name         string
	small, large func(context.Context) error
}

// beside measures what small GETs at a steady rate wait for when one GET of a
// large value is beside them: for this library, for a connection a GET, and for
// this library when another process gets the large one. As the server executes
// one command at a time, all wait while it copies the value; it tells how long.
func (b *session) beside(ctx context.Context) (err error) {
	cache, done, err := b.cache(rediscache.WithTimeout(10 * time.Second))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	items := map[string][]byte{"large": make([]byte, besideValue), "small": make([]byte, 100)}
	if err := cache.SetMany(ctx, items, rediscache.NoExpiry); err != nil {
		return err
	}
	plain := &redis.Pool{MaxIdle: 50, Dial: func() (redis.Conn, error) { return redis.Dial("tcp", b.srv.Addr()) }}
	defer func() { err = errors.Join(err, plain.Close()) }()
	host, port, err := net.SplitHostPort(b.srv.Addr())
	if err != nil {
		return err
	}

	ours := func(key string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := cache.Get(ctx, key)
			return err
		}
	}
	redigos := func(key string) func(context.Context) error {
		return func(context.Context) error {
			conn := plain.Get()
			_, err := conn.Do("GET", key)
			return errors.Join(err, conn.Close())
		}
	}
	ways := [besideWays]way{
		{"rediscache", ours("small"), ours("large")},
		{"redigo pool", redigos("small"), redigos("large")},
		{"rediscache, and " + cliProgram + " gets the large one", ours("small"), func(ctx context.Context) error {
			return exec.CommandContext(ctx, cliProgram, "-h", host, "-p", port, "GET", "large").Run()
		}},
	}
	b.report.BesideRate, b.report.BesideWindow = smallRate, besideWindow*b.o.slice
	for _, w := range ways {
		line, err := b.besideOne(ctx, w)
		if errors.Is(err, exec.ErrNotFound) {
			b.report.Notes = append(b.report.Notes, "No "+cliProgram+" here: what another process' large GET costs is not known.")
			continue
		}
		if err != nil {
			return errors.Join(ctx.Err(), err)
		}
		b.report.Beside = append(b.report.Beside, line)
	}
	_, err = cache.Delete(ctx, "large", "small")
	return err
}

// besideOne measures the small GETs of one way, in rounds: alone, and for as long
// with one large GET; then once with one large GET after another.
func (b *session) besideOne(ctx context.Context, w way) (report.BesideLine, error) {
	line := report.BesideLine{Name: w.name}
	d := b.report.BesideWindow
	var alone, beside, times, waited, longest, stood []float64
	for range b.o.rounds {
		b.progress.step("large values: " + w.name)
		quiet, _, err := paced(ctx, w, d, 0)
		if err != nil {
			return line, err
		}
		if _, err := b.srv.Slowest(); err != nil { // from here on
			return line, err
		}
		took, _, err := paced(ctx, w, d, 1)
		if err != nil {
			return line, err
		}
		stop, err := b.srv.Slowest()
		if err != nil {
			return line, err
		}
		before, after := p99(quiet), p99(took)
		within, _ := slices.BinarySearch(took, 10*before+1)
		alone = append(alone, float64(before))
		beside = append(beside, float64(after))
		times = append(times, float64(after)/float64(before))
		waited = append(waited, float64(len(took)-within))
		longest = append(longest, float64(took[len(took)-1]))
		stood = append(stood, float64(stop))
	}
	line.Alone, line.Beside, line.Times = report.StatOf(alone), report.StatOf(beside), report.StatOf(times)
	line.Waited, line.Longest, line.Stood = report.StatOf(waited), report.StatOf(longest), report.StatOf(stood)
	took, got, err := paced(ctx, w, d, 1<<30)
	if err != nil {
		return line, err
	}
	line.Got, line.Among = got, p99(took)
	return line, nil
}

// p99 is that of what is sorted.
func p99(took []time.Duration) time.Duration { return load.Quantile(took, 990) }

// paced sends small GETs on a schedule for as long as d, late or not, and up to
// most large ones, one after another. It returns the times from when each small
// one was due, sorted, and how many large ones there were.
func paced(ctx context.Context, w way, d time.Duration, most int) (took []time.Duration, got int, err error) {
	beside, end := context.WithCancel(ctx)
	var large sync.WaitGroup
	var failed error
	large.Go(func() {
		for got < most && beside.Err() == nil && failed == nil {
			failed = w.large(ctx)
			got++
		}
	})
	n := max(1, int(d.Seconds()*smallRate))
	took = make([]time.Duration, n)
	errs := make([]error, n)
	var small sync.WaitGroup
	clock := arrivals.Run(smallRate, n, func(i int, due time.Time) bool {
		small.Go(func() {
			errs[i] = w.small(ctx)
			took[i] = time.Since(due)
		})
		return ctx.Err() == nil
	})
	small.Wait()
	end()
	large.Wait()
	slices.Sort(took)
	return took, got, errors.Join(append(errs, clock, failed, ctx.Err())...)
}
