package rediscache_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
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
