package server_test

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/internal/cert"
	"github.com/rediscache/rediscache/bench/internal/server"
)

// start skips where there is no redis-server, unless the environment demands
// one.
func start(t *testing.T, pair *cert.Pair) *server.Server {
	t.Helper()
	if !server.Available() {
		if os.Getenv("REDISCACHE_REQUIRE_SERVER") != "" {
			t.Fatal("no redis-server, and REDISCACHE_REQUIRE_SERVER is set")
		}
		t.Skip("no redis-server")
	}
	s, err := server.Start(t.Context(), pair)
	require.NoError(t, err)
	return s
}

func TestAServerIsFilledTellsWhatItIsAndEnds(t *testing.T) {
	s := start(t, nil)
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
	require.NoError(t, start(t, nil).Close())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := server.Start(ctx, nil)
	require.ErrorIs(t, err, context.Canceled)
}

func TestAServerWithACertificateHasASecondPort(t *testing.T) {
	pair, err := cert.Make(t.TempDir())
	require.NoError(t, err)
	s := start(t, pair)
	defer func() { require.NoError(t, s.Close()) }()
	conn, err := redis.Dial("tcp", s.TLSAddr(), redis.DialUseTLS(true), redis.DialTLSConfig(pair.Config()))
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Do("PING")
	require.NoError(t, err)
}

func TestPopulateStoresKeysInOneCommand(t *testing.T) {
	s := start(t, nil)
	defer func() { require.NoError(t, s.Close()) }()
	require.NoError(t, s.Populate("p:", 3, 5))
	keys := server.PopulatedKeys("p:", 3)
	require.Equal(t, []string{"p:0", "p:1", "p:2"}, keys)
	conn, err := redis.Dial("tcp", s.Addr())
	require.NoError(t, err)
	defer conn.Close()
	values, err := redis.Strings(conn.Do("MGET", redis.Args{}.AddFlat(keys)...))
	require.NoError(t, err)
	require.Equal(t, []string{"xxxxx", "xxxxx", "xxxxx"}, values)
}
