package apidocs_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/apidocs"
)

func get(h http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

func TestThePagesAreSelfContainedAndSmall(t *testing.T) {
	external := regexp.MustCompile(`(https?:)?//[a-z]`)
	for dir, h := range map[string]http.Handler{
		"docs": apidocs.New(rediscache.DefaultBasePath), "status": apidocs.NewStatus(newPool(t)),
	} {
		total := 0
		page := get(h, "/"+dir+"/")
		require.Equal(t, http.StatusOK, page.Code)
		require.Contains(t, page.Header().Get("Content-Security-Policy"), "default-src 'none'; script-src 'self'; style-src 'self'")
		require.NotRegexp(t, `(?i)<script>|<style|style=|\son\w+=`, page.Body.String(), "the policy permits nothing inline")
		names := regexp.MustCompile(`(?:href|src)="([^"/]+\.(?:css|js|svg))"`).FindAllStringSubmatch(page.Body.String(), -1)
		require.Len(t, names, 4)
		for _, name := range append(names, []string{"", ""}) {
			w := get(h, "/any/prefix/"+dir+"/"+name[1])
			require.Equal(t, http.StatusOK, w.Code, name[1])
			body := w.Body.String()
			if i := strings.LastIndexByte(name[1], '.'); i >= 0 {
				require.Regexp(t, map[string]string{".css": "^text/css", ".js": "^text/javascript", ".svg": "^image/svg"}[name[1][i:]],
					w.Header().Get("Content-Type"))
			}
			body = strings.ReplaceAll(body, "http://www.w3.org/2000/svg", "") // a name, which nothing loads
			require.NotRegexp(t, external, body, name[1])
			total += len(body)
		}
		require.Less(t, total, 100_000)
	}
}

func TestThePagesWorkBelowAnyPrefix(t *testing.T) {
	h := apidocs.New("/cache")
	for path, status := range map[string]int{
		"/docs/": 200, "/api/docs/": 200, "docs/": 200, "/api/docs/docs.js": 200, "/openapi.json": 200, "/api/openapi.json": 200,
		"/docs": 302, "/api/docs": 302,
		"/": 404, "/api/": 404, "/docs/none.js": 404, "/docs/..": 404, "/docs/page": 404, "/nodocs/": 404, "/docs/a/": 404,
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL.Path = path
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		require.Equal(t, status, w.Code, path)
		if status == http.StatusFound {
			require.Equal(t, "docs/", w.Header().Get("Location"))
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodHead, "/docs/", nil))
	require.Equal(t, http.StatusOK, w.Code)
	require.Empty(t, w.Body.String())
	w = httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/docs/", nil))
	require.Equal(t, http.StatusMethodNotAllowed, w.Code)
	require.Equal(t, "GET, HEAD", w.Header().Get("Allow"))
}

func TestTheDocumentNamesTheBasePath(t *testing.T) {
	for _, base := range []string{"", "/cache", "/a/b-c"} {
		var doc struct {
			OpenAPI string
			Servers []struct{ URL string }
			Paths   map[string]map[string]any
		}
		require.NoError(t, json.Unmarshal(apidocs.Document(base), &doc))
		require.Equal(t, "3.1.0", doc.OpenAPI)
		require.Equal(t, ".", doc.Servers[0].URL)
		require.Len(t, doc.Paths, 1)
		for _, method := range []string{"post", "get", "head", "delete"} {
			require.Contains(t, doc.Paths[base+"/{key}"], method)
		}
	}
	for _, base := range []string{"cache", "/", "/cache/", "/a b", "/%2F", "/{x}"} {
		require.Panics(t, func() { apidocs.Document(base) }, base)
		require.Panics(t, func() { apidocs.New(base) }, base)
	}
}
