package systest_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"slices"
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

// Each method that deletes a key is called while a load is in flight in another process.
func TestEveryDeleteIsAFence(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		v, loading := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
		_, deleting := systest.Process(t, s, rediscache.Policy{})
		h := rediscache.NewHandler(deleting)
		undone := 0
		const rounds = 100
		for i := range rounds {
			key := fmt.Sprint("k", i)
			_, err := v.GetOrLoad(t.Context(), key, func(context.Context) (int, error) {
				switch i % 3 {
				case 0:
					n, err := deleting.Delete(t.Context(), key, "and another")
					return 1, cmpErr(n, err)
				case 1:
					w := redistest.Serve(h, httptest.NewRequest("DELETE", "/cache/"+key, nil))
					require.Equal(t, 404, w.Code)
					return 1, nil
				}
				n, err := intView(deleting, rediscache.Policy{TTL: time.Hour}).Delete(t.Context(), key)
				return 1, cmpErr(n, err)
			})
			require.NoError(t, err)
			if s.Do("EXISTS", key) == int64(1) {
				undone++
			}
		}
		require.Zero(t, undone)
		require.EqualValues(t, rounds, loading.Stats().Refused)
		require.EqualValues(t, 0, s.Do("DBSIZE"), "no lease is left")
	})
}

func cmpErr(n int, err error) error {
	if err == nil && n != 0 {
		err = fmt.Errorf("%d deleted, where there was nothing", n)
	}
	return err
}

// waysServers are servers that refuse commands of leases, and the way that is left there.
var waysServers = map[string]struct {
	args    []string
	acl     []any
	way     string
	refused []string // commands that are asked for once
}{
	"everything is allowed":          {nil, nil, "scripts", nil},
	"no scripts":                     {nil, []any{"-@scripting"}, "transactions", []string{"evalsha"}},
	"no EVAL":                        {[]string{"--rename-command", "EVAL", ""}, nil, "transactions", []string{"evalsha"}},
	"no EVALSHA":                     {[]string{"--rename-command", "EVALSHA", ""}, nil, "transactions", nil},
	"no scripts and no transactions": {nil, []any{"-@scripting", "-@transaction"}, "none", []string{"evalsha", "watch"}},
	"no scripts and no MULTI":        {nil, []any{"-@scripting", "-multi"}, "none", []string{"evalsha", "multi"}},
	"no scripts and no EXEC":         {nil, []any{"-@scripting", "-exec"}, "none", []string{"evalsha", "exec"}},
	"no leases":                      {nil, []any{"resetkeys", "~k?"}, "none", nil},
}

// eachWayOfLeases runs f on servers that refuse commands of leases.
func eachWayOfLeases(t *testing.T, f func(t *testing.T, s *redistest.Server, url, way string, refused []string)) {
	t.Helper()
	for name, c := range waysServers {
		t.Run(name, func(t *testing.T) {
			s := redistest.Start(t, c.args...)
			s.Do("ACL", slices.Concat([]any{"SETUSER", "app", "on", ">" + secret, "~*", "+@all"}, c.acl)...)
			f(t, s, "redis://app:"+secret+"@"+s.Addr, c.way, c.refused)
		})
	}
}

func TestLoadsUnderALeaseAreStoredWhateverRedisRefuses(t *testing.T) {
	eachWayOfLeases(t, func(t *testing.T, s *redistest.Server, url, way string, refused []string) {
		redistest.NoLeaks(t)
		for _, conns := range []int{0, 2} {
			s.Flush()
			s.Do("CONFIG", "RESETSTAT")
			var heard systest.ErrorsOf
			c := newCache(t, newPool(t, url), rediscache.WithObserver(&heard), rediscache.WithPipelineConns(conns))
			v := systest.NewView(t, c, rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour, TTL: time.Hour, Stale: time.Hour, Soft: time.Minute})
			for i := range 4 {
				key := fmt.Sprint("k", i)
				got, err := v.GetOrLoad(t.Context(), key, systest.Returns(i))
				require.NoError(t, err)
				require.Equal(t, i, got)
				require.Equal(t, []byte(strconv.Itoa(i)), s.Do("GET", key), "it is stored")
				require.InDelta(t, (2 * time.Hour).Milliseconds(), s.Do("PTTL", key), 60_000)

				makeStale := func() { s.Do("PEXPIRE", key, (time.Hour - time.Minute).Milliseconds()) }
				makeStale()
				got, err = v.GetOrLoad(t.Context(), key, systest.Returns(i+10))
				require.NoError(t, err)
				require.Equal(t, i+10, got)
				require.Equal(t, []byte(strconv.Itoa(i+10)), s.Do("GET", key), "it is stored again")

				makeStale()
				_, err = v.GetOrLoad(t.Context(), key, systest.Fails[int](rediscache.ErrNotFound))
				require.ErrorIs(t, err, rediscache.ErrNotFound)
				require.EqualValues(t, 0, s.Do("EXISTS", key), "it is removed")

				_, err = v.GetOrLoad(t.Context(), key, systest.Fails[int](systest.ErrDatabase))
				require.Equal(t, systest.ErrDatabase, err)
				require.EqualValues(t, 0, s.Do("DBSIZE"), "no lease is left")
			}
			events := heard.All()
			if way == "none" {
				require.Len(t, events, 1, "it is said once")
				require.ErrorContains(t, events[0], "stored as without Policy.Lease")
				require.ErrorContains(t, events[0], "NOPERM")
			} else {
				require.Empty(t, events)
			}
			stats := s.CommandStats()
			for _, command := range refused {
				require.LessOrEqual(t, stats[command].Rejected+stats[command].Failed, 1, "%s is not asked for each time", command)
			}
		}
	})
}

func TestNoCallerWaitsForALeaseThatCannotWork(t *testing.T) {
	eachWayOfLeases(t, func(t *testing.T, s *redistest.Server, url, way string, _ []string) {
		if way != "none" {
			t.Skip("it works")
		}
		a := systest.NewView(t, newCache(t, newPool(t, url)), rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour})
		b := systest.NewView(t, newCache(t, newPool(t, url)), rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour})
		_, err := a.GetOrLoad(t.Context(), "k0", systest.Returns(0)) // and finds out
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // not an hour
		defer cancel()
		got, err := a.GetOrLoad(ctx, "k1", func(ctx context.Context) (int, error) {
			return b.GetOrLoad(ctx, "k1", systest.Returns(7))
		})
		require.NoError(t, err)
		require.Equal(t, 7, got)
	})
}

// A script and a transaction must refuse a fill in the same cases.
func TestAFillByTransactionIsRefusedAfterAChange(t *testing.T) {
	s := redistest.Start(t)
	s.Do("ACL", "SETUSER", "app", "on", ">"+secret, "~*", "+@all", "-@scripting")
	url := "redis://app:" + secret + "@" + s.Addr
	redistest.NoLeaks(t)
	p := rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Lease: 10 * time.Second, Soft: time.Minute, Negative: time.Minute}
	c := newCache(t, newPool(t, url))
	a := systest.NewView(t, c, rediscache.JSON[int](), p)
	b, cb := systest.Process(t, s, p)
	ctx := t.Context()
	for name, between := range map[string]func() error{
		"nothing":                func() error { return nil },
		"a View's Delete":        func() error { return systest.Second(b.Delete(ctx, "k")) },
		"a Cache's Delete":       func() error { return systest.Second(cb.Delete(ctx, "k")) },
		"a View's Set":           func() error { return b.Set(ctx, "k", 5) },
		"a View's Set, and gone": func() error { return systest.Second(s.Do("DEL", "k"), b.Set(ctx, "k", 5)) },
		"a Cache's Set":          func() error { return cb.Set(ctx, "k", []byte("5"), 0) },
		"a SET of the same":      func() error { return cb.Set(ctx, "k", []byte("1"), 0) },
		"the same with a TTL":    func() error { return cb.Set(ctx, "k", []byte("1"), 2*time.Hour) },
		"the lease's end":        func() error { s.Advance(10 * time.Second); return nil },
	} {
		for _, state := range []string{"absent", "stale", "undecodable"} {
			for result, outcome := range map[string]error{"a value": nil, "none": rediscache.ErrNotFound} {
				s.Flush()
				switch state {
				case "stale":
					require.NoError(t, a.Set(ctx, "k", 1))
					s.Advance(time.Hour + time.Minute)
				case "undecodable":
					s.Do("SET", "k", "junk")
				}
				before := c.Stats().Refused
				var held any
				_, err := a.GetOrLoad(ctx, "k", func(context.Context) (int, error) {
					require.NoError(t, between())
					held = s.Do("GET", "k")
					return 2, outcome
				})
				require.ErrorIs(t, err, outcome)
				if name == "nothing" {
					require.Equal(t, map[string]any{"a value": []byte("2"), "none": []byte{}}[result], s.Do("GET", "k"))
				} else {
					require.Equal(t, held, s.Do("GET", "k"), "%s, %s, %s", name, state, result)
					require.EqualValues(t, 1, c.Stats().Refused-before, "%s, %s, %s", name, state, result)
				}
				require.EqualValues(t, 0, s.Do("EXISTS", systest.LeaseKey("", "k")))
			}
		}
	}
	require.Zero(t, c.Stats().Errors)
}

// miniredis has no ACL, so a proxy in front of it refuses scripts.
func TestManyKeysAreFilledByTransactionsTogether(t *testing.T) {
	s := redistest.Start(t)
	s.Do("ACL", "SETUSER", "app", "on", ">"+secret, "~*", "+@all", "-@scripting")
	c := newCache(t, newPool(t, "redis://app:"+secret+"@"+s.Addr))
	v := systest.NewView(t, c, rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour})
	other, _ := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
	keys := make([]string, 500)
	for i := range keys {
		keys[i] = fmt.Sprint("k", i)
	}
	s.Do("CONFIG", "RESETSTAT")
	values, err := v.GetOrLoadMany(t.Context(), keys, func(ctx context.Context, keys []string) (map[string]int, error) {
		require.NoError(t, systest.Second(other.Delete(ctx, "k7")))
		return loadTwos(ctx, keys)
	})
	require.NoError(t, err)
	require.Len(t, values, len(keys))
	require.EqualValues(t, len(keys)-1, s.Do("DBSIZE"), "all but the deleted one are stored, and no lease is left")
	require.EqualValues(t, len(keys)-1, c.Stats().Sets)
	require.EqualValues(t, 1, c.Stats().Refused)
	require.LessOrEqual(t, s.CommandStats()["exec"].Calls, len(keys)/32+1)
}

// If a change of one key aborts a transaction, the other keys are still stored.
func TestATransactionThatIsAbortedIsSplit(t *testing.T) {
	s := redistest.Start(t)
	proxy := redistest.NewProxy(t, s.Addr)
	s.Do("ACL", "SETUSER", "app", "on", ">"+secret, "~*", "+@all", "-@scripting")
	c := newCache(t, newPool(t, "redis://app:"+secret+"@"+proxy.Addr), rediscache.WithTimeout(10*time.Second))
	v := systest.NewView(t, c, rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour})
	_, err := v.GetOrLoad(t.Context(), "it is known that scripts are refused", systest.Returns(0))
	require.NoError(t, err)
	other, _ := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
	keys := strings.Fields("a b c d e f g h")
	var wg sync.WaitGroup
	values, err := v.GetOrLoadMany(t.Context(), keys, func(ctx context.Context, keys []string) (map[string]int, error) {
		proxy.Delay(redistest.Down, time.Second, 0) // between the look and the EXEC
		s.Do("CONFIG", "RESETSTAT")
		wg.Go(func() {
			redistest.Eventually(t, func() bool { return s.CommandStats()["watch"].Calls == 1 }, "they are watched")
			_, err := other.Delete(t.Context(), "c")
			if err != nil {
				t.Error(err)
			}
			proxy.Delay(redistest.Down, 0, 0)
		})
		return loadTwos(ctx, keys)
	})
	wg.Wait()
	require.NoError(t, err)
	require.Len(t, values, len(keys))
	require.EqualValues(t, 0, s.Do("EXISTS", "c"))
	require.EqualValues(t, len(keys)-1, s.Do("EXISTS", "a", "b", "d", "e", "f", "g", "h"))
	require.EqualValues(t, 1, c.Stats().Refused)
	require.Zero(t, c.Stats().Errors)
	require.Greater(t, s.CommandStats()["exec"].Calls, 1)
}

// Fills and releases on a shared pool leave no WATCH on its connections.
func TestATransactionLeavesNoWatchBehind(t *testing.T) {
	s := redistest.Start(t)
	s.Do("ACL", "SETUSER", "app", "on", ">"+secret, "~*", "+@all", "-@scripting")
	pools := map[string]rediscache.Pool{
		"ours": newPool(t, "redis://app:"+secret+"@"+s.Addr, rediscache.WithMinIdle(1), rediscache.WithMaxActive(1)),
		"redigo's": &redis.Pool{MaxActive: 1, MaxIdle: 1, Wait: true, Dial: func() (redis.Conn, error) {
			return redis.DialURL("redis://app:" + secret + "@" + s.Addr)
		}},
	}
	for name, pool := range pools {
		s.Flush()
		s.Do("CONFIG", "RESETSTAT")
		c := newCache(t, pool)
		v := systest.NewView(t, c, rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour})
		deleted := func(ctx context.Context) (int, error) { return 1, systest.Second(c.Delete(ctx, "k")) }
		for _, load := range []func(context.Context) (int, error){systest.Returns(1), systest.Fails[int](systest.ErrDatabase), deleted} {
			_, _ = v.GetOrLoad(t.Context(), "k", load)
			letRest(t)
			conn, err := pool.GetContext(t.Context())
			require.NoError(t, err)
			require.NoError(t, systest.Second(conn.Do("MULTI")))
			require.NoError(t, systest.Second(conn.Do("PING")))
			s.Do("SET", "k", "1")
			s.Do("SET", systest.LeaseKey("", "k"), "1")
			reply, err := conn.Do("EXEC")
			require.NoError(t, err)
			require.NotNil(t, reply, "%s: it is not aborted by somebody else's watch", name)
			require.NoError(t, conn.Close())
			s.Flush()
		}
		require.Equal(t, 3, s.CommandStats()["watch"].Calls, "%s: each load ended in a transaction", name)
		require.NoError(t, c.Close())
		require.NoError(t, pool.Close())
	}
}

// A reply to EXEC with another number of elements than commands belongs to none of the commands.
func TestATransactionWithAnExtraReplyHasAnUnknownOutcome(t *testing.T) {
	redistest.NoLeaks(t)
	var lease atomic.Pointer[[]string] // its name and its token
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		held := lease.Load()
		switch name := c.Name(); {
		case name == "SET" && slices.Contains(c.Args, "NX"):
			held := c.Args[1:3]
			lease.Store(&held)
		case name == "GET" && held != nil && (*held)[0] == c.Args[1]:
			return fmt.Appendf(nil, "$%d\r\n%s\r\n", len((*held)[1]), (*held)[1]), false
		case name == "WATCH", name == "MULTI":
			return []byte("+OK\r\n"), false
		case name == "EXEC":
			return []byte("*5\r\n:1\r\n+OK\r\n+OK\r\n-ERR one\r\n-ERR more\r\n"), false
		case name == "DEL" || name == "SET":
			return []byte("+QUEUED\r\n"), false
		}
		return redistest.Default(c), false
	})
	c := newCache(t, newPool(t, s.URL()), rediscache.WithPipelineConns(1))
	v := systest.NewView(t, c, rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour, TTL: time.Hour})
	got, err := v.GetOrLoad(t.Context(), "k", systest.Returns(1))
	require.NoError(t, err)
	require.Equal(t, 1, got)
	require.Positive(t, s.Count("EXEC"))
}
