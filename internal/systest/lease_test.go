package systest_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

func TestFourProcessesOf250CallersShareOneLoad(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		p := rediscache.Policy{Lease: 10 * time.Second}
		var views [4]*rediscache.View[int]
		var caches [4]*rediscache.Cache
		for i := range views {
			views[i], caches[i] = systest.Process(t, s, p)
		}
		missed := func() (n int64) {
			for _, c := range caches {
				n += c.Stats().Misses
			}
			return n
		}
		load := func(keys ...string) (map[string]int, error) {
			redistest.Eventually(t, func() bool { return missed() >= 1000 }, "all have missed")
			values := make(map[string]int)
			for _, key := range keys {
				s.Do("INCR", "loads:"+key)
				values[key] = 7
			}
			return values, nil
		}
		redistest.Together(1000, func(i int) {
			got, err := views[i%4].GetOrLoad(t.Context(), "k", func(context.Context) (int, error) {
				values, err := load("k")
				return values["k"], err
			})
			if got != 7 || err != nil {
				t.Errorf("%d, %v", got, err)
			}
		})
		require.Equal(t, []byte("1"), s.Do("GET", "loads:k"))
		redistest.Together(200, func(i int) {
			keys := []string{fmt.Sprint("m", i%5), fmt.Sprint("m", (i+2)%5), "m0"}
			got, err := views[i%4].GetOrLoadMany(t.Context(), keys, func(_ context.Context, keys []string) (map[string]int, error) {
				return load(keys...)
			})
			if err != nil || got["m0"] != 7 || got[keys[0]] != 7 || got[keys[1]] != 7 {
				t.Errorf("%v, %v", got, err)
			}
		})
		for i := range 5 {
			require.Equal(t, []byte("1"), s.Do("GET", fmt.Sprint("loads:m", i)))
		}
	})
}

// The holder is a process that took the lease and is gone.
func TestTheOthersLoadWhenAHolderHasDied(t *testing.T) {
	redistest.Long(t)
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		const lease = time.Second
		v, c := systest.Process(t, s, rediscache.Policy{Lease: lease})
		began := time.Now()
		s.Do("SET", systest.LeaseKey("", "k"), "of the dead", "PX", lease.Milliseconds())
		var loads atomic.Int64
		redistest.Together(50, func(int) {
			got, err := v.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) {
				loads.Add(1)
				redistest.Eventually(t, func() bool { return c.Stats().Misses == 50 }, "all have missed")
				return 7, nil
			})
			if got != 7 || err != nil {
				t.Errorf("%d, %v", got, err)
			}
		})
		require.EqualValues(t, 1, loads.Load())
		require.Less(t, time.Since(began), 10*lease, "Lease, plus the load")
		if s.Mini == nil {
			require.Greater(t, time.Since(began), lease-10*time.Millisecond, "it was waited for")
			require.Equal(t, []byte("7"), s.Do("GET", "k"), "and the next has the lease")
		} else { // no time passes there: the lease is not over, and they load without one
			require.EqualValues(t, 1, c.Stats().Refused)
			require.EqualValues(t, 0, s.Do("EXISTS", "k"), "and do not store")
		}
	})
}

// The wait for a lease begins when a load has seen it, not when the load asked for it: the
// other process may take its lease in between, and the network may be slow.
func TestALoadWaitsForALeaseThatWasTakenWhileItAsked(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	const lease, oneWay = 500 * time.Millisecond, 100 * time.Millisecond
	s := redistest.Start(t)
	proxy := redistest.NewProxy(t, s.Addr)
	c := newCache(t, newPool(t, "redis://"+proxy.Addr, rediscache.WithMinIdle(1)))
	v := systest.NewView(t, c, rediscache.JSON[int](), rediscache.Policy{Lease: lease})
	require.NoError(t, c.Ping(t.Context()))
	proxy.Delay(redistest.Up, oneWay, 0)
	proxy.Delay(redistest.Down, oneWay, 0)
	// The load asks 2*oneWay after now, once it has missed the key, and Redis answers at
	// 3*oneWay. So a lease that ends at 4*oneWay+lease may have been taken before that.
	s.Do("SET", systest.LeaseKey("", "k"), "of another", "PX", (4*oneWay + lease).Milliseconds())
	got, err := v.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) { return 7, nil })
	require.NoError(t, err)
	require.Equal(t, 7, got)
	require.Equal(t, []byte("7"), s.Do("GET", "k"), "the load had the next lease")
}

func TestAFillIsRefusedAfterWhatCameBetween(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		ctx := t.Context()
		p := rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Lease: 10 * time.Second, Soft: time.Minute, Negative: time.Minute}
		a, ca := systest.Process(t, s, p)
		b, cb := systest.Process(t, s, p)
		must := func(err error) { require.NoError(t, err) }
		between := map[string]struct {
			do   func()
			held any // by the key afterwards
			cold bool
			old  bool // whether it also fences a load that began from a stale value
		}{
			"a View's Delete":                {func() { _, err := b.Delete(ctx, "k"); must(err) }, nil, true, true},
			"a View's Set":                   {func() { must(b.Set(ctx, "k", 5)) }, []byte("5"), true, true},
			"a View's Set of what is gone":   {func() { must(b.Set(ctx, "k", 5)); s.Do("DEL", "k") }, nil, true, true},
			"a View's Set of the same":       {func() { must(b.Set(ctx, "k", 1)) }, []byte("1"), true, true},
			"a Cache's Set":                  {func() { must(cb.Set(ctx, "k", []byte("5"), 0)) }, []byte("5"), true, true},
			"a Cache's Set of the same":      {func() { must(cb.Set(ctx, "k", []byte("1"), 0)) }, []byte("1"), true, true},
			"anybody's SET":                  {func() { s.Do("SET", "k", "5", "PX", 1000) }, []byte("5"), true, true},
			"a View's Set and Delete":        {func() { must(b.Set(ctx, "k", 5)); _, err := b.Delete(ctx, "k"); must(err) }, nil, true, true},
			"a Cache's Delete of what it is": {func() { _, err := cb.Delete(ctx, "k"); must(err) }, nil, false, true},
		}
		for name, test := range between {
			for _, state := range []string{"absent", "stale", "undecodable"} {
				if state == "absent" && !test.cold {
					continue
				}
				for result, outcome := range map[string]error{"a value": nil, "none": rediscache.ErrNotFound} {
					s.Flush()
					switch state {
					case "stale":
						must(a.Set(ctx, "k", 1))
						s.Advance(time.Hour + time.Minute)
					case "undecodable":
						s.Do("SET", "k", "junk")
					}
					before := ca.Stats().Refused
					got, err := a.GetOrLoad(ctx, "k", func(context.Context) (int, error) {
						test.do()
						return 2, outcome
					})
					require.ErrorIs(t, err, outcome)
					require.Equal(t, map[bool]int{true: 2}[outcome == nil], got, "its caller came before")
					require.Equal(t, test.held, s.Do("GET", "k"), "%s, %s, %s", name, state, result)
					require.EqualValues(t, 1, ca.Stats().Refused-before, name)
					require.EqualValues(t, 0, s.Do("EXISTS", systest.LeaseKey("", "k")))
				}
			}
		}
	})
}

// The reply to the SET of the lease is lost with the caller, so it is unknown whether the lease exists.
func TestALeaseOfACallerThatLeftIsNotWaitedFor(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	proxy := redistest.NewProxy(t, s.Addr)
	p := rediscache.Policy{Lease: time.Hour}
	c := newCache(t, newPool(t, "redis://"+proxy.Addr))
	a := systest.NewView(t, c, rediscache.JSON[int](), p)
	b, _ := systest.Process(t, s, p)
	require.NoError(t, c.Ping(t.Context()))
	proxy.Delay(redistest.Down, 200*time.Millisecond, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond) // the look takes 200 of them
	defer cancel()
	_, err := a.GetOrLoad(ctx, "k", systest.Returns(1))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	proxy.Delay(redistest.Down, 0, 0)
	short, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got, err := b.GetOrLoad(short, "k", systest.Returns(2))
	require.NoError(t, err)
	require.Equal(t, 2, got)
}

// The fill is lost with the connection, or what ends the lease of a load that failed.
func TestALeaseOutlivesNoBrokenConnection(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	proxy := redistest.NewProxy(t, s.Addr)
	p := rediscache.Policy{Lease: time.Hour}
	pool := newPool(t, "redis://"+proxy.Addr, rediscache.WithMinIdle(0)) // or the cut might hit a dial
	a := systest.NewView(t, newCache(t, pool), rediscache.JSON[int](), p)
	b, _ := systest.Process(t, s, p)
	for name, failure := range map[string]error{"fill": nil, "release": systest.ErrDatabase} {
		_, err := a.GetOrLoad(t.Context(), name, func(context.Context) (int, error) {
			proxy.Cut(redistest.Up, 0, true)
			return 1, failure
		})
		require.Equal(t, failure, err)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		got, err := b.GetOrLoad(ctx, name, systest.Returns(2))
		cancel()
		require.NoError(t, err, name)
		require.Equal(t, 2, got)
	}
}

// fussy panics at some values.
type fussy struct{ rediscache.Codec[int] }

func (f fussy) Decode(data []byte) (int, error) {
	if string(data) == "13" {
		panic("fussy")
	}
	return f.Codec.Decode(data)
}

// It panics when the lease has just been taken, at what came since the first look.
func TestALeaseIsEndedWhenACodecOrAnObserverPanics(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		for _, came := range [][]any{{"SET", "k", "13"}, {"HSET", "k", "f", "v"}} {
			s.Flush()
			c := newCache(t, newPool(t, s.URL()), rediscache.WithObserver(rediscache.ObserverFunc(func(_ context.Context, e rediscache.Event) {
				switch e.Outcome {
				case rediscache.OutcomeMiss:
					s.Do(came[0].(string), came[1:]...)
				case rediscache.OutcomeError:
					panic("an observer")
				}
			})))
			v := systest.NewView(t, c, fussy{rediscache.JSON[int]()}, rediscache.Policy{Lease: time.Hour})
			require.Panics(t, func() { _, _ = v.GetOrLoad(t.Context(), "k", systest.Never[int](t)) })
			redistest.Eventually(t, func() bool { return s.Do("EXISTS", systest.LeaseKey("", "k")) == int64(0) }, "it is ended")
		}
	})
}

// The first load began before a Delete, and returns while the next load is in flight.
func TestALoadThatIsReplacedDoesNotUnshareTheNext(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		v, c := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
		var wg sync.WaitGroup
		load := func(value int) chan struct{} {
			begun, goOn := make(chan struct{}), make(chan struct{})
			wg.Go(func() {
				got, err := v.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) {
					close(begun)
					<-goOn
					return value, nil
				})
				if got != value || err != nil {
					t.Errorf("%d, %v", got, err)
				}
			})
			<-begun
			return goOn
		}
		first := load(1)
		_, err := v.Delete(t.Context(), "k")
		require.NoError(t, err)
		second := load(2)
		close(first)
		redistest.Waiting(t, 1, systest.InLoad) // the first is through
		require.EqualValues(t, 1, c.Stats().Refused)
		wg.Go(func() {
			if got, err := v.GetOrLoad(t.Context(), "k", systest.Never[int](t)); got != 2 || err != nil {
				t.Errorf("%d, %v", got, err)
			}
		})
		redistest.Waiting(t, 2, systest.InLoad) // it has joined
		close(second)
		wg.Wait()
		require.EqualValues(t, 2, c.Stats().Loads)
		require.EqualValues(t, 1, c.Stats().Shared, "the third has joined the second")
	})
}

func TestALeaseWhoseFillWasRefusedIsEnded(t *testing.T) {
	redistest.NoLeaks(t)
	var ended atomic.Int64
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		switch {
		case c.Name() != "EVALSHA":
			return redistest.Default(c), false
		case c.Args[2] == "2": // keys: it is the fill
			return []byte("-OOM command not allowed\r\n"), false
		}
		ended.Add(1)
		return []byte(":1\r\n"), false
	})
	v := systest.NewView(t, newCache(t, newPool(t, s.URL()), unhurried), rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour})
	got, err := v.GetOrLoad(t.Context(), "k", systest.Returns(1))
	require.NoError(t, err)
	require.Equal(t, 1, got)
	require.EqualValues(t, 1, ended.Load())
}

func TestNobodyWaitsForALateFillAndThenForTheEndOfItsLease(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "EVALSHA" {
			return nil, false
		}
		return redistest.Default(c), false
	})
	c := newCache(t, newPool(t, s.URL()), rediscache.WithTimeout(500*time.Millisecond))
	v := systest.NewView(t, c, rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour})
	got, err := v.GetOrLoad(t.Context(), "k", systest.Returns(1))
	require.NoError(t, err)
	require.Equal(t, 1, got)
	require.Equal(t, 1, s.Count("EVALSHA"), "the fill comes still, and ends it")
	s.HangUp()
}

func TestWithHardHalfOfItIsForTheLeaseOfAnother(t *testing.T) {
	redistest.Long(t)
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		v, _ := systest.Process(t, s, rediscache.Policy{Lease: time.Hour, Hard: 2 * time.Second})
		s.Do("SET", systest.LeaseKey("", "k"), "of one that died")
		got, err := v.GetOrLoad(t.Context(), "k", systest.Returns(7))
		require.NoError(t, err)
		require.Equal(t, 7, got)
	})
}

// Nobody knows whether a Delete came between, and here one has.
func TestAJoinerOfALoadThatCouldNotBeStoredLoadsAgain(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	proxy := redistest.NewProxy(t, s.Addr)
	for name, fault := range map[string]func(){
		"it was not sent":     func() { proxy.Refuse(); proxy.Reset() },
		"it was not answered": proxy.Blackhole,
	} {
		t.Run(name, func(t *testing.T) {
			proxy.Heal()
			s.Flush()
			p := rediscache.Policy{Lease: 10 * time.Second}
			c := newCache(t, newPool(t, "redis://"+proxy.Addr), rediscache.WithTimeout(500*time.Millisecond))
			a := systest.NewView(t, c, rediscache.JSON[int](), p)
			b, _ := systest.Process(t, s, p)
			begun, goOn := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _ = a.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) {
					close(begun)
					<-goOn
					return 1, nil
				})
			})
			<-begun
			_, err := b.Delete(t.Context(), "k")
			require.NoError(t, err)
			wg.Go(func() {
				if got, err := a.GetOrLoad(t.Context(), "k", systest.Returns(2)); got != 2 || err != nil {
					t.Errorf("who came after the Delete: %d, %v", got, err)
				}
			})
			redistest.Waiting(t, 2, systest.InLoad) // it has joined
			fault()
			close(goOn)
			wg.Wait()
		})
	}
}

// Nothing else bounds its wait for a connection.
func TestCloseDoesNotWaitLongForALeaseToBeEnded(t *testing.T) {
	redistest.NoLeaks(t)
	for _, conns := range []int{0, 2} {
		s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false })
		pool := newPool(t, s.URL(), rediscache.WithMinIdle(0), rediscache.WithMaxActive(1))
		c := newCache(t, pool, rediscache.WithTimeout(0), rediscache.WithPipelineConns(conns))
		v := systest.NewView(t, c, rediscache.JSON[int](), rediscache.Policy{Lease: 100 * time.Millisecond})
		ctx, cancel := context.WithCancel(t.Context())
		held := make(chan redis.Conn, 1)
		_, err := v.GetOrLoad(ctx, "k", func(loading context.Context) (int, error) {
			conn, err := pool.GetContext(t.Context()) // the only one
			if err != nil {
				return 0, err
			}
			held <- conn
			cancel()
			<-loading.Done()
			return 0, loading.Err()
		})
		require.ErrorIs(t, err, context.Canceled)
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			_ = c.Close() // never fails
		}()
		redistest.Eventually(t, func() bool {
			select {
			case <-closed:
				return true
			default:
				return false
			}
		}, "it is closed")
		(<-held).Close()
	}
}

func TestScriptsAreSentAgainToAServerThatForgotThem(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		v, c := systest.Process(t, s, rediscache.Policy{Lease: 10 * time.Second})
		for i := range 3 {
			if i != 1 {
				s.Do("SCRIPT", "FLUSH")
			}
			key := strconv.Itoa(i)
			_, err := v.GetOrLoad(t.Context(), key, systest.Returns(i))
			require.NoError(t, err)
			require.Equal(t, []byte(key), s.Do("GET", key))
			_, err = v.GetOrLoad(t.Context(), "fails", systest.Fails[int](systest.ErrDatabase))
			require.Equal(t, systest.ErrDatabase, err)
			require.EqualValues(t, 0, s.Do("EXISTS", systest.LeaseKey("", "fails")), "it is released")
		}
		require.Zero(t, c.Stats().Errors)
	})
}

func TestAMissIsThreeRoundTripsAndAHitIsOne(t *testing.T) {
	s := redistest.Start(t)
	v, _ := systest.Process(t, s, rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Lease: 10 * time.Second})
	plain, _ := systest.Process(t, s, rediscache.Policy{TTL: time.Hour})
	_, err := v.GetOrLoad(t.Context(), "warm up", systest.Returns(1))
	require.NoError(t, err)
	calls := func(f func()) string {
		t.Helper()
		s.Do("CONFIG", "RESETSTAT")
		f()
		var all []string
		for name, count := range commandCalls(t, s) {
			switch name {
			case "get", "set", "pttl", "del", "evalsha", "eval":
				all = append(all, name+count)
			}
		}
		return strings.Join(all, " ")
	}
	load := func(v *rediscache.View[int]) func() {
		return func() {
			_, err := v.GetOrLoad(t.Context(), "k", systest.Returns(1))
			require.NoError(t, err)
		}
	}
	require.ElementsMatch(t, []string{"get4", "pttl2", "set2", "del1", "evalsha1"}, strings.Fields(calls(load(v))),
		"GET and PTTL; SET NX, GET and PTTL; EVALSHA, in which two GET, a DEL and a SET")
	require.ElementsMatch(t, []string{"get1", "pttl1"}, strings.Fields(calls(load(v))))
	require.Equal(t, "get1", calls(load(plain)))
}

// commandCalls tells how often the server has been given each command since it forgot.
func commandCalls(t *testing.T, s *redistest.Server) map[string]string {
	t.Helper()
	info, err := redis.String(s.Do("INFO", "commandstats"), nil)
	require.NoError(t, err)
	calls := make(map[string]string)
	for _, line := range strings.Fields(info) {
		name, rest, _ := strings.Cut(strings.TrimPrefix(line, "cmdstat_"), ":")
		calls[name], _, _ = strings.Cut(strings.TrimPrefix(rest, "calls="), ",")
	}
	return calls
}

func TestALoadThatOutlivesItsLeaseIsReturnedAndNotStored(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		v, c := systest.Process(t, s, rediscache.Policy{Lease: time.Minute})
		got, err := v.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) { s.Advance(time.Minute); return 7, nil })
		require.NoError(t, err)
		require.Equal(t, 7, got)
		require.EqualValues(t, 0, s.Do("EXISTS", "k"))
		require.EqualValues(t, 1, c.Stats().Refused)
	})
}

func TestAStaleValueIsNotWaitedForWhileAnotherProcessLoadsIt(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		p := rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Lease: 10 * time.Second}
		v, c := systest.Process(t, s, p)
		require.NoError(t, v.Set(t.Context(), "k", 1))
		s.Advance(time.Hour + time.Minute)
		s.Do("SET", systest.LeaseKey("", "k"), "another's")
		for range 20 {
			got, err := v.GetOrLoad(t.Context(), "k", systest.Never[int](t))
			require.NoError(t, err)
			require.Equal(t, 1, got)
		}
		require.NoError(t, c.Close())
		require.Equal(t, []byte("another's"), s.Do("GET", systest.LeaseKey("", "k")))
	})
}

func TestWithSoftAStaleValueWaitsForTheFreshOneOfAnotherProcess(t *testing.T) {
	s := redistest.Start(t)
	v, _ := systest.Process(t, s, rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Lease: 10 * time.Second, Soft: time.Minute})
	require.NoError(t, v.Set(t.Context(), "k", 1))
	s.Advance(time.Hour + time.Minute)
	s.Do("SET", systest.LeaseKey("", "k"), "another's")
	s.Do("CONFIG", "RESETSTAT")
	done := make(chan struct{})
	go func() {
		defer close(done)
		got, err := v.GetOrLoad(t.Context(), "k", systest.Never[int](t))
		if got != 2 || err != nil {
			t.Errorf("%d, %v", got, err)
		}
	}()
	redistest.Eventually(t, func() bool { return commandCalls(t, s)["pttl"] != "" }, "it has seen that the value is stale")
	s.Do("SET", "k", "2", "PX", (2 * time.Hour).Milliseconds())
	<-done
}

func TestWaitersLeaveWithTheirContext(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		v, _ := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
		s.Do("SET", systest.LeaseKey("", "k"), "another's")
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		_, err := v.GetOrLoad(ctx, "k", systest.Never[int](t))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.False(t, errors.Is(err, rediscache.ErrUnavailable))
	})
}
