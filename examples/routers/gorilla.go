package routers

import (
	"net/http"

	"github.com/gorilla/mux"

	"github.com/rediscache/rediscache"
)

// Gorilla mounts the handler on gorilla/mux, at /cache/ and in a group at
// /api/v1/cache/. UseEncodedPath and SkipClean switch off the redirects of
// gorilla/mux, which would turn /cache//a into /cache/a.
func Gorilla(store rediscache.Store) http.Handler {
	r := mux.NewRouter().UseEncodedPath().SkipClean(true)
	r.PathPrefix("/cache/").Handler(rediscache.NewHandler(store))
	group := r.PathPrefix("/api/v1").Subrouter()
	group.PathPrefix("/cache/").Handler(rediscache.NewHandler(store, rediscache.WithBasePath("/api/v1/cache")))
	return r
}
