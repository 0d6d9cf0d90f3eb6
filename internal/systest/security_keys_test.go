package systest_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/fill"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

// hostile are keys and values that mean something to somebody: to RESP, to globs, to Lua, to hash slots,
// to paths, to SET. They are also one another's neighbours.
var hostile = []string{
	"", " ", "\r\n", "a\r\nb", "\x00", "a\x00b", "\r\n*1\r\n$8\r\nFLUSHALL\r\n", "$-1\r\n", "a", "ab", "abc",
	"*", "?", "a*", "a?", "[a]", "[^a]", "[a-c]*", "^", "-", `\`, `\*`, `a\`, `\x61`,
	`"]] redis.call('flushall') --`, `'); redis.call('FLUSHALL') --`, "KEYS[1]", "]]", "%s%d%n", "${a}", "`a`",
	"\xff\xfe", "\xc3(", "é", "e\u0301", "\u202e", "😀", "{}", "{a}", "a{b}c", "{", "}", "{{a}}", "a}{b",
	"NX", "PX", "0", "-1", "EX 1", ".", "..", "../a", "a/b", "a+b", "a b", "%2F", "a%00b", ":rediscache-lease", "x:rediscache-lease",
	"x:rediscache-lease+", "x:hhhhh:rediscache-lease", "name", "a+",
}

// long is a key beyond what shares a connection, and nobody's neighbour: it is slow to compare.
var long = strings.Repeat("long", 18<<10)

// world is what a server should hold, by the names that callers use.
type world struct {
	s    *redistest.Server
	held map[string]string
}

// stored returns what the server should hold, by the names in Redis.
func (w *world) stored() map[string]string {
	all := make(map[string]string, len(w.held))
	for key, value := range w.held {
		all[fill.StoredName("", key)] = value
	}
	return all
}

// plant stores all hostile keys, bare and below prefix.
func plant(s *redistest.Server, prefix string) *world {
	w := &world{s: s, held: make(map[string]string)}
	for _, prefix := range []string{"", prefix} {
		for i, key := range hostile {
			w.held[prefix+key] = hostile[(i+3)%len(hostile)]
		}
	}
	var pairs []any
	for key, value := range w.stored() {
		pairs = append(pairs, key, value)
	}
	s.Do("MSET", pairs...)
	return w
}

func (w *world) require(t *testing.T, did, key string) {
	t.Helper()
	if want, now := w.stored(), keySpace(w.s); !maps.Equal(want, now) { // which are large to print
		require.Equal(t, want, now, "%s of %q", did, key)
	}
}

// clear is what Clear should do.
func (w *world) clear(prefix string) (n int) {
	for key := range w.held {
		if strings.HasPrefix(key, prefix) {
			delete(w.held, key)
			n++
		}
	}
	return n
}

func TestWhateverAKeyHoldsItsVerbsChangeThatKeyAlone(t *testing.T) {
	redistest.Long(t)
	s := poolServer(t)
	p := newPool(t, s.URL(), sizes(2, 8)...)
	eachWay(t, func(t *testing.T, lanes rediscache.Option) {
		c := newCache(t, p, rediscache.WithPrefix("ns:"), lanes)
		for i, key := range append(slices.Clone(hostile), long) {
			s.Flush()
			w := plant(s, "ns:")
			if key == long {
				s.Do("SET", "ns:"+long, "")
				w.held["ns:"+long] = ""
			}
			other, value := hostile[(i+1)%len(hostile)], hostile[(i+5)%len(hostile)]
			requireVerbs(t, w, c, key, other, value)
			requireViews(t, w, c, key, value)
			n, err := c.Sub(key).Clear(t.Context())
			require.NoError(t, err)
			require.Equal(t, w.clear("ns:"+key), n)
			w.require(t, "Clear", key)
		}
	})
}

func requireVerbs(t *testing.T, w *world, c *rediscache.Cache, key, other, value string) {
	t.Helper()
	ctx := t.Context()
	require.NoError(t, c.Set(ctx, key, []byte(value), rediscache.NoExpiry))
	w.held["ns:"+key] = value
	w.require(t, "Set", key)
	got, err := c.Get(ctx, key)
	require.NoError(t, err)
	require.Equal(t, value, string(got))
	ttl, err := c.TTL(ctx, key)
	require.NoError(t, err)
	require.Equal(t, rediscache.NoExpiry, ttl)
	many, err := c.GetMany(ctx, key, other)
	require.NoError(t, err)
	require.Equal(t, map[string][]byte{key: []byte(value), other: []byte(w.held["ns:"+other])}, many)
	w.require(t, "the reads", key)
	n, err := c.Delete(ctx, key)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	delete(w.held, "ns:"+key)
	w.require(t, "Delete", key)
	require.NoError(t, c.SetMany(ctx, map[string][]byte{key: []byte(value), other: []byte(key)}, time.Hour))
	w.held["ns:"+key], w.held["ns:"+other] = value, key
	w.require(t, "SetMany", key)
}

func requireViews(t *testing.T, w *world, c *rediscache.Cache, key, value string) {
	t.Helper()
	requireView(t, w, systest.NewView(t, c, rediscache.String(), rediscache.Policy{}), key, value, value)
	requireView(t, w, systest.NewView(t, c, rediscache.Bytes(), rediscache.Policy{}), key, []byte(value), value)
	requireView(t, w, systest.NewView(t, c, rediscache.String(), rediscache.Policy{Lease: time.Minute}), key, value, value)
	requireView(t, w, systest.NewView(t, c, rediscache.JSON[[]byte](), rediscache.Policy{
		TTL: time.Minute, Stale: time.Minute, Lease: time.Minute, Negative: time.Minute,
	}), key, []byte{1, 2}, `"AQI="`)
}

// requireView deletes, loads and sets key. Encoded is what Redis ought to hold.
func requireView[V any](t *testing.T, w *world, v *rediscache.View[V], key string, value V, encoded string) {
	t.Helper()
	ctx := t.Context()
	n, err := v.Delete(ctx, key)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	delete(w.held, "ns:"+key)
	w.require(t, "View.Delete", key)
	got, err := v.GetOrLoad(ctx, key, func(context.Context) (V, error) {
		now := keySpace(w.s)
		delete(now, systest.LeaseKey("ns:", key))
		if !maps.Equal(w.stored(), now) {
			t.Errorf("the lease of %q", key)
		}
		return value, nil
	})
	require.NoError(t, err)
	require.Equal(t, value, got)
	w.held["ns:"+key] = encoded
	w.require(t, "View.GetOrLoad", key)
	many, err := v.GetOrLoadMany(ctx, []string{key}, nil)
	require.NoError(t, err)
	require.Equal(t, map[string]V{key: value}, many)
	require.NoError(t, v.Set(ctx, key, value))
	w.require(t, "View.Set", key)
}

// What is no key is refused and changes nothing.
func TestTheHandlerChangesTheKeyThatWasNamedAlone(t *testing.T) {
	s := poolServer(t)
	p := newPool(t, s.URL(), sizes(2, 8)...)
	eachWay(t, func(t *testing.T, lanes rediscache.Option) {
		h := rediscache.NewHandler(newCache(t, p, rediscache.WithPrefix("ns:"), lanes))
		s.Flush()
		w := plant(s, "ns:")
		for i, key := range append(slices.Clone(hostile), long) {
			value := hostile[(i+5)%len(hostile)]
			ask := func(method string) *httptest.ResponseRecorder {
				r := httptest.NewRequest(method, "/cache/"+url.PathEscape(key), strings.NewReader(value))
				r.Header.Set("Content-Type", "application/octet-stream")
				r.Header.Set("Accept", "application/octet-stream")
				return redistest.Serve(h, r)
			}
			if !isHTTPKey(key) {
				for _, method := range []string{"POST", "GET", "DELETE"} {
					require.Contains(t, []int{404, 422}, ask(method).Code, "%s %q", method, key)
				}
				w.require(t, "nothing", key)
				continue
			}
			require.Equal(t, 200, ask("POST").Code, "%q", key)
			w.held["ns:"+key] = value
			w.require(t, "POST", key)
			require.Equal(t, value, ask("GET").Body.String())
			require.Equal(t, 200, ask("DELETE").Code)
			delete(w.held, "ns:"+key)
			w.require(t, "DELETE", key)
		}
	})
}

// isHTTPKey says whether the handler takes a key.
func isHTTPKey(key string) bool {
	return key != "" && key != "." && key != ".." && len(key) <= 512 && utf8.ValidString(key) &&
		!strings.ContainsFunc(key, unicode.IsControl)
}

// pieces are what the names of tenants and keys are made of in the tests below.
var pieces = []string{
	"a", "b", "a", ":", "+", " ", "*", "?", "[", "]", "[b]", "[^a]", "-", `\`, "{", "}", "{a}", "é", "\x00", "\r\n", "\xff", "ns",
}

func word(rng *rand.Rand, most int) string {
	var b strings.Builder
	for range rng.IntN(most + 1) {
		b.WriteString(pieces[rng.IntN(len(pieces))])
	}
	return b.String()
}

// A tenant is a prefix: Clear removes what begins with it, byte for byte, and nothing else. So tenants
// are apart if neither's prefix begins the other's.
func TestClearRemovesOneTenantAndNoOther(t *testing.T) {
	s := poolServer(t)
	p := newPool(t, s.URL(), sizes(2, 8)...)
	eachWay(t, func(t *testing.T, lanes rediscache.Option) {
		root := newCache(t, p, lanes)
		for seed := range uint64(60) {
			rng := rand.New(rand.NewPCG(seed, 0))
			tenants := []string{"", "a", "a:", "ab", "a*", "a[b]", "{a}", "é", "e\u0301"}
			for range 6 {
				tenants = append(tenants, word(rng, 4))
			}
			s.Flush()
			w := &world{s: s, held: make(map[string]string)}
			for _, tenant := range tenants {
				items := make(map[string][]byte)
				for range rng.IntN(5) {
					key := word(rng, 3)
					items[key] = []byte(word(rng, 3))
					w.held[tenant+key] = string(items[key])
				}
				require.NoError(t, root.Sub(tenant).SetMany(t.Context(), items, rediscache.NoExpiry))
			}
			w.require(t, "SetMany", "all")
			gone := tenants[rng.IntN(len(tenants))]
			cut := rng.IntN(len(gone) + 1)
			n, err := root.Sub(gone[:cut]).Sub(gone[cut:]).Clear(t.Context())
			if gone == "" {
				require.Error(t, err)
			} else {
				require.NoError(t, err)
				require.Equal(t, w.clear(gone), n, "seed %d: %q", seed, gone)
			}
			w.require(t, fmt.Sprintf("seed %d: Clear", seed), gone)
		}
	})
}

func TestAKeyFuncKeepsTenantsApart(t *testing.T) {
	s := poolServer(t)
	c := newCache(t, newPool(t, s.URL(), sizes(2, 8)...), rediscache.WithPrefix("http:"))
	h := rediscache.NewHandler(c, rediscache.WithKeyFunc(func(r *http.Request, key string) (string, error) {
		return r.Header.Get("Tenant") + ":" + key, nil
	}))
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s.Flush()
		w := &world{s: s, held: make(map[string]string)}
		for range 40 {
			tenant := strings.ReplaceAll(word(rng, 3), ":", "") // which ends the name
			key, value := word(rng, 2), fmt.Sprint(rng.Uint64())
			method := []string{"POST", "GET", "DELETE"}[rng.IntN(3)]
			r := httptest.NewRequest(method, "/cache/"+url.PathEscape(key), strings.NewReader(value))
			r.Header = http.Header{"Tenant": {tenant}, "Content-Type": {"text/plain"}, "Accept": {"application/octet-stream"}}
			answer := redistest.Serve(h, r)
			stored := "http:" + tenant + ":" + key
			was, held := w.held[stored]
			switch {
			case !isHTTPKey(key):
				require.Contains(t, []int{404, 422}, answer.Code)
			case method == "POST":
				require.Equal(t, 200, answer.Code)
				w.held[stored] = value
			case !held:
				require.Equal(t, 404, answer.Code)
			case method == "GET":
				require.Equal(t, was, answer.Body.String())
			default:
				require.Equal(t, 200, answer.Code)
				delete(w.held, stored)
			}
			w.require(t, fmt.Sprintf("seed %d: %s by %q", seed, method, tenant), key)
		}
		name := strings.ReplaceAll(word(rng, 3), ":", "") + ":"
		n, err := c.Sub(name).Clear(t.Context())
		require.NoError(t, err)
		require.Equal(t, w.clear("http:"+name), n)
		w.require(t, fmt.Sprintf("seed %d: Clear", seed), name)
	}
}
