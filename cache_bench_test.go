package rediscache_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// BenchmarkManyKeys compares the verbs for many keys of 100 bytes with what a program writes by hand
// over redigo's pool: MGET, pipelined SETs, DEL.
func BenchmarkManyKeys(b *testing.B) {
	s := redistest.Start(b)
	c := newCache(b, newPool(b, s.URL()))
	plain := benchRedigo(b, s)
	value := bytes.Repeat([]byte("x"), 100)
	for _, n := range []int{10, 100, 1000, 10_000} {
		keys, items := make([]string, n), make(map[string][]byte, n)
		for i := range keys {
			keys[i] = fmt.Sprintf("key:%06d", i)
			items[keys[i]] = value
		}
		require.NoError(b, c.SetMany(b.Context(), items, time.Hour))
		for _, verb := range []struct {
			name string
			run  func(ctx context.Context) error
		}{
			{"GetMany/rediscache", func(ctx context.Context) error { return ignore(c.GetMany(ctx, keys...)) }},
			{"GetMany/redigo", func(ctx context.Context) error { return ignore(redigoGetMany(ctx, plain, keys)) }},
			{"SetMany/rediscache", func(ctx context.Context) error { return c.SetMany(ctx, items, time.Hour) }},
			{"SetMany/redigo", func(ctx context.Context) error { return redigoSetMany(ctx, plain, items) }},
			// Of keys that do not exist, because a benchmark has no time to store them again.
			{"Delete/rediscache", func(ctx context.Context) error { return ignore(c.Sub("gone:").Delete(ctx, keys...)) }},
			{"Delete/redigo", func(ctx context.Context) error { return ignore(redigoDelete(ctx, plain, "gone:", keys)) }},
		} {
			b.Run(fmt.Sprintf("%s/%d", verb.name, n), func(b *testing.B) {
				b.ReportAllocs()
				ctx := b.Context()
				for b.Loop() {
					if err := verb.run(ctx); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/key")
			})
		}
	}
}

func ignore[T any](_ T, err error) error { return err }

// benchRedigo is a pool as redigo's documentation has it, and as large as a WarmPool.
func benchRedigo(b *testing.B, s *redistest.Server) *redis.Pool {
	b.Helper()
	p := &redis.Pool{
		MaxIdle: rediscache.DefaultMaxActive, MaxActive: rediscache.DefaultMaxActive, Wait: true,
		DialContext: func(ctx context.Context) (redis.Conn, error) { return redis.DialContext(ctx, "tcp", s.Addr) },
	}
	b.Cleanup(func() { _ = p.Close() })
	return p
}

func redigoGetMany(ctx context.Context, p *redis.Pool, keys []string) (map[string][]byte, error) {
	conn, err := p.GetContext(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	values, err := redis.ByteSlices(conn.Do("MGET", redis.Args{}.AddFlat(keys)...))
	if err != nil {
		return nil, err
	}
	hits := make(map[string][]byte, len(keys))
	for i, value := range values {
		if value != nil {
			hits[keys[i]] = value
		}
	}
	return hits, nil
}

func redigoSetMany(ctx context.Context, p *redis.Pool, items map[string][]byte) error {
	conn, err := p.GetContext(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for key, value := range items {
		if err := conn.Send("SET", key, value, "PX", time.Hour.Milliseconds()); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil {
		return err
	}
	for range items {
		if _, err := conn.Receive(); err != nil {
			return err
		}
	}
	return nil
}

func redigoDelete(ctx context.Context, p *redis.Pool, prefix string, keys []string) (int, error) {
	conn, err := p.GetContext(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	args := make([]any, len(keys))
	for i, key := range keys {
		args[i] = prefix + key
	}
	return redis.Int(conn.Do("DEL", args...))
}

// BenchmarkLargeValues gets one large value, beside a GET by redigo.
func BenchmarkLargeValues(b *testing.B) {
	s := redistest.Start(b)
	c := newCache(b, newPool(b, s.URL()))
	plain := benchRedigo(b, s)
	for _, size := range []int{60_000, 70_000, 1 << 20} {
		key := fmt.Sprint(size)
		require.NoError(b, c.Set(b.Context(), key, make([]byte, size), time.Hour))
		for _, get := range []struct {
			name string
			get  func(ctx context.Context) ([]byte, error)
		}{
			{"rediscache", func(ctx context.Context) ([]byte, error) { return c.Get(ctx, key) }},
			{"redigo", func(ctx context.Context) ([]byte, error) {
				conn, err := plain.GetContext(ctx)
				if err != nil {
					return nil, err
				}
				defer conn.Close()
				return redis.Bytes(conn.Do("GET", key))
			}},
		} {
			for _, callers := range []int{1, 8, 64} {
				b.Run(fmt.Sprintf("%d/%d callers/%s", size, callers, get.name), func(b *testing.B) {
					b.ReportAllocs()
					benchCallers(b, callers, get.get)
				})
			}
		}
	}
}

// benchCallers shares b.N calls among callers, and reports the 99th percentile too.
func benchCallers(b *testing.B, callers int, get func(context.Context) ([]byte, error)) {
	b.Helper()
	ctx := b.Context()
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range callers {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				began := time.Now()
				if _, err := get(ctx); err != nil {
					b.Error(err)
					return
				}
				took[i] = time.Since(began)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
}
