package rediscache_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// segments are spellings of keys that routers are known to treat differently,
// and the keys that they are.
var segments = map[string]string{
	"a": "a", "%61": "a", "a%2Fb": "a/b", "a%2fb": "a/b", "a%252Fb": "a%2Fb", "a+b": "a+b", "a%20b": "a b",
	"a%2Bb": "a+b", "%25": "%", "%2525": "%25", "%3F": "?", "a%3Bb": "a;b", "a;b": "a;b", "a:b": "a:b", "%C3%A9": "é",
	"a%2F..%2Fb": "a/../b", "..%2Fa": "../a", "%2F": "/", "%2F%2F": "//", "...": "...", "a%5Cb": `a\b`, "*": "*",
	"a!(b)'c": "a!(b)'c", "%21": "!", "a&b=c@d,e": "a&b=c@d,e", "%22%3C%3E": `"<>`,
}

func TestTheSameBytesInThePathAreTheSameKeyUnderEveryMount(t *testing.T) {
	s := newFakeStore()
	h := rediscache.NewHandler(s)
	mux := http.NewServeMux()
	mux.Handle("/cache/", h)
	mux.Handle("/api/", http.StripPrefix("/api", h))
	mux.Handle("/v2/", rediscache.NewHandler(s, rediscache.WithBasePath("/v2")))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	for segment, key := range segments {
		t.Run(segment, func(t *testing.T) {
			for _, mount := range []string{"/cache/", "/api/cache/", "/v2/"} {
				target := mount + segment
				ask := map[string]func(){
					"a raw socket":        func() { rawGet(t, server.Listener.Addr().String(), target) },
					"net/http's client":   func() { clientGet(t, server.URL+target) },
					"the mux in a test":   func() { redistest.Serve(mux, httptest.NewRequest("GET", target, nil)) },
					"a RawPath of a test": func() { redistest.Serve(mux, withRawPath(t, mount+key, target)) },
				}
				if mount == "/cache/" {
					ask["no mux"] = func() { redistest.Serve(h, httptest.NewRequest("GET", target, nil)) }
					ask["a Path alone"] = func() { redistest.Serve(h, withRawPath(t, mount+strings.ReplaceAll(key, "/", "-"), "")) }
				}
				for how, get := range ask {
					s.keys = nil
					get()
					want := key
					if how == "a Path alone" {
						want = strings.ReplaceAll(key, "/", "-")
					}
					require.Equal(t, []string{want}, s.keys, "%s through %s", target, how)
				}
			}
		})
	}
}

func rawGet(t *testing.T, addr, target string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close() //nolint:errcheck // nothing was written that could be lost
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", target)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, 404, resp.StatusCode)
}

func clientGet(t *testing.T, target string) {
	t.Helper()
	resp, err := http.Get(target)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, 404, resp.StatusCode)
}

func withRawPath(t *testing.T, path, raw string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://x/", nil)
	require.NoError(t, err)
	r.URL = &url.URL{Path: path, RawPath: raw}
	return r
}

func TestOneHandlerServesManyAtOnce(t *testing.T) {
	h := rediscache.NewHandler(newFakeStore())
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				target := fmt.Sprintf("/cache/%d", i)
				post := redistest.Serve(h, httptest.NewRequest("POST", target+"?value="+fmt.Sprint(i), nil))
				get := redistest.Serve(h, httptest.NewRequest("GET", target, nil))
				if post.Code != 200 || get.Body.String() != fmt.Sprintf(`{"key":"%d","value":"%d"}`, i, i) {
					t.Errorf("%d: %d, %s", i, post.Code, get.Body)
				}
			}
		})
	}
	wg.Wait()
}

// FuzzHandlerPath sends two paths. Whatever they are nothing panics, and they
// reach one key of the store only if they spell the same key.
func FuzzHandlerPath(f *testing.F) {
	for segment := range segments {
		f.Add(segment, "a%2Fb")
	}
	f.Add("..", "%2e%2e")
	f.Add("%ff", "%")
	f.Add("a/b", "//")
	f.Add("é", "\x00")
	f.Fuzz(func(t *testing.T, a, b string) {
		keyA, okA := fuzzPath(t, a)
		keyB, okB := fuzzPath(t, b)
		if okA && okB {
			require.Equal(t, spelt(t, a) == spelt(t, b), keyA == keyB, "%q and %q", a, b)
		}
	})
}

// fuzzPath sends "/cache/" + segment in the ways that a request can carry it,
// and returns the key that the store saw, if it saw one.
func fuzzPath(t *testing.T, segment string) (string, bool) {
	t.Helper()
	s := newFakeStore()
	h := rediscache.NewHandler(s)
	reach := func(h http.Handler, u *url.URL) (string, bool) {
		s.keys = nil
		w := redistest.Serve(h, &http.Request{Method: http.MethodGet, URL: u, Header: http.Header{}, Body: http.NoBody})
		if len(s.keys) == 0 {
			require.Contains(t, []int{400, 404, 422}, w.Code)
			return "", false
		}
		require.Equal(t, 404, w.Code)
		return s.keys[0], true
	}
	// A path that was set by hand, with an escaped form that may not be its own.
	for _, u := range []*url.URL{{Path: "/cache/" + segment}, {Path: "/cache/" + segment, RawPath: "/cache/" + segment}} {
		if key, ok := reach(h, u); ok && u.EscapedPath() != u.RawPath {
			require.Equal(t, segment, key)
		}
	}
	u, err := url.ParseRequestURI("/cache/" + segment)
	if err != nil {
		return "", false
	}
	key, ok := reach(h, u)
	if ok {
		require.Equal(t, spelt(t, segment), key)
		require.True(t, utf8.ValidString(key) && len(key) <= 512 && key != "" && key != "." && key != "..", "%q", key)
		require.False(t, strings.ContainsFunc(key, unicode.IsControl), "%q", key)
	}
	stripped, err := url.ParseRequestURI("/api/cache/" + segment)
	require.NoError(t, err)
	for _, mount := range []string{"/api", "/api/"} {
		again, okAgain := reach(http.StripPrefix(mount, h), stripped)
		require.Equal(t, ok, okAgain)
		require.Equal(t, key, again)
	}
	return key, ok
}

// spelt returns the key that a segment spells; what follows a "?" is a query.
func spelt(t *testing.T, segment string) string {
	t.Helper()
	segment, _, _ = strings.Cut(segment, "?")
	key, err := url.PathUnescape(segment)
	require.NoError(t, err)
	return key
}

// FuzzHandlerBody sends a POST of any type, query and body. Nothing panics,
// and what is stored is what the client said and what the answer repeats.
func FuzzHandlerBody(f *testing.F) {
	f.Add("application/json", "ttl=1", []byte(`{"value":"\ud83d\ude00\u0000"}`))
	f.Add("application/json", "", []byte(`{"value":"a","value":"\ud83d","ttl":"1m"}`))
	f.Add("application/x-www-form-urlencoded", "", []byte("value=%ff&ttl=1"))
	f.Add("application/octet-stream", "ttl=1s", []byte{0xff, 0})
	f.Add("text/plain; charset=utf-8", "value=%zz", []byte(""))
	f.Add("", "value=a+b", []byte(nil))
	f.Add("application/json;;charset=utf8", "", []byte("\ufeff{\"value\":\"a\"}"))
	f.Add(`text/plain;x="a;b\",c";charset=us-ascii`, "", []byte("a"))
	f.Fuzz(func(t *testing.T, mediaType, query string, body []byte) {
		s := newFakeStore()
		h := rediscache.NewHandler(s, rediscache.WithMaxValueBytes(100))
		r := httptest.NewRequest("POST", "/cache/k", strings.NewReader(string(body)))
		r.Header["Content-Type"] = []string{mediaType}
		r.URL.RawQuery = query
		w := redistest.Serve(h, r)
		if w.Code != http.StatusOK {
			require.Contains(t, []int{400, 413, 415, 422}, w.Code)
			require.Empty(t, s.keys)
			return
		}
		stored := s.items["k"]
		require.LessOrEqual(t, len(stored.value), 100)
		require.GreaterOrEqual(t, stored.ttl, rediscache.DefaultTTL)
		require.LessOrEqual(t, stored.ttl, rediscache.DefaultMaxTTL)
		require.Equal(t, string(stored.value), sentValue(mediaType, query, body))
		reply := decode(t, w.Body.Bytes())
		shown, isShown := reply["value"].(string)
		if !isShown {
			require.Equal(t, body, stored.value)
			return
		}
		if reply["encoding"] == "base64" {
			decoded, err := base64.StdEncoding.DecodeString(shown)
			require.NoError(t, err)
			shown = string(decoded)
		}
		require.Equal(t, string(stored.value), shown)
	})
}

// sentValue reads the value of a request that was accepted, which has one.
func sentValue(mediaType, query string, body []byte) string {
	if values, _ := url.ParseQuery(query); values.Has("value") {
		return values.Get("value")
	}
	switch mediaType = strings.ToLower(mediaType); {
	case strings.Contains(mediaType, "json"):
		var v struct{ Value string }
		_ = json.Unmarshal(bytes.TrimPrefix(body, []byte("\ufeff")), &v)
		return v.Value
	case strings.Contains(mediaType, "form"):
		values, _ := url.ParseQuery(string(body))
		return values.Get("value")
	}
	return string(body)
}
