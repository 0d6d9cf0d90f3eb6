package systest_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
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

// tlsWays are the ways to set a configuration.
var tlsWays = map[string]func(*tls.Config) rediscache.PoolOption{
	"WithTLSConfig": rediscache.WithTLSConfig,
	"WithDialOptions": func(config *tls.Config) rediscache.PoolOption {
		return rediscache.WithDialOptions(redis.DialTLSConfig(config))
	},
}

// tlsPeer is a server whose certificate can change. Its user is app, with the secret.
type tlsPeer struct {
	addr string
	show func(redistest.Cert)
	told func() int // how often a pool has told it something
}

// redisPeer is a redis-server, which counts the AUTHs.
func redisPeer(t *testing.T, certs *redistest.Certs, protocol string) tlsPeer {
	if redistest.Major(t) < 7 {
		t.Skip("it takes a certificate and its key one after the other, and refuses the first alone")
	}
	s := redistest.StartTLS(t, certs, certs.Server, "--tls-protocols", protocol, "--tls-auth-clients", "no",
		"--user", "app", "on", ">"+secret, "~*", "+@all")
	return tlsPeer{
		addr: s.TLSAddr,
		show: func(c redistest.Cert) {
			s.Do("CONFIG", "SET", "tls-cert-file", c.CertFile, "tls-key-file", c.KeyFile)
		},
		told: func() (auths int) {
			_, stat, _ := strings.Cut(string(s.Do("INFO", "commandstats").([]byte)), "cmdstat_auth:calls=")
			_, _ = fmt.Sscan(strings.ReplaceAll(stat, ",", " "), &auths) // none yet: zero
			return auths
		},
	}
}

// recordingPeer is a server with TLS that counts the commands that it receives.
func recordingPeer(t *testing.T, certs *redistest.Certs, protocol string) tlsPeer {
	var shown atomic.Pointer[tls.Certificate]
	shown.Store(&certs.Server.Pair)
	s := redistest.NewScriptTLS(t, &tls.Config{
		MinVersion: systest.Protocols[protocol], MaxVersion: systest.Protocols[protocol],
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return shown.Load(), nil },
	}, func(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false })
	return tlsPeer{
		addr: s.Addr,
		show: func(c redistest.Cert) { shown.Store(&c.Pair) },
		told: func() int { return s.Count("") },
	}
}

// Nor is it when there is a password to tell. Once its certificate is mended the pool fills by itself.
func TestAServerWithoutATrustedCertificateIsNotTalkedTo(t *testing.T) {
	redistest.NoLeaks(t)
	certs := redistest.NewCerts(t)
	isNoTime := func(t *testing.T, err error) {
		var invalid x509.CertificateInvalidError
		require.ErrorAs(t, err, &invalid)
		require.Equal(t, x509.Expired, invalid.Reason)
	}
	for name, c := range map[string]struct {
		shown redistest.Cert
		as    func(*testing.T, error)
	}{
		"of another authority": {redistest.NewCerts(t).Server, systest.IsA[x509.UnknownAuthorityError]},
		"self-signed":          {certs.SelfSigned, systest.IsA[x509.UnknownAuthorityError]},
		"for another host":     {certs.WrongName, systest.IsA[x509.HostnameError]},
		"that has expired":     {certs.Expired, isNoTime},
		"not valid yet":        {certs.NotYet, isNoTime},
	} {
		for kind, start := range map[string]func(*testing.T, *redistest.Certs, string) tlsPeer{
			"redis-server": redisPeer, "recorder": recordingPeer,
		} {
			for protocol, version := range systest.Protocols {
				t.Run(name+" "+kind+" "+protocol, func(t *testing.T) {
					peer := start(t, certs, protocol)
					peer.show(c.shown)
					var spoken atomic.Uint32
					config := certs.ClientConfig()
					config.VerifyConnection = func(cs tls.ConnectionState) error {
						spoken.Store(uint32(cs.Version))
						return nil
					}
					p := newPool(t, "rediss://app:"+secret+"@"+peer.addr,
						sizes(2, 3, rediscache.WithTLSConfig(config))...)
					_, err := p.GetContext(t.Context())
					require.ErrorIs(t, err, rediscache.ErrUnavailable)
					systest.IsA[*rediscache.DialError](t, err)
					systest.IsA[*tls.CertificateVerificationError](t, err)
					c.as(t, err)
					require.NotContains(t, err.Error(), secret)
					redistest.Eventually(t, func() bool { return p.Stats().DialFailures >= 3 }, "it is tried again")
					require.Zero(t, peer.told())

					peer.show(certs.Server)
					requireReady(t, p)
					requireSimultaneous(t, p, 3)
					require.EqualValues(t, version, spoken.Load())
					require.GreaterOrEqual(t, peer.told(), 3)
				})
			}
		}
	}
}

func TestTLSBelow12IsRefused(t *testing.T) {
	redistest.NoLeaks(t)
	certs := redistest.NewCerts(t)
	s := redistest.NewScriptTLS(t, &tls.Config{
		MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11, Certificates: []tls.Certificate{certs.Server.Pair},
	}, func(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false })
	for name, opts := range map[string][]rediscache.PoolOption{
		"by default":      nil,
		"with roots":      {rediscache.WithTLSConfig(&tls.Config{RootCAs: certs.Pool})},
		"redigo's":        {rediscache.WithDialOptions(redis.DialTLSConfig(nil))},
		"redigo's, roots": {rediscache.WithDialOptions(redis.DialTLSConfig(&tls.Config{RootCAs: certs.Pool}))},
	} {
		p := newPool(t, "rediss://:"+secret+"@"+s.Addr, sizes(1, 1, opts...)...)
		_, err := p.GetContext(t.Context())
		require.ErrorIs(t, err, rediscache.ErrUnavailable, name)
		require.ErrorContains(t, err, "protocol version not supported", name)
		require.NoError(t, p.Close())
	}
	require.Zero(t, s.Count(""))
}

func TestAPortOfTheOtherKindIsToldInTime(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	certs := redistest.NewCerts(t)
	s := redistest.StartTLS(t, certs, certs.Server)
	for name, c := range map[string]struct {
		url   string
		limit time.Duration
		says  string
	}{
		// Redis waits for the end of the line that it takes the handshake for.
		"TLS to a port without":  {"rediss://:" + secret + "@" + s.Addr, time.Second, "TLS handshake"},
		"no TLS to a port of it": {"redis://:" + secret + "@" + s.TLSAddr, 10 * time.Second, "read"},
	} {
		for way, option := range tlsWays {
			opts := sizes(2, 3, rediscache.WithDialTimeout(c.limit))
			if strings.HasPrefix(c.url, "rediss") {
				opts = append(opts, option(certs.ClientConfig()))
			}
			t.Run(name+" "+way, func(t *testing.T) {
				p := newPool(t, c.url, opts...)
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				_, err := p.GetContext(ctx)
				require.NoError(t, ctx.Err())
				require.ErrorIs(t, err, rediscache.ErrUnavailable)
				require.ErrorContains(t, err, c.says)
				require.NotContains(t, err.Error(), secret)
				redistest.Eventually(t, func() bool { return p.Stats().Open == 0 }, "no slot is lost")
			})
		}
	}
}

// Under TLS 1.3 the server looks at the certificate when the client thinks that the handshake is over:
// what the client says then is answered by a reset, which must not hide the reason.
func TestAClientCertificateIsShownAndItsRefusalSaysWhy(t *testing.T) {
	redistest.NoLeaks(t)
	certs, others := redistest.NewCerts(t), redistest.NewCerts(t)
	for protocol := range systest.Protocols {
		s := redistest.StartTLS(t, certs, certs.Server, "--tls-protocols", protocol)
		none := "certificate required"
		if protocol == "TLSv1.2" {
			none = "handshake failure"
		}
		for says, shown := range map[string][]tls.Certificate{
			"":                              {certs.Client.Pair},
			none:                            nil,
			"unknown certificate authority": {others.Client.Pair},
			"expired certificate":           {certs.Expired.Pair},
		} {
			for way, option := range tlsWays {
				for range 5 {
					config := &tls.Config{RootCAs: certs.Pool, Certificates: shown}
					p := newPool(t, "rediss://"+s.TLSAddr, sizes(0, 1, option(config))...)
					err := ping(t.Context(), p)
					if says == "" {
						require.NoError(t, err)
					} else {
						require.ErrorIs(t, err, rediscache.ErrUnavailable)
						require.ErrorContains(t, err, says, protocol+" "+way)
					}
					require.NoError(t, p.Close())
				}
			}
		}
	}
}

func TestClientCertificatesAreAskedForAtEachDial(t *testing.T) {
	redistest.NoLeaks(t)
	certs, others := redistest.NewCerts(t), redistest.NewCerts(t)
	s := redistest.StartTLS(t, certs, certs.Server)
	var shown atomic.Pointer[tls.Certificate]
	shown.Store(&certs.Client.Pair)
	config := &tls.Config{
		RootCAs:              certs.Pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return shown.Load(), nil },
	}
	p := startPoolAt(t, s, "rediss://"+s.TLSAddr, sizes(2, 4, rediscache.WithTLSConfig(config))...)
	requireReady(t, p)
	ids := clientIDs(t, s)

	shown.Store(&others.Client.Pair)
	requireSimultaneous(t, p, 2)
	require.Equal(t, ids, clientIDs(t, s), "those that are open stay")
	letRest(t)
	s.KillClients()
	redistest.Eventually(t, func() bool { // the kill may have met a dial
		err := ping(t.Context(), p)
		return errors.Is(err, rediscache.ErrUnavailable) && strings.Contains(err.Error(), "unknown certificate authority")
	}, "a new one is refused")

	shown.Store(&certs.Server.Pair) // which is good for clients too
	requireReady(t, p)
	requireSimultaneous(t, p, 4)
}

// If only one side uses TLS, the error of the dial names TLS.
func TestTheErrorOfADialNamesATLSMismatch(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	certs := redistest.NewCerts(t)
	s := redistest.StartTLS(t, certs, certs.Server)
	const notTLS, wantsTLS = "write redis:// and not rediss://", "write rediss:// and not redis://"
	answering := func(answer string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		var open sync.WaitGroup
		open.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				open.Go(func() {
					_, _ = conn.Read(make([]byte, 5))
					_, _ = conn.Write([]byte(answer))
					_ = conn.Close()
				})
			}
		})
		t.Cleanup(func() {
			require.NoError(t, l.Close())
			open.Wait()
		})
		return l.Addr().String()
	}
	for name, c := range map[string]struct{ url, says, hint string }{
		"TLS to a Redis without":                   {"rediss://" + s.Addr, "TLS handshake", notTLS},
		"TLS to what answers in clear":             {"rediss://" + answering("-ERR unknown command\r\n"), "TLS handshake", notTLS},
		"TLS to what hangs up":                     {"rediss://" + answering(""), "", notTLS},
		"no TLS to a Redis with it":                {"redis://" + s.TLSAddr, "", wantsTLS},
		"a password without TLS":                   {"redis://:" + secret + "@" + s.TLSAddr, "", wantsTLS},
		"no TLS to what sends an alert":            {"redis://" + answering("\x15\x03\x01\x00\x02\x02\x46"), "", wantsTLS},
		"no TLS to a web server":                   {"redis://" + answering("HTTP/1.1 400 Bad Request\r\n\r\n"), "does not answer as Redis does", wantsTLS},
		"a refusal by a Redis has nothing to do":   {"redis://" + answering("-DENIED no\r\n"), "DENIED no", ""},
		"nobody there has nothing to do with that": {"rediss://" + redistest.Nobody(t), "refused", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool(t, c.url, sizes(0, 1, rediscache.WithDialTimeout(time.Second))...)
			_, err := p.GetContext(t.Context())
			require.ErrorIs(t, err, rediscache.ErrUnavailable)
			require.ErrorContains(t, err, c.says)
			require.NotContains(t, err.Error(), secret)
			if c.hint != "" {
				require.ErrorContains(t, err, c.hint)
			} else {
				require.NotContains(t, err.Error(), "TLS")
			}
		})
	}
	p := newPool(t, "rediss://"+s.Addr, sizes(0, 1)...)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := p.GetContext(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "1 being dialled with TLS")
}
