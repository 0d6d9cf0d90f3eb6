package rediscache_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

func TestAViewMustKnowHowLongItsValuesLive(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		ctx, pool := t.Context(), newPool(t, s.URL())
		for name, c := range map[string]struct {
			opts []rediscache.Option
			ttl  time.Duration
			want time.Duration // zero: refused
		}{
			"neither says":          {nil, rediscache.DefaultTTL, 0},
			"the cache says":        {[]rediscache.Option{rediscache.WithTTL(time.Hour)}, rediscache.DefaultTTL, time.Hour},
			"the cache says never":  {[]rediscache.Option{rediscache.WithTTL(rediscache.NoExpiry)}, rediscache.DefaultTTL, rediscache.NoExpiry},
			"the policy says":       {nil, time.Hour, time.Hour},
			"the policy says never": {nil, rediscache.NoExpiry, rediscache.NoExpiry},
			"both say":              {[]rediscache.Option{rediscache.WithTTL(time.Hour)}, time.Minute, time.Minute},
		} {
			t.Run(name, func(t *testing.T) {
				cache, err := rediscache.New(pool, append(c.opts, rediscache.WithPrefix(name+":"))...)
				require.NoError(t, err)
				defer cache.Close()
				for _, cache := range []*rediscache.Cache{cache, cache.Sub("sub:")} {
					v, err := rediscache.Of(cache, rediscache.JSON[int](), rediscache.Policy{TTL: c.ttl, Lease: time.Second})
					if c.want == 0 {
						require.EqualError(t, err, "rediscache: Policy.TTL: it is zero and the cache has no WithTTL:"+
							" write a time in either, or NoExpiry for values that never expire")
						continue
					}
					require.NoError(t, err)
					require.NoError(t, v.Set(ctx, "set", 1))
					_, err = v.GetOrLoad(ctx, "loaded", returns(1))
					require.NoError(t, err)
					for _, key := range []string{"set", "loaded"} {
						left, err := cache.TTL(ctx, key)
						require.NoError(t, err)
						if c.want == rediscache.NoExpiry {
							require.Equal(t, rediscache.NoExpiry, left)
						} else {
							require.InDelta(t, c.want, left, float64(30*time.Second))
						}
					}
				}
			})
		}
	})
}

func TestWithoutWithTTLBytesDoNotExpire(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		c, err := rediscache.New(newPool(t, s.URL()))
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.Set(t.Context(), "k", nil, rediscache.DefaultTTL))
		left, err := c.TTL(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, rediscache.NoExpiry, left)
	})
}
