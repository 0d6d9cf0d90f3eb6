package routers_test

import (
	"testing"

	"github.com/rediscache/rediscache/examples/routers"
)

func TestEcho(t *testing.T) { testRouter(t, on(routers.Echo), groups, nil) }
