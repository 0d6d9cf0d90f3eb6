package routers

import (
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/rediscache/rediscache"
)

// Gin mounts the handler on gin, at /cache/ and in a group at /api/v1/cache/.
func Gin(store rediscache.Store) http.Handler {
	r := gin.New()
	r.Any("/cache/*key", gin.WrapH(rediscache.NewHandler(store)))
	group := r.Group("/api/v1")
	group.Any("/cache/*key", gin.WrapH(rediscache.NewHandler(store, rediscache.WithBasePath("/api/v1/cache"))))
	return r
}
