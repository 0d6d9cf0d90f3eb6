package rediscache_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

// TestProxyErrorsAreUnavailable sends what proxies answer when they lose the server behind them.
func TestProxyErrorsAreUnavailable(t *testing.T) {
	for text, unproven := range map[string]bool{
		"no upstream host":                        false,
		"upstream failure":                        true,
		"ERR max concurrent connections exceeded": false,
		"ERR Connection refused":                  false,
		"ERR Connection timed out":                true,
	} {
		t.Run(text, func(t *testing.T) {
			s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
				if c.Name() == "GET" || c.Name() == "SET" {
					return fmt.Appendf(nil, "-%s\r\n", text), false
				}
				return redistest.Default(c), false
			})
			for name, way := range pools {
				c := newCache(t, newPool(t, s.URL(), rediscache.WithMinIdle(1)), way.Opts...)
				_, err := c.Get(t.Context(), "k")
				require.ErrorIs(t, err, rediscache.ErrUnavailable, name)
				require.NotErrorIs(t, err, rediscache.ErrOutcomeUnknown, name)
				err = c.Set(t.Context(), "k", nil, 0)
				require.ErrorIs(t, err, rediscache.ErrUnavailable, name)
				if unproven {
					require.ErrorIs(t, err, rediscache.ErrOutcomeUnknown, name)
				} else {
					require.NotErrorIs(t, err, rediscache.ErrOutcomeUnknown, name)
				}
				w := httptest.NewRecorder()
				rediscache.NewHandler(c).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/cache/k", http.NoBody))
				require.Equal(t, http.StatusServiceUnavailable, w.Code, name)
				require.Equal(t, "1", w.Header().Get("Retry-After"), name)
			}
		})
	}
}

// TestAnErrorWithinAScriptIsKnown sends the text that Redis 6.2 puts before the error of a command
// that a fill ran.
func TestAnErrorWithinAScriptIsKnown(t *testing.T) {
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "EVAL" || c.Name() == "EVALSHA" {
			return []byte("-ERR Error running script (call to f_6b1b): @user_script:10: " +
				"-OOM command not allowed when used memory > 'maxmemory'.\r\n"), false
		}
		return redistest.Default(c), false
	})
	events := make(chan rediscache.Event, 10)
	c := newCache(t, newPool(t, s.URL(), rediscache.WithMinIdle(1)),
		rediscache.WithObserver(rediscache.ObserverFunc(func(_ context.Context, e rediscache.Event) { events <- e })))
	v, err := rediscache.Of(c, rediscache.String(), rediscache.Policy{TTL: rediscache.NoExpiry, Lease: time.Second})
	require.NoError(t, err)
	value, err := v.GetOrLoad(t.Context(), "k", func(context.Context) (string, error) { return "v", nil })
	require.NoError(t, err)
	require.Equal(t, "v", value)
	for e := range events {
		if e.Op == "fill" {
			require.ErrorIs(t, e.Err, rediscache.ErrUnavailable)
			return
		}
	}
}

// TestADialErrorHasItsCauseOnEveryWay reads the error of a dial from the pool, from Ready, from the
// redigo pool and from a cache.
func TestADialErrorHasItsCauseOnEveryWay(t *testing.T) {
	cause := errors.New("no route")
	p, err := rediscache.NewPool("", rediscache.WithMinIdle(1), rediscache.WithDialFunc(
		func(context.Context) (redis.Conn, error) { return nil, cause }))
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	c := newCache(t, p)
	tested := p.Redigo()
	tested.TestOnBorrow = func(redis.Conn, time.Time) error { return nil }
	ctx, cancel := context.WithCancel(t.Context())
	for name, do := range map[string]func() error{
		"GetContext": func() error { return systest.Second(p.GetContext(ctx)) },
		"Get":        func() error { return p.Get().Err() },
		"Redigo":     func() error { return systest.Second(p.Redigo().GetContext(ctx)) },
		"tested":     func() error { return systest.Second(tested.GetContext(ctx)) },
		"Ready": func() error {
			redistest.Eventually(t, func() bool { return p.Stats().DialFailures > 0 }, "a dial has failed")
			cancel()
			err := p.Ready(ctx)
			require.ErrorIs(t, err, context.Canceled)
			return err
		},
		"a cache": func() error { return systest.Second(c.Get(t.Context(), "k")) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel = context.WithCancel(t.Context())
			defer cancel()
			err := do()
			var dial *rediscache.DialError
			require.ErrorAs(t, err, &dial)
			require.Equal(t, cause, dial.Err)
			require.Equal(t, "rediscache: dial: no route", dial.Error())
			require.ErrorIs(t, err, rediscache.ErrUnavailable)
			require.ErrorIs(t, err, cause)
		})
	}
}

func TestErrorKind(t *testing.T) {
	for want, err := range map[string]error{
		"closed":          rediscache.ErrClosed,
		"wrong type":      fmt.Errorf("get: %w", rediscache.ErrWrongType),
		"pool exhausted":  fmt.Errorf("%w: %w", rediscache.ErrPoolExhausted, context.DeadlineExceeded),
		"outcome unknown": fmt.Errorf("%w: %w", rediscache.ErrOutcomeUnknown, rediscache.ErrUnavailable),
		"unavailable":     &rediscache.DialError{Err: errors.New("refused")},
		"timeout":         context.DeadlineExceeded,
		"canceled":        context.Canceled,
		"other":           errors.New("the database is down"),
	} {
		require.Equal(t, want, rediscache.ErrorKind(err), "%v", err)
	}
	require.Empty(t, rediscache.ErrorKind(nil))
	require.Empty(t, rediscache.ErrorKind(fmt.Errorf("get: %w", rediscache.ErrNotFound)))
}
