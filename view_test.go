package rediscache_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

func newView[V any](
	t testing.TB, c *rediscache.Cache, codec rediscache.Codec[V], p rediscache.Policy,
) *rediscache.View[V] {
	t.Helper()
	return systest.NewView(t, c, codec, p)
}

func never[V any](t testing.TB) func(context.Context) (V, error) {
	t.Helper()
	return systest.Never[V](t)
}

func returns[V any](value V) func(context.Context) (V, error) { return systest.Returns(value) }

func fails[V any](err error) func(context.Context) (V, error) { return systest.Fails[V](err) }

type user struct {
	Name string `json:"name"`
	Age  int    `json:"age"`
}

func TestOfNamesEveryFault(t *testing.T) {
	c := newCache(t, systest.OwnPool{Addr: "127.0.0.1:1"}, rediscache.WithTTL(time.Hour))
	_, err := rediscache.Of[int](nil, nil, rediscache.Policy{
		TTL: -5, Stale: -1, Negative: time.Microsecond, Soft: -1, Hard: 1, Lease: time.Millisecond - 1,
		Jitter: 1, Early: math.NaN(),
	})
	for _, fault := range []string{
		"cache is nil", "codec is nil", "Policy.TTL: -5ns", "Policy.Stale: -1ns", "Policy.Negative: 1µs",
		"Policy.Soft: -1ns", "Policy.Hard: 1ns", "Policy.Lease: 999.999µs", "Policy.Jitter: 1 ", "Policy.Early: NaN",
	} {
		require.ErrorContains(t, err, fault)
	}
	for fault, p := range map[string]rediscache.Policy{
		"nothing is ever stale":         {TTL: rediscache.NoExpiry, Stale: time.Second},
		"no TTL to shorten":             {TTL: rediscache.NoExpiry, Jitter: 0.1},
		"nothing is ever early":         {TTL: rediscache.NoExpiry, Early: 1},
		"exceed the longest time":       {TTL: math.MaxInt64 - 1, Stale: time.Second},
		"without Stale":                 {Soft: time.Second},
		"1s is not before Hard, 1s":     {Stale: time.Hour, Soft: time.Second, Hard: time.Second},
		"Policy.Jitter: -0.1":           {Jitter: -0.1},
		"Policy.Jitter: NaN":            {Jitter: math.NaN()},
		"Policy.Early: -1":              {Early: -1},
		"Policy.Early: +Inf":            {Early: math.Inf(1)},
		"Policy.TTL: 999.999µs is none": {TTL: time.Millisecond - 1},
	} {
		_, err := rediscache.Of(c, rediscache.JSON[int](), p)
		require.ErrorContains(t, err, fault)
		require.Equal(t, 1, strings.Count(err.Error(), "rediscache: "), "one fault: %v", err)
	}
	_, err = rediscache.Of(newCache(t, systest.OwnPool{Addr: "127.0.0.1:1"}), rediscache.JSON[int](), rediscache.Policy{Stale: time.Hour})
	require.ErrorContains(t, err, "nothing is ever stale", "the cache's own TTL is NoExpiry")
	for _, p := range []rediscache.Policy{
		{},
		{TTL: rediscache.NoExpiry, Negative: time.Minute, Lease: time.Second},
		{Stale: time.Hour, Negative: time.Minute, Soft: 1e6, Hard: 2e6, Lease: time.Second, Jitter: 0.99, Early: 3},
	} {
		_, err := rediscache.Of(c, rediscache.JSON[int](), p)
		require.NoError(t, err)
	}
}

// protoCodec is like protobuf's: the zero message is nothing.
type protoCodec struct{}

func (protoCodec) Encode(n int) ([]byte, error) { return []byte(strings.Repeat("1", n)), nil }
func (protoCodec) Decode(b []byte) (int, error) { return len(b), nil }

// oddCodec encodes 7 to nothing, and panics at the zero value.
type oddCodec struct{}

func (oddCodec) Encode(n int) ([]byte, error) {
	switch n {
	case 0:
		panic("zero")
	case 7:
		return nil, nil
	}
	return fmt.Append(nil, n), nil
}

func (oddCodec) Decode(b []byte) (n int, err error) {
	_, err = fmt.Sscan(string(b), &n)
	return n, err
}

func TestAValueThatCannotBeEncodedIsNoFaultOfRedis(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		var told error
		c := newCache(t, newPool(t, s.URL()), rediscache.WithObserver(rediscache.ObserverFunc(func(_ context.Context, e rediscache.Event) {
			if e.Outcome == rediscache.OutcomeError {
				told = e.Err
			}
		})))
		v := newView(t, c, rediscache.JSON[float64](), rediscache.Policy{})
		_, err := v.GetOrLoad(t.Context(), "k", returns(math.NaN()))
		require.NoError(t, err, "it is as good as it was")
		require.ErrorContains(t, told, "NaN")
		require.NotErrorIs(t, told, rediscache.ErrUnavailable)
		require.EqualValues(t, 1, c.Stats().Errors)
	})
}

func TestANegativeIsNoValueOfAnyCodec(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		c, ctx := newCache(t, newPool(t, s.URL()), unhurried), t.Context()
		p := rediscache.Policy{Negative: time.Minute}
		_, err := rediscache.Of(c, rediscache.Bytes(), p)
		require.ErrorContains(t, err, "Policy.Negative")
		_, err = rediscache.Of(c, rediscache.String(), p)
		require.ErrorContains(t, err, "Policy.Negative")
		_, err = rediscache.Of(c, protoCodec{}, p)
		require.ErrorContains(t, err, "Policy.Negative")

		for _, p.Lease = range []time.Duration{0, time.Second} {
			s.Flush()
			odd := newView(t, c, oddCodec{}, p)
			require.Error(t, odd.Set(ctx, "k", 7))
			got, err := odd.GetOrLoad(ctx, "k", returns(7))
			require.NoError(t, err)
			require.Equal(t, 7, got, "the caller gets it")
			require.EqualValues(t, 0, s.Do("DBSIZE"), "and nothing is stored")

			testNegative(t, s, newView(t, c, rediscache.JSON[string](), p), "")
			testNegative(t, s, newView(t, c, rediscache.JSON[[]byte](), p), nil)
			testNegative(t, s, newView(t, c, rediscache.JSON[*user](), p), nil)
			testNegative(t, s, odd, 1)
		}
	})
}

func testNegative[V any](t *testing.T, s *redistest.Server, v *rediscache.View[V], value V) {
	t.Helper()
	ctx := t.Context()
	s.Flush()
	require.NoError(t, v.Set(ctx, "value", value))
	_, err := v.Get(ctx, "value")
	require.NoError(t, err, "no value is a negative")

	_, err = v.GetOrLoad(ctx, "none", fails[V](fmt.Errorf("no row: %w", rediscache.ErrNotFound)))
	require.ErrorContains(t, err, "no row")
	require.ErrorIs(t, err, rediscache.ErrNotFound)
	require.Equal(t, []byte{}, s.Do("GET", "none"))
	_, err = v.GetOrLoad(ctx, "none", never[V](t))
	require.ErrorIs(t, err, rediscache.ErrNotFound)
	_, err = v.Get(ctx, "none")
	require.ErrorIs(t, err, rediscache.ErrNotFound)
	many, err := v.GetMany(ctx, "none", "value")
	require.NoError(t, err)
	require.Len(t, many, 1)
	s.Advance(time.Minute)
	_, err = v.GetOrLoad(ctx, "none", returns(value))
	require.NoError(t, err, "it is forgotten")
}

func TestWhatIsStoredIsTheCodecsBytes(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		c, ctx := newCache(t, newPool(t, s.URL()), rediscache.WithPrefix("p:")), t.Context()
		for _, p := range []rediscache.Policy{
			{}, {TTL: time.Hour, Stale: time.Hour, Negative: time.Minute, Lease: time.Second, Early: 1, Jitter: 0.5},
		} {
			v := newView(t, c, rediscache.JSON[user](), p)
			for _, store := range []func() error{
				func() error { return v.Set(ctx, "k", user{"Ann", 30}) },
				func() error { _, err := v.GetOrLoad(ctx, "k", returns(user{"Ann", 30})); return err },
				func() error {
					_, err := v.GetOrLoadMany(ctx, []string{"k"}, func(context.Context, []string) (map[string]user, error) {
						return map[string]user{"k": {"Ann", 30}}, nil
					})
					return err
				},
			} {
				s.Flush()
				require.NoError(t, store())
				require.Equal(t, []byte(`{"name":"Ann","age":30}`), s.Do("GET", "p:k"))
				require.EqualValues(t, 1, s.Do("DBSIZE"), "and no lease is left")
				got, err := v.Get(ctx, "k")
				require.NoError(t, err)
				require.Equal(t, user{"Ann", 30}, got)
			}
		}
		every := strings.Repeat("\x00\xff\r\n{}", 100)
		require.NoError(t, newView(t, c, rediscache.String(), rediscache.Policy{}).Set(ctx, "s", every))
		require.Equal(t, []byte(every), s.Do("GET", "p:s"))
		raw, err := newView(t, c, rediscache.Bytes(), rediscache.Policy{}).Get(ctx, "s")
		require.NoError(t, err)
		require.Equal(t, every, string(raw))
	})
}

func TestRedisCLIReadsAValue(t *testing.T) {
	s := redistest.Start(t)
	cli, err := exec.LookPath("redis-cli")
	if err != nil {
		t.Skipf("no redis-cli: %v", err)
	}
	v := newView(t, newCache(t, newPool(t, s.URL()), unhurried), rediscache.JSON[user](), rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Lease: time.Second})
	_, err = v.GetOrLoad(t.Context(), "k", returns(user{"Ann", 30}))
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), cli, "-s", s.Socket, "GET", "k").CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, "{\"name\":\"Ann\",\"age\":30}\n", string(out))
}

func TestAViewGetsSetsAndDeletes(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		pool := newPool(t, s.URL())
		for _, conns := range []int{0, 2} {
			c, ctx := newCache(t, pool, rediscache.WithPipelineConns(conns), rediscache.WithTTL(time.Hour)), t.Context()
			for _, lease := range []time.Duration{0, time.Second} {
				s.Flush()
				v := newView(t, c, rediscache.JSON[int](), rediscache.Policy{Stale: time.Hour, Lease: lease})
				_, err := v.Get(ctx, "a")
				require.ErrorIs(t, err, rediscache.ErrNotFound)
				require.NoError(t, v.Set(ctx, "a", 1))
				require.NoError(t, v.Set(ctx, "b", 2))
				left, err := c.TTL(ctx, "a")
				require.NoError(t, err)
				require.Greater(t, left, 119*time.Minute, "TTL and Stale")
				s.Do("SET", systest.LeaseKey("", "a"), "token")
				got, err := v.GetMany(ctx, "a", "none", "b", "a")
				require.NoError(t, err)
				require.Equal(t, map[string]int{"a": 1, "b": 2}, got)
				n, err := v.Delete(ctx, "a", "none", "b")
				require.NoError(t, err)
				require.Equal(t, 2, n, "leases do not count")
				require.EqualValues(t, 0, s.Do("EXISTS", systest.LeaseKey("", "a")))
				n, err = v.Delete(ctx)
				require.NoError(t, err)
				require.Zero(t, n)
				n, err = v.Delete(ctx, "a}b")
				require.NoError(t, err, "a key without a lease")
				require.Zero(t, n)
				s.Do("LPUSH", "list", "x")
				_, err = v.Get(ctx, "list")
				require.ErrorIs(t, err, rediscache.ErrWrongType)
			}
			require.NoError(t, c.Close())
			v := newView(t, c, rediscache.JSON[int](), rediscache.Policy{})
			_, err := v.Get(ctx, "a")
			require.ErrorIs(t, err, rediscache.ErrClosed)
			_, err = v.GetOrLoad(ctx, "a", never[int](t))
			require.ErrorIs(t, err, rediscache.ErrClosed)
		}
	})
}

func TestUndecodableBytesAreAMissAndAreRepaired(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for _, p := range []rediscache.Policy{
			{}, {Lease: time.Second}, {TTL: time.Hour, Stale: time.Hour, Lease: time.Second}, {TTL: time.Hour, Early: 1},
		} {
			s.Flush()
			var log eventLog
			c, ctx := newCache(t, newPool(t, s.URL()), rediscache.WithObserver(&log)), t.Context()
			v := newView(t, c, rediscache.JSON[int](), p)
			for i, junk := range []string{"x", "", `"text"`, "1 2"} {
				key := fmt.Sprint("k", i)
				s.Do("SET", key, junk)
				_, err := v.Get(ctx, key)
				require.ErrorIs(t, err, rediscache.ErrNotFound)
				require.Error(t, log.last(t, rediscache.OutcomeMiss).Err, "the observer hears why")
				got, err := v.GetOrLoad(ctx, key, returns(42))
				require.NoError(t, err)
				require.Equal(t, 42, got)
				require.Equal(t, []byte("42"), s.Do("GET", key))
			}
			s.Do("SET", "k0", "junk")
			got, err := v.GetOrLoadMany(ctx, []string{"k0", "k1"}, func(_ context.Context, keys []string) (map[string]int, error) {
				require.Equal(t, []string{"k0"}, keys)
				return map[string]int{"k0": 1}, nil
			})
			require.NoError(t, err)
			require.Equal(t, map[string]int{"k0": 1, "k1": 42}, got)
			require.Equal(t, []byte("1"), s.Do("GET", "k0"))
		}
	})
}

func TestJitterShortensTheTTLByUpToTheFraction(t *testing.T) {
	s := redistest.StartMini(t)
	c := newCache(t, newPool(t, s.URL()), unhurried)
	v := newView(t, c, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Jitter: 0.5})
	least, most := int64(math.MaxInt64), int64(0)
	for range 200 {
		require.NoError(t, v.Set(t.Context(), "k", 1))
		left, err := redis.Int64(s.Do("PTTL", "k"), nil)
		require.NoError(t, err)
		least, most = min(least, left), max(most, left)
	}
	require.GreaterOrEqual(t, least, (90 * time.Minute).Milliseconds(), "Stale is not shortened")
	require.Less(t, least, (95 * time.Minute).Milliseconds())
	require.LessOrEqual(t, most, (120 * time.Minute).Milliseconds())
	require.Greater(t, most, (115 * time.Minute).Milliseconds())
}

// eventLog is an observer that remembers.
type eventLog struct {
	mu     sync.Mutex // guards events
	events []rediscache.Event
}

func (l *eventLog) Observe(_ context.Context, e rediscache.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// take returns the events since the last take, as op, key and outcome.
func (l *eventLog) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []string
	for _, e := range l.events {
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%s %s: %s", e.Op, e.Key, e.Outcome)))
	}
	l.events = nil
	return lines
}

func (l *eventLog) last(t *testing.T, o rediscache.Outcome) rediscache.Event {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.events) - 1; i >= 0; i-- {
		if l.events[i].Outcome == o {
			return l.events[i]
		}
	}
	t.Fatalf("no event has the outcome %s", o)
	return rediscache.Event{}
}

func TestACallThatFailsIsOneErrorAndAStaleValueThatIsReplacedAMiss(t *testing.T) {
	redistest.Long(t)
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		var log eventLog
		proxy := redistest.NewProxy(t, s.Addr)
		pool := newPool(t, "redis://"+proxy.Addr)
		c := newCache(t, pool, rediscache.WithObserver(&log))
		v := newView(t, c, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Soft: time.Minute})
		for _, key := range []string{"k", "l"} {
			s.Do("SET", key, "1", "PX", 60000)
		}
		got, err := v.GetOrLoad(t.Context(), "k", returns(2))
		require.NoError(t, err)
		require.Equal(t, 2, got)
		many, err := v.GetOrLoadMany(t.Context(), []string{"l"}, func(context.Context, []string) (map[string]int, error) {
			return map[string]int{"l": 2}, nil
		})
		require.NoError(t, err)
		require.Equal(t, map[string]int{"l": 2}, many)
		require.Equal(t, []string{"load k: load", "fill k: ok", "get or load k: miss", "load l: load", "fill l: ok", "get or load many l: miss"}, log.take())
		require.EqualValues(t, 2, c.Stats().Misses)

		hard := newView(t, c, rediscache.JSON[int](), rediscache.Policy{Hard: 20 * time.Millisecond})
		_, err = hard.GetOrLoadMany(t.Context(), []string{"x", "y", "z"}, func(ctx context.Context, _ []string) (map[string]int, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.LessOrEqual(t, c.Stats().Errors, int64(1), "none where the load's own error is served")
		require.NoError(t, c.Close()) // after which no load has an event

		c = newCache(t, pool, rediscache.WithObserver(&log), rediscache.WithTimeout(500*time.Millisecond))
		require.NoError(t, c.Ping(t.Context()))
		proxy.Blackhole()
		log.take()
		err = c.SetMany(t.Context(), map[string][]byte{"a": nil, "b": nil, "c": nil}, 0)
		require.ErrorIs(t, err, rediscache.ErrOutcomeUnknown)
		require.Equal(t, 1, strings.Count(err.Error(), "set many"))
		require.EqualValues(t, 1, c.Stats().Errors)
		require.Equal(t, []string{"set many : error"}, log.take())
	})
}

func TestObserversHearOfEachOutcome(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		var log eventLog
		c, ctx := newCache(t, newPool(t, s.URL()), rediscache.WithObserver(&log)), t.Context()
		v := newView(t, c, rediscache.JSON[int](), rediscache.Policy{
			TTL: time.Hour, Stale: time.Hour, Negative: time.Hour, Lease: time.Second,
		})
		do := func(want ...string) {
			t.Helper()
			require.ElementsMatch(t, want, log.take())
		}
		_, _ = c.Get(ctx, "k")
		do("get k: miss")
		_, _ = v.GetOrLoad(ctx, "k", returns(1))
		do("get or load k: miss", "load k: load", "fill k: ok")
		_, _ = v.GetOrLoad(ctx, "k", never[int](t))
		_, _ = v.Get(ctx, "k")
		_, _ = c.Get(ctx, "k")
		_, _ = c.GetMany(ctx, "k", "none")
		_, _ = v.GetMany(ctx, "k", "none")
		do("get or load k: hit", "get k: hit", "get k: hit", "get many k: hit", "get many none: miss",
			"get many k: hit", "get many none: miss")
		_, _ = v.GetOrLoad(ctx, "n", fails[int](rediscache.ErrNotFound))
		_, _ = v.GetOrLoad(ctx, "n", never[int](t))
		do("get or load n: miss", "load n: load", "fill n: ok", "get or load n: negative")

		s.Advance(time.Hour + time.Minute)
		failure := errors.New("the database is down")
		got, err := v.GetOrLoad(ctx, "k", fails[int](failure))
		require.NoError(t, err)
		require.Equal(t, 1, got)
		redistest.Eventually(t, func() bool { return c.Stats().Loads == 3 && s.Do("EXISTS", systest.LeaseKey("", "k")) == int64(0) }, "it is loaded in the background")
		require.ErrorIs(t, log.last(t, rediscache.OutcomeLoad).Err, failure)
		do("get or load k: stale", "load k: load")

		_, err = v.GetOrLoad(ctx, "r", func(ctx context.Context) (int, error) { return 5, c.Set(ctx, "r", []byte("6"), 0) })
		require.NoError(t, err)
		do("get or load r: miss", "set r: ok", "load r: load", "fill r: refused")

		s.Do("LPUSH", "list", "x")
		_, _ = c.Get(ctx, "list")
		_, _ = v.GetOrLoad(ctx, "list", returns(1))
		require.ErrorIs(t, log.last(t, rediscache.OutcomeError).Err, rediscache.ErrWrongType)
		do("get list: error", "get or load list: error", "load list: load")
		require.Equal(t, rediscache.Stats{
			Hits: 6, Misses: 6, Sets: 2, Errors: 2, Stale: 1, Negatives: 1, Loads: 5, Refused: 1,
		}, c.Stats())
	})
}
