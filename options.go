package rediscache

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"time"

	"github.com/gomodule/redigo/redis"
)

// Defaults of the options. A constructor uses them for options that are absent.
const (
	DefaultMinIdle          = 10
	DefaultMaxActive        = 50
	DefaultIdleTimeout      = 5 * time.Minute
	DefaultMaxConnLifetime  = 30 * time.Minute
	DefaultHealthCheckAfter = time.Second
	DefaultDialTimeout      = 5 * time.Second
	DefaultReadTimeout      = 3 * time.Second
	DefaultWriteTimeout     = 3 * time.Second
	DefaultBusyPoll         = 50 * time.Microsecond

	DefaultTimeout       = time.Second
	DefaultPipelineConns = 2
	DefaultNearTTL       = time.Minute

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
	busyPoll                  time.Duration
	clientName                string
	credentials               func(context.Context) (user, password string, err error)
	tls                       *tls.Config
	tlsGiven                  bool
	dialOptions               []redis.DialOption
	dial                      func(context.Context) (redis.Conn, error)
	address                   func(context.Context) (string, error)
	onConnect                 func(context.Context, redis.Conn) error
	observe                   func(PoolEvent)
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
		busyPoll:         DefaultBusyPoll,
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
	f.check(c.busyPoll >= 0 && c.busyPoll <= maxBusyPoll,
		"WithBusyPoll: %v is not between zero and %v", c.busyPoll, maxBusyPoll)
	f.check(validClientName(c.clientName),
		"WithClientName: a name has no spaces and no control characters")
	f.check(!c.tlsGiven || c.tls != nil,
		"WithTLSConfig: the configuration is nil: write new(tls.Config) for the defaults, or leave the option out")
	f.check(c.tls == nil || c.tls.MinVersion == 0 || c.tls.MinVersion >= tls.VersionTLS12,
		"WithTLSConfig: TLS below 1.2 is not supported: leave MinVersion out")
	f.check(!c.tlsGiven || c.dial == nil,
		"WithTLSConfig: the function of WithDialFunc makes the connection: use TLS in it, and leave WithTLSConfig out")
	f.check(c.address == nil || c.dial == nil,
		"WithAddress: the function of WithDialFunc makes the connection: find the address in it, and leave WithAddress out")
	return f.join()
}

// validClientName reports whether Redis accepts name: it must be printable ASCII without spaces.
func validClientName(name string) bool {
	for _, b := range []byte(name) {
		if b < '!' || b > '~' {
			return false
		}
	}
	return true
}

// WithMinIdle keeps at least n idle connections open, or as many as
// [WithMaxActive] leaves beside those in use. Zero keeps none. A negative n, or n
// above the maximum, is an error. The default is [DefaultMinIdle].
func WithMinIdle(n int) PoolOption {
	return PoolOption{func(c *poolConfig) { c.minIdle = n }}
}

// WithMaxActive bounds the open connections to n, including those that are idle,
// being dialled or being closed. Below one is an error. The default is
// [DefaultMaxActive].
func WithMaxActive(n int) PoolOption {
	return PoolOption{func(c *poolConfig) { c.maxActive = n }}
}

// WithIdleTimeout closes a connection above the minimum that was idle for d. Zero
// keeps all idle connections, negative is an error.
func WithIdleTimeout(d time.Duration) PoolOption {
	return PoolOption{func(c *poolConfig) { c.idleTimeout = d }}
}

// WithMaxConnLifetime replaces a connection at the age of d, less a random part of up
// to 10 %, so that connections dialled together do not end together. A connection in
// use is replaced within a quarter of a second of its return. Zero sets no limit,
// negative is an error.
func WithMaxConnLifetime(d time.Duration) PoolOption {
	return PoolOption{func(c *poolConfig) { c.maxConnLifetime = d }}
}

// WithHealthCheckAfter sends a PING to each idle connection that was silent for d, in
// the background and to one connection at a time. So neither the idle timeout of the
// server nor a firewall closes an idle connection, at the cost of one PING per d. Any
// reply passes, also a refusal of PING, unless it means that the server does not serve
// (LOADING, NOAUTH, …). The default is [DefaultHealthCheckAfter].
//
// When a connection breaks, the idle connections that were not used since must answer
// a PING before they are lent. After a suspension of the process for more than two
// seconds all connections must, because a NAT or the server may have forgotten them.
// If the PING takes more than a tenth of a second, the pool dials a new connection
// for the borrower, and closes a connection without an answer if it needs its slot.
//
// The pool checks an idle socket before it lends it. It cannot do so on Windows, or if
// [WithDialFunc] or a dial option hides the socket. Then an idle connection that was
// not used for a tenth of a second must answer a PING before it is lent, which costs
// the borrower a round trip.
//
// Zero sends no PING: the pool closes the connections that would have to answer a
// PING, and lends a connection with a hidden socket unchecked. Negative is an error.
func WithHealthCheckAfter(d time.Duration) PoolOption {
	return PoolOption{func(c *poolConfig) { c.healthCheckAfter = d }}
}

// WithDialTimeout bounds a dial: TCP, TLS, authentication and the first PING. It must
// be positive. A dial has no other bound: the context of a borrower does not end it.
func WithDialTimeout(d time.Duration) PoolOption {
	return PoolOption{func(c *poolConfig) { c.dialTimeout = d }}
}

// WithReadTimeout bounds the wait for a reply. It must be positive. After a timeout
// the connection is closed. A redis.DialReadTimeout in [WithDialOptions] overrides it.
func WithReadTimeout(d time.Duration) PoolOption {
	return PoolOption{func(c *poolConfig) { c.readTimeout = d }}
}

// WithWriteTimeout bounds the write of a command. It must be positive. A
// redis.DialWriteTimeout in [WithDialOptions] overrides it.
func WithWriteTimeout(d time.Duration) PoolOption {
	return PoolOption{func(c *poolConfig) { c.writeTimeout = d }}
}

// maxBusyPoll is the most for WithBusyPoll, because a read that polls does not see that
// its connection was closed.
const maxBusyPoll = time.Millisecond

// WithBusyPoll lets a read look at its socket again and again for d before it waits for
// the kernel to wake it. Between two looks other goroutines run. That is faster if Redis
// replies within d, as on the same machine or in the same rack: to park a goroutine, let
// the processor go idle and wake both again takes tens of microseconds on a virtual
// machine. The default is [DefaultBusyPoll]. Zero never polls. Negative, or more than a
// millisecond, is an error.
//
// Polling costs processor time that would have been idle, which counts where it is billed
// or limited: in a container with a CPU quota, or on a battery. Connections without a
// command in flight do not poll. If replies take longer than d, reads soon stop polling.
// Then one read in a thousand polls, to notice faster replies. If other programs want the
// processor, all connections of the pool stop polling for up to two seconds.
//
// It has no effect on Windows, with [WithDialFunc], or if a dial option hides the socket.
func WithBusyPoll(d time.Duration) PoolOption {
	return PoolOption{func(c *poolConfig) { c.busyPoll = d }}
}

// WithAddress calls f for the host and the port of each dial, so that a pool follows a
// server that moves. f must honour its context, and its error fails the dial. The rest of
// the URL holds as it is; with TLS the host of the URL is the name in the certificate.
// After a move call [WarmPool.Renew]. Without this option, or with nil, the address is
// that of the URL.
func WithAddress(f func(ctx context.Context) (string, error)) PoolOption {
	return PoolOption{func(c *poolConfig) { c.address = f }}
}

// WithOnConnect calls f with each new connection, when it has answered the first PING. An
// error of f closes the connection and fails the dial. What f changes in the state of the
// connection is that of a new one for the pool. f must honour its context and must not keep
// the connection. Without this option, or with nil, nothing is called.
func WithOnConnect(f func(ctx context.Context, conn redis.Conn) error) PoolOption {
	return PoolOption{func(c *poolConfig) { c.onConnect = f }}
}

// WithPoolObserver calls f for each [PoolEvent]: that Redis is down, that it is up again,
// and that a connection was closed. A goroutine of the pool calls f for one event after
// another, in their order. While f is slow, the pool goes on; when 1,024 events wait, it
// drops new ones. f must not close the pool, because Close waits for f. A panic of f is
// dropped. Without this option, or with nil, nothing is called.
func WithPoolObserver(f func(PoolEvent)) PoolOption {
	return PoolOption{func(c *poolConfig) { c.observe = f }}
}

// WithClientName sets the name that CLIENT LIST shows for each connection. A name is
// printable ASCII without spaces; empty, the default, sets none. If a server or a
// proxy refuses CLIENT, the connection is used without a name.
func WithClientName(name string) PoolOption {
	return PoolOption{func(c *poolConfig) { c.clientName = name }}
}

// WithCredentials calls f for the user and the password of each dial, so that
// passwords can rotate. Connections that are already open stay until their lifetime
// ends. f overrides the user and the password of the URL, which may then have a user
// without a password (redis://user:@host). An empty user is the default user of
// Redis; an empty password sends no AUTH. An error of f fails the dial. f must honour
// its context.
func WithCredentials(f func(ctx context.Context) (user, password string, err error)) PoolOption {
	return PoolOption{func(c *poolConfig) { c.credentials = f }}
}

// WithTLSConfig sets the TLS configuration of a rediss:// or valkeys:// URL, for example
// Certificates for a server that wants a certificate of the client, or RootCAs for a
// server with an authority of its own. Without this option the certificate of the server
// must be valid for the host of the URL and signed by an authority that the system trusts.
//
// NewPool copies config. An empty ServerName is the host of the URL. Without a
// ClientSessionCache the connections of the pool share one, so that a dial after the first
// is cheap; a resumed session asks for no certificate. So if config has
// VerifyPeerCertificate or GetClientCertificate, which crypto/tls calls only for a full
// handshake, sessions are not resumed. VerifyConnection is called for each dial. If a
// function of config panics, the dial fails with an error.
//
// A nil config, a MinVersion below TLS 1.2, a URL without TLS and a [WithDialFunc] beside
// this option are errors. A redis.DialTLSConfig in [WithDialOptions] overrides config.
func WithTLSConfig(config *tls.Config) PoolOption {
	return PoolOption{func(c *poolConfig) { c.tls, c.tlsGiven = config, true }}
}

// WithDialOptions adds dial options of redigo. They override the URL and the other
// options. With DialClientName, a server that refuses the name fails the dial.
// DialConnectTimeout and DialKeepAlive have no effect, see [WithDialTimeout].
//
// Some dial options make redigo read and write the commands of a cache. That is slower,
// and redigo does not bound the size of a reply: see RELIABILITY.md. These are
// DialReadTimeout, DialWriteTimeout, DialNetDial and DialContextFunc. On a connection with
// TLS all dial options do, because they may configure TLS; so use the URL,
// [WithTLSConfig], [WithClientName] and [WithReadTimeout] there. On a connection without
// TLS, DialDatabase, DialUsername, DialPassword and DialClientName do not.
//
// DialNetDial and DialContextFunc hide the socket: a close then does not wait until the
// server has closed the connection too, and the pool cannot check an idle connection, see
// [WithHealthCheckAfter].
func WithDialOptions(opts ...redis.DialOption) PoolOption {
	return PoolOption{func(c *poolConfig) { c.dialOptions = append(c.dialOptions, opts...) }}
}

// WithDialFunc dials with f. The pool then ignores the URL, which may be empty, the
// client name, the credentials and the dial options. f must honour its context. The
// Close of a connection must be safe while another goroutine waits in Do, as it is
// for connections of redigo.
func WithDialFunc(f func(ctx context.Context) (redis.Conn, error)) PoolOption {
	return PoolOption{func(c *poolConfig) { c.dial = f }}
}

// Option configures [New].
type Option struct{ apply func(*cacheConfig) }

type cacheConfig struct {
	prefix        string
	ttl           time.Duration
	ttlGiven      bool
	timeout       time.Duration
	pipelineConns int
	observers     []Observer
	nearBytes     int64
	nearGiven     bool
	nearTTL       time.Duration
}

func newCacheConfig(pool Pool, opts []Option) (cacheConfig, error) {
	c := cacheConfig{timeout: DefaultTimeout, nearTTL: DefaultNearTTL}
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
	f.check(!c.ttlGiven || c.ttl == NoExpiry || c.ttl >= time.Millisecond,
		"WithTTL: %v is neither a millisecond or more nor NoExpiry", c.ttl)
	f.check(c.timeout >= 0, "WithTimeout: %v is negative", c.timeout)
	f.check(c.pipelineConns >= 0, "WithPipelineConns: %d is negative", c.pipelineConns)
	f.check(!missing, "the pool is nil")
	f.check(!c.nearGiven || c.nearBytes >= minNearBytes,
		"WithNearCache: %d bytes is below %d: leave the option out for no near cache", c.nearBytes, minNearBytes)
	f.check(c.nearTTL >= 0, "WithNearTTL: %v is negative", c.nearTTL)
	f.check(!c.nearGiven || missing || !lendsOne(pool),
		"WithNearCache: it keeps a connection of the pool, so the pool needs two at least")
	return c, f.join()
}

// WithPrefix puts prefix before every key. The default is no prefix. For a namespace
// within a program use [Cache.Sub] instead of another cache, see [New]. Two caches
// share no keys if neither prefix begins with the other: "a:" and "ab:" share none,
// "a" and "ab" may.
func WithPrefix(prefix string) Option {
	return Option{func(c *cacheConfig) { c.prefix = prefix }}
}

// WithTTL sets the TTL of values that are stored with [DefaultTTL]: at least a
// millisecond, or [NoExpiry]. Any other d, zero included, is an error. Without this
// option such a value does not expire, and [Of] returns an error for a [Policy] with a
// zero TTL.
func WithTTL(d time.Duration) Option {
	return Option{func(c *cacheConfig) { c.ttl, c.ttlGiven = d, true }}
}

// WithTimeout bounds each operation, including the wait for a connection, as a
// deadline of the caller's context would. The earlier of the two applies. In an
// operation for many keys it bounds each 512 commands and each large command, and
// after a timeout no more are sent. With zero only the context and the timeouts of
// the connection apply, such as [WithReadTimeout] or redis.DialReadTimeout. Negative
// is an error. The default is [DefaultTimeout].
func WithTimeout(d time.Duration) Option {
	return Option{func(c *cacheConfig) { c.timeout = d }}
}

// WithPipelineConns lets the callers of a cache share at most n connections, and one
// more while the cache is about to return one. The default is [DefaultPipelineConns] for
// a [*WarmPool] and redigo's *redis.Pool, and zero for any other pool. Negative is an
// error.
//
// To size a pool, count what a cache borrows. While only small values pass it borrows one
// connection; after replies of two kilobytes and more it spreads its calls over all n.
// After a second without a call it borrows none. While they last, these borrow one more
// each: a command of 64 KiB or more, a command whose last reply was so large or broke its
// connection, the retry of a call whose connection broke, and from a [*WarmPool] that has
// one to spare also a command of 8 keys or more and each SetMany.
//
// It borrows fewer if the pool has none to spare: from a *redis.Pool that would have none
// left it borrows one at a time, for about 20 ms; see [Pool]. Zero borrows a connection
// for each command, for pools whose connections cannot be shared: in a shared connection
// one goroutine calls Send and Flush while another calls Receive.
func WithPipelineConns(n int) Option {
	return Option{func(c *cacheConfig) { c.pipelineConns = n }}
}

// WithObserver calls o for each [Event]. The option may be given more than once: the
// observers are called in the order of the options, and each [Ender] in the reverse order.
// Without this option, or with nil, the cache does not measure times.
func WithObserver(o Observer) Option {
	return Option{func(c *cacheConfig) {
		if o != nil {
			c.observers = append(c.observers, o)
		}
	}}
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

// validBasePath reports whether a path can begin with p as it is written. It cannot if
// a mux would clean p, or if p has an escape, which clients may write differently.
func validBasePath(p string) bool {
	if p == "" {
		return true
	}
	return p != "/" && p[0] == '/' && path.Clean(p) == p && (&url.URL{Path: p}).EscapedPath() == p
}

// WithBasePath serves keys under p + "/" instead of [DefaultBasePath]. Empty serves
// them at the root. Any other p must begin with a slash and must not end with a slash.
// It must have no empty, "." or ".." segment and nothing that needs escaping.
// Otherwise it is an error.
//
// The prefix that http.StripPrefix removes may end with a slash. Then /cache//a is the
// same key as /cache/a, unless the router cleans paths, as http.ServeMux does.
func WithBasePath(p string) HandlerOption {
	return HandlerOption{func(c *handlerConfig) { c.basePath = p }}
}

// WithMaxValueBytes refuses values of more than n bytes with 413. The bound is for
// the decoded value, not for its form in a body. It must be positive.
func WithMaxValueBytes(n int64) HandlerOption {
	return HandlerOption{func(c *handlerConfig) { c.maxValueBytes = n }}
}

// WithMaxTTL refuses a ttl above d with 422. It does not bound requests without a ttl,
// which get the default TTL of the store. Below a millisecond is an error.
func WithMaxTTL(d time.Duration) HandlerOption {
	return HandlerOption{func(c *handlerConfig) { c.maxTTL = d }}
}

// WithKeyFunc calls f to map the key of a request to the key in the store, for example
// to add a tenant's prefix, or to refuse the request. An error of f refuses the request
// with 403, or with the status of a [*RefusedError] in it. The text of the error is
// logged at level Debug and never sent to the client, and neither is the key in the
// store. If f returns the same key for two clients, they share the value. Without this
// option the store gets the key of the request; a nil f is an error.
func WithKeyFunc(f func(r *http.Request, key string) (string, error)) HandlerOption {
	return HandlerOption{func(c *handlerConfig) { c.keyFunc = f }}
}

// WithLogger logs the causes of failures to l: at level Error what an operator must
// fix (500, and a body that a middleware has read), at Warn 409, 413 from the store,
// 503 and 504, and at Debug refusals and clients that went away. Without this option l
// is what [slog.Default] returned when the handler was made; nil is an error.
//
// A handler logs at most one line a second for each error code, because in an outage
// every request fails for the same reason. The attribute "suppressed" of a line counts
// the failures with its code that were not logged since the line before; it is absent
// if there were none. The handler has no goroutine, so the last count of an outage is
// logged only with the next failure of that code.
//
// The first request whose path does not begin with the base path is logged once at
// level Warn, because the handler is probably mounted in the wrong place. If the base
// path is empty, the path of that request has several segments.
func WithLogger(l *slog.Logger) HandlerOption {
	return HandlerOption{func(c *handlerConfig) { c.logger = l }}
}

// faults collects the errors of a configuration.
type faults []error

func (f *faults) check(ok bool, format string, args ...any) {
	if !ok {
		*f = append(*f, fmt.Errorf("rediscache: "+format, args...))
	}
}

func (f faults) join() error { return errors.Join(f...) }
