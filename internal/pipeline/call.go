package pipeline

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/rediscache/rediscache/internal/resp"
)

// A Call is one command and, later, its outcome. The command is encoded while it is
// built, so the pipeline reads none of the caller's memory after that.
//
// The state word holds a generation and one of the states below. A goroutine that
// changes the state by compare-and-swap decides the outcome, so a call has only one: that
// of the lane (queued -> claimed -> ending -> ended), or that of its caller or the clock
// (queued -> unlinked, or claimed -> abandoned). For the lane the reader ends a call with
// its reply, and the clock ends it after a suspension. An unlinked or abandoned call is
// never used again. The generation protects the clock, which may look at a call that was
// answered and used again meanwhile.
type Call struct {
	name  string
	req   []byte // the command in RESP, or both commands of a run
	value int    // the index in req of the value argument; 0: there is none
	write bool   // the command must not be repeated after it may have been received
	shape

	state atomic.Uint64 // generation << 3 | state
	since int64         // the pipeline's clock when the call began; 0: it has not
	done  chan struct{} // holds one
	reply resp.Reply
	err   error

	refusal string // the last reply that refused the call for now; empty: none

	unsent int  // retries because the call had not been sent as a whole
	heldUp int  // how often the call came behind a large reply
	broke  int  // connections that broke before they returned the reply
	direct bool // the next try is on a connection of its own, because the call may have broken the last one
}

const (
	queued    = iota // zero: in the queue of a lane
	claimed          // by the writer: the call may be on the wire
	ended            // reply and err are set
	unlinked         // given up while queued: never sent
	abandoned        // given up while claimed: the reply is read and dropped
	ending           // reply and err are being set
)

var calls = sync.Pool{New: func() any { return &Call{done: make(chan struct{}, 1)} }}

// Read begins a command of n arguments that may be retried after it was sent.
func Read(name string, n int, form Form) *Call { return newCall(form, false).Command(name, n) }

// Write begins a command of n arguments that is never retried after the server may have
// received it.
func Write(name string, n int, form Form) *Call { return newCall(form, true).Command(name, n) }

// newCall returns a call without a command.
func newCall(form Form, write bool) *Call {
	c := calls.Get().(*Call)
	c.req, c.value, c.write, c.shape = c.req[:0], 0, write, shape{form: form}
	c.since, c.refusal, c.unsent, c.heldUp, c.broke, c.direct = 0, "", 0, 0, 0, false
	return c
}

// Command begins a command of n arguments. It is for the calls of [Pipeline.DoEach]; Read and Write begin
// any other call.
func (c *Call) Command(name string, n int) *Call {
	c.name, c.value, c.argc = name, 0, 0
	c.req = resp.AppendBulk(resp.AppendArray(c.req, n+1), name)
	return c
}

// Grow makes room for n more bytes.
func (c *Call) Grow(n int) *Call {
	c.req = slices.Grow(c.req, n)
	return c
}

// Key appends an argument made of two parts.
func (c *Call) Key(prefix, key string) *Call {
	c.argc++
	c.req = resp.AppendJoined(c.req, prefix, key)
	return c
}

// Append appends an argument of n bytes, which f appends.
func (c *Call) Append(n int, f func([]byte) []byte) *Call {
	c.argc++
	c.req = resp.AppendLength(c.req, n)
	c.req = append(f(c.req), '\r', '\n')
	return c
}

// String appends an argument.
func (c *Call) String(s string) *Call { return c.Key("", s) }

// Value appends an argument. At most one of a call's arguments is a value.
func (c *Call) Value(p []byte) *Call {
	c.argc++
	c.value = len(c.req)
	if len(p) > maxKept {
		c.req = slices.Grow(c.req, len(p)+64) // for the arguments that follow, too
	}
	c.req = resp.AppendBulk(c.req, p)
	return c
}

// Int appends an argument.
func (c *Call) Int(n int64) *Call {
	c.argc++
	c.req = resp.AppendInt(c.req, n)
	return c
}

// After makes c a run of two commands: first, and then that of c. They are written and retried as one
// call, so no retry of first comes after the second command alone. A retry of first must be harmless.
// The pipeline owns first from here on.
func (c *Call) After(first *Call) *Call {
	c.before = first.form
	if c.value > 0 {
		c.value += len(first.req)
	}
	c.req, first.req = append(first.req, c.req...), c.req
	first.release()
	return c
}

// Queued makes c a command in a MULTI of [Pipeline.Talk]. Its own reply is QUEUED; the reply to EXEC
// holds its result.
func (c *Call) Queued() *Call {
	c.form = Queued
	return c
}

// identity returns the part of the command before its value, which is equal for two calls that do the
// same to the same keys.
func (c *Call) identity() []byte {
	if c.value > 0 {
		return c.req[:c.value]
	}
	return c.req
}

// split returns, for redigo, the command that begins at the index at of the request, and where the next
// command begins. It copies the strings, but not the value.
func (c *Call) split(at int, into []any) (name string, args []any, next int) {
	n, at := length(c.req, at)
	for i := range n {
		size, body := length(c.req, at)
		arg := c.req[body : body+size : body+size]
		switch {
		case i == 0 && string(arg) == c.name: // the comparison does not allocate
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

// length returns the number in the header of an array or a bulk string that this package encoded, and
// the index after the header.
func length(req []byte, at int) (n, body int) {
	for at++; req[at] != '\r'; at++ {
		n = n*10 + int(req[at]-'0')
	}
	return n, at + len("\r\n")
}

// release returns a call to the sync.Pool. No lane may have it any more.
func (c *Call) release() {
	c.reply, c.err = resp.Reply{}, nil
	if cap(c.req) > maxKept {
		c.req = make([]byte, 0, 64)
	}
	calls.Put(c)
}

// maxKept is the size above which a buffer is not kept for the next call.
const maxKept = 64 << 10

// queue begins a new generation of the call for a lane. No other lane may have the call.
func (c *Call) queue(now int64) entry {
	gen := c.state.Load()>>3 + 1
	c.state.Store(gen << 3) // queued
	c.startTimeout(now)
	return entry{call: c, gen: gen, since: c.since, size: len(c.req), write: c.write, shape: c.shape}
}

// startTimeout starts the timeout of a call, unless it has started.
func (c *Call) startTimeout(now int64) {
	if c.since == 0 {
		c.since = now
	}
}

// leave gives the call up for its caller. It reports false if the call has ended or the
// clock gave it up first: then done has a value, or will have one.
func (c *Call) leave() bool {
	e := entry{call: c, gen: c.state.Load() >> 3}
	return e.move(queued, unlinked) || e.move(claimed, abandoned)
}

func (c *Call) in(state uint64) bool { return c.state.Load()&7 == state }

// lostError is the error of a call without a reply. If sent is false, the call was not applied.
type lostError struct {
	cause   error
	sent    bool // the server may have received the whole command
	left    bool // the caller gave up; the connection did not break
	company int  // calls without a reply when the connection broke, this call included
}

// alone reports whether no other call can have broken the connection.
func (e *lostError) alone() bool { return e.company <= 1 }

func (e *lostError) Error() string { return e.cause.Error() }
func (e *lostError) Unwrap() error { return e.cause }

// entry is a lane's reference to a call.
type entry struct {
	call  *Call
	gen   uint64
	since int64 // the pipeline's clock when the call was first queued
	// Copied from the call, because the Call may be used for another command meanwhile.
	size  int
	write bool
	shape
}

func (e entry) move(from, to uint64) bool {
	return e.call.state.CompareAndSwap(e.gen<<3|from, e.gen<<3|to)
}

// end gives a call its outcome, unless the caller or the clock gave it up.
func (e entry) end(from uint64, reply resp.Reply, err error) {
	if !e.move(from, ending) {
		return
	}
	c := e.call
	c.reply, c.err = reply, err
	c.state.Store(e.gen<<3 | ended)
	c.done <- struct{}{}
}

// expire gives a call up when it times out, and wakes its caller.
func (e entry) expire() {
	if e.move(queued, unlinked) || e.move(claimed, abandoned) {
		e.call.done <- struct{}{}
	}
}
