package client

import (
	"context"
	"time"

	"github.com/gomodule/redigo/redis"
)

// redigoConfig is the pool of redigo's own documentation (type Pool in
// redis/pool.go): Get, defer Close, Do. What differs from the example there:
//
//   - MaxIdle equals MaxActive, because a connection above MaxIdle is closed
//     when it comes back, and dialling is what costs most.
//   - Wait, which the documentation offers where MaxActive is set; without it a
//     caller beyond the fiftieth gets ErrPoolExhausted.
//   - no TestOnBorrow, which could only slow it down.
var redigoConfig = Config{
	Name:   "redigo",
	Module: "github.com/gomodule/redigo",
	About:  "`redis.Pool` with MaxIdle = MaxActive = 50 and Wait",
	Open: func(_ context.Context, addr string) (Client, error) {
		return redigoClient{&redis.Pool{
			MaxIdle:     poolSize,
			MaxActive:   poolSize,
			Wait:        true,
			IdleTimeout: 240 * time.Second,
			DialContext: func(ctx context.Context) (redis.Conn, error) {
				return redis.DialContext(ctx, "tcp", addr)
			},
		}}, nil
	},
}

type redigoClient struct{ pool *redis.Pool }

func (c redigoClient) Get(ctx context.Context, key string) ([]byte, error) {
	conn, err := c.pool.GetContext(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return redis.Bytes(conn.Do("GET", key))
}

func (c redigoClient) Set(ctx context.Context, key string, value []byte) error {
	conn, err := c.pool.GetContext(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Do("SET", key, value)
	return err
}

func (c redigoClient) Close() error { return c.pool.Close() }
