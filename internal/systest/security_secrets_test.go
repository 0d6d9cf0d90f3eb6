package systest_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

// Where the name and the value are in what a server repeats they would be found as these.
const (
	secretUser  = "alice-the-user"
	secretKey   = "key-of-a-user"
	secretValue = "value-of-a-user"
)

// failEveryVerb returns what all verbs and a handler say of a cache that cannot serve, the log included.
func failEveryVerb(t *testing.T, c *rediscache.Cache, heard *systest.ErrorsOf) string {
	t.Helper()
	ctx := t.Context()
	var errs []any
	fails := func(err error) {
		t.Helper()
		require.Error(t, err)
		errs = append(errs, err)
	}
	items := map[string][]byte{secretKey: []byte(secretValue), secretKey + "2": []byte(secretValue)}
	fails(systest.Second(c.Get(ctx, secretKey)))
	fails(c.Set(ctx, secretKey, []byte(secretValue), time.Minute))
	fails(systest.Second(c.Delete(ctx, secretKey, secretKey+"2")))
	fails(systest.Second(c.GetMany(ctx, secretKey, secretKey+"2")))
	fails(c.SetMany(ctx, items, time.Minute))
	fails(systest.Second(c.TTL(ctx, secretKey)))
	fails(systest.Second(c.Sub(secretKey).Clear(ctx)))
	for _, p := range []rediscache.Policy{{}, {Lease: time.Second}, stalePolicy} {
		v := systest.NewView(t, c, rediscache.String(), p)
		fails(systest.Second(v.Get(ctx, secretKey)))
		fails(v.Set(ctx, secretKey, secretValue))
		fails(systest.Second(v.Delete(ctx, secretKey)))
		got, err := v.GetOrLoad(ctx, secretKey, systest.Returns(secretValue)) // heard observes the error
		require.NoError(t, err)
		require.Equal(t, secretValue, got)
	}
	errs = append(errs, heard.Take())

	var pages strings.Builder
	var logged bytes.Buffer
	for _, method := range []string{"GET", "HEAD", "POST", "DELETE"} {
		for _, accept := range []string{"application/json", "application/problem+json"} {
			h := rediscache.NewHandler(c, rediscache.WithLogger(redistest.DebugLogger(&logged))) // which logs a line a second
			r := httptest.NewRequest(method, "/cache/"+secretKey+"?value="+secretValue, nil)
			r.Header.Set("Accept", accept)
			w := redistest.Serve(h, r)
			require.GreaterOrEqual(t, w.Code, 500)
			fmt.Fprintln(&pages, w.Result().Header, w.Body)
		}
	}
	require.Equal(t, 8, strings.Count(logged.String(), "\n"))
	return redistest.EveryText(errs...) + pages.String() + logged.String()
}

// requireDiscreet wants none of them, escaped or not.
func requireDiscreet(t *testing.T, text string) {
	t.Helper()
	for _, word := range []string{secret, secretUser, secretKey, secretValue, "s3cret", "%33cret"} {
		require.NotContains(t, text, word)
	}
}

func TestNoErrorAndNoPageShowsAPasswordOrAKeyOrAValueOfADialThatFails(t *testing.T) {
	redistest.NoLeaks(t)
	certs := redistest.NewCerts(t)
	silent, _ := redistest.SilentListener(t)
	server := redistest.Start(t, "--requirepass", "another")
	// A server that does not know AUTH repeats what it was told.
	noAuth := redistest.Start(t, "--rename-command", "AUTH", "")
	full := redistest.Start(t)
	full.ConfigSet("maxclients", "1")
	mad := redistest.NewScript(t, func(redistest.Call) ([]byte, bool) { return []byte("$9223372036854775807\r\n"), false })
	odd := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) { return []byte(strings.Join(c.Args, " ") + "\r\n"), false })
	wrong := redistest.StartTLS(t, certs, certs.WrongName)
	vault := errors.New("the vault is shut")
	for name, c := range map[string]struct {
		url  string
		says string
		opts []rediscache.PoolOption
	}{
		"a wrong password":     {"redis://" + server.Addr, "WRONGPASS", nil},
		"an unknown AUTH":      {"redis://" + noAuth.Addr, "ERR unknown command", nil},
		"a full server":        {"redis://" + full.Addr, "max number of clients", nil},
		"a mad server":         {"redis://" + mad.Addr, "does not answer as Redis does", nil},
		"an odd server":        {"redis://" + odd.Addr, "does not answer as Redis does", nil},
		"nobody":               {"redis://" + redistest.Nobody(t), "refused", nil},
		"a silent server":      {"redis://" + silent, "no connection within", []rediscache.PoolOption{rediscache.WithDialTimeout(50 * time.Millisecond)}},
		"a wrong certificate":  {"rediss://" + wrong.TLSAddr, "certificate", []rediscache.PoolOption{rediscache.WithTLSConfig(certs.ClientConfig())}},
		"an unknown authority": {"rediss://" + wrong.TLSAddr, "certificate", []rediscache.PoolOption{rediscache.WithTLSConfig(&tls.Config{RootCAs: x509.NewCertPool()})}},
		"no socket":            {"unix:///nowhere.sock", "no such file", nil},
		"shut credentials": {"redis://" + full.Addr, "the vault is shut", []rediscache.PoolOption{
			rediscache.WithCredentials(func(context.Context) (string, string, error) { return secretUser, secret, vault }),
		}},
		"an unknown AUTH of a DialFunc": {"", "ERR unknown command", []rediscache.PoolOption{
			rediscache.WithDialFunc(func(ctx context.Context) (redis.Conn, error) {
				conn, err := redis.DialContext(ctx, "tcp", noAuth.Addr, redis.DialUsername(secretUser), redis.DialPassword(secret))
				if err != nil {
					return nil, fmt.Errorf("own: %w", err)
				}
				return conn, nil
			}),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			// Escaped as some do: the same bytes.
			url := strings.Replace(c.url, "://", "://"+secretUser+":"+strings.Replace(secret, "3", "%33", 1)+"@", 1)
			p := newPool(t, url, append(c.opts, rediscache.WithMinIdle(0))...)
			_, err := p.GetContext(t.Context())
			require.ErrorIs(t, err, rediscache.ErrUnavailable)
			require.ErrorContains(t, err, c.says)
			text := redistest.EveryText(err, p, *p, p.Stats())
			_, err = p.Get().Do("GET", secretKey)
			text += redistest.EveryText(err)
			ended, cancel := context.WithTimeout(t.Context(), 0)
			defer cancel()
			text += redistest.EveryText(p.Ready(ended))
			var heard systest.ErrorsOf
			cache := newCache(t, p, rediscache.WithObserver(&heard))
			text += failEveryVerb(t, cache, &heard) + redistest.EveryText(cache, *cache, cache.Stats())
			requireDiscreet(t, text)
		})
	}
}

// All commands are renamed, so the server repeats the arguments of each.
func TestNoErrorAndNoPageShowsWhatTheServerRepeats(t *testing.T) {
	redistest.NoLeaks(t)
	var args []string
	for _, command := range strings.Fields("GET SET DEL MGET PTTL SCAN UNLINK EVAL EVALSHA") {
		args = append(args, "--rename-command", command, "")
	}
	s := redistest.Start(t, args...)
	for name, way := range pools {
		t.Run(name, func(t *testing.T) {
			var heard systest.ErrorsOf
			c := newCache(t, way.Open(t, s), append(way.Opts, rediscache.WithObserver(&heard))...)
			text := failEveryVerb(t, c, &heard)
			requireDiscreet(t, text)
			require.Regexp(t, "(?i)unknown command ['`]set['`]", text)
			require.Regexp(t, "(?i)unknown command ['`]get['`]", text)
		})
	}
}

func TestAPoolWhoseDialsFailShowsNoPassword(t *testing.T) {
	s := redistest.Start(t, "--user", secretUser, "on", ">"+secret, "~*", "+@all")
	p := newPool(t, "redis://"+secretUser+":"+secret+"@"+s.Addr, sizes(0, 3)...)
	defer giveBack(t, borrowOne(t, p))
	s.Do("ACL", "SETUSER", secretUser, "resetpass", ">another")
	redistest.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err := p.GetContext(ctx)
		requireDiscreet(t, redistest.EveryText(err))
		return errors.Is(err, rediscache.ErrUnavailable) && strings.Contains(err.Error(), "WRONGPASS")
	}, "it says why there are no more")
}

func TestNothingThatCanBePrintedHoldsAPassword(t *testing.T) {
	redistest.NoLeaks(t)
	for _, url := range []string{
		"redis://" + secretUser + ":" + secret + "@127.0.0.1:1", "redis://:" + secret + "@127.0.0.1:1",
		"unix://" + secretUser + ":" + secret + "@/nowhere.sock",
	} {
		options := []rediscache.PoolOption{
			rediscache.WithMinIdle(0),
			rediscache.WithDialOptions(redis.DialUsername(secretUser), redis.DialPassword(secret)),
			rediscache.WithCredentials(func(context.Context) (string, string, error) { return secretUser, secret, nil }),
		}
		p := newPool(t, url, options...)
		c := newCache(t, p, rediscache.WithTTL(time.Minute))
		v := systest.NewView(t, c, rediscache.String(), rediscache.Policy{})
		h := rediscache.NewHandler(c)
		requireDiscreet(t, redistest.EveryText(p, *p, p.Stats(), c, *c, c.Stats(), v, h, options, p.Get()))
	}
}
