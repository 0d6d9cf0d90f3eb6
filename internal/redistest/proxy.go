package redistest

import (
	"context"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// Direction is one of the two ways through a Proxy.
type Direction int

// The two directions.
const (
	Up   Direction = iota // from the client to the server
	Down                  // from the server to the client
)

// Proxy is a TCP proxy that stands for the network between a client and a server. Its methods may
// be called at any time and hold for open connections and those to come.
type Proxy struct {
	Addr string // host:port to dial instead of the server's

	t      testing.TB
	ctx    context.Context // over once Close has begun; bounds the dials to target
	cancel context.CancelFunc
	wg     sync.WaitGroup // accept loops and links

	mu       sync.Mutex // guards what follows
	target   string
	ln       net.Listener // nil while connections are refused
	links    map[*link]bool
	accepted int
	hole     bool
	way      [2]faults     // by Direction
	changed  chan struct{} // closed and replaced when hole changes
}

// faults are what befalls the bytes of one direction.
type faults struct {
	delay, jitter time.Duration
	gap           time.Duration // between single bytes; 0 forwards all at once
	cut, flip     *mark         // nil: none
}

// mark is a place in a direction, counted for each connection from the moment it was set. The
// first connection that gets there has it; then it is gone.
type mark struct {
	after int64
	reset bool
}

// NewProxy starts a proxy before target, a host:port. It ends with the test.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	ln := listen(tb)
	p := &Proxy{
		Addr: ln.Addr().String(), t: tb, target: target,
		ln: ln, links: make(map[*link]bool), changed: make(chan struct{}),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	tb.Cleanup(p.Close)
	p.wg.Go(func() { p.serve(ln) })
	return p
}

// Delay holds every byte of a direction back for d and up to jitter more at random, in order. It
// adds latency and takes no throughput: what is sent together arrives together.
func (p *Proxy) Delay(dir Direction, d, jitter time.Duration) {
	p.set(func() { p.way[dir].delay, p.way[dir].jitter = d, jitter })
}

// Trickle forwards one byte at a time with a pause of gap after each. Zero ends it.
func (p *Proxy) Trickle(dir Direction, gap time.Duration) {
	p.set(func() { p.way[dir].gap = gap })
}

// Cut ends, both ways, the first connection that forwards n more bytes in a direction, right after
// byte n, or for 0 before the next byte: with RST if reset, else with FIN. It happens once. Bytes
// are counted for each connection on its own.
func (p *Proxy) Cut(dir Direction, n int, reset bool) {
	p.set(func() { p.way[dir].cut = &mark{after: int64(n), reset: reset} })
}

// Corrupt inverts the bits of one byte, the one after n more bytes, on the first connection that
// forwards so many in a direction. It happens once.
func (p *Proxy) Corrupt(dir Direction, n int) {
	p.set(func() { p.way[dir].flip = &mark{after: int64(n)} })
}

// Blackhole holds everything back, both ways, the ends of connections too, and keeps the
// connections open. Resume delivers what was held.
func (p *Proxy) Blackhole() { p.set(func() { p.hole = true }) }

// Resume ends a Blackhole.
func (p *Proxy) Resume() { p.set(func() { p.hole = false }) }

// Reset breaks all open connections with RST on both sides, and returns when both have been sent it.
func (p *Proxy) Reset() {
	p.mu.Lock()
	links := slices.Collect(maps.Keys(p.links))
	for _, l := range links {
		l.abort()
	}
	p.mu.Unlock()
	for _, l := range links {
		<-l.gone // a socket is closed when no goroutine reads from it any more
	}
}

// Refuse makes the system refuse new connections. Those that are open stay.
func (p *Proxy) Refuse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln != nil {
		_ = p.ln.Close() // ends its accept loop
		p.ln = nil
	}
}

// Accept ends a Refuse.
func (p *Proxy) Accept() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln != nil || p.ctx.Err() != nil {
		return
	}
	var ln net.Listener
	var err error
	if !poll(patience, func() bool { ln, err = net.Listen("tcp", p.Addr); return err == nil }) {
		p.t.Fatalf("proxy: %v", err)
	}
	p.ln = ln
	p.wg.Go(func() { p.serve(ln) })
}

// Heal ends every fault, Blackhole and Refuse too.
func (p *Proxy) Heal() {
	p.t.Helper()
	p.set(func() { p.way, p.hole = [2]faults{}, false })
	p.Accept()
}

// Redirect sends the connections to come to target. Those that are open stay.
func (p *Proxy) Redirect(target string) { p.set(func() { p.target = target }) }

// Accepted counts the connections that clients have made.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Close breaks all connections and waits for the proxy's goroutines.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.cancel() // under mu: from here on no link and no accept loop is added
	p.mu.Unlock()
	p.Refuse()
	p.Reset()
	p.wg.Wait()
}

// set changes the rules and wakes the links that wait under the old ones.
func (p *Proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

// serve accepts until ln is closed.
func (p *Proxy) serve(ln net.Listener) {
	for {
		client, err := ln.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.carry(client.(*net.TCPConn)) })
	}
}

// carry links client with a new connection to the server until both ways are over.
func (p *Proxy) carry(client *net.TCPConn) {
	p.mu.Lock()
	p.accepted++
	target := p.target
	p.mu.Unlock()
	var d net.Dialer
	server, err := d.DialContext(p.ctx, "tcp", target)
	if err != nil {
		abort(client)
		return
	}
	l := newLink(p, client, server.(*net.TCPConn))
	p.mu.Lock()
	p.links[l] = true
	if p.ctx.Err() != nil {
		l.abort()
	}
	p.mu.Unlock()
	l.run()
	close(l.gone)
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// latency draws how long a byte that arrives now is held.
func (p *Proxy) latency(dir Direction) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.way[dir]
	if f.jitter > 0 {
		return f.delay + rand.N(f.jitter)
	}
	return f.delay
}

// open waits until the black hole is over and reports whether the link still stands.
func (p *Proxy) open(l *link) bool {
	for {
		p.mu.Lock()
		hole, changed := p.hole, p.changed
		p.mu.Unlock()
		if !hole {
			return !l.over()
		}
		select {
		case <-changed:
		case <-l.ended:
			return false
		}
	}
}
