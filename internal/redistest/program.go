package redistest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"
)

// Together calls f in n goroutines, and returns when all are through.
func Together(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// Wait waits for d or until ctx is done: what a caller does between two requests, and a load while it works.
func Wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Serve returns the answer of h to r.
func Serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// DebugLogger writes every line to w, as JSON.
func DebugLogger(w io.Writer) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// EveryText prints values and, of errors, all that they wrap, in every way that a program might.
func EveryText(values ...any) string {
	var b strings.Builder
	for _, v := range values {
		fmt.Fprintf(&b, "%v\n%+v\n%#v\n", v, v, v)
		switch e := v.(type) {
		case interface{ Unwrap() error }:
			if inner := e.Unwrap(); inner != nil {
				b.WriteString(EveryText(inner))
			}
		case interface{ Unwrap() []error }:
			for _, inner := range e.Unwrap() {
				b.WriteString(EveryText(inner))
			}
		}
	}
	return b.String()
}
