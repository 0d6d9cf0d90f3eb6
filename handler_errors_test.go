package rediscache_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// driverText is text that must stay inside.
const driverText = "dial tcp 127.0.0.1:6379: connect: connection refused"

// causedBy matches all of errs and says what a driver would.
func causedBy(errs ...error) error {
	return fmt.Errorf("get: %s: %w", driverText, errors.Join(errs...))
}

func TestTheHandlerTurnsWhatTheStoreSaysIntoAStatus(t *testing.T) {
	const reply = "command not allowed at 127.0.0.1:6379"
	var (
		missing, exhausted  = rediscache.ErrNotFound, rediscache.ErrPoolExhausted
		unavailable, closed = rediscache.ErrUnavailable, rediscache.ErrClosed
		unknown, wrong      = rediscache.ErrOutcomeUnknown, rediscache.ErrWrongType
		deadline, socket    = context.DeadlineExceeded, os.ErrDeadlineExceeded
	)
	says := func(word string) error { return redis.Error(word + " " + reply) }
	cases := map[string]struct {
		err    error
		status int
		code   string
	}{
		"missing":                       {causedBy(missing), 404, ""},
		"wrong type":                    {causedBy(wrong), 409, "wrong_type"},
		"WRONGTYPE":                     {causedBy(says("WRONGTYPE")), 409, "wrong_type"},
		"pool exhausted":                {causedBy(exhausted), 503, "cache_unavailable"},
		"pool exhausted, out of time":   {causedBy(exhausted, deadline), 503, "cache_unavailable"},
		"pool exhausted, unavailable":   {causedBy(exhausted, unavailable, deadline), 503, "cache_unavailable"},
		"unavailable":                   {causedBy(unavailable), 503, "cache_unavailable"},
		"unavailable, out of time":      {causedBy(unavailable, deadline), 504, "cache_timeout"},
		"unavailable, silent socket":    {causedBy(unavailable, socket), 504, "cache_timeout"},
		"out of time":                   {causedBy(deadline), 504, "cache_timeout"},
		"outcome unknown":               {causedBy(unknown), 503, "outcome_unknown"},
		"outcome unknown, unavailable":  {causedBy(unavailable, unknown), 503, "outcome_unknown"},
		"outcome unknown, out of time":  {causedBy(unknown, deadline), 504, "outcome_unknown"},
		"outcome unknown, pool":         {causedBy(unknown, exhausted), 503, "outcome_unknown"},
		"closed":                        {causedBy(closed), 503, "cache_unavailable"},
		"maxclients":                    {causedBy(unavailable, redis.Error("ERR max number of clients reached")), 503, "cache_unavailable"},
		"maxclients, bare":              {redis.Error("ERR max number of clients + cluster connections reached"), 503, "cache_unavailable"},
		"LOADING until out of time":     {causedBy(says("LOADING"), deadline), 503, "cache_unavailable"},
		"NOAUTH at the dial":            {causedBy(unavailable, says("NOAUTH")), 500, "internal"},
		"WRONGPASS at the dial":         {causedBy(unavailable, says("WRONGPASS")), 500, "internal"},
		"NOPERM and a full pool":        {causedBy(exhausted, deadline, says("NOPERM")), 500, "internal"},
		"another error of Redis":        {causedBy(says("ERR")), 500, "internal"},
		"an error with a familiar head": {causedBy(says("BUSYKEY")), 500, "internal"},
		"anything else":                 {errors.New(driverText), 500, "internal"},
		"cancelled, not by the client":  {causedBy(context.Canceled), 500, "internal"},
	}
	for _, word := range []string{
		"OOM", "LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS", "MISCONF",
	} {
		c := cases["unavailable"]
		c.err = causedBy(says(word))
		cases[word] = c
	}
	for _, word := range []string{"NOAUTH", "WRONGPASS", "NOPERM"} {
		c := cases["anything else"]
		c.err = causedBy(says(word))
		cases[word] = c
	}
	for name, c := range cases {
		for _, method := range []string{"GET", "HEAD", "POST", "DELETE"} {
			t.Run(name+" "+method, func(t *testing.T) { failOnce(t, method, c.err, c.status, c.code) })
		}
	}
}

// failOnce sends a request to a handler whose store fails with err.
func failOnce(t *testing.T, method string, err error, status int, code string) {
	t.Helper()
	var logged bytes.Buffer
	h := rediscache.NewHandler(&fakeStore{err: err}, rediscache.WithLogger(redistest.DebugLogger(&logged)))
	want := `{"message":"Key not found"}`
	if code != "" {
		want = "!" + code
	}
	if method == http.MethodHead {
		want = ""
	}
	e := exchange{"", method, "/cache/secret-key?value=secret-value", nil, "", status, want}
	r := httptest.NewRequest(method, e.target, nil)
	w := redistest.Serve(h, r)
	header := e.check(t, w)
	if status == 503 {
		require.Equal(t, "1", header.Get("Retry-After"))
	} else {
		require.Empty(t, header.Get("Retry-After"))
	}
	problem := redistest.Serve(h, withAccept(r, "application/problem+json")).Body.String()
	for _, secret := range []string{"127.0.0.1", "6379", "dial", "get:", "allowed", "rediscache", "secret"} {
		require.NotContains(t, w.Body.String()+problem+fmt.Sprint(header), secret)
	}
	if status == 404 {
		require.Empty(t, logged.String())
		return
	}
	line := decode(t, bytes.SplitN(logged.Bytes(), []byte("\n"), 2)[0])
	level := "WARN"
	if status == 500 {
		level = "ERROR"
	}
	delete(line, "time")
	require.Equal(t, map[string]any{
		"level": level, "msg": "rediscache: request failed", "method": method, "code": code, "cause": err.Error(),
	}, line)
}

func TestAClientThatIsGoneGetsNoBodyAndOneQuietLogLine(t *testing.T) {
	var logged bytes.Buffer
	s := &fakeStore{err: causedBy(rediscache.ErrOutcomeUnknown, context.Canceled)}
	h := rediscache.NewHandler(s, rediscache.WithLogger(redistest.DebugLogger(&logged)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := redistest.Serve(h, httptest.NewRequest("POST", "/cache/a?value=v", nil).WithContext(ctx))
	require.Empty(t, w.Body.String())
	require.Equal(t, 503, w.Code, "silence would read as 200")
	line := decode(t, logged.Bytes())
	require.Equal(t, "DEBUG", line["level"])
	require.Equal(t, "client_gone", line["code"])
	require.Equal(t, s.err.Error(), line["cause"])

	expired, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	s.err = causedBy(context.DeadlineExceeded)
	w = redistest.Serve(h, httptest.NewRequest("GET", "/cache/a", nil).WithContext(expired))
	require.Equal(t, 504, w.Code, "a deadline that a middleware set")
}

func TestAnErrorIsProblemJSONWhereAcceptNamesIt(t *testing.T) {
	h := rediscache.NewHandler(&fakeStore{err: rediscache.ErrUnavailable})
	for accept, wantType := range map[string]string{
		"application/problem+json":                         "application/problem+json",
		"application/json, Application/Problem+JSON;q=0.1": "application/problem+json",
		"application/problem+json;q=0, */*":                "application/json",
		"*/*":                                              "application/json",
		"application/*":                                    "application/json",
		"image/png":                                        "application/json",
		"application/json;profile=\"application/problem+json\"": "application/json",
	} {
		t.Run(accept, func(t *testing.T) {
			w := redistest.Serve(h, withAccept(httptest.NewRequest("GET", "/cache/a", nil), accept))
			require.Equal(t, 503, w.Code)
			require.Equal(t, wantType, w.Header().Get("Content-Type"))
			require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
			want := `{"error":"cache_unavailable","detail":"The cache is not available now."}`
			if wantType == "application/problem+json" {
				want = `{"title":"Service Unavailable","status":503,` +
					`"detail":"The cache is not available now.","error":"cache_unavailable"}`
			}
			require.Equal(t, want, w.Body.String())
		})
	}
}

func TestKeyFuncDecidesWhatTheStoreSeesAndTheClientSeesItsOwnKey(t *testing.T) {
	s := newFakeStore()
	h := rediscache.NewHandler(s, rediscache.WithKeyFunc(func(r *http.Request, key string) (string, error) {
		return "tenant:" + r.Header.Get("Tenant") + ":" + key, nil
	}))
	tenant := headers("Tenant", "x")
	for _, e := range []exchange{
		{"", "POST", "/cache/a?value=v", tenant, "", 200, `{"message":"Data cached successfully","key":"a","value":"v"}`},
		{"", "GET", "/cache/a", tenant, "", 200, `{"key":"a","value":"v"}`},
		{"", "GET", "/cache/a", headers("Tenant", "y"), "", 404, `{"message":"Key not found"}`},
		{"", "DELETE", "/cache/a", tenant, "", 200, `{"message":"Data with key a deleted successfully"}`},
	} {
		e.run(t, h)
	}
	require.Equal(t, []string{"tenant:x:a", "tenant:x:a", "tenant:y:a", "tenant:x:a"}, s.keys)
}

func TestKeyFuncRefusesWithItsStatusAndWithoutItsText(t *testing.T) {
	type refused = rediscache.RefusedError
	for name, c := range map[string]struct {
		err       error
		status    int
		code      string
		challenge string
	}{
		"401":               {&refused{Status: 401, Challenge: "Bearer"}, 401, "unauthorized", "Bearer"},
		"401, wrapped":      {causedBy(&refused{Status: 401, Challenge: "Bearer"}), 401, "unauthorized", "Bearer"},
		"401, bare":         {&refused{Status: 401}, 401, "unauthorized", ""},
		"403":               {&refused{Status: 403, Challenge: "Bearer"}, 403, "forbidden", ""},
		"no status":         {&refused{}, 403, "forbidden", ""},
		"no refusal at all": {&refused{Status: 200}, 403, "forbidden", ""},
		"another error":     {errors.New(driverText), 403, "forbidden", ""},
		"of the store":      {causedBy(rediscache.ErrNotFound), 403, "forbidden", ""},
		"a nil pointer":     {(*refused)(nil), 403, "forbidden", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var logged bytes.Buffer
			s := newFakeStore()
			h := rediscache.NewHandler(s, rediscache.WithLogger(redistest.DebugLogger(&logged)),
				rediscache.WithKeyFunc(func(*http.Request, string) (string, error) { return "k", c.err }))
			for _, method := range []string{"GET", "POST", "DELETE"} {
				header := exchange{"", method, "/cache/a?value=v", nil, "", c.status, "!" + c.code}.run(t, h)
				require.Equal(t, c.challenge, header.Get("WWW-Authenticate"))
			}
			require.Empty(t, s.keys, "the store was not asked")
			require.Equal(t, 1, strings.Count(logged.String(), `"level":"DEBUG"`), "a line a second")
			require.Contains(t, logged.String(), c.err.Error())

			exchange{"", "OPTIONS", "/cache/a", nil, "", 204, ""}.run(t, h)
			exchange{"", "PUT", "/cache/a", nil, "", 405, "!method_not_allowed"}.run(t, h)
			exchange{"", "GET", "/cache/..", nil, "", 422, "!invalid_key"}.run(t, h)
		})
	}
}

// endless is a body that never ends and counts what is read of it.
type endless struct {
	begin string
	read  int
}

func (b *endless) Read(p []byte) (int, error) {
	n := copy(p, b.begin)
	b.begin = b.begin[n:]
	for i := n; i < len(p); i++ {
		p[i] = 'v'
	}
	b.read += len(p)
	return len(p), nil
}

func TestABodyIsReadNoFurtherThanAValueCanReach(t *testing.T) {
	const limit = 1000
	h := rediscache.NewHandler(newFakeStore(), rediscache.WithMaxValueBytes(limit))
	for mediaType, most := range map[string]int{
		"application/octet-stream":          limit + 1,
		"text/plain":                        limit + 1,
		"application/json":                  6*limit + 4097,
		"application/x-www-form-urlencoded": 6*limit + 4097,
		"image/png":                         0,
	} {
		t.Run(mediaType, func(t *testing.T) {
			body := &endless{begin: `{"value":"`}
			r := httptest.NewRequest("POST", "/cache/a", body)
			r.Header.Set("Content-Type", mediaType)
			require.Contains(t, []int{413, 415}, redistest.Serve(h, r).Code)
			require.LessOrEqual(t, body.read, most)

			body.read, r.ContentLength = 0, 1<<40
			require.Contains(t, []int{413, 415}, redistest.Serve(h, r).Code)
			require.Zero(t, body.read, "its length was known")
		})
	}
}

func TestABodyThatBreaksOffIsNotStored(t *testing.T) {
	s := newFakeStore()
	h := rediscache.NewHandler(s)
	broken := io.MultiReader(strings.NewReader("val"), &failing{})
	r := httptest.NewRequest("POST", "/cache/a", broken)
	r.Header.Set("Content-Type", "text/plain")
	exchange{"", "POST", "", nil, "", 400, "!bad_request"}.check(t, redistest.Serve(h, r))
	require.Empty(t, s.keys)

	r = &http.Request{Method: "POST", URL: &url.URL{Path: "/cache/a", RawQuery: "value=v"}, Header: http.Header{}}
	require.Equal(t, 200, redistest.Serve(h, r).Code, "a request without any Body")
}

type failing struct{}

func (*failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestHandlerOptionsAcceptWhatTheyDocument(t *testing.T) {
	s := newFakeStore()
	for base, target := range map[string]string{
		"": "/a", "/cache": "/cache/a", "/v1/cache": "/v1/cache/a", "/~x.y-z": "/~x.y-z/a",
	} {
		h := rediscache.NewHandler(s, rediscache.WithBasePath(base))
		require.Equal(t, 404, redistest.Serve(h, httptest.NewRequest("GET", "/other/a", nil)).Code)
		s.keys = nil
		redistest.Serve(h, httptest.NewRequest("GET", target, nil))
		require.Equal(t, []string{"a"}, s.keys, base)
	}
	require.EqualValues(t, 1<<20, rediscache.DefaultMaxValueBytes)
	h := rediscache.NewHandler(s, rediscache.HandlerOption{})
	for value, status := range map[string]int{strings.Repeat("v", 1<<20): 200, strings.Repeat("v", 1<<20+1): 413} {
		exchangeStatus(t, h, value, "", status)
	}
	exchangeStatus(t, h, "v", "?ttl=8760h", 200)
	exchangeStatus(t, h, "v", "?ttl=31536001", 422)
	h = rediscache.NewHandler(s, rediscache.WithMaxTTL(time.Millisecond), rediscache.WithMaxValueBytes(1<<62))
	exchangeStatus(t, h, "v", "?ttl=1ms", 200)
	exchangeStatus(t, h, "v", "?ttl=1", 422)
	exchangeStatus(t, h, "v", "", 200)
	exchange{
		"", "POST", "/cache/a", ofType("application/json"), `{"value":"v"}`, 200,
		`{"message":"Data cached successfully","key":"a","value":"v"}`,
	}.run(t, h)
}

func exchangeStatus(t *testing.T, h http.Handler, value, query string, status int) {
	t.Helper()
	r := httptest.NewRequest("POST", "/cache/a"+query, strings.NewReader(value))
	require.Equal(t, status, redistest.Serve(h, r).Code)
}

func TestNewHandlerPanicsOnBadOptionsAndNamesEveryFault(t *testing.T) {
	defer func() {
		err, ok := recover().(error)
		require.True(t, ok)
		for _, fault := range []string{
			"store is nil", "WithBasePath", "WithMaxValueBytes: 0", "WithMaxTTL: 999", "WithKeyFunc", "WithLogger",
		} {
			require.ErrorContains(t, err, fault)
		}
	}()
	rediscache.NewHandler(nil, rediscache.WithBasePath("cache"), rediscache.WithMaxValueBytes(0),
		rediscache.WithMaxTTL(999*time.Microsecond), rediscache.WithKeyFunc(nil), rediscache.WithLogger(nil))
}

func TestNewHandlerPanicsOnANilCache(t *testing.T) {
	var c *rediscache.Cache
	require.PanicsWithError(t, "rediscache: NewHandler: the store is nil", func() { rediscache.NewHandler(c) })
}

func TestNewHandlerPanicsOnEachBadOption(t *testing.T) {
	for name, o := range map[string]rediscache.HandlerOption{
		"value -1":  rediscache.WithMaxValueBytes(-1),
		"ttl 0":     rediscache.WithMaxTTL(0),
		"ttl -1":    rediscache.WithMaxTTL(rediscache.NoExpiry),
		"nil func":  rediscache.WithKeyFunc(nil),
		"no logger": rediscache.WithLogger(nil),
	} {
		t.Run(name, func(t *testing.T) {
			require.Panics(t, func() { rediscache.NewHandler(newFakeStore(), o) })
		})
	}
	for _, base := range []string{
		"/", "cache", "/cache/", "//cache", "/a//b", "/./a", "/a/..", "/a b", "/a%20b", "/é", "/a?b", "/a#b", "/%2F", "/a\x00",
	} {
		t.Run("base path "+base, func(t *testing.T) {
			require.Panics(t, func() { rediscache.NewHandler(newFakeStore(), rediscache.WithBasePath(base)) })
		})
	}
}

// decode reads the one JSON object of a body.
func decode(t *testing.T, body []byte) map[string]any {
	t.Helper()
	var v map[string]any
	require.NoError(t, json.Unmarshal(body, &v))
	return v
}
