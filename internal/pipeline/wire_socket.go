package pipeline

import (
	"time"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// socketWire speaks RESP on the stream of a connection that the store lends. The buffers
// of redigo are empty then, and stay empty. Reads have no deadline: the lane cuts the
// connection if there is no progress.
type socketWire struct {
	conn   *warm.Conn
	stream warm.Stream
	try    func(p []byte) (int, error) // writes as much as it can without waiting, unless waits
	write  time.Duration               // immutable; the timeout of flushRest

	out  []byte // used by the writer
	sent int    // bytes of out that were sent

	in   *resp.Reader // used by the receiver
	size int          // bytes read for the current reply
	slow func(bool)   // called when the current reply turns out to be large, and when it has arrived
}

func newSocketWire(c *warm.Conn, write time.Duration, slow func(bool)) *socketWire {
	w := &socketWire{conn: c, stream: c.Stream(), write: write, slow: slow}
	w.try = w.stream.TryWrite
	w.in = resp.NewReader(w, resp.Limits{})
	_ = w.stream.SetDeadline(time.Time{}) // redigo may have set one. If this fails, so does the next read.
	return w
}

// Read feeds the reader.
func (w *socketWire) Read(p []byte) (int, error) {
	n, err := w.stream.Read(p)
	if w.size += n; w.size > largeReply && w.size-n <= largeReply {
		w.slow(true)
	}
	return n, err
}

func (w *socketWire) receive() (resp.Reply, error) {
	reply, err := w.in.Read()
	if w.size > largeReply {
		w.slow(false)
	}
	w.size = 0
	return reply, err
}

// The methods of directReader: fill waits for bytes if none are buffered, whole reports
// whether n replies are buffered, and interrupt makes fill return, without losing bytes,
// until resume.
func (w *socketWire) fill() error      { return w.in.Fill() }
func (w *socketWire) whole(n int) bool { return w.in.Whole(n) }
func (w *socketWire) interrupt()       { _ = w.stream.SetReadDeadline(time.Unix(1, 0)) }
func (w *socketWire) resume()          { _ = w.stream.SetReadDeadline(time.Time{}) }

func (w *socketWire) put(c *Call) error {
	w.out = append(w.out, c.req...)
	return nil
}

func (w *socketWire) waits() bool { return w.stream.Waits() }

func (w *socketWire) flush() (bool, error) {
	w.sent = 0
	n, err := w.try(w.out)
	w.sent = n
	if err != nil || n < len(w.out) {
		return false, err
	}
	w.rewind()
	return true, nil
}

func (w *socketWire) flushRest() error {
	for w.sent < len(w.out) {
		if err := w.stream.SetWriteDeadline(after(w.write)); err != nil {
			return err
		}
		n, err := w.stream.Write(w.out[w.sent:min(w.sent+maxPiece, len(w.out))])
		w.sent += n
		if err != nil {
			return err
		}
	}
	w.rewind()
	return w.stream.SetWriteDeadline(time.Time{})
}

func (w *socketWire) rewind() {
	if cap(w.out) > maxOut {
		w.out = nil
	}
	w.out = w.out[:0]
}

// largeReply is the size from which a reply holds up the replies behind it.
const largeReply = 256 << 10

// maxOut is the size above which the buffer is not kept for the next batch.
const maxOut = 1 << 20

func (w *socketWire) written() int                { return w.sent }
func (w *socketWire) progress() int64             { return w.stream.Received() }
func (w *socketWire) extra() bool                 { return w.in.Buffered() > 0 }
func (w *socketWire) quiet() bool                 { return !w.conn.Dead() }
func (w *socketWire) wanted() bool                { return w.conn.Wanted() }
func (w *socketWire) cut()                        { w.conn.Cut() }
func (w *socketWire) giveBack(broken, spent bool) { end(w.conn, broken, spent) }
