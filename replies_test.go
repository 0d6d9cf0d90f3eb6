package rediscache_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// bystanders call f each in a loop, on keys of their own, until stop is called, which returns how
// many reads and writes there were and how many failed.
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

// Redis drops a client whose reply exceeds the limit: the reply to GET of a large value, each time.
func TestACommandWhoseReplyEndsItsConnectionHurtsNobodyElse(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.Start(t)
	s.ConfigSet("client-output-buffer-limit", "normal 1mb 0 0")
	s.Do("SET", "poison", make([]byte, 8<<20))
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
