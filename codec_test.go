package rediscache_test

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// measurement may be null, as a column of a database may be.
type measurement struct {
	value float64
	valid bool
}

func (r measurement) MarshalJSON() ([]byte, error) {
	if !r.valid {
		return []byte("null"), nil
	}
	return strconv.AppendFloat(nil, r.value, 'g', -1, 64), nil
}

func (r *measurement) UnmarshalJSON(data []byte) (err error) {
	if string(data) == "null" {
		return nil
	}
	r.value, err = strconv.ParseFloat(string(data), 64)
	r.valid = err == nil
	return err
}

// lossy encodes a number that JSON does not have as null, and decodes null as zero.
type lossy float64

func (l lossy) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(l)) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(l))
}

// digits is an array that is encoded as text.
type digits [2]byte

func (d digits) MarshalText() ([]byte, error) { return d[:], nil }

func (d *digits) UnmarshalText(text []byte) error {
	copy(d[:], text)
	return nil
}

// A value that another program stored is a miss, not a zero value.
func TestTheJSONCodecAcceptsOnlyWhatItCouldHaveWritten(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		c := newCache(t, newPool(t, s.URL()), unhurried)
		const null, spaced = "null", " null\n"

		requireRefused(t, c, 7, null, spaced, "", "7 8", "7}", `"7"`, "7.5", "[7]", "{}", "\ufeff7")
		requireRefused(t, c, "text", null, spaced, "text", "7", `"a" "b"`)
		requireRefused(t, c, true, null, "0", `"true"`)
		requireRefused(t, c, 0.5, null)
		requireRefused(t, c, user{Name: "Ann"}, null, spaced, "[]", `"Ann"`, `{"age":"1"}`, `{}{}`, `{"name":"Ann"`)
		requireRefused(t, c, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), null)
		requireRefused(t, c, digits{'4', '2'}, null, "[4,2]")
		requireRefused(t, c, [2]int{1, 2}, null, "[]", "[1]", "[1,2,3]", " [ 1 ] ")
		requireRefused(t, c, lossy(0), null)
		requireRefused(t, c, []int{1}, "{}", "1")

		requireTaken(t, c, []int(nil), null, spaced)
		requireTaken(t, c, []int{}, "[]")
		requireTaken(t, c, []byte(nil), null)
		requireTaken(t, c, map[string]int(nil), null)
		requireTaken(t, c, (*user)(nil), null)
		requireTaken(t, c, (*int)(nil), null)
		requireTaken(t, c, any(nil), null)
		requireTaken(t, c, json.RawMessage(null), null)
		requireTaken(t, c, measurement{}, null)
		requireTaken(t, c, measurement{0, true}, "0")
		requireTaken(t, c, digits{'4', '2'}, ` "42"`)
		requireTaken(t, c, [2]int{1, 2}, "[1,2]", " [ 1 , 2 ]\n")
		requireTaken(t, c, [0]int{}, "[]")

		// Another version of the program, and other white space.
		requireTaken(t, c, user{Name: "Ann"}, `{"name":"Ann"}`, `{"name":"Ann","age":0,"new":null}`, `{"name":"Ann","age":null}`, "{\n\"name\": \"Ann\"\n}\n")
	})
}

// requireRefused stores each of data, and requires a miss: value is loaded and overwrites it.
func requireRefused[V any](t *testing.T, c *rediscache.Cache, value V, data ...string) {
	t.Helper()
	v, ctx := newView(t, c, rediscache.JSON[V](), rediscache.Policy{}), t.Context()
	for _, held := range data {
		require.NoError(t, c.Set(ctx, "k", []byte(held), rediscache.NoExpiry))
		_, err := v.Get(ctx, "k")
		require.ErrorIs(t, err, rediscache.ErrNotFound, "%q under %T", held, value)
		many, err := v.GetMany(ctx, "k")
		require.NoError(t, err)
		require.Empty(t, many, "%q under %T", held, value)
		got, err := v.GetOrLoad(ctx, "k", returns(value))
		require.NoError(t, err)
		require.Equal(t, value, got)
		got, err = v.Get(ctx, "k")
		require.NoError(t, err, "%q under %T was overwritten", held, value)
		require.Equal(t, value, got)
	}
}

// requireTaken stores each of data, and value itself, and requires hits.
func requireTaken[V any](t *testing.T, c *rediscache.Cache, value V, data ...string) {
	t.Helper()
	v, ctx := newView(t, c, rediscache.JSON[V](), rediscache.Policy{}), t.Context()
	own, err := rediscache.JSON[V]().Encode(value)
	require.NoError(t, err)
	for _, held := range append(data, string(own)) {
		require.NoError(t, c.Set(ctx, "k", []byte(held), rediscache.NoExpiry))
		got, err := v.GetOrLoad(ctx, "k", never[V](t))
		require.NoError(t, err, "%q under %T", held, value)
		require.EqualValues(t, value, got)
	}
}

// FuzzCodec decodes arbitrary bytes, and encodes arbitrary values.
func FuzzCodec(f *testing.F) {
	for _, data := range []string{
		"", "null", `"a"`, `{"name":"a","age":1}`, `{"NAME":"a","name":null}`, `[1,-0,1e308,{"":[]}]`, "{", "1 2", "\xff", "\"\xff\"",
		`"\ud83d"`, strings.Repeat("[", 20_000), "1e400", "\x00", " ", "\ufeff1",
	} {
		f.Add([]byte(data), data, int64(len(data)))
	}
	c := newCache(f, newPool(f, redistest.StartMini(f).URL(), sizes(1, 2)...))
	policy := rediscache.Policy{TTL: time.Minute, Negative: time.Minute}
	users := newView(f, c, rediscache.JSON[user](), policy)
	f.Fuzz(func(t *testing.T, data []byte, text string, n int64) {
		fuzzDecode(t, rediscache.Bytes(), data)
		fuzzDecode(t, rediscache.String(), data)
		fuzzDecode(t, rediscache.JSON[user](), data)
		fuzzDecode(t, rediscache.JSON[any](), data)
		fuzzDecode(t, rediscache.JSON[[]byte](), data)
		fuzzDecode(t, rediscache.JSON[map[string]*int64](), data)
		fuzzDecode(t, rediscache.JSON[[2]int](), data)
		fuzzDecode(t, rediscache.JSON[measurement](), data)

		fuzzEncode(t, rediscache.Bytes(), data)
		fuzzEncode(t, rediscache.String(), text)
		fuzzEncode(t, rediscache.JSON[[]byte](), data)
		if utf8.ValidString(text) { // JSON has no other strings
			fuzzEncode(t, rediscache.JSON[string](), text)
			fuzzEncode(t, rediscache.JSON[user](), user{Name: text, Age: int(n)})
		}

		// Under Policy.Negative nothing at all is no value, and nothing else is.
		require.NoError(t, c.Set(t.Context(), "k", data, 0))
		before := c.Stats()
		got, err := users.Get(t.Context(), "k")
		want, bad := rediscache.JSON[user]().Decode(data)
		if negative := c.Stats().Negatives - before.Negatives; len(data) == 0 {
			require.EqualValues(t, 1, negative)
		} else {
			require.Zero(t, negative)
		}
		if bad != nil || !json.Valid(data) {
			require.ErrorIs(t, err, rediscache.ErrNotFound)
		} else {
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		require.NoError(t, users.Set(t.Context(), "k", user{Name: text, Age: int(n)}))
		stored, err := c.Get(t.Context(), "k")
		require.NoError(t, err)
		require.NotEmpty(t, stored)
	})
}

// fuzzDecode: what can be decoded is the same when it was encoded and decoded again.
func fuzzDecode[V any](t *testing.T, codec rediscache.Codec[V], data []byte) {
	t.Helper()
	if value, err := codec.Decode(data); err == nil {
		fuzzEncode(t, codec, value)
	}
}

func fuzzEncode[V any](t *testing.T, codec rediscache.Codec[V], value V) {
	t.Helper()
	data, err := codec.Encode(value)
	require.NoError(t, err)
	again, err := codec.Decode(data)
	require.NoError(t, err, "%q", data)
	if !reflect.DeepEqual(value, again) {
		require.Equal(t, fmt.Sprint(value), fmt.Sprint(again)) // nil and empty
	}
}
