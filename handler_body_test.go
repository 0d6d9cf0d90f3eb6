package rediscache_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

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
