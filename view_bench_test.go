package rediscache_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// BenchmarkGet and BenchmarkGetOrLoadHit ask for the same 100 bytes. A hit may
// cost 1.3 times what a Get does.
func BenchmarkGet(b *testing.B) {
	c, _ := benchCache(b)
	hits(b, func(ctx context.Context) ([]byte, error) { return c.Get(ctx, "k") })
}

func BenchmarkGetOrLoadHit(b *testing.B) {
	c, value := benchCache(b)
	load := func(context.Context) ([]byte, error) { return value, nil }
	for _, bench := range []struct {
		name   string
		policy rediscache.Policy
	}{
		{"plain", rediscache.Policy{}},                                 // GET alone
		{"stale", rediscache.Policy{TTL: time.Hour, Stale: time.Hour}}, // GET and PTTL
		{"all", rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Early: 1, Lease: time.Second}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			v, err := rediscache.Of(c, rediscache.Bytes(), bench.policy)
			require.NoError(b, err)
			require.NoError(b, v.Set(b.Context(), "k", value))
			hits(b, func(ctx context.Context) ([]byte, error) { return v.GetOrLoad(ctx, "k", load) })
		})
	}
}

func benchCache(b *testing.B) (*rediscache.Cache, []byte) {
	b.Helper()
	c := newCache(b, newPool(b, redistest.Start(b).URL()))
	value := bytes.Repeat([]byte("x"), 100)
	require.NoError(b, c.Set(b.Context(), "k", value, 0))
	return c, value
}

func hits(b *testing.B, get func(context.Context) ([]byte, error)) {
	b.Helper()
	for name, callers := range map[string]int{"1 caller": 0, "64 callers": 32} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			ctx := b.Context()
			if callers == 0 {
				for b.Loop() {
					if _, err := get(ctx); err != nil {
						b.Fatal(err)
					}
				}
				return
			}
			b.SetParallelism(callers) // times GOMAXPROCS
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := get(ctx); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
