// Package resp speaks RESP2, the protocol of Redis: it appends commands to a byte slice and reads
// replies that are bounded in every direction.
//
// It is made for a pipeline: a writer appends many commands into one reused slice and writes them
// at once, a reader takes the replies from the same socket in order. A GET costs one allocation,
// its value; +OK, integers and nil cost none.
package resp

import (
	"strconv"
	"strings"

	"github.com/gomodule/redigo/redis"
)

// Kind says what a [Reply] is. Zero is no kind, so that a reply which was never read is not taken
// for a nil one.
type Kind uint8

// The kinds of RESP2. Nil stands for both the nil bulk string and the nil array.
const (
	Nil Kind = iota + 1
	Status
	Error
	Int
	Bulk
	Array
)

// Reply is one reply of the server. Only the field that its Kind names is set. The caller owns all
// of it: nothing in it is shared with the [Reader] or with another reply.
type Reply struct {
	Kind Kind
	// Int is set for Int.
	Int int64
	// Text is set for Status and Error, without the leading sign.
	Text string
	// Bytes is set for Bulk: not nil even when empty, and its capacity is its length.
	Bytes []byte
	// Elems is set for Array: not nil even when empty. An element may itself be an Error.
	Elems []Reply
}

// Size returns about how many bytes the reply has on the wire, its elements included.
func (r Reply) Size() int {
	n := framing + len(r.Text) + len(r.Bytes)
	for i := range r.Elems {
		n += r.Elems[i].Size()
	}
	return n
}

// framing is what RESP adds to a short value: its type, its length and two CRLFs.
const framing = 8

// Word returns the text of a status or a bulk string, or an integer in decimal.
func (r Reply) Word() string {
	switch r.Kind {
	case Status:
		return r.Text
	case Bulk:
		return string(r.Bytes)
	case Int:
		return strconv.FormatInt(r.Int, 10)
	}
	return ""
}

// Err returns the error of a reply of kind Error, without keys and values, and otherwise nil.
func (r *Reply) Err() error {
	if r.Kind != Error {
		return nil
	}
	return redis.Error(Discreet(r.Text))
}

// Discreet is the text of an error without what servers repeat of a command that they do not know,
// such as one that was renamed: its keys and values, or a password.
func Discreet(text string) string {
	said, _, _ := strings.Cut(text, ", with args beginning with")
	return said
}

// ProtocolError means that the peer sent something that is not RESP2 or that is beyond a limit. The
// stream cannot be trusted after it: close the connection. A server's "-ERR" is no such error but a
// [Reply] of Kind [Error].
type ProtocolError struct {
	text string
}

// Error never holds a byte of what was received, which may be users' data.
func (e *ProtocolError) Error() string {
	return "rediscache: bad reply: " + e.text
}

// Reasons for a ProtocolError.
var (
	errType       = &ProtocolError{"unknown type"}
	errRESP3      = &ProtocolError{"a type of RESP3 on a RESP2 connection"}
	errTerminator = &ProtocolError{"no CRLF where one belongs"}
	errNumber     = &ProtocolError{"malformed number"}
	errIntRange   = &ProtocolError{"integer beyond 64 bits"}
	errLineLimit  = &ProtocolError{"line beyond the limit"}
	errBulkLimit  = &ProtocolError{"bulk string beyond the limit"}
	errArrayLimit = &ProtocolError{"array elements beyond the limit"}
	errDepthLimit = &ProtocolError{"arrays nested beyond the limit"}
)
