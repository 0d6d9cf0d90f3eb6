package rediscache_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

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
