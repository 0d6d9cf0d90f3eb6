package rediscache_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

const allMethods = "GET, HEAD, POST, DELETE, OPTIONS"

// exchange is a request to a handler and what must come back. want is the
// body, byte for byte, or the code of an error after a "!".
type exchange struct {
	name           string
	method, target string
	header         http.Header
	body           string
	status         int
	want           string
}

func (e exchange) run(t *testing.T, h http.Handler) http.Header {
	t.Helper()
	r := httptest.NewRequest(e.method, e.target, strings.NewReader(e.body))
	if e.header != nil {
		r.Header = e.header
	}
	return e.check(t, redistest.Serve(h, r))
}

func (e exchange) check(t *testing.T, w *httptest.ResponseRecorder) http.Header {
	t.Helper()
	header, body := w.Result().Header, w.Body.String()
	require.Equal(t, e.status, w.Code, body)
	require.Equal(t, "nosniff", header.Get("X-Content-Type-Options"))
	if code, isError := strings.CutPrefix(e.want, "!"); isError {
		require.Regexp(t, `^\{"error":"`+code+`","detail":"[^"]+\."\}$`, body)
	} else {
		require.Equal(t, e.want, body)
	}
	if e.method != http.MethodHead && body != "" {
		require.Equal(t, fmt.Sprint(len(body)), header.Get("Content-Length"))
	}
	if e.status == 200 && (e.method == "GET" || e.method == "HEAD") || e.status == 304 {
		require.Equal(t, "no-cache", header.Get("Cache-Control"))
		require.Equal(t, "Accept", header.Get("Vary"))
		require.Regexp(t, `^"[0-9a-f]{32}(-raw)?"$`, header.Get("ETag"))
	} else {
		require.Equal(t, "no-store", header.Get("Cache-Control"))
		require.Empty(t, header.Get("ETag"))
		if body != "" {
			require.Equal(t, "application/json", header.Get("Content-Type"))
		}
	}
	return header
}

func headers(pairs ...string) http.Header {
	header := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		header.Add(pairs[i], pairs[i+1])
	}
	return header
}

func ofType(mediaType string) http.Header { return headers("Content-Type", mediaType) }

func TestTheHandlerKeepsItsContractOnAStoreInMemory(t *testing.T) {
	s := newFakeStore()
	testHandler(t, s, s.do)
}

// testHandler is the contract of the handler over any store. do runs a Redis
// command where s keeps its values, under the same keys.
func testHandler(t *testing.T, s rediscache.Store, do func(command string, args ...any) any) {
	h := rediscache.NewHandler(s, rediscache.WithMaxTTL(24*time.Hour))
	t.Run("the tutorial's session goes as it did", func(t *testing.T) { testTutorial(t, h) })
	t.Run("a value is stored as it was sent", func(t *testing.T) { testPost(t, h, do) })
	t.Run("what cannot be stored is refused and changes nothing", func(t *testing.T) { testRefusedPost(t, h, do) })
	t.Run("a value comes back in what the client accepts", func(t *testing.T) { testGet(t, h, do) })
	t.Run("a client that has the value gets 304", func(t *testing.T) { testNotModified(t, h, do) })
	t.Run("what is no key and no method is refused", func(t *testing.T) { testPaths(t, h) })
	t.Run("a limit counts the value and not its spelling", func(t *testing.T) { testLimit(t, s) })
	t.Run("another type under the key is 409", func(t *testing.T) {
		do("RPUSH", "list", "x")
		exchange{"", "GET", "/cache/list", nil, "", 409, "!wrong_type"}.run(t, h)
	})
}

func testTutorial(t *testing.T, h http.Handler) {
	const missing = `{"message":"Key not found"}`
	for _, e := range []exchange{
		{"", "GET", "/cache/a", nil, "", 404, missing},
		{"", "HEAD", "/cache/a", nil, "", 404, ""},
		{"", "POST", "/cache/a?value=hello", nil, "", 200, `{"message":"Data cached successfully","key":"a","value":"hello"}`},
		{"", "GET", "/cache/a", nil, "", 200, `{"key":"a","value":"hello"}`},
		{"", "HEAD", "/cache/a", nil, "", 200, ""},
		{"", "DELETE", "/cache/a", nil, "", 200, `{"message":"Data with key a deleted successfully"}`},
		{"", "DELETE", "/cache/a", nil, "", 404, missing},
		{"", "POST", "/cache/b?value=", nil, "", 200, `{"message":"Data cached successfully","key":"b","value":""}`},
		{"", "GET", "/cache/b", nil, "", 200, `{"key":"b","value":""}`},
		{"", "POST", "/cache/b?value=a&value=b", nil, "", 400, "!bad_request"},
		{"", "POST", "/cache/a", nil, "", 422, "!value_required"},
		{"", "GET", "/cache/a", headers("Accept", "application/problem+json"), "", 404, missing},
		{
			"", "POST", "/cache/%3Ca%26%22b%3E?value=%3C%C3%A9%26%22%5C%0A%3E", nil, "", 200,
			`{"message":"Data cached successfully","key":"<a&\"b>","value":"<é&\"\\\n>"}`,
		},
		{"", "DELETE", "/cache/%3Ca%26%22b%3E", nil, "", 200, `{"message":"Data with key <a&\"b> deleted successfully"}`},
	} {
		e.run(t, h)
	}
}

func testPost(t *testing.T, h http.Handler, do func(string, ...any) any) {
	const form, raw = "application/x-www-form-urlencoded", "application/octet-stream"
	for i, c := range []struct {
		name, query string
		header      http.Header
		body        string
		value       string
		ttl         time.Duration // 0 is none
		shown       string        // the tail of the answer
	}{
		{"query with seconds", "?value=v&ttl=60", nil, "", "v", time.Minute, `,"value":"v"`},
		{"query with a duration", "?value=v&ttl=1h30m", nil, "", "v", 90 * time.Minute, `,"value":"v"`},
		{"query with the longest ttl in seconds", "?value=v&ttl=86400", nil, "", "v", 24 * time.Hour, `,"value":"v"`},
		{"query with the shortest ttl that a test can see", "?value=v&ttl=900ms", nil, "", "v", 900 * time.Millisecond, `,"value":"v"`},
		{"query with what nobody asked for", "?x=1&value=v", nil, "", "v", 0, `,"value":"v"`},
		{"query whose plus is a space", "?value=a+b%2Bc", nil, "", "a b+c", 0, `,"value":"a b+c"`},
		{"query that is not UTF-8", "?value=%FF%00", nil, "", "\xff\x00", 0, `,"value":"/wA=","encoding":"base64"`},
		{"form", "", ofType(form), "value=a%20b&ttl=60", "a b", time.Minute, `,"value":"a b"`},
		{"form with the ttl in the query", "?ttl=60", ofType(form + "; charset=UTF-8"), "value=v", "v", time.Minute, `,"value":"v"`},
		{"form without a body beside a query", "?value=v", ofType(form), "", "v", 0, `,"value":"v"`},
		{"JSON", "", ofType("application/json"), `{"value":"v"}`, "v", 0, `,"value":"v"`},
		{"JSON with seconds", "", ofType("application/json; charset=utf-8"), ` {"ttl" : 60 , "value" : "v"} `, "v", time.Minute, `,"value":"v"`},
		{"JSON with a duration", "", ofType("Application/JSON"), `{"value":"","ttl":"1m"}`, "", time.Minute, `,"value":""`},
		{
			"JSON with escapes", "", ofType("application/json"), `{"v\u0061lue":"\\ud800\ud83d\ude00\u0000\ufffd"}`,
			`\ud800` + "\U0001F600\x00\uFFFD", 0, `,"value":"\\ud800` + "\U0001F600" + `\u0000` + "\uFFFD" + `"`,
		},
		{"JSON with null for what is elsewhere", "?value=v&ttl=60", ofType("application/json"), `{"value":null,"ttl": null}`, "v", time.Minute, `,"value":"v"`},
		{"JSON without a body beside a query", "?value=v", ofType("application/json"), "", "v", 0, `,"value":"v"`},
		{"octets", "?ttl=60", ofType(raw), "a=b&\xff\x00", "a=b&\xff\x00", time.Minute, ``},
		{"text", "", ofType("text/plain; charset=utf-8"), "héllo", "héllo", 0, ``},
		{"no octets", "", ofType(raw), "", "", 0, ``},
		{"no octets beside a query", "?value=v", ofType(raw), "", "v", 0, `,"value":"v"`},
		{"a body without a type", "", nil, "v", "v", 0, ``},
		{"a body with its own coding named", "", headers("Content-Type", raw, "Content-Encoding", "identity"), "v", "v", 0, ``},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := fmt.Sprintf("post-%d", i)
			want := fmt.Sprintf(`{"message":"Data cached successfully","key":"%s"%s}`, key, c.shown)
			exchange{"", "POST", "/cache/" + key + c.query, c.header, c.body, 200, want}.run(t, h)
			require.Equal(t, []byte(c.value), do("GET", key))
			left := do("PTTL", key).(int64)
			if c.ttl == 0 {
				require.EqualValues(t, -1, left)
			} else {
				require.LessOrEqual(t, left, c.ttl.Milliseconds())
				require.Positive(t, left)
				require.Greater(t, left, c.ttl.Milliseconds()-10_000)
			}
			got := redistest.Serve(h, withAccept(httptest.NewRequest("GET", "/cache/"+key, nil), raw))
			require.Equal(t, c.value, got.Body.String())
		})
	}
}

func withAccept(r *http.Request, accept ...string) *http.Request {
	r.Header["Accept"] = accept
	return r
}

func testRefusedPost(t *testing.T, h http.Handler, do func(string, ...any) any) {
	const form, raw, jsn = "application/x-www-form-urlencoded", "application/octet-stream", "application/json"
	const twice, malformed = "!bad_request", "!bad_request"
	do("SET", "kept", "old")
	for _, e := range []exchange{
		{"no value", "POST", "?ttl=60", nil, "", 422, "!value_required"},
		{"a form without a value", "POST", "", ofType(form), "ttl=60", 422, "!value_required"},
		{"an empty form", "POST", "", ofType(form), "", 422, "!value_required"},
		{"an empty object", "POST", "", ofType(jsn), "{}", 422, "!value_required"},
		{"no object", "POST", "", ofType(jsn), "", 422, "!value_required"},
		{"null", "POST", "", ofType(jsn), `{"value":null}`, 422, "!value_required"},
		{"a number", "POST", "", ofType(jsn), `{"value":1}`, 422, "!invalid_value"},
		{"an object as value", "POST", "", ofType(jsn), `{"value":{}}`, 422, "!invalid_value"},
		{"true beside a query", "POST", "?value=v", ofType(jsn), `{"value":true}`, 422, "!invalid_value"},

		{"two in the query", "POST", "?value=a&value=a", nil, "", 400, twice},
		{"query and form", "POST", "?value=a", ofType(form), "value=b", 400, twice},
		{"two in a form", "POST", "", ofType(form), "value=a&value=b", 400, twice},
		{"query and JSON", "POST", "?value=a", ofType(jsn), `{"value":"b"}`, 400, twice},
		{"two in JSON", "POST", "", ofType(jsn), `{"value":"a","value":"b"}`, 400, twice},
		{"null and a value in JSON", "POST", "", ofType(jsn), `{"value":null,"v\u0061lue":"b"}`, 400, twice},
		{"query and octets", "POST", "?value=a", ofType(raw), "b", 400, twice},
		{"query and a body without a type", "POST", "?value=a", nil, "b", 400, twice},
		{"ttl in query and form", "POST", "?value=a&ttl=1", ofType(form), "ttl=1", 400, twice},
		{"ttl in query and JSON", "POST", "?ttl=1", ofType(jsn), `{"value":"b","ttl":1}`, 400, twice},
		{"two ttl in JSON", "POST", "", ofType(jsn), `{"value":"b","ttl":1,"ttl":1}`, 400, twice},
		{"two ttl beside octets", "POST", "?ttl=1&ttl=1", ofType(raw), `b`, 400, twice},

		{"a bad escape", "POST", "?value=%zz", nil, "", 400, malformed},
		{"a semicolon", "POST", "?value=a;b", nil, "", 400, malformed},
		{"a bad escape beside octets", "POST", "?x=%zz", ofType(raw), "b", 400, malformed},
		{"a bad escape in a form", "POST", "", ofType(form), "value=%zz", 400, malformed},
		{"half an object", "POST", "", ofType(jsn), `{"value":"a"`, 400, malformed},
		{"more than an object", "POST", "", ofType(jsn), `{"value":"a"}{}`, 400, malformed},
		{"no object but a string", "POST", "", ofType(jsn), `"a"`, 400, malformed},
		{"no object but null", "POST", "", ofType(jsn), `null`, 400, malformed},
		{"no object but a list", "POST", "", ofType(jsn), `["value"]`, 400, malformed},
		{"an unknown field", "POST", "", ofType(jsn), `{"value":"a","tll":1}`, 400, malformed},
		{"a field in capitals", "POST", "", ofType(jsn), `{"VALUE":"a"}`, 400, malformed},
		{"JSON that is not UTF-8", "POST", "", ofType(jsn), "{\"value\":\"\xff\"}", 400, malformed},
		{"the first half of a pair", "POST", "", ofType(jsn), `{"value":"\ud83d"}`, 400, malformed},
		{"the first half of a pair and a letter", "POST", "", ofType(jsn), `{"value":"\ud83d\u0041"}`, 400, malformed},
		{"the second half of a pair", "POST", "", ofType(jsn), `{"value":"\n\ude00"}`, 400, malformed},
		{"a pair the wrong way round", "POST", "", ofType(jsn), `{"value":"\ude00\ud83d"}`, 400, malformed},

		{"a picture", "POST", "?value=v", ofType("image/png"), "b", 415, "!unsupported_media_type"},
		{"a form of many parts", "POST", "", ofType("multipart/form-data; boundary=x"), "b", 415, "!unsupported_media_type"},
		{"a charset", "POST", "", ofType("text/plain; charset=latin1"), "b", 415, "!unsupported_media_type"},
		{"two types", "POST", "", headers("Content-Type", raw, "Content-Type", jsn), "b", 415, "!unsupported_media_type"},
		{"no type at all", "POST", "", ofType("octets"), "b", 415, "!unsupported_media_type"},
		{"a coding", "POST", "", headers("Content-Type", raw, "Content-Encoding", "gzip"), "b", 415, "!unsupported_media_type"},

		{"a condition", "POST", "?value=v", headers("If-None-Match", "*"), "", 412, "!precondition_failed"},
		{"a condition on a delete", "DELETE", "", headers("If-Match", `"x"`), "", 412, "!precondition_failed"},
	} {
		t.Run(e.name, func(t *testing.T) {
			e.target = "/cache/kept" + e.target
			header := e.run(t, h)
			if e.status == 415 {
				require.Equal(t, "application/json, application/octet-stream, text/plain, application/x-www-form-urlencoded",
					header.Get("Accept-Post"))
			}
			require.Equal(t, []byte("old"), do("GET", "kept"))
		})
	}
	for _, ttl := range []string{
		"", "0", "-1", "-9223372036854775808", "x", "1.5", "1e3", "60%20", "999us", "0.5ms", "-1s", "86401",
		"24h0m0.001s", "9223372037", "18446744074", "99999999999999999999", "9999999h", "-18446744073", "Inf", "0x10", "1_0",
	} {
		t.Run("ttl "+ttl, func(t *testing.T) {
			exchange{"", "POST", "/cache/kept?value=v&ttl=" + ttl, nil, "", 422, "!invalid_ttl"}.run(t, h)
			require.Equal(t, []byte("old"), do("GET", "kept"))
		})
	}
	for _, ttl := range []string{`0`, `-1`, `1.0`, `1e2`, `""`, `"x"`, `true`, `[1]`, `86401`, `9223372036854775808`} {
		t.Run("JSON ttl "+ttl, func(t *testing.T) {
			exchange{"", "POST", "/cache/kept", ofType(jsn), `{"value":"v","ttl":` + ttl + `}`, 422, "!invalid_ttl"}.run(t, h)
		})
	}
}

func testGet(t *testing.T, h http.Handler, do func(string, ...any) any) {
	do("SET", "text", "<é>")
	do("SET", "bytes", "\xff\x00")
	const text, base64 = `{"key":"text","value":"<é>"}`, `{"key":"bytes","value":"/wA=","encoding":"base64"}`
	for _, c := range []struct{ accept, text, bytes string }{
		{"", text, base64},
		{"*/*", text, base64},
		{"application/*", text, base64},
		{"APPLICATION/json; charset=utf-8", text, base64},
		{"text/html, application/xhtml+xml, */*;q=0.8", text, base64},
		{"application/octet-stream", "<é>", "\xff\x00"},
		{"application/json;q=0.5, application/octet-stream;q=0.6", "<é>", "\xff\x00"},
		{"application/json;q=0.6, application/octet-stream;q=0.5", text, base64},
		{"application/octet-stream, application/json", text, base64},
		{"*/*, application/octet-stream", "<é>", "\xff\x00"},
		{"application/*;q=0.9, application/json;q=0.1", "<é>", "\xff\x00"},
		{"application/json;q=0, */*", "<é>", "\xff\x00"},
		{"application/octet-stream;q=0, */*;q=0.1", text, base64},
		{"application/octet-stream;q=2, application/json;q=0.1", text, base64},
		{"application/octet-stream;q=NaN, application/json;q=.1", text, base64},
	} {
		t.Run("Accept "+c.accept, func(t *testing.T) {
			for key, want := range map[string]string{"text": c.text, "bytes": c.bytes} {
				wantType := "application/octet-stream"
				if strings.HasPrefix(want, "{") {
					wantType = "application/json"
				}
				e := exchange{"", "GET", "/cache/" + key, headers("Accept", c.accept), "", 200, want}
				header := e.run(t, h)
				require.Equal(t, wantType, header.Get("Content-Type"))
				e.method, e.want = "HEAD", ""
				require.Equal(t, header, e.run(t, h), "the headers of HEAD are those of GET")
			}
		})
	}
	for _, accept := range []string{
		"text/html", "text/*", "application/problem+json", "application/json;q=0", "*/*;q=0", "nonsense",
		"application/*;q=0, */*", "application/json;q=x",
	} {
		t.Run("Accept "+accept, func(t *testing.T) {
			r := withAccept(httptest.NewRequest("GET", "/cache/text", nil), accept)
			require.Equal(t, 406, redistest.Serve(h, r).Code)
			exchange{"", "GET", "/cache/none", headers("Accept", accept), "", 404, `{"message":"Key not found"}`}.run(t, h)
		})
	}
	exchange{"", "GET", "/cache/text", headers("Accept", "text/html"), "", 406, "!not_acceptable"}.run(t, h)
	exchange{"", "HEAD", "/cache/text", headers("Accept", "text/html"), "", 406, ""}.run(t, h)
}

func testNotModified(t *testing.T, h http.Handler, do func(string, ...any) any) {
	const raw = "application/octet-stream"
	tag := func(key, accept string) string {
		return exchange{"", "HEAD", "/cache/" + key, headers("Accept", accept), "", 200, ""}.run(t, h).Get("ETag")
	}
	do("SET", "etag", "one")
	do("SET", "etag-2", "two")
	one := tag("etag", "")
	require.NotEqual(t, one, tag("etag", raw), "two representations")
	require.NotEqual(t, one, tag("etag-2", ""), "two values")
	for _, lines := range [][]string{
		{one}, {"W/" + one}, {"*"}, {" * "}, {`"x", ` + one}, {`"a,b",W/"",` + one + ", rubbish"}, {`"x"`, one},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			e := exchange{"", method, "/cache/etag", http.Header{"If-None-Match": lines}, "", 304, ""}
			header := e.run(t, h)
			require.Equal(t, one, header.Get("ETag"))
			require.Empty(t, header.Get("Content-Type"))
		}
	}
	for _, lines := range [][]string{
		{tag("etag", raw)}, {`"x"`}, {"rubbish, " + one}, {`"` + one}, {strings.TrimSuffix(one, `"`)}, {strings.Trim(one, `"`)}, {""}, {`"`}, {"w/" + one}, {`"x", *`},
	} {
		e := exchange{"", "GET", "/cache/etag", http.Header{"If-None-Match": lines}, "", 200, `{"key":"etag","value":"one"}`}
		e.run(t, h)
	}
	exchange{"", "GET", "/cache/none", headers("If-None-Match", "*"), "", 404, `{"message":"Key not found"}`}.run(t, h)
	exchange{
		"", "POST", "/cache/etag?value=three", nil, "", 200,
		`{"message":"Data cached successfully","key":"etag","value":"three"}`,
	}.run(t, h)
	require.NotEqual(t, one, tag("etag", ""), "a new value")
}

func testPaths(t *testing.T, h http.Handler) {
	for _, method := range []string{"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT"} {
		for target, want := range map[string]string{
			"/": "404 no_such_route", "/cache": "404 no_such_route", "/cache/": "404 no_such_route",
			"/cache/a/b": "404 no_such_route", "/cache/a/": "404 no_such_route", "/cache//a": "404 no_such_route",
			"/cachea": "404 no_such_route", "/x/cache/a": "404 no_such_route", "/c%61che/a": "404 no_such_route",
			"/cache%2Fa": "404 no_such_route",
			"/cache/.":   "422 invalid_key", "/cache/%2E%2e": "422 invalid_key", "/cache/%FF": "422 invalid_key",
			"/cache/%ED%A0%80": "422 invalid_key", "/cache/a%00": "422 invalid_key", "/cache/a%0Ab": "422 invalid_key",
			"/cache/%7F": "422 invalid_key", "/cache/%C2%85": "422 invalid_key",
			"/cache/" + strings.Repeat("k", 513):      "422 invalid_key",
			"/cache/" + strings.Repeat("%C3%A9", 257): "422 invalid_key",
		} {
			t.Run(method+" "+target, func(t *testing.T) {
				var e exchange
				e.method, e.target = method, target+"?value=v"
				_, err := fmt.Sscanf(want, "%d %s", &e.status, &e.want)
				require.NoError(t, err)
				if e.want = "!" + e.want; method == "HEAD" {
					e.want = ""
				}
				e.run(t, h)
			})
		}
	}
	longest := strings.Repeat("k", 512)
	exchange{
		"", "POST", "/cache/" + longest + "?value=v", nil, "", 200,
		`{"message":"Data cached successfully","key":"` + longest + `","value":"v"}`,
	}.run(t, h)
	for _, key := range []string{"...", ".a", "%2e%2e%2Fa", "%252e", "a%2Fb", "%20", "a+b", "%C2%A0", "%E2%80%A8", "%EF%BF%BD", ";", ":", "*", strings.Repeat("%C3%A9", 256)} {
		require.Equal(t, 404, redistest.Serve(h, httptest.NewRequest("GET", "/cache/"+key, nil)).Code, key)
	}
	options := exchange{"", "OPTIONS", "/cache/a", nil, "", 204, ""}.run(t, h)
	require.Equal(t, allMethods, options.Get("Allow"))
	for _, method := range []string{"PUT", "PATCH", "TRACE", "get", "MOVE"} {
		header := exchange{"", method, "/cache/a", nil, "", 405, "!method_not_allowed"}.run(t, h)
		require.Equal(t, allMethods, header.Get("Allow"))
	}
}

func testLimit(t *testing.T, s rediscache.Store) {
	const limit = 20_000
	const form, raw, jsn = "application/x-www-form-urlencoded", "application/octet-stream", "application/json"
	h := rediscache.NewHandler(s, rediscache.WithMaxValueBytes(limit))
	for _, c := range []struct {
		name, mediaType, before, unit, after string
	}{
		{"octets", raw, "", "v", ""},
		{"a body without a type", "", "", "v", ""},
		{"an escaped form", form, "ttl=60&value=", "%76", ""},
		{"escaped JSON", jsn, `{"ttl":60,"value":"`, `\u0076`, `"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			post := func(length int, known bool) int {
				var body io.Reader = strings.NewReader(c.before + strings.Repeat(c.unit, length) + c.after)
				if !known {
					body = io.MultiReader(body) // hides the length
				}
				r := httptest.NewRequest("POST", "/cache/limit", body)
				if c.mediaType != "" {
					r.Header.Set("Content-Type", c.mediaType)
				}
				return redistest.Serve(h, r).Code
			}
			for _, known := range []bool{true, false} {
				require.Equal(t, 200, post(limit, known))
				require.Equal(t, 413, post(limit+1, known))
				require.Equal(t, 413, post(limit*10, known))
			}
		})
	}
	query := func(n int) string { return "/cache/limit?value=" + strings.Repeat("%76", n) }
	require.Equal(t, 200, redistest.Serve(h, httptest.NewRequest("POST", query(limit), nil)).Code)
	exchange{"", "POST", query(limit + 1), nil, "", 413, "!value_too_large"}.run(t, h)
	e := exchange{"", "POST", "/cache/limit", ofType(raw), strings.Repeat("v", limit+1), 413, "!value_too_large"}
	e.run(t, h)
}

// fakeStore is a Store in memory. Once err is set it fails every call with it.
type fakeStore struct {
	mu    sync.Mutex
	items map[string]fakeItem
	keys  []string // of all calls, in order
	err   error
}

type fakeItem struct {
	value []byte
	ttl   time.Duration
	list  bool
}

func newFakeStore() *fakeStore { return &fakeStore{items: map[string]fakeItem{}} }

func (s *fakeStore) begin(key string) error {
	s.keys = append(s.keys, key)
	return s.err
}

func (s *fakeStore) Get(_ context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	item, ok := s.items[key]
	switch err := s.begin(key); {
	case err != nil:
		return nil, err
	case !ok:
		return nil, fmt.Errorf("get: %w", rediscache.ErrNotFound)
	case item.list:
		return nil, fmt.Errorf("get: %w", rediscache.ErrWrongType)
	}
	return bytes.Clone(item.value), nil
}

func (s *fakeStore) Set(_ context.Context, key string, value []byte, ttl time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.begin(key)
	if err == nil {
		s.items[key] = fakeItem{value: bytes.Clone(value), ttl: ttl}
	}
	return err
}

func (s *fakeStore) Delete(_ context.Context, keys ...string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.items)
	for _, key := range keys {
		if err := s.begin(key); err != nil {
			return 0, err
		}
		delete(s.items, key)
	}
	return n - len(s.items), nil
}

// do answers the Redis commands of testHandler.
func (s *fakeStore) do(command string, args ...any) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := args[0].(string)
	item, ok := s.items[key]
	switch {
	case command == "SET":
		s.items[key] = fakeItem{value: []byte(args[1].(string))}
	case command == "RPUSH":
		s.items[key] = fakeItem{list: true}
	case command == "GET" && ok:
		return append([]byte{}, item.value...)
	case command == "PTTL" && item.ttl == rediscache.DefaultTTL:
		return int64(-1)
	case command == "PTTL":
		return item.ttl.Milliseconds()
	}
	return nil
}

func TestTheHandlerKeepsItsContractOnRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		testHandler(t, handlerCache(t, s.URL()), s.Do)
	})
}

// handlerCache returns a cache on a pool that gives an operation half a second.
func handlerCache(t *testing.T, url string) *rediscache.Cache {
	t.Helper()
	pool, err := rediscache.NewPool(url, rediscache.WithMinIdle(0))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pool.Close()) })
	cache, err := rediscache.New(pool, rediscache.WithTimeout(500*time.Millisecond))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cache.Close()) })
	return cache
}

// requireFailures sends every method and requires that each named in want
// fails as it says and shows nothing of s.
func requireFailures(t *testing.T, s *redistest.Server, store rediscache.Store, want map[string]exchange) {
	t.Helper()
	for method, e := range want {
		var logged bytes.Buffer
		h := rediscache.NewHandler(store, rediscache.WithLogger(redistest.DebugLogger(&logged))) // which logs a line a second
		w := redistest.Serve(h, httptest.NewRequest(method, "/cache/a?value=v", nil))
		e.method = method
		header := e.check(t, w)
		require.Equal(t, e.status == 503, header.Get("Retry-After") == "1")
		for _, secret := range []string{s.Addr, s.Addr[strings.LastIndex(s.Addr, ":"):], "redis", "dial", "user"} {
			require.NotContains(t, w.Body.String(), secret)
		}
		require.Contains(t, logged.String(), `"cause":"rediscache: `)
	}
}

func everyMethod(status int, want string) map[string]exchange {
	e := exchange{status: status, want: want}
	return map[string]exchange{"GET": e, "HEAD": {status: status}, "POST": e, "DELETE": e}
}

func TestTheHandlerSays503WhenRedisIsDownAndServesAgainAfterwards(t *testing.T) {
	s := redistest.Start(t)
	cache := handlerCache(t, s.URL())
	h := rediscache.NewHandler(cache)
	served := func() bool {
		return redistest.Serve(h, httptest.NewRequest("POST", "/cache/a?value=v", nil)).Code == 200
	}
	require.True(t, served())
	s.Kill()
	redistest.Eventually(t, func() bool {
		return redistest.Serve(h, httptest.NewRequest("GET", "/cache/a", nil)).Code == 503
	}, "the connection is found dead")
	requireFailures(t, s, cache, everyMethod(503, "!cache_unavailable"))
	s.Restart()
	redistest.Eventually(t, served, "the restarted Redis serves")
}

func TestTheHandlerSays504WhenRedisIsSilent(t *testing.T) {
	s := redistest.Start(t)
	cache := handlerCache(t, s.URL())
	require.NoError(t, cache.Set(t.Context(), "a", nil, rediscache.DefaultTTL))
	s.Stop()
	defer s.Cont()
	want := everyMethod(504, "!cache_timeout")
	delete(want, http.MethodPost)
	delete(want, http.MethodDelete)
	requireFailures(t, s, cache, want)
	for _, method := range []string{"POST", "DELETE"} {
		w := redistest.Serve(rediscache.NewHandler(cache), httptest.NewRequest(method, "/cache/a?value=v", nil))
		require.Equal(t, 504, w.Code)
		require.Contains(t, []any{"cache_timeout", "outcome_unknown"}, decode(t, w.Body.Bytes())["error"])
	}
}

func TestTheHandlerSays503WhenEveryConnectionIsLent(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		pool, err := rediscache.NewPool(s.URL(), rediscache.WithMinIdle(0), rediscache.WithMaxActive(1))
		require.NoError(t, err)
		defer func() { require.NoError(t, pool.Close()) }()
		cache, err := rediscache.New(pool, rediscache.WithTimeout(200*time.Millisecond))
		require.NoError(t, err)
		defer func() { require.NoError(t, cache.Close()) }()
		held, err := pool.GetContext(t.Context())
		require.NoError(t, err)
		requireFailures(t, s, cache, everyMethod(503, "!cache_unavailable"))
		require.NoError(t, held.Close())
	})
}

func TestTheHandlerKnowsWhatRedisSaysOnAPoolOfItsUser(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		pool := &redis.Pool{Dial: func() (redis.Conn, error) { return redis.DialURL(s.URL()) }}
		cache, err := rediscache.New(pool)
		require.NoError(t, err)
		defer func() { require.NoError(t, cache.Close()) }()
		s.Do("RPUSH", "a", "x")
		requireFailures(t, s, cache, map[string]exchange{"GET": {status: 409, want: "!wrong_type"}})
	})
}
