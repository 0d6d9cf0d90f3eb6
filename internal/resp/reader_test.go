package resp_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/resp"
)

func read(src io.Reader) (resp.Reply, error) {
	return resp.NewReader(src, resp.Limits{}).Read()
}

func status(s string) resp.Reply           { return resp.Reply{Kind: resp.Status, Text: s} }
func failure(s string) resp.Reply          { return resp.Reply{Kind: resp.Error, Text: s} }
func integer(n int64) resp.Reply           { return resp.Reply{Kind: resp.Int, Int: n} }
func bulk(s string) resp.Reply             { return resp.Reply{Kind: resp.Bulk, Bytes: []byte(s)} }
func array(elems ...resp.Reply) resp.Reply { return resp.Reply{Kind: resp.Array, Elems: elems} }

var null = resp.Reply{Kind: resp.Nil}

var good = map[string]resp.Reply{
	"+OK\r\n":                                status("OK"),
	"+PONG\r\n":                              status("PONG"),
	"+QUEUED\r\n":                            status("QUEUED"),
	"+\r\n":                                  status(""),
	"+a\rb\r\n":                              status("a\rb"), // as redigo: the line ends where LF is
	"-ERR no such key\r\n":                   failure("ERR no such key"),
	"-\r\n":                                  failure(""),
	":0\r\n":                                 integer(0),
	":-0\r\n":                                integer(0),
	":007\r\n":                               integer(7),
	":-42\r\n":                               integer(-42),
	":9223372036854775807\r\n":               integer(math.MaxInt64),
	":-9223372036854775808\r\n":              integer(math.MinInt64),
	"$-1\r\n":                                null,
	"*-1\r\n":                                null,
	"$0\r\n\r\n":                             bulk(""),
	"$3\r\nabc\r\n":                          bulk("abc"),
	"$003\r\nabc\r\n":                        bulk("abc"),
	"$4\r\n\r\n\r\n\r\n":                     bulk("\r\n\r\n"),
	"*0\r\n":                                 {Kind: resp.Array, Elems: []resp.Reply{}},
	"*3\r\n$1\r\na\r\n$-1\r\n-ERR x\r\n":     array(bulk("a"), null, failure("ERR x")),
	"*2\r\n*2\r\n:1\r\n*-1\r\n*1\r\n+OK\r\n": array(array(integer(1), null), array(status("OK"))),
	"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*0\r\n": nested(7, array([]resp.Reply{}...)),
}

func nested(depth int, inner resp.Reply) resp.Reply {
	if inner.Elems == nil {
		inner.Elems = []resp.Reply{}
	}
	for range depth {
		inner = array(inner)
	}
	return inner
}

var bad = map[string]string{
	"x\r\n":                           "unknown type",
	"\r\n":                            "unknown type",
	"\n":                              "unknown type",
	"HTTP/1.1 400":                    "unknown type",
	"_\r\n":                           "a type of RESP3 on a RESP2 connection",
	"#t\r\n":                          "a type of RESP3 on a RESP2 connection",
	",1.5\r\n":                        "a type of RESP3 on a RESP2 connection",
	"(1\r\n":                          "a type of RESP3 on a RESP2 connection",
	"!3\r\nERR\r\n":                   "a type of RESP3 on a RESP2 connection",
	"=7\r\ntxt:abc\r\n":               "a type of RESP3 on a RESP2 connection",
	"%1\r\n+a\r\n+b\r\n":              "a type of RESP3 on a RESP2 connection",
	"~0\r\n":                          "a type of RESP3 on a RESP2 connection",
	">0\r\n":                          "a type of RESP3 on a RESP2 connection",
	"|0\r\n":                          "a type of RESP3 on a RESP2 connection",
	"*1\r\n_\r\n":                     "a type of RESP3 on a RESP2 connection",
	"+\n":                             "no CRLF where one belongs",
	"+OK\n":                           "no CRLF where one belongs",
	":1\n":                            "no CRLF where one belongs",
	"$3\n":                            "no CRLF where one belongs",
	"$3\r\nabcd\r\n":                  "no CRLF where one belongs",
	"$3\r\nabc\n\n":                   "no CRLF where one belongs",
	"$3\r\nabc\r\r\n":                 "no CRLF where one belongs",
	":\r\n":                           "malformed number",
	":-\r\n":                          "malformed number",
	":+1\r\n":                         "malformed number",
	":--1\r\n":                        "malformed number",
	": 1\r\n":                         "malformed number",
	":1.0\r\n":                        "malformed number",
	":0x1\r\n":                        "malformed number",
	"$\r\n":                           "malformed number",
	"$-\r\n":                          "malformed number",
	"$-0\r\n":                         "malformed number",
	"$-2\r\n":                         "malformed number",
	"$-01\r\n":                        "malformed number",
	"$+1\r\na\r\n":                    "malformed number",
	"$1 \r\na\r\n":                    "malformed number",
	"$?\r\n":                          "malformed number",
	"*\r\n":                           "malformed number",
	"*-2\r\n":                         "malformed number",
	"*+0\r\n":                         "malformed number",
	":9223372036854775808\r\n":        "integer beyond 64 bits",
	":-9223372036854775809\r\n":       "integer beyond 64 bits",
	":18446744073709551616\r\n":       "integer beyond 64 bits",
	"$536870913\r\n":                  "bulk string beyond the limit",
	"$9223372036854775807\r\n":        "bulk string beyond the limit",
	"$9223372036854775808\r\n":        "bulk string beyond the limit",
	"$18446744073709551617\r\na\r\n":  "bulk string beyond the limit",
	"*1048577\r\n":                    "array elements beyond the limit",
	"*1000000000\r\n":                 "array elements beyond the limit",
	"*18446744073709551617\r\n:1\r\n": "array elements beyond the limit",
}

// chunkings are the ways in which a network may cut a stream.
var chunkings = map[string]func(io.Reader) io.Reader{
	"whole":           func(r io.Reader) io.Reader { return r },
	"byte by byte":    iotest.OneByteReader,
	"half by half":    iotest.HalfReader,
	"error with data": iotest.DataErrReader,
}

func TestEveryKindIsReadHoweverItArrives(t *testing.T) {
	for in, want := range good {
		for name, cut := range chunkings {
			r := resp.NewReader(cut(strings.NewReader(in+in)), resp.Limits{})
			for range 2 {
				got, err := r.Read()
				require.NoError(t, err, "%q %s", in, name)
				require.Equal(t, want, got, "%q %s", in, name)
			}
			require.Zero(t, r.Buffered())
			_, err := r.Read()
			require.Equal(t, io.EOF, err, "%q %s", in, name)
		}
	}
}

func TestWhatIsNotRESP2IsAProtocolError(t *testing.T) {
	for in, text := range bad {
		for name, cut := range chunkings {
			reply, err := read(cut(strings.NewReader(in)))
			var broken *resp.ProtocolError
			require.ErrorAs(t, err, &broken, "%q %s", in, name)
			require.EqualError(t, err, "rediscache: bad reply: "+text, "%q %s", in, name)
			require.Zero(t, reply)
		}
	}
}

func TestAReplyCutAnywhereIsAnUnexpectedEnd(t *testing.T) {
	for in := range good {
		for n := 1; n < len(in); n++ {
			for name, cut := range chunkings {
				_, err := read(cut(strings.NewReader(in[:n])))
				require.Equal(t, io.ErrUnexpectedEOF, err, "%q %s", in[:n], name)
			}
		}
	}
}

func TestAnErrorBreaksTheReaderForGood(t *testing.T) {
	r := resp.NewReader(strings.NewReader("+OK\r\n?\r\n+OK\r\n"), resp.Limits{})
	_, err := r.Read()
	require.NoError(t, err)
	_, first := r.Read()
	require.Error(t, first)
	_, second := r.Read()
	require.Same(t, first, second)
}

func TestAnErrorOfTheSourceIsReturnedAsItIs(t *testing.T) {
	boom := errors.New("boom")
	for name, cut := range chunkings {
		r := resp.NewReader(cut(io.MultiReader(strings.NewReader("+OK\r\n$5\r\nab"), iotest.ErrReader(boom))), resp.Limits{})
		_, err := r.Read()
		require.NoError(t, err, name)
		_, err = r.Read()
		require.Equal(t, boom, err, name)
		var broken *resp.ProtocolError
		require.NotErrorAs(t, err, &broken)
	}
}

// tardy is a source that times out before each read.
type tardy struct {
	io.Reader
	late bool
}

func (s *tardy) Read(p []byte) (int, error) {
	if s.late = !s.late; s.late {
		return 0, os.ErrDeadlineExceeded
	}
	return s.Reader.Read(p)
}

func TestAReadThatTimedOutGoesOnWhereItStopped(t *testing.T) {
	for in, want := range good {
		for name, cut := range chunkings {
			src := &tardy{Reader: cut(strings.NewReader(in + in))}
			r := resp.NewReader(src, resp.Limits{})
			for range 2 {
				got, err := r.Read()
				for n := 0; errors.Is(err, os.ErrDeadlineExceeded) && n < 1000; n++ {
					got, err = r.Read()
				}
				require.NoError(t, err, "%q %s", in, name)
				require.Equal(t, want, got, "%q %s", in, name)
			}
		}
	}
}

// What a Reader has begun to read must not be part of what it reads from another source.
func TestResetForgetsTheReplyThatHasBegun(t *testing.T) {
	for in := range good {
		for n := range len(in) {
			src := io.MultiReader(iotest.OneByteReader(strings.NewReader(in[:n])), iotest.ErrReader(os.ErrDeadlineExceeded))
			r := resp.NewReader(src, resp.Limits{})
			_, err := r.Read()
			require.Error(t, err)
			r.Reset(strings.NewReader("*1\r\n:1\r\n"))
			got, err := r.Read()
			require.NoError(t, err)
			require.Equal(t, array(integer(1)), got, "%q", in[:n])
		}
	}
}

// scripted is a source whose every Read is the script's next step. It keeps the size of each.
type scripted struct {
	step  func(p []byte) (int, error)
	sizes []int
}

func (s *scripted) Read(p []byte) (int, error) {
	s.sizes = append(s.sizes, len(p))
	return s.step(p)
}

func TestAnErrorThatComesWithDataIsNotForgotten(t *testing.T) {
	boom := errors.New("boom")
	src := &scripted{}
	src.step = func(p []byte) (int, error) {
		if len(src.sizes) > 1 {
			return copy(p, "+LATER\r\n"), nil
		}
		return copy(p, "+OK\r\n"), boom
	}
	r := resp.NewReader(src, resp.Limits{})
	got, err := r.Read()
	require.NoError(t, err)
	require.Equal(t, status("OK"), got)
	_, err = r.Read()
	require.Equal(t, boom, err)
	require.Len(t, src.sizes, 1)
}

func TestASourceWithoutProgressIsGivenUp(t *testing.T) {
	src := &scripted{step: func([]byte) (int, error) { return 0, nil }}
	_, err := read(src)
	require.Equal(t, io.ErrNoProgress, err)
	require.Len(t, src.sizes, 100)
}

func TestALongValueIsReadPastTheBuffer(t *testing.T) {
	const size = 1 << 20
	in := bytes.NewReader(append(resp.AppendBulk(nil, make([]byte, size)), "+OK\r\n"...))
	src := &scripted{step: in.Read}
	r := resp.NewReader(src, resp.Limits{})
	got, err := r.Read()
	require.NoError(t, err)
	require.Len(t, got.Bytes, size)
	// The first buffer holds "$1048576\r\n" and what follows; the rest of the value goes where it
	// belongs; the CRLF comes with the next reply.
	require.Equal(t, []int{64 << 10, size - (64<<10 - 10), 64 << 10}, src.sizes)
	require.Equal(t, len("+OK\r\n"), r.Buffered())
}

// segments is a source that returns one segment for a Read.
type segments struct {
	rest  []string
	reads int
}

func (s *segments) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	s.reads++
	n := copy(p, s.rest[0])
	if s.rest[0] = s.rest[0][n:]; s.rest[0] == "" {
		s.rest = s.rest[1:]
	}
	return n, nil
}

func TestTheSourceIsAskedOnlyForWhatIsNotBuffered(t *testing.T) {
	src := &segments{rest: []string{"$1\r\na\r\n:1\r\n*2\r\n:1\r\n:2\r\n$3\r\na", "bc\r\n+OK\r\n"}}
	r := resp.NewReader(src, resp.Limits{})
	for i, want := range []struct {
		reply           resp.Reply
		reads, buffered int
	}{
		{bulk("a"), 1, 21}, {integer(1), 1, 17}, {array(integer(1), integer(2)), 1, 5}, {bulk("abc"), 2, 5}, {status("OK"), 2, 0},
	} {
		got, err := r.Read()
		require.NoError(t, err)
		require.Equal(t, want.reply, got)
		require.Equal(t, want.reads, src.reads, "reply %d", i)
		require.Equal(t, want.buffered, r.Buffered(), "reply %d", i)
	}
}

func TestBuffersAndValuesOfEverySizeFit(t *testing.T) {
	sizes := []int{1, 4095, 64<<10 - 9, 64<<10 - 8, 64 << 10, 64<<10 + 1, 1<<20 - 1, 1 << 20, 1<<20 + 1, 4 << 20, 9 << 20}
	for name, cut := range map[string]func(io.Reader) io.Reader{"whole": chunkings["whole"], "half by half": iotest.HalfReader} {
		var in []byte
		for _, n := range sizes {
			in = append(resp.AppendBulk(in, bytes.Repeat([]byte{byte(n)}, n)), "+OK\r\n"...)
		}
		r := resp.NewReader(cut(bytes.NewReader(in)), resp.Limits{})
		for _, n := range sizes {
			got, err := r.Read()
			require.NoError(t, err, "%d %s", n, name)
			require.True(t, bytes.Equal(bytes.Repeat([]byte{byte(n)}, n), got.Bytes), "%d %s", n, name)
			require.Equal(t, n, cap(got.Bytes), "%d %s", n, name)
			got, err = r.Read()
			require.NoError(t, err)
			require.Equal(t, status("OK"), got)
		}
	}
}

func TestArraysLongerThanTheFirstStepAreRead(t *testing.T) {
	for _, n := range []int{1023, 1024, 1025, 5000, 100_000} {
		in := fmt.Sprintf("*%d\r\n", n) + strings.Repeat(":7\r\n", n)
		got, err := read(strings.NewReader(in))
		require.NoError(t, err)
		require.Len(t, got.Elems, n)
		require.Equal(t, n, cap(got.Elems))
		require.Equal(t, integer(7), got.Elems[n-1])
	}
}

func TestTheCallerOwnsWhatItReads(t *testing.T) {
	r := resp.NewReader(strings.NewReader("$3\r\nabc\r\n$3\r\ndef\r\n+OK\r\n"), resp.Limits{})
	first, err := r.Read()
	require.NoError(t, err)
	_ = append(first.Bytes, "overrun"...)
	copy(first.Bytes, "zzz")
	second, err := r.Read()
	require.NoError(t, err)
	require.Equal(t, bulk("def"), second)
	require.Equal(t, bulk("zzz"), first)
}

func TestWholeReportsWhetherTheRepliesAreBuffered(t *testing.T) {
	for input, want := range map[string]int{
		"": 0, ":1": 0, ":1\r\n": 1, ":1\r\n:2\r\n": 2, ":1\r\n:2\r": 1, "-ERR\r\n+OK\r\n": 2,
		"$3\r\nabc\r\n:1\r\n": 2, "$3\r\nabc\r": 0, "$3\r\n": 0, "$-1\r\n:1\r\n": 2, ":1\r\n*0\r\n": 1,
	} {
		r := resp.NewReader(strings.NewReader(input), resp.Limits{})
		_ = r.Fill() // nothing to read is the end
		for n := 1; n <= 3; n++ {
			require.Equal(t, n <= want, r.Whole(n), "%d of %q", n, input)
		}
	}
}
