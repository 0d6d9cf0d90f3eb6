package rediscache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/warm"
)

// Pool is the connection pool of a [Cache]. GetContext lends a connection, and the
// cache closes the connection to return it. [*WarmPool] and redigo's *redis.Pool
// implement Pool. GetContext must return when ctx is done. [WithTimeout] cancels ctx
// but sets no deadline, so watch Done, not Deadline. If the pool or a connection
// panics, the cache returns an error that matches [ErrUnavailable].
//
// A connection should implement redis.ConnWithTimeout, as those of redigo do.
// Otherwise the cache cannot make the pool close a connection whose replies do not
// match its commands. With [WithTimeout] the cache closes a connection on which
// nothing arrived for twice that time. Without it, only the timeouts of the connection
// bound a read, and a connection of redigo has none unless it is dialled with
// redis.DialReadTimeout. Use redis.DialWriteTimeout too: [Cache.Close] waits for a
// write to a server that does not read.
//
// A cache shares a pool other than a WarmPool fairly with other borrowers. It keeps a
// connection for at most half a second. While the pool has no other connection to
// lend, the cache returns its connection within about 20 ms, so that others get it,
// and while it holds a connection it does not borrow the last one of the pool. It does
// not fail because of connections that it holds itself. If a pool returns
// redis.ErrPoolExhausted instead of waiting, the cache retries for 100 ms before it
// returns [ErrPoolExhausted]. The cache knows how many connections a *redis.Pool has
// left; for any other pool it assumes none.
//
// A pool that is made of a WarmPool may have a method Unwrap() *WarmPool. Then the cache
// borrows from the WarmPool itself, and has all that it has on one.
//
// Set MaxIdle of a *redis.Pool, or it dials a new connection for each connection that
// is returned. Set TestOnBorrow, or reads fail while it lends connections that the server
// has closed.
type Pool interface {
	GetContext(ctx context.Context) (redis.Conn, error)
	Close() error
}

var (
	_ Pool = (*WarmPool)(nil)
	_ Pool = (*redis.Pool)(nil)
)

// WarmPool is a pool of connections to one Redis server. It keeps at least
// [WithMinIdle] idle connections open, and never has more than [WithMaxActive] open.
// If all connections are in use, borrowers wait in the order in which they came. All
// methods are safe for concurrent use. A borrowed connection is for one goroutine, as
// those of redigo are.
//
// A borrowed connection comes from a redigo pool, which ends a MULTI or WATCH when the
// connection is returned. The WarmPool lends a connection again only if its state is
// that of a new one. It closes the connection if the server refused to end the MULTI
// or WATCH, or answered a command in it with an error. It also closes the connection
// if the borrower ran SUBSCRIBE, AUTH, HELLO, CLIENT, MONITOR or the like, or selected
// another database than that of the pool. So no borrower gets the state or the replies
// of another. To make the pool close a connection, send QUIT on it before you return
// it: c.Send("QUIT") costs no round trip and also works through another redigo pool.
//
// If a server answers that it cannot serve (READONLY, MASTERDOWN, LOADING, NOAUTH, …),
// the pool replaces every connection that was dialled before, with at most 20 dials a
// second. So after a failover that closes no connection, behind a DNS name or a load
// balancer, writes work again within a second of its end. The pool lends the old
// connections until it has a new one.
type WarmPool struct {
	store                     *warm.Store
	redigo                    *redis.Pool // keeps no connection: each Close returns it to the store
	readTimeout, writeTimeout time.Duration
}

// NewPool starts a pool, which dials [WithMinIdle] connections in the background.
// [Ready] waits for them. Redis need not be up. The URL is
//
//	redis://[[user]:password@]host[:port][/database]   also valkey://
//	rediss://…                                         also valkeys://, with TLS
//	unix://[[user]:password@]/path[?db=database]
//
// with the defaults port 6379, host localhost and database 0. It names one server: a
// list of hosts is an error. A user without a colon is the password, as for redis-cli.
// A user without a password (user:@host) is an error unless [WithCredentials] is set,
// whose function then returns both. Escape special characters in a user, a password
// and a path. The error names every fault of the URL and the options, with a
// correction, and holds no password. The caller must call Shutdown or Close.
//
// [Ready]: https://pkg.go.dev/github.com/rediscache/rediscache#WarmPool.Ready
func NewPool(url string, opts ...PoolOption) (*WarmPool, error) {
	cfg, err := newPoolConfig(opts)
	dial, transport, database, readTimeout := dialHidden(cfg.dial), warm.Unknown, unknownDatabase, cfg.readTimeout
	if cfg.dial == nil {
		t, urlErr := parseURL(url, cfg.credentials != nil)
		err = errors.Join(urlErr, t.refuse(&cfg), err)
		g := t.greeting(cfg.dialOptions)
		if database = g.database; g.named {
			cfg.clientName = "" // a dial option sets another name
		}
		if !g.timeouts {
			readTimeout = 0 // the connection's own timeout, because a dial option may override cfg's
		}
		dial, transport = t.dialer(&cfg, g.timeouts), t.transport(&cfg)
	}
	if err != nil {
		return nil, err
	}
	p := &WarmPool{readTimeout: readTimeout, writeTimeout: cfg.writeTimeout, store: warm.New(warm.Config{
		MinIdle:          cfg.minIdle,
		MaxActive:        cfg.maxActive,
		IdleTimeout:      cfg.idleTimeout,
		MaxLifetime:      cfg.maxConnLifetime,
		HealthCheckAfter: cfg.healthCheckAfter,
		DialTimeout:      cfg.dialTimeout,
		ReadTimeout:      readTimeout,
		Transport:        transport,
		Database:         database,
		Dial:             dial,
		OnConnect:        cfg.onConnect,
		Observe:          poolObserver(cfg.observe),
	})}
	p.redigo = &redis.Pool{DialContext: p.acquire}
	return p, nil
}

// acquire borrows a connection of the store.
func (p *WarmPool) acquire(ctx context.Context) (redis.Conn, error) {
	c, err := p.store.Acquire(ctx)
	if err != nil {
		return nil, exportDialError(err)
	}
	return c, nil
}

// GetContext borrows a connection. Close on the connection returns it. If all
// connections are in use, GetContext waits until ctx is done. Then the error matches
// the context's error, and also [ErrPoolExhausted] if there was no room for another
// connection, or else [ErrUnavailable] if the last dial failed or the server answered
// that it cannot serve. An error that matches ErrPoolExhausted also matches
// redis.ErrPoolExhausted. If Redis is down and no connection is open, GetContext returns
// a [*DialError] at once; after Shutdown or Close it returns [ErrClosed]. If ctx is
// already done, GetContext returns its error and borrows nothing.
func (p *WarmPool) GetContext(ctx context.Context) (redis.Conn, error) {
	return p.redigo.GetContext(ctx)
}

// Get borrows a connection without a context, so it may wait forever. The connection
// is never nil: after an error, its Err and its first command return that error.
func (p *WarmPool) Get() redis.Conn { return p.redigo.Get() }

// Redigo returns a new redigo pool that lends the connections of p, for a library that
// needs a *redis.Pool. Its MaxActive and Wait bound what it lends; zero allows all
// connections of p. They count as in use in the stats of p. Close on the redigo pool
// leaves p open.
//
// Set the fields of the redigo pool before its first use. TestOnBorrow and
// TestOnBorrowContext test every connection before it is lent; lastUsed is exact to a
// quarter of a second. A connection that fails the test is closed, and the next one is
// tested. If a connection that was dialled during the call fails, its error is
// returned. Leave MaxIdle, IdleTimeout and MaxConnLifetime zero: for p, a connection
// that the redigo pool keeps idle is in use.
func (p *WarmPool) Redigo() *redis.Pool {
	r := new(redis.Pool)
	r.DialContext = func(ctx context.Context) (redis.Conn, error) {
		if r.TestOnBorrow == nil && r.TestOnBorrowContext == nil {
			return p.acquire(ctx)
		}
		return p.acquireTested(ctx, r)
	}
	return r
}

// acquireTested lends a connection that passes the tests of r. The tests run on a
// redigo pool of this one connection, which undoes the state that they leave.
func (p *WarmPool) acquireTested(ctx context.Context, r *redis.Pool) (redis.Conn, error) {
	var lent redis.Conn
	_, err := p.store.AcquireTested(ctx, func(c *warm.Conn) error {
		one := &redis.Pool{DialContext: func(context.Context) (redis.Conn, error) { return c, nil }}
		lent = one.Get()
		if r.TestOnBorrow != nil {
			if err := r.TestOnBorrow(lent, c.LastUsed()); err != nil {
				return fmt.Errorf("rediscache: TestOnBorrow: %w", err)
			}
		}
		if r.TestOnBorrowContext != nil {
			if err := r.TestOnBorrowContext(ctx, lent, c.LastUsed()); err != nil {
				return fmt.Errorf("rediscache: TestOnBorrowContext: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, exportDialError(err)
	}
	return lent, nil
}

// Ready waits until [WithMinIdle] connections are idle, or as many as [WithMaxActive]
// leaves beside those in use. Each has answered a PING. With a minimum of zero Ready
// returns at once. If ctx ends first, the error matches the context's error, and wraps
// the [*DialError] of the last dial if that failed.
func (p *WarmPool) Ready(ctx context.Context) error {
	failure, err := p.store.Ready(ctx)
	if failure != nil {
		return fmt.Errorf("%w (%w)", &DialError{Err: failure}, ctx.Err())
	}
	return err
}

// PoolStats are the counts of a [WarmPool]. The first four are current numbers, the
// others count since the pool was made.
type PoolStats struct {
	Open    int // open connections, including those being dialled or closed
	Idle    int // idle connections
	InUse   int // borrowed connections
	Waiting int // borrowers that wait

	Dials        int64         // dials that began
	DialFailures int64         // dials that failed
	Waits        int64         // borrowers that got a connection after a wait
	WaitTime     time.Duration // total time that the borrowers in Waits waited
	Timeouts     int64         // borrowers whose context ended during the wait

	Closed PoolClosed
}

// PoolClosed counts the connections that a [WarmPool] closed, by reason.
type PoolClosed struct {
	Idle     int64 // idle for the idle timeout, above the minimum
	Lifetime int64 // older than the maximum lifetime
	Broken   int64 // failed, found dead, cut by a context, or replaced because the server cannot serve
	State    int64 // returned in another state than that of a new connection
	Shutdown int64 // by Shutdown or Close
}

// Stats returns the current counts.
func (p *WarmPool) Stats() PoolStats {
	s := p.store.Stats()
	return PoolStats{
		s.Open, s.Idle, s.InUse, s.Waiting,
		s.Dials, s.DialFailures, s.Waits, s.WaitTime, s.Timeouts, PoolClosed(s.Closed),
	}
}

// Limits returns the values of [WithMinIdle] and [WithMaxActive], or their defaults.
func (p *WarmPool) Limits() (minIdle, maxActive int) { return p.store.Limits() }

// Renew replaces all connections that are open or being dialled, for example after the
// server has moved or a password has changed. It closes the idle ones, and cuts the borrowed
// ones: their borrowers get an error, a write may be an [ErrOutcomeUnknown], and the cache
// retries its reads on a new connection. Renew does not wait.
func (p *WarmPool) Renew() { p.store.Renew() }

// Shutdown closes the pool. New and waiting borrowers get [ErrClosed]. A borrowed
// connection still works, and Shutdown waits until its borrower has returned it. If
// ctx ends first, Shutdown closes the connections that are still borrowed, and returns
// an error with their number that matches the context's error.
func (p *WarmPool) Shutdown(ctx context.Context) error { return p.store.Shutdown(ctx) }

// Close closes all connections at once, also borrowed ones, waits for all goroutines of
// the pool, and returns nil. It may be called more than once, and while Shutdown waits.
// It cancels the dials in flight, whose context a [WithDialFunc] must honour.
func (p *WarmPool) Close() error {
	p.store.Close()
	return nil
}
