package browsertest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/apidocs"
)

// newValidator returns a validator of responses to paths below base.
func newValidator(t *testing.T, base string) validator.Validator {
	t.Helper()
	// The library does not resolve the relative URL of the server.
	doc := bytes.Replace(apidocs.Document(base), []byte(`"url": "."`), []byte(`"url": "http://localhost"`), 1)
	parsed, err := libopenapi.NewDocument(doc)
	require.NoError(t, err)
	v, err := newValid(parsed)
	require.NoError(t, err)
	return v
}

func newValid(doc libopenapi.Document) (validator.Validator, error) {
	v, errs := validator.NewValidator(doc)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if ok, faults := v.ValidateDocument(); !ok {
		var all []error
		for _, f := range faults {
			all = append(all, errors.New(f.Error()))
		}
		return nil, errors.Join(all...)
	}
	return v, nil
}

// failing is a store whose calls fail.
type failing struct{ err error }

func (f failing) Get(context.Context, string) ([]byte, error)              { return nil, f.err }
func (f failing) Set(context.Context, string, []byte, time.Duration) error { return f.err }
func (f failing) Delete(context.Context, ...string) (int, error)           { return 0, f.err }

func TestEachResponseIsThatOfTheDocument(t *testing.T) {
	v := newValidator(t, rediscache.DefaultBasePath)
	mini := miniredis.RunT(t)
	pool, err := rediscache.NewPool("redis://" + mini.Addr())
	require.NoError(t, err)
	defer pool.Close()
	cache, err := rediscache.New(pool)
	require.NoError(t, err)
	defer cache.Close()
	h := rediscache.NewHandler(cache)
	refusing := func(status int) http.Handler {
		return rediscache.NewHandler(cache, rediscache.WithKeyFunc(func(*http.Request, string) (string, error) {
			return "", &rediscache.RefusedError{Status: status, Challenge: "Basic"}
		}))
	}
	failingWith := func(err error) http.Handler { return rediscache.NewHandler(failing{err}) }
	require.NoError(t, mini.Set("a", "hello"))
	require.NoError(t, mini.Set("binary", "\xff\x00"))
	_, err = mini.Lpush("list", "x")
	require.NoError(t, err)

	const (
		form  = "application/x-www-form-urlencoded"
		bytes = "application/octet-stream"
		js    = "application/json"
	)
	for _, c := range []struct {
		method, path, contentType, body string
		header                          [2]string
		handler                         http.Handler
		status                          int
	}{
		{method: "POST", path: "/cache/k?value=hello", status: 200},
		{method: "POST", path: "/cache/k", contentType: form, body: "value=hello&ttl=60", status: 200},
		{method: "POST", path: "/cache/k", contentType: js, body: `{"value":"hello","ttl":"1h"}`, status: 200},
		{method: "POST", path: "/cache/k", contentType: bytes, body: "\xff", status: 200},
		{method: "POST", path: "/cache/k", contentType: "text/plain", body: "hello", status: 200},
		{method: "POST", path: "/cache/k", status: 422},
		{method: "POST", path: "/cache/k?value=a&ttl=0", status: 422},
		{method: "POST", path: "/cache/k?value=a&value=b", status: 400},
		{method: "POST", path: "/cache/k", contentType: js, body: `{`, status: 400},
		{method: "POST", path: "/cache/k", contentType: bytes, body: strings.Repeat("x", 1<<20+1), status: 413},
		{method: "POST", path: "/cache/k", contentType: "image/png", body: "x", status: 415},
		{method: "POST", path: "/cache/k?value=a", header: [2]string{"If-Match", `"x"`}, status: 412},
		{method: "GET", path: "/cache/a", status: 200},
		{method: "GET", path: "/cache/binary", status: 200},
		{method: "GET", path: "/cache/a", header: [2]string{"Accept", bytes}, status: 200},
		{method: "GET", path: "/cache/a", header: [2]string{"If-None-Match", "*"}, status: 304},
		{method: "GET", path: "/cache/a", header: [2]string{"If-Match", `"x"`}, status: 412},
		{method: "GET", path: "/cache/a", header: [2]string{"Accept", "image/png"}, status: 406},
		{method: "GET", path: "/cache/none", status: 404},
		{method: "HEAD", path: "/cache/a", status: 200},
		{method: "HEAD", path: "/cache/none", status: 404},
		{method: "GET", path: "/cache/list", status: 409},
		{method: "GET", path: "/cache/list", header: [2]string{"Accept", "application/problem+json"}, status: 409},
		{method: "DELETE", path: "/cache/k", status: 200},
		{method: "DELETE", path: "/cache/k", status: 404},
		{method: "DELETE", path: "/cache/a", header: [2]string{"If-Match", `"x"`}, status: 412},
		{method: "GET", path: "/cache/" + strings.Repeat("x", 513), status: 422},
		{method: "GET", path: "/cache/a", handler: refusing(401), status: 401},
		{method: "GET", path: "/cache/a", handler: refusing(403), status: 403},
		{method: "POST", path: "/cache/a?value=x", handler: failingWith(rediscache.ErrUnavailable), status: 503},
		{method: "POST", path: "/cache/a?value=x", handler: failingWith(rediscache.ErrOutcomeUnknown), status: 503},
		{method: "GET", path: "/cache/a", handler: failingWith(rediscache.ErrPoolExhausted), status: 503},
		{method: "GET", path: "/cache/a", handler: failingWith(context.DeadlineExceeded), status: 504},
		{method: "DELETE", path: "/cache/a", handler: failingWith(errors.New("unknown")), status: 500},
	} {
		r := httptest.NewRequest(c.method, "http://localhost"+c.path, strings.NewReader(c.body))
		if c.contentType != "" {
			r.Header.Set("Content-Type", c.contentType)
		}
		if c.header[0] != "" {
			r.Header.Set(c.header[0], c.header[1])
		}
		w := httptest.NewRecorder()
		if c.handler == nil {
			c.handler = h
		}
		c.handler.ServeHTTP(w, r)
		name := c.method + " " + c.path[:min(len(c.path), 40)] + " " + c.header[0]
		require.Equal(t, c.status, w.Code, name)
		ok, faults := v.ValidateHttpResponse(r, w.Result())
		require.True(t, ok, "%s: %v %s", name, faults, w.Body)
	}
}

func TestTheValidatorFindsADifference(t *testing.T) {
	v := newValidator(t, "/kv")
	for body, status := range map[string]int{`{"key":"a"}`: 200, `{"error":"new_code","detail":""}`: 503, `{}`: 402} {
		r := httptest.NewRequest(http.MethodGet, "http://localhost/kv/a", nil)
		ok, _ := v.ValidateHttpResponse(r, &http.Response{
			StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)),
		})
		require.False(t, ok, body)
	}
}
