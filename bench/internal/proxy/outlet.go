package proxy

import (
	"net"
	"sync"
)

// outlet writes the chunks that have come due to one socket. Its queue has no
// bound: what the peers have in flight bounds it.
type outlet struct {
	conn net.Conn

	mu    sync.Mutex
	more  *sync.Cond // signalled at each put
	queue []chunk
}

func newOutlet(conn net.Conn) *outlet {
	o := &outlet{conn: conn}
	o.more = sync.NewCond(&o.mu)
	return o
}

// put queues a chunk whose time has come. It never waits for the socket.
func (o *outlet) put(c chunk) {
	o.mu.Lock()
	o.queue = append(o.queue, c)
	o.mu.Unlock()
	o.more.Signal()
}

func (o *outlet) take(reuse []chunk) []chunk {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.queue) == 0 {
		o.more.Wait()
	}
	taken := o.queue
	o.queue = reuse[:0]
	return taken
}

// run writes until the chunk that ends the stream. A failed write closes the
// socket, so that the other direction ends too; chunks are still taken, so
// that the end is reached.
func (o *outlet) run() {
	var failed bool
	var taken []chunk
	for {
		taken = o.take(taken)
		for _, c := range taken {
			if c.buf == nil {
				o.finish()
				return
			}
			if !failed {
				_, err := o.conn.Write(c.buf[:c.n])
				if failed = err != nil; failed {
					_ = o.conn.Close() // it is useless already
				}
			}
			chunks.Put(c.buf)
		}
	}
}

// finish passes the end of the stream on: a half-close, so that the replies to
// what was sent still come.
func (o *outlet) finish() {
	if half, ok := o.conn.(*net.TCPConn); ok {
		_ = half.CloseWrite() // the peer may have gone
	}
}
