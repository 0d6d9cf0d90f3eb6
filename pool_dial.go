package rediscache

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/warm"
)

// dialer returns a function that dials. redigo speaks on a TLS connection of the pool
// itself, or does TLS if there are dial options, because these may configure TLS and
// cannot be inspected. redigo's handshake ignores the context, so the socket is closed
// when the context ends. ownWire means that the dial options leave the timeouts as they
// are, so that others than redigo may use the connection.
func (t target) dialer(cfg *poolConfig, ownWire bool) func(context.Context) (warm.Dialed, error) {
	config, redigoTLS := t.tlsConfig(cfg.tls), t.tls && len(cfg.dialOptions) > 0
	poll := warm.NewPoll(cfg.busyPoll)
	return func(ctx context.Context) (d warm.Dialed, err error) {
		user, password := t.user, t.password
		if cfg.credentials != nil {
			if user, password, err = cfg.credentials(ctx); err != nil {
				return d, fmt.Errorf("credentials: %w", err)
			}
		}
		var reached warm.Dialed
		defer func() { // also after a panic
			if d.Conn == nil && reached.Socket != nil {
				reached.Socket.Shut()
			}
		}()
		stop := func() bool { return true }
		opts := []redis.DialOption{
			redis.DialContextFunc(func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				socket := warm.NewSocket(conn, poll)
				reached.Socket = socket
				conn = socket
				if t.tls && !redigoTLS {
					secure, err := warm.Handshake(ctx, socket, config) // which closes the socket when ctx ends
					if err != nil {
						return nil, err
					}
					conn, reached.Stream = secure, secure
				}
				stop = context.AfterFunc(ctx, func() { _ = socket.Close() })
				return conn, nil
			}),
			redis.DialReadTimeout(cfg.readTimeout),
			redis.DialWriteTimeout(cfg.writeTimeout),
			// A little less than the dial timeout, so that the error names the handshake.
			redis.DialTLSHandshakeTimeout(cfg.dialTimeout - cfg.dialTimeout/10),
			redis.DialUseTLS(redigoTLS),
			redis.DialUsername(user),
			redis.DialPassword(password),
			redis.DialDatabase(t.db),
		}
		if cfg.tls != nil { // without it, redis.DialTLSSkipVerify works
			opts = append(opts, redis.DialTLSConfig(config))
		}
		conn, err := redis.DialContext(ctx, t.network, t.address, append(opts, cfg.dialOptions...)...)
		if err == nil {
			err = setName(conn, cfg.clientName)
		}
		stop()
		if err != nil {
			if conn != nil {
				_ = conn.Close()
			}
			return reached, err
		}
		if s := reached.Socket; s != nil && reached.Stream == nil && ownWire && !s.CarriesTLS() {
			reached.Stream = s
		}
		reached.Conn = conn
		return reached, nil
	}
}

// tlsConfig returns the configuration of all dials of a pool. They share a session cache,
// so that a dial after the first exchanges and verifies no certificates. A configuration
// with a function that crypto/tls does not call for a resumed session gets no cache.
func (t target) tlsConfig(given *tls.Config) *tls.Config {
	if !t.tls {
		return nil
	}
	config := new(tls.Config)
	if given != nil {
		config = given.Clone()
	}
	if config.ServerName == "" {
		config.ServerName, _, _ = net.SplitHostPort(t.address) // made by net.JoinHostPort
	}
	if config.ClientSessionCache == nil && config.VerifyPeerCertificate == nil && config.GetClientCertificate == nil {
		config.ClientSessionCache = tls.NewLRUClientSessionCache(1) // one server
	}
	return config
}

// setName sets the client name of a new connection. The name is only for CLIENT LIST,
// so setName ignores a server that refuses CLIENT, as proxies do.
func setName(c redis.Conn, name string) error {
	if name == "" {
		return nil
	}
	_, err := c.Do("CLIENT", "SETNAME", name)
	return warm.Answered(err)
}

// greeting is what redigo sends to the server in a dial, before the PING.
type greeting struct {
	database int // unknownDatabase if the trial dial fails
	named    bool
	timeouts bool // those of the pool
}

const (
	unknownDatabase = -1
	century         = 100 * 365 * 24 * time.Hour
)

// greeting finds out which database and client name the user's dial options set, and
// whether they set timeouts. redigo does not export its options, so greeting dials a fake
// server that answers OK to every command, and reads what redigo sent. The timeouts are a
// century unless an option sets them.
func (t target) greeting(opts []redis.DialOption) (g greeting) {
	g.database, g.timeouts = t.db, len(opts) == 0
	if len(opts) == 0 {
		return g
	}
	defer func() {
		if recover() != nil { // a real dial will panic too, and return the error
			g.database = unknownDatabase
		}
	}()
	server := &yes{}
	opts = append(append([]redis.DialOption{
		redis.DialDatabase(t.db), redis.DialReadTimeout(century), redis.DialWriteTimeout(century),
	}, opts...),
		redis.DialUseTLS(false),
		redis.DialPassword(""),
		redis.DialContextFunc(func(context.Context, string, string) (net.Conn, error) { return server, nil }))
	c, err := redis.Dial(t.network, t.address, opts...)
	if err != nil {
		return greeting{database: unknownDatabase}
	}
	said := strings.Split(server.heard.String(), "\r\n")
	g.database = 0 // redigo sends no SELECT for database 0
	for i := 0; i < len(said); i++ {
		switch said[i] {
		case "SETNAME":
			g.named = true
			i += 2 // skip the name, which may be SELECT
		case "SELECT":
			g.database, _ = strconv.Atoi(said[i+2])
		}
	}
	_, err = c.Do("PING") // sets both deadlines
	g.timeouts = err == nil && time.Until(server.read) > century/2 && time.Until(server.written) > century/2
	return g
}

// yes is a connection to a fake server that answers every command with OK.
type yes struct {
	net.Conn      // nil: redigo calls only the methods below
	heard         strings.Builder
	read, written time.Time // the last deadlines
}

func (y *yes) Write(p []byte) (int, error)        { return y.heard.Write(p) }
func (y *yes) Read(p []byte) (int, error)         { return copy(p, "+OK\r\n"), nil }
func (y *yes) Close() error                       { return nil }
func (y *yes) SetReadDeadline(t time.Time) error  { y.read = t; return nil }
func (y *yes) SetWriteDeadline(t time.Time) error { y.written = t; return nil }

// hidden adapts the user's dial function, whose socket is hidden.
func hidden(dial func(context.Context) (redis.Conn, error)) func(context.Context) (warm.Dialed, error) {
	return func(ctx context.Context) (warm.Dialed, error) {
		c, err := dial(ctx)
		if err == nil && c == nil {
			err = errors.New("the dialer returned neither a connection nor an error")
		}
		return warm.Dialed{Conn: c}, err
	}
}
