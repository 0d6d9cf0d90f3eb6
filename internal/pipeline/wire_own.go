package pipeline

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// ownLink speaks RESP on the stream of a connection that one borrower has. Each read and each piece
// of a write has a deadline of its own, so a transfer may take long as long as it makes progress. The
// end of the context cuts the connection.
type ownLink struct {
	conn        *warm.Conn
	stream      warm.Stream
	read, write time.Duration // timeouts

	in   *resp.Reader
	out  []byte
	sent int // bytes of out that were sent
}

// links reuses the 64 KiB buffers of the readers.
var links = sync.Pool{New: func() any {
	w := new(ownLink)
	w.in = resp.NewReader(w, resp.Limits{})
	return w
}}

func newOwnLink(c *warm.Conn, read, write time.Duration) *ownLink {
	w := links.Get().(*ownLink)
	w.conn, w.stream, w.read, w.write = c, c.Stream(), read, write
	w.in.Reset(w)
	return w
}

// Read feeds the reader.
func (w *ownLink) Read(p []byte) (int, error) {
	if err := w.stream.SetReadTimeout(w.read); err != nil {
		return 0, err
	}
	return w.stream.Read(p)
}

// after returns the deadline after d, or none if d is zero.
func after(d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return time.Now().Add(d)
}

// put uses the bytes of the first command without a copy, and copies them to append another command.
func (w *ownLink) put(c *Call) error {
	if w.out == nil {
		w.out = c.req[:len(c.req):len(c.req)]
	} else {
		w.out = append(w.out, c.req...)
	}
	return nil
}

// maxPiece is the most bytes that a slow network must take within one write timeout.
const maxPiece = 1 << 20

func (w *ownLink) flush() (bool, error) {
	for w.sent < len(w.out) {
		if err := w.stream.SetWriteDeadline(after(w.write)); err != nil {
			return false, err
		}
		n, err := w.stream.Write(w.out[w.sent:min(w.sent+maxPiece, len(w.out))])
		w.sent += n
		if err != nil {
			return false, w.answered(err)
		}
	}
	w.out, w.sent = nil, 0
	_ = w.stream.SetWriteDeadline(time.Time{}) // redigo may not set a deadline itself. If this fails, so does receive.
	return true, nil
}

// answered wraps the error of a write in a hungUpError if the server has closed the connection, because
// its last replies may still be readable. After a timeout there are none.
func (w *ownLink) answered(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
		return err
	}
	return &hungUpError{fmt.Errorf("the connection broke when %d of %d bytes were sent: %w", w.sent, len(w.out), err)}
}

func (w *ownLink) written() int                 { return w.sent }
func (w *ownLink) receive() (resp.Reply, error) { return w.in.Read() }
func (w *ownLink) extra() bool                  { return w.in.Buffered() > 0 }

func (w *ownLink) giveBack(broken, spent bool) {
	end(w.conn, broken, spent)
	in := w.in
	*w = ownLink{in: in}
	links.Put(w)
}

// hungUpError is the error of a write that failed because the server closed the connection. The last
// replies of the server may still be readable.
type hungUpError struct{ error }

func (e *hungUpError) Unwrap() error { return e.error }
