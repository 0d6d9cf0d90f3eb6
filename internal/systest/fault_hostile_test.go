package systest_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// liar answers one command with what a test wants, and the rest as Redis does.
type liar struct {
	*redistest.Script
	lie     atomic.Pointer[lie] // nil: it behaves
	lied    sync.Map            // connections that have heard one, and how many commands came afterwards
	after   atomic.Int64        // how many of these were sent together with the command that got the lie
	trusted atomic.Int64        // the others
}

type lie struct {
	command string
	reply   []byte
	hangUp  bool
}

func newLiar(t *testing.T) *liar {
	t.Helper()
	l := new(liar)
	l.Script = redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if n, lied := l.lied.Load(c.Conn); lied && n.(*atomic.Int64).Add(1) > l.after.Load() {
			l.trusted.Add(1)
		}
		if lie := l.lie.Load(); lie != nil && lie.command == c.Name() {
			l.lied.LoadOrStore(c.Conn, new(atomic.Int64))
			return lie.reply, lie.hangUp
		}
		return redistest.Default(c), false
	})
	return l
}

// requireClear requires an error text that names the problem and shows no data.
func requireClear(t *testing.T, err error) {
	t.Helper()
	require.Regexp(t, `^rediscache: [a-z ]+: .+`, err.Error())
	for _, secret := range []string{"private", "pa55word", "stolen"} {
		require.NotContains(t, err.Error(), secret)
	}
}

// TestFaultAReplyOfAnotherFormIsNobodys: such a reply belongs to another
// command, and so do all that follow it. A read is tried on another connection,
// and of a write nobody knows.
func TestFaultAReplyOfAnotherFormIsNobodys(t *testing.T) {
	redistest.Long(t)
	for verb, c := range map[string]struct {
		command string
		after   int64 // commands that are sent together with it and follow it
		write   bool
		ask     func(ctx context.Context, c *rediscache.Cache) error
		replies []string
	}{
		"get": {"GET", 0, false, func(ctx context.Context, c *rediscache.Cache) error {
			_, err := c.Get(ctx, "private")
			if errors.Is(err, rediscache.ErrNotFound) {
				return nil
			}
			return err
		}, []string{":1", "+OK", "+stolen", "*0", "*1\r\n$6\r\nstolen", "*1\r\n*1\r\n:1"}},
		"get many": {"MGET", 0, false, func(ctx context.Context, c *rediscache.Cache) error {
			_, err := c.GetMany(ctx, "private", "private too")
			return err
		}, []string{
			":2", "+OK", "$6\r\nstolen", "$-1", "*0", "*1\r\n$6\r\nstolen", "*3\r\n$-1\r\n$-1\r\n$6\r\nstolen",
			"*2\r\n:1\r\n:2", "*2\r\n$-1\r\n+stolen", "*2\r\n*1\r\n$6\r\nstolen\r\n$-1",
		}},
		"ttl": {"PTTL", 0, false, func(ctx context.Context, c *rediscache.Cache) error {
			_, err := c.TTL(ctx, "private")
			if errors.Is(err, rediscache.ErrNotFound) {
				return nil
			}
			return err
		}, []string{"$6\r\nstolen", "$-1", "+OK", "*0", "*1\r\n:1"}},
		"ping": {"PING", 0, false, func(ctx context.Context, c *rediscache.Cache) error {
			return c.Ping(ctx)
		}, []string{":1", "$6\r\nstolen", "$-1", "*2\r\n$4\r\npong\r\n$0\r\n"}},
		"clear": {"SCAN", 0, false, func(ctx context.Context, c *rediscache.Cache) error {
			_, err := c.Sub("private").Clear(ctx)
			return err
		}, []string{
			":0", "+OK", "$-1", "*0", "*1\r\n$1\r\n0", "*2\r\n$1\r\n0\r\n$1\r\n0", "*2\r\n*0\r\n*0", "*2\r\n$1\r\n0\r\n*-1",
			"*2\r\n$1\r\n0\r\n*1\r\n:1", "*3\r\n$1\r\n0\r\n*0\r\n$6\r\nstolen",
		}},
		"set": {"SET", 0, true, func(ctx context.Context, c *rediscache.Cache) error {
			return c.Set(ctx, "private", []byte("private"), 0)
		}, []string{":1", "+QUEUED", "$6\r\nstolen", "$-1", "*0"}},
		"set many": {"SET", 0, true, func(ctx context.Context, c *rediscache.Cache) error {
			return c.SetMany(ctx, map[string][]byte{"private": []byte("private")}, time.Minute)
		}, []string{":1", "$6\r\nstolen", "*0"}},
		"delete": {"DEL", 1, true, func(ctx context.Context, c *rediscache.Cache) error {
			_, err := c.Delete(ctx, "private")
			return err
		}, []string{"+OK", "$6\r\nstolen", "$-1", "*0"}},
	} {
		t.Run(verb, func(t *testing.T) {
			redistest.NoLeaks(t)
			s := newLiar(t)
			s.after.Store(c.after)
			for name, way := range pools {
				cache := newCache(t, way.Open(t, &redistest.Server{Addr: s.Addr}), append(way.Opts, unhurried)...)
				require.NoError(t, c.ask(t.Context(), cache))
				for _, reply := range c.replies {
					s.lie.Store(&lie{command: c.command, reply: []byte(reply + "\r\n")})
					err := c.ask(t.Context(), cache)
					s.lie.Store(nil)
					require.Error(t, err, "%s: %q", name, reply)
					requireClear(t, err)
					want := rediscache.ErrUnavailable
					if c.write {
						want = rediscache.ErrOutcomeUnknown
					}
					require.Regexp(t, "unexpected reply type|not answer as Redis", err.Error(), "%s: %q", name, reply)
					require.ErrorIs(t, err, want, "%s: %q", name, reply)
					redistest.Eventually(t, func() bool { return c.ask(t.Context(), cache) == nil }, "%s: %q: it works again", name, reply)
					if c.command != "PING" { // which a dial sends as well
						require.Zero(t, s.trusted.Load(), "%s: %q: the connection is replaced", name, reply)
					}
				}
			}
		})
	}
}

// hostileReplies are replies that would cost more than a connection. On a connection
// that redigo reads these are bounded by nothing but time: the elements that an
// array claims (16 bytes each, at once), the bytes that a string claims (at
// once), the length of a line, and the depth of arrays, which ends the process
// at some millions. Such a connection gets only those that are survived. On a
// 32-bit machine redigo also reads a length modulo 2^32, 8 EiB as a nil.
var hostileReplies = map[string]struct {
	reply  []byte
	redigo bool
}{
	"a string of 8 EiB":           {[]byte("$9223372036854775807\r\nstolen"), strconv.IntSize == 64},
	"an array of 8 EiB":           {[]byte("*9223372036854775807\r\n$6\r\nstolen\r\n"), strconv.IntSize == 64},
	"a string of 512 MiB":         {[]byte("$536870912\r\nstolen"), false},
	"an array of a billion":       {[]byte("*1000000000\r\n$6\r\nstolen\r\n"), false},
	"arrays in arrays":            {bytes.Repeat([]byte("*1\r\n"), 10_000), true},
	"arrays in arrays, by 16 MiB": {bytes.Repeat([]byte("*1\r\n"), 4<<20), false},
	"a line of 1 MiB":             {append([]byte("+"), bytes.Repeat([]byte("stolen"), 1<<20/6)...), true},
	"a line without end":          {append([]byte("+"), bytes.Repeat([]byte("stolen"), 16<<20/6)...), false},
	"digits without end":          {append([]byte("$"), bytes.Repeat([]byte("0"), 16<<20)...), false},
	"noise without end":           {noise(16 << 20), true},
	"lines without end":           {bytes.Repeat([]byte("stolen\r\n"), 2<<20), true},
	"a page of HTTP":              {[]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request"), true},
	"an alert of TLS":             {[]byte("\x15\x03\x01\x00\x02\x02\x46"), true},
	"an answer of RESP3":          {[]byte("%1\r\n$1\r\na\r\n$6\r\nstolen\r\n"), true},
	"half an answer":              {[]byte("$7\r\nsto"), true},
	"nothing":                     {nil, true},
}

func noise(n int) []byte {
	b := make([]byte, n)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(b) // never fails
	return b
}

// TestFaultAHostileReplyCostsItsConnectionAndNoMemory bounds what a cache on a
// WarmPool takes. For caches on other pools it claims no more than that they
// live, say what happened, and work again.
func TestFaultAHostileReplyCostsItsConnectionAndNoMemory(t *testing.T) {
	redistest.Long(t)
	const most = 4 << 20 // two tries
	redistest.NoLeaks(t)
	s := newLiar(t)
	for name, way := range pools {
		own := strings.HasPrefix(name, "warm pool")
		c := newCache(t, way.Open(t, &redistest.Server{Addr: s.Addr}), append(way.Opts, unhurried)...)
		for what, h := range hostileReplies {
			if !own && !h.redigo {
				continue
			}
			took := uint64(most)
			for try := 0; try < 3 && took >= most; try++ { // dials and the test's own servers allocate too
				_, err := c.Get(t.Context(), "private")
				require.ErrorIs(t, err, rediscache.ErrNotFound, "%s: before %s", name, what)
				s.lie.Store(&lie{command: "GET", reply: h.reply, hangUp: true})
				took = redistest.Allocated(func() { _, err = c.Get(t.Context(), "private") })
				s.lie.Store(nil)
				require.ErrorIs(t, err, rediscache.ErrUnavailable, "%s: %s", name, what)
				requireClear(t, err)
				_, err = c.Get(t.Context(), "private")
				require.ErrorIs(t, err, rediscache.ErrNotFound, "%s: after %s", name, what)
				require.Zero(t, s.trusted.Load(), "%s: %s: the connection is replaced", name, what)
			}
			if own {
				require.Less(t, took, uint64(most), what)
			}
		}
	}
}

// TestFaultAServerThatIsNoRedisIsUnavailableUntilItIsOne puts other servers
// behind the address.
func TestFaultAServerThatIsNoRedisIsUnavailableUntilItIsOne(t *testing.T) {
	redistest.Long(t)
	web := func(t *testing.T) string {
		s := httptest.NewServer(http.NotFoundHandler())
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	for name, c := range map[string]struct {
		serve func(t *testing.T) (addr string)
		says  bool // anything that is seen before its end
	}{
		"a web server": {web, true},
		"a TLS server": {func(t *testing.T) string {
			certs := redistest.NewCerts(t)
			config := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				pair, err := tls.LoadX509KeyPair(certs.Server.CertFile, certs.Server.KeyFile)
				return &pair, err
			}}
			return listenWith(t, func(conn net.Conn) { _ = tls.Server(conn, config).Handshake() })
		}, false}, // the alert, or the end that overtakes it
		"one that closes at once": {func(t *testing.T) string { return listenWith(t, func(net.Conn) {}) }, false},
		"one that sends noise for ever": {func(t *testing.T) string {
			return listenWith(t, func(conn net.Conn) {
				for lines := bytes.Repeat([]byte("stolen\r\n"), 1000); ; {
					if _, err := conn.Write(lines); err != nil {
						return
					}
				}
			})
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			redistest.NoLeaks(t)
			redis := newLiar(t)
			addr := c.serve(t)
			proxy := redistest.NewProxy(t, addr)
			for name, open := range map[string]func() *rediscache.Cache{
				"warm pool": func() *rediscache.Cache { return newCache(t, newPool(t, "redis://:pa55word@"+proxy.Addr), unhurried) },
				"a connection a command": func() *rediscache.Cache {
					return newCache(t, newPool(t, "redis://:pa55word@"+proxy.Addr), unhurried, rediscache.WithPipelineConns(0))
				},
				"redigo's pool": func() *rediscache.Cache { return newCache(t, passwordPool(t, proxy.Addr), unhurried) },
			} {
				proxy.Redirect(addr)
				cache := open()
				_, err := cache.Get(t.Context(), "private")
				require.ErrorIs(t, err, rediscache.ErrUnavailable, name)
				if c.says && name == "redigo's pool" {
					require.ErrorContains(t, err, "unexpected response line")
				} else if c.says {
					require.ErrorContains(t, err, "does not answer as Redis does")
				}
				requireClear(t, err)
				err = cache.Set(t.Context(), "private", []byte("private"), 0)
				require.ErrorIs(t, err, rediscache.ErrUnavailable, name)
				require.NotErrorIs(t, err, rediscache.ErrOutcomeUnknown, "%s: no command was sent", name)
				requireClear(t, err)
				proxy.Redirect(redis.Addr)
				redistest.Eventually(t, func() bool {
					return cache.Set(t.Context(), "private", nil, 0) == nil
				}, "%s: it works once it is Redis", name)
			}
		})
	}
}

// passwordPool is redigo's pool with a password.
func passwordPool(t *testing.T, addr string) *redis.Pool {
	p := &redis.Pool{MaxIdle: 2, DialContext: func(ctx context.Context) (redis.Conn, error) {
		return redis.DialContext(ctx, "tcp", addr, redis.DialPassword("pa55word"))
	}}
	t.Cleanup(func() { p.Close() })
	return p
}

// listenWith serves each connection and closes it. It ends with the test.
func listenWith(t *testing.T, serve func(net.Conn)) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		_ = ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
				defer stop()
				defer func() { _ = conn.Close() }()
				serve(conn)
			})
		}
	})
	return ln.Addr().String()
}
