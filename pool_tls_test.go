package rediscache_test

import (
	"cmp"
	"testing"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// startTLS starts a redis-server that is reached with TLS and without.
func startTLS(t testing.TB, args ...string) *redistest.Server {
	t.Helper()
	certs := redistest.NewCerts(t)
	return redistest.StartTLS(t, certs, certs.Server, args...)
}

// poolAt makes a pool for each scheme, of s or, if addr is not empty, of what is there.
var poolAt = map[string]func(
	t testing.TB, s *redistest.Server, addr string, opts ...rediscache.PoolOption) *rediscache.WarmPool{
	"redis": func(t testing.TB, s *redistest.Server, addr string, opts ...rediscache.PoolOption) *rediscache.WarmPool {
		return newPool(t, "redis://"+cmp.Or(addr, s.Addr), opts...)
	},
	"rediss": func(t testing.TB, s *redistest.Server, addr string, opts ...rediscache.PoolOption) *rediscache.WarmPool {
		return newPool(t, "rediss://"+cmp.Or(addr, s.TLSAddr), append(opts, rediscache.WithTLSConfig(s.Certs.ClientConfig()))...)
	},
}
