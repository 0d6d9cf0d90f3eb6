// Package resp implements RESP2, the protocol of Redis: it appends commands to a byte slice, reads
// replies within limits, and classifies error replies.
//
// It is made for a pipeline. A writer appends many commands to one reused slice and writes them
// together, and a reader reads the replies from the same socket in order. The reply to a GET costs one
// allocation, that of the value; OK, integers and nil cost none.
package resp

import (
	"strconv"
	"strings"

	"github.com/gomodule/redigo/redis"
)

// Kind is the type of a [Reply]. The zero Kind is invalid, so that a Reply that was never set differs
// from a nil reply.
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

// Reply is one reply of the server. Its Kind decides which of the other fields is set. The caller owns
// the reply: it shares no memory with the [Reader] or with another reply.
type Reply struct {
	Kind Kind
	// Int is set for Int.
	Int int64
	// Text is set for Status and Error, without the + or - at its start.
	Text string
	// Bytes is set for Bulk. It is not nil, and its capacity is its length.
	Bytes []byte
	// Elems is set for Array. It is not nil. An element may be an Error.
	Elems []Reply
}

// Size returns about how many bytes the reply has on the wire, including its elements.
func (r Reply) Size() int {
	n := framing + len(r.Text) + len(r.Bytes)
	for i := range r.Elems {
		n += r.Elems[i].Size()
	}
	return n
}

// framing is the number of bytes that RESP adds to a short value: its type, its length and two CRLFs.
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

// Discreet returns the text of an error without the arguments of a command that the server does not
// know, for example because it was renamed. These may be keys, values or a password.
func Discreet(text string) string {
	discreet, _, _ := strings.Cut(text, ", with args beginning with")
	return discreet
}

// ProtocolError means that the peer sent bytes that are not RESP2, or that exceed a limit. The caller
// must close the connection, because the next bytes may belong to any reply. An error reply of the
// server is not a ProtocolError, but a [Reply] of kind [Error].
type ProtocolError struct {
	text string
}

// Error returns a text without received bytes, because these may be the data of users.
func (e *ProtocolError) Error() string {
	return "rediscache: bad reply: " + e.text
}

// The protocol errors.
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
