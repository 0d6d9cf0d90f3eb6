package rediscache_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

type tenantKey struct{}

// If the caller passes the context of its request, a load in the background still has the values of
// that request after it has ended and the framework serves the next request.
func TestALoadInTheBackgroundHasTheValuesOfItsRequest(t *testing.T) {
	eachStale(t, func(t *testing.T, s *redistest.Server, c *rediscache.Cache, p rediscache.Policy) {
		v := newView(t, c, rediscache.String(), p)
		var frame struct{ request *http.Request } // what a framework reuses for each request, as gin does its Context
		serve := func(tenant string, handle func()) {
			ctx, cancel := context.WithCancel(context.WithValue(t.Context(), tenantKey{}, tenant))
			defer cancel() // as net/http does
			frame.request = httptest.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
			handle()
		}
		goOn := make(chan struct{})
		serve("a", func() {
			got, err := v.GetOrLoad(frame.request.Context(), "k", func(ctx context.Context) (string, error) {
				<-goOn
				if _, ok := ctx.Deadline(); ok || ctx.Err() != nil {
					return "", errors.New("the load has the end of its request")
				}
				return fmt.Sprint("of ", ctx.Value(tenantKey{})), nil
			})
			require.NoError(t, err)
			require.Equal(t, "1", got, "stale")
		})
		serve("b", func() { close(goOn) })
		redistest.Eventually(t, func() bool { return string(s.Do("GET", "k").([]byte)) == "of a" }, "it is stored")
	})
}

// Packages like errgroup cancel a context with a cause that matches another error than the context's.
func TestACancelledCallerGetsTheErrorOfItsContext(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		for _, p := range []rediscache.Policy{{}, {TTL: time.Hour, Stale: time.Hour, Lease: time.Hour, Hard: time.Hour}} {
			s.Flush()
			v, _ := systest.Process(t, s, p)
			for _, call := range map[string]func(context.Context, func(context.Context) (int, error)) error{
				"one": func(ctx context.Context, load func(context.Context) (int, error)) error {
					_, err := v.GetOrLoad(ctx, "k", load)
					return err
				},
				"many": func(ctx context.Context, load func(context.Context) (int, error)) error {
					_, err := v.GetOrLoadMany(ctx, []string{"k", "l"}, func(ctx context.Context, _ []string) (map[string]int, error) {
						_, err := load(ctx)
						return nil, err
					})
					return err
				},
			} {
				ctx, cancel := context.WithCancelCause(t.Context())
				ended := make(chan error, 1)
				err := call(ctx, func(loading context.Context) (int, error) {
					cancel(context.DeadlineExceeded)
					<-loading.Done()
					ended <- context.Cause(loading)
					return 0, loading.Err()
				})
				require.ErrorIs(t, err, context.Canceled)
				require.NotErrorIs(t, err, context.DeadlineExceeded)
				require.NotErrorIs(t, <-ended, context.DeadlineExceeded, "the cause of a caller is none of the load's")
			}
		}
	})
}

// The context ends after the read from Redis failed, and before the load begins.
func TestTheErrorOfALoadMatchesAContextThatEndsMeanwhile(t *testing.T) {
	s := redistest.Start(t)
	p := newPool(t, s.URL())
	s.Kill()
	for _, many := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := newCache(t, p, rediscache.WithObserver(rediscache.ObserverFunc(func(context.Context, rediscache.Event) { cancel() })))
		v := newView(t, c, rediscache.JSON[int](), rediscache.Policy{})
		var err error
		if many {
			_, err = v.GetOrLoadMany(ctx, []string{"k"}, func(ctx context.Context, _ []string) (map[string]int, error) {
				<-ctx.Done()
				return nil, systest.ErrDatabase
			})
		} else {
			_, err = v.GetOrLoad(ctx, "k", func(ctx context.Context) (int, error) {
				<-ctx.Done()
				return 0, systest.ErrDatabase
			})
		}
		require.ErrorIs(t, err, context.Canceled)
	}
}
