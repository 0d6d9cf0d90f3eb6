// Package systest holds, in its tests, what tests the whole system from outside: faults of the network and
// of the server, hostile servers, foreign pools, leases between processes, and security. The package itself
// has what these tests and those of the root share.
//
// Tests that take long are skipped by a plain go test (see [redistest.Long]), and run with
// REDISCACHE_REQUIRE_SERVER set, as .ci/run sets it, or with -soak:
//
//	REDISCACHE_REQUIRE_SERVER=1 go test ./...
//	go test -run TestFault -v -soak 10s ./internal/systest
package systest

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/fill"
	"github.com/rediscache/rediscache/internal/redistest"
)

// Soak is how long the tests under load last, by the flag -soak. Zero is a second or two.
var Soak time.Duration

func init() { flag.DurationVar(&Soak, "soak", 0, "how long the tests under load last") }

// LeaseKey returns the Redis key of the lease of a cache key.
func LeaseKey(prefix, key string) string { return fill.LeaseName(prefix, fill.StoredName(prefix, key)) }

// InLoad is the function in which a caller waits for a load, for [redistest.Waiting].
const InLoad = "flight.Ticket[...].Wait"

// OwnPool is a pool as a user might write it: a connection for each borrower.
type OwnPool struct{ Addr string }

// GetContext dials.
func (p OwnPool) GetContext(ctx context.Context) (redis.Conn, error) {
	return redis.DialContext(ctx, "tcp", p.Addr)
}

// Close does nothing: the borrowers close their connections.
func (OwnPool) Close() error { return nil }

// Pools are the kinds of pool, and of cache on a pool, that keep the same contract.
var Pools = map[string]struct {
	Open func(t *testing.T, s *redistest.Server) rediscache.Pool
	Opts []rediscache.Option
}{
	"warm pool": {Open: WarmPool},
	"warm pool, a connection a command": {
		Open: WarmPool, Opts: []rediscache.Option{rediscache.WithPipelineConns(0)},
	},
	"redigo's pool":               {Open: RedigoPool},
	"own pool":                    {Open: userPool},
	"own pool, shared":            {Open: userPool, Opts: []rediscache.Option{rediscache.WithPipelineConns(1)}},
	"warm pool of one connection": {Open: onePool},
	"warm pool with TLS":          {Open: TLSPool},
	"warm pool with TLS, a connection a command": {
		Open: TLSPool, Opts: []rediscache.Option{rediscache.WithPipelineConns(0)},
	},
}

// WarmPool makes a pool of the library with default options.
func WarmPool(t *testing.T, s *redistest.Server) rediscache.Pool { return NewPool(t, s.URL()) }

func onePool(t *testing.T, s *redistest.Server) rediscache.Pool {
	return NewPool(t, s.URL(), rediscache.WithMinIdle(1), rediscache.WithMaxActive(1))
}

// TLSPool reaches s through the port of s with TLS, or a front.
func TLSPool(t *testing.T, s *redistest.Server) rediscache.Pool {
	certs, addr := s.Certs, s.TLSAddr
	if addr == "" {
		certs = redistest.NewCerts(t)
		addr = redistest.NewTLSFront(t, s.Addr, certs.ServerConfig())
	}
	return NewPool(t, "rediss://"+addr, rediscache.WithTLSConfig(certs.ClientConfig()))
}

func userPool(_ *testing.T, s *redistest.Server) rediscache.Pool { return OwnPool{s.Addr} }

// RedigoPool makes a pool of redigo with room for ten connections.
func RedigoPool(t *testing.T, s *redistest.Server) rediscache.Pool {
	p := &redis.Pool{
		MaxIdle: 10, MaxActive: 10, Wait: true,
		DialContext: func(ctx context.Context) (redis.Conn, error) { return redis.DialContext(ctx, "tcp", s.Addr) },
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// NewPool makes a pool that is closed when the test ends.
func NewPool(t testing.TB, url string, opts ...rediscache.PoolOption) *rediscache.WarmPool {
	t.Helper()
	p, err := rediscache.NewPool(url, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

// NewCache makes a cache that is closed when the test ends. Its own TTL is NoExpiry unless opts set
// another, so that views of it take a Policy without a TTL.
func NewCache(t testing.TB, p rediscache.Pool, opts ...rediscache.Option) *rediscache.Cache {
	t.Helper()
	c, err := rediscache.New(p, append([]rediscache.Option{rediscache.WithTTL(rediscache.NoExpiry)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// Unhurried is an option for tests that do not claim how long a call takes: a busy machine may need more
// time than a call has by default.
var Unhurried = rediscache.WithTimeout(20 * time.Second)

// PoolServer starts a redis-server for a test that ends with no goroutine left.
func PoolServer(t testing.TB, args ...string) *redistest.Server {
	t.Helper()
	redistest.NoLeaks(t)
	return redistest.Start(t, args...)
}

// StartPool starts a pool whose connections have the name of the test. When the test is over the
// pool has none open, and the server none of that name.
func StartPool(t testing.TB, s *redistest.Server, opts ...rediscache.PoolOption) *rediscache.WarmPool {
	t.Helper()
	return StartPoolAt(t, s, s.URL(), opts...)
}

// StartPoolAt is StartPool with a URL that reaches s.
func StartPoolAt(t testing.TB, s *redistest.Server, url string, opts ...rediscache.PoolOption) *rediscache.WarmPool {
	t.Helper()
	p, err := rediscache.NewPool(url, append([]rediscache.PoolOption{rediscache.WithClientName(t.Name())}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, p.Close())
		require.Zero(t, p.Stats().Open)
		EventuallyClients(t, s, 0)
	})
	return p
}

// Sizes are the options that most tests set.
func Sizes(minIdle, maxActive int, more ...rediscache.PoolOption) []rediscache.PoolOption {
	return append(more, rediscache.WithMinIdle(minIdle), rediscache.WithMaxActive(maxActive))
}

// EventuallyClients waits until the server counts n connections that have the name of the test.
func EventuallyClients(t testing.TB, s *redistest.Server, n int) {
	t.Helper()
	redistest.Eventually(t, func() bool { return len(s.Clients(t.Name())) == n }, "%d clients", n)
}

// ClientIDs returns the server's names for the connections of the test, in order.
func ClientIDs(t testing.TB, s *redistest.Server) (ids []int64) {
	t.Helper()
	for _, c := range s.Clients(t.Name()) {
		ids = append(ids, c.ID)
	}
	slices.Sort(ids)
	return ids
}

// RequireReady fails the test if the pool has not its floor within twenty seconds.
func RequireReady(t testing.TB, p *rediscache.WarmPool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	require.NoError(t, p.Ready(ctx))
}

// BorrowOne borrows a connection. It fails the test if there is no connection within twenty seconds.
func BorrowOne(t testing.TB, p *rediscache.WarmPool) redis.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := p.GetContext(ctx)
	require.NoError(t, err)
	return conn
}

// BorrowMany borrows n connections.
func BorrowMany(t testing.TB, p *rediscache.WarmPool, n int) []redis.Conn {
	t.Helper()
	conns := make([]redis.Conn, n)
	for i := range conns {
		conns[i] = BorrowOne(t, p)
	}
	return conns
}

// GiveBack returns connections to their pools.
func GiveBack(t testing.TB, conns ...redis.Conn) {
	t.Helper()
	for _, conn := range conns {
		require.NoError(t, conn.Close())
	}
}

// RequireSimultaneous borrows n connections at once and uses each: no slot was lost.
func RequireSimultaneous(t testing.TB, p *rediscache.WarmPool, n int) {
	t.Helper()
	conns := BorrowMany(t, p, n)
	for _, conn := range conns {
		_, err := conn.Do("PING")
		require.NoError(t, err)
	}
	GiveBack(t, conns...)
}

// LetRest waits until the connections that were handed back are looked at again before they are lent,
// which they are not within a millisecond of the last look.
func LetRest(t testing.TB) {
	t.Helper()
	since := time.Now()
	redistest.Eventually(t, func() bool { return time.Since(since) > 2*time.Millisecond }, "two milliseconds")
}

// Ping borrows a connection, uses it and gives it back.
func Ping(ctx context.Context, p *rediscache.WarmPool) error {
	conn, err := p.GetContext(ctx)
	if err != nil {
		return err
	}
	_, err = redis.DoContext(conn, ctx, "PING")
	return errors.Join(err, conn.Close())
}

// StartTLS starts a redis-server that is reached with TLS and without.
func StartTLS(t testing.TB, args ...string) *redistest.Server {
	t.Helper()
	certs := redistest.NewCerts(t)
	return redistest.StartTLS(t, certs, certs.Server, args...)
}

// PoolAt makes a pool for each scheme, of s or, if addr is not empty, of the server there.
var PoolAt = map[string]func(
	t testing.TB, s *redistest.Server, addr string, opts ...rediscache.PoolOption,
) *rediscache.WarmPool{
	"redis": func(t testing.TB, s *redistest.Server, addr string, opts ...rediscache.PoolOption) *rediscache.WarmPool {
		t.Helper()
		return NewPool(t, "redis://"+cmp.Or(addr, s.Addr), opts...)
	},
	"rediss": func(t testing.TB, s *redistest.Server, addr string, opts ...rediscache.PoolOption) *rediscache.WarmPool {
		t.Helper()
		return NewPool(t, "rediss://"+cmp.Or(addr, s.TLSAddr), append(opts, rediscache.WithTLSConfig(s.Certs.ClientConfig()))...)
	},
}

// RequireDown wants the error of a pool that cannot reach its server.
func RequireDown(t testing.TB, err error) {
	t.Helper()
	require.ErrorIs(t, err, rediscache.ErrUnavailable)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	var de *rediscache.DialError
	require.ErrorAs(t, err, &de)
}

// NewView makes a view of c.
func NewView[V any](
	t testing.TB, c *rediscache.Cache, codec rediscache.Codec[V], p rediscache.Policy,
) *rediscache.View[V] {
	t.Helper()
	v, err := rediscache.Of(c, codec, p)
	require.NoError(t, err)
	return v
}

// Never is a load that must not be called.
func Never[V any](t testing.TB) func(context.Context) (V, error) {
	t.Helper()
	return func(context.Context) (value V, err error) {
		t.Error("it was loaded")
		return value, err
	}
}

// Returns returns a load that returns value.
func Returns[V any](value V) func(context.Context) (V, error) {
	return func(context.Context) (V, error) { return value, nil }
}

// Fails returns a load that returns err.
func Fails[V any](err error) func(context.Context) (V, error) {
	return func(context.Context) (value V, _ error) { return value, err }
}

// ErrDatabase is the error of a load.
var ErrDatabase = errors.New("the database is down")

// Counting counts the values that it decodes.
type Counting struct {
	rediscache.Codec[int]
	Decoded atomic.Int64
}

// Decode decodes and counts.
func (c *Counting) Decode(data []byte) (int, error) {
	c.Decoded.Add(1)
	return c.Codec.Decode(data)
}

// Process stands for a process of its own: a pool, a cache and a view of its own.
func Process(t testing.TB, s *redistest.Server, p rediscache.Policy) (*rediscache.View[int], *rediscache.Cache) {
	t.Helper()
	c := NewCache(t, NewPool(t, s.URL(), rediscache.WithMinIdle(2)), Unhurried)
	return NewView(t, c, rediscache.JSON[int](), p), c
}

// Second returns the error of a call that also returns a value.
func Second[V any](_ V, err error) error { return err }

// ErrorsOf is an observer that collects errors, because a load goes on without Redis.
type ErrorsOf struct {
	mu   sync.Mutex // guards errs
	errs []error
}

// Observe keeps the error of e.
func (o *ErrorsOf) Observe(_ context.Context, e rediscache.Event) {
	if e.Outcome == rediscache.OutcomeError {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.errs = append(o.errs, e.Err)
	}
}

// All returns the errors since the last Take, each by itself.
func (o *ErrorsOf) All() []error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.errs)
}

// Take returns the errors since the last Take.
func (o *ErrorsOf) Take() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	err := errors.Join(o.errs...)
	o.errs = nil
	return err
}

// Secret is a password that no message may show.
const Secret = "s3cret-pa55word"

// Protocols are the versions of TLS that are spoken, under Redis's names.
var Protocols = map[string]uint16{"TLSv1.2": tls.VersionTLS12, "TLSv1.3": tls.VersionTLS13}

// IsA requires an error of that type in the tree of err.
func IsA[E error](t *testing.T, err error) {
	t.Helper()
	var e E
	require.ErrorAs(t, err, &e)
}
