package routers

import (
	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/adaptor"

	"github.com/rediscache/rediscache"
)

// Fiber mounts the handler on fiber, at /cache/ and in a group at /api/v1/cache/.
// The adaptor answers 500 to a path that is not correctly escaped, such as a%2; behind
// the other routers that is 400.
func Fiber(store rediscache.Store) *fiber.App {
	app := fiber.New()
	app.All("/cache/*", adaptor.HTTPHandler(rediscache.NewHandler(store)))
	group := app.Group("/api/v1")
	group.All("/cache/*", adaptor.HTTPHandler(rediscache.NewHandler(store, rediscache.WithBasePath("/api/v1/cache"))))
	return app
}
