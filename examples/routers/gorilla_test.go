package routers_test

import (
	"testing"

	"github.com/rediscache/rediscache/examples/routers"
)

func TestGorilla(t *testing.T) { testRouter(t, on(routers.Gorilla), groups, nil) }
