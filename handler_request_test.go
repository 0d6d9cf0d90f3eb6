package rediscache_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
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

// middlewares are what common middlewares do to a request.
var middlewares = map[string]func(r *http.Request){
	"reads it":              func(r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) },
	"reads a part of it":    func(r *http.Request) { _, _ = io.ReadFull(r.Body, make([]byte, 1)) },
	"reads and closes it":   func(r *http.Request) { _, _ = io.Copy(io.Discard, r.Body); _ = r.Body.Close() },
	"closes it":             func(r *http.Request) { _ = r.Body.Close() },
	"replaces it by none":   func(r *http.Request) { r.Body = http.NoBody },
	"removes it":            func(r *http.Request) { r.Body = nil },
	"parses the form":       func(r *http.Request) { _ = r.ParseForm() },
	"asks for a form value": func(r *http.Request) { r.FormValue("csrf") },
	"parses and closes it":  func(r *http.Request) { _ = r.ParseForm(); _ = r.Body.Close() },
	"parses many parts":     func(r *http.Request) { _ = r.ParseMultipartForm(1 << 20) },
	"puts it back": func(r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
	},
	"puts it back and parses the form": func(r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		_ = r.ParseForm()
		r.Body = io.NopCloser(bytes.NewReader(body))
	},
	"decodes it": func(r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Header.Del("Content-Encoding")
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), -1
	},
	"does nothing": func(*http.Request) {},
}

// harmless are the middlewares that leave the body to the handler.
var harmless = map[string]bool{
	"puts it back": true, "puts it back and parses the form": true, "decodes it": true, "does nothing": true,
}

// parses are the middlewares after which r.PostForm is set.
var parses = map[string]bool{
	"parses the form": true, "asks for a form value": true, "parses and closes it": true, "parses many parts": true,
}

// If a middleware has read the body, the handler answers 400 and the old value stays, on the
// wire and in httptest, with and without a known length.
func TestABodyThatAMiddlewareHasReadIsNotStored(t *testing.T) {
	const form = "application/x-www-form-urlencoded"
	s := newFakeStore()
	h := rediscache.NewHandler(s, rediscache.WithLogger(redistest.DebugLogger(io.Discard)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		middlewares[r.Header.Get("Middleware")](r)
		h.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	for name := range middlewares {
		for _, mediaType := range []string{"text/plain", "application/octet-stream", "application/json", form, ""} {
			for _, known := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s %s, length known %v", name, mediaType, known), func(t *testing.T) {
					if !known && name == "reads a part of it" {
						t.Skip("nobody can tell")
					}
					body, want := "hello world", "hello world"
					switch mediaType {
					case "application/json":
						body = `{"value":"hello world"}`
					case form:
						body = "value=hello+world&csrf=x"
					}
					closes := strings.Contains(name, "closes")
					status := 400
					switch {
					case harmless[name], parses[name] && (mediaType == form || !closes): // of another type nothing is read
						status = 200
					case mediaType == "" && !known && !closes:
						status = 422 // a request without a body, for all that anybody can tell
					}
					if status != 200 {
						want = "old"
					}
					s.do("SET", "k", "old")
					require.Equal(t, status, postTo(t, server, name, mediaType, body, known))
					require.Equal(t, want, string(s.do("GET", "k").([]byte)))
				})
			}
		}
	}
}

// postTo sends a body with a Content-Length or in chunks, and returns the status.
func postTo(t *testing.T, server *httptest.Server, middleware, mediaType, body string, known bool) int {
	t.Helper()
	var reader io.Reader = strings.NewReader(body)
	if !known {
		reader = io.MultiReader(reader)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/cache/k", reader)
	require.NoError(t, err)
	r.Header.Set("Middleware", middleware)
	if mediaType != "" {
		r.Header.Set("Content-Type", mediaType)
	}
	resp, err := server.Client().Do(r)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	return resp.StatusCode
}

func TestABodyThatAMiddlewareHasReadIsLogged(t *testing.T) {
	var logged bytes.Buffer
	h := rediscache.NewHandler(newFakeStore(), rediscache.WithLogger(redistest.DebugLogger(&logged)))
	r := httptest.NewRequest("POST", "/cache/k", strings.NewReader("hello world"))
	r.Header.Set("Content-Type", "text/plain")
	_, _ = io.Copy(io.Discard, r.Body)
	exchange{"", "POST", "", nil, "", 400, "!bad_request"}.check(t, redistest.Serve(h, r))
	line := decode(t, logged.Bytes())
	require.Equal(t, "ERROR", line["level"])
	require.Contains(t, line["cause"], "a middleware has read it")
}

func TestAParsedFormIsUsed(t *testing.T) {
	const form = "application/x-www-form-urlencoded"
	for _, c := range []struct {
		name, query, body string
		status            int
		code, value       string
	}{
		{"a value", "", "value=v", 200, "", "v"},
		{"the empty value", "", "value=", 200, "", ""},
		{"a value beside a query", "?ttl=60", "value=v", 200, "", "v"},
		{"a ttl beside a query", "?value=v", "ttl=60", 200, "", "v"},
		{"two values", "", "value=v&value=v", 400, "bad_request", ""},
		{"a value in the query too", "?value=v", "value=v", 400, "bad_request", ""},
		{"no value", "", "x=1", 422, "value_required", ""},
		{"a value that is too long", "", "value=" + strings.Repeat("v", 101), 413, "value_too_large", ""},
		{"a form that is too long", "", "x=" + strings.Repeat("v", 5000), 413, "value_too_large", ""},
		{"nothing that net/http could parse", "?value=v", "value=a;b", 400, "bad_request", ""},
		{"an empty form", "?value=v", "", 200, "", "v"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFakeStore()
			h := rediscache.NewHandler(s, rediscache.WithMaxValueBytes(100), rediscache.WithLogger(redistest.DebugLogger(io.Discard)))
			r := httptest.NewRequest("POST", "/cache/k"+c.query, strings.NewReader(c.body))
			r.Header.Set("Content-Type", form)
			_ = r.ParseForm()
			w := redistest.Serve(h, r)
			require.Equal(t, c.status, w.Code, w.Body)
			if c.code != "" {
				require.Contains(t, w.Body.String(), c.code)
				require.Empty(t, s.items)
				return
			}
			require.Equal(t, c.value, string(s.items["k"].value))
		})
	}
}

// An empty body is the empty value if the client sends its length. Without a length the
// handler cannot distinguish it from a body that a middleware has read.
func TestAnEmptyBodyNeedsALengthToBeAValue(t *testing.T) {
	server := httptest.NewServer(rediscache.NewHandler(newFakeStore()))
	t.Cleanup(server.Close)
	const chunked, text = "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Content-Type: text/plain\r\n"
	for _, c := range []struct {
		query, rest string
		status      int
	}{
		{"", text + "Content-Length: 0\r\n\r\n", 200},
		{"", text + "\r\n", 200}, // no body at all
		{"", text + chunked, 400},
		{"?value=v", text + chunked, 400},
		{"?value=v", "Content-Type: application/json\r\n" + chunked, 400},
		{"?value=v", chunked, 200},
		{"", chunked, 422},
		{"", text + "Expect: 100-continue\r\nContent-Length: 1\r\n\r\nv", 200},
		{"", text + "Transfer-Encoding: chunked\r\n\r\n1\r\nv\r\n0\r\n\r\n", 200},
	} {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		require.NoError(t, err)
		_, err = fmt.Fprintf(conn, "POST /cache/k%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s", c.query, c.rest)
		require.NoError(t, err)
		answers := bufio.NewReader(conn)
		resp, err := http.ReadResponse(answers, nil)
		if err == nil && resp.StatusCode == http.StatusContinue {
			resp, err = http.ReadResponse(answers, nil)
		}
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.NoError(t, conn.Close())
		require.Equal(t, c.status, resp.StatusCode, "%q %q", c.query, c.rest)
	}
}

// HTTP/2 has bodies without a length, and refuses a body that is shorter than its length itself.
func TestABodyIsWholeOverHTTP2(t *testing.T) {
	s := newFakeStore()
	h := rediscache.NewHandler(s, rediscache.WithLogger(redistest.DebugLogger(io.Discard)))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("HTTP/%d", r.ProtoMajor)
		}
		middlewares[r.Header.Get("Middleware")](r)
		h.ServeHTTP(w, r)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	for _, known := range []bool{true, false} {
		s.do("SET", "k", "old")
		require.Equal(t, 400, postTo(t, server, "reads it", "text/plain", "v", known))
		require.Equal(t, "old", string(s.do("GET", "k").([]byte)))
		require.Equal(t, 200, postTo(t, server, "parses the form", "application/x-www-form-urlencoded", "value=form", known))
		require.Equal(t, "form", string(s.do("GET", "k").([]byte)))
		require.Equal(t, 200, postTo(t, server, "does nothing", "text/plain", "v", known))
		require.Equal(t, "v", string(s.do("GET", "k").([]byte)))
	}
}

// A client goes away in the middle of a body, or speaks HTTP/1.0 and sends no length.
func TestAPartialBodyIsNotStored(t *testing.T) {
	s := newFakeStore()
	server := httptest.NewServer(rediscache.NewHandler(s))
	t.Cleanup(server.Close)
	const text = "Content-Type: text/plain\r\n"
	for _, c := range []struct {
		version, rest string
		status        int
	}{
		{"1.1", text + "Content-Length: 9\r\n\r\nhalf", 400},
		{"1.1", text + "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", 400},
		{"1.1", "Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{\"value\":\"half\"}", 400},
		{"1.0", text + "Content-Length: 9\r\n\r\nhalf", 400},
		{"1.0", text + "\r\nunread", 400},
		{"1.0", "\r\nunread", 422},
		{"1.0", text + "Content-Length: 0\r\n\r\n", 200},
		{"1.0", text + "Content-Length: 5\r\n\r\nwhole", 200},
	} {
		s.do("SET", "k", "old")
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		require.NoError(t, err)
		_, err = fmt.Fprintf(conn, "POST /cache/k HTTP/%s\r\nHost: x\r\n%s", c.version, c.rest)
		require.NoError(t, err)
		require.NoError(t, conn.(*net.TCPConn).CloseWrite())
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.NoError(t, conn.Close())
		require.Equal(t, c.status, resp.StatusCode, "%s %q", c.version, c.rest)
		require.Equal(t, c.status != 200, string(s.do("GET", "k").([]byte)) == "old", "%s %q", c.version, c.rest)
	}
}

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

// If its prefix ends with a slash, StripPrefix leaves a path without a slash at its start.
func TestStripPrefixMayEndWithASlash(t *testing.T) {
	for _, mount := range []struct{ pattern, strip, base string }{
		{"/cache/", "/cache/", ""},
		{"/cache/", "/cache", ""},
		{"/api/", "/api/", "/v1/cache"},
		{"/api/", "/api", "/v1/cache"},
		{"/", "/", ""},
	} {
		t.Run(mount.strip+" before "+mount.base, func(t *testing.T) {
			s := newFakeStore()
			mux := http.NewServeMux()
			mux.Handle(mount.pattern, http.StripPrefix(mount.strip, rediscache.NewHandler(s, rediscache.WithBasePath(mount.base))))
			at := strings.TrimSuffix(mount.strip, "/") + mount.base + "/"
			for segment, key := range segments {
				s.keys = nil
				require.Equal(t, 404, redistest.Serve(mux, httptest.NewRequest("GET", at+segment, nil)).Code)
				require.Equal(t, []string{key}, s.keys, segment)
			}
			s.keys = nil
			for _, segment := range []string{"", "a/b", "a/", "%2e%2e", "."} {
				w := redistest.Serve(http.StripPrefix(mount.strip, rediscache.NewHandler(s, rediscache.WithBasePath(mount.base))),
					httptest.NewRequest("GET", at+segment, nil))
				require.Contains(t, []int{404, 422}, w.Code, segment)
			}
			require.Empty(t, s.keys)
		})
	}
}

func TestABodyIsAcceptedInEverySpellingOfItsType(t *testing.T) {
	const form, raw, text, jsn = "application/x-www-form-urlencoded", "application/octet-stream", "text/plain", "application/json"
	const bom = "\ufeff"
	for _, c := range []struct {
		name, body string
		header     http.Header
		value      string
	}{
		{"JSON after a byte order mark", bom + `{"value":"v"}`, ofType(jsn), "v"},
		{"JSON with an empty parameter", `{"value":"v"}`, ofType(jsn + ";;q=0.5"), "v"},
		{"empty parameters all over", `{"value":"v"}`, ofType(jsn + " ; ;charset=utf-8; "), "v"},
		{"a quoted semicolon", `{"value":"v"}`, ofType(jsn + `;x="a;;\";b";charset=utf-8`), "v"},
		{"utf8", "é", ofType(text + "; charset=utf8"), "é"},
		{"UTF8, quoted", "é", ofType(text + `; charset="UTF8"`), "é"},
		{"us-ascii", "v", ofType(text + "; charset=us-ascii"), "v"},
		{"US-ASCII JSON", `{"value":"v"}`, ofType(jsn + ";charset=US-ASCII"), "v"},
		{"ascii form", "value=v", ofType(form + ";charset=ascii"), "v"},
		{"a byte order mark in text is text", bom + "v", ofType(text), bom + "v"},
		{"identity", "v", headers("Content-Type", raw, "Content-Encoding", "identity, Identity"), "v"},
		{"no coding", "v", headers("Content-Type", raw, "Content-Encoding", ""), "v"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFakeStore()
			r := httptest.NewRequest("POST", "/cache/k", strings.NewReader(c.body))
			r.Header = c.header
			w := redistest.Serve(rediscache.NewHandler(s), r)
			require.Equal(t, 200, w.Code, w.Body)
			require.Equal(t, c.value, string(s.items["k"].value))
		})
	}
	for name, c := range map[string]struct {
		header   http.Header
		body     string
		status   int
		encoding string
	}{
		"a coding":                          {headers("Content-Type", raw, "Content-Encoding", "gzip"), "v", 415, "identity"},
		"a coding beside identity":          {headers("Content-Type", raw, "Content-Encoding", "identity, br"), "v", 415, "identity"},
		"a coding on a second line":         {headers("Content-Type", raw, "Content-Encoding", "identity", "Content-Encoding", "gzip"), "v", 415, "identity"},
		"another type":                      {ofType("image/png"), "v", 415, ""},
		"another charset":                   {ofType("text/plain;charset=utf-16"), "v", 415, ""},
		"no charset":                        {ofType("text/plain;charset="), "v", 415, ""},
		"a parameter that is none":          {ofType("text/plain;x"), "v", 415, ""},
		"a byte order mark and nothing":     {ofType(jsn), bom, 400, ""},
		"two byte order marks":              {ofType(jsn), bom + bom + `{"value":"v"}`, 400, ""},
		"a byte order mark inside the JSON": {ofType(jsn), "{" + bom + `"value":"v"}`, 400, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFakeStore()
			r := httptest.NewRequest("POST", "/cache/k", strings.NewReader(c.body))
			r.Header = c.header
			w := redistest.Serve(rediscache.NewHandler(s), r)
			require.Equal(t, c.status, w.Code, w.Body)
			require.Equal(t, c.encoding, w.Header().Get("Accept-Encoding"), "RFC 9110, 12.5.3")
			require.Equal(t, c.status == 415, w.Header().Get("Accept-Post") != "")
			require.Empty(t, s.keys)
		})
	}
}

func TestAcceptIsReadAsAList(t *testing.T) {
	s := newFakeStore()
	s.do("SET", "k", "v")
	h := rediscache.NewHandler(s)
	const jsn, raw = `{"key":"k","value":"v"}`, "v"
	for _, c := range []struct {
		lines  []string
		status int
		body   string
	}{
		{[]string{`application/json;profile="a,b"`}, 200, jsn},
		{[]string{`application/json;profile="a,b;q=0", text/html`}, 200, jsn},
		{[]string{`text/html;x="\", application/json, \""`}, 406, ""},
		{[]string{`text/html;x="`, "application/json"}, 200, jsn}, // an open quote ends with its line
		{[]string{"application/json;;q=0.5"}, 200, jsn},
		{[]string{"application/json; ;q=0.5, application/octet-stream;;q=0.6;"}, 200, raw},
		{[]string{"application/octet-stream", "application/json;q=0.9"}, 200, raw},
		{[]string{", ,"}, 200, jsn},
		{[]string{`application/json;q="0"`}, 406, ""},
		{[]string{`text/html;x="application/problem+json,", */*;q=0`}, 406, ""},
	} {
		w := redistest.Serve(h, withAccept(httptest.NewRequest("GET", "/cache/k", nil), c.lines...))
		require.Equal(t, c.status, w.Code, c.lines)
		if c.status == 200 {
			require.Equal(t, c.body, w.Body.String(), c.lines)
		} else {
			require.Equal(t, "application/json", w.Header().Get("Content-Type"), c.lines)
		}
	}
}

func TestConditionsOfAReadAreThoseOfRFC9110(t *testing.T) {
	s := newFakeStore()
	s.do("SET", "k", "v")
	s.do("RPUSH", "list")
	h := rediscache.NewHandler(s)
	const rawAccept = "application/octet-stream"
	tag := func(accept string) string {
		return redistest.Serve(h, withAccept(httptest.NewRequest("GET", "/cache/k", nil), accept)).Header().Get("ETag")
	}
	one, oneRaw := tag(""), tag(rawAccept)
	for _, c := range []struct {
		name, key string
		header    http.Header
		status    int
	}{
		{"the tag", "k", headers("If-Match", one), 200},
		{"the tag in a list", "k", headers("If-Match", `"x", `+one), 200},
		{"the tag on a second line", "k", headers("If-Match", `"x"`, "If-Match", one), 200},
		{"any", "k", headers("If-Match", "*"), 200},
		{"another tag", "k", headers("If-Match", `"x"`), 412},
		{"a weak tag, which is not compared strongly", "k", headers("If-Match", "W/"+one), 412},
		{"a weak tag before the tag", "k", headers("If-Match", "W/"+one+","+one), 200},
		{"the tag of the other representation", "k", headers("If-Match", oneRaw), 412},
		{"the tag of the representation that is asked for", "k", headers("If-Match", oneRaw, "Accept", rawAccept), 200},
		{"no tag", "k", headers("If-Match", "x"), 412},
		{"an empty condition", "k", headers("If-Match", ""), 412},

		{"both, and the client has it", "k", headers("If-Match", one, "If-None-Match", one), 304},
		{"both, and it is another value", "k", headers("If-Match", `"x"`, "If-None-Match", one), 412},
		{"a weak tag, compared weakly", "k", headers("If-None-Match", "W/"+one), 304},

		{"what is missing is missing", "none", headers("If-Match", `"x"`), 404},
		{"what is missing is missing, any", "none", headers("If-Match", "*"), 404},
		{"what is not acceptable is not", "k", headers("If-Match", `"x"`, "Accept", "text/html"), 406},
		{"what cannot be read cannot", "list", headers("If-Match", `"x"`), 409},
		{"a date, as there is none", "k", headers("If-Unmodified-Since", "Mon, 01 Jan 1990 00:00:00 GMT"), 200},
		{"another date", "k", headers("If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT"), 200},
		{"a range, as values are whole", "k", headers("Range", "bytes=0-0", "If-Range", one), 200},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			t.Run(c.name+" "+method, func(t *testing.T) {
				r := httptest.NewRequest(method, "/cache/"+c.key, nil)
				r.Header = c.header
				w := redistest.Serve(h, r)
				require.Equal(t, c.status, w.Code, w.Body)
				if method == "HEAD" || c.status == 304 {
					require.Empty(t, w.Body.String())
				}
				if c.status == 412 {
					require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
					require.Empty(t, w.Header().Get("ETag"))
					if method == "GET" {
						require.Contains(t, w.Body.String(), `"precondition_failed"`)
					}
				}
			})
		}
	}
}

// A server ignores a condition if the request fails without it (RFC 9110, 13.2.1), as far as
// the handler knows that before it reads the body.
func TestConditionsOfAWriteDoNotHideOtherErrors(t *testing.T) {
	const jsn = "application/json"
	for _, c := range []struct {
		name, method, target string
		header               http.Header
		body                 string
		status               int
	}{
		{"a good POST", "POST", "k?value=v", http.Header{}, "", 412},
		{"a POST whose body is bad", "POST", "k", ofType(jsn), "{", 412},
		{"a POST of another type", "POST", "k", ofType("image/png"), "b", 415},
		{"a POST with a coding", "POST", "k?value=v", headers("Content-Encoding", "gzip"), "", 415},
		{"a POST that is too long", "POST", "k", ofType("text/plain"), strings.Repeat("v", 11), 413},
		{"a POST with a bad query", "POST", "k?value=%zz", http.Header{}, "", 400},
		{"a DELETE of what there is", "DELETE", "k", http.Header{}, "", 412},
		{"a DELETE of another type", "DELETE", "list", http.Header{}, "", 412},
		{"a DELETE of what there is not", "DELETE", "none", http.Header{}, "", 404},
		{"no method", "PUT", "k", http.Header{}, "", 405},
		{"no key", "DELETE", "..", http.Header{}, "", 422},
	} {
		for _, condition := range []string{"If-Match", "If-None-Match"} {
			for _, given := range []string{"*", `"x"`} {
				t.Run(c.name+" "+condition+" "+given, func(t *testing.T) {
					s := newFakeStore()
					s.do("SET", "k", "old")
					s.do("RPUSH", "list")
					before := len(s.items)
					r := httptest.NewRequest(c.method, "/cache/"+c.target, strings.NewReader(c.body))
					r.Header = c.header.Clone()
					r.Header.Set(condition, given)
					w := redistest.Serve(rediscache.NewHandler(s, rediscache.WithMaxValueBytes(10)), r)
					require.Equal(t, c.status, w.Code, w.Body)
					require.Equal(t, "old", string(s.items["k"].value))
					require.Len(t, s.items, before)
				})
			}
		}
	}
	s := &fakeStore{err: rediscache.ErrUnavailable}
	r := httptest.NewRequest("DELETE", "/cache/k", nil)
	r.Header.Set("If-Match", "*")
	require.Equal(t, 503, redistest.Serve(rediscache.NewHandler(s), r).Code)
}
