package routers_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/examples/routers"
)

// cleaned holds the paths that http.ServeMux redirects to a cleaned path.
var cleaned = map[string]outcome{
	".":      redirected(""),
	"..":     redirected(""),
	"/":      redirected("BASE/"),
	"/a":     redirected("BASE/a"),
	"a//b":   redirected("BASE/a/b"),
	"a/./b":  redirected("BASE/a/b"),
	"a/../b": redirected("BASE/b"),
}

func TestNetHTTP(t *testing.T) {
	testRouter(t, on(routers.NetHTTP), groups, cleaned)
}

func TestAClientThatFollowsTheRedirectWritesTheCleanedKey(t *testing.T) {
	for name, c := range map[string]struct {
		router func(rediscache.Store) http.Handler
		status int
		keys   []string
	}{
		"NetHTTP":           {routers.NetHTTP, 200, []string{"a"}},
		"NetHTTPNoRedirect": {noRedirect, 404, nil},
	} {
		t.Run(name, func(t *testing.T) {
			server, cache := open(t)
			response, err := http.Post("http://"+on(c.router)(t, cache)+"/cache//a?value=v", "", nil)
			require.NoError(t, err)
			require.NoError(t, response.Body.Close())
			require.Equal(t, c.status, response.StatusCode)
			require.ElementsMatch(t, c.keys, server.Keys())
		})
	}
}

func TestNetHTTPNoRedirect(t *testing.T) {
	testRouter(t, on(noRedirect), groups, nil)
}

func noRedirect(store rediscache.Store) http.Handler {
	return routers.NetHTTPNoRedirect(store, http.NewServeMux())
}
