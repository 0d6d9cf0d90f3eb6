package rediscache_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

// BenchmarkNearHit measures a hit of 100 bytes in the near cache, and that of a View.
func BenchmarkNearHit(b *testing.B) {
	c := nearWith(b, 1000)
	view, err := rediscache.Of(c, rediscache.String(), rediscache.Policy{})
	require.NoError(b, err)
	decoded, err := rediscache.Of(c, rediscache.String(), rediscache.Policy{KeepDecoded: true})
	require.NoError(b, err)
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = strconv.Itoa(i)
	}
	ctx := b.Context()
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprintf("get/callers=%d", callers), func(b *testing.B) {
			inParallel(b, callers, func(i int) error { _, err := c.Get(ctx, keys[i%len(keys)]); return err })
		})
		b.Run(fmt.Sprintf("decoded/callers=%d", callers), func(b *testing.B) {
			inParallel(b, callers, func(i int) error { _, err := decoded.Get(ctx, keys[i%len(keys)]); return err })
		})
		b.Run(fmt.Sprintf("view/callers=%d", callers), func(b *testing.B) {
			inParallel(b, callers, func(i int) error { _, err := view.Get(ctx, keys[i%len(keys)]); return err })
		})
	}
}

// inParallel calls f from that many callers.
func inParallel(b *testing.B, callers int, f func(i int) error) {
	b.Helper()
	b.ReportAllocs()
	if callers == 1 {
		for i := 0; b.Loop(); i++ {
			if err := f(i); err != nil {
				b.Fatal(err)
			}
		}
		return
	}
	b.SetParallelism(callers / 2)
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if err := f(i); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// nearWith returns a cache with copies of n keys of 100 bytes each.
func nearWith(tb testing.TB, n int) *rediscache.Cache {
	tb.Helper()
	s := redistest.Start(tb)
	c := systest.NewCache(tb, systest.NewPool(tb, s.URL()), rediscache.WithPrefix("n:"), rediscache.WithTTL(time.Hour),
		rediscache.WithNearCache(8<<20), rediscache.WithNearTTL(time.Hour))
	items := make(map[string][]byte)
	for i := range n {
		items[strconv.Itoa(i)] = make([]byte, 100)
	}
	require.NoError(tb, c.SetMany(tb.Context(), items, 0))
	redistest.Eventually(tb, func() bool {
		before := c.Stats().Near.Hits
		for key := range items {
			if _, err := c.Get(tb.Context(), key); err != nil {
				tb.Fatal(err)
			}
		}
		return c.Stats().Near.Hits-before == int64(n)
	}, "not all keys have copies")
	return c
}
