package systest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/systest"
)

// permissions are what each verb needs in the rules of a Redis user, and no less.
var permissions = []struct {
	verb  string
	needs string // without those after a slash it does as without a lease
	use   func(ctx context.Context, c *rediscache.Cache) error
}{
	{"Get", "get", func(ctx context.Context, c *rediscache.Cache) error { return systest.Second(c.Get(ctx, "old")) }},
	{"Set", "set", func(ctx context.Context, c *rediscache.Cache) error { return c.Set(ctx, "k", nil, time.Minute) }},
	{"Delete", "del", func(ctx context.Context, c *rediscache.Cache) error { return systest.Second(c.Delete(ctx, "old")) }},
	{"GetMany", "mget", func(ctx context.Context, c *rediscache.Cache) error {
		return systest.Second(c.GetMany(ctx, "old", "k"))
	}},
	{"SetMany", "set", func(ctx context.Context, c *rediscache.Cache) error {
		return c.SetMany(ctx, map[string][]byte{"k": nil, "l": nil}, rediscache.NoExpiry)
	}},
	{"TTL", "pttl", func(ctx context.Context, c *rediscache.Cache) error { return systest.Second(c.TTL(ctx, "old")) }},
	{"Add", "set", func(ctx context.Context, c *rediscache.Cache) error {
		return systest.Second(c.Add(ctx, "k", nil, time.Minute))
	}},
	{"Touch", "pexpire", func(ctx context.Context, c *rediscache.Cache) error { return c.Touch(ctx, "old", time.Minute) }},
	{"Touch for ever", "persist", func(ctx context.Context, c *rediscache.Cache) error {
		return c.Touch(ctx, "old", rediscache.NoExpiry)
	}},
	{"Touch of what never expires", "persist pttl", func(ctx context.Context, c *rediscache.Cache) error {
		return errors.Join(c.Touch(ctx, "old", rediscache.NoExpiry), c.Touch(ctx, "old", rediscache.NoExpiry))
	}},
	{"Clear", "scan unlink", func(ctx context.Context, c *rediscache.Cache) error { return systest.Second(c.Clear(ctx)) }},
	{"Ping", "ping", func(ctx context.Context, c *rediscache.Cache) error { return c.Ping(ctx) }},
	{"View.Get", "get", func(ctx context.Context, c *rediscache.Cache) error {
		return systest.Second(intView(c, rediscache.Policy{}).Get(ctx, "old"))
	}},
	{"View.Set", "set", func(ctx context.Context, c *rediscache.Cache) error {
		return intView(c, rediscache.Policy{}).Set(ctx, "k", 2)
	}},
	{"View.Delete", "del", func(ctx context.Context, c *rediscache.Cache) error {
		return systest.Second(intView(c, rediscache.Policy{Lease: time.Second}).Delete(ctx, "old"))
	}},
	{"View.GetMany", "mget", func(ctx context.Context, c *rediscache.Cache) error {
		return systest.Second(intView(c, rediscache.Policy{}).GetMany(ctx, "old", "k"))
	}},
	{"View.GetOrLoad", "get set", func(ctx context.Context, c *rediscache.Cache) error {
		return systest.Second(intView(c, rediscache.Policy{}).GetOrLoad(ctx, "k", systest.Returns(2)))
	}},
	{"View.GetOrLoad of a stale value", "get pttl set", func(ctx context.Context, c *rediscache.Cache) error {
		return systest.Second(intView(c, stalePolicy).GetOrLoad(ctx, "old", systest.Returns(2)))
	}},
	{"View.GetOrLoad of a stale value that is gone", "get pttl del", func(ctx context.Context, c *rediscache.Cache) error {
		_, err := intView(c, stalePolicy).GetOrLoad(ctx, "old", systest.Fails[int](rediscache.ErrNotFound))
		return unlessMissing(err)
	}},
	{"View.GetOrLoadMany", "mget set", func(ctx context.Context, c *rediscache.Cache) error {
		return systest.Second(intView(c, rediscache.Policy{}).GetOrLoadMany(ctx, []string{"k", "old"}, loadTwos))
	}},
	{"View.GetOrLoadMany of stale values", "mget pttl set", func(ctx context.Context, c *rediscache.Cache) error {
		return systest.Second(intView(c, stalePolicy).GetOrLoadMany(ctx, []string{"k", "old"}, loadTwos))
	}},
	{"View.GetOrLoad under a lease", "get pttl set / del evalsha eval", func(ctx context.Context, c *rediscache.Cache) error {
		return systest.Second(intView(c, rediscache.Policy{Lease: time.Second}).GetOrLoad(ctx, "k", systest.Returns(2)))
	}},
	{"View.GetOrLoad under a lease without scripts", "get pttl set / del watch multi exec", func(ctx context.Context, c *rediscache.Cache) error {
		return systest.Second(intView(c, rediscache.Policy{Lease: time.Second}).GetOrLoad(ctx, "k", systest.Returns(2)))
	}},
	{"the handler", "get set del", func(ctx context.Context, c *rediscache.Cache) error {
		h := rediscache.NewHandler(c, rediscache.WithLogger(redistest.DebugLogger(io.Discard)))
		for _, method := range []string{"POST", "GET", "HEAD", "DELETE"} {
			if w := redistest.Serve(h, httptest.NewRequest(method, "/cache/k?value=v", nil).WithContext(ctx)); w.Code != 200 {
				return fmt.Errorf("%s: %d", method, w.Code)
			}
		}
		return nil
	}},
}

// stalePolicy finds "old" stale, which has an hour to live, and waits for the load.
var stalePolicy = rediscache.Policy{TTL: time.Minute, Stale: 2 * time.Hour, Soft: 10 * time.Second}

func unlessMissing(err error) error {
	if errors.Is(err, rediscache.ErrNotFound) {
		return nil
	}
	return err
}

func intView(c *rediscache.Cache, p rediscache.Policy) *rediscache.View[int] {
	v, err := rediscache.Of(c, rediscache.JSON[int](), p)
	if err != nil {
		panic(err)
	}
	return v
}

func loadTwos(_ context.Context, keys []string) (map[string]int, error) {
	values := make(map[string]int)
	for _, key := range keys {
		values[key] = 2
	}
	return values, nil
}

// requireDenied wants an error that is Redis's refusal and nothing that passes with time.
func requireDenied(t *testing.T, err error) {
	t.Helper()
	var answer redis.Error
	require.ErrorAs(t, err, &answer)
	require.True(t, resp.MeaningOf(strings.TrimPrefix(string(answer), "EXECABORT Transaction discarded because of: ")).Has(resp.Denied), "%q", answer)
	for _, other := range []error{
		rediscache.ErrNotFound, rediscache.ErrUnavailable, rediscache.ErrPoolExhausted, rediscache.ErrOutcomeUnknown,
		rediscache.ErrWrongType, rediscache.ErrClosed, context.Canceled, context.DeadlineExceeded,
	} {
		require.NotErrorIs(t, err, other)
	}
}

// keySpace is all that a server holds, of strings.
func keySpace(s *redistest.Server) map[string]string {
	pairs, _ := s.Do("EVAL", `
local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
	all[#all + 1] = key
	all[#all + 1] = redis.call('GET', key)
end
return all`, 0).([]any)
	all := make(map[string]string)
	for i := 0; i < len(pairs); i += 2 {
		all[string(pairs[i].([]byte))] = string(pairs[i+1].([]byte))
	}
	return all
}

// limitUser lets the user app do these commands below ns: and nothing else.
func limitUser(s *redistest.Server, commands ...string) {
	args := []any{"SETUSER", "app", "reset", "on", ">" + secret, "~ns:*"}
	for _, command := range commands {
		args = append(args, "+"+command)
	}
	s.Do("ACL", args...)
}

func eachWay(t *testing.T, f func(t *testing.T, lanes rediscache.Option)) {
	t.Helper()
	for name, lanes := range map[string]rediscache.Option{"shared": {}, "a connection a command": rediscache.WithPipelineConns(0)} {
		t.Run(name, func(t *testing.T) { f(t, lanes) })
	}
}

// The pool itself needs nothing: that PING is denied is an answer.
func TestEachVerbNeedsItsCommandsAndNoMore(t *testing.T) {
	s := poolServer(t)
	limitUser(s)
	p := newPool(t, "redis://app:"+secret+"@"+s.Addr, sizes(2, 4, rediscache.WithHealthCheckAfter(time.Millisecond))...)
	requireReady(t, p)
	all := map[string]bool{}
	eachWay(t, func(t *testing.T, lanes rediscache.Option) {
		var heard systest.ErrorsOf
		var own, foreign *rediscache.Cache
		reset := func(commands ...string) {
			own = newCache(t, p, rediscache.WithPrefix("ns:"), rediscache.WithObserver(&heard), lanes)
			foreign = newCache(t, p, rediscache.WithPrefix("other:"), rediscache.WithObserver(&heard), lanes)
			limitUser(s, commands...)
			s.Do("SCRIPT", "FLUSH")
			s.Flush()
			s.Do("SET", "ns:old", "1", "PX", time.Hour.Milliseconds())
			s.Do("SET", "other:old", "1", "PX", time.Hour.Milliseconds())
		}
		for _, v := range permissions {
			vital, others, _ := strings.Cut(v.needs, "/")
			needs := append(strings.Fields(vital), strings.Fields(others)...)
			reset(needs...)
			require.NoError(t, v.use(t.Context(), own), v.verb)
			require.NoError(t, heard.Take(), v.verb)
			for i, command := range needs {
				all[command] = true
				reset(slices.Delete(slices.Clone(needs), i, i+1)...)
				before := keySpace(s)
				err := v.use(t.Context(), own)
				err = errors.Join(err, heard.Take())
				require.Error(t, err, "%s without %s", v.verb, command)
				requireDenied(t, err)
				if i >= len(strings.Fields(vital)) {
					require.Equal(t, "2", keySpace(s)["ns:k"], "%s without %s", v.verb, command)
				} else if v.verb != "the handler" { // whose first requests are three verbs
					s.Do("DEL", systest.LeaseKey("ns:", "k")) // which ends by itself
					require.Equal(t, before, keySpace(s), "%s without %s", v.verb, command)
				}
			}
			if v.verb == "Ping" {
				continue
			}
			reset(needs...)
			before := keySpace(s)
			err := v.use(t.Context(), foreign)
			requireDenied(t, errors.Join(err, heard.Take()))
			require.Equal(t, before, keySpace(s), "%s elsewhere", v.verb)
		}
	})
	var whole []string
	for command := range all {
		whole = append(whole, command)
	}
	slices.Sort(whole)
	require.Equal(t, strings.Fields("del eval evalsha exec get mget multi persist pexpire ping pttl scan set unlink watch"), whole)
	require.Zero(t, p.Stats().DialFailures)
	const halfway = 2 * 4 // transactions without one of del, watch, multi and exec
	require.LessOrEqual(t, p.Stats().Closed.Broken, int64(halfway), "another refusal costs no connection")
}

func TestADatabaseNeedsACommandAndANameDoesNot(t *testing.T) {
	s := poolServer(t)
	limitUser(s)
	p := newPool(t, "redis://app:"+secret+"@"+s.Addr+"/1", sizes(1, 1)...)
	_, err := p.GetContext(t.Context())
	require.ErrorIs(t, err, rediscache.ErrUnavailable)
	require.ErrorContains(t, err, "NOPERM")
	limitUser(s, "select")
	requireReady(t, p)

	limitUser(s)
	named := sizes(1, 1, rediscache.WithClientName(t.Name()))
	requireReady(t, newPool(t, "redis://app:"+secret+"@"+s.Addr, named...))
	require.Empty(t, s.Clients(t.Name()))
	limitUser(s, "client|setname")
	requireReady(t, newPool(t, "redis://app:"+secret+"@"+s.Addr, named...))
	require.Len(t, s.Clients(t.Name()), 1)
}

// readers read until they are stopped, and count what failed.
type readers struct {
	stop   chan struct{}
	wg     sync.WaitGroup
	done   atomic.Int64
	mu     sync.Mutex // guards failed
	failed []error
}

// startReaders reads "k" over each cache with some goroutines.
func startReaders(t *testing.T, caches ...*rediscache.Cache) *readers {
	r := &readers{stop: make(chan struct{})}
	for i := range 4 * len(caches) {
		r.wg.Go(func() {
			for {
				select {
				case <-r.stop:
					return
				default:
				}
				if got, err := caches[i%len(caches)].Get(t.Context(), "k"); err != nil || string(got) != "v" {
					r.mu.Lock()
					r.failed = append(r.failed, fmt.Errorf("%q: %w", got, err))
					r.mu.Unlock()
				}
				r.done.Add(1)
			}
		})
	}
	return r
}

// end stops them and returns how many reads there were and which failed.
func (r *readers) end() (int64, []error) {
	close(r.stop)
	r.wg.Wait()
	return r.done.Load(), r.failed
}

// rotating is a pool whose password can be changed, and two caches on it.
func rotating(t *testing.T, s *redistest.Server, life time.Duration) (
	p *rediscache.WarmPool, password *atomic.Value, shared, single *rediscache.Cache,
) {
	t.Helper()
	password = new(atomic.Value)
	password.Store("old-" + secret)
	p = startPool(t, s, sizes(12, 20, rediscache.WithMaxConnLifetime(life),
		rediscache.WithCredentials(func(context.Context) (string, string, error) {
			return "app", password.Load().(string), nil
		}))...)
	requireReady(t, p)
	shared, single = newCache(t, p, unhurried), newCache(t, p, unhurried, rediscache.WithPipelineConns(0))
	require.NoError(t, shared.Set(t.Context(), "k", []byte("v"), rediscache.NoExpiry))
	return p, password, shared, single
}

// eventuallyRenewed waits until none of the connections is left that were there before.
func eventuallyRenewed(t *testing.T, s *redistest.Server, before []int64) {
	t.Helper()
	redistest.Eventually(t, func() bool {
		return !slices.ContainsFunc(clientIDs(t, s), func(id int64) bool { return slices.Contains(before, id) })
	}, "all connections are new")
}

func TestAPasswordThatRotatesFailsNoRead(t *testing.T) {
	s := poolServer(t, "--user", "app", "on", ">old-"+secret, "~*", "+@all")
	p, password, shared, single := rotating(t, s, 150*time.Millisecond)
	load := startReaders(t, shared, single)
	for range 2 { // there and back
		from := password.Load().(string)
		to := "new-" + secret
		if from == to {
			to = "old-" + secret
		}
		s.Do("ACL", "SETUSER", "app", ">"+to)
		password.Store(to)
		redistest.Eventually(t, func() bool { // no dial that was told the other
			st := p.Stats()
			return st.Open == st.Idle+st.InUse
		}, "no dial is under way")
		s.Do("ACL", "SETUSER", "app", "<"+from)
		dials := p.Stats().Dials
		redistest.Eventually(t, func() bool { return p.Stats().Dials >= dials+8 }, "connections are renewed")
	}
	ids := clientIDs(t, s)
	reads, failed := load.end()
	require.Empty(t, failed)
	eventuallyRenewed(t, s, ids) // those of the lanes too, once they rest
	require.Zero(t, p.Stats().DialFailures)
	t.Logf("%d reads, %d dials", reads, p.Stats().Dials)
}

// The server takes the new password alone before the program knows it. What is open serves on, as long
// as its lifetime is not over; nothing needs a restart when the program knows it too.
func TestAPasswordThatIsReplacedAbruptlyFailsNoReadOfAnOpenConnection(t *testing.T) {
	s := poolServer(t, "--user", "app", "on", ">old-"+secret, "~*", "+@all")
	p, password, shared, single := rotating(t, s, 0)
	load := startReaders(t, shared, single)
	s.Do("ACL", "SETUSER", "app", "resetpass", ">new-"+secret)
	conns := borrowMany(t, p, 2) // the floor is to be filled
	redistest.Eventually(t, func() bool { return p.Stats().DialFailures >= 3 }, "dials are refused")
	giveBack(t, conns...)
	since := load.done.Load()
	redistest.Eventually(t, func() bool { return load.done.Load() > since+500 }, "what is open is read from")
	reads, failed := load.end()
	require.Empty(t, failed)
	require.Zero(t, p.Stats().Closed, "a dial that is refused costs no open connection")
	t.Logf("%d reads", reads)

	letRest(t)
	s.KillClients()
	redistest.Eventually(t, func() bool { // the kill may have met a dial
		_, err := single.Get(t.Context(), "k")
		return errors.Is(err, rediscache.ErrUnavailable) && strings.Contains(err.Error(), "WRONGPASS")
	}, "a new one is refused")
	password.Store("new-" + secret)
	redistest.Eventually(t, func() bool { return single.Ping(t.Context()) == nil && shared.Ping(t.Context()) == nil }, "both serve")
	requireReady(t, p)
	requireSimultaneous(t, p, 16)
}
