package resp_test

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/resp"
)

// repeat is a source without end that says the same again and again.
type repeat struct {
	block string
	at    int
}

func (s *repeat) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m := copy(p[n:], s.block[s.at:])
		n, s.at = n+m, (s.at+m)%len(s.block)
	}
	return n, nil
}

func TestAllocationsOfAReply(t *testing.T) {
	value := strings.Repeat("v", 100)
	for in, want := range map[string]float64{
		"+OK\r\n":                   0,
		"+PONG\r\n":                 0,
		"+QUEUED\r\n":               0,
		":12345678\r\n":             0,
		"$-1\r\n":                   0,
		"*-1\r\n":                   0,
		"$0\r\n\r\n":                0,
		"*0\r\n":                    0,
		"+BUSY\r\n":                 1,
		"-ERR unknown command\r\n":  1,
		"$100\r\n" + value + "\r\n": 1,
		"*2\r\n:1\r\n:2\r\n":        1,
		"*3\r\n$3\r\nabc\r\n$-1\r\n$3\r\nabc\r\n":                3,
		"$1000000\r\n" + strings.Repeat("v", 1_000_000) + "\r\n": 1,
	} {
		r := resp.NewReader(&repeat{block: in}, resp.Limits{})
		got := testing.AllocsPerRun(100, func() {
			if _, err := r.Read(); err != nil {
				t.Error(err)
			}
		})
		require.Equal(t, want, got, "%.30q", in)
	}
}

func TestAClaimAllocatesNoMoreThanAFirstStep(t *testing.T) {
	const step = 1 << 20
	for name, c := range map[string]struct {
		src  io.Reader
		most uint64
	}{
		"a bulk string of 8 EiB":        {strings.NewReader("$9223372036854775807\r\nabc"), step / 4},
		"a bulk string of 512 MiB":      {strings.NewReader("$536870912\r\nabc"), step + step/4},
		"2 MiB of 512 MiB":              {strings.NewReader("$536870912\r\n" + strings.Repeat("a", 2<<20)), 6 * step},
		"a billion elements":            {strings.NewReader("*1000000000\r\n:1\r\n"), step / 4},
		"a million elements":            {strings.NewReader("*1048576\r\n:1\r\n"), step / 2},
		"5000 of a million elements":    {strings.NewReader("*1048576\r\n" + strings.Repeat(":1\r\n", 5000)), 3 * step},
		"large arrays, 8 deep":          {strings.NewReader(strings.Repeat("*100000\r\n", 8)), step},
		"arrays 100,000 deep":           {strings.NewReader(strings.Repeat("*1\r\n", 100_000)), step / 4},
		"a line without end":            {&repeat{block: "+aaaa"}, step / 4},
		"a length without end":          {&repeat{block: "$"}, step / 4},
		"digits without end":            {io.MultiReader(strings.NewReader("$"), &repeat{block: "0"}), step / 4},
		"a line without end, in pieces": {iotest.OneByteReader(&repeat{block: "+a"}), step / 4},
		"a cut bulk string":             {strings.NewReader("$5\r\nabc"), step / 4},
		"noise":                         {&repeat{block: "\x15\x03\x01"}, step / 4},
	} {
		var err error
		got := redistest.Allocated(func() { _, err = read(c.src) })
		require.Error(t, err, name)
		require.LessOrEqual(t, got, c.most, name)
	}
}

func TestEveryLimitIsExact(t *testing.T) {
	lim := resp.Limits{MaxBulk: 5, MaxArray: 4, MaxDepth: 2, MaxLine: 8}
	for in, text := range map[string]string{
		"$5\r\nabcde\r\n":                      "",
		"$6\r\nabcdef\r\n":                     "bulk string beyond the limit",
		"*4\r\n:1\r\n:2\r\n:3\r\n:4\r\n":       "",
		"*5\r\n:1\r\n:2\r\n:3\r\n:4\r\n:5\r\n": "array elements beyond the limit",
		"*3\r\n:1\r\n:2\r\n:3\r\n":             "",
		"*2\r\n*2\r\n:1\r\n:2\r\n:3\r\n":       "",
		"*2\r\n*3\r\n:1\r\n:2\r\n:3\r\n:4\r\n": "array elements beyond the limit",
		"*2\r\n*1\r\n:1\r\n*2\r\n:1\r\n:2\r\n": "array elements beyond the limit",
		"*1\r\n*1\r\n:1\r\n":                   "",
		"*1\r\n*1\r\n*1\r\n:1\r\n":             "arrays nested beyond the limit",
		"*1\r\n*1\r\n*0\r\n":                   "arrays nested beyond the limit",
		"+abcde\r\n":                           "",
		"+abcdef\r\n":                          "line beyond the limit",
		"+abcdefghijklmn\r\n":                  "line beyond the limit",
	} {
		for name, cut := range chunkings {
			r := resp.NewReader(cut(strings.NewReader(in+in)), lim)
			for range 2 { // the second: a reply's elements do not count for the next
				_, err := r.Read()
				if text == "" {
					require.NoError(t, err, "%q %s", in, name)
				} else {
					require.EqualError(t, err, "rediscache: bad reply: "+text, "%q %s", in, name)
				}
			}
		}
	}
}

func TestZeroLimitsAreTheDefaults(t *testing.T) {
	require.Equal(t, 512<<20, resp.DefaultMaxBulk)
	require.Equal(t, 1<<20, resp.DefaultMaxArray)
	require.Equal(t, 64<<10, resp.DefaultMaxLine)

	line := strings.Repeat("a", resp.DefaultMaxLine-3)
	for in, text := range map[string]string{
		"+" + line + "\r\n":                          "",
		"+" + line + "a\r\n":                         "line beyond the limit",
		strings.Repeat("*1\r\n", 8) + ":1\r\n":       "",
		strings.Repeat("*1\r\n", 9) + ":1\r\n":       "arrays nested beyond the limit",
		fmt.Sprintf("$%d\r\n", resp.DefaultMaxBulk):  "unexpected EOF",
		fmt.Sprintf("*%d\r\n", resp.DefaultMaxArray): "unexpected EOF",
	} {
		_, err := read(strings.NewReader(in))
		if text == "" {
			require.NoError(t, err, "%.20q", in)
		} else {
			require.ErrorContains(t, err, text, "%.20q", in)
		}
	}
}

func TestALineLimitAboveTheBufferIsReached(t *testing.T) {
	const most = 1 << 20
	r := resp.NewReader(strings.NewReader("+"+strings.Repeat("a", most-3)+"\r\n:1\r\n"), resp.Limits{MaxLine: most})
	got, err := r.Read()
	require.NoError(t, err)
	require.Len(t, got.Text, most-3)
	got, err = r.Read()
	require.NoError(t, err)
	require.Equal(t, integer(1), got)
}

// What FuzzReply allows for is computed from it.
func TestAReplyIsSmall(t *testing.T) {
	require.LessOrEqual(t, unsafe.Sizeof(resp.Reply{}), uintptr(80))
}

func TestNegativeLimitsPanic(t *testing.T) {
	for _, lim := range []resp.Limits{{MaxBulk: -1}, {MaxArray: -1}, {MaxDepth: -1}, {MaxLine: -1}} {
		require.Panics(t, func() { resp.NewReader(strings.NewReader(""), lim) })
	}
}
