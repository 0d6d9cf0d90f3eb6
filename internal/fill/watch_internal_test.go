package fill

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/flight"
)

type looks = func(context.Context, []*item) ([]seen, error)

// watching runs f in a synctest bubble, with a watch whose look is look.
func watching(t *testing.T, look looks, f func(t *testing.T, w *watch, owner *flight.Owner)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		owner := flight.NewOwner()
		defer owner.Close()
		f(t, newWatch(look, owner), owner)
	})
}

// A caller that fails to take a lease that looks free reads it no more often than a lease that another
// load holds.
func TestALeaseThatLooksFreeIsNotReadMoreOften(t *testing.T) {
	n := 0
	for name, look := range map[string]looks{
		"free":     func(context.Context, []*item) ([]seen, error) { n++; return make([]seen, 1), nil },
		"an error": func(context.Context, []*item) ([]seen, error) { n++; return nil, errors.New("refused") },
		"new value": func(context.Context, []*item) ([]seen, error) {
			n++
			return []seen{{"a", fmt.Append(nil, n)}}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			n = 0
			watching(t, look, func(t *testing.T, w *watch, _ *flight.Owner) {
				for since := time.Now(); time.Since(since) < 10*time.Second; {
					require.Len(t, w.wait(t.Context(), since, []*item{{name: "l", key: "k"}}), 1)
				}
			})
			require.Less(t, n, 10_000/50+100, "at most one every 50 ms after the first tenths of a second")
		})
	}
}

// Code of a pool can call runtime.Goexit in look.
func TestALookThatCallsGoexitEndsNoOtherWait(t *testing.T) {
	n := 0
	watching(t, func(_ context.Context, items []*item) ([]seen, error) {
		switch n++; n {
		case 1:
			return []seen{{token: "a"}}, nil
		case 2:
			runtime.Goexit()
		}
		return make([]seen, len(items)), nil
	}, func(t *testing.T, w *watch, _ *flight.Owner) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		require.Len(t, w.wait(ctx, time.Now(), []*item{{name: "l", key: "k"}}), 1)
		require.NoError(t, ctx.Err())
	})
}

func TestAWaitEndsWithItsContextAndWithTheOwner(t *testing.T) {
	held := func(_ context.Context, items []*item) ([]seen, error) {
		seen := make([]seen, len(items))
		for i := range seen {
			seen[i].token = "a"
		}
		return seen, nil
	}
	watching(t, held, func(t *testing.T, w *watch, owner *flight.Owner) {
		since := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.Empty(t, w.wait(ctx, since, []*item{{name: "l", key: "k"}}))
		require.Equal(t, time.Minute, time.Since(since))

		time.AfterFunc(time.Minute, owner.Close)
		require.Empty(t, w.wait(t.Context(), since, []*item{{name: "l", key: "k"}}))
		require.Equal(t, 2*time.Minute, time.Since(since))
		require.Empty(t, w.wait(t.Context(), since, []*item{{name: "l", key: "k"}}))
		require.Equal(t, 2*time.Minute, time.Since(since))
	})
}
