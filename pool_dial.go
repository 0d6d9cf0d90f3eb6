package rediscache

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
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

// target is where a URL points.
type target struct {
	network, address string
	tls              bool
	user, password   string
	db               int
}

// parseURL parses the URL of one server. Its error names a correction, and shows no
// part of raw that may belong to a password. If a password has a slash that is not
// escaped, url.Parse puts the rest of the password into the path. credentialsSet means
// that WithCredentials is set.
func parseURL(raw string, credentialsSet bool) (target, error) {
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
	f.check(t.user == "" || t.password != "" || credentialsSet,
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
		address := t.address
		if cfg.address != nil {
			if address, err = cfg.address(ctx); err != nil {
				return d, fmt.Errorf("address: %w", err)
			}
		}
		conn, err := redis.DialContext(ctx, t.network, address, append(opts, cfg.dialOptions...)...)
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
	server := &okServer{}
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
	lines := strings.Split(server.received.String(), "\r\n")
	g.database = 0 // redigo sends no SELECT for database 0
	for i := 0; i < len(lines); i++ {
		switch lines[i] {
		case "SETNAME":
			g.named = true
			i += 2 // skip the name, which may be SELECT
		case "SELECT":
			g.database, _ = strconv.Atoi(lines[i+2])
		}
	}
	_, err = c.Do("PING") // sets both deadlines
	g.timeouts = err == nil && time.Until(server.read) > century/2 && time.Until(server.written) > century/2
	return g
}

// okServer is a connection to a fake server that answers every command with OK.
type okServer struct {
	net.Conn      // nil: redigo calls only the methods below
	received      strings.Builder
	read, written time.Time // the last deadlines
}

func (s *okServer) Write(p []byte) (int, error)        { return s.received.Write(p) }
func (s *okServer) Read(p []byte) (int, error)         { return copy(p, "+OK\r\n"), nil }
func (s *okServer) Close() error                       { return nil }
func (s *okServer) SetReadDeadline(t time.Time) error  { s.read = t; return nil }
func (s *okServer) SetWriteDeadline(t time.Time) error { s.written = t; return nil }

// dialHidden adapts the dial function of WithDialFunc, which hides the socket of a connection.
func dialHidden(dial func(context.Context) (redis.Conn, error)) func(context.Context) (warm.Dialed, error) {
	return func(ctx context.Context) (warm.Dialed, error) {
		c, err := dial(ctx)
		if err == nil && c == nil {
			err = errors.New("the dialer returned neither a connection nor an error")
		}
		return warm.Dialed{Conn: c}, err
	}
}
