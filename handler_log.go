package rediscache

import (
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// logInterval is the shortest time between two lines with one code. In an outage
// every request fails for the same reason: 51,260 a second in a measurement.
const logInterval = time.Second

// failureLog logs why requests fail. It has no goroutine: the next line with a code
// counts the failures that were not logged before it.
type failureLog struct {
	logger *slog.Logger // immutable

	wrongMount sync.Once

	mu    sync.Mutex
	codes map[string]lines // bounded: the codes of the problems
}

// lines counts the lines with one code.
type lines struct {
	last       time.Time // when the last line was logged
	suppressed int       // failures since last that were not logged
}

func newFailureLog(logger *slog.Logger) *failureLog {
	return &failureLog{logger: logger, codes: make(map[string]lines)}
}

func (l *failureLog) log(r *http.Request, level slog.Level, code string, cause error) {
	if !l.logger.Enabled(r.Context(), level) {
		return
	}
	suppressed, due := l.due(code)
	if !due {
		return
	}
	attrs := []slog.Attr{slog.String("method", r.Method), slog.String("code", code), slog.Any("cause", cause)}
	if suppressed > 0 {
		attrs = append(attrs, slog.Int("suppressed", suppressed))
	}
	l.logger.LogAttrs(r.Context(), level, "rediscache: request failed", attrs...)
}

// logWrongMount logs that a request reached the handler with a path that is not the
// base path and one segment. It logs one line in the life of the handler, because
// strangers can send such requests too. The line names the pattern of the router, but
// not the path, which may hold a key.
func (l *failureLog) logWrongMount(r *http.Request, basePath string) {
	l.wrongMount.Do(func() {
		attrs := []slog.Attr{slog.String("method", r.Method), slog.String("want", basePath+"/{key}")}
		if r.Pattern != "" {
			attrs = append(attrs, slog.String("pattern", r.Pattern))
		}
		l.logger.LogAttrs(r.Context(), slog.LevelWarn,
			"rediscache: a request does not match the handler's base path; check the mount and WithBasePath", attrs...)
	})
}

// due reports whether a line with code may be logged now, and how many failures were
// not logged since the last line.
func (l *failureLog) due(code string) (suppressed int, due bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	of, known := l.codes[code]
	if due = !known || now.Sub(of.last) >= logInterval; due {
		suppressed, of = of.suppressed, lines{last: now}
	} else {
		of.suppressed++
	}
	l.codes[code] = of
	return suppressed, due
}
