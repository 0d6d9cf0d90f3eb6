package flight_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/flight"
)

type group = flight.Group[string]

// join asks for one key.
func join(
	ctx context.Context, g *group, key string, o flight.Options, work func(context.Context) string,
) flight.Ticket[string] {
	tickets, ok := g.Join(ctx, []string{key}, o, func(ctx context.Context, _ []string, _ func(string)) []string {
		return []string{work(ctx)}
	})
	if !ok {
		panic("closed")
	}
	return tickets[0]
}

// bubble runs f with a clock of its own, and with a group that must leave no
// goroutine: synctest fails if one is left.
func bubble(t *testing.T, f func(t *testing.T, g *group, owner *flight.Owner)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		owner := flight.NewOwner()
		f(t, flight.NewGroup[string](owner), owner)
		owner.Close()
	})
}

func TestAThousandCallersShareOneWork(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		var works, shared atomic.Int64
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				ticket := join(t.Context(), g, "k", flight.Options{}, func(context.Context) string {
					works.Add(1)
					time.Sleep(time.Second) // of the bubble
					return "v"
				})
				if ticket.Shared {
					shared.Add(1)
				}
				got, err := ticket.Wait(t.Context())
				if got != "v" || err != nil {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
		wg.Wait()
		require.EqualValues(t, 1, works.Load())
		require.EqualValues(t, 999, shared.Load())
		require.False(t, join(t.Context(), g, "k", flight.Options{}, func(context.Context) string { return "" }).Shared,
			"who comes after the result begins anew")
	})
}

func TestTheFirstCallersEndIsNotTheWorks(t *testing.T) {
	type key struct{}
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		first, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "kept"))
		work := func(ctx context.Context) string {
			time.Sleep(time.Second)
			if ctx.Err() != nil {
				return "cancelled"
			}
			return ctx.Value(key{}).(string)
		}
		one := join(first, g, "k", flight.Options{}, work)
		two := join(t.Context(), g, "k", flight.Options{}, work)
		cancel()
		_, err := one.Wait(first)
		require.ErrorIs(t, err, context.Canceled)
		got, err := two.Wait(t.Context())
		require.NoError(t, err)
		require.Equal(t, "kept", got)
	})
}

func TestTheLastWhoLeavesEndsTheWorkAndTheNextBeginsAnew(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		block := make(chan struct{})
		deaf := func(ctx context.Context) string {
			<-ctx.Done()
			ended <- ctx.Err()
			<-block // it has been told, and does not return
			return "old"
		}
		one := join(ctx, g, "k", flight.Options{}, deaf)
		two := join(ctx, g, "k", flight.Options{}, deaf)
		one.Leave()
		synctest.Wait()
		require.Empty(t, ended, "one still waits")
		cancel()
		_, err := two.Wait(ctx)
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, <-ended, context.Canceled)

		three := join(t.Context(), g, "k", flight.Options{}, func(context.Context) string { return "new" })
		require.False(t, three.Shared)
		got, err := three.Wait(t.Context())
		require.NoError(t, err)
		require.Equal(t, "new", got)
		close(block)
	})
}

func TestAnEndDoesNotTakeASuccessorOutOfTheMap(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		block, again := make(chan struct{}), make(chan struct{})
		old := join(t.Context(), g, "k", flight.Options{}, func(context.Context) string { <-block; return "old" })
		g.Forget("k")
		next := join(t.Context(), g, "k", flight.Options{}, func(context.Context) string { <-again; return "next" })
		require.False(t, next.Shared)
		close(block)
		got, err := old.Wait(t.Context())
		require.NoError(t, err)
		require.Equal(t, "old", got, "who joined before it was forgotten has it still")
		third := join(t.Context(), g, "k", flight.Options{}, nil)
		require.True(t, third.Shared)
		close(again)
		got, err = third.Wait(t.Context())
		require.NoError(t, err)
		require.Equal(t, "next", got)
		next.Leave()
	})
}

func TestALimitFreesCallersOfWorkThatDoesNotHeedIt(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		block := make(chan struct{})
		began := time.Now()
		ticket := join(t.Context(), g, "k", flight.Options{Limit: time.Minute}, func(context.Context) string { <-block; return "" })
		_, err := ticket.Wait(t.Context())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Minute, time.Since(began))
		next := join(t.Context(), g, "k", flight.Options{}, func(context.Context) string { return "v" })
		got, err := next.Wait(t.Context())
		require.NoError(t, err)
		require.Equal(t, "v", got)
		close(block)
	})
}

func TestAPanicComesUpInEveryCaller(t *testing.T) {
	cause := errors.New("boom")
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		var wg sync.WaitGroup
		var raised atomic.Int64
		for range 10 {
			wg.Go(func() {
				defer func() {
					p, ok := recover().(*flight.PanicError)
					if !ok || !errors.Is(p, cause) {
						t.Errorf("%v", p)
						return
					}
					if s := string(p.Stack); !strings.Contains(s, "explode") || !strings.Contains(p.Error(), "explode") || !strings.Contains(p.Error(), "boom") {
						t.Errorf("no stack of the work: %s", s)
					}
					raised.Add(1)
				}()
				_, _ = join(t.Context(), g, "k", flight.Options{}, func(context.Context) string {
					time.Sleep(time.Second)
					explode(cause)
					return ""
				}).Wait(t.Context())
			})
		}
		wg.Wait()
		require.EqualValues(t, 10, raised.Load())
		got, err := join(t.Context(), g, "k", flight.Options{}, func(context.Context) string { return "v" }).Wait(t.Context())
		require.NoError(t, err)
		require.Equal(t, "v", got)
	})
}

//go:noinline
func explode(err error) { panic(err) }

func TestAnExitEndsEveryCaller(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		var wg sync.WaitGroup
		var exited atomic.Int64
		for range 10 {
			wg.Go(func() {
				returned := false
				defer func() {
					if !returned && recover() == nil {
						exited.Add(1)
					}
				}()
				_, _ = join(t.Context(), g, "k", flight.Options{}, func(context.Context) string {
					time.Sleep(time.Second)
					runtime.Goexit()
					return ""
				}).Wait(t.Context())
				returned = true
			})
		}
		wg.Wait()
		require.EqualValues(t, 10, exited.Load())
		got, err := join(t.Context(), g, "k", flight.Options{}, func(context.Context) string { return "v" }).Wait(t.Context())
		require.NoError(t, err)
		require.Equal(t, "v", got)
	})
}

func TestKeptWorkGoesOnUntilItsOwnerCloses(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, owner *flight.Owner) {
		done := make(chan error, 2)
		work := func(ctx context.Context) string {
			select {
			case <-ctx.Done():
			case <-time.After(time.Hour):
			}
			done <- ctx.Err()
			return ""
		}
		join(t.Context(), g, "short", flight.Options{Keep: 24 * time.Hour}, work).Leave()
		require.NoError(t, <-done, "nobody waits, and it is kept")

		join(t.Context(), g, "long", flight.Options{}, work).Leave()
		require.ErrorIs(t, <-done, context.Canceled, "nobody waits")

		began := time.Now()
		join(t.Context(), g, "long", flight.Options{Keep: 24 * time.Hour}, work).Leave()
		owner.Close()
		require.ErrorIs(t, <-done, context.Canceled)
		require.Zero(t, time.Since(began), "Close lets it go")
		_, ok := g.Join(t.Context(), []string{"k"}, flight.Options{}, nil)
		require.False(t, ok)
	})
}

func TestWhatKeepsWorkEndsAndEndsNothingThatSomebodyWaitsFor(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		work := func(ctx context.Context) string {
			select {
			case <-ctx.Done():
				return context.Cause(ctx).Error()
			case <-time.After(time.Hour):
				return "v"
			}
		}
		ended := make(chan string, 1)
		began := time.Now()
		join(t.Context(), g, "k", flight.Options{Keep: time.Minute}, func(ctx context.Context) string {
			ended <- work(ctx)
			return ""
		}).Leave()
		require.Equal(t, context.DeadlineExceeded.Error(), <-ended)
		require.Equal(t, time.Minute, time.Since(began))
		synctest.Wait()

		join(t.Context(), g, "k", flight.Options{Keep: time.Minute}, work).Leave()
		time.Sleep(30 * time.Second)
		one := join(t.Context(), g, "k", flight.Options{}, nil)
		require.True(t, one.Shared)
		got, err := one.Wait(t.Context())
		require.NoError(t, err)
		require.Equal(t, "v", got)

		one = join(t.Context(), g, "k", flight.Options{}, func(ctx context.Context) string {
			ended <- work(ctx)
			return ""
		})
		time.Sleep(30 * time.Second)
		began = time.Now()
		join(t.Context(), g, "k", flight.Options{Keep: time.Minute}, nil).Leave()
		one.Leave()
		require.Equal(t, context.DeadlineExceeded.Error(), <-ended, "of another's work, too")
		require.Equal(t, time.Minute, time.Since(began))
	})
}

// As callers do who wait a while for a fresh value: there is always one.
func TestCallersWhoComeAndGoDoNotKeepWorkThatHangs(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		ended := make(chan error, 2)
		began := time.Now()
		var waits sync.WaitGroup
		for time.Since(began) < 90*time.Second {
			ticket := join(t.Context(), g, "k", flight.Options{Keep: time.Minute}, func(ctx context.Context) string {
				<-ctx.Done()
				ended <- context.Cause(ctx)
				return ""
			})
			waits.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				_, err := ticket.Wait(ctx)
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v", err)
				}
			})
			time.Sleep(time.Second)
		}
		require.Len(t, ended, 1, "there is a second one since a minute was over")
		require.ErrorIs(t, <-ended, context.DeadlineExceeded)
		waits.Wait()
	})
}

func TestWorkForgetsItsOwnKeyAndNoSuccessors(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		end := make(chan struct{})
		begin := func() (flight.Ticket[string], chan struct{}) {
			shut := make(chan struct{})
			tickets, ok := g.Join(t.Context(), []string{"k"}, flight.Options{}, func(_ context.Context, keys []string, forget func(string)) []string {
				<-shut
				forget(keys[0])
				<-end
				return keys
			})
			require.True(t, ok)
			return tickets[0], shut
		}
		_, shut := begin()
		close(shut)
		synctest.Wait()
		second, shut := begin()
		require.False(t, second.Shared, "nobody joins what has forgotten its key")
		g.Forget("k")
		_, never := begin()
		close(shut)
		synctest.Wait()
		fourth, _ := begin()
		require.True(t, fourth.Shared, "the third run is not forgotten by the second")
		close(never)
		close(end)
	})
}

func TestCloseWaitsForWorkThatSomebodyWaitsFor(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, owner *flight.Owner) {
		ticket := join(t.Context(), g, "k", flight.Options{}, func(ctx context.Context) string {
			time.Sleep(time.Second)
			if ctx.Err() != nil {
				return "cancelled"
			}
			return "v"
		})
		began := time.Now()
		owner.Close()
		require.Equal(t, time.Second, time.Since(began))
		got, err := ticket.Wait(t.Context())
		require.NoError(t, err)
		require.Equal(t, "v", got)
	})
}

func TestManyKeysShareOneGoroutineAndJoinWhatIsUnderWay(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		block := make(chan struct{})
		b := join(t.Context(), g, "b", flight.Options{}, func(context.Context) string { <-block; return "B" })
		tickets, ok := g.Join(t.Context(), []string{"a", "b", "c"}, flight.Options{}, func(_ context.Context, keys []string, _ func(string)) []string {
			if len(keys) != 2 || keys[0] != "a" || keys[1] != "c" {
				t.Errorf("%q", keys)
			}
			return []string{"A", "C"}
		})
		require.True(t, ok)
		require.Equal(t, []bool{false, true, false}, []bool{tickets[0].Shared, tickets[1].Shared, tickets[2].Shared})
		close(block)
		for i, want := range []string{"A", "B", "C"} {
			got, err := tickets[i].Wait(t.Context())
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		b.Leave()
	})
}

// Callers that come, leave and are cancelled at random: each gets the result of
// work that was not over when it came, or its own context's error.
func TestNoCallerGetsCancelledWork(t *testing.T) {
	owner := flight.NewOwner()
	g := flight.NewGroup[string](owner)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			for n := range 300 {
				ctx, cancel := context.WithCancel(t.Context())
				ticket := join(ctx, g, "k", flight.Options{}, func(ctx context.Context) string {
					for range 10 {
						runtime.Gosched()
					}
					if ctx.Err() != nil {
						return "cancelled"
					}
					return "v"
				})
				if (i+n)%2 == 0 {
					cancel()
				}
				got, err := ticket.Wait(ctx)
				if err == nil && got != "v" || err != nil && ctx.Err() == nil {
					t.Errorf("%q, %v", got, err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	owner.Close()
}
