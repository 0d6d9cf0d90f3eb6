package browsertest_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/apidocs"
)

// server is a cache with its pages, below the prefix /api.
type server struct {
	*httptest.Server
	redis *miniredis.Miniredis
	cache *rediscache.Cache
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{redis: miniredis.RunT(t)}
	pool, err := rediscache.NewPool("redis://"+s.redis.Addr(), rediscache.WithMinIdle(4), rediscache.WithMaxActive(8))
	require.NoError(t, err)
	t.Cleanup(func() { _ = pool.Close() })
	status := apidocs.NewStatus(pool)
	s.cache, err = rediscache.New(pool, rediscache.WithObserver(status))
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.cache.Close() })
	docs := apidocs.New("/kv")
	mux := http.NewServeMux()
	mux.Handle("/kv/", rediscache.NewHandler(s.cache, rediscache.WithBasePath("/kv")))
	mux.Handle("/docs/", docs)
	mux.Handle("/openapi.json", docs)
	mux.Handle("/status/", status)
	s.Server = httptest.NewServer(http.StripPrefix("/api", mux))
	t.Cleanup(s.Close)
	return s
}

// tab is a page of a browser. It notes the errors of the console and the hosts of requests.
type tab struct {
	context.Context
	mu     sync.Mutex
	errors []string
	hosts  map[string]bool
}

func open(t *testing.T, page string) *tab {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("REDISCACHE_REQUIRE_SERVER") != "" {
			t.Fatal("chromium is not on the PATH")
		}
		t.Skip("chromium is not on the PATH")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(program), chromedp.NoSandbox,
		chromedp.WindowSize(1100, 900), chromedp.WSURLReadTimeout(time.Minute))
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	b := &tab{Context: ctx, hosts: map[string]bool{}}
	chromedp.ListenTarget(ctx, func(event any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			b.errors = append(b.errors, e.ExceptionDetails.Error())
		case *runtime.EventConsoleAPICalled:
			b.errors = append(b.errors, string(e.Type))
		case *log.EventEntryAdded:
			b.errors = append(b.errors, e.Entry.Text)
		case *network.EventRequestWillBeSent:
			if u, err := url.Parse(e.Request.URL); err == nil {
				b.hosts[u.Host] = true
			}
		}
	})
	b.run(t, network.Enable(), log.Enable(), chromedp.Navigate(page))
	return b
}

func (b *tab) run(t *testing.T, actions ...chromedp.Action) {
	t.Helper()
	require.NoError(t, chromedp.Run(b, actions...))
}

// until waits until a JavaScript expression is true.
func (b *tab) until(t *testing.T, expression string) {
	t.Helper()
	require.NoError(t, chromedp.Run(b, chromedp.Poll(expression, nil, chromedp.WithPollingTimeout(20*time.Second))), expression)
}

// clean reports the errors of the console so far, and fails if another host was asked.
func (b *tab) clean(t *testing.T, s *server) []string {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Equal(t, map[string]bool{s.Listener.Addr().String(): true}, b.hosts)
	return b.errors
}

// shot keeps a picture of the page if SCREENSHOTS names a folder.
func (b *tab) shot(t *testing.T, name string) {
	t.Helper()
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return
	}
	var picture []byte
	b.run(t, chromedp.FullScreenshot(&picture, 100))
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), picture, 0o600))
}

// accessible runs axe-core, if AXE names its file (axe.min.js of the npm package axe-core).
func (b *tab) accessible(t *testing.T) {
	t.Helper()
	file := os.Getenv("AXE")
	if file == "" {
		return
	}
	axe, err := os.ReadFile(file)
	require.NoError(t, err)
	var faults []struct{ ID, Impact, Help string }
	b.run(t, chromedp.Evaluate(string(axe)+"; 0", nil),
		chromedp.Evaluate(`axe.run().then((r) => r.violations.map(({id, impact, help}) => ({id, impact, help})))`, &faults,
			func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
	require.Empty(t, faults)
}

func TestEachRouteCanBeTriedByClicking(t *testing.T) {
	s := newServer(t)
	b := open(t, s.URL+"/api/docs/")
	send := func(operation, status string) {
		t.Helper()
		b.run(t, chromedp.Click("#"+operation+" button", chromedp.ByQuery))
		b.until(t, `document.querySelector("#`+operation+` .output .status")?.textContent.startsWith("`+status+`")`)
	}
	received := func(operation string) (text string) {
		t.Helper()
		b.run(t, chromedp.Text("#"+operation+" .received", &text, chromedp.ByQuery))
		return text
	}
	b.run(t, chromedp.WaitVisible("#setValue button", chromedp.ByQuery))
	b.shot(t, "docs.png")
	send("setValue", "200")
	require.JSONEq(t, `{"message":"Data cached successfully","key":"a","value":"hello"}`, received("setValue"))
	send("getValue", "200")
	require.JSONEq(t, `{"key":"a","value":"hello"}`, received("getValue"))
	b.run(t, chromedp.Click("#headValue summary", chromedp.ByQuery))
	send("headValue", "200")
	send("deleteValue", "200")
	require.Empty(t, b.clean(t, s))

	const key = `x/y %2F?ü`
	for name, value := range map[string]string{"key": key, "value": "", "Content-Type": "text/plain", "body": "a <b> &"} {
		b.run(t, chromedp.Evaluate(fmt.Sprintf(`document.querySelector('#setValue [name=%q]').value = %q`, name, value), nil))
	}
	b.run(t, chromedp.Evaluate(`document.querySelector("#setValue .output").replaceChildren()`, nil))
	send("setValue", "200")
	value, err := s.cache.Get(t.Context(), key)
	require.NoError(t, err)
	require.Equal(t, "a <b> &", string(value), "the page sends each byte")

	b.run(t, chromedp.Evaluate(`document.querySelector("#getValue .output").replaceChildren()`, nil))
	send("getValue", "404")
	b.shot(t, "docs-tried.png")
	b.accessible(t)
}

func TestTheStatusPageMovesUnderLoadAndFollowsTheServer(t *testing.T) {
	s := newServer(t)
	b := open(t, s.URL+"/api/status/")
	b.until(t, `document.getElementById("redis").textContent === "Redis is up"`)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var load sync.WaitGroup
	defer load.Wait()
	defer cancel()
	require.NoError(t, s.cache.Set(ctx, "a", []byte("hello"), time.Hour))
	for i := range 4 {
		load.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				_, _ = s.cache.Get(ctx, []string{"a", "a", "a", "none"}[n%4])
				if n%200 == 0 {
					select { // a load that is not even, so that the plot shows something
					case <-ctx.Done():
					case <-time.After(time.Duration(1+(n/4000+i)%8) * time.Millisecond):
					}
				}
			}
		})
	}
	// The line of hits leaves the bottom of its plot.
	b.until(t, `(() => { const ys = [...document.querySelectorAll("#plots .card:nth-child(2) .k2.line")]
		.flatMap((p) => p.getAttribute("d").match(/ [\d.]+/g).map(Number)); return Math.max(...ys) - Math.min(...ys) > 50 && ys.length > 3 })()`)
	if seconds, _ := strconv.Atoi(os.Getenv("SCREENSHOT_SECONDS")); seconds > 0 {
		b.run(t, chromedp.Sleep(time.Duration(seconds)*time.Second))
	}
	b.shot(t, "status.png")
	b.accessible(t)
	require.Empty(t, b.clean(t, s))

	s.redis.Close()
	b.until(t, `document.getElementById("redis").textContent === "Redis is down"`)
	b.shot(t, "status-down.png")
	require.NoError(t, s.redis.Restart())
	b.until(t, `document.getElementById("redis").textContent === "Redis is up"`)
	require.Empty(t, b.clean(t, s), "a Redis that is down is no error of the page")

	addr := s.Listener.Addr().String()
	handler := s.Config.Handler
	s.CloseClientConnections()
	s.Close()
	b.until(t, `document.getElementById("redis").textContent === "This server does not answer"`)
	listener, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	again := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go func() { _ = again.Serve(listener) }()
	defer again.Close() //nolint:errcheck // the test is over
	b.until(t, `document.getElementById("redis").textContent === "Redis is up"`)
}
