package routers_test

import (
	"net"
	"testing"

	"github.com/gofiber/fiber/v3"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/examples/routers"
)

func TestFiber(t *testing.T) { testRouter(t, onFiber, groups, map[string]outcome{"a%2": refused(500)}) }

func onFiber(t *testing.T, store rediscache.Store) string {
	app := routers.Fiber(store)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- app.Listener(listener, fiber.ListenConfig{DisableStartupMessage: true}) }() // ends with Shutdown
	t.Cleanup(func() {
		require.NoError(t, app.Shutdown())
		require.NoError(t, <-served)
	})
	return listener.Addr().String()
}
