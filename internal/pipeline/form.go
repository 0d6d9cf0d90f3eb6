package pipeline

import (
	"errors"

	"github.com/rediscache/rediscache/internal/resp"
)

// Form is what a command's reply looks like unless it is an error. RESP2 does not number replies,
// so a reply that cannot belong to its command shows that the connection is out of step: what
// follows belongs to other commands too, and the connection is closed.
//
// A form therefore refuses what another command of this package would be answered with, and
// accepts the rest of what servers and proxies are known to send:
//
//   - An error may stand in the place of any reply, and of any element of a reply to MGET: a proxy
//     that splits MGET over several servers puts the error of one server there.
//   - PING and SET may be answered with the bulk string PONG or OK. No other bulk string is taken
//     for a status, as that would be the reply to a GET.
//   - SCAN's cursor may be any reply that is one word.
//
// It refuses the status QUEUED: the connection is within a transaction that somebody else has
// begun, and the command was not executed.
type Form uint8

// The forms.
const (
	Status Form = iota // such as OK
	Done               // a status, or nil if the command did nothing
	Count              // an integer
	Value              // a bulk string, or nil
	Values             // an array with a Value or an error for each argument
	Page               // of SCAN: a cursor, and an array of keys
)

var errForm = errors.New("rediscache: unexpected reply type")

// shape is what is known of a reply before it arrives.
type shape struct {
	form Form
	argc int32 // arguments of the command
}

// check returns an error unless r can be the reply.
func (s shape) check(r resp.Reply) error {
	if r.Kind == resp.Error || s.fits(r) {
		return nil
	}
	return errForm
}

func (s shape) fits(r resp.Reply) bool {
	switch s.form {
	case Status:
		return isStatus(r)
	case Done:
		return isStatus(r) || r.Kind == resp.Nil
	case Count:
		return r.Kind == resp.Int
	case Value:
		return isValue(r)
	case Values:
		return r.Kind == resp.Array && len(r.Elems) == int(s.argc) && all(r.Elems, isValueOrError)
	case Page:
		return len(r.Elems) == 2 && isWord(r.Elems[0]) &&
			r.Elems[1].Kind == resp.Array && all(r.Elems[1].Elems, isKey)
	}
	return false
}

func isStatus(r resp.Reply) bool {
	switch r.Kind {
	case resp.Status:
		return r.Text != "QUEUED"
	case resp.Bulk:
		return string(r.Bytes) == "OK" || string(r.Bytes) == "PONG"
	}
	return false
}

func isValue(r resp.Reply) bool        { return r.Kind == resp.Bulk || r.Kind == resp.Nil }
func isValueOrError(r resp.Reply) bool { return isValue(r) || r.Kind == resp.Error }
func isKey(r resp.Reply) bool          { return r.Kind == resp.Bulk }
func isWord(r resp.Reply) bool {
	return r.Kind == resp.Bulk || r.Kind == resp.Status || r.Kind == resp.Int
}

func all(elems []resp.Reply, is func(resp.Reply) bool) bool {
	for _, e := range elems {
		if !is(e) {
			return false
		}
	}
	return true
}
