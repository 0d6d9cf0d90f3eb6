package rediscache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/warm"
)

// Pool is what a [Cache] needs of a connection pool: a connection, which the
// cache closes to hand it back. [*WarmPool] and redigo's *redis.Pool are
// pools. GetContext must not wait once ctx has ended, which [WithTimeout] does
// without a deadline that ctx tells of. A connection should have the timeouts of
// redis.ConnWithTimeout, as redigo's do: without them one whose replies make no
// sense goes back to its pool as it is. Its writes should have a timeout, which
// redigo's lack unless they are dialled with one: [Cache.Close] waits for them
// where the server does not read. A *redis.Pool needs a TestOnBorrow, or reads
// fail for as long as it lends connections that the server has closed.
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
// ends a MULTI, WATCH or SUBSCRIBE when it is handed back; one that ran
// SELECT, AUTH, HELLO, CLIENT, MONITOR or the like is closed then, so that
// nobody inherits another's state.
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
// with port 6379, host localhost and database 0 where they are left out. A
// user without a colon is taken for the password, as redis-cli does. An error
// names every fault of the URL and the options, and no password. The owner of
// the pool ends it with Shutdown or Close.
//
// [Ready]: https://pkg.go.dev/github.com/rediscache/rediscache#WarmPool.Ready
func NewPool(url string, opts ...PoolOption) (*WarmPool, error) {
	cfg, err := newPoolConfig(opts)
	dial := hidden(cfg.dial)
	if cfg.dial == nil {
		t, urlErr := parseURL(url)
		err = errors.Join(urlErr, err)
		dial = t.dialer(&cfg)
	}
	if err != nil {
		return nil, err
	}
	p := &WarmPool{readTimeout: cfg.readTimeout, writeTimeout: cfg.writeTimeout, store: warm.New(warm.Config{
		MinIdle:          cfg.minIdle,
		MaxActive:        cfg.maxActive,
		IdleTimeout:      cfg.idleTimeout,
		MaxLifetime:      cfg.maxConnLifetime,
		HealthCheckAfter: cfg.healthCheckAfter,
		DialTimeout:      cfg.dialTimeout,
		ReadTimeout:      cfg.readTimeout,
		Dial:             dial,
	})}
	p.lease = &redis.Pool{DialContext: p.acquire}
	return p, nil
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
// context's error, or the latter alone if a connection was being dialled. With
// Redis down it fails at once with a [*DialError], and after Shutdown or Close
// with [ErrClosed]. A context that is over already costs nothing.
func (p *WarmPool) GetContext(ctx context.Context) (redis.Conn, error) {
	return p.lease.GetContext(ctx)
}

// Get borrows a connection without a context, so it may wait for ever. The
// connection is never nil: an error surfaces when it is first used.
func (p *WarmPool) Get() redis.Conn { return p.lease.Get() }

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
	Broken   int64 // failed, or found dead, or given up by a context
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

// parseURL shows nothing in an error that may be part of a password: where one
// is not escaped, what follows its slash is taken for the path.
func parseURL(raw string) (target, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Opaque != "" || misplacedAt(u) {
		return target{}, errors.New("rediscache: the URL cannot be parsed" +
			" (it is not shown as it may hold a password, whose special characters must be escaped)")
	}
	var f faults
	var t target
	db, query := strings.TrimPrefix(u.Path, "/"), u.Query()
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
		f.check(u.Path != "", "URL: the path of the socket is missing")
		t.network, t.address = "unix", u.Path
		db = query.Get("db")
		query.Del("db")
	default:
		f.check(false, "URL: scheme %q is none of redis, rediss, valkey, valkeys, unix", u.Scheme)
		db = ""
	}
	if db != "" {
		n, err := strconv.Atoi(db)
		f.check(err == nil && n >= 0 && db[0] != '+', "URL: database %q is not a number", db)
		t.db = n
	}
	for name := range query {
		f.check(false, "URL: unknown parameter %q", name)
	}
	f.check(u.Fragment == "", "URL: it has a fragment")
	t.user = u.User.Username()
	password, ok := u.User.Password()
	if t.password = password; !ok {
		t.user, t.password = "", t.user
	}
	f.check(t.user == "" || t.password != "", "URL: user without a password")
	return t, f.join()
}

// misplacedAt finds the end of the user and the password where it cannot be.
func misplacedAt(u *url.URL) bool {
	rest := u.RawQuery + u.Fragment
	if u.Scheme != "unix" { // whose path may have one
		rest += u.Path
	}
	return strings.Contains(rest, "@") || strings.Contains(u.RawQuery, "%40")
}

// dialer dials through redigo, and keeps hold of the socket. redigo's own TLS
// handshake does not end with the context, but does when the socket closes.
func (t target) dialer(cfg *poolConfig) func(context.Context) (warm.Dialed, error) {
	return func(ctx context.Context) (d warm.Dialed, err error) {
		user, password := t.user, t.password
		if cfg.credentials != nil {
			if user, password, err = cfg.credentials(ctx); err != nil {
				return d, fmt.Errorf("credentials: %w", err)
			}
		}
		defer func() {
			if d.Conn == nil && d.Socket != nil {
				d.Socket.Shut()
			}
		}()
		stop := func() bool { return true }
		opts := append([]redis.DialOption{
			redis.DialContextFunc(func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				socket := warm.NewSocket(conn)
				stop = context.AfterFunc(ctx, func() { _ = socket.Close() })
				d.Socket = socket
				return socket, nil
			}),
			redis.DialReadTimeout(cfg.readTimeout),
			redis.DialWriteTimeout(cfg.writeTimeout),
			// A little earlier than the dial's own end, to say what it was that took so long.
			redis.DialTLSHandshakeTimeout(cfg.dialTimeout - cfg.dialTimeout/10),
			redis.DialUseTLS(t.tls),
			redis.DialUsername(user),
			redis.DialPassword(password),
			redis.DialClientName(cfg.clientName),
			redis.DialDatabase(t.db),
		}, cfg.dialOptions...)
		d.Conn, err = redis.DialContext(ctx, t.network, t.address, opts...)
		stop()
		// What redigo's options do to the socket cannot be seen from here.
		d.Plain = d.Socket != nil && !t.tls && len(cfg.dialOptions) == 0
		return d, err
	}
}

// hidden adapts a user's dialer, whose socket nobody sees.
func hidden(dial func(context.Context) (redis.Conn, error)) func(context.Context) (warm.Dialed, error) {
	return func(ctx context.Context) (warm.Dialed, error) {
		c, err := dial(ctx)
		if err == nil && c == nil {
			err = errors.New("the dialer returned neither a connection nor an error")
		}
		return warm.Dialed{Conn: c}, err
	}
}
