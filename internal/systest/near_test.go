package systest_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/near"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

const nearBytes = 8 << 20

// nearCache returns a cache whose near cache is live.
func nearCache(t *testing.T, p rediscache.Pool, opts ...rediscache.Option) *rediscache.Cache {
	t.Helper()
	c := systest.NewCache(t, p, append([]rediscache.Option{
		rediscache.WithPrefix("n:"), rediscache.WithTTL(time.Hour), rediscache.WithNearCache(nearBytes),
	}, opts...)...)
	eventuallyNear(t, c, rediscache.NearLive)
	return c
}

func eventuallyNear(t *testing.T, c *rediscache.Cache, s rediscache.NearState) {
	t.Helper()
	redistest.Eventually(t, func() bool { return c.Stats().Near.State == s }, "the near cache is not %s", s)
}

// requireNear requires that Gets of the key return value, soon from a copy: the report of a write before
// may still come and remove the first copy.
func requireNear(t *testing.T, c *rediscache.Cache, key, value string) {
	t.Helper()
	redistest.Eventually(t, func() bool {
		before := c.Stats().Near.Hits
		got, err := c.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, value, string(got))
		if len(got) > 0 {
			got[0]++ // the caller's own
		}
		return c.Stats().Near.Hits > before
	}, "%s has no copy", key)
}

// eventuallyGets waits until a Get of the key returns value; "" stands for a miss.
func eventuallyGets(t *testing.T, c *rediscache.Cache, key, value string) {
	t.Helper()
	redistest.Eventually(t, func() bool {
		got, err := c.Get(t.Context(), key)
		return string(got) == value && (err == nil) == (value != "")
	}, "%s is not %q", key, value)
}

func TestTheNearCacheFollowsRedis(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	for name, pool := range map[string]rediscache.Pool{"warm": systest.WarmPool(t, s), "redigo": systest.RedigoPool(t, s)} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			s.Flush()
			c, other := nearCache(t, pool), systest.NewCache(t, pool, rediscache.WithPrefix("n:"))
			require.NoError(t, c.Set(ctx, "k", []byte("v1"), 0))
			requireNear(t, c, "k", "v1")
			requireNear(t, c, "k", "v1")
			requireNear(t, c.Sub("k"), "", "v1")

			require.NoError(t, other.Set(ctx, "k", []byte("v2"), 0))
			eventuallyGets(t, c, "k", "v2")
			_, err := other.Delete(ctx, "k")
			require.NoError(t, err)
			eventuallyGets(t, c, "k", "")
			before := c.Stats().Near.Hits
			redistest.Eventually(t, func() bool {
				_, err = c.Get(ctx, "k")
				require.ErrorIs(t, err, rediscache.ErrNotFound)
				return c.Stats().Near.Hits > before
			}, "a miss is not remembered")
			require.NoError(t, other.Set(ctx, "k", []byte("v3"), 0))
			eventuallyGets(t, c, "k", "v3")

			// Expiry needs no report.
			require.NoError(t, other.Set(ctx, "short", []byte("v"), 50*time.Millisecond))
			_, err = c.Get(ctx, "short")
			require.NoError(t, err)
			eventuallyGets(t, c, "short", "")

			requireNear(t, c, "k", "v3")
			s.Flush()
			eventuallyGets(t, c, "k", "")

			s.Do("RPUSH", "n:list", "x")
			got, err := c.GetMany(ctx, "list")
			require.NoError(t, err)
			require.Empty(t, got)
			_, err = c.Get(ctx, "list")
			require.ErrorIs(t, err, rediscache.ErrWrongType)
		})
	}
}

func TestOwnWritesAreSeenAtOnceByTheNearCache(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	ctx, c := t.Context(), nearCache(t, systest.WarmPool(t, s))
	view := systest.NewView(t, c, rediscache.String(), rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Lease: time.Second})
	get := func(key string) string {
		v, err := c.Get(ctx, key)
		if err != nil {
			require.ErrorIs(t, err, rediscache.ErrNotFound)
			return ""
		}
		return string(v)
	}
	for i := range 300 {
		v := strconv.Itoa(i)
		require.NoError(t, c.Set(ctx, "k", []byte("set"+v), 0))
		require.Equal(t, "set"+v, get("k"))
		require.NoError(t, view.Set(ctx, "k", "view"+v))
		require.Equal(t, "view"+v, get("k"))
		require.NoError(t, c.SetMany(ctx, map[string][]byte{"k": []byte("many" + v)}, 0))
		require.Equal(t, "many"+v, get("k"))
		_, err := c.Delete(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "", get("k"))
		added, err := c.Add(ctx, "k", []byte("add"+v), 0)
		require.NoError(t, err)
		require.True(t, added)
		require.Equal(t, "add"+v, get("k"))
		_, err = c.Clear(ctx)
		require.NoError(t, err)
		require.Equal(t, "", get("k"))
		loaded, err := view.GetOrLoad(ctx, "k", systest.Returns("load"+v))
		require.NoError(t, err)
		require.Equal(t, "load"+v, loaded)
		require.Equal(t, "load"+v, get("k"))
		require.NoError(t, c.Touch(ctx, "k", time.Minute)) // shorter than Stale: the value is stale
		left, err := c.TTL(ctx, "k")
		require.NoError(t, err)
		require.LessOrEqual(t, left, time.Minute)
		stale, err := view.Get(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "load"+v, stale)
		_, err = view.Delete(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "", get("k"))
	}
}

func TestManyKeysMixCopiesAndRedis(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	ctx, c := t.Context(), nearCache(t, systest.WarmPool(t, s))
	items, keys := make(map[string][]byte), []string{"none"}
	for i := range 2000 {
		key := strconv.Itoa(i)
		items[key], keys = []byte("v"+key), append(keys, key)
	}
	require.NoError(t, c.SetMany(ctx, items, 0))
	redistest.Eventually(t, func() bool { return c.Stats().Near.Invalidations >= 2000 }, "no reports")
	for _, key := range keys[:1000] {
		_, _ = c.Get(ctx, key)
	}
	before := c.Stats().Near
	got, err := c.GetMany(ctx, keys...)
	require.NoError(t, err)
	require.Equal(t, items, got)
	require.Equal(t, before.Hits+1000, c.Stats().Near.Hits)
	got, err = c.GetMany(ctx, keys...)
	require.NoError(t, err)
	require.Equal(t, items, got)
	require.Equal(t, before.Hits+1000+2001, c.Stats().Near.Hits)

	view := systest.NewView(t, c, rediscache.String(), rediscache.Policy{TTL: time.Hour, Stale: time.Hour})
	values, err := view.GetMany(ctx, keys...)
	require.NoError(t, err)
	require.Len(t, values, 2000)
}

func TestWithoutTrackingTheNearCacheIsOff(t *testing.T) {
	redistest.NoLeaks(t)
	var failures systest.ErrorsOf
	s := redistest.StartMini(t)
	c := systest.NewCache(t, systest.WarmPool(t, s), rediscache.WithNearCache(nearBytes), rediscache.WithObserver(rediscache.ObserverFunc(
		func(ctx context.Context, e rediscache.Event) {
			if e.Op == "near" {
				failures.Observe(ctx, e)
			}
		})))
	eventuallyNear(t, c, rediscache.NearRefused)
	require.NoError(t, c.Set(t.Context(), "k", []byte("v"), 0))
	for range 3 {
		got, err := c.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "v", string(got))
	}
	require.Zero(t, c.Stats().Near.Hits)
	require.Zero(t, c.Stats().Errors)
}

func TestCloseOfANearCacheLeavesNoClient(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	p := systest.RedigoPool(t, s)
	c := nearCache(t, p)
	require.NoError(t, c.Close())
	require.Equal(t, rediscache.NearOff, c.Stats().Near.State)
	redistest.Eventually(t, func() bool {
		for _, client := range s.Clients("") {
			if client.Field["redir"] != "-1" && client.Field["redir"] != "" {
				return false
			}
		}
		return true
	}, "a client still tracks")
}

func TestABlackHoleBoundsStaleCopies(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	proxy := redistest.NewProxy(t, s.Addr)
	c := nearCache(t, systest.NewPool(t, "redis://"+proxy.Addr), rediscache.WithTimeout(100*time.Millisecond))
	writer := systest.NewCache(t, systest.WarmPool(t, s), rediscache.WithPrefix("n:"))
	require.NoError(t, writer.Set(t.Context(), "k", []byte("v1"), 0))
	eventuallyGets(t, c, "k", "v1")
	requireNear(t, c, "k", "v1")
	proxy.Blackhole()
	require.NoError(t, writer.Set(t.Context(), "k", []byte("v2"), 0))
	written := time.Now()
	hits := 0
	for time.Since(written) < 2*near.Lease {
		began := time.Now()
		got, err := c.Get(t.Context(), "k")
		if err == nil && string(got) == "v1" {
			hits++
			require.Less(t, began.Sub(written), near.Lease, "a copy was served after the lease")
		}
	}
	require.Positive(t, hits)
	proxy.Heal()
	eventuallyGets(t, c, "k", "v2")
	eventuallyNear(t, c, rediscache.NearLive)
}

// TestNearCachesStayCoherent has four caches with a near cache read and write 16 keys, while their
// connections are killed and the database is flushed. Each value is a number that only rises, and each
// key has one writer. No cache may read a number that is less than one that it read or wrote before.
func TestNearCachesStayCoherent(t *testing.T) {
	redistest.NoLeaks(t)
	redistest.Long(t)
	s := redistest.Start(t)
	const caches, keys, readers = 4, 16, 3
	length := max(3*time.Second, systest.Soak)
	ctx, stop := context.WithTimeout(t.Context(), length)
	defer stop()
	var wg sync.WaitGroup
	var written [keys]atomic.Int64   // acknowledged
	var writtenAt [keys]atomic.Int64 // when, in Unix nanoseconds
	var worst, reads atomic.Int64
	var backward atomic.Pointer[string]
	all := make([]*rediscache.Cache, caches)
	for i := range all {
		all[i] = nearCache(t, systest.NewPool(t, s.URL()))
	}
	for i, c := range all {
		var seen [keys]atomic.Int64 // by this cache
		wg.Go(func() {              // the writer
			for n := int64(1); ctx.Err() == nil; n++ {
				k := i + caches*rand.IntN(keys/caches)
				value := written[k].Load() + 1
				if c.Set(context.Background(), strconv.Itoa(k), []byte(strconv.FormatInt(value, 10)), 0) == nil {
					writtenAt[k].Store(time.Now().UnixNano())
					written[k].Store(value)
					raise(&seen[k], value)
				}
				if n%8 == 0 {
					runtime.Gosched()
				}
			}
		})
		for range readers {
			wg.Go(func() {
				for ctx.Err() == nil {
					k := rand.IntN(keys)
					least, now := seen[k].Load(), time.Now()
					at, current := writtenAt[k].Load(), written[k].Load()
					got, err := c.Get(context.Background(), strconv.Itoa(k))
					if err != nil { // flushed, or a connection was killed
						continue
					}
					value, err := strconv.ParseInt(string(got), 10, 64)
					if err != nil || value < least {
						text := fmt.Sprintf("cache %d, key %d: %s after %d: %v", i, k, got, least, err)
						backward.Store(&text)
						return
					}
					if value < current && at > 0 {
						raise(&worst, now.UnixNano()-at)
					}
					raise(&seen[k], value)
					reads.Add(1)
				}
			})
		}
	}
	admin, err := redis.Dial("tcp", s.Addr)
	require.NoError(t, err)
	defer admin.Close()
	for ctx.Err() == nil {
		time.Sleep(time.Duration(50+rand.IntN(150)) * time.Millisecond) // between two faults
		switch rand.IntN(3) {
		case 0:
			_, _ = admin.Do("CLIENT", "KILL", "TYPE", "pubsub")
		case 1:
			_, _ = admin.Do("CLIENT", "KILL", "TYPE", "normal")
		case 2:
			_, _ = admin.Do("FLUSHALL")
		}
	}
	wg.Wait()
	require.Nil(t, backward.Load(), "%v", deref(backward.Load()))
	require.Less(t, time.Duration(worst.Load()), near.Lease)
	hits := int64(0)
	for _, c := range all {
		hits += c.Stats().Near.Hits
	}
	require.Positive(t, hits)
	t.Logf("%d reads, %d hits, the oldest value was read %v after the next was written", reads.Load(), hits, time.Duration(worst.Load()))
}

func raise(to *atomic.Int64, value int64) {
	for was := to.Load(); value > was && !to.CompareAndSwap(was, value); was = to.Load() {
	}
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// counted is a codec that counts what it decodes.
type counted struct {
	rediscache.Codec[map[string]int]
	decoded *atomic.Int64
}

func (c counted) Decode(data []byte) (map[string]int, error) {
	c.decoded.Add(1)
	return c.Codec.Decode(data)
}

func TestKeepDecodedDecodesACopyOnceAndFollowsRedis(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	ctx, pool := t.Context(), systest.WarmPool(t, s)
	c, other := nearCache(t, pool), systest.NewCache(t, pool, rediscache.WithPrefix("n:"))
	codec := counted{rediscache.JSON[map[string]int](), new(atomic.Int64)}
	for _, p := range []rediscache.Policy{
		{KeepDecoded: true}, {KeepDecoded: true, TTL: time.Hour, Stale: time.Minute, Early: 1, Negative: time.Hour},
	} {
		s.Flush()
		v, err := rediscache.Of(c, rediscache.Codec[map[string]int](codec), p)
		require.NoError(t, err)
		load := func(n int) func(context.Context) (map[string]int, error) {
			return func(context.Context) (map[string]int, error) { return map[string]int{"n": n}, nil }
		}
		require.NoError(t, v.Set(ctx, "k", map[string]int{"n": 1}))
		requireNear(t, c, "k", `{"n":1}`)
		codec.decoded.Store(0)
		first, err := v.Get(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, map[string]int{"n": 1}, first)
		for range 10 {
			again, err := v.GetOrLoad(ctx, "k", load(0))
			require.NoError(t, err)
			again["shared"] = 1
		}
		require.Equal(t, 1, first["shared"], "callers share the value")
		require.EqualValues(t, 1, codec.decoded.Load())

		require.NoError(t, other.Set(ctx, "k", []byte(`{"n":2}`), time.Hour+time.Minute))
		redistest.Eventually(t, func() bool {
			now, err := v.Get(ctx, "k")
			return err == nil && now["n"] == 2
		}, "a write of another cache is not seen")
		if p.Negative == 0 {
			continue
		}
		// A stale value, and the memory of none, are what they are without KeepDecoded.
		require.NoError(t, other.Set(ctx, "k", []byte(`{"n":3}`), 30*time.Second))
		redistest.Eventually(t, func() bool { now, _ := v.Get(ctx, "k"); return now["n"] == 3 }, "it is not seen")
		requireNear(t, c, "k", `{"n":3}`)
		_, err = v.Get(ctx, "k")
		require.NoError(t, err)
		stale := c.Stats().Stale
		_, err = v.GetOrLoad(ctx, "k", load(4))
		require.NoError(t, err)
		require.Equal(t, stale+1, c.Stats().Stale)
		redistest.Eventually(t, func() bool { now, _ := v.Get(ctx, "k"); return now["n"] == 4 }, "it is loaded in the background")
		for range 3 {
			_, err = v.GetOrLoad(ctx, "none", func(context.Context) (map[string]int, error) { return nil, rediscache.ErrNotFound })
			require.ErrorIs(t, err, rediscache.ErrNotFound)
		}
		require.EqualValues(t, 2, c.Stats().Negatives)
	}
	plain := systest.NewCache(t, pool)
	_, err := rediscache.Of(plain, rediscache.String(), rediscache.Policy{TTL: time.Hour, KeepDecoded: true})
	require.ErrorContains(t, err, "Policy.KeepDecoded")
}
