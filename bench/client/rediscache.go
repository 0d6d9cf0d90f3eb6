package client

import (
	"context"
	"errors"

	"github.com/rediscache/rediscache"
)

// rediscacheConfig is this library, untuned: every option at its default. Each
// operation has the default timeout of a second.
var rediscacheConfig = Config{
	Name:   Own,
	Module: "github.com/rediscache/rediscache",
	About:  "`NewPool` and `New` with their defaults",
	Open: func(_ context.Context, addr string) (Client, error) {
		return openRediscache(addr)
	},
}

func openRediscache(addr string) (Client, error) {
	pool, err := rediscache.NewPool("redis://" + addr)
	if err != nil {
		return nil, err
	}
	cache, err := rediscache.New(pool)
	if err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	return rediscacheClient{cache, pool}, nil
}

type rediscacheClient struct {
	cache *rediscache.Cache
	pool  *rediscache.WarmPool
}

func (c rediscacheClient) Get(ctx context.Context, key string) ([]byte, error) {
	return c.cache.Get(ctx, key)
}

func (c rediscacheClient) Set(ctx context.Context, key string, value []byte) error {
	return c.cache.Set(ctx, key, value, rediscache.NoExpiry)
}

// Close ends the cache first: its lanes hold connections of the pool.
func (c rediscacheClient) Close() error {
	return errors.Join(c.cache.Close(), c.pool.Close())
}
