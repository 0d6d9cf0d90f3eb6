package flight_test

import (
	"context"
	"errors"
	"fmt"
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
	tickets, ok := g.Join(ctx, []string{key}, o, func(ctx context.Context, calls []*flight.Call[string]) {
		calls[0].Deliver(work(ctx))
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
		working := make(chan context.Context, 1)
		ticket := join(t.Context(), g, "k", flight.Options{Limit: time.Minute}, func(ctx context.Context) string {
			working <- ctx
			<-block
			return ""
		})
		_, err := ticket.Wait(t.Context())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.True(t, flight.Expired(<-working))
		require.Equal(t, time.Minute, time.Since(began))
		next := join(t.Context(), g, "k", flight.Options{}, func(context.Context) string { return "v" })
		got, err := next.Wait(t.Context())
		require.NoError(t, err)
		require.Equal(t, "v", got)
		close(block)
	})
}

func TestEveryCallerGetsAPanicOfTheWork(t *testing.T) {
	cause := errors.New("boom")
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		var wg sync.WaitGroup
		var raised atomic.Int64
		for range 10 {
			wg.Go(func() {
				_, err := join(t.Context(), g, "k", flight.Options{}, func(context.Context) string {
					time.Sleep(time.Second)
					explode(cause)
					return ""
				}).Wait(t.Context())
				var p *flight.PanicError
				if !errors.As(err, &p) || p.Value != any(cause) || !strings.Contains(p.Error(), "boom") {
					t.Errorf("%v", err)
					return
				}
				if !strings.Contains(string(p.Stack), "explode") {
					t.Errorf("no stack of the work: %s", p.Stack)
				}
				raised.Add(1)
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
				return fmt.Sprint(flight.Expired(ctx), errors.Is(context.Cause(ctx), context.DeadlineExceeded))
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
		require.Equal(t, "true true", <-ended)
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
		require.Equal(t, "true true", <-ended, "of another's work, too")
		require.Equal(t, time.Minute, time.Since(began))
	})
}

// There is always a caller that waits a while for a fresh value, but never the same one.
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
			tickets, ok := g.Join(t.Context(), []string{"k"}, flight.Options{}, func(_ context.Context, calls []*flight.Call[string]) {
				<-shut
				calls[0].Forget()
				<-end
				calls[0].Deliver("")
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
		tickets, ok := g.Join(t.Context(), []string{"a", "b", "c"}, flight.Options{}, func(_ context.Context, calls []*flight.Call[string]) {
			if len(calls) != 2 || calls[0].Key != "a" || calls[1].Key != "c" {
				t.Errorf("%v", calls)
			}
			calls[0].Deliver("A")
			calls[1].Deliver("C")
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

// result returns the outcome of Wait as text.
func result(ctx context.Context, ticket flight.Ticket[string]) string {
	got, err := ticket.Wait(ctx)
	if p := (*flight.PanicError)(nil); errors.As(err, &p) {
		return fmt.Sprint("panic: ", p.Value)
	}
	return fmt.Sprint(got, err)
}

func TestEachKeysResultIsDeliveredAtOnce(t *testing.T) {
	for name, end := range map[string]struct {
		way  func(b *flight.Call[string])
		want string
	}{
		"a result":  {func(b *flight.Call[string]) { b.Deliver("B") }, "B<nil>"},
		"a panic":   {func(*flight.Call[string]) { panic("boom") }, "panic: boom"},
		"none":      {func(*flight.Call[string]) {}, "panic: flight: the work returned without a result for this key"},
		"the limit": {func(*flight.Call[string]) { time.Sleep(2 * time.Hour) }, "context deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
				before := g.Ended()
				tickets, ok := g.Join(t.Context(), []string{"a", "b"}, flight.Options{Limit: time.Hour}, func(_ context.Context, calls []*flight.Call[string]) {
					calls[0].Deliver("A")
					time.Sleep(time.Minute)
					end.way(calls[1])
				})
				require.True(t, ok)
				joined := join(t.Context(), g, "b", flight.Options{}, nil)
				began := time.Now()
				require.Equal(t, "A<nil>", result(t.Context(), tickets[0]))
				require.Zero(t, time.Since(began), "it does not wait for b")
				require.Equal(t, before+1, g.Ended(), "its outcome is counted")
				require.False(t, join(t.Context(), g, "a", flight.Options{}, func(context.Context) string { return "" }).Shared)
				for _, b := range []flight.Ticket[string]{tickets[1], joined} {
					require.Equal(t, end.want, strings.TrimSpace(result(t.Context(), b)))
				}
			})
		})
	}
}

func TestAnExitAfterAResultEndsOnlyTheCallersOfTheOtherKeys(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		tickets, ok := g.Join(t.Context(), []string{"a", "b"}, flight.Options{}, func(_ context.Context, calls []*flight.Call[string]) {
			calls[0].Deliver("A")
			runtime.Goexit()
		})
		require.True(t, ok)
		synctest.Wait()
		require.Equal(t, "A<nil>", result(t.Context(), tickets[0]))
		ended := make(chan bool, 1)
		go func() {
			returned := false
			defer func() { ended <- !returned }()
			_, _ = tickets[1].Wait(t.Context())
			returned = true
		}()
		require.True(t, <-ended)
	})
}

// A caller of several keys may hold the ticket of a key with a result for long, while it
// waits for other work.
func TestTheContextEndsWhenNobodyWaitsForAKeyWithoutAResult(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		ended := make(chan error, 1)
		deliver := make(chan struct{})
		tickets, ok := g.Join(t.Context(), []string{"a", "b"}, flight.Options{}, func(ctx context.Context, calls []*flight.Call[string]) {
			<-deliver
			calls[0].Deliver("A")
			<-ctx.Done()
			ended <- ctx.Err()
			calls[1].Deliver("given up")
		})
		require.True(t, ok)
		held := join(t.Context(), g, "a", flight.Options{}, nil)
		tickets[1].Leave()
		synctest.Wait()
		require.Empty(t, ended, "two wait for a")
		close(deliver)
		require.ErrorIs(t, <-ended, context.Canceled, "nobody waits for b")
		for _, a := range []flight.Ticket[string]{tickets[0], held} {
			require.Equal(t, "A<nil>", result(t.Context(), a))
		}
	})
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		tickets, ok := g.Join(t.Context(), []string{"a", "b"}, flight.Options{}, func(ctx context.Context, calls []*flight.Call[string]) {
			calls[0].Deliver("A")
			time.Sleep(time.Hour)
			calls[1].Deliver(fmt.Sprint(ctx.Err()))
		})
		require.True(t, ok)
		require.Equal(t, "A<nil>", result(t.Context(), tickets[0]))
		require.Equal(t, "<nil><nil>", result(t.Context(), tickets[1]), "the caller of b still waits")
	})
}

func TestAReadyResultIsReturnedAfterTheContextEnded(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 100 {
			ticket := join(t.Context(), g, "k", flight.Options{}, func(context.Context) string { return "v" })
			synctest.Wait()
			require.Equal(t, "v<nil>", result(ctx, ticket))
		}
	})
}

// errgroup and some frameworks cancel a context with a cause that matches another error.
func TestTheCauseOfACallersContextIsNotTakenForExpiry(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		caller, cancel := context.WithCancelCause(t.Context())
		expired := make(chan bool, 1)
		ticket := join(caller, g, "k", flight.Options{Limit: time.Hour}, func(ctx context.Context) string {
			<-ctx.Done()
			expired <- flight.Expired(ctx) || errors.Is(context.Cause(ctx), context.DeadlineExceeded)
			return ""
		})
		cancel(context.DeadlineExceeded)
		require.Equal(t, "context canceled", result(caller, ticket))
		require.False(t, <-expired)

		for range 100 { // both end at one moment
			caller, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Hour, cancel)
			ticket = join(caller, g, "k", flight.Options{Limit: time.Hour}, func(ctx context.Context) string { <-ctx.Done(); time.Sleep(time.Nanosecond); return "" })
			time.Sleep(time.Hour)
			synctest.Wait()
			require.Equal(t, "context canceled", result(caller, ticket))
		}
	})
}

// There is no caller to panic, and the panic must not end the process.
func TestAPanicOfWorkWithoutWaitersIsRecovered(t *testing.T) {
	bubble(t, func(t *testing.T, g *group, _ *flight.Owner) {
		for _, way := range []func(){func() { panic("boom") }, runtime.Goexit} {
			join(t.Context(), g, "k", flight.Options{Keep: time.Hour}, func(context.Context) string { way(); return "" }).Leave()
			synctest.Wait()
			got, err := join(t.Context(), g, "k", flight.Options{}, func(context.Context) string { return "v" }).Wait(t.Context())
			require.NoError(t, err)
			require.Equal(t, "v", got)
		}
	})
}
