package routers

import (
	"net/http"

	"github.com/rediscache/rediscache"
)

// StripPrefix mounts the handler below a prefix that http.StripPrefix removes: with
// the default base path at /app/cache/, and with an empty base path at /api/v1/cache/.
// Both are on an http.ServeMux, which redirects as [NetHTTP] says.
func StripPrefix(store rediscache.Store) http.Handler {
	inner := http.NewServeMux()
	inner.Handle("/cache/", rediscache.NewHandler(store))
	mux := http.NewServeMux()
	mux.Handle("/app/", http.StripPrefix("/app", inner))
	mux.Handle("/api/v1/cache/", http.StripPrefix("/api/v1/cache/", rediscache.NewHandler(store, rediscache.WithBasePath(""))))
	return mux
}
