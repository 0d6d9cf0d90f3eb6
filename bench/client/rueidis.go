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
		Open: func(_ context.Context, addr string) (Client, error) {
			return openRueidis(rueidis.ClientOption{InitAddress: []string{addr}})
		},
	},
	// MaxFlushDelay with the value its comment in rueidis.go names, "something
	// like 20 microseconds", and one connection (a PipelineMultiplex below zero is
	// 2^0), so that all callers' commands meet in one batch.
	{
		Name:   "rueidis-1conn",
		Module: rueidisModule,
		About:  "one connection (PipelineMultiplex -1), MaxFlushDelay 20 us",
		Open: func(_ context.Context, addr string) (Client, error) {
			return openRueidis(rueidis.ClientOption{
				InitAddress:       []string{addr},
				PipelineMultiplex: -1,
				MaxFlushDelay:     20 * time.Microsecond,
			})
		},
	},
}

func openRueidis(opts rueidis.ClientOption) (Client, error) {
	opts.DisableCache = true
	opts.ForceSingleClient = true
	c, err := rueidis.NewClient(opts)
	if err != nil {
		return nil, err
	}
	return rueidisClient{c}, nil
}

type rueidisClient struct{ c rueidis.Client }

// Get uses AsBytes, which shares the reply's memory instead of copying it.
func (c rueidisClient) Get(ctx context.Context, key string) ([]byte, error) {
	return c.c.Do(ctx, c.c.B().Get().Key(key).Build()).AsBytes()
}

// Set uses BinaryString, which shares the value's memory instead of copying it.
func (c rueidisClient) Set(ctx context.Context, key string, value []byte) error {
	cmd := c.c.B().Set().Key(key).Value(rueidis.BinaryString(value)).Build()
	return c.c.Do(ctx, cmd).Error()
}

func (c rueidisClient) Close() error {
	c.c.Close()
	return nil
}
