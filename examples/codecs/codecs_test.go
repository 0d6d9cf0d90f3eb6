package codecs_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/examples/codecs"
	"github.com/rediscache/rediscache/internal/redistest"
)

const mib = 1 << 20

func frame(t *testing.T, plain []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	writer, err := zstd.NewWriter(nil, opts...)
	require.NoError(t, err)
	return writer.EncodeAll(plain, nil)
}

func TestCompressedKeepsEveryLengthUpToItsLimit(t *testing.T) {
	for _, limit := range []int{1, 100, 1024, 5000, mib + 1, 9 * mib} {
		codec := codecs.Compressed(rediscache.Bytes(), limit)
		for _, n := range []int{0, 1, 99, 100, 255, 256, 1023, 1024, 1025, 5000, mib, mib + 1, 9 * mib} {
			if n > limit {
				continue
			}
			noise := make([]byte, n)
			_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
			for _, plain := range [][]byte{noise, bytes.Repeat([]byte{'x'}, n)} {
				data, err := codec.Encode(plain)
				require.NoError(t, err)
				require.NotEmpty(t, data)
				if n <= 1024 {
					require.LessOrEqual(t, len(data), n+14)
				}
				got, err := codec.Decode(data)
				require.NoError(t, err, "%d of %d", n, limit)
				require.True(t, bytes.Equal(plain, got), "%d of %d", n, limit)
			}
		}
		_, err := codec.Encode(make([]byte, limit+1))
		require.ErrorContains(t, err, "more than the limit")
		_, err = codec.Decode(frame(t, make([]byte, limit+1)))
		require.Error(t, err)
	}
	require.Panics(t, func() { codecs.Compressed(rediscache.Bytes(), 0) })
}

// stream compresses n zeros as a stream, so that the frame does not say how many.
func stream(t *testing.T, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	writer, err := zstd.NewWriter(&b)
	require.NoError(t, err)
	for range n / mib {
		_, err = writer.Write(make([]byte, mib))
		require.NoError(t, err)
	}
	require.NoError(t, writer.Close())
	return b.Bytes()
}

func TestABombInRedisTakesNoMemory(t *testing.T) {
	const size, limit = 256 * mib, mib
	for name, bomb := range map[string][]byte{
		"a frame that names its size": frame(t, make([]byte, size)),
		"a frame that does not":       stream(t, size),
		"many frames":                 bytes.Repeat(frame(t, make([]byte, limit)), size/limit),
	} {
		t.Run(name, func(t *testing.T) {
			require.Less(t, len(bomb), mib)
			codec := codecs.Compressed(rediscache.Bytes(), limit)
			var err error
			allocated := redistest.Allocated(func() { _, err = codec.Decode(bomb) })
			require.Error(t, err)
			require.Less(t, allocated, uint64(16*mib))
		})
	}
	for name, bomb := range map[string][]byte{
		"an array":        binary.BigEndian.AppendUint32([]byte{0xdd}, 1<<30),
		"a map":           binary.BigEndian.AppendUint32([]byte{0xdf}, 1<<30),
		"a string":        binary.BigEndian.AppendUint32([]byte{0xdb}, 1<<30),
		"bytes":           binary.BigEndian.AppendUint32([]byte{0xc6}, 1<<30),
		"an array inside": append([]byte{0x81, 0xa1, 'N'}, binary.BigEndian.AppendUint32([]byte{0xdd}, 1<<30)...),
	} {
		t.Run("MessagePack's "+name, func(t *testing.T) {
			var errs []error
			allocated := redistest.Allocated(func() {
				_, err := codecs.MsgPack[[]int](mib).Decode(bomb)
				errs = append(errs, err)
				_, err = codecs.MsgPack[struct{ N []int }](mib).Decode(bomb)
				errs = append(errs, err)
				_, err = codecs.MsgPack[any](mib).Decode(bomb)
				errs = append(errs, err)
			})
			for _, err := range errs {
				require.Error(t, err)
			}
			require.Less(t, allocated, uint64(16*mib))
		})
	}
}

func TestDeepMessagePackIsRefusedOrSurvived(t *testing.T) {
	codec := codecs.MsgPack[any](mib)
	_, err := codec.Decode(append(bytes.Repeat([]byte{0x91}, mib-1), 0xc0))
	require.NoError(t, err)
	_, err = codec.Decode(append(bytes.Repeat([]byte{0x91}, mib), 0xc0))
	require.ErrorContains(t, err, "more than the limit")
	_, err = codecs.MsgPack[string](10).Encode("0123456789")
	require.ErrorContains(t, err, "more than the limit")
	require.Panics(t, func() { codecs.MsgPack[any](0) })
}

func TestMessagePackKeepsValues(t *testing.T) {
	type value struct {
		N    []int
		When time.Time
		M    map[string]float64
	}
	codec := codecs.MsgPack[value](mib)
	want := value{[]int{1, -2}, time.Unix(1e9, 5).UTC(), map[string]float64{"a": 0.5}}
	data, err := codec.Encode(want)
	require.NoError(t, err)
	got, err := codec.Decode(data)
	require.NoError(t, err)
	require.True(t, want.When.Equal(got.When))
	got.When = want.When
	require.Equal(t, want, got)

	pointers := codecs.MsgPack[*value](mib)
	data, err = pointers.Encode(nil)
	require.NoError(t, err)
	missing, err := pointers.Decode(data)
	require.NoError(t, err)
	require.Nil(t, missing)
}

func TestProtobufKeepsMessages(t *testing.T) {
	codec := codecs.Protobuf[*durationpb.Duration]()
	for _, want := range []*durationpb.Duration{durationpb.New(time.Hour), {}} {
		data, err := codec.Encode(want)
		require.NoError(t, err)
		require.NotEmpty(t, data)
		got, err := codec.Decode(data)
		require.NoError(t, err)
		require.True(t, proto.Equal(want, got))
	}
	_, err := codec.Encode(nil)
	require.ErrorContains(t, err, "nil")
}

func TestBytesThatNoCodecWroteAreAMiss(t *testing.T) {
	server, cache, stop := open()
	t.Cleanup(stop)
	good, err := codecs.MsgPack[article](mib).Encode(article{})
	require.NoError(t, err)
	zipped := frame(t, []byte(`{"Title":"a"}`))
	flipped := bytes.Clone(zipped)
	flipped[len(flipped)-1] ^= 1
	other, err := anypb.New(&structpb.Struct{})
	require.NoError(t, err)
	ofOther, err := proto.Marshal(other)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		missed func(context.Context) error
		values []string
	}{
		"Compressed": {
			missed(t, cache, codecs.Compressed(rediscache.JSON[article](), mib)),
			[]string{"", `{"Title":"a"}`, string(flipped), string(zipped[:len(zipped)-1]), string(zipped) + "x", string(frame(t, []byte("null")))},
		},
		"Compressed Bytes": {
			missed(t, cache, codecs.Compressed(rediscache.Bytes(), mib)),
			[]string{"", "\x50\x2a\x4d\x18\x00\x00\x00\x00", "plain"},
		},
		"MsgPack": {
			missed(t, cache, codecs.MsgPack[article](mib)),
			[]string{"", `{"Title":"a"}`, "\xc0", "\x01", string(good) + "\x00", string(good[:len(good)-1])},
		},
		"Protobuf": {
			missed(t, cache, codecs.Protobuf[*durationpb.Duration]()),
			[]string{"", `{"Title":"a"}`, "\x08\x01", string(ofOther), strings.Repeat("x", 1000)},
		},
	} {
		for _, value := range c.values {
			require.NoError(t, server.Set("a", value))
			require.ErrorIs(t, c.missed(t.Context()), errLoaded, "%s of %q", name, value)
		}
	}
}

var errLoaded = errors.New("the value was loaded")

// missed returns a function that returns errLoaded if the key a is a miss.
func missed[V any](t *testing.T, cache *rediscache.Cache, codec rediscache.Codec[V]) func(context.Context) error {
	t.Helper()
	view, err := rediscache.Of(cache, codec, rediscache.Policy{TTL: time.Hour})
	require.NoError(t, err)
	return func(ctx context.Context) error {
		_, err := view.GetOrLoad(ctx, "a", func(context.Context) (V, error) {
			var zero V
			return zero, errLoaded
		})
		return err
	}
}

func FuzzDecode(f *testing.F) {
	zipped, pack := codecs.Compressed(rediscache.JSON[any](), 1<<16), codecs.MsgPack[any](1<<16)
	messages := codecs.Protobuf[*structpb.Struct]()
	for _, seed := range []string{"", "\xc0", "\x81\xa1a\x01", "\x28\xb5\x2f\xfd\x24\x04\x21\x00\x00null\x4e\x1d\xc5\xdb"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = zipped.Decode(bytes.Clone(data))
		_, _ = pack.Decode(bytes.Clone(data))
		_, _ = messages.Decode(bytes.Clone(data))
	})
}
