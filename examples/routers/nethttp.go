package routers

import (
	"net/http"
	"strings"

	"github.com/rediscache/rediscache"
)

// NetHTTP mounts the handler on http.ServeMux, at /cache/ and in a group at
// /api/v1/cache/.
//
// ServeMux cleans a path before the handler sees it: it redirects /cache//a to
// /cache/a. An http.Client follows the redirect, so POST /cache//a writes the key a. To
// answer 404 instead, mount with [NetHTTPNoRedirect].
func NetHTTP(store rediscache.Store) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/cache/", rediscache.NewHandler(store))
	mux.Handle("/api/v1/cache/", rediscache.NewHandler(store, rediscache.WithBasePath("/api/v1/cache")))
	return mux
}

// NetHTTPNoRedirect mounts the handler in front of next, such as the mux with the
// other routes. The mux does not see the paths below /cache/, so nothing cleans them.
func NetHTTPNoRedirect(store rediscache.Store, next http.Handler) http.Handler {
	cache := rediscache.NewHandler(store)
	group := rediscache.NewHandler(store, rediscache.WithBasePath("/api/v1/cache"))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.EscapedPath(); {
		case strings.HasPrefix(path, "/cache/"):
			cache.ServeHTTP(w, r)
		case strings.HasPrefix(path, "/api/v1/cache/"):
			group.ServeHTTP(w, r)
		default:
			next.ServeHTTP(w, r)
		}
	})
}
