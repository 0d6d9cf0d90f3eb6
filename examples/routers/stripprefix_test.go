package routers_test

import (
	"testing"

	"github.com/rediscache/rediscache/examples/routers"
)

func TestStripPrefix(t *testing.T) {
	testRouter(t, on(routers.StripPrefix), []string{"/app/cache", "/api/v1/cache"}, cleaned)
}
