package proof_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

var seed = flag.Uint64("seed", 0, "of the calls and the faults of the proof; zero is a new one")

const (
	clients = 16
	keys    = 5
	unrest  = 800 * time.Millisecond // the faults of a round

	// Short, so that many faults outlast them.
	callTimeout = 60 * time.Millisecond
	readTimeout = 120 * time.Millisecond
	dialTimeout = 200 * time.Millisecond
)

func TestGetSetAndDeleteAreLinearizableUnderFaults(t *testing.T) {
	redistest.NoLeaks(t)
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-seed %d", *seed)
	length := 2 * time.Second
	if soak > 0 {
		length = soak / 4 // for each of these
	}
	for _, way := range []struct {
		name string
		open func(t *testing.T, addr string) rediscache.Pool
		opts []rediscache.Option
	}{
		{name: "WarmPool, lanes", open: warmPool()},
		{
			name: "WarmPool, a connection a call",
			open: warmPool(rediscache.WithMaxActive(clients / 2)), // so that some wait
			opts: []rediscache.Option{rediscache.WithPipelineConns(0)},
		},
		{name: "redigo's pool, lanes", open: redigoPool},
		{
			name: "WarmPool, near cache", open: warmPool(),
			opts: []rediscache.Option{rediscache.WithNearCache(1 << 20)},
		},
	} {
		t.Run(way.name, func(t *testing.T) {
			// With another fsync a reply that had to wait for its socket may be sent before the
			// writes that it shows are in the file, and then a SIGKILL takes them back.
			server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
			proxy := redistest.NewProxy(t, server.Addr)
			pool := way.open(t, proxy.Addr)
			defer func() { require.NoError(t, pool.Close()) }()
			cache, err := rediscache.New(pool, append(way.opts, rediscache.WithTimeout(callTimeout))...)
			require.NoError(t, err)
			defer cache.Close()
			w := &trial{t: t, server: server, proxy: proxy, cache: cache, began: time.Now()}
			w.run(way.name, length)
		})
	}
}

func warmPool(opts ...rediscache.PoolOption) func(*testing.T, string) rediscache.Pool {
	return func(t *testing.T, addr string) rediscache.Pool {
		t.Helper()
		pool, err := rediscache.NewPool("redis://"+addr, append(opts, rediscache.WithMinIdle(2),
			rediscache.WithReadTimeout(readTimeout), rediscache.WithDialTimeout(dialTimeout))...)
		require.NoError(t, err)
		return pool
	}
}

func redigoPool(t *testing.T, addr string) rediscache.Pool {
	t.Helper()
	return &redis.Pool{MaxIdle: 2, DialContext: func(ctx context.Context) (redis.Conn, error) {
		return redis.DialContext(ctx, "tcp", addr, redis.DialConnectTimeout(dialTimeout),
			redis.DialReadTimeout(readTimeout), redis.DialWriteTimeout(readTimeout))
	}}
}

// trial is one cache under faults.
type trial struct {
	t      *testing.T
	server *redistest.Server
	proxy  *redistest.Proxy
	cache  *rediscache.Cache
	began  time.Time

	calls, failed, unknown atomic.Int64
	faults                 int
	marks                  []porcupine.Annotation // the faults of a round, for its picture
}

func (w *trial) now() int64 { return int64(time.Since(w.began)) }

// run goes in rounds, each with keys of its own and a check at its end: long histories take long.
func (w *trial) run(name string, length time.Duration) {
	rounds := 0
	enough := func() bool { // on a busy machine a round may lose no write
		return w.now() > int64(length) && (w.unknown.Load() > 0 || rounds > 20)
	}
	for ; !enough() && !w.t.Failed(); rounds++ {
		for key, calls := range w.round(rounds) {
			w.check(key, calls)
		}
		w.faults += len(w.marks)
		w.marks = nil
	}
	result := "linearizable"
	if w.t.Failed() {
		result = "NOT SHOWN TO BE LINEARIZABLE"
	}
	w.t.Logf("%s: %d calls, %d failed, %d of unknown outcome, %d faults, %d rounds: %s",
		name, w.calls.Load(), w.failed.Load(), w.unknown.Load(), w.faults, rounds, result)
	require.Positive(w.t, w.unknown.Load(), "the faults lost no write")
}

// round returns what the clients were told, by key.
func (w *trial) round(n int) map[string][]call {
	w.t.Helper()
	told := make([][]call, clients+1)
	var done atomic.Bool
	var wg sync.WaitGroup
	finish := func() { done.Store(true); wg.Wait() }
	defer finish()
	for id := range clients {
		wg.Go(func() {
			rng := w.rng(n, id)
			for i := 0; !done.Load(); i++ {
				pace := time.Millisecond
				if c, ok := w.random(rng, n, id, i); ok {
					told[id] = append(told[id], c)
				} else {
					pace *= 10 // or most calls would be some that fail at once
				}
				time.Sleep(upTo(rng, pace))
			}
		})
	}
	w.trouble(w.rng(n, clients))
	w.proxy.Heal()
	redistest.Eventually(w.t, func() bool { return w.cache.Ping(w.t.Context()) == nil }, "the faults are over")
	finish()
	for k := range keys { // what is left
		c := call{client: clients, key: keyOf(n, k), verb: get}
		redistest.Eventually(w.t, func() bool { return w.do(w.t.Context(), &c, nil) }, "a last look")
		told[clients] = append(told[clients], c)
	}
	byKey := make(map[string][]call)
	for _, calls := range told {
		for _, c := range calls {
			byKey[c.key] = append(byKey[c.key], c)
		}
	}
	return byKey
}

func keyOf(round, k int) string { return fmt.Sprintf("%d:%d", round, k) }

// rng is a stream of its own for each client of each round, and for the faults.
func (w *trial) rng(round, id int) *rand.Rand {
	return rand.New(rand.NewPCG(*seed, uint64(round*(clients+1)+id)))
}

// random makes a call, of an impatient caller now and then.
func (w *trial) random(rng *rand.Rand, round, client, i int) (call, bool) {
	c := call{client: client, key: keyOf(round, rng.IntN(keys))}
	c.verb = []verb{get, get, get, get, get, set, set, set, set, del}[rng.IntN(10)]
	var value []byte
	if c.verb == set {
		// Some take several reads. From 64 KiB on a set has a connection of its own, from 256 KiB
		// on the gets of its value have one too.
		sizes := []int{0, 0, 0, 0, 0, 0, 0, 0, 0, 8 << 10}
		if rng.IntN(100) == 0 {
			sizes = []int{80 << 10, 300 << 10}
		}
		value = fmt.Appendf(nil, "%d.%d.%d ", round, client, i)
		value = append(value, bytes.Repeat(value[:1], sizes[rng.IntN(len(sizes))])...)
		c.value = label(value)
	}
	ctx := w.t.Context()
	if rng.IntN(4) == 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, upTo(rng, 4*time.Millisecond))
		defer cancel()
	}
	return c, w.do(ctx, &c, value)
}

// label stands for a value in a history. No two values have the same.
func label(value []byte) string {
	id, _, _ := bytes.Cut(value, []byte(" "))
	return fmt.Sprintf("%.20s#%08x", id, crc32.ChecksumIEEE(value))
}

// do makes a call and reports whether anything was learnt from it.
func (w *trial) do(ctx context.Context, c *call, value []byte) bool {
	var err error
	c.from = w.now()
	switch c.verb {
	case get:
		if value, err = w.cache.Get(ctx, c.key); err == nil {
			c.value = label(value)
		} else if errors.Is(err, rediscache.ErrNotFound) {
			err = nil
		}
	case set:
		err = w.cache.Set(ctx, c.key, value, rediscache.NoExpiry)
	case del:
		var n int
		n, err = w.cache.Delete(ctx, c.key)
		c.existed = n > 0
	}
	c.to = w.now()
	c.lost = c.verb != get && errors.Is(err, rediscache.ErrOutcomeUnknown)
	w.calls.Add(1)
	switch {
	case c.lost:
		w.unknown.Add(1)
	case err != nil:
		w.failed.Add(1)
		return false
	}
	return true
}

// check looks for an order of the calls to a key, and draws them where there is none.
func (w *trial) check(key string, calls []call) {
	result := linearizable(calls)
	if result == porcupine.Ok {
		return
	}
	_, info := porcupine.CheckOperationsVerbose(model, history(calls), 20*time.Second)
	info.AddAnnotations(w.marks)
	file, err := os.CreateTemp("", "linearizable-*.html")
	require.NoError(w.t, err)
	require.NoError(w.t, porcupine.Visualize(model, info, file))
	require.NoError(w.t, file.Close())
	w.t.Errorf("key %s, %d calls: %s (-seed %d): %s", key, len(calls), result, *seed, file.Name())
}
