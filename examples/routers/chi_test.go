package routers_test

import (
	"testing"

	"github.com/rediscache/rediscache/examples/routers"
)

func TestChi(t *testing.T) { testRouter(t, on(routers.Chi), groups, nil) }
