package client_test

import (
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/client"
)

func TestEachClientReturnsWhatWasSet(t *testing.T) {
	for _, cfg := range client.All() {
		t.Run(cfg.Name, func(t *testing.T) {
			addr := miniredis.RunT(t).Addr()
			c, err := cfg.Open(t.Context(), client.Target{Addr: addr, Callers: 4})
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
		c, err := cfg.Open(t.Context(), client.Target{Addr: addr, Callers: 4})
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
		c, err := cfg.Open(t.Context(), client.Target{Addr: redis.Addr(), Callers: 4})
		require.NoError(t, err, cfg.Name)
		require.NoError(t, c.Set(t.Context(), cfg.Name, []byte("v")), cfg.Name)
		require.Zero(t, redis.TTL(cfg.Name), cfg.Name)
		require.NoError(t, c.Close(), cfg.Name)
	}
}

func TestEachClientOfManyKeysGetsSetsAndDeletesThem(t *testing.T) {
	for _, cfg := range client.All() {
		if !cfg.In(client.SectionMany) {
			continue
		}
		redis := miniredis.RunT(t)
		opened, err := cfg.Open(t.Context(), client.Target{Addr: redis.Addr(), Callers: 1})
		require.NoError(t, err, cfg.Name)
		c := opened.(client.Many)
		b := &client.Batch{
			Keys: []string{"a", "b", "c"}, Values: [][]byte{[]byte("1"), {}, []byte("3")},
			Items: map[string][]byte{"a": []byte("1"), "b": {}, "c": []byte("3")},
		}
		require.NoError(t, c.SetMany(t.Context(), b, time.Hour), cfg.Name)
		for _, key := range b.Keys {
			require.Equal(t, time.Hour, redis.TTL(key), cfg.Name)
		}

		got := map[int]string{}
		err = c.GetMany(t.Context(), []string{"a", "missing", "b", "c"}, func(i int, value []byte) { got[i] = string(value) })
		require.NoError(t, err, cfg.Name)
		require.Equal(t, map[int]string{0: "1", 2: "", 3: "3"}, got, cfg.Name)

		require.NoError(t, c.DeleteMany(t.Context(), []string{"a", "c"}), cfg.Name)
		require.Equal(t, []string{"b"}, redis.Keys(), cfg.Name)
		require.NoError(t, c.Close(), cfg.Name)
	}
}

func TestAConfigurationIsForAllSectionsOrForThoseItNames(t *testing.T) {
	for _, cfg := range client.All() {
		switch cfg.Name {
		case client.Own:
			require.True(t, cfg.Own())
			require.True(t, cfg.In(client.SectionMany) && cfg.In(client.SectionBusy))
		case "rueidis-mget":
			require.False(t, cfg.Own())
			require.True(t, cfg.In(client.SectionMany))
			require.False(t, cfg.In("matrix"))
		}
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
	require.Equal(t, []string{client.Own, "rueidis", "rueidis-1conn", "rueidis-mget"}, names)

	all, err := client.Choose("")
	require.NoError(t, err)
	require.Len(t, all, len(client.All()))

	_, err = client.Choose("redigo,nobody")
	require.ErrorContains(t, err, `"nobody"`)
}
