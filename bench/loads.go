package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/rediscache/rediscache"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/load"
)

// getter is a client of which only Get is asked.
type getter func(ctx context.Context, key string) ([]byte, error)

func (g getter) Get(ctx context.Context, key string) ([]byte, error) { return g(ctx, key) }
func (getter) Set(context.Context, string, []byte) error             { return errors.ErrUnsupported }
func (getter) Close() error                                          { return nil }

var _ client.Client = getter(nil)

// loads measures what a hit of GetOrLoad costs beside a Get: under a policy for
// which GET is enough, and under one that needs PTTL too.
func (b *session) loads(ctx context.Context) (err error) {
	cache, done, err := b.cache()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	const size = 100
	if err := b.fill(size); err != nil {
		return err
	}
	view := func(p rediscache.Policy) getter {
		v, err := rediscache.Of(cache, rediscache.Bytes(), p)
		if err != nil {
			panic(err) // of constants
		}
		return func(ctx context.Context, key string) ([]byte, error) {
			return v.GetOrLoad(ctx, key, func(context.Context) ([]byte, error) { return nil, rediscache.ErrNotFound })
		}
	}
	ways := []getter{
		cache.Get,
		view(rediscache.Policy{TTL: time.Hour, Lease: time.Second}),
		view(rediscache.Policy{TTL: time.Hour, Stale: time.Hour, Lease: time.Second}),
	}
	for _, callers := range []int{1, 64} {
		ops := make([][]float64, len(ways))
		b.progress.step(fmt.Sprintf("GetOrLoad: %d callers", callers))
		for range b.o.rounds {
			for i, way := range ways {
				sample, err := b.runner.Run(ctx, way, load.Spec{
					Callers: callers, ValueSize: size, Mix: load.Mix{Gets: 1}, Warmup: b.o.warmup(), Slice: b.o.slice,
				})
				if err != nil {
					return err
				}
				ops[i] = append(ops[i], sample.OpsPerSec)
			}
		}
		for i := range ops {
			slices.Sort(ops[i])
		}
		get, plain, stale := ops[0][len(ops[0])/2], ops[1][len(ops[1])/2], ops[2][len(ops[2])/2]
		b.report.Notes = append(b.report.Notes, fmt.Sprintf(
			"A hit of GetOrLoad costs %.2f times a Get of the cache with %d callers, and %.2f times with Policy.Stale, which asks for PTTL too.",
			get/plain, callers, get/stale))
	}
	return nil
}
