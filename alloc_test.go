//go:build !race

package rediscache_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

const raceEnabled = false

// TestAllocations is not for the race detector, which allocates.
func TestAllocations(t *testing.T) {
	certs := redistest.NewCerts(t)
	s := redistest.StartTLS(t, certs, certs.Server)
	warm, withTLS := warmPool(t, s), tlsPool(t, s)
	for _, p := range []rediscache.Pool{warm, withTLS} {
		requireReady(t, p.(*rediscache.WarmPool)) // dials allocate too
	}
	for _, test := range []struct {
		name string
		pool rediscache.Pool
		get  float64
		set  float64
	}{
		{"warm pool", warm, 1, 0},
		{"warm pool with TLS", withTLS, 2, 1}, // crypto/tls allocates 24 bytes for a record
		{"redigo's pool", redigoPool(t, s), 4, 7},
	} {
		get, set := allocations(t, test.pool)
		require.LessOrEqual(t, get, test.get, "%s: get", test.name)
		require.LessOrEqual(t, set, test.set, "%s: set", test.name)
	}
	get, set := allocations(t, warm, rediscache.WithPipelineConns(0))
	getTLS, setTLS := allocations(t, withTLS, rediscache.WithPipelineConns(0))
	require.LessOrEqual(t, getTLS, get+2, "a connection a command, with TLS: get")
	require.LessOrEqual(t, setTLS, set+2, "a connection a command, with TLS: set")
}

func allocations(t *testing.T, pool rediscache.Pool, opts ...rediscache.Option) (get, set float64) {
	c, ctx, value := newCache(t, pool, append(opts, rediscache.WithPrefix("p:"))...), t.Context(), make([]byte, 100)
	require.NoError(t, c.Set(ctx, "k", value, 0))
	get = testing.AllocsPerRun(500, func() {
		if _, err := c.Get(ctx, "k"); err != nil {
			t.Error(err)
		}
	})
	set = testing.AllocsPerRun(500, func() {
		if err := c.Set(ctx, "k", value, time.Minute); err != nil {
			t.Error(err)
		}
	})
	return get, set
}
