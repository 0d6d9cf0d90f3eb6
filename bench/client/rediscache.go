package client

import (
	"context"
	"errors"
	"time"

	"github.com/rediscache/rediscache"
)

// rediscacheConfigs are this library, untuned: every option at its default. Each
// operation has the default timeout of a second.
var rediscacheConfigs = []Config{
	{Name: Own, Module: ownModule, About: "`NewPool` and `New` with their defaults", Open: openRediscache()},
	{
		Name: "rediscache-nopoll", Module: ownModule, About: "`WithBusyPoll(0)`",
		Sections: []string{SectionBusy}, Open: openRediscache(rediscache.WithBusyPoll(0)),
	},
}

// openRediscache returns what opens a cache with options of its pool.
func openRediscache(opts ...rediscache.PoolOption) func(context.Context, Target) (Client, error) {
	return func(_ context.Context, t Target) (Client, error) {
		url, opts := "redis://"+t.Addr, opts
		if t.TLS != nil {
			url = "rediss://" + t.Addr
			opts = append(opts[:len(opts):len(opts)], rediscache.WithTLSConfig(t.TLS))
		}
		pool, err := rediscache.NewPool(url, opts...)
		if err != nil {
			return nil, err
		}
		cache, err := rediscache.New(pool)
		if err != nil {
			return nil, errors.Join(err, pool.Close())
		}
		return rediscacheClient{cache, pool}, nil
	}
}

type rediscacheClient struct {
	cache *rediscache.Cache
	pool  *rediscache.WarmPool
}

var _ Many = rediscacheClient{}

func (c rediscacheClient) Get(ctx context.Context, key string) ([]byte, error) {
	return c.cache.Get(ctx, key)
}

func (c rediscacheClient) Set(ctx context.Context, key string, value []byte) error {
	return c.cache.Set(ctx, key, value, rediscache.NoExpiry)
}

func (c rediscacheClient) GetMany(ctx context.Context, keys []string, each func(int, []byte)) error {
	values, err := c.cache.GetMany(ctx, keys...)
	for i, key := range keys {
		if value, ok := values[key]; ok {
			each(i, value)
		}
	}
	return err
}

func (c rediscacheClient) SetMany(ctx context.Context, b *Batch, ttl time.Duration) error {
	return c.cache.SetMany(ctx, b.Items, ttl)
}

func (c rediscacheClient) DeleteMany(ctx context.Context, keys []string) error {
	_, err := c.cache.Delete(ctx, keys...)
	return err
}

// Cache returns the cache itself, for what only this library has.
func (c rediscacheClient) Cache() *rediscache.Cache { return c.cache }

// Close ends the cache first: its lanes hold connections of the pool.
func (c rediscacheClient) Close() error {
	return errors.Join(c.cache.Close(), c.pool.Close())
}
