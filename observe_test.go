package rediscache_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

func TestEachCallHasAnEventWithThePrefix(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		var log eventLog
		ctx := t.Context()
		root := newCache(t, newPool(t, s.URL()), rediscache.WithPrefix("app:"), rediscache.WithObserver(&log))
		c := root.Sub("users:")
		check := func(call string, do func() error, want ...rediscache.Event) {
			t.Helper()
			err := do()
			for i, e := range log.events {
				require.Positive(t, e.Took, call)
				require.NoError(t, e.Err, call)
				require.Equal(t, "app:users:", e.Prefix, call)
				log.events[i].Took, log.events[i].Prefix = 0, ""
			}
			require.Equal(t, want, log.events, "%s: %v", call, err)
			log.events = nil
		}
		const ok = rediscache.OutcomeOK
		check("set", func() error { return c.Set(ctx, "a", nil, 0) }, rediscache.Event{Op: "set", Key: "a", Outcome: ok, Count: 1})
		check("add that stores", func() error { _, err := c.Add(ctx, "b", nil, 0); return err },
			rediscache.Event{Op: "add", Key: "b", Outcome: ok, Count: 1})
		check("add of what exists", func() error { _, err := c.Add(ctx, "b", nil, 0); return err },
			rediscache.Event{Op: "add", Key: "b", Outcome: ok})
		check("set many", func() error { return c.SetMany(ctx, map[string][]byte{"c": nil, "d": nil}, 0) },
			rediscache.Event{Op: "set many", Outcome: ok, Count: 2})
		check("touch", func() error { return c.Touch(ctx, "a", time.Minute) }, rediscache.Event{Op: "touch", Key: "a", Outcome: ok})
		check("touch of nothing", func() error { return c.Touch(ctx, "x", time.Minute) },
			rediscache.Event{Op: "touch", Key: "x", Outcome: rediscache.OutcomeMiss})
		check("ttl", func() error { _, err := c.TTL(ctx, "a"); return err }, rediscache.Event{Op: "ttl", Key: "a", Outcome: ok})
		check("ttl without an end", func() error { _, err := c.TTL(ctx, "b"); return err }, rediscache.Event{Op: "ttl", Key: "b", Outcome: ok})
		check("ttl of nothing", func() error { _, err := c.TTL(ctx, "x"); return err },
			rediscache.Event{Op: "ttl", Key: "x", Outcome: rediscache.OutcomeMiss})
		check("delete", func() error { _, err := c.Delete(ctx, "a"); return err },
			rediscache.Event{Op: "delete", Key: "a", Outcome: ok, Count: 1})
		check("delete of many", func() error { _, err := c.Delete(ctx, "b", "x"); return err },
			rediscache.Event{Op: "delete", Outcome: ok, Count: 1})
		check("clear", func() error { _, err := c.Clear(ctx); return err }, rediscache.Event{Op: "clear", Outcome: ok, Count: 2})
		check("ping", func() error { return c.Ping(ctx) }, rediscache.Event{Op: "ping", Outcome: ok})
		v := newView(t, c, rediscache.JSON[int](), rediscache.Policy{})
		check("a view's set", func() error { return v.Set(ctx, "v", 1) }, rediscache.Event{Op: "set", Key: "v", Outcome: ok, Count: 1})
		check("a call without keys", func() error { _, err := c.Delete(ctx); return err })
		check("a call with an invalid TTL", func() error { return c.Set(ctx, "a", nil, -5) })
	})
}

func TestASubCountsForItselfAndItsParent(t *testing.T) {
	s := redistest.StartMini(t)
	c, ctx := newCache(t, newPool(t, s.URL())), t.Context()
	users := c.Sub("users:")
	orders, old := c.Sub("orders:"), users.Sub("old:")
	require.NoError(t, c.Set(ctx, "k", nil, 0))
	require.NoError(t, users.Set(ctx, "k", nil, 0))
	_, err := old.Get(ctx, "k")
	require.ErrorIs(t, err, rediscache.ErrNotFound)
	_, err = newView(t, users, rediscache.JSON[int](), rediscache.Policy{}).GetOrLoad(ctx, "v", returns(1))
	require.NoError(t, err)
	require.Equal(t, rediscache.Stats{Sets: 3, Misses: 2, Loads: 1}, c.Stats())
	require.Equal(t, rediscache.Stats{Sets: 2, Misses: 2, Loads: 1}, users.Stats())
	require.Equal(t, rediscache.Stats{Misses: 1}, old.Stats())
	require.Zero(t, orders.Stats())
}

// tracer is an observer that checks that calls begin and end in pairs.
type tracer struct {
	t     *testing.T
	mu    sync.Mutex // guards open and ends
	open  map[*trace]bool
	ends  []string
	ended chan struct{} // holds one; a background load has ended
}

type trace struct {
	op     string
	parent *trace
}

type traceKey struct{}

func traceOf(ctx context.Context) *trace {
	tr, _ := ctx.Value(traceKey{}).(*trace)
	return tr
}

func (tr *tracer) Start(ctx context.Context, op, _ string) context.Context {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	one := &trace{op: op, parent: traceOf(ctx)}
	tr.open[one] = true
	return context.WithValue(ctx, traceKey{}, one)
}

func (tr *tracer) Observe(ctx context.Context, e rediscache.Event) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if one := traceOf(ctx); !tr.open[one] && e.Op != "fill" { // a load in the background stores after its call
		tr.t.Errorf("an event of %s outside of a call", e.Op)
	}
}

func (tr *tracer) End(ctx context.Context, op string, err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	one := traceOf(ctx)
	if !tr.open[one] || one.op != op {
		tr.t.Errorf("a call ends twice, or %s ends %s", op, one.op)
	}
	delete(tr.open, one)
	line := one.op
	if err != nil {
		line += ": " + err.Error()
	}
	tr.ends = append(tr.ends, line)
	if one.op == "load" {
		select {
		case tr.ended <- struct{}{}:
		default:
		}
	}
}

func TestCallsAndLoadsBeginAndEndInPairs(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		tr := &tracer{t: t, open: make(map[*trace]bool), ended: make(chan struct{}, 1)}
		c, ctx := newCache(t, newPool(t, s.URL()), rediscache.WithObserver(tr)), t.Context()
		v := newView(t, c, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour, Stale: time.Hour})
		ends := func(want ...string) {
			t.Helper()
			tr.mu.Lock()
			defer tr.mu.Unlock()
			require.Empty(t, tr.open)
			require.Equal(t, want, tr.ends)
			tr.ends = nil
		}
		missing := rediscache.ErrNotFound.Error()
		_ = c.Set(ctx, "a", []byte("1"), 0)
		_, _ = c.Add(ctx, "a", nil, 0)
		_ = c.SetMany(ctx, map[string][]byte{"b": nil}, 0)
		_, _ = c.Get(ctx, "a")
		_, _ = c.Get(ctx, "none")
		_, _ = c.GetMany(ctx, "a", "none")
		_, _ = c.TTL(ctx, "a")
		_ = c.Touch(ctx, "none", 0)
		_, _ = c.Delete(ctx, "a", "b")
		_ = c.Ping(ctx)
		ends("set", "add", "set many", "get", "get: "+missing, "get many", "ttl", "touch: "+missing, "delete", "ping")
		_, _ = c.Sub("p:").Clear(ctx)
		_ = v.Set(ctx, "v", 1)
		_, _ = v.Get(ctx, "v")
		_, _ = v.GetMany(ctx, "v")
		_, _ = v.Delete(ctx, "v")
		ends("clear", "set", "get", "get many", "delete")

		_, err := v.GetOrLoad(ctx, "l", func(ctx context.Context) (int, error) {
			require.Equal(t, &trace{"load", &trace{"get or load", nil}}, traceOf(ctx))
			return 1, nil
		})
		require.NoError(t, err)
		ends("load", "get or load")
		failure := errors.New("the database is down")
		_, err = v.GetOrLoadMany(ctx, []string{"l", "m"}, func(ctx context.Context, _ []string) (map[string]int, error) {
			require.Equal(t, &trace{"load", &trace{"get or load many", nil}}, traceOf(ctx))
			return nil, failure
		})
		require.ErrorIs(t, err, failure)
		ends("load: the database is down", "get or load many: the database is down")
		require.Panics(t, func() {
			_, _ = v.GetOrLoad(ctx, "p", func(context.Context) (int, error) { panic("oops") })
		})
		<-tr.ended
		tr.ends = nil

		s.Advance(time.Hour + time.Minute)
		_, err = v.GetOrLoad(ctx, "l", returns(2)) // in the background
		require.NoError(t, err)
		<-tr.ended
		require.NoError(t, c.Close())
		tr.mu.Lock()
		defer tr.mu.Unlock()
		require.ElementsMatch(t, []string{"get or load", "load"}, tr.ends)
	})
}

// step writes down when it is called.
type step struct {
	name  string
	lines *[]string
}

type stepKey struct{}

func (s step) Start(ctx context.Context, op, _ string) context.Context {
	outer, _ := ctx.Value(stepKey{}).(string)
	*s.lines = append(*s.lines, "start "+op+" "+outer+s.name)
	return context.WithValue(ctx, stepKey{}, outer+s.name)
}

func (s step) Observe(ctx context.Context, e rediscache.Event) {
	*s.lines = append(*s.lines, "observe "+e.Op+" "+ctx.Value(stepKey{}).(string)+" by "+s.name)
}

func (s step) End(_ context.Context, op string, _ error) {
	*s.lines = append(*s.lines, "end "+op+" "+s.name)
}

func TestObserversAreCalledInTheirOrder(t *testing.T) {
	var lines []string
	c := newCache(t, newPool(t, redistest.StartMini(t).URL()), rediscache.WithObserver(step{"a", &lines}),
		rediscache.WithObserver(nil), rediscache.WithObserver(step{"b", &lines}))
	require.NoError(t, c.Ping(t.Context()))
	require.Equal(t, []string{
		"start ping a", "start ping ab", "observe ping ab by a", "observe ping ab by b", "end ping b", "end ping a",
	}, lines)
}

// poolEvents keeps the events of a pool.
type poolEvents struct {
	mu     sync.Mutex // guards events
	events []rediscache.PoolEvent
}

func (p *poolEvents) observe(e rediscache.PoolEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, e)
}

// of returns the events of a kind.
func (p *poolEvents) of(kind rediscache.PoolEventKind) (events []rediscache.PoolEvent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if e.Kind == kind {
			events = append(events, e)
		}
	}
	return events
}

func TestAPoolReportsAnOutageOnceAndWhyItClosedConnections(t *testing.T) {
	s := redistest.Start(t)
	var heard poolEvents
	p := newPool(t, s.URL(), rediscache.WithMinIdle(3), rediscache.WithPoolObserver(heard.observe))
	requireReady(t, p)
	require.Empty(t, heard.events)
	for range 2 {
		before := len(heard.of(rediscache.PoolUp))
		s.Kill()
		redistest.Eventually(t, func() bool { return p.Stats().DialFailures > int64(3*(before+1)) }, "several dials failed")
		s.Restart()
		redistest.Eventually(t, func() bool { return len(heard.of(rediscache.PoolUp)) > before }, "Redis is up")
	}
	downs, ups := heard.of(rediscache.PoolDown), heard.of(rediscache.PoolUp)
	require.Len(t, downs, 2, "once each")
	require.Len(t, ups, 2)
	for i := range 2 {
		var dial *rediscache.DialError
		require.ErrorAs(t, downs[i].Err, &dial)
		require.ErrorIs(t, downs[i].Err, rediscache.ErrUnavailable)
		require.Positive(t, ups[i].After)
		require.NoError(t, ups[i].Err)
	}
	requireReady(t, p)
	c := p.Get()
	_, err := c.Do("SELECT", 1)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, p.Close())
	count := make(map[string]int64)
	for _, e := range heard.of(rediscache.PoolConnClosed) {
		count[e.Reason]++
	}
	closed := p.Stats().Closed
	require.Equal(t, map[string]int64{"broken": closed.Broken, "state": 1, "shutdown": closed.Shutdown}, count, "Close waits for the last event")
}

func TestAPoolObserverThatIsSlowOrPanicsDelaysNobody(t *testing.T) {
	s := redistest.StartMini(t)
	goOn := make(chan struct{})
	var heard poolEvents
	p := newPool(t, s.URL(), rediscache.WithMinIdle(0), rediscache.WithPoolObserver(func(e rediscache.PoolEvent) {
		<-goOn
		heard.observe(e)
		panic("a fault of the observer")
	}))
	for range 1100 { // more than may wait
		c := p.Get()
		_, err := c.Do("SELECT", 1)
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
	close(goOn)
	require.NoError(t, p.Close())
	require.GreaterOrEqual(t, len(heard.events), 1024)
	require.Less(t, len(heard.events), 1100)
}
