package client

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/mediocregopher/radix/v4"
	"github.com/mediocregopher/radix/v4/trace"
)

const radixModule = "github.com/mediocregopher/radix/v4"

// radixConfigs are radix as it comes and with its one knob for throughput.
var radixConfigs = []Config{
	// The pool shares its connections between callers ("connection sharing",
	// CHANGELOG of v4); its size stays at the default of 4 (pool.go, PoolConfig),
	// because every connection more makes the batches smaller.
	{
		Name:   "radix",
		Module: radixModule,
		About:  "`PoolConfig` with its defaults: four shared connections",
		Open: func(ctx context.Context, t Target) (Client, error) {
			return openRadix(ctx, t, 0)
		},
	},
	// WriteFlushInterval "can reduce system calls and significantly improve
	// performance" (conn.go, Dialer); 150 us is what the same author's v3 sets by
	// default (v3, pool.go, PoolPipelineWindow).
	{
		Name:   "radix-flush",
		Module: radixModule,
		About:  "four shared connections, WriteFlushInterval 150 us",
		Open: func(ctx context.Context, t Target) (Client, error) {
			return openRadix(ctx, t, 150*time.Microsecond)
		},
	},
}

// openRadix returns once the pool is full, as radix' own benchmark waits.
func openRadix(ctx context.Context, t Target, flush time.Duration) (Client, error) {
	dialer := radix.Dialer{WriteFlushInterval: flush}
	if t.TLS != nil {
		dialer.NetDialer = &tls.Dialer{Config: t.TLS}
	}
	full := make(chan struct{})
	pool, err := radix.PoolConfig{
		Dialer: dialer,
		Trace: trace.PoolTrace{
			InitCompleted: func(trace.PoolInitCompleted) { close(full) },
		},
	}.New(ctx, "tcp", t.Addr)
	if err != nil {
		return nil, err
	}
	select {
	case <-full:
		return radixClient{pool}, nil
	case <-ctx.Done():
		_ = pool.Close()
		return nil, ctx.Err()
	}
}

type radixClient struct{ c radix.Client }

var _ Many = radixClient{}

func (c radixClient) Get(ctx context.Context, key string) ([]byte, error) {
	var value []byte
	err := c.c.Do(ctx, radix.Cmd(&value, "GET", key))
	return value, err
}

// Set uses FlatCmd, which takes bytes without a conversion to string.
func (c radixClient) Set(ctx context.Context, key string, value []byte) error {
	return c.c.Do(ctx, radix.FlatCmd(nil, "SET", key, value))
}

// GetMany is one MGET.
func (c radixClient) GetMany(ctx context.Context, keys []string, each func(int, []byte)) error {
	var values [][]byte
	err := c.c.Do(ctx, radix.Cmd(&values, "MGET", keys...))
	for i, value := range values {
		if value != nil {
			each(i, value)
		}
	}
	return err
}

// SetMany is a Pipeline (action.go).
func (c radixClient) SetMany(ctx context.Context, b *Batch, ttl time.Duration) error {
	p := radix.NewPipeline()
	for i, key := range b.Keys {
		p.Append(radix.FlatCmd(nil, "SET", key, b.Values[i], "EX", int(ttl.Seconds())))
	}
	return c.c.Do(ctx, p)
}

// DeleteMany is one DEL.
func (c radixClient) DeleteMany(ctx context.Context, keys []string) error {
	return c.c.Do(ctx, radix.Cmd(nil, "DEL", keys...))
}

func (c radixClient) Close() error { return c.c.Close() }
