package routers_test

import (
	"testing"

	"github.com/rediscache/rediscache/examples/routers"
)

func TestGin(t *testing.T) { testRouter(t, on(routers.Gin), groups, nil) }
