package systest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// bystanders are goroutines that read and write keys of their own in a loop. stop ends them, and
// returns how many reads and writes there were and how many failed.
type bystanders struct {
	reads, writes, failedReads, failedWrites, unknown atomic.Int64
}

func (b *bystanders) run(t *testing.T, c *rediscache.Cache, callers int) (stop func()) {
	t.Helper()
	for i := range callers {
		require.NoError(t, c.Set(t.Context(), fmt.Sprint("small", i), []byte("v"), time.Hour))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			key := fmt.Sprint("small", i)
			for ctx.Err() == nil {
				b.reads.Add(1)
				if _, err := c.Get(t.Context(), key); err != nil {
					b.failedReads.Add(1)
					t.Logf("a read: %v", err)
				}
				b.writes.Add(1)
				err := c.Set(t.Context(), key, []byte("v"), time.Hour)
				switch {
				case errors.Is(err, rediscache.ErrOutcomeUnknown):
					b.unknown.Add(1)
				case err != nil:
					b.failedWrites.Add(1)
					t.Logf("a write: %v", err)
				}
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
		t.Logf("%d reads, %d failed; %d writes, %d failed, %d unknown", b.reads.Load(), b.failedReads.Load(),
			b.writes.Load(), b.failedWrites.Load(), b.unknown.Load())
	}
}

// Redis closes the connection if a reply exceeds the limit, as each GET of a large value does.
func TestACommandWhoseReplyEndsItsConnectionHurtsNobodyElse(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	s.ConfigSet("client-output-buffer-limit", "normal 1mb 0 0")
	s.Do("SET", "poison", make([]byte, 8<<20))
	plain, err := redis.Dial("tcp", s.Addr)
	require.NoError(t, err)
	defer plain.Close()
	if _, err := plain.Do("GET", "poison"); err == nil {
		t.Skip("the server sends large values without a buffer, to which the limit would apply") // Valkey 9
	}
	pool := newPool(t, s.URL())
	require.NoError(t, pool.Ready(t.Context()))
	c := newCache(t, pool, rediscache.WithTimeout(10*time.Second))
	var b bystanders
	stop := b.run(t, c, 8)
	for range 20 {
		seen := b.writes.Load()
		redistest.Eventually(t, func() bool { return b.writes.Load() > seen+8 }, "the others work")
		_, err := c.Get(t.Context(), "poison")
		require.ErrorIs(t, err, rediscache.ErrUnavailable)
	}
	stop()
	t.Logf("%d connections broke", pool.Stats().Closed.Broken)
	require.Zero(t, b.failedReads.Load())
	require.Zero(t, b.failedWrites.Load())
	require.LessOrEqual(t, b.unknown.Load(), int64(8), "one lane broke")
}

// Redis refuses the length, and closes the connection while the value is still being sent.
func TestAValueThatIsTooLongForRedisIsKnownNotToBeStored(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	s.ConfigSet("proto-max-bulk-len", "1mb")
	for name, way := range pools {
		pool := way.Open(t, s)
		c := newCache(t, pool, way.Opts...)
		said, before := 0, s.TotalConnections()
		const tries = 20
		for i := range tries {
			require.NoError(t, c.Set(t.Context(), "k", []byte("small"), time.Hour), name)
			err := c.Set(t.Context(), "k", make([]byte, []int{1<<20 + 1, 2 << 20, 16 << 20}[i%3]), time.Hour)
			require.Error(t, err, name)
			require.NotErrorIs(t, err, rediscache.ErrOutcomeUnknown, name)
			value, got := c.Get(t.Context(), "k")
			require.NoError(t, got, name)
			require.Equal(t, "small", string(value), name)
			var answer redis.Error
			if errors.As(err, &answer) {
				require.ErrorContains(t, err, "invalid bulk length", name)
				said++
			} else {
				require.ErrorIs(t, err, rediscache.ErrUnavailable, name)
			}
		}
		t.Logf("%s: %d of %d say why; %d connections, the last: %v", name, said, tries,
			s.TotalConnections()-before, c.Set(t.Context(), "k", make([]byte, 2<<20), time.Hour))
		if strings.HasPrefix(name, "warm pool") {
			require.Equal(t, tries, said, "%s: the answer is read", name)
			h := rediscache.NewHandler(c, rediscache.WithMaxValueBytes(4<<20))
			r := httptest.NewRequest("POST", "/cache/k", bytes.NewReader(make([]byte, 2<<20)))
			r.Header.Set("Content-Type", "application/octet-stream")
			require.Equal(t, 413, redistest.Serve(h, r).Code, name)
			require.LessOrEqual(t, s.TotalConnections()-before, tries+20, "%s: a connection each", name)
		}
	}
}

// A proxy that splits MGET over several servers may return an error for the keys of one server.
func TestAnErrorAmongTheElementsIsTheErrorOfItsKey(t *testing.T) {
	redistest.NoLeaks(t)
	for name, way := range pools {
		s := newLiar(t)
		c := newCache(t, way.Open(t, &redistest.Server{Addr: s.Addr}), way.Opts...)
		view, err := rediscache.Of(c, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour, Stale: time.Minute})
		require.NoError(t, err)
		require.NoError(t, c.Ping(t.Context()))
		s.lie.Store(&lie{command: "MGET", reply: []byte("*4\r\n$1\r\n1\r\n-upstream failure\r\n$-1\r\n-WRONGTYPE\r\n")})
		hits, err := c.GetMany(t.Context(), "a", "b", "c", "d")
		require.ErrorIs(t, err, rediscache.ErrUnavailable, name)
		require.ErrorContains(t, err, "upstream failure", name)
		require.Equal(t, map[string][]byte{"a": []byte("1")}, hits, name)
		require.Equal(t, rediscache.Stats{Hits: 1, Misses: 1, Errors: 2}, c.Stats(), name)

		values, err := view.GetMany(t.Context(), "a", "b", "c", "d")
		require.ErrorIs(t, err, rediscache.ErrUnavailable, name)
		require.Equal(t, map[string]int{"a": 1}, values, name)

		values, err = view.GetOrLoadMany(t.Context(), []string{"a", "b", "c", "d"},
			func(_ context.Context, keys []string) (map[string]int, error) {
				loaded := map[string]int{}
				for _, key := range keys {
					loaded[key] = 2
				}
				return loaded, nil
			})
		require.NoError(t, err, name)
		require.Equal(t, map[string]int{"b": 2, "c": 2, "d": 2}, without(values, "a"), name)
		require.Equal(t, 3, s.Count("MGET"), "%s: it is the reply, and nothing is retried", name)
		require.NotZero(t, s.trusted.Load(), "%s: the connection stays", name)
	}
}

// without deletes key from m, as for a load that has no value for key, and returns m.
func without(m map[string]int, key string) map[string]int {
	delete(m, key)
	return m
}

// Some server or proxy that works with Redis clients sends each of these replies.
func TestRepliesThatOnlyLookStrangeBreakNothing(t *testing.T) {
	redistest.NoLeaks(t)
	for name, way := range pools {
		s := newLiar(t)
		pool := way.Open(t, &redistest.Server{Addr: s.Addr})
		c := newCache(t, pool, way.Opts...)
		if w, ok := pool.(*rediscache.WarmPool); ok {
			require.NoError(t, w.Ready(t.Context()), "no dial hears what follows")
		}
		require.NoError(t, c.Ping(t.Context()))
		for _, test := range []struct {
			command, reply string
			ask            func() error
		}{
			{"PING", "$4\r\nPONG", func() error { return c.Ping(t.Context()) }},
			{"SET", "$2\r\nOK", func() error { return c.Set(t.Context(), "k", nil, 0) }},
			{"SCAN", "*2\r\n:0\r\n*0", func() error { _, err := c.Sub("p").Clear(t.Context()); return err }},
			{"SCAN", "*2\r\n+0\r\n*0", func() error { _, err := c.Sub("p").Clear(t.Context()); return err }},
		} {
			before := s.Count(test.command)
			s.lie.Store(&lie{command: test.command, reply: []byte(test.reply + "\r\n")})
			require.NoError(t, test.ask(), "%s: %q", name, test.reply)
			s.lie.Store(nil)
			if test.command != "PING" { // which a dial sends as well
				require.Equal(t, before+1, s.Count(test.command), "%s: %q", name, test.reply)
			}
		}
	}
}

// A context without a deadline may be cancelled with a cause that matches DeadlineExceeded.
func TestAnErrorMatchesThatOfItsContextForAnyCause(t *testing.T) {
	redistest.NoLeaks(t)
	for name, way := range pools {
		silent := make(chan struct{})
		s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
			if c.Name() != "PING" {
				<-silent
			}
			return redistest.Default(c), false
		})
		speak := sync.OnceFunc(func() { close(silent) })
		c := newCache(t, way.Open(t, &redistest.Server{Addr: s.Addr}), append(way.Opts, rediscache.WithTimeout(time.Minute))...)
		t.Cleanup(speak)
		for verb, ask := range map[string]func(ctx context.Context) error{
			"get":      func(ctx context.Context) error { _, err := c.Get(ctx, "k"); return err },
			"set":      func(ctx context.Context) error { return c.Set(ctx, "k", nil, 0) },
			"a large":  func(ctx context.Context) error { return c.Set(ctx, "k", make([]byte, 100<<10), 0) },
			"get many": func(ctx context.Context) error { _, err := c.GetMany(ctx, "k", "l"); return err },
			"set many": func(ctx context.Context) error {
				return c.SetMany(ctx, map[string][]byte{"k": nil, "l": nil}, 0)
			},
		} {
			ctx, cancel := context.WithCancelCause(t.Context())
			before := s.Count("GET") + s.Count("SET") + s.Count("MGET")
			failed := make(chan error, 1)
			go func() { failed <- ask(ctx) }()
			// Behind a silent call nothing of a lane is read by the server.
			if before == 0 {
				redistest.Eventually(t, func() bool { return s.Count("GET")+s.Count("SET")+s.Count("MGET") > 0 }, "it is on the wire")
			}
			cancel(fmt.Errorf("the budget is used up: %w", context.DeadlineExceeded))
			err := <-failed
			require.ErrorIs(t, err, ctx.Err(), "%s: %s", name, verb)
			require.NotErrorIs(t, err, context.DeadlineExceeded, "%s: %s", name, verb)
		}
		speak()
	}
}
