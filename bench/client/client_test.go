package client_test

import (
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/client"
)

func TestEachClientReturnsWhatWasSet(t *testing.T) {
	for _, cfg := range client.All() {
		t.Run(cfg.Name, func(t *testing.T) {
			addr := miniredis.RunT(t).Addr()
			c, err := cfg.Open(t.Context(), addr)
			require.NoError(t, err)
			defer func() { require.NoError(t, c.Close()) }()

			binary := "\x00\r\n" + strings.Repeat("x", 10_000)
			for _, value := range []string{"v", binary} {
				buf := []byte(value)
				require.NoError(t, c.Set(t.Context(), "key", buf))
				buf[0] = '!' // it is the caller's again
				got, err := c.Get(t.Context(), "key")
				require.NoError(t, err)
				require.Equal(t, value, string(got))
			}
		})
	}
}

func TestNoClientTakesAMissForAValue(t *testing.T) {
	addr := miniredis.RunT(t).Addr()
	for _, cfg := range client.All() {
		c, err := cfg.Open(t.Context(), addr)
		require.NoError(t, err, cfg.Name)
		if got, err := c.Get(t.Context(), "missing"); err == nil {
			require.Empty(t, got, cfg.Name)
		}
		require.NoError(t, c.Close(), cfg.Name)
	}
}

func TestNoClientSetsAnExpiry(t *testing.T) {
	redis := miniredis.RunT(t)
	for _, cfg := range client.All() {
		c, err := cfg.Open(t.Context(), redis.Addr())
		require.NoError(t, err, cfg.Name)
		require.NoError(t, c.Set(t.Context(), cfg.Name, []byte("v")), cfg.Name)
		require.Zero(t, redis.TTL(cfg.Name), cfg.Name)
		require.NoError(t, c.Close(), cfg.Name)
	}
}

func TestEachConfigurationHasANameAndSaysWhatItIs(t *testing.T) {
	seen := map[string]bool{}
	for _, cfg := range client.All() {
		require.False(t, seen[cfg.Name], cfg.Name)
		seen[cfg.Name] = true
		require.NotEmpty(t, cfg.Module, cfg.Name)
		require.NotEmpty(t, cfg.About, cfg.Name)
	}
	require.True(t, seen[client.Own])
}

func TestChooseTakesNamesAndPrefixes(t *testing.T) {
	chosen, err := client.Choose("rueidis*, " + client.Own)
	require.NoError(t, err)
	var names []string
	for _, c := range chosen {
		names = append(names, c.Name)
	}
	require.Equal(t, []string{client.Own, "rueidis", "rueidis-1conn"}, names)

	all, err := client.Choose("")
	require.NoError(t, err)
	require.Len(t, all, len(client.All()))

	_, err = client.Choose("redigo,nobody")
	require.ErrorContains(t, err, `"nobody"`)
}
