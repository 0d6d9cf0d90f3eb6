// Package sentinel has a pool that follows the master of a group of Redis servers which
// Redis Sentinel watches.
//
//	pool, err := sentinel.New([]string{"10.0.0.1:26379", "10.0.0.2:26379", "10.0.0.3:26379"}, "mymaster")
//	cache, err := rediscache.New(pool)
//
// Sentinel elects and promotes; this package asks and follows:
//
//  1. The pool dials the master that the sentinels name. Each new connection must answer
//     ROLE with "master", or the dial fails and the sentinels are asked again.
//  2. On each sentinel it subscribes to +switch-master, and asks all of them once a second
//     besides. Of different answers the one with the highest configuration epoch counts, so a
//     sentinel that was cut off from the others does not lead the pool back to an old master.
//  3. When the master changes, all connections to the old one are closed at once, the
//     borrowed ones too, and new ones are dialled. Otherwise an old master that is still up
//     would go on to acknowledge writes until Sentinel makes it a replica, and then lose them.
//
// What the old master had acknowledged and not yet replicated is lost in any failover, as
// Redis replicates without waiting.
package sentinel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache"
)

// Pool is a [rediscache.WarmPool] that follows a master. All methods of a WarmPool work as
// they do there. All methods are safe for concurrent use.
type Pool struct {
	*rediscache.WarmPool
	watch *watch
}

// Option configures [New].
type Option struct{ apply func(*config) }

type config struct {
	url            string
	pool           []rediscache.PoolOption
	user, password string
	tls            *tls.Config
	timeout        time.Duration
}

// WithServer sets how the pool dials the master: a URL as for [rediscache.NewPool], whose
// host and port are not used, but for the name in a TLS certificate, and the options of the
// pool, except WithAddress, WithOnConnect and WithDialFunc, which New needs itself. The
// default is redis://localhost and no options.
func WithServer(url string, opts ...rediscache.PoolOption) Option {
	return Option{func(c *config) { c.url, c.pool = url, opts }}
}

// WithCredentials sets the user and the password of the sentinels themselves, which may
// differ from those of the servers. An empty user is the default user; an empty password,
// the default, sends no AUTH.
func WithCredentials(user, password string) Option {
	return Option{func(c *config) { c.user, c.password = user, password }}
}

// WithTLSConfig makes connections to the sentinels with TLS. An empty ServerName is the
// host of each sentinel. Without this option, or with nil, they have none.
func WithTLSConfig(t *tls.Config) Option { return Option{func(c *config) { c.tls = t }} }

// WithTimeout bounds each dial of a sentinel and each of its answers. The default is
// 500 ms. Zero and negative are errors.
func WithTimeout(d time.Duration) Option { return Option{func(c *config) { c.timeout = d }} }

// New starts a pool of connections to the master of that name. addrs are the sentinels,
// each a host and a port; without a port it is 26379. Name all of them: New looks for no
// others. New does not wait: no sentinel need be up. Close or Shutdown of the pool must be
// called. The error names every fault of the arguments.
func New(addrs []string, master string, opts ...Option) (*Pool, error) {
	cfg := config{url: "redis://localhost", timeout: 500 * time.Millisecond}
	for _, o := range opts {
		if o.apply != nil {
			o.apply(&cfg)
		}
	}
	var faults []error
	if len(addrs) == 0 {
		faults = append(faults, errors.New("sentinel: no addresses: name each sentinel, as in 10.0.0.1:26379"))
	}
	if master == "" {
		faults = append(faults, errors.New("sentinel: the name of the master is empty: write that of sentinel.conf, often mymaster"))
	}
	if cfg.timeout <= 0 {
		faults = append(faults, fmt.Errorf("sentinel: WithTimeout: %v is not positive", cfg.timeout))
	}
	w := &watch{master: master, found: make(chan struct{})}
	for _, addr := range addrs {
		full, err := withPort(addr)
		if err != nil {
			faults = append(faults, err)
		}
		w.sentinels = append(w.sentinels, newSentinel(full, cfg))
	}
	own := []rediscache.PoolOption{rediscache.WithAddress(w.address), rediscache.WithOnConnect(w.mustBeMaster)}
	pool, err := rediscache.NewPool(cfg.url, slices.Concat(cfg.pool, own)...)
	if err = errors.Join(append(faults, err)...); err != nil {
		if pool != nil {
			_ = pool.Close()
		}
		return nil, err
	}
	w.start(pool.Renew)
	return &Pool{WarmPool: pool, watch: w}, nil
}

// withPort returns the address of a sentinel with a port.
func withPort(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		host, port = strings.Trim(addr, "[]"), "26379"
	}
	n, err := strconv.Atoi(port)
	validHost := host != "" && !strings.ContainsAny(host, "/@, ") && (!strings.Contains(host, ":") || net.ParseIP(host) != nil)
	if err != nil || n < 1 || n > 65535 || !validHost {
		return "", fmt.Errorf("sentinel: address %q: write a host and a port, as in 10.0.0.1:26379", addr)
	}
	return net.JoinHostPort(host, port), nil
}

// Unwrap returns the pool of the current master, for [rediscache.New].
func (p *Pool) Unwrap() *rediscache.WarmPool { return p.WarmPool }

// Master returns the address of the master that the sentinels named last, or "" before
// their first answer.
func (p *Pool) Master() string { return p.watch.current() }

// Shutdown is that of [rediscache.WarmPool.Shutdown]. It also stops to ask the sentinels.
func (p *Pool) Shutdown(ctx context.Context) error {
	p.watch.stop()
	return p.WarmPool.Shutdown(ctx)
}

// Close is that of [rediscache.WarmPool.Close]. It also stops to ask the sentinels.
func (p *Pool) Close() error {
	p.watch.stop()
	return p.WarmPool.Close()
}

var _ rediscache.Pool = (*Pool)(nil)

// mustBeMaster returns an error unless a new connection is one to a master. A server whose
// ACL denies ROLE is believed.
func (w *watch) mustBeMaster(_ context.Context, conn redis.Conn) error {
	reply, err := redis.Values(conn.Do("ROLE"))
	var denied redis.Error
	switch {
	case errors.As(err, &denied) && !strings.HasPrefix(string(denied), "LOADING"):
		return nil
	case err != nil:
		return err
	case len(reply) == 0:
		return errors.New("sentinel: the answer to ROLE is empty")
	}
	if role, err := redis.String(reply[0], nil); err != nil || role != "master" {
		w.ask()
		return fmt.Errorf("sentinel: the server that the sentinels name as master %q has the role %q", w.master, role)
	}
	return nil
}
