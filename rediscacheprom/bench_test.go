package rediscacheprom_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/rediscacheprom"
)

// BenchmarkGet compares a cache without an observer with one that this package observes,
// at 64 callers. Run it with -count, and compare neighbours:
//
//	go test -run '^$' -bench Get -cpu 2 -count 10
func BenchmarkGet(b *testing.B) {
	s := redistest.Start(b)
	pool, err := rediscache.NewPool(s.URL())
	require.NoError(b, err)
	b.Cleanup(func() { _ = pool.Close() })
	for _, observed := range []bool{false, true} {
		var opts []rediscache.Option
		if observed {
			opts = append(opts, rediscache.WithObserver(rediscacheprom.New().Observer("c")))
		}
		cache, err := rediscache.New(pool, opts...)
		require.NoError(b, err)
		b.Cleanup(func() { _ = cache.Close() })
		require.NoError(b, cache.Set(b.Context(), "k", make([]byte, 100), 0))
		b.Run(fmt.Sprintf("observed=%t", observed), func(b *testing.B) {
			b.SetParallelism(32)
			b.ReportAllocs()
			b.RunParallel(func(run *testing.PB) {
				for run.Next() {
					if _, err := cache.Get(b.Context(), "k"); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
