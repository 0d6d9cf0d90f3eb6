package client

import (
	"context"
	"errors"
	"time"
	"unsafe"

	"github.com/redis/go-redis/v9"
)

const goRedisModule = "github.com/redis/go-redis/v9"

// goRedisConfigs are go-redis' pool and the faces of its AutoPipeline.
var goRedisConfigs = []Config{
	// The pool with its default size, 10 per CPU (options.go, PoolSize).
	{
		Name:   "go-redis",
		Module: goRedisModule,
		About:  "`redis.NewClient` with its defaults: a pool of 10 connections per CPU",
		Open: func(_ context.Context, t Target) (Client, error) {
			return newGoRedisPool(newGoRedis(t, 0, nil)), nil
		},
	},
	// A connection for each caller, so that nobody waits for one (PoolSize likewise).
	{
		Name:   "go-redis-callers",
		Module: goRedisModule,
		About:  "`redis.NewClient` with a PoolSize of as many as there are callers",
		Open: func(_ context.Context, t Target) (Client, error) {
			return newGoRedisPool(newGoRedis(t, t.Callers, nil)), nil
		},
	},
	// The README's drop-in: the blocking face with the built-in options, one
	// ordered half-duplex stream of batches (autopipeline.go,
	// DefaultBlockingAutoPipelineOptions: "maximizes throughput AND minimizes
	// latency for the blocking face").
	{
		Name:     "go-redis-ap",
		Module:   goRedisModule,
		Sections: single,
		About:    "AutoPipeline, the blocking face with its defaults (half duplex, ordered)",
		Open:     openAutoPipeline(nil),
	},
	// The deferred face, half duplex, with its defaults. Its callers may submit
	// many and read later; a cache's caller needs its value now, so each result is
	// awaited at once.
	{
		Name:     "go-redis-ap-async",
		Module:   goRedisModule,
		Sections: single,
		About:    "AsyncAutoPipeline with its defaults (half duplex, ordered), each result awaited at once",
		Open: func(_ context.Context, t Target) (Client, error) {
			rdb := newGoRedis(t, poolSize, nil)
			ap, err := rdb.AsyncAutoPipeline()
			return newAutoPipeline(rdb, ap, err)
		},
	},
	// The parallel-batch configuration of its headline benchmark
	// (autopipeline_bench_README.md, "an explicit parallel-batch config").
	{
		Name:     "go-redis-ap-parallel",
		Module:   goRedisModule,
		Sections: single,
		About:    "AutoPipeline, half duplex, MaxBatchSize 300, MaxConcurrentBatches 80, Unordered",
		Open: openAutoPipeline(&redis.AutoPipelineOptions{
			MaxBatchSize: 300, MaxConcurrentBatches: 80, Unordered: true,
		}),
	},
	// Full duplex as its documentation has it (autopipeline.go, FullDuplex: for
	// links with latency and many callers).
	{
		Name:     "go-redis-ap-full",
		Module:   goRedisModule,
		Sections: single,
		About:    "AutoPipeline, FullDuplex",
		Open:     openAutoPipeline(&redis.AutoPipelineOptions{FullDuplex: true}),
	},
	// Full duplex with the flush delay that its authors measured on two CPUs
	// (autopipeline_fullduplex.go, fdAccumMinFor: "+22% ops" at 1024 callers with
	// 250 us). It waits only where enough is in flight.
	{
		Name:     "go-redis-ap-full-delay",
		Module:   goRedisModule,
		Sections: single,
		About:    "AutoPipeline, FullDuplex, MaxFlushDelay 250 us",
		Open: openAutoPipeline(&redis.AutoPipelineOptions{
			FullDuplex: true, MaxFlushDelay: 250 * time.Microsecond,
		}),
	},
}

func newGoRedis(t Target, poolSize int, ap *redis.AutoPipelineOptions) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: t.Addr, TLSConfig: t.TLS, PoolSize: poolSize, AutoPipelineOptions: ap})
}

// openAutoPipeline returns what opens the blocking face with opts, or with the
// library's defaults where opts is nil.
func openAutoPipeline(opts *redis.AutoPipelineOptions) func(context.Context, Target) (Client, error) {
	return func(_ context.Context, t Target) (Client, error) {
		rdb := newGoRedis(t, poolSize, opts)
		ap, err := rdb.AutoPipeline()
		return newAutoPipeline(rdb, ap, err)
	}
}

func newAutoPipeline(rdb *redis.Client, ap *redis.AutoPipeliner, err error) (Client, error) {
	if err != nil {
		return nil, errors.Join(err, rdb.Close())
	}
	return goRedisClient{ap, func() error { return errors.Join(ap.Close(), rdb.Close()) }}, nil
}

// goRedisVerbs is what the pool and the autopipeliner have in common.
type goRedisVerbs interface {
	Get(ctx context.Context, key string) *redis.StringCmd
	Set(ctx context.Context, key string, value any, expiration time.Duration) *redis.StatusCmd
}

type goRedisClient struct {
	verbs goRedisVerbs
	close func() error
}

// Get uses Bytes, which shares the reply's memory instead of copying it.
func (c goRedisClient) Get(ctx context.Context, key string) ([]byte, error) {
	return c.verbs.Get(ctx, key).Bytes()
}

func (c goRedisClient) Set(ctx context.Context, key string, value []byte) error {
	return c.verbs.Set(ctx, key, value, 0).Err()
}

func (c goRedisClient) Close() error { return c.close() }

// goRedisPool is the pool, which has verbs of many keys too.
type goRedisPool struct {
	goRedisClient
	rdb *redis.Client
}

var _ Many = goRedisPool{}

func newGoRedisPool(rdb *redis.Client) Client {
	return goRedisPool{goRedisClient{rdb, rdb.Close}, rdb}
}

// GetMany is MGet, whose values are strings.
func (c goRedisPool) GetMany(ctx context.Context, keys []string, each func(int, []byte)) error {
	values, err := c.rdb.MGet(ctx, keys...).Result()
	for i, value := range values {
		if text, ok := value.(string); ok {
			each(i, unsafe.Slice(unsafe.StringData(text), len(text))) // each does not change it
		}
	}
	return err
}

// SetMany is Pipelined (the guide that the README names under "Pipelines").
func (c goRedisPool) SetMany(ctx context.Context, b *Batch, ttl time.Duration) error {
	_, err := c.rdb.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, key := range b.Keys {
			p.Set(ctx, key, b.Values[i], ttl)
		}
		return nil
	})
	return err
}

// DeleteMany is one DEL.
func (c goRedisPool) DeleteMany(ctx context.Context, keys []string) error {
	return c.rdb.Del(ctx, keys...).Err()
}
