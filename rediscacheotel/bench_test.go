package rediscacheotel_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/rediscacheotel"
)

// discard is an exporter that costs nothing.
type discard struct{}

func (discard) ExportSpans(context.Context, []sdktrace.ReadOnlySpan) error { return nil }
func (discard) Shutdown(context.Context) error                             { return nil }

// BenchmarkGet compares a cache without an observer with what this package costs, at 64
// callers. Run it with -count, and compare neighbours:
//
//	go test -run '^$' -bench Get -cpu 2 -count 10
func BenchmarkGet(b *testing.B) {
	s := redistest.Start(b)
	pool, err := rediscache.NewPool(s.URL())
	require.NoError(b, err)
	b.Cleanup(func() { _ = pool.Close() })
	spans := func(share float64) *sdktrace.TracerProvider {
		return sdktrace.NewTracerProvider(sdktrace.WithBatcher(discard{}), sdktrace.WithSampler(sdktrace.TraceIDRatioBased(share)))
	}
	for _, way := range []struct {
		name    string
		observe bool
		share   float64 // of calls inside a sampled span
	}{
		{"unobserved", false, 0}, {"metrics", true, 0}, {"a span in a hundred", true, .01}, {"all spans", true, 1},
	} {
		provider := spans(way.share)
		tracer := provider.Tracer("bench")
		var opts []rediscache.Option
		if way.observe {
			telemetry := rediscacheotel.New(rediscacheotel.WithTracerProvider(provider))
			opts = append(opts, rediscache.WithObserver(telemetry.Observer("c")))
		}
		cache, err := rediscache.New(pool, opts...)
		require.NoError(b, err)
		b.Cleanup(func() { _ = cache.Close() })
		require.NoError(b, cache.Set(b.Context(), "k", make([]byte, 100), 0))
		b.Run(way.name, func(b *testing.B) {
			b.SetParallelism(32)
			b.ReportAllocs()
			b.RunParallel(func(run *testing.PB) {
				for run.Next() {
					ctx, request := tracer.Start(b.Context(), "request") // once for a hundred calls
					for range 100 {
						if _, err := cache.Get(ctx, "k"); err != nil {
							b.Error(err)
						}
					}
					request.End()
				}
			})
		})
	}
}
