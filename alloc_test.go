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
	s := redistest.Start(t)
	for _, test := range []struct {
		name string
		pool rediscache.Pool
		get  float64
		set  float64
	}{
		{"warm pool", warmPool(t, s), 1, 0},
		{"redigo's pool", redigoPool(t, s), 4, 7},
	} {
		c, ctx, value := newCache(t, test.pool, rediscache.WithPrefix("p:")), t.Context(), make([]byte, 100)
		require.NoError(t, c.Set(ctx, "k", value, 0))
		require.LessOrEqual(t, testing.AllocsPerRun(500, func() {
			if _, err := c.Get(ctx, "k"); err != nil {
				t.Error(err)
			}
		}), test.get, "%s: get", test.name)
		require.LessOrEqual(t, testing.AllocsPerRun(500, func() {
			if err := c.Set(ctx, "k", value, time.Minute); err != nil {
				t.Error(err)
			}
		}), test.set, "%s: set", test.name)
	}
}
