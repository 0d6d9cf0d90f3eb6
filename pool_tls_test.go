package rediscache_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"math/rand/v2"
	"net"
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
			s := systest.StartTLS(t, "--tls-systest.Protocols", protocol)
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
