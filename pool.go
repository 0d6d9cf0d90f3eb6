package rediscache

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

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
// Set MaxIdle of a *redis.Pool, or it dials a new connection for each one that is
// returned. Set TestOnBorrow, or reads fail while it lends connections that the server
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
	lease                     *redis.Pool // keeps no connection: each Close returns it to the store
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
	dial, transport, database, readTimeout := hidden(cfg.dial), warm.Unknown, unknownDatabase, cfg.readTimeout
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
	})}
	p.lease = &redis.Pool{DialContext: p.acquire}
	return p, nil
}

// spare returns how many connections a pool can lend without a wait.
func spare(p *redis.Pool) int {
	if p.MaxActive <= 0 {
		return math.MaxInt
	}
	s := p.Stats()
	return p.MaxActive - (s.ActiveCount - s.IdleCount)
}

func (p *WarmPool) acquire(ctx context.Context) (redis.Conn, error) {
	c, err := p.store.Acquire(ctx)
	if err != nil {
		return nil, exportDialError(err)
	}
	return c, nil
}

// GetContext borrows a connection. Close on the connection returns it. If all
// connections are in use, GetContext waits until ctx is done. Then the error matches
// the context's error, and also [ErrPoolExhausted] unless a connection was being
// dialled. An error that matches ErrPoolExhausted also matches redis.ErrPoolExhausted.
// If Redis is down and no connection is open, GetContext returns a [*DialError] at
// once; after Shutdown or Close it returns [ErrClosed]. If ctx is already done,
// GetContext returns its error and borrows nothing.
func (p *WarmPool) GetContext(ctx context.Context) (redis.Conn, error) {
	return p.lease.GetContext(ctx)
}

// Get borrows a connection without a context, so it may wait forever. The connection
// is never nil: after an error, its Err and its first command return that error.
func (p *WarmPool) Get() redis.Conn { return p.lease.Get() }

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
	err := p.store.Ready(ctx)
	if dial := (*warm.DialError)(nil); errors.As(err, &dial) {
		return fmt.Errorf("%w (%w)", exportDialError(dial), ctx.Err())
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

// target is where a URL points.
type target struct {
	network, address string
	tls              bool
	user, password   string
	db               int
}

// parseURL parses the URL of one server. Its error names a correction, and shows no
// part of raw that may belong to a password. If a password has a slash that is not
// escaped, url.Parse puts the rest of the password into the path. asked means that
// WithCredentials is set.
func parseURL(raw string, asked bool) (target, error) {
	if fault := misspelt(raw); fault != "" {
		return target{}, errors.New("rediscache: the URL cannot be parsed: " + fault)
	}
	u, err := url.Parse(raw)
	if err != nil || u.Opaque != "" || misplacedAt(u) {
		return target{}, errors.New("rediscache: the URL cannot be parsed (it is not shown as it may hold a password," +
			" whose special characters must be escaped: %25 for %, %40 for @, %2F for /, %3F for ?, %23 for #)")
	}
	var f faults
	var t target
	db, query := strings.TrimPrefix(u.Path, "/"), u.Query()
	where := "the path, as in redis://localhost:6379/0"
	switch u.Scheme {
	case "rediss", "valkeys":
		t.tls = true
		fallthrough
	case "redis", "valkey":
		port := u.Port()
		if port == "" {
			port = "6379"
		}
		n, err := strconv.Atoi(port)
		f.check(err == nil && n > 0 && n < 1<<16, "URL: the port is not between 1 and 65535")
		host := u.Hostname()
		if host == "" {
			host = "localhost"
		}
		t.network, t.address = "tcp", net.JoinHostPort(host, port)
	case "unix":
		f.check(u.Host == "", "URL: unix:// is followed by an absolute path, as in unix:///run/redis.sock")
		f.check(u.Path != "", "URL: the path of the socket is missing, as in unix:///run/redis.sock")
		t.network, t.address = "unix", u.Path
		db, where = query.Get("db"), "a parameter, as in unix:///run/redis.sock?db=0"
		query.Del("db")
	default:
		f.check(false, "URL: scheme %q is none of redis, rediss, valkey, valkeys, unix%s", u.Scheme, insteadOfScheme(u.Scheme))
		db = ""
	}
	if db != "" {
		n, err := strconv.Atoi(db)
		f.check(err == nil && n >= 0 && db[0] != '+', "URL: database %q is not a number: write one as %s", db, where)
		t.db = n
	}
	for name := range query {
		f.check(false, "URL: unknown parameter %q: %s", name, insteadOfParameter(name))
	}
	f.check(u.Fragment == "", "URL: it has a fragment: write %%23 for # in a password or a path")
	t.user = u.User.Username()
	password, ok := u.User.Password()
	if t.password = password; !ok {
		t.user, t.password = "", t.user
	}
	f.check(t.user == "" || t.password != "" || asked,
		"URL: user without a password: write redis://user:password@host, or use WithCredentials")
	return t, f.join()
}

// misspelt returns the mistake and its correction if raw is not a URL or names more
// than one server, or "" if it knows no mistake. The text holds no part of raw.
func misspelt(raw string) string {
	scheme, rest, ok := strings.Cut(raw, "://")
	scheme = strings.ToLower(scheme)
	switch {
	case strings.ContainsFunc(raw, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
		return "it has white space or a control character: remove it, or write %20 for a space in a password"
	case strings.ContainsAny(raw[:min(1, len(raw))], `"'`):
		return "it is in quotation marks: remove them"
	case ok && slices.Contains(tcpSchemes, scheme):
		return misspeltHost(rest)
	case ok || raw == "" || strings.HasPrefix(raw, "//"):
		return ""
	}
	scheme, rest, ok = strings.Cut(raw, ":")
	scheme = strings.ToLower(scheme)
	switch {
	case scheme == "unix" && strings.HasPrefix(rest, "/"):
		return ""
	case ok && scheme == "unix", strings.HasPrefix(raw, "/"):
		return "a socket is an absolute path after unix://, as in unix:///run/redis.sock"
	case ok && slices.Contains(tcpSchemes, scheme):
		return "two slashes follow the scheme, as in redis://localhost:6379"
	}
	return "it has no scheme: write redis://localhost:6379, or redis://user:password@localhost:6379"
}

var tcpSchemes = []string{"redis", "rediss", "valkey", "valkeys"}

// misspeltHost is misspelt for the rest of a URL, after the scheme.
func misspeltHost(rest string) string {
	end := strings.IndexAny(rest+"/", "/?#")
	if strings.Contains(rest[end:], "@") {
		return "" // this may be a part of the password
	}
	host := rest[strings.LastIndexByte(rest[:end], '@')+1 : end]
	user := rest[:end-len(host)]
	address := host
	bracket := strings.IndexByte(host, ']')
	if bracket >= 0 {
		address = host[bracket:]
	}
	_, port, _ := strings.Cut(address, ":")
	switch {
	case strings.ContainsAny(host, ",;"), strings.Count(user, "@") > 1 && strings.ContainsAny(user, ",;"):
		return "it names more than one server, and a pool is for one: write one host, and make a pool for each server"
	case strings.HasPrefix(host, "[") != (bracket >= 0), strings.Count(address, ":") > 1:
		return "the host has too many colons: write one port, and an IPv6 address in brackets, as in redis://[::1]:6379"
	case strings.Trim(port, "0123456789") != "":
		return "the port is not a number: write redis://localhost:6379, with a password redis://:password@localhost:6379"
	}
	return ""
}

// insteadOfScheme returns the correction for a scheme of another program, or "" if the
// list of schemes is enough.
func insteadOfScheme(scheme string) string {
	switch {
	case scheme == "":
		return ": write redis://localhost:6379"
	case containsAny(scheme, "cluster", "sentinel"):
		return ": a pool is for one server: write redis:// and its address"
	case containsAny(scheme, "tls", "ssl"):
		return ": write rediss:// for TLS"
	case containsAny(scheme, "sock", "unix"):
		return ": write unix:///run/redis.sock for a socket"
	}
	return ""
}

// insteadOfParameter returns the correction for a parameter of another program.
func insteadOfParameter(name string) string {
	switch name = strings.ToLower(name); {
	case containsAny(name, "tls", "ssl"):
		return "write rediss:// for TLS"
	case containsAny(name, "user", "pass", "auth"):
		return "write redis://user:password@host"
	case name == "db", containsAny(name, "database"):
		return "write the database as the path, as in redis://localhost:6379/0"
	}
	return "the options of NewPool set what the URL does not"
}

func containsAny(s string, parts ...string) bool {
	return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(s, part) })
}

// misplacedAt reports whether an @ appears after the host, so that a password may have
// a special character that is not escaped.
func misplacedAt(u *url.URL) bool {
	rest := u.RawQuery + u.Fragment
	if u.Scheme != "unix" { // whose path may have one
		rest += u.Path
	}
	return strings.Contains(rest, "@") || strings.Contains(u.RawQuery, "%40")
}

// refuse returns the fault of an option that the URL makes useless.
func (t target) refuse(cfg *poolConfig) error {
	var f faults
	f.check(!cfg.tlsGiven || t.tls || t.network == "",
		"WithTLSConfig: the URL is without TLS: write rediss:// instead of redis://, and a host instead of a unix:// path")
	return f.join()
}

// transport returns Unknown if a dial option may change the transport.
func (t target) transport(cfg *poolConfig) warm.Transport {
	switch {
	case t.tls:
		return warm.TLS
	case t.network == "tcp" && len(cfg.dialOptions) == 0:
		return warm.Plain
	}
	return warm.Unknown
}
