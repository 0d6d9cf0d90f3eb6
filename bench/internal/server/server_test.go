package server_test

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/internal/server"
)

// start skips where there is no redis-server, unless the environment demands
// one.
func start(t *testing.T) *server.Server {
	t.Helper()
	if !server.Available() {
		if os.Getenv("REDISCACHE_REQUIRE_SERVER") != "" {
			t.Fatal("no redis-server, and REDISCACHE_REQUIRE_SERVER is set")
		}
		t.Skip("no redis-server")
	}
	s, err := server.Start(t.Context())
	require.NoError(t, err)
	return s
}

func TestAServerIsFilledTellsWhatItIsAndEnds(t *testing.T) {
	s := start(t)
	conn, err := redis.Dial("tcp", s.Addr())
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Do("SET", "old", "value")
	require.NoError(t, err)

	keys := make([]string, 250) // more than one batch
	for i := range keys {
		keys[i] = string(rune('a' + i))
	}
	require.NoError(t, s.Fill(keys, func(key string) []byte { return []byte("value of " + key) }))
	n, err := redis.Int(conn.Do("DBSIZE"))
	require.NoError(t, err)
	require.Equal(t, len(keys), n, "old is gone")
	last := keys[len(keys)-1]
	v, err := redis.String(conn.Do("GET", last))
	require.NoError(t, err)
	require.Equal(t, "value of "+last, v)

	require.NotEmpty(t, s.Version())
	require.Positive(t, s.CPU())

	_, err = conn.Do("EVAL", "for i = 1, 1e7 do end", 0)
	require.NoError(t, err)
	slowest, err := s.Slowest()
	require.NoError(t, err)
	require.Greater(t, slowest, time.Millisecond)
	again, err := s.Slowest()
	require.NoError(t, err)
	require.Less(t, again, slowest, "that was told")

	require.NoError(t, s.Close())
	_, err = net.Dial("tcp", s.Addr())
	require.Error(t, err)
}

func TestStartHonoursItsContext(t *testing.T) {
	require.NoError(t, start(t).Close())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := server.Start(ctx)
	require.ErrorIs(t, err, context.Canceled)
}
