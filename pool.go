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

// Pool is what a [Cache] needs of a connection pool: a connection, which the
// cache closes to return it. [*WarmPool] and redigo's *redis.Pool are pools.
// GetContext must return when ctx is done. [WithTimeout] cancels ctx but sets no
// deadline, so watch Done, not Deadline. The cache returns a panic of the pool
// or of a connection as an error that matches [ErrUnavailable].
//
// A connection should have the timeouts of redis.ConnWithTimeout, as redigo's
// do: without them a connection whose replies make no sense goes back to its
// pool as it is. With [WithTimeout] a connection is closed at the latest when
// nothing has come on it for twice that time; without, its own timeouts are all
// that bounds a read, and redigo's connections have none unless they are dialled
// with redis.DialReadTimeout. Writes should have a timeout too
// (redis.DialWriteTimeout): [Cache.Close] waits for them where the server does
// not read.
//
// A cache shares a pool of another maker with everybody who uses it. It keeps a
// connection for half a second at most. While the pool has no other to lend, it
// returns the connection within about 20 ms, so that others who wait are served,
// and it opens no connection that leaves none for others. It never fails for
// connections that it holds itself, and it asks a pool that refuses at once for
// 100 ms before it returns [ErrPoolExhausted]. Of a *redis.Pool the cache sees
// how many connections are left; of any other pool it assumes that none is. A
// *redis.Pool needs MaxIdle, or each connection that is returned is dialled
// anew, and a TestOnBorrow, or reads fail for as long as it lends connections
// that the server has closed.
type Pool interface {
	GetContext(ctx context.Context) (redis.Conn, error)
	Close() error
}

var (
	_ Pool = (*WarmPool)(nil)
	_ Pool = (*redis.Pool)(nil)
)

// DialError says why a [WarmPool] could open no connection. It matches
// [ErrUnavailable] and unwraps to the cause. Its text may hold the server's
// address, never a password.
type DialError = warm.DialError

// WarmPool is a pool of connections to one Redis server that keeps at least
// [WithMinIdle] of them open and spare, and never has more than
// [WithMaxActive] open. A borrower that finds all busy waits, first come first
// served. All methods are safe for concurrent use; a borrowed connection is
// for one goroutine, as redigo's are.
//
// A borrowed connection is a redigo connection of redigo's own pool, which
// ends a MULTI or WATCH when the connection is returned. A connection goes back
// only if it is as a new one: it is closed if the server refused to end the
// MULTI or WATCH or answered any of its commands with an error, and if the
// borrower ran SUBSCRIBE, AUTH, HELLO, CLIENT, MONITOR or the like, or selected
// another database than the pool's. So nobody inherits another's state or
// replies. To have a connection closed for a reason of your own, send QUIT on it
// before you close it: c.Send("QUIT") costs no round trip and passes through
// redigo pools between.
//
// An error that condemns the server (READONLY, MASTERDOWN, LOADING, NOAUTH, …)
// makes the pool replace every connection that was dialled before it, at no more
// than 20 dials a second: after a failover that closes no connection, behind a
// name or a load balancer, writes work again within a second of its end. Until a
// new connection is there the old ones are lent.
type WarmPool struct {
	store                     *warm.Store
	lease                     *redis.Pool // keeps nothing: each Close goes to the store
	readTimeout, writeTimeout time.Duration
}

// NewPool starts a pool, which fills to its floor in the background: [Ready]
// waits for that, and Redis need not be up. The URL is
//
//	redis://[[user]:password@]host[:port][/database]   also valkey://
//	rediss://…                                         also valkeys://, with TLS
//	unix://[[user]:password@]/path[?db=database]
//
// with port 6379, host localhost and database 0 where they are left out. It
// names one server: a list of hosts is an error. A user without a colon is taken
// for the password, as redis-cli does. A user without a password (user:@host) is
// an error unless [WithCredentials] gives the password; the user is the one that
// its function returns. What is special in a URL is escaped in a user, a password
// and a path. An error names every fault of the URL and the options and says what
// to write instead; it holds no password. The owner of the pool ends it with
// Shutdown or Close.
//
// [Ready]: https://pkg.go.dev/github.com/rediscache/rediscache#WarmPool.Ready
func NewPool(url string, opts ...PoolOption) (*WarmPool, error) {
	cfg, err := newPoolConfig(opts)
	dial, transport, database := hidden(cfg.dial), warm.Unknown, unknownDatabase
	if cfg.dial == nil {
		t, urlErr := parseURL(url, cfg.credentials != nil)
		err = errors.Join(urlErr, err)
		g := t.greeting(cfg.dialOptions)
		if database = g.database; g.named {
			cfg.clientName = "" // redigo sets the other
		}
		dial, transport = t.dialer(&cfg), t.transport(&cfg)
	}
	if err != nil {
		return nil, err
	}
	readTimeout := cfg.readTimeout
	if cfg.dial == nil && len(cfg.dialOptions) > 0 {
		readTimeout = 0 // the connection's own: cfg's, or that of an option that wins
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
		return nil, err
	}
	return c, nil
}

// GetContext borrows a connection; Close hands it back. It waits while all
// are busy until ctx ends. Then the error matches [ErrPoolExhausted] and the
// context's error, or the latter alone if a connection was being dialled; an error
// that matches ErrPoolExhausted matches redigo's redis.ErrPoolExhausted too. With
// Redis down it fails at once with a [*DialError], and after Shutdown or Close
// with [ErrClosed]. A context that is over already costs nothing.
func (p *WarmPool) GetContext(ctx context.Context) (redis.Conn, error) {
	return p.lease.GetContext(ctx)
}

// Get borrows a connection without a context, so it may wait for ever. The
// connection is never nil: an error surfaces when it is first used.
func (p *WarmPool) Get() redis.Conn { return p.lease.Get() }

// Redigo returns a redigo pool that lends the connections of p, for a library
// that wants redigo's type. Each call returns a new one. It has all connections
// of p to lend unless its MaxActive says less, and what it lends counts in the
// stats of p as borrowed; its own stats count what it has lent. Close on it
// ends its lending alone. p stays open, and its owner closes it.
//
// Set its fields before its first use. A TestOnBorrow or TestOnBorrowContext
// judges every connection before it is lent; lastUsed is exact to a quarter of a
// second. A connection that it rejects is closed, and the next is judged. Its
// error is returned when it rejects a connection that was dialled meanwhile.
// MaxActive and Wait bound what this pool lends. Leave MaxIdle, IdleTimeout and
// MaxConnLifetime zero: connections that a redigo pool keeps idle are borrowed
// from p.
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

// acquireTested lends a connection that passes the tests of r. A redigo pool for
// the one connection undoes what the tests leave on it.
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
		return nil, err
	}
	return lent, nil
}

// Ready waits until the floor of connections stands, each of which has
// answered a PING: [WithMinIdle] spare ones, or as many as the maximum leaves
// beside those in use. With a floor of zero it returns at once. If ctx ends
// first, the error matches the context's and wraps the [*DialError] of the
// last failed dial, if one failed.
func (p *WarmPool) Ready(ctx context.Context) error { return p.store.Ready(ctx) }

// PoolStats are the counts of a [WarmPool]. The first four are of the moment,
// the others since it was made.
type PoolStats struct {
	Open    int // connections, those being dialled or closed included
	Idle    int // spare connections
	InUse   int // borrowed connections
	Waiting int // borrowers in the queue

	Dials        int64         // begun
	DialFailures int64         // that failed
	Waits        int64         // borrowers that got a connection after they had queued
	WaitTime     time.Duration // of those
	Timeouts     int64         // borrowers whose context ended in the queue

	Closed PoolClosed
}

// PoolClosed counts the connections that a [WarmPool] closed, by reason.
type PoolClosed struct {
	Idle     int64 // above the floor and unused for the idle timeout
	Lifetime int64 // too old
	Broken   int64 // failed, found dead, given up by a context, or replaced as the server was condemned
	State    int64 // handed back in another state than that of a new one
	Shutdown int64 // by Shutdown or Close
}

// Stats returns the counts of this moment.
func (p *WarmPool) Stats() PoolStats {
	s := p.store.Stats()
	return PoolStats{
		s.Open, s.Idle, s.InUse, s.Waiting,
		s.Dials, s.DialFailures, s.Waits, s.WaitTime, s.Timeouts, PoolClosed(s.Closed),
	}
}

// Shutdown lends no more connections: borrowers, those that wait too, get
// [ErrClosed]. It waits until each borrowed connection, which goes on working,
// was handed back and closed. When ctx ends first it closes the rest under
// their borrowers, which unblocks them, and returns an error that says how
// many there were and matches the context's.
func (p *WarmPool) Shutdown(ctx context.Context) error { return p.store.Shutdown(ctx) }

// Close closes all connections now, borrowed ones too, waits until nothing of
// the pool runs any more, and returns nil. It may be called more than once,
// and while Shutdown waits. A dial under way ends with its context, which a
// [WithDialFunc] must honour.
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

// parseURL says what to write where raw does not say where one server is. It
// shows nothing in an error that may be part of a password: where one is not
// escaped, what follows its slash is taken for the path. asked says that
// WithCredentials gives the password.
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

// misspelt returns what to write instead where raw is not a URL, or names more
// than one server. It returns nothing for a URL without a known mistake. The text
// holds no part of raw.
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

// insteadOfScheme returns what to write instead of a scheme of another program,
// where the list of schemes does not say it.
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

// insteadOfParameter returns what to write instead of a parameter of another
// program.
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

// misplacedAt finds the end of the user and the password where it cannot be.
func misplacedAt(u *url.URL) bool {
	rest := u.RawQuery + u.Fragment
	if u.Scheme != "unix" { // whose path may have one
		rest += u.Path
	}
	return strings.Contains(rest, "@") || strings.Contains(u.RawQuery, "%40")
}

// transport is known where redigo's options cannot change it.
func (t target) transport(cfg *poolConfig) warm.Transport {
	switch {
	case t.tls:
		return warm.TLS
	case t.network == "tcp" && len(cfg.dialOptions) == 0:
		return warm.Plain
	}
	return warm.Unknown
}
