package main_test

import (
	"context"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
)

// pools are this library's pool and redigo's, of the same size.
var pools = []struct {
	name string
	open func(tb testing.TB, addr string) rediscache.Pool
}{
	{"rediscache", func(tb testing.TB, addr string) rediscache.Pool {
		tb.Helper()
		p, err := rediscache.NewPool("redis://" + addr)
		require.NoError(tb, err)
		require.NoError(tb, p.Ready(tb.Context()))
		return p
	}},
	{"redigo", func(_ testing.TB, addr string) rediscache.Pool {
		return &redis.Pool{
			MaxIdle: 50, MaxActive: 50, Wait: true,
			DialContext: func(ctx context.Context) (redis.Conn, error) { return redis.DialContext(ctx, "tcp", addr) },
		}
	}},
}

func lease(p rediscache.Pool) error {
	c, err := p.GetContext(context.Background())
	if err != nil {
		return err
	}
	return c.Close()
}

// BenchmarkPool is what it costs to borrow a connection and to give it back,
// with no command between: once by one goroutine, once by all CPUs.
func BenchmarkPool(b *testing.B) {
	for _, pool := range pools {
		b.Run(pool.name+"/one", func(b *testing.B) {
			p := pool.open(b, miniredis.RunT(b).Addr())
			defer func() { require.NoError(b, p.Close()) }()
			require.NoError(b, lease(p)) // dials, where it has not
			b.ReportAllocs()
			for b.Loop() {
				if err := lease(p); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(pool.name+"/parallel", func(b *testing.B) {
			p := pool.open(b, miniredis.RunT(b).Addr())
			defer func() { require.NoError(b, p.Close()) }()
			require.NoError(b, lease(p))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := lease(p); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func TestBothPoolsLend(t *testing.T) {
	for _, pool := range pools {
		p := pool.open(t, miniredis.RunT(t).Addr())
		require.NoError(t, lease(p), pool.name)
		require.NoError(t, p.Close(), pool.name)
	}
}
