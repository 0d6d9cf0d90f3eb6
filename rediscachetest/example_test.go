package rediscachetest_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/rediscachetest"
)

// greeter is the code that is tested.
type greeter struct{ cache *rediscache.Cache }

func (g greeter) greet(ctx context.Context) string {
	value, err := g.cache.Get(ctx, "greeting")
	if errors.Is(err, rediscache.ErrNotFound) {
		return "hello"
	}
	if err != nil {
		return "hello, without a cache"
	}
	return string(value)
}

// The package documentation shows this test.
func TestGreet(t *testing.T) {
	c := rediscachetest.New(t)
	g := greeter{c.Cache} // the code that is tested
	_ = c.Set(t.Context(), "greeting", []byte("hi"), time.Minute)
	if got := g.greet(t.Context()); got != "hi" {
		t.Error(got)
	}
	c.Advance(time.Minute) // the value expires
	if got := g.greet(t.Context()); got != "hello" {
		t.Error(got)
	}
	c.Down()
	if got := g.greet(t.Context()); got != "hello, without a cache" {
		t.Error(got)
	}
}

func TestTheDocumentationShowsThisTest(t *testing.T) {
	doc, err := os.ReadFile("rediscachetest.go")
	require.NoError(t, err)
	test, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	_, body, _ := strings.Cut(string(test), "\nfunc TestGreet(t *testing.T) {\n")
	body, _, _ = strings.Cut(body, "}\n\nfunc ")
	require.Contains(t, string(doc), strings.ReplaceAll("\n"+body, "\n\t", "\n//\t"))
}

func ExampleStore() {
	var store rediscachetest.Store
	store.Fail(rediscache.ErrUnavailable)
	h := rediscache.NewHandler(&store)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/cache/a", nil))
	fmt.Println(w.Code, w.Body)
	// Output: 503 {"error":"cache_unavailable","detail":"The cache is not available now."}
}
