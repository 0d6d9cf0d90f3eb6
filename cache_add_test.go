package rediscache_test

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

func testAdd(t *testing.T, s *redistest.Server, open maker) {
	ctx := t.Context()
	c := open(rediscache.WithPrefix("p:"), rediscache.WithTTL(time.Hour))
	add := func(key, value string, ttl time.Duration, want bool) {
		t.Helper()
		added, err := c.Add(ctx, key, []byte(value), ttl)
		require.NoError(t, err)
		require.Equal(t, want, added)
	}
	left := func() time.Duration {
		t.Helper()
		ttl, err := c.TTL(ctx, "k")
		require.NoError(t, err)
		return ttl
	}
	add("k", "first", time.Minute+time.Nanosecond, true)
	require.Equal(t, []byte("first"), s.Do("GET", "p:k"))
	for _, ttl := range []time.Duration{time.Hour, rediscache.DefaultTTL, rediscache.NoExpiry} {
		add("k", "second", ttl, false)
		require.Equal(t, []byte("first"), s.Do("GET", "p:k"))
		require.LessOrEqual(t, left(), time.Minute, "the ttl stays too")
	}
	s.Advance(time.Minute)
	add("k", "third", rediscache.DefaultTTL, true)
	require.Greater(t, left(), 59*time.Minute)
	require.LessOrEqual(t, left(), time.Hour)
	s.Do("DEL", "p:k")
	add("k", "", rediscache.NoExpiry, true)
	require.Equal(t, rediscache.NoExpiry, left())
	add("k", "fourth", time.Minute, false) // an empty value is a value

	s.Do("LPUSH", "p:list", "x")
	add("list", "fifth", time.Minute, false) // so is one of another type
	require.Equal(t, rediscache.Stats{Sets: 3}, c.Stats())

	for _, ttl := range []time.Duration{time.Nanosecond, -2, math.MinInt64} {
		_, err := c.Add(ctx, "new", nil, ttl)
		require.ErrorContains(t, err, "rediscache: add: ttl ")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err := c.Add(ended, "new", nil, 0)
	require.ErrorIs(t, err, context.Canceled)
	require.EqualValues(t, 0, s.Do("EXISTS", "p:new"))

	var added atomic.Int64
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			ok, err := c.Add(ctx, "race", fmt.Append(nil, i), time.Minute)
			if err != nil {
				t.Errorf("add: %v", err)
			}
			if ok {
				added.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, added.Load())

	require.NoError(t, c.Close())
	_, err = c.Add(ctx, "new", nil, 0)
	require.ErrorIs(t, err, rediscache.ErrClosed)
}

func testTouch(t *testing.T, s *redistest.Server, open maker) {
	ctx := t.Context()
	c := open(rediscache.WithPrefix("p:"), rediscache.WithTTL(time.Hour))
	touch := func(ttl, low, high time.Duration) {
		t.Helper()
		require.NoError(t, c.Touch(ctx, "k", ttl))
		left, err := c.TTL(ctx, "k")
		require.NoError(t, err)
		require.GreaterOrEqual(t, left, low)
		require.LessOrEqual(t, left, high)
	}
	require.NoError(t, c.Set(ctx, "k", []byte("v"), time.Second))
	s.Do("SET", "k", "without the prefix")
	longest := longestTTL(s)
	touch(time.Minute+time.Nanosecond, 59*time.Second, time.Minute)
	touch(longest, longest-time.Hour, longest)
	touch(rediscache.DefaultTTL, 59*time.Minute, time.Hour)
	touch(rediscache.NoExpiry, rediscache.NoExpiry, rediscache.NoExpiry)
	touch(rediscache.NoExpiry, rediscache.NoExpiry, rediscache.NoExpiry)
	touch(30*time.Second, 20*time.Second, 30*time.Second)
	require.Equal(t, []byte("v"), s.Do("GET", "p:k"))
	require.EqualValues(t, -1, s.Do("TTL", "k"))

	for _, ttl := range []time.Duration{time.Nanosecond, -2, math.MinInt64} {
		require.ErrorContains(t, c.Touch(ctx, "k", ttl), "rediscache: touch: ttl ")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	for _, ttl := range []time.Duration{time.Hour, rediscache.NoExpiry} {
		require.ErrorIs(t, c.Touch(ended, "k", ttl), context.Canceled)
	}
	left, err := c.TTL(ctx, "k")
	require.NoError(t, err)
	require.LessOrEqual(t, left, 30*time.Second, "a refused ttl changes nothing")

	s.Advance(time.Minute)
	for _, ttl := range []time.Duration{time.Minute, rediscache.DefaultTTL, rediscache.NoExpiry} {
		require.ErrorIs(t, c.Touch(ctx, "k", ttl), rediscache.ErrNotFound)
	}
	require.EqualValues(t, 0, s.Do("EXISTS", "p:k"))
	s.Do("LPUSH", "p:list", "x")
	require.NoError(t, c.Touch(ctx, "list", time.Minute), "another type is as good")
	require.Equal(t, rediscache.Stats{Sets: 1, Errors: 2}, c.Stats(), "a key that does not exist is no error")

	plain := open()
	require.NoError(t, plain.Touch(ctx, "p:list", rediscache.DefaultTTL))
	require.EqualValues(t, -1, s.Do("TTL", "p:list"), "without WithTTL values never expire")

	require.NoError(t, c.Close())
	for _, ttl := range []time.Duration{time.Minute, rediscache.NoExpiry} {
		require.ErrorIs(t, c.Touch(ctx, "k", ttl), rediscache.ErrClosed)
	}
}

// verbOf calls a write on a key, as the fault tests need it.
type verbOf struct {
	name    string
	command string // the last one that it sends
	call    func(ctx context.Context, c *rediscache.Cache) error
}

var newVerbs = []verbOf{
	{"add", "SET", func(ctx context.Context, c *rediscache.Cache) error {
		_, err := c.Add(ctx, "k", []byte("v"), time.Minute)
		return err
	}},
	{"touch", "PEXPIRE", func(ctx context.Context, c *rediscache.Cache) error {
		return c.Touch(ctx, "k", time.Minute)
	}},
	{"touch for ever", "PERSIST", func(ctx context.Context, c *rediscache.Cache) error {
		return c.Touch(ctx, "k", rediscache.NoExpiry)
	}},
}

// eachNewVerb runs f for each verb, on shared connections and on a connection a command.
func eachNewVerb(t *testing.T, f func(t *testing.T, v verbOf, conns rediscache.Option)) {
	t.Helper()
	for _, v := range newVerbs {
		for _, conns := range []int{0, 1} {
			t.Run(fmt.Sprintf("%s, %d shared connections", v.name, conns), func(t *testing.T) {
				redistest.NoLeaks(t)
				f(t, v, rediscache.WithPipelineConns(conns))
			})
		}
	}
}

// okTo answers the commands of the new verbs as a Redis in which the key exists, and
// never expires, and in which it may be added.
func okTo(c redistest.Call) []byte {
	switch c.Name() {
	case "PEXPIRE":
		return []byte(":1\r\n")
	case "PERSIST":
		return []byte(":0\r\n")
	case "PTTL":
		return []byte(":-1\r\n")
	}
	return redistest.Default(c)
}

// An Add whose reply is lost would report false if it were retried, and a Touch could
// undo what another caller set meanwhile. So both are sent once.
func TestAnAddOrATouchWhoseReplyIsLostIsUnknownAndNotRetried(t *testing.T) {
	eachNewVerb(t, func(t *testing.T, v verbOf, conns rediscache.Option) {
		var lose atomic.Bool
		s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
			if c.Name() == v.command && lose.Load() {
				return nil, true
			}
			return okTo(c), false
		})
		var heard systest.ErrorsOf
		c := newCache(t, newPool(t, s.URL(), rediscache.WithMinIdle(1)), conns, unhurried, rediscache.WithObserver(&heard))
		require.NoError(t, v.call(t.Context(), c))
		lose.Store(true)
		for n := range 5 {
			sent := s.Count(v.command)
			err := v.call(t.Context(), c)
			require.ErrorIs(t, err, rediscache.ErrOutcomeUnknown)
			require.NotErrorIs(t, err, rediscache.ErrNotFound)
			require.Equal(t, sent+1, s.Count(v.command))
			require.ErrorIs(t, heard.Take(), rediscache.ErrOutcomeUnknown)
			require.EqualValues(t, n+1, c.Stats().Errors)
		}
	})
}

// A caller that leaves before the reply does not know either.
func TestAnAddOrATouchThatIsLeftIsUnknown(t *testing.T) {
	eachNewVerb(t, func(t *testing.T, v verbOf, conns rediscache.Option) {
		begun := make(chan struct{}, 1)
		s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
			if c.Name() == v.command {
				begun <- struct{}{}
				<-c.Done
			}
			return okTo(c), false
		})
		c := newCache(t, newPool(t, s.URL()), conns, unhurried)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			<-begun
			cancel()
		}()
		err := v.call(ctx, c)
		require.ErrorIs(t, err, rediscache.ErrOutcomeUnknown)
		require.ErrorIs(t, err, context.Canceled)
		s.HangUp()
	})
}

// A refusal proves that nothing was done, so both are sent again.
func TestAnAddOrATouchThatRedisRefusesForNowIsRetried(t *testing.T) {
	eachNewVerb(t, func(t *testing.T, v verbOf, conns rediscache.Option) {
		var refusals atomic.Int64
		s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
			if c.Name() == v.command && refusals.Add(-1) >= 0 {
				return []byte("-LOADING Redis is loading the dataset in memory\r\n"), false
			}
			return okTo(c), false
		})
		c := newCache(t, newPool(t, s.URL(), rediscache.WithMinIdle(1)), conns, unhurried)
		refusals.Store(3)
		require.NoError(t, v.call(t.Context(), c))
		require.Equal(t, 4, s.Count(v.command))
	})
}

// Some of these are replies to other commands of the cache. None may count as a success,
// and none as an Add that found a value.
func TestAReplyOfAnotherTypeIsNoOutcomeOfAnAddOrATouch(t *testing.T) {
	eachNewVerb(t, func(t *testing.T, v verbOf, conns rediscache.Option) {
		var reply atomic.Value
		s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
			if c.Name() == v.command {
				return []byte(reply.Load().(string)), false
			}
			return okTo(c), false
		})
		c := newCache(t, newPool(t, s.URL()), conns, unhurried)
		replies := []string{"+QUEUED\r\n", "$1\r\nv\r\n", "*0\r\n", "*-1\r\n"}
		if v.command == "SET" {
			replies = append(replies, ":1\r\n", ":0\r\n")
		} else {
			replies = append(replies, "+OK\r\n", "$-1\r\n")
		}
		for _, r := range replies {
			reply.Store(r)
			if r == "*-1\r\n" && v.command == "SET" {
				continue // a nil of RESP2 as well
			}
			require.ErrorIs(t, v.call(t.Context(), c), rediscache.ErrOutcomeUnknown, "%q", r)
		}
	})
}

// PERSIST returns 0 for a key that never expires and for no key. What PTTL returned
// before decides.
func TestATouchForEverDistinguishesAMissFromAKeyThatNeverExpires(t *testing.T) {
	for _, test := range []struct {
		pttl, persist string
		want          error
		refused       bool
	}{
		{pttl: ":-1", persist: ":0"},
		{pttl: ":-2", persist: ":0", want: rediscache.ErrNotFound},
		{pttl: ":5", persist: ":0", want: rediscache.ErrNotFound}, // it expired in between
		{pttl: ":5", persist: ":1"},
		{pttl: ":-2", persist: ":1"}, // it was stored in between
		{pttl: "-NOPERM pttl", persist: ":1"},
		{pttl: "-NOPERM pttl", persist: ":0", refused: true},
		{pttl: ":-1", persist: "-NOPERM persist", refused: true},
	} {
		s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
			switch c.Name() {
			case "PTTL":
				return []byte(test.pttl + "\r\n"), false
			case "PERSIST":
				return []byte(test.persist + "\r\n"), false
			}
			return redistest.Default(c), false
		})
		for _, conns := range []int{0, 1} {
			c := newCache(t, newPool(t, s.URL()), rediscache.WithPipelineConns(conns))
			err := c.Touch(t.Context(), "k", rediscache.NoExpiry)
			if test.refused {
				require.ErrorContains(t, err, "NOPERM")
				require.NotErrorIs(t, err, rediscache.ErrOutcomeUnknown)
				require.NotErrorIs(t, err, rediscache.ErrNotFound)
			} else {
				require.Equal(t, test.want, err, "%s, %s", test.pttl, test.persist)
			}
			require.NoError(t, c.Close())
		}
	}
}

// A Delete fences a load under a lease, a Set and an Add leave another value than the
// load began from, and a Touch leaves the same value. Here is what each leaves behind.
func TestWhatAnAddOrATouchDoesToALoadInFlight(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		ctx := t.Context()
		type view struct {
			lease time.Duration
			stale bool // the load began from a stale value, with 30 minutes to live
		}
		add := func(c *rediscache.Cache) error {
			_, err := c.Add(ctx, "k", []byte("5"), time.Minute)
			return err
		}
		touch := func(ttl time.Duration) func(*rediscache.Cache) error {
			return func(c *rediscache.Cache) error { return c.Touch(ctx, "k", ttl) }
		}
		for name, test := range map[string]struct {
			view view
			do   func(*rediscache.Cache) error
			want string
			err  error
		}{
			"an Add":                                {view{lease: time.Minute}, add, "5", nil},
			"an Add without a lease":                {view{}, add, "2", nil},
			"an Add that finds a value":             {view{lease: time.Minute, stale: true}, add, "2", nil},
			"a Touch that finds none":               {view{lease: time.Minute}, touch(time.Hour), "2", rediscache.ErrNotFound},
			"a Touch that gives more time":          {view{lease: time.Minute, stale: true}, touch(3 * time.Hour), "1", nil},
			"a Touch for ever":                      {view{lease: time.Minute, stale: true}, touch(rediscache.NoExpiry), "1", nil},
			"a Touch that gives less":               {view{lease: time.Minute, stale: true}, touch(time.Minute), "2", nil},
			"a Touch for ever without a lease":      {view{stale: true}, touch(rediscache.NoExpiry), "2", nil},
			"a Touch with more time, without lease": {view{stale: true}, touch(3 * time.Hour), "2", nil},
		} {
			t.Run(name, func(t *testing.T) {
				s.Flush()
				c, other := newCache(t, newPool(t, s.URL()), unhurried), newCache(t, newPool(t, s.URL()), unhurried)
				v := newView(t, c, rediscache.JSON[int](),
					rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Soft: time.Minute, Lease: test.view.lease})
				if test.view.stale {
					s.Do("SET", "k", "1", "PX", (30 * time.Minute).Milliseconds())
				}
				got, err := v.GetOrLoad(ctx, "k", func(context.Context) (int, error) {
					require.ErrorIs(t, test.do(other), test.err)
					return 2, nil
				})
				require.NoError(t, err)
				require.Equal(t, 2, got, "the caller gets what it loaded")
				require.Equal(t, []byte(test.want), s.Do("GET", "k"))
				require.Equal(t, test.want != "2", c.Stats().Refused == 1)
				require.EqualValues(t, 0, s.Do("EXISTS", systest.LeaseKey("", "k")))
			})
		}
	})
}

// A Touch can make a stale value fresh: then nothing is loaded.
func TestATouchMakesAStaleValueFresh(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		c := newCache(t, newPool(t, s.URL()), unhurried)
		v := newView(t, c, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Soft: time.Minute})
		s.Do("SET", "k", "1", "PX", (30 * time.Minute).Milliseconds())
		require.NoError(t, c.Touch(t.Context(), "k", 2*time.Hour))
		got, err := v.GetOrLoad(t.Context(), "k", never[int](t))
		require.NoError(t, err)
		require.Equal(t, 1, got)
	})
}
