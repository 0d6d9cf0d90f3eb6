package rediscache

import (
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// logInterval is the least time between two lines for one code. An outage fails
// every request, 51,260 of them a second when it was measured, for one reason.
const logInterval = time.Second

// failureLog logs why requests fail. It has no goroutine: the next line for a
// code says how many were left out before it.
type failureLog struct {
	logger *slog.Logger // immutable

	mu    sync.Mutex
	codes map[string]lines // as many as there are codes
}

// lines are those of one code.
type lines struct {
	last       time.Time // when the last one was logged
	suppressed int       // since then
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

// due reports whether a line for code may be logged now, and how many were not
// since the last one.
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
