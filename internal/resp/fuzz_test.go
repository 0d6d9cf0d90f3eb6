package resp_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/resp"
)

// seed adds what the table tests read and some that only a network would send.
func seed(f *testing.F) {
	f.Helper()
	for in := range good {
		f.Add([]byte(in))
	}
	for in := range bad {
		f.Add([]byte(in))
	}
	f.Add([]byte("+OK\r\n:1\r\n$-1\r\n$5\r\nabc"))
	f.Add([]byte("*1048576\r\n$536870912\r\nabc"))
	f.Add([]byte("*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n+OK\r\n"))
	for _, keys := range []string{
		"*1\r\n$1\r\nk\r\n", "*-1\r\n", "$-1\r\n", "*0\r\n", "*2\r\n$1\r\nk\r\n", "*1\r\n*1\r\n$1\r\nk\r\n", "*1\r\n$-1\r\n",
	} { // what a server says of keys that a client may hold, and what it does not
		f.Add([]byte("*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n" + keys))
		f.Add([]byte(">2\r\n$10\r\ninvalidate\r\n" + keys))
	}
	f.Add(bytes.Repeat([]byte("*1\r\n"), 100))
	f.Add(append([]byte("*3000\r\n"), bytes.Repeat([]byte("+\r\n"), 2000)...))
}

// readAll reads to the first error.
func readAll(src io.Reader) (replies []resp.Reply, err error) {
	r := resp.NewReader(src, resp.Limits{})
	for {
		reply, err := r.Read()
		if err != nil {
			return replies, err
		}
		replies = append(replies, reply)
	}
}

// FuzzReply: whatever arrives, there is an end, an error that says why, and no more memory than a
// constant and a multiple of the input. The smallest element is 3 bytes and makes a Reply of 80;
// capacity is at most 4 times what came, and what it grew from adds a third.
func FuzzReply(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		var replies []resp.Reply
		var err error
		bytesTaken := redistest.Allocated(func() { replies, err = readAll(bytes.NewReader(in)) })
		require.LessOrEqual(t, bytesTaken, uint64(2<<20+160*len(in)))

		var broken *resp.ProtocolError
		if !errors.As(err, &broken) {
			require.Contains(t, []error{io.EOF, io.ErrUnexpectedEOF}, err)
		}
		again, errAgain := readAll(iotest.OneByteReader(bytes.NewReader(in)))
		require.Equal(t, replies, again)
		require.Equal(t, err, errAgain)
	})
}

// FuzzReplyLikeRedigo: every reply that is valid and within the limits is the same to redigo, and
// both refuse what is invalid. What may differ on invalid input is listed in redigo_test.go.
func FuzzReplyLikeRedigo(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		if claims(in) > 1<<20 {
			return // redigo would allocate it, or panic
		}
		ours := resp.NewReader(bytes.NewReader(in), resp.Limits{})
		theirs := newRedigo(in)
		for {
			got, err := ours.Read()
			if err != nil && beyondRedigo[err.Error()] {
				return
			}
			want, wantErr := receive(theirs)
			require.Equal(t, wantErr != nil, err != nil, "ours %v, redigo's %v", err, wantErr)
			if err != nil {
				return
			}
			require.Equal(t, want, got)
		}
	})
}

// FuzzCommand: the bytes of a command are those that redigo writes, and they read back as what was
// appended.
func FuzzCommand(f *testing.F) {
	f.Add("GET", []byte("key"), int64(0))
	f.Add("", []byte{}, int64(-1))
	f.Add("SET\r\n", []byte("\r\n$1\r\n\x00\xff"), int64(-1<<63))
	f.Add("EVAL", bytes.Repeat([]byte("x"), 1000), int64(1<<63-1))
	f.Fuzz(func(t *testing.T, name string, arg []byte, n int64) {
		b := resp.AppendArray(nil, 4)
		b = resp.AppendBulk(b, name)
		b = resp.AppendBulk(b, arg)
		b = resp.AppendBulk(b, string(arg))
		b = resp.AppendInt(b, n)
		require.Equal(t, written(t, name, arg, string(arg), n), string(b))

		back, err := read(bytes.NewReader(b))
		require.NoError(t, err)
		require.Len(t, back.Elems, 4)
		require.Equal(t, bulk(name), back.Elems[0])
		require.Equal(t, string(arg), string(back.Elems[1].Bytes))
		require.Equal(t, back.Elems[1], back.Elems[2])
	})
}
