package routers

import (
	"net/http"

	"github.com/go-chi/chi/v5"

	"github.com/rediscache/rediscache"
)

// Chi mounts the handler on chi, at /cache/ and in a group at /api/v1/cache/.
func Chi(store rediscache.Store) http.Handler {
	r := chi.NewRouter()
	r.Handle("/cache/*", rediscache.NewHandler(store))
	r.Route("/api/v1", func(r chi.Router) {
		r.Handle("/cache/*", rediscache.NewHandler(store, rediscache.WithBasePath("/api/v1/cache")))
	})
	return r
}
