package pipeline

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/rediscache/rediscache/internal/resp"
)

// A Call is one command and, later, its outcome. It is encoded while it is
// built, so that nothing of the caller's is read after that.
//
// Its state word holds a generation and one of the states below. Whoever moves
// it on by compare-and-swap owns what follows, so a call has one outcome: the
// lane's, by queued -> claimed -> ending -> ended, or its caller's or the clock's,
// by queued -> unlinked or claimed -> abandoned. Of the lane both the reader and
// the clock may end a call: the reader with its reply, the clock after a suspension. A call that was left so is never
// used again. The generation lets the clock look at one that may have been
// answered and used anew meanwhile.
type Call struct {
	name  string
	req   []byte // the command in RESP, or both of a run
	value int    // where in req an argument begins that is a value, not a key or an option; 0: none
	write bool   // whether a repetition could do harm
	shape

	state atomic.Uint64 // generation << 3 | state
	since int64         // the pipeline's clock when it was first queued; 0: not yet
	began time.Time     // when it first asked for a connection of its own, if it was not queued before
	done  chan struct{} // holds one
	reply resp.Reply
	err   error

	unsent int  // retries because it had not been sent as a whole
	heldUp int  // how often it came behind a large reply
	broke  int  // connections that broke while they owed it a reply
	apart  bool // its next try is on a connection of its own, as it may be what broke the last one
}

const (
	queued    = iota // zero: only the lane's queue knows it
	claimed          // by the writer: it may be on the wire
	ended            // reply and err are set
	unlinked         // left while queued: never sent
	abandoned        // left while claimed: its reply is read and dropped
	ending           // reply and err are being set
)

var calls = sync.Pool{New: func() any { return &Call{done: make(chan struct{}, 1)} }}

// Read begins a command of n arguments that may be repeated.
func Read(name string, n int, form Form) *Call { return begin(name, n, form, false) }

// Write begins a command of n arguments that is never repeated once it may
// have been received.
func Write(name string, n int, form Form) *Call { return begin(name, n, form, true) }

func begin(name string, n int, form Form, write bool) *Call {
	c := calls.Get().(*Call)
	c.name, c.write, c.value, c.shape = name, write, 0, shape{form: form}
	c.since, c.began, c.unsent, c.heldUp, c.broke, c.apart = 0, time.Time{}, 0, 0, 0, false
	c.req = resp.AppendBulk(resp.AppendArray(c.req[:0], n+1), name)
	return c
}

// Key appends an argument made of two parts.
func (c *Call) Key(prefix, key string) *Call {
	c.argc++
	c.req = resp.AppendJoined(c.req, prefix, key)
	return c
}

// String appends an argument.
func (c *Call) String(s string) *Call { return c.Key("", s) }

// Value appends an argument. At most one of a call's arguments is a value.
func (c *Call) Value(p []byte) *Call {
	c.argc++
	c.value = len(c.req)
	c.req = resp.AppendBulk(c.req, p)
	return c
}

// Int appends an argument.
func (c *Call) Int(n int64) *Call {
	c.argc++
	c.req = resp.AppendInt(c.req, n)
	return c
}

// After makes c a run of two commands: first, and then what c was. They are written and retried as
// one call, so no try of the first is later than the second. First must be harmless to repeat, and is
// the pipeline's from here on.
func (c *Call) After(first *Call) *Call {
	c.before = first.form
	if c.value > 0 {
		c.value += len(first.req)
	}
	c.req, first.req = append(first.req, c.req...), c.req
	first.release()
	return c
}

// Queued makes c a command within a MULTI of [Pipeline.Talk], whose reply comes with that of EXEC.
func (c *Call) Queued() *Call {
	c.form = Queued
	return c
}

// identity is what two calls that do the same to the same keys have in common: the command without
// its value and what follows that.
func (c *Call) identity() []byte {
	if c.value > 0 {
		return c.req[:c.value]
	}
	return c.req
}

// split returns, for redigo, the command that begins at some place of the request, and where the next one begins.
// Strings are copied, the value is part of the call.
func (c *Call) split(at int, into []any) (name string, args []any, next int) {
	n, at := length(c.req, at)
	for i := range n {
		size, body := length(c.req, at)
		arg := c.req[body : body+size : body+size]
		switch {
		case i == 0 && string(arg) == c.name: // which allocates nothing
			name = c.name
		case i == 0:
			name = string(arg)
		case at == c.value:
			into = append(into, arg)
		default:
			into = append(into, string(arg))
		}
		at = body + size + len("\r\n")
	}
	return name, into, at
}

// length returns the number in the head of a command or of an argument of our own making, and where
// what follows the head begins.
func length(req []byte, at int) (n, body int) {
	for at++; req[at] != '\r'; at++ {
		n = n*10 + int(req[at]-'0')
	}
	return n, at + len("\r\n")
}

// release gives a call back that no lane knows any more.
func (c *Call) release() {
	c.reply, c.err = resp.Reply{}, nil
	if cap(c.req) <= maxKept {
		calls.Put(c)
	}
}

// maxKept is the size above which a buffer is not kept for the next call.
const maxKept = 16 << 10

// queue makes the call new for a lane. Nobody else knows it now.
func (c *Call) queue(now int64) entry {
	gen := c.state.Load()>>3 + 1
	c.state.Store(gen << 3) // queued
	c.begin(now)
	return entry{call: c, gen: gen, since: c.since, size: len(c.req), write: c.write, shape: c.shape}
}

// begin lets the time of a call begin, if it has not.
func (c *Call) begin(now int64) {
	switch {
	case c.since != 0:
	case c.began.IsZero():
		c.since = now
	default:
		c.since = now - int64(time.Since(c.began)/tick)
	}
}

// ask is begin for one that asks for a connection of its own.
func (c *Call) ask(now time.Time) {
	if c.since == 0 && c.began.IsZero() {
		c.began = now
	}
}

// leave moves the call on in its caller's stead. It reports false if it has
// ended, or if the clock was first: then done is sent.
func (c *Call) leave() bool {
	e := entry{call: c, gen: c.state.Load() >> 3}
	return e.move(queued, unlinked) || e.move(claimed, abandoned)
}

func (c *Call) in(state uint64) bool { return c.state.Load()&7 == state }

// lostError is a call without a reply. If the server has not received all of it, it was not applied.
type lostError struct {
	cause   error
	sent    bool
	left    bool // for the caller's reasons, not the connection's
	company int  // calls that the connection owed a reply when it broke, this one included
}

// alone reports whether no other call can have broken the connection.
func (e *lostError) alone() bool { return e.company <= 1 }

func (e *lostError) Error() string { return e.cause.Error() }
func (e *lostError) Unwrap() error { return e.cause }

// entry is a lane's hold on a call.
type entry struct {
	call  *Call
	gen   uint64
	since int64 // the pipeline's clock when it was first queued
	// Of the call, which may be another by the time they are asked for.
	size  int
	write bool
	shape
}

func (e entry) move(from, to uint64) bool {
	return e.call.state.CompareAndSwap(e.gen<<3|from, e.gen<<3|to)
}

// end gives a call its outcome, unless it was left.
func (e entry) end(from uint64, reply resp.Reply, err error) {
	if !e.move(from, ending) {
		return
	}
	c := e.call
	c.reply, c.err = reply, err
	c.state.Store(e.gen<<3 | ended)
	c.done <- struct{}{}
}

// expire leaves a call in its caller's stead.
func (e entry) expire() {
	if e.move(queued, unlinked) || e.move(claimed, abandoned) {
		e.call.done <- struct{}{}
	}
}
