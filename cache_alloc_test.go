//go:build !race

package rediscache_test

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

// TestAllocations is not for the race detector, which allocates. Each way of a call allocates the value of
// a GET, and a copy of a large value for a SET; through redigo's pool also what redigo needs. During a large
// call the clock of the pipeline may tick, and may be started again.
func TestAllocations(t *testing.T) {
	// The collector empties the pools of calls. With a heap of 4 MiB it runs at every third large value,
	// with 64 MiB at every sixtieth.
	heap := bytes.Repeat([]byte("x"), 64<<20)
	defer runtime.KeepAlive(heap)
	certs := redistest.NewCerts(t)
	s := redistest.StartTLS(t, certs, certs.Server)
	const shared, own = rediscache.DefaultPipelineConns, 0
	tests := []struct {
		name  string
		pool  rediscache.Pool
		conns int
		size  int
		get   float64
		set   float64
	}{
		{"warm pool", systest.WarmPool(t, s), shared, 100, 1, 0},
		{"warm pool, a connection of its own", systest.WarmPool(t, s), own, 100, 1, 0},
		{"warm pool, large", systest.WarmPool(t, s), shared, 1 << 20, 2, 2},
		{"warm pool with TLS", systest.TLSPool(t, s), shared, 100, 3, 2}, // 2 and 1, as crypto/tls allocates 24 bytes for a record; now and then a reply is two
		{"warm pool with TLS, a connection of its own", systest.TLSPool(t, s), own, 100, 3, 2},
		{"redigo's pool", systest.RedigoPool(t, s), shared, 100, 4, 7},
		{"redigo's pool, a connection of its own", systest.RedigoPool(t, s), own, 100, 5, 8},
		{"redigo's pool, large", systest.RedigoPool(t, s), shared, 1 << 20, 6, 10},
	}
	for _, test := range tests {
		if warm, ok := test.pool.(*rediscache.WarmPool); ok {
			requireReady(t, warm) // dials allocate too
		}
	}
	for _, test := range tests {
		opts := []rediscache.Option{rediscache.WithPrefix("p:"), rediscache.WithPipelineConns(test.conns)}
		c, ctx, value := newCache(t, test.pool, opts...), t.Context(), make([]byte, test.size)
		require.NoError(t, c.Set(ctx, "k", value, 0))
		_, err := c.Get(ctx, "k") // after which it is known that the value is large
		require.NoError(t, err)
		require.LessOrEqual(t, leastAllocs(func() {
			if _, err := c.Get(ctx, "k"); err != nil {
				t.Error(err)
			}
		}), test.get, "%s: get", test.name)
		require.LessOrEqual(t, leastAllocs(func() {
			if err := c.Set(ctx, "k", value, time.Minute); err != nil {
				t.Error(err)
			}
		}), test.set, "%s: set", test.name)
	}
}

// TestANearHitAllocatesTheValue measures hits that the near cache answers.
func TestANearHitAllocatesTheValue(t *testing.T) {
	c, ctx := nearWith(t, 1), t.Context()
	require.LessOrEqual(t, leastAllocs(func() {
		if _, err := c.Get(ctx, "0"); err != nil {
			t.Error(err)
		}
	}), 1.0)
	require.Positive(t, c.Stats().Near.Hits)
}

// leastAllocs returns the allocations of a run of f: the least of three measurements, because a garbage
// collection empties the pools of buffers, and a busy machine has more of them in one measurement.
func leastAllocs(f func()) float64 {
	least := testing.AllocsPerRun(200, f)
	for range 2 {
		least = min(least, testing.AllocsPerRun(200, f))
	}
	return least
}
