package rediscache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"time"

	"github.com/gomodule/redigo/redis"
)

// Defaults of the options. Each is what the constructor uses when its option
// is absent.
const (
	DefaultMinIdle          = 10
	DefaultMaxActive        = 50
	DefaultIdleTimeout      = 5 * time.Minute
	DefaultMaxConnLifetime  = 30 * time.Minute
	DefaultHealthCheckAfter = time.Second
	DefaultDialTimeout      = 5 * time.Second
	DefaultReadTimeout      = 3 * time.Second
	DefaultWriteTimeout     = 3 * time.Second

	DefaultTimeout       = time.Second
	DefaultPipelineConns = 2

	DefaultBasePath      = "/cache"
	DefaultMaxValueBytes = 1 << 20
	DefaultMaxTTL        = 365 * 24 * time.Hour
)

// PoolOption configures [NewPool].
type PoolOption struct{ apply func(*poolConfig) }

type poolConfig struct {
	minIdle, maxActive        int
	idleTimeout               time.Duration
	maxConnLifetime           time.Duration
	healthCheckAfter          time.Duration
	dialTimeout               time.Duration
	readTimeout, writeTimeout time.Duration
	clientName                string
	credentials               func(context.Context) (user, password string, err error)
	dialOptions               []redis.DialOption
	dial                      func(context.Context) (redis.Conn, error)
}

func newPoolConfig(opts []PoolOption) (poolConfig, error) {
	c := poolConfig{
		minIdle:          DefaultMinIdle,
		maxActive:        DefaultMaxActive,
		idleTimeout:      DefaultIdleTimeout,
		maxConnLifetime:  DefaultMaxConnLifetime,
		healthCheckAfter: DefaultHealthCheckAfter,
		dialTimeout:      DefaultDialTimeout,
		readTimeout:      DefaultReadTimeout,
		writeTimeout:     DefaultWriteTimeout,
	}
	for _, o := range opts {
		if o.apply != nil {
			o.apply(&c)
		}
	}
	return c, c.validate()
}

// validate reports every fault, not the first.
func (c *poolConfig) validate() error {
	var f faults
	f.check(c.minIdle >= 0, "WithMinIdle: %d is negative", c.minIdle)
	f.check(c.maxActive >= 1, "WithMaxActive: %d is below one", c.maxActive)
	f.check(c.minIdle <= c.maxActive || c.maxActive < 1,
		"WithMinIdle: %d is above the maximum of %d", c.minIdle, c.maxActive)
	f.check(c.idleTimeout >= 0, "WithIdleTimeout: %v is negative", c.idleTimeout)
	f.check(c.maxConnLifetime >= 0, "WithMaxConnLifetime: %v is negative", c.maxConnLifetime)
	f.check(c.healthCheckAfter >= 0, "WithHealthCheckAfter: %v is negative", c.healthCheckAfter)
	f.check(c.dialTimeout > 0, "WithDialTimeout: %v is not positive", c.dialTimeout)
	f.check(c.readTimeout > 0, "WithReadTimeout: %v is not positive", c.readTimeout)
	f.check(c.writeTimeout > 0, "WithWriteTimeout: %v is not positive", c.writeTimeout)
	f.check(validClientName(c.clientName),
		"WithClientName: a name has no spaces and no control characters")
	return f.join()
}

// validClientName says whether Redis takes name: printable ASCII without
// spaces.
func validClientName(name string) bool {
	for _, b := range []byte(name) {
		if b < '!' || b > '~' {
			return false
		}
	}
	return true
}

// WithMinIdle keeps at least n connections open and spare, whether or not
// anybody asks for one; when so many are borrowed that the maximum leaves
// fewer, fewer. Zero keeps none, negative or above the maximum is an error.
func WithMinIdle(n int) PoolOption {
	return PoolOption{func(c *poolConfig) { c.minIdle = n }}
}

// WithMaxActive never has more than n connections open, idle ones and those
// being dialled or closed included. Below one is an error.
func WithMaxActive(n int) PoolOption {
	return PoolOption{func(c *poolConfig) { c.maxActive = n }}
}

// WithIdleTimeout closes a connection above the minimum that nobody borrowed
// for d. Zero keeps them all, negative is an error.
func WithIdleTimeout(d time.Duration) PoolOption {
	return PoolOption{func(c *poolConfig) { c.idleTimeout = d }}
}

// WithMaxConnLifetime replaces a connection at the age of d, less up to 10 %
// at random so that connections dialled together do not end together. A
// borrowed one is replaced within a quarter of a second of its return. Zero is
// for ever, negative is an error.
func WithMaxConnLifetime(d time.Duration) PoolOption {
	return PoolOption{func(c *poolConfig) { c.maxConnLifetime = d }}
}

// WithHealthCheckAfter sends a PING in the background, one connection at a
// time, to each idle connection that was silent for d. It keeps a server's
// own idle timeout and the firewalls between from closing it, at the price of
// one PING per idle connection and d. Any answer will do, a refusal of PING too,
// unless it says that the server does not serve (LOADING, NOAUTH, …). When a
// connection breaks, the idle connections that were not used since have to answer
// a PING before they are lent. After the process was suspended for more than two
// seconds all connections have to, because a NAT or the server may have forgotten
// them. A borrower waits for a new dial as soon as a PING takes more than a tenth
// of a second, and connections without an answer make room for it.
//
// An idle socket is looked at before it is lent. Where that is not possible, on
// Windows and where [WithDialFunc] or a dial option hides the socket, an idle
// connection that nobody used for a tenth of a second has to answer a PING before
// it is lent, which costs the borrower a round trip.
//
// Zero sends no PING: what is in doubt is closed, and a connection whose socket
// cannot be looked at is lent as it is. Negative is an error.
func WithHealthCheckAfter(d time.Duration) PoolOption {
	return PoolOption{func(c *poolConfig) { c.healthCheckAfter = d }}
}

// WithDialTimeout bounds a dial up to the first answered PING: TCP, TLS,
// authentication and all. It must be positive. Dials have this bound alone:
// no borrower's context ends one.
func WithDialTimeout(d time.Duration) PoolOption {
	return PoolOption{func(c *poolConfig) { c.dialTimeout = d }}
}

// WithReadTimeout bounds the wait for a reply. It must be positive. A
// connection whose reply did not come in time is closed. A
// redis.DialReadTimeout among [WithDialOptions] wins over it.
func WithReadTimeout(d time.Duration) PoolOption {
	return PoolOption{func(c *poolConfig) { c.readTimeout = d }}
}

// WithWriteTimeout bounds the sending of a command. It must be positive. A
// redis.DialWriteTimeout among [WithDialOptions] wins over it.
func WithWriteTimeout(d time.Duration) PoolOption {
	return PoolOption{func(c *poolConfig) { c.writeTimeout = d }}
}

// WithClientName names each connection, so that CLIENT LIST shows whose it is.
// A name is printable ASCII without spaces; empty, the default, sets none. The
// name is cosmetic: a server or a proxy that refuses CLIENT is used without it.
func WithClientName(name string) PoolOption {
	return PoolOption{func(c *poolConfig) { c.clientName = name }}
}

// WithCredentials asks f for the user and the password at each dial, so that
// passwords can rotate; connections already open stay as they are until their
// lifetime ends. It wins over the URL's. An empty user is Redis's default
// user; an empty password sends no AUTH. An error of f fails the dial. f must
// honour its context.
func WithCredentials(f func(ctx context.Context) (user, password string, err error)) PoolOption {
	return PoolOption{func(c *poolConfig) { c.credentials = f }}
}

// WithDialOptions adds redigo's own dial options, a TLS configuration for
// example. They win over the URL and over the other options, and a server that
// refuses the name of a DialClientName fails the dial. Two of them, DialNetDial
// and DialContextFunc, hide the socket: a close then does not wait until the
// server is done with the connection, and [WithHealthCheckAfter] says what the
// pool does before it lends one.
func WithDialOptions(opts ...redis.DialOption) PoolOption {
	return PoolOption{func(c *poolConfig) { c.dialOptions = append(c.dialOptions, opts...) }}
}

// WithDialFunc dials with f instead: the URL is then not used and may be
// empty, and so are the client name, the credentials and the dial options. f
// must honour its context, and the connection's Close must be safe while
// another goroutine waits in Do, as that of redigo's connections is.
func WithDialFunc(f func(ctx context.Context) (redis.Conn, error)) PoolOption {
	return PoolOption{func(c *poolConfig) { c.dial = f }}
}

// Option configures [New].
type Option struct{ apply func(*cacheConfig) }

type cacheConfig struct {
	prefix        string
	ttl           time.Duration
	timeout       time.Duration
	pipelineConns int
	observer      Observer
}

func newCacheConfig(pool Pool, opts []Option) (cacheConfig, error) {
	c := cacheConfig{ttl: NoExpiry, timeout: DefaultTimeout}
	missing := pool == nil
	switch p := pool.(type) {
	case *WarmPool:
		missing, c.pipelineConns = p == nil, DefaultPipelineConns
	case *redis.Pool:
		missing, c.pipelineConns = p == nil, DefaultPipelineConns
	}
	for _, o := range opts {
		if o.apply != nil {
			o.apply(&c)
		}
	}
	var f faults
	f.check(c.ttl == NoExpiry || c.ttl >= time.Millisecond,
		"WithTTL: %v is neither a millisecond or more nor NoExpiry", c.ttl)
	f.check(c.timeout >= 0, "WithTimeout: %v is negative", c.timeout)
	f.check(c.pipelineConns >= 0, "WithPipelineConns: %d is negative", c.pipelineConns)
	f.check(!missing, "the pool is nil")
	return c, f.join()
}

// WithPrefix puts prefix before every key. Empty, the default, puts nothing. A
// namespace within a program is a [Cache.Sub], not a cache of its own, see [New].
// Two caches are apart if neither's prefix begins the other's: "a:" and "ab:" are,
// "a" and "ab" are not.
func WithPrefix(prefix string) Option {
	return Option{func(c *cacheConfig) { c.prefix = prefix }}
}

// WithTTL sets how long a value lives that is stored with [DefaultTTL]. It is
// a millisecond or more, or [NoExpiry], which is the default; anything else is
// an error.
func WithTTL(d time.Duration) Option {
	return Option{func(c *cacheConfig) { c.ttl = d }}
}

// WithTimeout bounds each operation, the wait for a connection included, as a
// deadline of the caller's context would; the earlier of the two counts. Of
// those for many keys it bounds each 512 commands and each large one, and after
// one that is too late no more are sent. Zero leaves it to the context and to
// the connection's own timeouts: those of the pool, such as [WithReadTimeout] or
// redis.DialReadTimeout. Negative is an error.
func WithTimeout(d time.Duration) Option {
	return Option{func(c *cacheConfig) { c.timeout = d }}
}

// WithPipelineConns lets the cache's callers share at most n connections,
// which it borrows while there is something to do, and one more while another
// is about to be returned. It takes fewer where the pool has none to spare: from
// a *redis.Pool that would have none left, it borrows one at a time, for about
// 20 ms; see [Pool]. Zero borrows a connection for each command, for pools whose
// connections cannot be shared: one goroutine must be able to Send and Flush
// while another Receives. The default is [DefaultPipelineConns] for a
// [*WarmPool] and redigo's *redis.Pool, and zero for any other pool. Negative is
// an error.
func WithPipelineConns(n int) Option {
	return Option{func(c *cacheConfig) { c.pipelineConns = n }}
}

// WithObserver tells o what becomes of each call. Without this option, or with
// nil, nobody is told and nothing is measured.
func WithObserver(o Observer) Option {
	return Option{func(c *cacheConfig) { c.observer = o }}
}

// HandlerOption configures [NewHandler].
type HandlerOption struct{ apply func(*handlerConfig) }

type handlerConfig struct {
	basePath      string
	maxValueBytes int64
	maxTTL        time.Duration
	keyFunc       func(r *http.Request, key string) (string, error)
	logger        *slog.Logger
}

func newHandlerConfig(opts []HandlerOption) (handlerConfig, error) {
	c := handlerConfig{
		basePath:      DefaultBasePath,
		maxValueBytes: DefaultMaxValueBytes,
		maxTTL:        DefaultMaxTTL,
		keyFunc:       func(_ *http.Request, key string) (string, error) { return key, nil },
		logger:        slog.Default(),
	}
	for _, o := range opts {
		if o.apply != nil {
			o.apply(&c)
		}
	}
	return c, c.validate()
}

// validate reports every fault, not the first.
func (c *handlerConfig) validate() error {
	var f faults
	f.check(validBasePath(c.basePath),
		"WithBasePath: %q is neither empty nor a clean escaped path without a slash at its end", c.basePath)
	f.check(c.maxValueBytes > 0, "WithMaxValueBytes: %d is not positive", c.maxValueBytes)
	f.check(c.maxTTL >= time.Millisecond, "WithMaxTTL: %v is below a millisecond", c.maxTTL)
	f.check(c.keyFunc != nil, "WithKeyFunc: the function is nil")
	f.check(c.logger != nil, "WithLogger: the logger is nil")
	return f.join()
}

// validBasePath says whether requests can arrive under p as it is written: a
// mux cleans their paths, and an escape has more than one spelling.
func validBasePath(p string) bool {
	if p == "" {
		return true
	}
	return p != "/" && p[0] == '/' && path.Clean(p) == p && (&url.URL{Path: p}).EscapedPath() == p
}

// WithBasePath serves keys under p + "/" instead of [DefaultBasePath]. Empty
// serves them at the root. Any other p begins with a slash, does not end with
// one, has no empty, "." or ".." segment and nothing that needs escaping; what
// is not so is an error.
func WithBasePath(p string) HandlerOption {
	return HandlerOption{func(c *handlerConfig) { c.basePath = p }}
}

// WithMaxValueBytes refuses values of more than n bytes with 413, whatever it
// takes to write them in a form or in JSON. It must be positive.
func WithMaxValueBytes(n int64) HandlerOption {
	return HandlerOption{func(c *handlerConfig) { c.maxValueBytes = n }}
}

// WithMaxTTL refuses a ttl above d with 422. It bounds what clients ask for: a
// request without a ttl gets the store's own. Below a millisecond, zero and
// negative included, is an error.
func WithMaxTTL(d time.Duration) HandlerOption {
	return HandlerOption{func(c *handlerConfig) { c.maxTTL = d }}
}

// WithKeyFunc lets f turn the key that a client named into the one that the
// store sees, or refuse the request: a tenant's prefix, a permission. An error
// of f refuses with 403, or as a [*RefusedError] in it says; its text goes to
// the logger at level Debug and never to the client, who sees no key but its
// own either. Two clients meet on a value where f returns the same key for
// both. Without this option the two keys are the same; a nil f is an error.
func WithKeyFunc(f func(r *http.Request, key string) (string, error)) HandlerOption {
	return HandlerOption{func(c *handlerConfig) { c.keyFunc = f }}
}

// WithLogger sends the causes of failures to l, at level Error for what an
// operator must mend (500), Warn for 409, 503 and 504, and Debug for refusals
// and clients that left. Without this option that is what [slog.Default]
// returned when the handler was made; nil is an error.
func WithLogger(l *slog.Logger) HandlerOption {
	return HandlerOption{func(c *handlerConfig) { c.logger = l }}
}

// faults gathers what is wrong with a configuration.
type faults []error

func (f *faults) check(ok bool, format string, args ...any) {
	if !ok {
		*f = append(*f, fmt.Errorf("rediscache: "+format, args...))
	}
}

func (f faults) join() error { return errors.Join(f...) }
