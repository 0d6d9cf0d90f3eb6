package pipeline

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// A link carries the calls of one borrower, who writes first and receives then.
type link interface {
	// put buffers a command, which stays as it is until flush has returned.
	put(c *Call) error
	// flush writes what was put. A wire's writes as much as goes without waiting, and returns false
	// when bytes are left for flushRest.
	flush() (bool, error)
	// written returns how many bytes of what was put since the last flush the server can have
	// received, at most. It is asked after put or a flush has failed.
	written() int
	// receive reads the next reply.
	receive() (resp.Reply, error)
	// extra reports whether more has arrived than was received.
	extra() bool
	// giveBack ends the loan, after which nobody uses the link. broken also makes the pool recheck
	// older idle connections; spent closes this one.
	giveBack(broken, spent bool)
}

// A wire is a link that callers share: one goroutine may put and flush while another receives.
type wire interface {
	link
	// waits reports whether put and flush wait for a server that does not read.
	waits() bool
	// flushRest writes what flush has left, and waits.
	flushRest() error

	// progress changes while something arrives.
	progress() int64
	// quiet looks at a wire that was not in use for a while: false means that
	// the server has closed it or sent what nobody asked for.
	quiet() bool
	// wanted reports whether the pool wants the connection back.
	wanted() bool
	// cut makes flush and receive return.
	cut()
}

// newWire chooses the maker. slow is called when the reply that is arriving turns out to be large,
// where that can be seen, and when that reply has arrived.
func newWire(c redis.Conn, read, write time.Duration, slow func(bool)) wire {
	if l, ok := c.(*warm.Conn); ok && l.Socket() != nil {
		return newSocketWire(l, write, slow)
	}
	return &redigoWire{conn: c, timeout: read}
}

// newLink is newWire for one borrower. until bounds the wait for a reply where nothing cuts the
// connection when the borrower's time is over.
func newLink(c redis.Conn, read, write time.Duration, until time.Time) link {
	if l, ok := c.(*warm.Conn); ok && l.Socket() != nil {
		return newOwnLink(l, read, write)
	}
	return &redigoWire{conn: c, timeout: read, until: until}
}

// redigoWire goes through redigo's Send, Flush and Receive, which any pool's
// connections have. They may wait, for as long as the connection's own
// timeouts let them.
type redigoWire struct {
	conn     redis.Conn
	timeout  time.Duration // of a reply; 0: the connection's own
	until    time.Time     // if not zero, no reply is waited for longer
	scratch  []any
	size     int          // of what was put since the last flush
	flushing bool         // Flush has not returned; where it panicked, it may have written all
	got      atomic.Int64 // replies
}

func (w *redigoWire) put(c *Call) error {
	w.size += len(c.req)
	for at := 0; at < len(c.req); {
		var name string
		name, w.scratch, at = c.split(at, w.scratch[:0])
		var err error
		if panicked := foreign(func() { err = w.conn.Send(name, w.scratch...) }); panicked != nil {
			return panicked
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *redigoWire) waits() bool { return true }

func (w *redigoWire) flush() (whole bool, err error) {
	w.flushing = true
	if panicked := foreign(func() { err = w.conn.Flush() }); panicked != nil {
		return false, panicked
	}
	w.flushing = false
	if err != nil {
		return false, err
	}
	w.size = 0
	return true, nil
}

func (w *redigoWire) flushRest() error { return nil }

// written knows that a socket whose write failed has not taken the last byte.
func (w *redigoWire) written() int {
	if w.flushing {
		return w.size
	}
	return w.size - 1
}

func (w *redigoWire) receive() (resp.Reply, error) {
	defer w.got.Add(1)
	return fromRedigo(guard(func() (any, error) { return receiveWithTimeout(w.conn, w.patience()) }))
}

// patience is how long a reply may take. Zero leaves it to the connection.
func (w *redigoWire) patience() time.Duration {
	if w.until.IsZero() {
		return w.timeout
	}
	rest := max(time.Until(w.until), 1)
	if w.timeout == 0 {
		return rest
	}
	return min(w.timeout, rest)
}

func receiveWithTimeout(c redis.Conn, timeout time.Duration) (any, error) {
	if t, ok := c.(redis.ConnWithTimeout); ok && timeout > 0 {
		if reply, err := t.ReceiveWithTimeout(timeout); !unsupported(err) {
			return reply, err
		}
	}
	return c.Receive()
}

// unsupported knows what redigo's pool says, having done nothing, for a
// connection that has no timeouts. The error has no name.
func unsupported(err error) bool {
	return err != nil && err.Error() == "redis: connection does not support ConnWithTimeout"
}

func (w *redigoWire) extra() bool { return false }

func (w *redigoWire) quiet() bool {
	l, ours := w.conn.(*warm.Conn)
	err := errExited
	if panicked := foreign(func() { err = w.conn.Err() }); panicked != nil {
		return false
	}
	return err == nil && (!ours || !l.Dead())
}

func (w *redigoWire) progress() int64 { return w.got.Load() }

func (w *redigoWire) wanted() bool {
	l, ok := w.conn.(*warm.Conn)
	return ok && l.Wanted()
}

// cut can only wait for redigo's own timeouts where the pool hides the socket. The Close of a
// connection of another maker may take its time, or end the goroutine, and that is the clock's.
func (w *redigoWire) cut() {
	if l, ok := w.conn.(*warm.Conn); ok {
		go l.Cut()
	}
}

func (w *redigoWire) giveBack(broken, spent bool) {
	end(w.conn, broken, spent)
}

// end hands a connection back.
func end(c redis.Conn, broken, spent bool) {
	defer c.Close() // also where c panics
	l, ours := c.(*warm.Conn)
	switch {
	case ours && broken:
		l.Fail()
	case ours && spent:
		l.Retire()
	case broken || spent:
		spoil(c)
	}
}

// spoil makes a connection of a pool that is not ours fail, so that the pool
// closes it: it receives, without time to, until that is an error. What was
// buffered, which may make redigo panic once more, comes first.
func spoil(c redis.Conn) {
	for range 4096 { // as many as redigo's buffer can hold, and more
		if c.Err() != nil {
			return
		}
		_, _ = guard(func() (any, error) { return redis.ReceiveWithTimeout(c, 1) })
	}
}

// guard returns a panic of redigo as an error: redigo panics on a length that no memory holds.
func guard(use func() (any, error)) (_ any, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("redigo panicked: %v", r)
		}
	}()
	return use()
}

// fromRedigo turns a reply of redigo's into ours.
func fromRedigo(reply any, err error) (resp.Reply, error) {
	if err != nil {
		var answer redis.Error
		if errors.As(err, &answer) {
			return resp.Reply{Kind: resp.Error, Text: string(answer)}, nil
		}
		return resp.Reply{}, err
	}
	switch v := reply.(type) {
	case nil:
		return resp.Reply{Kind: resp.Nil}, nil
	case []byte:
		return resp.Reply{Kind: resp.Bulk, Bytes: v}, nil
	case string:
		return resp.Reply{Kind: resp.Status, Text: v}, nil
	case int64:
		return resp.Reply{Kind: resp.Int, Int: v}, nil
	case redis.Error:
		return resp.Reply{Kind: resp.Error, Text: string(v)}, nil
	case []any:
		r := resp.Reply{Kind: resp.Array, Elems: make([]resp.Reply, len(v))}
		for i, e := range v {
			if r.Elems[i], err = fromRedigo(e, nil); err != nil {
				return resp.Reply{}, err
			}
		}
		return r, nil
	}
	return resp.Reply{}, fmt.Errorf("a reply of type %T", reply)
}
