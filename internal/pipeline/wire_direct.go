package pipeline

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// directLink speaks RESP on the stream of a connection that one borrower has. Reads have no deadline: the
// clock cuts the connection if nothing arrives for the read timeout. Each piece of a large write has a
// deadline of its own, so it may take long as long as it makes progress.
type directLink struct {
	conn   *warm.Conn
	stream warm.Stream
	write  time.Duration // timeout

	in       *resp.Reader
	out      []byte
	sent     int          // bytes of out that were sent
	received int          // replies since the connection was borrowed
	got      atomic.Int64 // bytes received, and bytes of large writes sent
	writing  atomic.Bool  // a large write waits for the server
}

// links reuses the 64 KiB buffers of the readers.
var links = sync.Pool{New: func() any {
	w := new(directLink)
	w.in = resp.NewReader(w, resp.Limits{})
	return w
}}

func newDirectLink(c *warm.Conn, write time.Duration) *directLink {
	w := links.Get().(*directLink)
	w.conn, w.stream, w.write = c, c.Stream(), write
	w.in.Reset(w)
	w.resume() // redigo may have set deadlines. If this fails, so does the first read.
	return w
}

// Read feeds the reader.
func (w *directLink) Read(p []byte) (int, error) {
	n, err := w.stream.Read(p)
	w.got.Add(int64(n))
	return n, err
}

// interrupt makes Read and Write time out until resume. No byte that arrives is lost.
func (w *directLink) interrupt() { _ = w.stream.SetDeadline(time.Unix(1, 0)) }
func (w *directLink) resume()    { _ = w.stream.SetDeadline(time.Time{}) }

// cut makes Read and Write fail for good.
func (w *directLink) cut() { w.conn.Cut() }

func (w *directLink) progress() int64 { return w.got.Load() }

// after returns the deadline after d, or none if d is zero.
func after(d time.Duration) time.Time {
	if d == 0 {
		return time.Time{}
	}
	return time.Now().Add(d)
}

// put uses the bytes of the first command without a copy, and copies them to append another command.
func (w *directLink) put(c *Call) error {
	if w.out == nil {
		w.out = c.req[:len(c.req):len(c.req)]
	} else {
		w.out = append(w.out, c.req...)
	}
	return nil
}

// maxPiece is the most bytes that a slow network must take within one write timeout.
const maxPiece = 1 << 20

func (w *directLink) flush() (bool, error) {
	large := len(w.out) > maxUnread
	w.writing.Store(large)
	for w.sent < len(w.out) {
		if large {
			if err := w.stream.SetWriteDeadline(after(w.write)); err != nil {
				return false, err
			}
		}
		n, err := w.stream.Write(w.out[w.sent:min(w.sent+maxPiece, len(w.out))])
		w.sent += n
		if err != nil {
			return false, w.answered(err)
		}
	}
	w.out, w.sent = nil, 0
	if large {
		w.writing.Store(false)
		w.got.Add(1)
		_ = w.stream.SetWriteDeadline(time.Time{}) // if this fails, so does receive
	}
	return true, nil
}

// answered wraps the error of a write in a hungUpError if the server has closed the connection, because
// its last replies may still be readable. After a timeout there are none.
func (w *directLink) answered(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
		return err
	}
	return &hungUpError{fmt.Errorf("the connection broke when %d of %d bytes were sent: %w", w.sent, len(w.out), err)}
}

func (w *directLink) written() int { return w.sent }

func (w *directLink) receive() (resp.Reply, error) {
	reply, err := w.in.Read()
	if err == nil {
		w.received++
	}
	return reply, err
}

func (w *directLink) extra() bool { return w.in.Buffered() > 0 }

func (w *directLink) giveBack(broken, spent bool) {
	end(w.conn, broken, spent)
	w.conn, w.stream, w.out, w.sent, w.received = nil, nil, nil, 0, 0
	w.writing.Store(false)
	links.Put(w)
}

// hungUpError is the error of a write that failed because the server closed the connection. The last
// replies of the server may still be readable.
type hungUpError struct{ error }

func (e *hungUpError) Unwrap() error { return e.error }
