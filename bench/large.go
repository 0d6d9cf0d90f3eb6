package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache"
)

const (
	largeValue = 50 << 20 // bytes
	smallRate  = 1000     // a second
)

// large measures what small GETs at a steady rate wait for, first alone and
// then while one caller gets a large value over and over: for this library and,
// as the server itself stops to copy a large value, for a connection a GET.
func (b *session) large(ctx context.Context) (err error) {
	cache, done, err := b.cache(rediscache.WithTimeout(10 * time.Second))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	items := map[string][]byte{"large": make([]byte, largeValue), "small": make([]byte, 100)}
	if err := cache.SetMany(ctx, items, time.Minute); err != nil {
		return err
	}
	plain := &redis.Pool{MaxIdle: 50, Dial: func() (redis.Conn, error) { return redis.Dial("tcp", b.srv.Addr()) }}
	defer func() { err = errors.Join(err, plain.Close()) }()

	for _, way := range []struct {
		name string
		get  func(ctx context.Context, key string) error
	}{
		{"rediscache", func(ctx context.Context, key string) error {
			_, err := cache.Get(ctx, key)
			return err
		}},
		{"redigo", func(_ context.Context, key string) error {
			conn := plain.Get()
			_, err := conn.Do("GET", key)
			return errors.Join(err, conn.Close())
		}},
	} {
		b.progress.step("large values: " + way.name)
		note, err := compare(ctx, way.name, way.get, 8*b.o.slice)
		if err != nil {
			return err
		}
		b.report.Notes = append(b.report.Notes, note)
	}
	_, err = cache.Delete(ctx, "large", "small")
	return err
}

// compare measures the p99 of small GETs alone, beside one large GET, and
// beside one after another.
func compare(
	ctx context.Context, name string, get func(context.Context, string) error, d time.Duration,
) (string, error) {
	var p99 [3]time.Duration
	var got [3]int
	for i, most := range []int{0, 1, 1 << 30} {
		beside, end := context.WithCancel(ctx)
		var failed error
		var wg sync.WaitGroup
		wg.Go(func() {
			for failed == nil && got[i] < most && beside.Err() == nil {
				failed = get(ctx, "large")
				got[i]++
			}
		})
		var err error
		p99[i], err = paced(ctx, get, d)
		end()
		wg.Wait()
		if err := errors.Join(err, failed); err != nil {
			return "", err
		}
	}
	times := func(i int) float64 { return float64(p99[i]) / float64(p99[0]) }
	return fmt.Sprintf("%s, %d GETs of 100 B a second for %v: p99 %v alone; %v (%.1f times) beside one GET of %d MiB;"+
		" %v (%.1f times) beside %d of them, one after another.",
		name, smallRate, d, p99[0], p99[1], times(1), largeValue>>20, p99[2], times(2), got[2]), nil
}

// paced sends GETs on a schedule, late or not, and returns the p99 of the time
// from when each was due.
func paced(ctx context.Context, get func(context.Context, string) error, d time.Duration) (time.Duration, error) {
	n := int(d.Seconds() * smallRate)
	took, errs := make([]time.Duration, n), make([]error, n)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range n {
		due := began.Add(time.Duration(i) * time.Second / smallRate)
		time.Sleep(time.Until(due))
		wg.Go(func() {
			errs[i] = get(ctx, "small")
			took[i] = time.Since(due)
		})
	}
	wg.Wait()
	slices.Sort(took)
	return took[n*99/100].Round(time.Microsecond), errors.Join(errs...)
}
