package systest_test

import (
	"context"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

// In an earlier scheme each of these keys had the lease of another key, or none.
var braced = []string{"abc", "{abc}", "{p:abc}", "{{abc}}", "a}b", "{}", "{}abc", "", "abc:rediscache-lease", "{abc}:rediscache-lease"}

func TestALoadMayLoadKeysWhoseNamesLookAlike(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		for _, prefix := range []string{"", "p:"} {
			s.Flush()
			c := newCache(t, newPool(t, s.URL()), rediscache.WithPrefix(prefix))
			v := systest.NewView(t, c, rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			var load func(keys []string) (int, error)
			load = func(keys []string) (int, error) {
				if len(keys) == 0 {
					return 0, nil
				}
				return v.GetOrLoad(ctx, keys[0], func(context.Context) (int, error) {
					n, err := load(keys[1:])
					return n + 1, err
				})
			}
			n, err := load(braced)
			require.NoError(t, err)
			require.Equal(t, len(braced), n, "each load waited for no other")
			require.EqualValues(t, len(braced), c.Stats().Sets, "and its value was stored")
		}
	})
}

func TestManyKeysWhoseNamesLookAlikeAreLoadedAtOnce(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		v, c := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
		values, err := v.GetOrLoadMany(t.Context(), braced, loadTwos)
		require.NoError(t, err)
		require.Len(t, values, len(braced))
		require.EqualValues(t, 1, c.Stats().Loads)
		require.EqualValues(t, len(braced), c.Stats().Sets)
	})
}

// A client that knows how leases are named stores a value under each name.
func TestNoKeyOfAnHTTPClientIsTheLeaseOfAnother(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		v, c := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
		h := rediscache.NewHandler(c)
		for _, key := range []string{"{k}:rediscache-lease", "k:rediscache-lease", systest.LeaseKey("", "k")} {
			path := "/cache/" + url.PathEscape(key)
			require.Equal(t, 200, redistest.Serve(h, httptest.NewRequest("POST", path+"?value=v", nil)).Code)
			w := redistest.Serve(h, httptest.NewRequest("GET", path, nil))
			require.Equal(t, 200, w.Code)
			require.Contains(t, w.Body.String(), key)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		got, err := v.GetOrLoad(ctx, "k", systest.Returns(7))
		require.NoError(t, err)
		require.Equal(t, 7, got)
		require.EqualValues(t, 4, c.Stats().Sets)
	})
}

// One of the keys has the name of a lease that is in use, as far as a caller can know it.
func TestAKeyThatLooksLikeALeaseIsAKeyLikeAnyOther(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		root := newCache(t, newPool(t, s.URL()), unhurried)
		for prefix, c := range map[string]*rediscache.Cache{
			"": root, "x:rediscache-lease": root.Sub("x:redis").Sub("cache-lease"), "x:rediscache-lease+": root.Sub("x:rediscache-lease+"),
		} {
			s.Flush()
			items := make(map[string][]byte)
			lease := strings.TrimPrefix(systest.LeaseKey(prefix, "loading"), prefix)
			for _, key := range []string{"", "+", "++", "k:rediscache-lease", "k:rediscache-lease+", lease, "k"} {
				items[key] = []byte(key + " held")
			}
			v := systest.NewView(t, c, rediscache.JSON[int](), rediscache.Policy{Lease: time.Hour})
			require.NoError(t, systest.Second(v.GetOrLoad(t.Context(), "loading", func(context.Context) (int, error) {
				require.NoError(t, c.SetMany(t.Context(), items, rediscache.NoExpiry))
				var keys []string
				for key, value := range items {
					got, err := c.Get(t.Context(), key)
					require.NoError(t, err)
					require.Equal(t, value, got)
					ttl, err := c.TTL(t.Context(), key)
					require.NoError(t, err)
					require.Equal(t, rediscache.NoExpiry, ttl)
					keys = append(keys, key)
				}
				many, err := c.GetMany(t.Context(), keys...)
				require.NoError(t, err)
				require.Equal(t, items, many)
				require.EqualValues(t, len(items)+1, s.Do("DBSIZE"), "with the lease")
				n, err := c.Delete(t.Context(), keys...)
				require.NoError(t, err)
				require.Equal(t, len(items), n)
				return 7, nil
			})))
			require.Equal(t, []byte("7"), s.Do("GET", prefix+"loading"), "the load kept its lease")
		}
	})
}

// The prefix is the name of another cache's key, or begins with it.
func TestClearLeavesAKeyThatIsStoredUnderThePrefixItself(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		root := newCache(t, newPool(t, s.URL()), unhurried)
		name := "x:rediscache-lease"
		require.NoError(t, root.Set(t.Context(), name, []byte("v"), rediscache.NoExpiry)) // as name+"+"
		below := root.Sub(name + "+")
		require.NoError(t, below.Set(t.Context(), "", []byte("w"), rediscache.NoExpiry))
		n, err := below.Clear(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, n)
		got, err := root.Get(t.Context(), name)
		require.NoError(t, err)
		require.Equal(t, "v", string(got))
	})
}
