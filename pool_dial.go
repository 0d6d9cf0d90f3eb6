package rediscache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/warm"
)

// dialer returns a function that dials with redigo and keeps the socket. redigo's TLS
// handshake ignores the context, so the socket is closed when the context ends.
func (t target) dialer(cfg *poolConfig) func(context.Context) (warm.Dialed, error) {
	poll := warm.NewPoll(cfg.busyPoll)
	return func(ctx context.Context) (d warm.Dialed, err error) {
		user, password := t.user, t.password
		if cfg.credentials != nil {
			if user, password, err = cfg.credentials(ctx); err != nil {
				return d, fmt.Errorf("credentials: %w", err)
			}
		}
		var socket *warm.Socket
		defer func() { // also after a panic
			if d.Conn == nil && socket != nil {
				socket.Shut()
			}
		}()
		stop := func() bool { return true }
		opts := append([]redis.DialOption{
			redis.DialContextFunc(func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				socket = warm.NewSocket(conn, poll)
				stop = context.AfterFunc(ctx, func() { _ = socket.Close() })
				return socket, nil
			}),
			redis.DialReadTimeout(cfg.readTimeout),
			redis.DialWriteTimeout(cfg.writeTimeout),
			// A little less than the dial timeout, so that the error names the handshake.
			redis.DialTLSHandshakeTimeout(cfg.dialTimeout - cfg.dialTimeout/10),
			redis.DialUseTLS(t.tls),
			redis.DialUsername(user),
			redis.DialPassword(password),
			redis.DialDatabase(t.db),
		}, cfg.dialOptions...)
		conn, err := redis.DialContext(ctx, t.network, t.address, opts...)
		if err == nil {
			err = setName(conn, cfg.clientName)
		}
		stop()
		if err != nil {
			if conn != nil {
				_ = conn.Close()
			}
			return warm.Dialed{Socket: socket}, err
		}
		// A dial option may wrap the socket, for example in TLS, and cannot be inspected.
		plain := socket != nil && !t.tls && len(cfg.dialOptions) == 0
		return warm.Dialed{Conn: conn, Socket: socket, Plain: plain}, nil
	}
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
}

const unknownDatabase = -1

// greeting finds out which database and client name the user's dial options set.
// redigo does not export its options, so greeting dials a fake server that answers OK
// to every command, and reads what redigo sent.
func (t target) greeting(opts []redis.DialOption) (g greeting) {
	g.database = t.db
	if len(opts) == 0 {
		return g
	}
	defer func() {
		if recover() != nil { // a real dial will panic too, and return the error
			g.database = unknownDatabase
		}
	}()
	server := &yes{}
	opts = append(append([]redis.DialOption{redis.DialDatabase(t.db)}, opts...),
		redis.DialUseTLS(false),
		redis.DialPassword(""),
		redis.DialContextFunc(func(context.Context, string, string) (net.Conn, error) { return server, nil }))
	if _, err := redis.Dial(t.network, t.address, opts...); err != nil {
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
	return g
}

// yes is a connection to a fake server that answers every command with OK.
type yes struct {
	net.Conn // nil: redigo calls only the methods below
	heard    strings.Builder
}

func (y *yes) Write(p []byte) (int, error)      { return y.heard.Write(p) }
func (y *yes) Read(p []byte) (int, error)       { return copy(p, "+OK\r\n"), nil }
func (y *yes) Close() error                     { return nil }
func (y *yes) SetReadDeadline(time.Time) error  { return nil }
func (y *yes) SetWriteDeadline(time.Time) error { return nil }

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
