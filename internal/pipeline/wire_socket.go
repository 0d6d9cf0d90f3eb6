package pipeline

import (
	"net"
	"sync/atomic"
	"time"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// socketWire speaks RESP on the socket of a connection that the store lends.
// redigo's buffers are empty then, and stay so. No deadline is armed: the lane
// watches the progress and cuts.
type socketWire struct {
	conn   *warm.Conn
	socket net.Conn
	try    func(p []byte) (int, error) // writes what goes without waiting

	out  []byte // the writer's
	sent int    // of out

	in  *resp.Reader // the receiver's
	got atomic.Int64 // bytes
}

func newSocketWire(c *warm.Conn) *socketWire {
	w := &socketWire{conn: c, socket: c.Socket()}
	w.try = nonblocking(w.socket)
	w.in = resp.NewReader(w, resp.Limits{})
	_ = w.socket.SetDeadline(time.Time{}) // redigo's; if it fails, so does the next read
	return w
}

// Read feeds the reader.
func (w *socketWire) Read(p []byte) (int, error) {
	n, err := w.socket.Read(p)
	w.got.Add(int64(n))
	return n, err
}

func (w *socketWire) put(c *Call) error {
	w.out = append(w.out, c.req...)
	return nil
}

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
	n, err := w.socket.Write(w.out[w.sent:])
	w.sent += n
	if err == nil {
		w.rewind()
	}
	return err
}

func (w *socketWire) rewind() {
	if cap(w.out) > maxOut {
		w.out = nil
	}
	w.out = w.out[:0]
}

// maxOut is the size above which the buffer is not kept for the next batch.
const maxOut = 1 << 20

func (w *socketWire) written() int                 { return w.sent }
func (w *socketWire) receive() (resp.Reply, error) { return w.in.Read() }
func (w *socketWire) progress() int64              { return w.got.Load() }
func (w *socketWire) extra() bool                  { return w.in.Buffered() > 0 }
func (w *socketWire) quiet() bool                  { return !w.conn.Dead() }
func (w *socketWire) wanted() bool                 { return w.conn.Wanted() }
func (w *socketWire) cut()                         { w.conn.Cut() }
func (w *socketWire) giveBack(broken, spent bool)  { end(w.conn, broken, spent) }
