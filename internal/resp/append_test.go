package resp_test

import (
	"bytes"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/resp"
)

func TestCommandsAreArraysOfBulkStrings(t *testing.T) {
	type name string
	type raw []byte

	b := resp.AppendArray([]byte("before "), 5)
	b = resp.AppendBulk(b, "SET")
	b = resp.AppendBulk(b, name("k"))
	b = resp.AppendBulk(b, raw("a\r\nb"))
	b = resp.AppendBulk(b, []byte(nil))
	b = resp.AppendInt(b, -12)
	require.Equal(t, "before *5\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n$0\r\n\r\n$3\r\n-12\r\n", string(b))
}

func TestLengthsAreDecimalAtEveryWidth(t *testing.T) {
	for n, head := range map[int]string{
		0: "$0", 9: "$9", 10: "$10", 99: "$99", 100: "$100", 999: "$999", 1000: "$1000", 123456: "$123456",
	} {
		arg := bytes.Repeat([]byte("x"), n)
		require.Equal(t, head+"\r\n"+string(arg)+"\r\n", string(resp.AppendBulk(nil, arg)))
	}
	require.Equal(t, "*1048576\r\n", string(resp.AppendArray(nil, 1<<20)))
}

func TestIntegersOfEverySizeAreAppended(t *testing.T) {
	for n, want := range map[int64]string{
		0: "$1\r\n0\r\n", 3600000: "$7\r\n3600000\r\n",
		math.MaxInt64: "$19\r\n9223372036854775807\r\n", math.MinInt64: "$20\r\n-9223372036854775808\r\n",
	} {
		require.Equal(t, want, string(resp.AppendInt(nil, n)))
	}
}

func TestAJoinedArgumentIsOneArgument(t *testing.T) {
	for _, parts := range [][2]string{{"", ""}, {"prefix:", ""}, {"", "key"}, {"prefix:", "key"}, {"a\r\n", "\x00\xff"}} {
		require.Equal(t, resp.AppendBulk(nil, parts[0]+parts[1]), resp.AppendJoined(nil, parts[0], parts[1]))
	}
}

func TestAppendToARoomySliceDoesNotAllocate(t *testing.T) {
	b, key, value := make([]byte, 0, 1024), "user:1234", make([]byte, 100)
	require.Zero(t, testing.AllocsPerRun(100, func() { b = appendSet(b[:0], key, value, 60_000) }))
}

func appendSet(b []byte, key string, value []byte, ttl int64) []byte {
	b = resp.AppendArray(b, 5)
	b = resp.AppendBulk(b, "SET")
	b = resp.AppendBulk(b, key)
	b = resp.AppendBulk(b, value)
	b = resp.AppendBulk(b, "PX")
	return resp.AppendInt(b, ttl)
}
