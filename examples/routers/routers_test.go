package routers_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
)

// outcome is the response to a POST of a value: status, the key in Redis for a 200,
// and Location for a redirect, where BASE stands for the base path. An empty location
// is any location.
type outcome struct {
	status   int
	key      string
	location string
}

func stored(key string) outcome          { return outcome{status: 200, key: key} }
func refused(status int) outcome         { return outcome{status: status} }
func redirected(location string) outcome { return outcome{status: 307, location: location} }

// segments maps what follows the base path and a slash, as it is on the wire, to the
// outcome that the handler's contract names.
var segments = map[string]outcome{
	"plain":           stored("plain"),
	"a%2Fb":           stored("a/b"),
	"a%2fb":           stored("a/b"),
	"%2F":             stored("/"),
	"%2F%2F":          stored("//"),
	"..%2Fa":          stored("../a"),
	"a%25b":           stored("a%b"),
	"a%252Fb":         stored("a%2Fb"),
	"%25":             stored("%"),
	"a%20b":           stored("a b"),
	"%20":             stored(" "),
	"a+b":             stored("a+b"),
	"a%2Bb":           stored("a+b"),
	"a;b":             stored("a;b"),
	"a%3Bb":           stored("a;b"),
	"a:b@c!$&'()*,=~": stored("a:b@c!$&'()*,=~"),
	"a%3Fb%23c":       stored("a?b#c"),
	"a%5Cb":           stored(`a\b`),
	"%C3%A9":          stored("é"),
	"é":               stored("é"),
	"a|b^c":           stored("a|b^c"),
	"%E4%B8%96":       stored("世"),
	"%F0%9F%98%80":    stored("\U0001F600"),
	"...":             stored("..."),
	".a":              stored(".a"),
	"a.":              stored("a."),
	"A":               stored("A"),
	"a%00b":           refused(422),
	"%0A":             refused(422),
	"%FF":             refused(422),
	".":               refused(422),
	"..":              refused(422),
	"%2E":             refused(422),
	"%2E%2E":          refused(422),
	"a%2":             refused(400),
	"":                refused(404),
	"/":               refused(404),
	"/a":              refused(404),
	"a/":              refused(404),
	"a//b":            refused(404),
	"a/b":             refused(404),
	"a/./b":           refused(404),
	"a/../b":          refused(404),
}

// testRouter sends all segments below both bases to a router. differences holds the
// segments whose outcome the router changes before the handler sees the request.
func testRouter(t *testing.T, serve func(t *testing.T, store rediscache.Store) (addr string), bases []string, differences map[string]outcome) {
	server, cache := open(t)
	addr := serve(t, cache)
	for segment := range differences {
		require.Contains(t, segments, segment)
	}
	for _, base := range bases {
		t.Run(base+" a body", func(t *testing.T) {
			server.FlushAll()
			status, _, body := send(t, addr, "POST", base+"/a", "application/octet-stream", "a=b&\xff\x00")
			require.Equal(t, 200, status, body)
			value, err := server.Get("a")
			require.NoError(t, err)
			require.Equal(t, "a=b&\xff\x00", value)
		})
		for segment, want := range segments {
			if different, ok := differences[segment]; ok {
				require.NotEqual(t, want, different, "%q is no difference", segment)
				want = different
			}
			t.Run(base+" "+segment, func(t *testing.T) {
				server.FlushAll()
				target := base + "/" + segment
				status, location, body := send(t, addr, "POST", target+"?value=v", "", "")
				require.Equal(t, want.status, status, body)
				if want.location != "" {
					require.Equal(t, strings.ReplaceAll(want.location, "BASE", base)+"?value=v", location)
				}
				if want.status != 200 {
					require.Empty(t, server.Keys(), "a refused POST writes nothing")
					return
				}
				require.Equal(t, []string{want.key}, server.Keys())
				status, _, body = send(t, addr, "GET", target, "", "")
				require.Equal(t, 200, status, body)
				require.Contains(t, body, `"value":"v"`)
				status, _, _ = send(t, addr, "HEAD", target, "", "")
				require.Equal(t, 200, status)
				status, _, body = send(t, addr, "DELETE", target, "", "")
				require.Equal(t, 200, status, body)
				require.Empty(t, server.Keys())
			})
		}
	}
}

func open(t *testing.T) (*miniredis.Miniredis, *rediscache.Cache) {
	t.Helper()
	server := miniredis.RunT(t)
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = pool.Close() })
	cache, err := rediscache.New(pool)
	require.NoError(t, err)
	t.Cleanup(func() { _ = cache.Close() })
	return server, cache
}

// send writes target on the wire as it is, which a http.Client would not, and follows
// no redirect.
func send(t *testing.T, addr, method, target, contentType, sent string) (status int, location, body string) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	require.NoError(t, err)
	defer conn.Close() //nolint:errcheck // the response has been read
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: cache.test\r\nConnection: close\r\n", method, target)
	if contentType != "" {
		head += fmt.Sprintf("Content-Type: %s\r\nContent-Length: %d\r\n", contentType, len(sent))
	}
	_, err = io.WriteString(conn, head+"\r\n"+sent)
	require.NoError(t, err)
	response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	require.NoError(t, err)
	defer response.Body.Close() //nolint:errcheck // read to its end
	read, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response.StatusCode, response.Header.Get("Location"), string(read)
}

// on serves a router of net/http.
func on(router func(rediscache.Store) http.Handler) func(*testing.T, rediscache.Store) string {
	return func(t *testing.T, store rediscache.Store) string {
		web := httptest.NewServer(router(store))
		t.Cleanup(web.Close)
		return web.Listener.Addr().String()
	}
}

var groups = []string{"/cache", "/api/v1/cache"}
