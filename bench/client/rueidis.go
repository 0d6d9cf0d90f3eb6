package client

import (
	"context"
	"time"

	"github.com/redis/rueidis"
)

const rueidisModule = "github.com/redis/rueidis"

// rueidisConfigs are rueidis as it comes and as its authors tune it for
// throughput. Client-side caching is off (DisableCache): it would answer a GET
// without asking Redis. ForceSingleClient saves the probe for a cluster at the
// dial and changes nothing after it.
var rueidisConfigs = []Config{
	// Automatic pipelining is the default (README, "Auto Pipelining"): at most
	// four connections, two on two CPUs (rueidis.go, PipelineMultiplex).
	{
		Name:   "rueidis",
		Module: rueidisModule,
		About:  "automatic pipelining with its defaults",
		Open: func(_ context.Context, t Target) (Client, error) {
			return openRueidis(t, rueidis.ClientOption{})
		},
	},
	// MaxFlushDelay with the value its comment in rueidis.go names, "something
	// like 20 microseconds", and one connection (a PipelineMultiplex below zero is
	// 2^0), so that all callers' commands meet in one batch.
	{
		Name:   "rueidis-1conn",
		Module: rueidisModule,
		About:  "one connection (PipelineMultiplex -1), MaxFlushDelay 20 us",
		Open: func(_ context.Context, t Target) (Client, error) {
			return openRueidis(t, rueidis.ClientOption{PipelineMultiplex: -1, MaxFlushDelay: 20 * time.Microsecond})
		},
	},
	// MGET as a command (README, "MGET"), whose reply is read as a list: it saves the
	// map that the helper makes.
	{
		Name:     "rueidis-mget",
		Module:   rueidisModule,
		About:    "the same as rueidis, but GetMany is the MGET command and not the MGet helper",
		Sections: []string{SectionMany},
		Open: func(_ context.Context, t Target) (Client, error) {
			c, err := openRueidis(t, rueidis.ClientOption{})
			if err != nil {
				return nil, err
			}
			return rueidisMGET{c}, nil
		},
	},
}

func openRueidis(t Target, opts rueidis.ClientOption) (rueidisClient, error) {
	opts.InitAddress, opts.TLSConfig = []string{t.Addr}, t.TLS
	opts.DisableCache = true
	opts.ForceSingleClient = true
	c, err := rueidis.NewClient(opts)
	if err != nil {
		return rueidisClient{}, err
	}
	return rueidisClient{c}, nil
}

type rueidisClient struct{ c rueidis.Client }

var _ Many = rueidisClient{}

// Get uses AsBytes, which shares the reply's memory instead of copying it.
func (c rueidisClient) Get(ctx context.Context, key string) ([]byte, error) {
	return c.c.Do(ctx, c.c.B().Get().Key(key).Build()).AsBytes()
}

// Set uses BinaryString, which shares the value's memory instead of copying it.
func (c rueidisClient) Set(ctx context.Context, key string, value []byte) error {
	cmd := c.c.B().Set().Key(key).Value(rueidis.BinaryString(value)).Build()
	return c.c.Do(ctx, cmd).Error()
}

// GetMany uses the helper that the README names beside DoMulti ("Manual Pipelining").
func (c rueidisClient) GetMany(ctx context.Context, keys []string, each func(int, []byte)) error {
	values, err := rueidis.MGet(c.c, ctx, keys)
	if err != nil {
		return err
	}
	for i, key := range keys {
		message := values[key]
		if message.IsNil() {
			continue
		}
		value, err := message.AsBytes()
		if err != nil {
			return err
		}
		each(i, value)
	}
	return nil
}

// SetMany is DoMulti ("Manual Pipelining").
func (c rueidisClient) SetMany(ctx context.Context, b *Batch, ttl time.Duration) error {
	cmds := make(rueidis.Commands, len(b.Keys))
	for i, key := range b.Keys {
		cmds[i] = c.c.B().Set().Key(key).Value(rueidis.BinaryString(b.Values[i])).Ex(ttl).Build()
	}
	for _, reply := range c.c.DoMulti(ctx, cmds...) {
		if err := reply.Error(); err != nil {
			return err
		}
	}
	return nil
}

// DeleteMany is one DEL.
func (c rueidisClient) DeleteMany(ctx context.Context, keys []string) error {
	return c.c.Do(ctx, c.c.B().Del().Key(keys...).Build()).Error()
}

func (c rueidisClient) Close() error {
	c.c.Close()
	return nil
}

type rueidisMGET struct{ rueidisClient }

func (c rueidisMGET) GetMany(ctx context.Context, keys []string, each func(int, []byte)) error {
	messages, err := c.c.Do(ctx, c.c.B().Mget().Key(keys...).Build()).ToArray()
	if err != nil {
		return err
	}
	for i, message := range messages {
		if message.IsNil() {
			continue
		}
		value, err := message.AsBytes()
		if err != nil {
			return err
		}
		each(i, value)
	}
	return nil
}
