// Package apidocs serves pages about a cache: its HTTP API, and its present state.
//
// [New] serves an OpenAPI 3.1 document of the routes of [rediscache.NewHandler], and a
// page on which each route can be tried:
//
//	docs := apidocs.New(rediscache.DefaultBasePath)
//	mux.Handle("/docs/", docs)
//	mux.Handle("/openapi.json", docs)
//
// [NewStatus] serves a page that shows what a pool and its caches do.
//
// The pages load nothing from other hosts, and their Content-Security-Policy permits no
// inline script or style. They have no authentication: put a middleware before them where
// not everybody may see them. The docs page sends its requests as any client does.
package apidocs

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

//go:embed page
var files embed.FS

//go:embed openapi.json
var document []byte

// policy lets a page load its own files and call its own server, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// New returns a handler that serves /docs/ and /openapi.json for a cache handler with the
// base path basePath, see [rediscache.WithBasePath]. It takes the last part of the path,
// so it works below any prefix; the document then refers to the cache handler below the
// same prefix. /docs redirects to /docs/. New panics if basePath is not valid.
func New(basePath string) http.Handler {
	doc := Document(basePath)
	mux := &pages{dir: "docs"}
	mux.data = func(w http.ResponseWriter, r *http.Request, name string) bool {
		if name != "openapi.json" {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		serveContent(w, r, doc)
		return true
	}
	return mux
}

// Document returns the OpenAPI document of a cache handler with the base path basePath, as
// JSON. The caller owns the result. Document panics if basePath is neither empty nor a path
// that begins with a slash and does not end with one, or if it needs escaping.
func Document(basePath string) []byte {
	u := url.URL{Path: basePath}
	if basePath != "" && (!strings.HasPrefix(basePath, "/") || strings.HasSuffix(basePath, "/") ||
		u.EscapedPath() != basePath || strings.ContainsAny(basePath, "{}")) {
		panic(fmt.Sprintf("apidocs: the base path %q must be empty, or begin with a slash, not end with one, "+
			"and need no escaping", basePath))
	}
	path, _ := json.Marshal(basePath + "/{key}") // a string, which cannot fail
	return bytes.Replace(document, []byte(`"/cache/{key}"`), path, 1)
}

// pages serves the files of one directory of page, at a path that ends with the name of
// the directory and a slash.
type pages struct {
	dir  string
	data func(w http.ResponseWriter, r *http.Request, name string) bool // serves what is no file
}

func (p *pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-cache")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "the method must be GET or HEAD", http.StatusMethodNotAllowed)
		return
	}
	rest, name := "", r.URL.Path
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		rest, name = name[:i], name[i+1:]
	}
	switch {
	case p.data(w, r, name):
	case name == p.dir:
		// A relative URL, because only the client knows the prefix of this path.
		h.Set("Location", p.dir+"/")
		w.WriteHeader(http.StatusFound)
	case rest != p.dir && !strings.HasSuffix(rest, "/"+p.dir):
		http.NotFound(w, r)
	default:
		if name == "" {
			name = "index.html"
		}
		p.file(w, r, name)
	}
}

// types are the media types of the files. The mime package would take them from the system.
var types = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// file serves a file of the directory, or else one that all pages share.
func (p *pages) file(w http.ResponseWriter, r *http.Request, name string) {
	body, err := files.ReadFile("page/" + p.dir + "/" + name)
	if err != nil {
		body, err = files.ReadFile("page/" + name)
	}
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", types[name[strings.LastIndexByte(name, '.'):]])
	serveContent(w, r, body)
}

// serveContent answers with body. It ignores an error of Write, because then the client
// is gone.
func serveContent(w http.ResponseWriter, r *http.Request, body []byte) {
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}
