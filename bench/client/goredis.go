package client

import (
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

const goRedisModule = "github.com/redis/go-redis/v9"

// goRedisConfigs are go-redis' pool and the faces of its AutoPipeline.
var goRedisConfigs = []Config{
	// The pool: PoolSize from 10 per CPU to 50, as many as redigo's (options.go,
	// PoolSize); all else is the default.
	{
		Name:   "go-redis",
		Module: goRedisModule,
		About:  "`redis.NewClient` with PoolSize 50",
		Open: func(_ context.Context, addr string) (Client, error) {
			rdb := newGoRedis(addr, nil)
			return goRedisClient{rdb, rdb.Close}, nil
		},
	},
	// The README's drop-in: the blocking face with the built-in options, one
	// ordered half-duplex stream of batches (autopipeline.go,
	// DefaultBlockingAutoPipelineOptions: "maximizes throughput AND minimizes
	// latency for the blocking face").
	{
		Name:   "go-redis-ap",
		Module: goRedisModule,
		About:  "AutoPipeline, the blocking face with its defaults (half duplex, ordered)",
		Open:   openAutoPipeline(nil),
	},
	// The deferred face, half duplex, with its defaults. Its callers may submit
	// many and read later; a cache's caller needs its value now, so each result is
	// awaited at once.
	{
		Name:   "go-redis-ap-async",
		Module: goRedisModule,
		About:  "AsyncAutoPipeline with its defaults (half duplex, ordered), each result awaited at once",
		Open: func(_ context.Context, addr string) (Client, error) {
			rdb := newGoRedis(addr, nil)
			ap, err := rdb.AsyncAutoPipeline()
			return newAutoPipeline(rdb, ap, err)
		},
	},
	// The parallel-batch configuration of its headline benchmark
	// (autopipeline_bench_README.md, "an explicit parallel-batch config").
	{
		Name:   "go-redis-ap-parallel",
		Module: goRedisModule,
		About:  "AutoPipeline, half duplex, MaxBatchSize 300, MaxConcurrentBatches 80, Unordered",
		Open: openAutoPipeline(&redis.AutoPipelineOptions{
			MaxBatchSize: 300, MaxConcurrentBatches: 80, Unordered: true,
		}),
	},
	// Full duplex as its documentation has it (autopipeline.go, FullDuplex: for
	// links with latency and many callers).
	{
		Name:   "go-redis-ap-full",
		Module: goRedisModule,
		About:  "AutoPipeline, FullDuplex",
		Open:   openAutoPipeline(&redis.AutoPipelineOptions{FullDuplex: true}),
	},
	// Full duplex with the flush delay that its authors measured on two CPUs
	// (autopipeline_fullduplex.go, fdAccumMinFor: "+22% ops" at 1024 callers with
	// 250 us). It waits only where enough is in flight.
	{
		Name:   "go-redis-ap-full-delay",
		Module: goRedisModule,
		About:  "AutoPipeline, FullDuplex, MaxFlushDelay 250 us",
		Open: openAutoPipeline(&redis.AutoPipelineOptions{
			FullDuplex: true, MaxFlushDelay: 250 * time.Microsecond,
		}),
	},
}

func newGoRedis(addr string, ap *redis.AutoPipelineOptions) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: addr, PoolSize: poolSize, AutoPipelineOptions: ap})
}

// openAutoPipeline returns what opens the blocking face with opts, or with the
// library's defaults where opts is nil.
func openAutoPipeline(opts *redis.AutoPipelineOptions) func(context.Context, string) (Client, error) {
	return func(_ context.Context, addr string) (Client, error) {
		rdb := newGoRedis(addr, opts)
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
