package rediscache_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

func TestEverySchemeReachesItsServer(t *testing.T) {
	redistest.NoLeaks(t)
	const password = "p/a:s@s?w#o%rd"
	certs := redistest.NewCerts(t)
	s := redistest.StartTLS(t, certs, certs.Server, "--requirepass", password,
		"--user", "alice", "on", ">wonder land", "~*", "&*", "+@all")
	escaped := url.QueryEscape(password)
	for _, c := range []struct {
		url  string
		user string
		db   int
	}{
		{"redis://:" + escaped + "@" + s.Addr, "default", 0},
		{"redis://:" + escaped + "@" + s.Addr + "/", "default", 0},
		{"redis://:" + escaped + "@" + s.Addr + "/7", "default", 7},
		{"redis://" + escaped + "@" + s.Addr, "default", 0},
		{"redis://default:" + escaped + "@" + s.Addr, "default", 0},
		{"valkey://alice:wonder%20land@" + s.Addr + "/3", "alice", 3},
		{"rediss://alice:wonder%20land@" + s.TLSAddr + "/4", "alice", 4},
		{"valkeys://:" + escaped + "@" + s.TLSAddr, "default", 0},
		{"unix://:" + escaped + "@" + s.Socket, "default", 0},
		{"unix://alice:wonder%20land@" + s.Socket + "?db=5", "alice", 5},
	} {
		scheme, _, _ := strings.Cut(c.url, ":")
		t.Run(fmt.Sprintf("%s user %s database %d", scheme, c.user, c.db), func(t *testing.T) {
			name := strings.ReplaceAll(t.Name(), " ", "-")
			opts := sizes(2, 3, rediscache.WithClientName(name))
			if strings.Contains(c.url, s.TLSAddr) {
				opts = append(opts, rediscache.WithTLSConfig(certs.ClientConfig()))
			}
			p, err := rediscache.NewPool(c.url, opts...)
			require.NoError(t, err)
			defer p.Close()
			requireReady(t, p)
			clients := s.Clients(name)
			require.Len(t, clients, 2)
			require.Equal(t, c.user, clients[0].Field["user"])
			require.Equal(t, c.db, clients[0].DB)
			requireSimultaneous(t, p, 3)
			require.NoError(t, p.Close())
			require.Empty(t, s.Clients(name), "Close waits until the server is done with them")
		})
	}
}

func TestAWrongDatabaseIsSaid(t *testing.T) {
	s := poolServer(t)
	p := startPoolAt(t, s, s.URL()+"/99", sizes(1, 2)...)
	_, err := p.GetContext(context.Background())
	require.ErrorIs(t, err, rediscache.ErrUnavailable)
	require.ErrorContains(t, err, "DB index is out of range")
}

func TestCredentialsAreAskedForAtEachDial(t *testing.T) {
	s := poolServer(t, "--requirepass", "old")
	var password atomic.Value
	password.Store("old")
	p := startPoolAt(t, s, "redis://:from-the-url@"+s.Addr, sizes(2, 4,
		rediscache.WithCredentials(func(context.Context) (string, string, error) {
			return "default", password.Load().(string), nil
		}))...)
	requireReady(t, p)
	ids := clientIDs(t, s)

	s.ConfigSet("requirepass", "new")
	password.Store("new")
	requireSimultaneous(t, p, 4)
	require.Subset(t, clientIDs(t, s), ids, "those that are open stay")
	letRest(t)
	s.KillClients()
	requireSimultaneous(t, p, 4)
}

func TestADialFuncReplacesTheURL(t *testing.T) {
	s := poolServer(t)
	p := startPoolAt(t, s, "", sizes(2, 4, rediscache.WithDialFunc(func(ctx context.Context) (redis.Conn, error) {
		return redis.DialContext(ctx, "tcp", s.Addr, redis.DialClientName(t.Name()))
	}))...)
	requireReady(t, p)
	require.Len(t, s.Clients(t.Name()), 2)
	requireSimultaneous(t, p, 4)
	require.NoError(t, p.Shutdown(context.Background()))
	eventuallyClients(t, s, 0)
}

func TestADialFuncsErrorIsTheCause(t *testing.T) {
	redistest.NoLeaks(t)
	cause := errors.New("no route today")
	for want, dial := range map[string]func(context.Context) (redis.Conn, error){
		"no route today":    func(context.Context) (redis.Conn, error) { return nil, cause },
		"neither":           func(context.Context) (redis.Conn, error) { return nil, nil }, //nolint:nilnil // a fault
		"no connection wit": func(ctx context.Context) (redis.Conn, error) { <-ctx.Done(); return nil, ctx.Err() },
	} {
		limit := rediscache.DefaultDialTimeout
		if want == "no connection wit" {
			limit = 50 * time.Millisecond
		}
		p, err := rediscache.NewPool("", rediscache.WithDialFunc(dial), rediscache.WithDialTimeout(limit))
		require.NoError(t, err)
		_, err = p.GetContext(context.Background())
		require.ErrorIs(t, err, rediscache.ErrUnavailable)
		require.ErrorContains(t, err, want)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, want == "no route today", errors.Is(err, cause))
		require.NoError(t, p.Close())
	}
}

func TestDialOptionsWinOverTheURL(t *testing.T) {
	s := poolServer(t)
	p := startPoolAt(t, s, s.URL()+"/2", sizes(1, 1, rediscache.WithDialOptions(redis.DialDatabase(9)))...)
	requireReady(t, p)
	require.Equal(t, 9, s.Clients(t.Name())[0].DB)
}

func TestNewPoolNamesEveryFaultAndNoPassword(t *testing.T) {
	for _, c := range []struct {
		url   string
		opts  []rediscache.PoolOption
		wants []string
	}{
		{"redis://localhost:0/x?tls=on&ssl=1#f", []rediscache.PoolOption{
			rediscache.WithMinIdle(-1), rediscache.WithMaxActive(0), rediscache.WithIdleTimeout(-1),
			rediscache.WithMaxConnLifetime(-1), rediscache.WithHealthCheckAfter(-1), rediscache.WithDialTimeout(0),
			rediscache.WithReadTimeout(0), rediscache.WithWriteTimeout(-1), rediscache.WithClientName("a b"),
			rediscache.WithBusyPoll(-1),
		}, []string{
			"the port", `"x" is not a number`, `"tls"`, `"ssl"`, "fragment",
			"WithMinIdle: -1", "WithMaxActive: 0", "WithIdleTimeout: -1ns", "WithMaxConnLifetime: -1ns",
			"WithHealthCheckAfter: -1ns", "WithDialTimeout: 0s", "WithReadTimeout: 0s", "WithWriteTimeout: -1ns", "WithClientName",
			"WithBusyPoll: -1ns is not between zero and 1ms",
		}},
		{"redis://localhost", sizes(1, 1, rediscache.WithBusyPoll(time.Second)), []string{"WithBusyPoll: 1s is not between zero and 1ms"}},
		{"redis://localhost", sizes(6, 5), []string{"WithMinIdle: 6 is above the maximum of 5"}},
		{"", nil, []string{`scheme ""`}},
		{"localhost:6379", nil, []string{"cannot be parsed"}},
		{"http://localhost", nil, []string{`scheme "http"`}},
		{"redis://localhost:65536", nil, []string{"the port"}},
		{"redis://localhost/-1", nil, []string{`"-1" is not a number`}},
		{"redis://localhost/+1", nil, []string{`"+1" is not a number`}},
		{"redis://alice:@localhost", nil, []string{"user without a password"}},
		{"unix://run/redis.sock", nil, []string{"absolute path"}},
		{"unix://", nil, []string{"path of the socket is missing"}},
		{"unix:///run/redis.sock?db=x&y=z", nil, []string{`"x" is not a number`, `"y"`}},
		{"redis://alice:s3cret%zz@localhost", nil, []string{"cannot be parsed"}},
		{"redis://:s3cret@localhost:port", nil, []string{"cannot be parsed"}},
		{"redis://:12/s3cret@localhost", nil, []string{"cannot be parsed"}},
		{"redis://:12?s3cret@localhost", nil, []string{"cannot be parsed"}},
		{"redis://:12#s3cret@localhost", nil, []string{"cannot be parsed"}},
		{"redis://:12?s3cret%40localhost", nil, []string{"cannot be parsed"}},
		{"redis://:12#s3cret%40localhost", nil, []string{"cannot be parsed"}},
		{"redis://:12/s3cret%40localhost", nil, []string{"cannot be parsed"}},
		{"redis://:s3cret%2@localhost", nil, []string{"cannot be parsed"}},
		{"redis://:s3cret@local host", nil, []string{"cannot be parsed"}},
		{"redis://:s3cret@[::1", nil, []string{"cannot be parsed"}},
		{"redis://:s3cret\n@localhost", nil, []string{"cannot be parsed"}},
		{"redis:/:s3cret@localhost", nil, []string{"cannot be parsed"}},
		{"//alice:s3cret@localhost", nil, []string{`scheme ""`}},
		{"alice:s3cret@localhost", nil, []string{"cannot be parsed"}},
		{":s3cret@localhost", nil, []string{"cannot be parsed"}},
		{"s3cret@localhost", nil, []string{"cannot be parsed"}},
		{"redis://alice:s3cret@localhost:99999", nil, []string{"the port"}},
		{"redis://alice:s3cret@localhost/0?s=1", nil, []string{`unknown parameter "s"`}},
		{"redis:s3cret@localhost", nil, []string{"cannot be parsed"}},
		{"redis://:s3cret@localhost/x", nil, []string{`"x"`}},
		{"ftp://alice:s3cret@localhost", nil, []string{`"ftp"`}},
		{"unix://:s3cret@", nil, []string{"missing"}},
	} {
		t.Run(c.url, func(t *testing.T) {
			p, err := rediscache.NewPool(c.url, c.opts...)
			require.Nil(t, p)
			require.Error(t, err)
			faults := strings.Split(err.Error(), "\n")
			require.Len(t, faults, len(c.wants), err.Error())
			for i, fault := range faults {
				require.True(t, strings.HasPrefix(fault, "rediscache: "), fault)
				require.Contains(t, err.Error(), c.wants[i])
			}
			require.NotContains(t, redistest.EveryText(err), "s3cret")
		})
	}
}

func TestNewPoolAcceptsWhatItDocuments(t *testing.T) {
	redistest.NoLeaks(t)
	for _, url := range []string{"redis://localhost", "redis://", "redis://[::1]:6379/0", "redis://:@localhost", "unix:///run/redis@1.sock"} {
		p, err := rediscache.NewPool(url, sizes(0, 1, rediscache.WithIdleTimeout(0), rediscache.WithMaxConnLifetime(0),
			rediscache.WithHealthCheckAfter(0), rediscache.WithClientName(""), rediscache.PoolOption{})...)
		require.NoError(t, err, url)
		require.Zero(t, p.Stats())
		require.NoError(t, p.Close())
	}
}

// Each common mistake is an error of NewPool that names the correction.
func TestNewPoolSaysWhatToWriteInstead(t *testing.T) {
	const (
		list    = "it names more than one server, and a pool is for one: write one host"
		colons  = "write one port, and an IPv6 address in brackets, as in redis://[::1]:6379"
		scheme  = "it has no scheme: write redis://localhost:6379"
		slashes = "two slashes follow the scheme, as in redis://localhost:6379"
		space   = "it has white space or a control character: remove it, or write %20"
		socket  = "as in unix:///run/redis.sock"
		port    = "the port is not a number: write redis://localhost:6379"
		path    = "write one as the path, as in redis://localhost:6379/0"
		escape  = "must be escaped: %25 for %, %40 for @, %2F for /, %3F for ?, %23 for #"
		user    = "user without a password: write redis://user:password@host, or use WithCredentials"
		known   = "is none of redis, rediss, valkey, valkeys, unix"
		one     = "a pool is for one server: write redis:// and its address"
	)
	for url, want := range map[string]string{
		"redis://h1:6379,h2:6379":                      list,
		"redis://h1,h2":                                list,
		"REDISS://h1:6379,h2:6379/0":                   list,
		"redis://:s3cret@h1:6379,h2:6379":              list,
		"redis://:s3cret@h1:6379,:s3cret@h2:6379":      list,
		"redis://h1:6379,redis://h2:6379":              list,
		"redis://h1:6379;h2:6379":                      list,
		"redis://h:6379,":                              list,
		"redis://h1:26379,h2:26379/mymaster/0":         list,
		"redis://localhost:6379:6380":                  colons,
		"redis://::1":                                  colons,
		"redis://::1:6379/0":                           colons,
		"redis://alice:s3cret@fe80::1":                 colons,
		"redis://[::1":                                 colons,
		"redis://::1]:6379":                            colons,
		"localhost:6379":                               scheme,
		"localhost":                                    scheme,
		"127.0.0.1:6379":                               scheme,
		"[::1]:6379":                                   scheme,
		"redis.example.com:6379/0":                     scheme,
		"alice:s3cret@localhost:6379":                  scheme,
		"redis//localhost":                             scheme,
		"redis:localhost":                              slashes,
		"redis:localhost:6379":                         slashes,
		"redis:/localhost":                             slashes,
		"rediss:/:s3cret@localhost":                    slashes,
		" redis://localhost":                           space,
		"redis://localhost ":                           space,
		"redis://localhost\n":                          space,
		"redis://local host":                           space,
		"redis://:my s3cret@localhost":                 space,
		`"redis://localhost"`:                          "it is in quotation marks: remove them",
		"'redis://:s3cret@localhost'":                  "it is in quotation marks: remove them",
		"/run/redis.sock":                              socket,
		"unix:run/redis.sock":                          socket,
		"unix://run/redis.sock":                        socket,
		"unix://":                                      socket,
		"redis://localhost:port":                       port,
		"redis://localhost:6379x":                      port,
		"redis://localhost:-1":                         port,
		"redis://alice:s3cret":                         port,
		"redis://:s3cret":                              port,
		"redis://localhost:0":                          "the port is not between 1 and 65535",
		"redis://localhost:65536":                      "the port is not between 1 and 65535",
		"redis://localhost/0/1":                        path,
		"redis://localhost/x":                          path,
		"redis://localhost//1":                         path,
		"unix:///run/redis.sock?db=x":                  "write one as a parameter, as in unix:///run/redis.sock?db=0",
		"redis://localhost?tls=true":                   "write rediss:// for TLS",
		"redis://localhost?ssl_cert_reqs=none":         "write rediss:// for TLS",
		"redis://localhost?db=1":                       "write the database as the path, as in redis://localhost:6379/0",
		"redis://localhost?password=s3cret":            "write redis://user:password@host",
		"redis://localhost?username=alice":             "write redis://user:password@host",
		"redis://localhost?pool_size=10":               "the options of NewPool set what the URL does not",
		"redis://localhost#0":                          "fragment: write %23 for #",
		"redis://alice:@localhost":                     user,
		"unix://alice:@/run/redis.sock":                user,
		"redis://:a/s3cret@localhost":                  escape,
		"redis://:a?s3cret@localhost":                  escape,
		"redis://:s3cret^@localhost":                   escape,
		"redis://:s3cret%@localhost":                   escape,
		"":                                             known + ": write redis://localhost:6379",
		"//localhost":                                  known,
		"http://localhost":                             known,
		"tcp://localhost:6379":                         known,
		"redis+tls://localhost":                        known + ": write rediss:// for TLS",
		"redis+socket:///run/redis.sock":               known + ": write unix:///run/redis.sock",
		"redis-sentinel://:s3cret@h1:26379,h2:26379/0": one,
		"redis+sentinel://h1:26379/mymaster":           one,
		"redis+cluster://h1:6379,h2:6379":              one,
		"redis-cluster://:s3cret@h1:6379,h2:6379":      one,
	} {
		t.Run(url, func(t *testing.T) {
			p, err := rediscache.NewPool(url, sizes(0, 1)...)
			require.Nil(t, p)
			require.ErrorContains(t, err, want)
			require.NotContains(t, redistest.EveryText(err), "s3cret")
			require.NotContains(t, redistest.EveryText(err), "alice")
			require.NotContains(t, err.Error(), "\n", "one fault")
		})
	}
}

func TestNewPoolTakesEveryURLOfOneServer(t *testing.T) {
	redistest.NoLeaks(t)
	for _, url := range []string{
		"REDIS://LOCALHOST:6379", "redis:///0", "redis://localhost:", "redis://localhost/", "redis://localhost?", "redis://localhost#",
		"redis://[fe80::1%25eth0]:6379", "redis://:a,b;c:d@localhost", "redis://:a:b@[::1]", "redis://al,ice:pw@localhost",
		"unix:/run/redis.sock", "unix:///run/a,b:c;d.sock", "redis://:it's%20a%20%22quote%22@localhost",
	} {
		p, err := rediscache.NewPool(url, sizes(0, 1)...)
		require.NoError(t, err, url)
		require.NoError(t, p.Close())
	}
}

func TestWithCredentialsAURLNeedsNoPassword(t *testing.T) {
	s := poolServer(t, "--user", "alice", "on", ">wonder land", "~*", "&*", "+@all")
	for _, url := range []string{"redis://alice:@" + s.Addr, "redis://alice:@" + s.Addr + "/3", "redis://" + s.Addr} {
		p := startPoolAt(t, s, url, sizes(1, 2, rediscache.WithCredentials(func(context.Context) (string, string, error) {
			return "alice", "wonder land", nil
		}))...)
		requireReady(t, p)
		require.Equal(t, "alice", s.Clients(t.Name())[0].Field["user"], url)
		require.NoError(t, p.Close())
		eventuallyClients(t, s, 0)
	}
}

func TestAUselessTLSConfigIsAnError(t *testing.T) {
	config := rediscache.WithTLSConfig(new(tls.Config))
	dial := rediscache.WithDialFunc(func(context.Context) (redis.Conn, error) { return nil, nil })
	for name, c := range map[string]struct {
		url  string
		opts []rediscache.PoolOption
		says []string
	}{
		"nil":          {"rediss://localhost", []rediscache.PoolOption{rediscache.WithTLSConfig(nil)}, []string{"write new(tls.Config)"}},
		"redis":        {"redis://localhost", []rediscache.PoolOption{config}, []string{"write rediss://"}},
		"valkey":       {"valkey://localhost", []rediscache.PoolOption{config}, []string{"write rediss://"}},
		"unix":         {"unix:///run/redis.sock", []rediscache.PoolOption{config}, []string{"write rediss://"}},
		"a dial func":  {"", []rediscache.PoolOption{config, dial}, []string{"use TLS in it"}},
		"TLS 1.1":      {"rediss://localhost", []rediscache.PoolOption{rediscache.WithTLSConfig(&tls.Config{MinVersion: tls.VersionTLS11})}, []string{"leave MinVersion out"}},
		"all together": {"redis://localhost/x", []rediscache.PoolOption{rediscache.WithTLSConfig(nil), rediscache.WithMinIdle(-1)}, []string{"new(tls.Config)", "rediss://", "WithMinIdle", "database"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rediscache.NewPool(c.url, c.opts...)
			require.Error(t, err)
			for _, say := range c.says {
				require.ErrorContains(t, err, say)
			}
		})
	}
	_, err := rediscache.NewPool("nonsense://", config)
	require.NotContains(t, err.Error(), "WithTLSConfig", "nobody knows whether that is with TLS")
}

func TestTheServerNameIsTheHostUnlessItIsSet(t *testing.T) {
	redistest.NoLeaks(t)
	certs := redistest.NewCerts(t)
	var asked, shown atomic.Value
	s := redistest.NewScriptTLS(t, &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		asked.Store(hello.ServerName)
		pair := shown.Load().(redistest.Cert).Pair
		return &pair, nil
	}}, func(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false })
	_, port, _ := strings.Cut(s.Addr, ":")
	dial := func(host, name string) error {
		config := certs.ClientConfig()
		config.ServerName = name
		p := newPool(t, "rediss://"+host+":"+port, sizes(0, 1, rediscache.WithTLSConfig(config))...)
		require.Equal(t, name, config.ServerName, "the pool has a copy")
		require.Nil(t, config.ClientSessionCache)
		return ping(t.Context(), p)
	}
	shown.Store(certs.Server)
	require.NoError(t, dial("localhost", ""))
	require.Equal(t, "localhost", asked.Load())
	require.NoError(t, dial("127.0.0.1", ""))
	require.Equal(t, "", asked.Load(), "an address is no name")

	shown.Store(certs.WrongName)
	require.NoError(t, dial("127.0.0.1", "elsewhere.invalid"))
	require.Equal(t, "elsewhere.invalid", asked.Load())
	err := dial("localhost", "")
	systest.IsA[x509.HostnameError](t, err)
	require.ErrorContains(t, err, "set it as ServerName in WithTLSConfig")

	shown.Store(certs.Server)
	p := newPool(t, "rediss://localhost:"+port, sizes(0, 1)...)
	err = ping(t.Context(), p)
	systest.IsA[x509.UnknownAuthorityError](t, err)
	require.ErrorContains(t, err, "set it as RootCAs in WithTLSConfig")
}

// A resumed session saves a dial the certificates. A function that crypto/tls does not call for a
// resumed session is called for each dial.
func TestDialsAfterTheFirstResumeTheSession(t *testing.T) {
	for protocol, version := range systest.Protocols {
		t.Run(protocol, func(t *testing.T) {
			redistest.NoLeaks(t)
			s := systest.StartTLS(t, "--tls-protocols", protocol)
			var dials, resumed, verified atomic.Int64
			config := s.Certs.ClientConfig()
			config.VerifyConnection = func(state tls.ConnectionState) error {
				if state.Version != version {
					t.Errorf("version %x", state.Version)
				}
				dials.Add(1)
				if state.DidResume {
					resumed.Add(1)
				}
				return nil
			}
			open := func() *rediscache.WarmPool {
				return newPool(t, "rediss://"+s.TLSAddr, sizes(0, 9, rediscache.WithTLSConfig(config))...)
			}
			p := open()
			requireSimultaneous(t, p, 1)
			require.Zero(t, resumed.Load())
			requireSimultaneous(t, p, 9)
			require.EqualValues(t, 9, dials.Load())
			require.EqualValues(t, 8, resumed.Load())
			requireSimultaneous(t, open(), 1)
			require.EqualValues(t, 8, resumed.Load(), "another pool has sessions of its own")

			config.VerifyPeerCertificate = func([][]byte, [][]*x509.Certificate) error { verified.Add(1); return nil }
			p = open()
			requireSimultaneous(t, p, 1)
			requireSimultaneous(t, p, 4)
			require.EqualValues(t, 4, verified.Load())

			config.ClientSessionCache = tls.NewLRUClientSessionCache(10)
			p = open()
			requireSimultaneous(t, p, 1)
			requireSimultaneous(t, p, 4)
			require.EqualValues(t, 5, verified.Load(), "with a cache of one's own sessions are resumed")
		})
	}
}

// These functions run in the goroutine of the dial, where nobody else could recover.
func TestAFunctionOfTheTLSConfigThatPanicsFailsTheDial(t *testing.T) {
	redistest.NoLeaks(t)
	s := systest.StartTLS(t)
	for how, end := range map[string]func(){"panicked: oops": func() { panic("oops") }, "ended its goroutine": runtime.Goexit} {
		for name, set := range map[string]func(*tls.Config){
			"GetClientCertificate": func(c *tls.Config) {
				c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { end(); return nil, nil }
			},
			"VerifyPeerCertificate": func(c *tls.Config) {
				c.VerifyPeerCertificate = func([][]byte, [][]*x509.Certificate) error { end(); return nil }
			},
			"VerifyConnection": func(c *tls.Config) {
				c.VerifyConnection = func(tls.ConnectionState) error { end(); return nil }
			},
			"ClientSessionCache": func(c *tls.Config) { c.ClientSessionCache = endingCache{end} },
			"Time":               func(c *tls.Config) { c.Time = func() time.Time { end(); return time.Time{} } },
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				config := s.Certs.ClientConfig()
				set(config)
				p := newPool(t, "rediss://"+s.TLSAddr, sizes(0, 1, rediscache.WithTLSConfig(config))...)
				err := ping(t.Context(), p)
				require.ErrorIs(t, err, rediscache.ErrUnavailable)
				require.ErrorContains(t, err, how)
				redistest.Eventually(t, func() bool { return p.Stats().Open == 0 }, "no slot is lost")
			})
		}
	}
}

type endingCache struct{ end func() }

func (c endingCache) Get(string) (*tls.ClientSessionState, bool) { c.end(); return nil, false }
func (c endingCache) Put(string, *tls.ClientSessionState)        { c.end() }

// A ticket comes after the handshake, so crypto/tls puts it into the cache in a read.
func TestASessionCacheThatPanicsLaterFailsTheDialToo(t *testing.T) {
	redistest.NoLeaks(t)
	s := systest.StartTLS(t)
	config := s.Certs.ClientConfig()
	config.ClientSessionCache = latePanic{}
	p := newPool(t, "rediss://"+s.TLSAddr, sizes(0, 1, rediscache.WithTLSConfig(config))...)
	err := ping(t.Context(), p)
	require.ErrorIs(t, err, rediscache.ErrUnavailable)
	require.ErrorContains(t, err, "TLS panicked: oops")
}

type latePanic struct{}

func (latePanic) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (latePanic) Put(string, *tls.ClientSessionState)        { panic("oops") }

func TestAnIdleConnectionWithTLSIsNotLentAfterItsEnd(t *testing.T) {
	redistest.NoLeaks(t)
	certs := redistest.NewCerts(t)
	script := redistest.NewScriptTLS(t, certs.ServerConfig(),
		func(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false })
	p := newPool(t, "rediss://"+script.Addr, sizes(1, 1, rediscache.WithTLSConfig(certs.ClientConfig()))...)
	requireReady(t, p)
	for n, spoil := range []func(){
		script.HangUp, // with a close_notify
		func() { script.Push([]byte("+SURPRISE\r\n")) },
	} {
		letRest(t)
		spoil()
		redistest.Eventually(t, func() bool { return p.Stats().Closed.Broken == int64(n+1) }, "it was looked at")
		conn := borrowOne(t, p)
		reply, err := conn.Do("PING")
		require.NoError(t, err)
		require.Equal(t, "PONG", reply)
		giveBack(t, conn)
	}
}

func TestLargeValuesPassThroughTLS(t *testing.T) {
	redistest.NoLeaks(t)
	s := systest.StartTLS(t)
	pool := systest.PoolAt["rediss"](t, s, "")
	for _, conns := range []int{0, rediscache.DefaultPipelineConns} {
		c := newCache(t, pool, rediscache.WithPipelineConns(conns), rediscache.WithTimeout(20*time.Second))
		var callers sync.WaitGroup
		for i := range 16 {
			callers.Go(func() {
				key, source := string(rune('a'+i)), rand.NewChaCha8([32]byte{byte(i)})
				for _, n := range []int{1, 16<<10 - 1, 16 << 10, 16<<10 + 1, 60_000, 70_000, 1 << 20, 3_000_001} {
					value := make([]byte, n)
					_, _ = source.Read(value) // never fails
					err := c.Set(t.Context(), key, value, 0)
					got, getErr := c.Get(t.Context(), key)
					if err != nil || getErr != nil || !bytes.Equal(value, got) {
						t.Errorf("%d bytes: %v, %v, %d bytes", n, err, getErr, len(got))
					}
				}
			})
		}
		callers.Wait()
	}
	require.Zero(t, pool.Stats().Closed.Broken)
}

// A server that does not read stops a write in the middle of a record.
func TestAWriteThatStallsWithTLSEndsInTime(t *testing.T) {
	redistest.NoLeaks(t)
	s := systest.StartTLS(t)
	pool := systest.PoolAt["rediss"](t, s, "", rediscache.WithReadTimeout(200*time.Millisecond),
		rediscache.WithWriteTimeout(200*time.Millisecond), rediscache.WithHealthCheckAfter(time.Minute))
	for _, size := range []int{100, 60_000, 32 << 20} {
		c := newCache(t, pool, rediscache.WithTimeout(0))
		require.NoError(t, c.Ping(t.Context()))
		s.Stop()
		err := c.Set(t.Context(), "k", make([]byte, size), 0)
		s.Cont()
		if size < 1<<20 { // the sockets took all of it
			require.ErrorIs(t, err, rediscache.ErrOutcomeUnknown)
		} else {
			require.ErrorIs(t, err, rediscache.ErrUnavailable)
			require.NotErrorIs(t, err, rediscache.ErrOutcomeUnknown, "a part was not sent")
		}
		redistest.Eventually(t, func() bool { return c.Ping(t.Context()) == nil }, "it is replaced")
	}
}

// The dial options that leave the timeouts and the transport alone leave the cache its own wire, and
// then a GET costs one allocation. Any way the options work.
func TestDialOptionsWork(t *testing.T) {
	redistest.NoLeaks(t)
	s := systest.StartTLS(t)
	host := "localhost:" + s.TLSAddr[strings.LastIndexByte(s.TLSAddr, ':')+1:]
	skips := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{s.Certs.Client.Pair}}
	for name, c := range map[string]struct {
		url  string
		opts []redis.DialOption
		more []rediscache.PoolOption
		own  bool
		db   int
	}{
		"a database":                {"redis://" + s.Addr, []redis.DialOption{redis.DialDatabase(3)}, nil, true, 3},
		"a client name":             {"redis://" + s.Addr, []redis.DialOption{redis.DialClientName("n")}, nil, true, 0},
		"keep-alive":                {"redis://" + s.Addr, []redis.DialOption{redis.DialKeepAlive(time.Minute)}, nil, true, 0},
		"a Unix socket":             {"unix://" + s.Socket, []redis.DialOption{redis.DialDatabase(2)}, nil, true, 2},
		"a read timeout":            {"redis://" + s.Addr, []redis.DialOption{redis.DialReadTimeout(time.Second)}, nil, false, 0},
		"no read timeout":           {"redis://" + s.Addr, []redis.DialOption{redis.DialReadTimeout(0)}, nil, false, 0},
		"a dialer":                  {"redis://" + s.Addr, []redis.DialOption{redis.DialNetDial(net.Dial)}, nil, false, 0},
		"a write timeout":           {"redis://" + s.Addr, []redis.DialOption{redis.DialWriteTimeout(time.Second)}, nil, false, 0},
		"TLS by an option":          {"redis://" + host, []redis.DialOption{redis.DialUseTLS(true), redis.DialTLSConfig(s.Certs.ClientConfig())}, nil, false, 0},
		"no TLS by an option":       {"rediss://" + s.Addr, []redis.DialOption{redis.DialUseTLS(false)}, nil, true, 0},
		"a configuration":           {"rediss://" + host, []redis.DialOption{redis.DialTLSConfig(s.Certs.ClientConfig())}, nil, false, 0},
		"any authority":             {"rediss://" + host, []redis.DialOption{redis.DialTLSConfig(skips)}, nil, false, 0},
		"a database beside TLS":     {"rediss://" + host, []redis.DialOption{redis.DialDatabase(4)}, []rediscache.PoolOption{rediscache.WithTLSConfig(s.Certs.ClientConfig())}, false, 4},
		"DialTLSConfig is stronger": {"rediss://" + host, []redis.DialOption{redis.DialTLSConfig(s.Certs.ClientConfig())}, []rediscache.PoolOption{rediscache.WithTLSConfig(new(tls.Config))}, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, c.url, append(c.more, sizes(1, 2, rediscache.WithDialOptions(c.opts...))...)...)
			requireReady(t, p)
			cache := newCache(t, p)
			require.NoError(t, cache.Set(t.Context(), "k", []byte("v"), 0))
			conn := borrowOne(t, p)
			info, err := redis.String(conn.Do("CLIENT", "INFO"))
			require.NoError(t, err)
			require.Contains(t, info, " db="+string(rune('0'+c.db)))
			giveBack(t, conn)
			if !redistest.RaceEnabled {
				requireReady(t, p)
				allocated := testing.AllocsPerRun(200, func() {
					if _, err := cache.Get(t.Context(), "k"); err != nil {
						t.Error(err)
					}
				})
				require.Equal(t, c.own, allocated < 3, "%v allocations", allocated)
			}
		})
	}
	p := newPool(t, "rediss://"+host, sizes(0, 1, rediscache.WithDialOptions(redis.DialTLSSkipVerify(true)))...)
	require.ErrorContains(t, ping(t.Context(), p), "certificate required", "the client has none, but took that of the server")
}
