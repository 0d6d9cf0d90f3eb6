package rediscache_test

import (
	"context"
	"testing"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// BenchmarkPoolGetClose is what a borrower pays for the pool alone, beside a bare redigo pool.
func BenchmarkPoolGetClose(b *testing.B) {
	s := redistest.Start(b)
	bare := &redis.Pool{MaxIdle: 10, MaxActive: 50, DialContext: func(ctx context.Context) (redis.Conn, error) {
		return redis.DialContext(ctx, "tcp", s.Addr)
	}}
	warm, err := rediscache.NewPool(s.URL())
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		pool rediscache.Pool
	}{{"redigo", bare}, {"warm", warm}} {
		b.Run(c.name, func(b *testing.B) {
			ctx := b.Context()
			b.ReportAllocs()
			for b.Loop() {
				conn, err := c.pool.GetContext(ctx)
				if err != nil {
					b.Fatal(err)
				}
				if err := conn.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
		if err := c.pool.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
