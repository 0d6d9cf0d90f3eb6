package routers

import (
	"net/http"

	"github.com/labstack/echo/v5"

	"github.com/rediscache/rediscache"
)

// Echo mounts the handler on echo, at /cache/ and in a group at /api/v1/cache/.
func Echo(store rediscache.Store) http.Handler {
	e := echo.New()
	e.Any("/cache/*", echo.WrapHandler(rediscache.NewHandler(store)))
	group := e.Group("/api/v1")
	group.Any("/cache/*", echo.WrapHandler(rediscache.NewHandler(store, rediscache.WithBasePath("/api/v1/cache"))))
	return e
}
