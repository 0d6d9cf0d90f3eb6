package pipeline

import (
	"net"
	"sync/atomic"
	"time"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// socketWire speaks RESP on the socket of a connection that the store lends.
// redigo's buffers are empty then, and stay so. Reads have no deadline: the lane
// watches the progress and cuts.
type socketWire struct {
	conn    *warm.Conn
	socket  net.Conn
	try     func(p []byte) (int, error) // writes what goes at once, unless it waits
	waiting bool                        // immutable: try waits
	write   time.Duration               // immutable; timeout of what flush has left

	out  []byte // the writer's
	sent int    // of out

	in   *resp.Reader // the receiver's
	size int          // bytes that came for the reply that is being received
	slow func(bool)   // told when that turns out to be large, and when it is over
	got  atomic.Int64 // bytes in all
}

func newSocketWire(c *warm.Conn, write time.Duration, slow func(bool)) *socketWire {
	w := &socketWire{conn: c, socket: c.Socket(), write: write, slow: slow}
	w.try, w.waiting = nonblocking(w.socket)
	w.in = resp.NewReader(w, resp.Limits{})
	_ = w.socket.SetDeadline(time.Time{}) // redigo's; if it fails, so does the next read
	return w
}

// Read feeds the reader.
func (w *socketWire) Read(p []byte) (int, error) {
	n, err := w.socket.Read(p)
	w.got.Add(int64(n))
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

// For a caller that reads the reply to its own call: fill waits for the first
// bytes of it, whole tells whether that was all of so many replies, and kick ends
// the wait and costs nothing.
func (w *socketWire) fill() error      { return w.in.Fill() }
func (w *socketWire) whole(n int) bool { return w.in.Whole(n) }
func (w *socketWire) kick()            { _ = w.socket.SetReadDeadline(time.Unix(1, 0)) }
func (w *socketWire) unkick()          { _ = w.socket.SetReadDeadline(time.Time{}) }

func (w *socketWire) put(c *Call) error {
	w.out = append(w.out, c.req...)
	return nil
}

func (w *socketWire) waits() bool { return w.waiting }

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
		if err := w.socket.SetWriteDeadline(after(w.write)); err != nil {
			return err
		}
		n, err := w.socket.Write(w.out[w.sent:min(w.sent+maxPiece, len(w.out))])
		w.sent += n
		if err != nil {
			return err
		}
	}
	w.rewind()
	return w.socket.SetWriteDeadline(time.Time{})
}

func (w *socketWire) rewind() {
	if cap(w.out) > maxOut {
		w.out = nil
	}
	w.out = w.out[:0]
}

// largeReply is the size from which a reply holds up those behind it.
const largeReply = 256 << 10

// maxOut is the size above which the buffer is not kept for the next batch.
const maxOut = 1 << 20

func (w *socketWire) written() int                { return w.sent }
func (w *socketWire) progress() int64             { return w.got.Load() }
func (w *socketWire) extra() bool                 { return w.in.Buffered() > 0 }
func (w *socketWire) quiet() bool                 { return !w.conn.Dead() }
func (w *socketWire) wanted() bool                { return w.conn.Wanted() }
func (w *socketWire) cut()                        { w.conn.Cut() }
func (w *socketWire) giveBack(broken, spent bool) { end(w.conn, broken, spent) }
