package rediscache_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache"
)

// dialer is a Pool that dials a connection for each borrower.
type dialer struct{ address string }

func (d dialer) GetContext(ctx context.Context) (redis.Conn, error) {
	return redis.DialContext(ctx, "tcp", d.address)
}

func (dialer) Close() error { return nil }

// The error names every fault at once. NewPool does not wait for Redis.
func ExampleNewPool() {
	_, err := rediscache.NewPool("http://localhost:6379",
		rediscache.WithMinIdle(20), rediscache.WithMaxActive(10))
	fmt.Println(err)
	// Output:
	// rediscache: URL: scheme "http" is none of redis, rediss, valkey, valkeys, unix
	// rediscache: WithMinIdle: 20 is above the maximum of 10
}

// The operators of a server read in its log when Redis went down and why, and when it was
// up again.
func ExampleWithPoolObserver() {
	logger := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr { // what differs from run to run
			if a.Key == slog.TimeKey || a.Key == "error" || a.Key == "after" {
				return slog.Attr{}
			}
			return a
		},
	}))
	seen := make(chan rediscache.PoolEventKind, 100)
	observe := func(e rediscache.PoolEvent) {
		switch e.Kind {
		case rediscache.PoolDown:
			logger.Error("redis is down", "error", e.Err)
		case rediscache.PoolUp:
			logger.Info("redis is up", "after", e.After)
		case rediscache.PoolConnClosed:
			logger.Debug("connection closed", "reason", e.Reason)
		}
		seen <- e.Kind
	}
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithPoolObserver(observe))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	server.Close()
	for <-seen != rediscache.PoolDown {
	}
	if err := server.Restart(); err != nil {
		panic(err)
	}
	for <-seen != rediscache.PoolUp {
	}
	// Output:
	// level=ERROR msg="redis is down"
	// level=INFO msg="redis is up"
}

// A pool follows a server that moves, if something knows where it is.
func ExampleWithAddress() {
	first, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer first.Close()
	second, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer second.Close()
	_, _ = first.Set("name", "first"), second.Set("name", "second")
	var address atomic.Value // from service discovery
	address.Store(first.Addr())
	pool, err := rediscache.NewPool("redis://localhost",
		rediscache.WithAddress(func(context.Context) (string, error) { return address.Load().(string), nil }))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	for _, server := range []*miniredis.Miniredis{first, second} {
		address.Store(server.Addr())
		pool.Renew()
		name, err := cache.Get(context.Background(), "name")
		fmt.Println(string(name), err)
	}
	// Output:
	// first <nil>
	// second <nil>
}

// Each connection to a replica of Redis Cluster must say READONLY before it may read.
func ExampleWithOnConnect() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(),
		rediscache.WithOnConnect(func(_ context.Context, conn redis.Conn) error {
			_, err := conn.Do("READONLY")
			return err
		}))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	fmt.Println(pool.Ready(ctx) != nil) // miniredis does not know READONLY, so every dial fails
	// Output: true
}

// After a rotation of the password no connection stays that used the old one.
func ExampleWarmPool_Renew() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithMinIdle(2))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	ctx := context.Background()
	fmt.Println(pool.Ready(ctx), pool.Stats().Dials)
	pool.Renew()
	fmt.Println(pool.Ready(ctx), pool.Stats().Dials, pool.Stats().Closed.Broken)
	// Output:
	// <nil> 2
	// <nil> 4 2
}

// A process has one pool, with connections that are open before the first request.
func ExampleWarmPool() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithMinIdle(2))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	ctx := context.Background()
	if err := pool.Ready(ctx); err != nil {
		panic(err)
	}
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	fmt.Println(cache.Ping(ctx))
	fmt.Println(errors.Join(cache.Close(), pool.Shutdown(ctx))) // in this order
	// Output:
	// <nil>
	// <nil>
}

// A cache works on any type with the methods of Pool.
func ExamplePool() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	var pool rediscache.Pool = dialer{server.Addr()}
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	fmt.Println(cache.Ping(context.Background()))
	// Output:
	// <nil>
}

// A pool opens its minimum of connections before it is used.
func ExampleWarmPool_Ready() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithMinIdle(3))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := pool.Ready(ctx); err != nil {
		panic(err) // says why Redis did not answer
	}
	fmt.Println("idle:", pool.Stats().Idle)
	// Output:
	// idle: 3
}

// Get has no context, so it may wait forever. Prefer GetContext.
func ExampleWarmPool_Get() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	conn := pool.Get() // never nil
	defer conn.Close()
	fmt.Println(redis.String(conn.Do("PING"))) // also returns an error of Get
	// Output:
	// PONG <nil>
}

// A library that needs redigo's pool shares the connections of the WarmPool. A connection
// that fails TestOnBorrow is closed.
func ExampleWarmPool_Redigo() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	shared := pool.Redigo()
	shared.MaxActive, shared.Wait = 5, true // at most 5 connections for this library
	shared.TestOnBorrow = func(c redis.Conn, lastUsed time.Time) error {
		_, err := c.Do("PING")
		return err
	}
	conn := shared.Get()
	fmt.Println(redis.String(conn.Do("PING")))
	fmt.Println("in use:", pool.Stats().InUse)
	_ = conn.Close()
	_ = shared.Close() // leaves pool open
	fmt.Println("in use:", pool.Stats().InUse)
	// Output:
	// PONG <nil>
	// in use: 1
	// in use: 0
}

func ExampleWarmPool_Stats() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithMinIdle(2))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	if err := pool.Ready(context.Background()); err != nil {
		panic(err)
	}
	stats := pool.Stats()
	fmt.Println(stats.Idle, "idle,", stats.InUse, "in use,", stats.Waiting, "waiting,", stats.Dials, "dials")
	fmt.Printf("%+v\n", stats.Closed) // how many were closed, and why
	// Output:
	// 2 idle, 0 in use, 0 waiting, 2 dials
	// {Idle:0 Lifetime:0 Broken:0 State:0 Shutdown:0}
}

func ExampleWarmPool_Limits() {
	pool, err := rediscache.NewPool("redis://localhost", rediscache.WithMaxActive(20))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	fmt.Println(pool.Limits()) // the minimum of idle connections, the maximum of open ones
	// Output: 10 20
}

// Shutdown waits for borrowers, at most until its context ends.
func ExampleWarmPool_Shutdown() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	conn := pool.Get()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err = pool.Shutdown(ctx)
	fmt.Println(errors.Is(err, context.DeadlineExceeded), pool.Stats().Open)
	_, err = conn.Do("PING") // its connection was closed
	fmt.Println(err != nil)
	_ = conn.Close()
	// Output:
	// true 0
	// true
}

// Close does not wait for borrowers. In a server use Shutdown.
func ExampleWarmPool_Close() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	fmt.Println(pool.Close(), pool.Stats().Open)
	_, err = pool.GetContext(context.Background())
	fmt.Println(errors.Is(err, rediscache.ErrClosed))
	// Output:
	// <nil> 0
	// true
}

// If Redis is down, an error says what failed. It may hold the address: do not show it to
// clients.
func ExampleDialError() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	url := "redis://" + server.Addr()
	server.Close() // nothing listens there any more
	pool, err := rediscache.NewPool(url)
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	_, err = pool.GetContext(context.Background())
	var dial *rediscache.DialError
	fmt.Println(errors.As(err, &dial), errors.Is(err, rediscache.ErrUnavailable))
	// Output:
	// true true
}

// The pool opens another idle connection as soon as one is borrowed.
func ExampleWithMinIdle() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithMinIdle(2))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	conn := pool.Get()
	defer conn.Close()
	if err := pool.Ready(context.Background()); err != nil {
		panic(err)
	}
	stats := pool.Stats()
	fmt.Println(stats.InUse, "in use,", stats.Idle, "idle")
	// Output:
	// 1 in use, 2 idle
}

// At the maximum a borrower waits until its context ends.
func ExampleWithMaxActive() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithMinIdle(0), rediscache.WithMaxActive(1))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	conn := pool.Get()
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = pool.GetContext(ctx)
	fmt.Println(errors.Is(err, rediscache.ErrPoolExhausted), errors.Is(err, context.DeadlineExceeded))
	// Output:
	// true true
}

// After a burst, the pool closes the connections above its minimum.
func ExampleWithIdleTimeout() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithMinIdle(1), rediscache.WithIdleTimeout(time.Millisecond))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	burst := []redis.Conn{pool.Get(), pool.Get(), pool.Get()}
	for _, conn := range burst {
		_ = conn.Close()
	}
	for pool.Stats().Open > 1 {
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println("open:", pool.Stats().Open)
	// Output:
	// open: 1
}

// Connections are renewed, so that a password or an address that changed is used in time.
func ExampleWithMaxConnLifetime() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithMinIdle(1), rediscache.WithMaxConnLifetime(50*time.Millisecond))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	for pool.Stats().Closed.Lifetime == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println(pool.Ready(context.Background()))
	// Output:
	// <nil>
}

// Idle connections get a PING in the background, so that no firewall forgets them.
func ExampleWithHealthCheckAfter() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithMinIdle(1), rediscache.WithHealthCheckAfter(10*time.Millisecond))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	if err := pool.Ready(context.Background()); err != nil {
		panic(err)
	}
	before := server.CommandCount()
	for server.CommandCount() < before+2 {
		time.Sleep(10 * time.Millisecond)
	}
	fmt.Println(pool.Stats().Idle, "idle,", pool.Stats().Dials, "dial")
	// Output:
	// 1 idle, 1 dial
}

// The timeout bounds the whole dial, also that of WithDialFunc.
func ExampleWithDialTimeout() {
	pool, err := rediscache.NewPool("", rediscache.WithMinIdle(0), rediscache.WithDialTimeout(50*time.Millisecond),
		rediscache.WithDialFunc(func(ctx context.Context) (redis.Conn, error) {
			<-ctx.Done() // a server that does not answer
			return nil, ctx.Err()
		}))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	_, err = pool.GetContext(context.Background())
	fmt.Println(errors.Is(err, rediscache.ErrUnavailable))
	// Output:
	// true
}

// A command that blocks on the server needs a longer timeout of its own.
func ExampleWithReadTimeout() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithReadTimeout(50*time.Millisecond))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	conn := pool.Get()
	defer conn.Close()
	_, err = redis.DoWithTimeout(conn, time.Second, "BLPOP", "queue", "0.1")
	fmt.Println(err) // an empty queue
	_, err = conn.Do("BLPOP", "queue", "0.1")
	var timeout net.Error
	fmt.Println(errors.As(err, &timeout) && timeout.Timeout())
	// Output:
	// <nil>
	// true
}

// The timeout is for a server that does not read. It must be positive.
func ExampleWithWriteTimeout() {
	pool, err := rediscache.NewPool("redis://localhost:6379", rediscache.WithWriteTimeout(time.Second))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	_, err = rediscache.NewPool("redis://localhost:6379", rediscache.WithWriteTimeout(0))
	fmt.Println(err)
	// Output:
	// rediscache: WithWriteTimeout: 0s is not positive
}

// A container that pays for processor time may not want to poll.
func ExampleWithBusyPoll() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithBusyPoll(0))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	conn := pool.Get()
	defer conn.Close()
	fmt.Println(redis.String(conn.Do("PING")))
	// Output:
	// PONG <nil>
}

// CLIENT LIST then shows whose connection it is.
func ExampleWithClientName() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithClientName("shop"))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	conn := pool.Get()
	defer conn.Close()
	fmt.Println(redis.String(conn.Do("CLIENT", "GETNAME")))
	// Output:
	// shop <nil>
}

// Each dial asks for the password, so that passwords can rotate.
func ExampleWithCredentials() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	server.RequireUserAuth("app", "secret of today")
	credentials := func(context.Context) (user, password string, err error) {
		return "app", "secret of today", nil // from a file, or from a service
	}
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithCredentials(credentials))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	fmt.Println(pool.Ready(context.Background()))
	// Output:
	// <nil>
}

// A server whose certificate an authority of your own has signed.
func ExampleWithTLSConfig() {
	web := httptest.NewTLSServer(nil) // has a certificate for 127.0.0.1
	defer web.Close()
	server, err := miniredis.RunTLS(&tls.Config{Certificates: web.TLS.Certificates})
	if err != nil {
		panic(err)
	}
	defer server.Close()
	authorities := x509.NewCertPool()
	authorities.AddCert(web.Certificate())
	pool, err := rediscache.NewPool("rediss://"+server.Addr(),
		rediscache.WithTLSConfig(&tls.Config{RootCAs: authorities}))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	fmt.Println(pool.Ready(context.Background()))
	// Output:
	// <nil>
}

// Options of redigo override the URL.
func ExampleWithDialOptions() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr()+"/1",
		rediscache.WithDialOptions(redis.DialDatabase(2)))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	conn := pool.Get()
	defer conn.Close()
	_, err = conn.Do("SET", "a", "1")
	fmt.Println(server.DB(2).Keys(), err)
	// Output:
	// [a] <nil>
}

// A tunnel or a proxy dials in its own way. The pool ignores the URL.
func ExampleWithDialFunc() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("", rediscache.WithDialFunc(func(ctx context.Context) (redis.Conn, error) {
		return redis.DialContext(ctx, "tcp", server.Addr()) // your dial
	}))
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	fmt.Println(pool.Ready(context.Background()))
	// Output:
	// <nil>
}
