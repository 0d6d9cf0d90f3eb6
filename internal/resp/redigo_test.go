package resp_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/resp"
)

// memory is a connection whose peer has already sent all bytes. It keeps the bytes written to it.
type memory struct {
	io.Reader
	written bytes.Buffer
}

func (m *memory) Write(p []byte) (int, error)    { return m.written.Write(p) }
func (*memory) Close() error                     { return nil }
func (*memory) LocalAddr() net.Addr              { return nil }
func (*memory) RemoteAddr() net.Addr             { return nil }
func (*memory) SetDeadline(time.Time) error      { return nil }
func (*memory) SetReadDeadline(time.Time) error  { return nil }
func (*memory) SetWriteDeadline(time.Time) error { return nil }

func newRedigo(in []byte) redis.Conn {
	return redis.NewConn(&memory{Reader: bytes.NewReader(in)}, 0, 0)
}

// receive returns redigo's next reply as one of ours. A panic of redigo's is an error.
func receive(c redis.Conn) (reply resp.Reply, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	v, err := redis.ReceiveWithTimeout(c, 0)
	var refused redis.Error
	if errors.As(err, &refused) {
		return failure(string(refused)), nil
	}
	if err != nil {
		return resp.Reply{}, err
	}
	return fromRedigo(v), nil
}

func fromRedigo(v any) resp.Reply {
	switch v := v.(type) {
	case nil:
		return null
	case string:
		return status(v)
	case redis.Error:
		return failure(string(v))
	case int64:
		return integer(v)
	case []byte:
		return resp.Reply{Kind: resp.Bulk, Bytes: v}
	case []any:
		elems := make([]resp.Reply, len(v))
		for i := range v {
			elems[i] = fromRedigo(v[i])
		}
		return resp.Reply{Kind: resp.Array, Elems: elems}
	}
	panic(fmt.Sprintf("redigo replied with a %T", v))
}

// written returns what redigo writes for a command.
func written(t *testing.T, name string, args ...any) string {
	t.Helper()
	m := &memory{}
	c := redis.NewConn(m, 0, 0)
	require.NoError(t, c.Send(name, args...))
	require.NoError(t, c.Flush())
	return m.written.String()
}

// claims adds up the numbers that stand behind a '$' or a '*', wherever that is. It stops counting
// where redigo could come to harm.
func claims(in []byte) int64 {
	var sum int64
	for i, c := range in {
		if c != '$' && c != '*' {
			continue
		}
		var n int64
		for _, d := range in[i+1:] {
			if d < '0' || d > '9' || n > 1<<30 {
				break
			}
			n = n*10 + int64(d-'0')
		}
		if sum += n; sum > 1<<30 {
			break
		}
	}
	return sum
}

// beyondRedigo holds the errors of ours for what redigo takes, or takes wrongly.
var beyondRedigo = map[string]bool{
	"rediscache: bad reply: integer beyond 64 bits":          true,
	"rediscache: bad reply: bulk string beyond the limit":    true,
	"rediscache: bad reply: array elements beyond the limit": true,
	"rediscache: bad reply: arrays nested beyond the limit":  true,
	"rediscache: bad reply: line beyond the limit":           true,
}

// All that we found to differ, none of it on a valid reply within the limits.
func TestWhereRedigoDiffers(t *testing.T) {
	for _, c := range []struct {
		in, ours string
		redigo   string // a reply as Go writes it, or an error
	}{
		// redigo lets numbers overflow in silence, lengths at the end of an int: at 2 GiB on 32 bits.
		{":9223372036854775808\r\n", "integer beyond 64 bits", "-9223372036854775808"},
		{":18446744073709551617\r\n", "integer beyond 64 bits", "1"},
		{"$18446744073709551617\r\na\r\n", "bulk string beyond the limit", `"a"`},
		{"$18446744073709551615\r\n", "bulk string beyond the limit", "nil"},
		{"*18446744073709551617\r\n:1\r\n", "array elements beyond the limit", "[1]"},
		{"*18446744073709551615\r\n", "array elements beyond the limit", "nil"},
		// redigo allocates what is claimed, and has no limits.
		{fmt.Sprintf("*%d\r\n", math.MaxInt), "array elements beyond the limit", "panic: runtime error: makeslice: len out of range"},
		{strings.Repeat("*1\r\n", 9) + ":1\r\n", "arrays nested beyond the limit", "[[[[[[[[[1]]]]]]]]]"},
		// To redigo a stream that ends within a line ends cleanly.
		{"+O", "unexpected EOF", "EOF"},
		{"*2\r\n:1\r\n", "unexpected EOF", "EOF"},
		{"$3\r\nabc", "unexpected EOF", "EOF"},
		// We see what is wrong without waiting for the end of the line, but for two bytes.
		{"\x15\x03\x01", "unknown type", "EOF"},
		{"$3\r\nabcde", "no CRLF where one belongs", "EOF"},
		{"$3\r\nabc\n", "unexpected EOF", "bad response line terminator"},
	} {
		_, err := read(strings.NewReader(c.in))
		require.ErrorContains(t, err, c.ours, "%.40q", c.in)
		reply, err := receive(newRedigo([]byte(c.in)))
		if err != nil {
			require.ErrorContains(t, err, c.redigo, "%.40q", c.in)
		} else {
			require.Equal(t, c.redigo, literal(reply), "%.40q", c.in)
		}
	}
}

func TestRedigoReadsALineOfAnyLength(t *testing.T) {
	in := "+" + strings.Repeat("a", resp.DefaultMaxLine) + "\r\n"
	_, err := read(strings.NewReader(in))
	require.ErrorContains(t, err, "line beyond the limit")
	reply, err := receive(newRedigo([]byte(in)))
	require.NoError(t, err)
	require.Len(t, reply.Text, resp.DefaultMaxLine)
}

// literal writes a reply of nil, integers, bulk strings and arrays.
func literal(r resp.Reply) string {
	switch r.Kind {
	case resp.Nil:
		return "nil"
	case resp.Int:
		return fmt.Sprint(r.Int)
	case resp.Bulk:
		return fmt.Sprintf("%q", r.Bytes)
	}
	elems := make([]string, len(r.Elems))
	for i, e := range r.Elems {
		elems[i] = literal(e)
	}
	return "[" + strings.Join(elems, " ") + "]"
}
