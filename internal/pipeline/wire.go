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

// A link carries the calls of one borrower, which first writes and then receives.
type link interface {
	// put buffers a command. The call must not change until flush has returned.
	put(c *Call) error
	// flush writes the buffer. A wire writes only as much as it can without waiting, and returns false
	// if bytes are left for flushRest.
	flush() (bool, error)
	// written returns at most how many bytes since the last flush the server can have received. It is
	// called after put or a flush has failed.
	written() int
	// receive reads the next reply.
	receive() (resp.Reply, error)
	// extra reports whether bytes have arrived that were not received.
	extra() bool
	// progress returns a count that changes while bytes or replies arrive.
	progress() int64
	// giveBack returns the connection. The link must not be used after that. broken closes the
	// connection and makes the pool recheck older idle connections; spent only closes this one.
	giveBack(broken, spent bool)
}

// A wire is a link that callers share: one goroutine may put and flush while another receives.
type wire interface {
	link
	// waits reports whether put and flush wait for a server that does not read.
	waits() bool
	// flushRest writes the bytes that flush has left, and waits for the server.
	flushRest() error

	// quiet checks a connection that was idle. It returns false if the server has
	// closed it or has sent bytes that no command asked for.
	quiet() bool
	// wanted reports whether the pool wants the connection back.
	wanted() bool
	// cut makes flush and receive return.
	cut()
}

// newWire returns a socketWire if the connection has a stream, and a redigoWire otherwise. A socketWire calls
// slow(true) when the arriving reply turns out to be large, and slow(false) when it has arrived.
func newWire(c redis.Conn, read, write time.Duration, slow func(bool)) wire {
	if l, ok := c.(*warm.Conn); ok && l.Stream() != nil {
		return newSocketWire(l, write, slow)
	}
	return &redigoWire{conn: c, timeout: read}
}

// redigoWire uses Send, Flush and Receive, which the connections of any pool have. They
// may wait as long as the connection's own timeouts allow.
type redigoWire struct {
	conn     redis.Conn
	timeout  time.Duration // of a reply; 0: the connection's own timeout
	until    time.Time     // a bound for the wait for a reply; zero: none
	scratch  []any
	size     int          // bytes put since the last flush
	flushing bool         // Flush has not returned; if it panicked, it may have written all bytes
	got      atomic.Int64 // replies received
}

// reset makes w the link of one borrower. until bounds the wait for a reply; zero: nothing does.
func (w *redigoWire) reset(conn redis.Conn, timeout time.Duration, until time.Time) {
	w.conn, w.timeout, w.until, w.size, w.flushing = conn, timeout, until, 0, false
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

// written returns all bytes but the last, because after a failed write the last byte was
// not sent. If Flush did not return, it may have sent all bytes.
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

// patience returns how long a reply may take. With zero only the connection's own timeout
// applies.
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

// unsupported reports whether err is that of redigo's pool for a connection without
// ConnWithTimeout. After this error nothing was read. It has no exported name.
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

// cut does nothing for a foreign connection, which cannot be cut: its own timeouts end the
// read. It calls Cut in a goroutine of its own, because the clock calls cut, and the Close
// of a user's connection may block or call runtime.Goexit.
func (w *redigoWire) cut() {
	if l, ok := w.conn.(*warm.Conn); ok {
		go l.Cut()
	}
}

func (w *redigoWire) giveBack(broken, spent bool) {
	end(w.conn, broken, spent)
}

// end returns a connection.
func end(c redis.Conn, broken, spent bool) {
	defer c.Close() // also if c panics
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

// spoil makes a connection of a foreign pool fail, so that the pool closes it: spoil
// receives with the shortest timeout until the connection has an error. Buffered replies
// come first, and redigo may panic on them.
func spoil(c redis.Conn) {
	for range 4096 { // more replies than the buffer of redigo can hold
		if c.Err() != nil {
			return
		}
		_, _ = guard(func() (any, error) { return redis.ReceiveWithTimeout(c, 1) })
	}
}

// guard returns a panic of redigo as an error: redigo panics on a length that is larger than memory.
func guard(use func() (any, error)) (_ any, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("redigo panicked: %v", r)
		}
	}()
	return use()
}

// fromRedigo converts a reply of redigo.
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
