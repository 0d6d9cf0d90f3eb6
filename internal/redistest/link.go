package redistest

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// link is one connection through a Proxy: two sockets and two pipes.
type link struct {
	sockets [2]*net.TCPConn // by Direction: where Up reads, where Down reads
	ended   chan struct{}   // closed by end: nothing is forwarded any more
	gone    chan struct{}   // closed when both sockets are closed
	once    sync.Once
	pipes   [2]*pipe
}

func newLink(p *Proxy, client, server *net.TCPConn) *link {
	l := &link{sockets: [2]*net.TCPConn{client, server}, ended: make(chan struct{}), gone: make(chan struct{})}
	l.pipes[Up] = newPipe(p, l, Up, client, server)
	l.pipes[Down] = newPipe(p, l, Down, server, client)
	return l
}

// run forwards both ways and returns when both are over.
func (l *link) run() {
	var wg sync.WaitGroup
	for _, p := range l.pipes {
		wg.Go(p.read)
		wg.Go(p.write)
	}
	wg.Wait()
	for _, c := range l.sockets {
		_ = c.Close() // over already
	}
}

// end stops both pipes and closes both sockets, with RST or with FIN. After a FIN the readers go
// on and throw away what they read until the peers close: a socket closed with bytes unread
// would send RST.
func (l *link) end(reset bool) {
	l.once.Do(func() { close(l.ended) })
	for _, c := range l.sockets {
		if reset {
			abort(c)
		} else {
			_ = c.CloseWrite() // an error means that it is closed
		}
	}
	for _, p := range l.pipes {
		p.queue.wake()
	}
}

func (l *link) abort() { l.end(true) }

func (l *link) over() bool {
	select {
	case <-l.ended:
		return true
	default:
		return false
	}
}

// abort closes c with RST.
func abort(c *net.TCPConn) {
	_ = c.SetLinger(0) // an error means that it is closed
	_ = c.Close()
}

// pipe is one direction of a link: a reader that stamps what arrives with the time at which it is
// due, a queue, and a writer. So a delay holds bytes back without holding the reader up.
type pipe struct {
	proxy    *Proxy
	link     *link
	dir      Direction
	from, to *net.TCPConn
	queue    *queue

	// The writer's own.
	sent      int64 // bytes forwarded
	cut, flip place
}

// place is a mark as one pipe sees it: the mark that it last saw, and where that is for this pipe.
type place struct {
	mark *mark
	at   int64
}

func newPipe(p *Proxy, l *link, dir Direction, from, to *net.TCPConn) *pipe {
	return &pipe{proxy: p, link: l, dir: dir, from: from, to: to, queue: newQueue(l.ended)}
}

// read queues what arrives until the other side closes. A reset overtakes what is queued.
func (p *pipe) read() {
	buf := make([]byte, 64<<10)
	for {
		n, err := p.from.Read(buf)
		eof := errors.Is(err, io.EOF)
		if n > 0 || eof {
			due := time.Now().Add(p.proxy.latency(p.dir))
			p.queue.push(chunk{due: due, data: append([]byte(nil), buf[:n]...), eof: eof})
		}
		if err != nil {
			if !eof && p.proxy.open(p.link) {
				p.link.end(true)
			}
			return
		}
	}
}

// write forwards what is due until the end of the stream or of the link.
func (p *pipe) write() {
	for {
		c, ok := p.queue.pop()
		if !ok || !p.pause(time.Until(c.due)) || !p.forward(c.data) {
			return
		}
		if c.eof {
			if p.proxy.open(p.link) {
				_ = p.to.CloseWrite() // an error means that it is closed
			}
			return
		}
	}
}

// forward writes b as the rules of the moment want it and reports whether the link still stands.
func (p *pipe) forward(b []byte) bool {
	for len(b) > 0 {
		if !p.proxy.open(p.link) {
			return false
		}
		n, gap, cut := p.step(b)
		if n > 0 {
			if _, err := p.to.Write(b[:n]); err != nil {
				if !p.link.over() {
					p.link.end(true)
				}
				return false
			}
			p.sent += int64(n)
			b = b[n:]
		}
		if cut != nil {
			p.link.end(cut.reset)
			return false
		}
		if !p.pause(gap) {
			return false
		}
	}
	return true
}

// step decides how many bytes of b go now, how long to pause after them, and whether the link is
// cut there. It flips the byte of b whose turn it is.
func (p *pipe) step(b []byte) (n int, gap time.Duration, cut *mark) {
	p.proxy.mu.Lock()
	defer p.proxy.mu.Unlock()
	f := &p.proxy.way[p.dir]
	n = len(b)
	if f.gap > 0 {
		n = 1
	}
	if left, ok := p.cut.left(f.cut, p.sent); ok && left <= int64(n) {
		n, cut, f.cut = int(left), f.cut, nil
	}
	if left, ok := p.flip.left(f.flip, p.sent); ok && left < int64(n) {
		b[left] = ^b[left]
		f.flip = nil
	}
	return n, f.gap, cut
}

// left returns how many bytes there are to m, given that a pipe has sent so many, or false if m is
// nil. A mark is first seen before the first byte that follows its setting, so at is exact.
func (pl *place) left(m *mark, sent int64) (int64, bool) {
	if m == nil {
		return 0, false
	}
	if pl.mark != m {
		pl.mark, pl.at = m, sent+m.after
	}
	return pl.at - sent, true
}

// pause waits for d and reports whether the link still stands.
func (p *pipe) pause(d time.Duration) bool {
	if d <= 0 {
		return !p.link.over()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.link.ended:
		return false
	}
}

// queueBytes bounds what a queue holds; beyond it the reader waits and the sender's socket fills.
const queueBytes = 64 << 20

// queue is what one direction holds back. A link that has ended takes and gives nothing.
type queue struct {
	ended <-chan struct{}

	mu      sync.Mutex // guards what follows
	changed *sync.Cond
	chunks  []chunk
	bytes   int
}

type chunk struct {
	due  time.Time
	data []byte
	eof  bool // the stream ends after data
}

func newQueue(ended <-chan struct{}) *queue {
	q := &queue{ended: ended}
	q.changed = sync.NewCond(&q.mu)
	return q
}

// push appends c as soon as there is room.
func (q *queue) push(c chunk) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.bytes >= queueBytes && !q.overLocked() {
		q.changed.Wait()
	}
	if q.overLocked() {
		return
	}
	q.chunks = append(q.chunks, c)
	q.bytes += len(c.data)
	q.changed.Broadcast()
}

// pop takes the oldest chunk, waiting for one, and returns false when the link has ended.
func (q *queue) pop() (chunk, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.chunks) == 0 && !q.overLocked() {
		q.changed.Wait()
	}
	if q.overLocked() {
		return chunk{}, false
	}
	c := q.chunks[0]
	q.chunks = q.chunks[1:]
	q.bytes -= len(c.data)
	q.changed.Broadcast()
	return c, true
}

// wake lets push and pop see that the link has ended: under mu, or a wait that is about to begin
// would miss it.
func (q *queue) wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.changed.Broadcast()
}

func (q *queue) overLocked() bool {
	select {
	case <-q.ended:
		return true
	default:
		return false
	}
}
