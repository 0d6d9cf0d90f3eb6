package sentinel_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/sentinel"
)

// group is a master with replicas, and sentinels that watch it.
type group struct {
	servers   []*redistest.Server // the first is the master at first
	sentinels []*redistest.Server
}

func newGroup(t *testing.T) *group {
	t.Helper()
	g := &group{}
	for i := range 3 {
		s := redistest.Start(t, "--repl-diskless-sync-delay", "0")
		if i > 0 {
			host, port, err := net.SplitHostPort(g.servers[0].Addr)
			require.NoError(t, err)
			s.Do("REPLICAOF", host, port)
		}
		g.servers = append(g.servers, s)
	}
	for _, s := range g.servers[1:] {
		redistest.Eventually(t, func() bool {
			role, err := redis.Values(s.Admin().Do("ROLE"))
			return err == nil && string(role[3].([]byte)) == "connected"
		}, "it replicates")
	}
	for range 3 {
		s := redistest.StartSentinel(t)
		host, port, err := net.SplitHostPort(g.servers[0].Addr)
		require.NoError(t, err)
		s.Do("SENTINEL", "MONITOR", "m", host, port, 2)
		s.Do("SENTINEL", "SET", "m", "down-after-milliseconds", 1000)
		s.Do("SENTINEL", "SET", "m", "failover-timeout", 5000)
		g.sentinels = append(g.sentinels, s)
	}
	for _, s := range g.sentinels {
		redistest.Eventually(t, func() bool {
			m, err := redis.StringMap(s.Admin().Do("SENTINEL", "MASTER", "m"))
			return err == nil && m["num-other-sentinels"] == "2" && m["num-slaves"] == "2" && m["flags"] == "master"
		}, "the sentinels know each other")
	}
	return g
}

func (g *group) addrs() (addrs []string) {
	for _, s := range g.sentinels {
		addrs = append(addrs, s.Addr)
	}
	return addrs
}

func open(t *testing.T, addrs []string, opts ...sentinel.Option) (*sentinel.Pool, *rediscache.Cache) {
	t.Helper()
	pool, err := sentinel.New(addrs, "m", opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pool.Close()) })
	cache, err := rediscache.New(pool)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cache.Close()) })
	return pool, cache
}

func TestTheErrorNamesEveryFaultOfTheArguments(t *testing.T) {
	redistest.NoLeaks(t)
	_, err := sentinel.New(nil, "", sentinel.WithTimeout(0), sentinel.WithServer("http://x"))
	for _, part := range []string{"no addresses", "name of the master is empty", "WithTimeout: 0s is not positive", `scheme "http"`} {
		require.ErrorContains(t, err, part)
	}
	for _, addr := range []string{"redis://localhost", "", "a:b:c"} {
		_, err := sentinel.New([]string{addr}, "m")
		require.ErrorContains(t, err, "write a host and a port", "%q", addr)
	}
	_, err = sentinel.New([]string{"localhost"}, "m", sentinel.WithServer("redis://localhost",
		rediscache.WithDialFunc(func(context.Context) (redis.Conn, error) { return nil, errors.New("none") })))
	require.ErrorContains(t, err, "WithAddress")
}

func TestWithoutASentinelTheErrorSaysWhichOfThemFailedAndWhy(t *testing.T) {
	redistest.NoLeaks(t)
	dead, other := redistest.Nobody(t), redistest.Start(t) // which is no sentinel
	pool, err := sentinel.New([]string{dead, other.Addr}, "m",
		sentinel.WithServer("redis://localhost", rediscache.WithDialTimeout(300*time.Millisecond)))
	require.NoError(t, err)
	defer func() { require.NoError(t, pool.Close()) }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = pool.GetContext(ctx)
	require.ErrorIs(t, err, rediscache.ErrUnavailable)
	require.ErrorContains(t, err, "sentinel "+dead)
	require.ErrorContains(t, err, "sentinel "+other.Addr)
	require.Empty(t, pool.Master())
}

// traffic sets keys one after another, and remembers what was acknowledged.
type traffic struct {
	cache *rediscache.Cache
	wg    sync.WaitGroup
	stop  chan struct{}
	once  sync.Once // closes stop
	acked [64]atomic.Int64
	fails atomic.Int64
	last  atomic.Int64 // nanoseconds since began, of the last success
	began time.Time
}

func startTraffic(t *testing.T, cache *rediscache.Cache) *traffic {
	t.Helper()
	tr := &traffic{cache: cache, stop: make(chan struct{}), began: time.Now()}
	t.Cleanup(tr.end)
	for w := range 8 {
		tr.wg.Go(func() {
			for n := int64(1); ; n++ {
				for k := w; k < len(tr.acked); k += 8 {
					select {
					case <-tr.stop:
						return
					default:
					}
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					err := cache.Set(ctx, fmt.Sprint(k), []byte(fmt.Sprint(n)), rediscache.NoExpiry)
					cancel()
					if err != nil {
						tr.fails.Add(1)
						time.Sleep(5 * time.Millisecond) // the pace of a caller that fails
						continue
					}
					tr.acked[k].Store(n)
					tr.last.Store(int64(time.Since(tr.began)))
					time.Sleep(time.Millisecond) // the pace of a caller
				}
			}
		})
	}
	return tr
}

// end may be called more than once.
func (tr *traffic) end() {
	tr.once.Do(func() { close(tr.stop) })
	tr.wg.Wait()
}

// lost returns how many keys of a server hold less than was acknowledged.
func (tr *traffic) lost(t *testing.T, addr string) (lost int) {
	t.Helper()
	tr.end()
	conn, err := redis.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	for k := range tr.acked {
		held, err := redis.Int64(conn.Do("GET", k))
		require.NoError(t, err)
		if held < tr.acked[k].Load() {
			lost++
		}
	}
	return lost
}

func TestAPoolFollowsTheMaster(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	g := newGroup(t)
	pool, cache := open(t, g.addrs())
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, pool.Ready(soon))
	require.Equal(t, g.servers[0].Addr, pool.Master())
	require.NoError(t, cache.Set(t.Context(), "k", []byte("v"), 0))

	t.Run("a planned failover loses no acknowledged write", func(t *testing.T) {
		tr := startTraffic(t, cache)
		redistest.Eventually(t, func() bool { return tr.acked[63].Load() > 0 }, "each key was written")
		before := pool.Master()
		// Sentinel refuses until it has agreed with the others.
		redistest.Eventually(t, func() bool {
			_, err := g.sentinels[0].Admin().Do("SENTINEL", "FAILOVER", "m")
			return err == nil
		}, "the failover begins")
		redistest.Eventually(t, func() bool { return pool.Master() != before }, "the pool knows the new master")
		time.Sleep(8 * time.Second) // in which the old master still acknowledges what it is sent
		require.Zero(t, tr.lost(t, pool.Master()), "keys that lost an acknowledged write")
		t.Logf("%d of the writes failed", tr.fails.Load())
	})

	t.Run("one sentinel that hangs delays nothing", func(t *testing.T) {
		g.sentinels[0].Stop()
		defer g.sentinels[0].Cont()
		other, err := sentinel.New(g.addrs(), "m")
		require.NoError(t, err)
		defer func() { require.NoError(t, other.Close()) }()
		soon, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		require.NoError(t, other.Ready(soon))
		require.Equal(t, pool.Master(), other.Master())
	})

	for _, way := range []string{"hangs", "is killed"} {
		t.Run("writes go on within a second of the election when the master "+way, func(t *testing.T) {
			electAnother(t, g, pool, cache, way == "hangs")
		})
	}
	value, err := cache.Get(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, []byte("v"), value)
}

// electAnother hangs or kills the master, under traffic.
func electAnother(t *testing.T, g *group, pool *sentinel.Pool, cache *rediscache.Cache, hangs bool) {
	t.Helper()
	var master *redistest.Server
	for _, s := range g.servers {
		if s.Addr == pool.Master() {
			master = s
		}
	}
	require.NotNil(t, master)
	tr := startTraffic(t, cache)
	redistest.Eventually(t, func() bool { return tr.acked[63].Load() > 0 }, "each key was written")
	before := pool.Master()
	if hangs {
		master.Stop()
		defer master.Cont()
	} else {
		master.Kill()
	}
	var elected time.Time
	redistest.Eventually(t, func() bool {
		m, err := redis.StringMap(g.sentinels[1].Admin().Do("SENTINEL", "MASTER", "m"))
		elected = time.Now()
		return err == nil && net.JoinHostPort(m["ip"], m["port"]) != before
	}, "a new master is elected")
	redistest.Eventually(t, func() bool { return tr.last.Load() > int64(elected.Sub(tr.began)) }, "a write succeeds")
	t.Logf("the first write %v after the election, %d failed", time.Since(elected), tr.fails.Load())
	tr.end()
	require.NotEqual(t, before, pool.Master())
}

func TestTheSentinelsMayHaveAPasswordAndTLSOfTheirOwn(t *testing.T) {
	redistest.NoLeaks(t)
	certs := redistest.NewCerts(t)
	master := redistest.Start(t, "--requirepass", "of-the-server")
	host, port, err := net.SplitHostPort(master.Addr)
	require.NoError(t, err)
	s := redistest.StartSentinel(t, "--requirepass", "of-the-sentinel")
	s.Do("SENTINEL", "MONITOR", "m", host, port, 1)
	front := redistest.NewTLSFront(t, s.Addr, certs.ServerConfig())
	server := sentinel.WithServer("redis://:of-the-server@localhost", rediscache.WithMinIdle(2))
	secret, tls := sentinel.WithCredentials("", "of-the-sentinel"), sentinel.WithTLSConfig(certs.ClientConfig())
	pool, cache := open(t, []string{front}, server, secret, tls)
	soon, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	require.NoError(t, pool.Ready(soon))
	require.NoError(t, cache.Set(t.Context(), "k", nil, 0))
	for _, opts := range [][]sentinel.Option{{server, secret}, {server, tls}, {server, tls, sentinel.WithCredentials("", "wrong")}} {
		p, err := sentinel.New([]string{front}, "m", opts...)
		require.NoError(t, err)
		soon, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err = p.Ready(soon)
		cancel()
		require.Error(t, err)
		require.NotContains(t, err.Error(), "wrong")
		require.NoError(t, p.Close())
	}
}
