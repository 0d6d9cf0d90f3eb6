package rediscache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// loggedLines returns the lines that a JSON logger wrote, and clears them.
func loggedLines(t *testing.T, b *bytes.Buffer) (lines []map[string]any) {
	t.Helper()
	for line := range strings.Lines(b.String()) {
		lines = append(lines, decode(t, []byte(line)))
	}
	b.Reset()
	return lines
}

func TestAnOutageLogsOneLineACodeASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		s := newFakeStore()
		h := rediscache.NewHandler(s, rediscache.WithLogger(redistest.DebugLogger(&logged)))
		fail := func(n int, err error) {
			s.mu.Lock()
			s.err = err
			s.mu.Unlock()
			for range n {
				redistest.Serve(h, httptest.NewRequest("GET", "/cache/a", nil))
			}
		}
		requireLine := func(code, level string, suppressed any) {
			t.Helper()
			lines := loggedLines(t, &logged)
			require.Len(t, lines, 1)
			require.Equal(t, code, lines[0]["code"])
			require.Equal(t, level, lines[0]["level"])
			require.Equal(t, suppressed, lines[0]["suppressed"])
		}

		fail(1000, rediscache.ErrUnavailable)
		requireLine("cache_unavailable", "WARN", nil)
		time.Sleep(time.Second - time.Nanosecond)
		fail(10, rediscache.ErrPoolExhausted) // the same code
		require.Empty(t, loggedLines(t, &logged))

		fail(5, context.DeadlineExceeded)
		requireLine("cache_timeout", "WARN", nil)
		fail(5, redis.Error("NOPERM no"))
		requireLine("internal", "ERROR", nil)

		time.Sleep(time.Nanosecond)
		fail(3, rediscache.ErrUnavailable)
		requireLine("cache_unavailable", "WARN", 1009.0)
		time.Sleep(time.Hour) // the outage is over, and another one begins
		fail(0, nil)
		fail(1, rediscache.ErrUnavailable)
		requireLine("cache_unavailable", "WARN", 2.0)
		time.Sleep(time.Second)
		fail(1, rediscache.ErrUnavailable)
		requireLine("cache_unavailable", "WARN", nil)
		fail(1, context.DeadlineExceeded)
		requireLine("cache_timeout", "WARN", 4.0)

		other := rediscache.NewHandler(s, rediscache.WithLogger(redistest.DebugLogger(&logged)))
		redistest.Serve(other, httptest.NewRequest("GET", "/cache/a", nil))
		requireLine("cache_timeout", "WARN", nil)
	})
}

func TestRefusalsAndClientsThatLeftAreLoggedOnceASecondToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		level := new(slog.LevelVar)
		h := rediscache.NewHandler(&fakeStore{err: context.Canceled},
			rediscache.WithLogger(slog.New(slog.NewJSONHandler(&logged, &slog.HandlerOptions{Level: level}))),
			rediscache.WithKeyFunc(func(_ *http.Request, key string) (string, error) {
				if key == "refused" {
					return "", errors.New("no")
				}
				return key, nil
			}))
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		both := func() {
			for range 10 {
				redistest.Serve(h, httptest.NewRequest("GET", "/cache/refused", nil))
				redistest.Serve(h, httptest.NewRequest("GET", "/cache/a", nil).WithContext(gone))
			}
		}
		both()
		require.Empty(t, loggedLines(t, &logged), "at level Info")

		level.Set(slog.LevelDebug)
		both()
		lines := loggedLines(t, &logged)
		require.Len(t, lines, 2)
		for i, code := range []string{"forbidden", "client_gone"} {
			require.Equal(t, code, lines[i]["code"])
			require.Equal(t, "DEBUG", lines[i]["level"])
			require.NotContains(t, lines[i], "suppressed", "a level that is off suppresses nothing")
		}
	})
}

func TestAWrongMountIsLoggedOnce(t *testing.T) {
	const sent = "/api/secret"
	for name, c := range map[string]struct {
		base    string
		mount   func(mux *http.ServeMux, h http.Handler)
		pattern any
	}{
		"no StripPrefix": {
			"/cache", func(mux *http.ServeMux, h http.Handler) { mux.Handle("/api/", h) }, "/api/",
		},
		"a StripPrefix of the base": {
			"/api", func(mux *http.ServeMux, h http.Handler) { mux.Handle("/api/", http.StripPrefix("/api", h)) }, "/api/",
		},
		"no StripPrefix before a handler at the root": {
			"", func(mux *http.ServeMux, h http.Handler) { mux.Handle("/api/", h) }, "/api/",
		},
		"a base that is the start of another": {
			"/ap", func(mux *http.ServeMux, h http.Handler) { mux.Handle("/", h) }, "/",
		},
		"no mux": {
			"/cache", func(mux *http.ServeMux, h http.Handler) {
				mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
					r.Pattern = ""
					h.ServeHTTP(w, r)
				})
			}, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var logged bytes.Buffer
			mux := http.NewServeMux()
			c.mount(mux, rediscache.NewHandler(newFakeStore(), rediscache.WithBasePath(c.base),
				rediscache.WithLogger(redistest.DebugLogger(&logged))))
			for range 3 {
				exchange{"", "GET", sent, nil, "", 404, "!no_such_route"}.run(t, mux)
			}
			lines := loggedLines(t, &logged)
			require.Len(t, lines, 1)
			require.Equal(t, "WARN", lines[0]["level"])
			require.Equal(t, c.base+"/{key}", lines[0]["want"])
			require.Equal(t, c.pattern, lines[0]["pattern"])
			require.NotContains(t, redistest.EveryText(lines[0]), "secret", "a path may hold a key")
		})
	}
}

func TestAPathThatIsNoKeyIsNoWrongMount(t *testing.T) {
	var logged bytes.Buffer
	h := rediscache.NewHandler(newFakeStore(), rediscache.WithLogger(redistest.DebugLogger(&logged)))
	root := rediscache.NewHandler(newFakeStore(), rediscache.WithBasePath(""),
		rediscache.WithLogger(redistest.DebugLogger(&logged)))
	for _, target := range []string{"/cache", "/cache/", "/cache//a", "/cache/a/b", "/cache/a/"} {
		exchange{"", "GET", target, nil, "", 404, "!no_such_route"}.run(t, h)
	}
	exchange{"", "GET", "/", nil, "", 404, "!no_such_route"}.run(t, root)
	require.Empty(t, logged.String())
	redistest.Serve(h, httptest.NewRequest("GET", "/", nil))
	require.Len(t, loggedLines(t, &logged), 1, "what was no wrong mount hides none")
}

// countingHandler counts lines and adds up their "suppressed". It logs nothing itself.
type countingHandler struct {
	slog.Handler
	lines, suppressed atomic.Int64
}

func (c *countingHandler) Handle(_ context.Context, r slog.Record) error {
	c.lines.Add(1)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "suppressed" {
			c.suppressed.Add(a.Value.Int64())
		}
		return true
	})
	return nil
}

func TestConcurrentFailuresAreAllCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counted := &countingHandler{Handler: slog.NewTextHandler(io.Discard, nil)}
		h := rediscache.NewHandler(&fakeStore{err: rediscache.ErrUnavailable}, rediscache.WithLogger(slog.New(counted)))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 100 {
					redistest.Serve(h, httptest.NewRequest("GET", "/cache/a", nil))
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, counted.lines.Load())
		redistest.Serve(h, httptest.NewRequest("GET", "/cache/a", nil))
		require.EqualValues(t, 2, counted.lines.Load())
		require.EqualValues(t, 799, counted.suppressed.Load())
	})
}
