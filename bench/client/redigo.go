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
	Open: func(_ context.Context, t Target) (Client, error) {
		return redigoClient{&redis.Pool{
			MaxIdle:     poolSize,
			MaxActive:   poolSize,
			Wait:        true,
			IdleTimeout: 240 * time.Second,
			DialContext: func(ctx context.Context) (redis.Conn, error) {
				return redis.DialContext(ctx, "tcp", t.Addr, redis.DialUseTLS(t.TLS != nil), redis.DialTLSConfig(t.TLS))
			},
		}}, nil
	},
}

type redigoClient struct{ pool *redis.Pool }

var _ Many = redigoClient{}

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

// GetMany is one MGET.
func (c redigoClient) GetMany(ctx context.Context, keys []string, each func(int, []byte)) error {
	conn, err := c.pool.GetContext(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	values, err := redis.ByteSlices(conn.Do("MGET", redis.Args{}.AddFlat(keys)...))
	for i, value := range values {
		if value != nil {
			each(i, value)
		}
	}
	return err
}

// SetMany is the pipeline of doc.go: Send, Flush, Receive. MSET has no expiry.
func (c redigoClient) SetMany(ctx context.Context, b *Batch, ttl time.Duration) error {
	conn, err := c.pool.GetContext(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for i, key := range b.Keys {
		if err := conn.Send("SET", key, b.Values[i], "EX", int(ttl.Seconds())); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil {
		return err
	}
	for range b.Keys {
		if _, err := conn.Receive(); err != nil {
			return err
		}
	}
	return nil
}

// DeleteMany is one DEL.
func (c redigoClient) DeleteMany(ctx context.Context, keys []string) error {
	conn, err := c.pool.GetContext(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Do("DEL", redis.Args{}.AddFlat(keys)...)
	return err
}

func (c redigoClient) Close() error { return c.pool.Close() }
