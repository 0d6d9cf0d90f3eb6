// Package proxy is a TCP proxy that delays what goes through it and does not
// limit how much does: each chunk is stamped when it is read, queued, and
// written when its time has come, however much is under way.
package proxy

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// chunkSize is the most that is read at once.
const chunkSize = 64 << 10

// chunks recycles the buffers, which hold chunkSize bytes.
var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// chunk is what one read returned.
type chunk struct {
	due time.Time
	buf *[chunkSize]byte
	n   int
	to  *outlet
}

// Serve accepts on l and connects each client to target, with delay in each
// direction, until ctx ends. Then it closes l and every connection, and
// returns when nothing of it runs any more.
func Serve(ctx context.Context, l net.Listener, target string, delay time.Duration) error {
	p := &proxy{target: target, delay: delay, clock: newClock(), open: map[net.Conn]bool{}}
	defer p.wait()
	stop := context.AfterFunc(ctx, func() { p.close(l) })
	defer stop()
	for {
		c, err := l.Accept()
		if err != nil {
			p.close(l)
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		p.running.Go(func() { p.connect(c) })
	}
}

type proxy struct {
	target  string
	delay   time.Duration
	clock   *clock
	running sync.WaitGroup // connections and their four goroutines each

	mu     sync.Mutex
	closed bool              // no connection is added to open from here on
	open   map[net.Conn]bool // every socket, so that close can end them
}

// close ends the listener and every connection, those that come later too.
func (p *proxy) close(l net.Listener) {
	_ = l.Close() // closing it twice is an error that says nothing
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for c := range p.open {
		_ = c.Close() // likewise
	}
}

// wait returns when every goroutine has ended: the connections' first, because
// they use the clock.
func (p *proxy) wait() {
	p.running.Wait()
	p.clock.stop()
}

// keep registers c, or closes it where the proxy is closed.
func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = c.Close() // nothing was sent on it
		return false
	}
	p.open[c] = true
	return true
}

func (p *proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
	_ = c.Close() // the other side may have done so
}

// connect dials the target for client and moves bytes both ways until both
// directions have ended.
func (p *proxy) connect(client net.Conn) {
	if !p.keep(client) {
		return
	}
	defer p.drop(client)
	server, err := net.Dial("tcp", p.target)
	if err != nil || !p.keep(server) {
		return
	}
	defer p.drop(server)

	var both sync.WaitGroup
	both.Go(func() { p.move(server, client) })
	both.Go(func() { p.move(client, server) })
	both.Wait()
}

// move reads from src and hands the chunks to the clock; a goroutine of its own
// writes them to dst. The end of the stream takes its time as well.
func (p *proxy) move(dst, src net.Conn) {
	out := newOutlet(dst)
	var writer sync.WaitGroup
	writer.Go(out.run)
	defer writer.Wait()
	for {
		buf := chunks.Get().(*[chunkSize]byte)
		n, err := src.Read(buf[:])
		p.clock.add(chunk{due: time.Now().Add(p.delay), buf: buf, n: n, to: out})
		if err != nil {
			p.clock.add(chunk{due: time.Now().Add(p.delay), to: out}) // no buffer: the end
			return
		}
	}
}
