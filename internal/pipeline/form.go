package pipeline

import (
	"errors"

	"github.com/rediscache/rediscache/internal/resp"
)

// Form is the expected type of a reply that is no error. RESP2 does not number replies. So a reply
// of another type shows that replies and commands are out of step, and the connection is closed.
//
// A Form refuses the replies to other commands of this package, and accepts all other replies that
// servers and proxies are known to send:
//
//   - An error may stand in the place of any reply, and of any element of a reply to MGET: a proxy
//     that splits MGET over several servers puts the error of one server there.
//   - The reply to PING and SET may be the bulk string PONG or OK. Any other bulk string is not
//     accepted as a status, because it would be the reply to a GET.
//   - The cursor of SCAN may be any reply that is one word.
//
// Only a call that is [Call.Queued] accepts the status QUEUED. For any other call QUEUED means that
// the connection is in a transaction of another borrower, and the command was not executed.
type Form uint8

// The forms.
const (
	_       Form = iota // no command
	Status              // such as OK
	Done                // a status, or nil if the command did nothing
	Count               // an integer
	Value               // a bulk string, or nil
	Values              // an array with a Value or an error for each argument
	Page                // of SCAN: a cursor, and an array of keys
	Queued              // of a command within MULTI
	Results             // of EXEC: an array of any replies, or nil if nothing was executed
)

var errForm = errors.New("rediscache: unexpected reply type")

// shape describes the expected replies of a call.
type shape struct {
	form   Form
	before Form  // of the first command of a run, see After; zero: the call is no run
	argc   int32 // arguments of the command
}

// replies returns how many replies the server sends.
func (s shape) replies() int {
	if s.before != 0 {
		return 2
	}
	return 1
}

// each returns the shapes of the replies that the server sends, in their order.
func (s shape) each() []shape {
	if s.before == 0 {
		return []shape{s}
	}
	return []shape{{form: s.before}, {form: s.form, argc: s.argc}}
}

// receiver is the source of replies.
type receiver interface{ receive() (resp.Reply, error) }

// receive reads the replies of the server and returns the reply to the call. For a run that is an
// array of both replies, but a reply of kind Error if a retry of the second command may succeed.
func (s shape) receive(l receiver) (resp.Reply, error) {
	if s.before == 0 {
		return s.receiveOne(l)
	}
	run := resp.Reply{Kind: resp.Array, Elems: make([]resp.Reply, 2)}
	for i, one := range s.each() {
		r, err := one.receiveOne(l)
		if err != nil {
			return resp.Reply{}, err
		}
		run.Elems[i] = r
	}
	if second := run.Elems[1]; retriable(second) {
		run.Kind, run.Text = resp.Error, second.Text
	}
	return run, nil
}

func retriable(r resp.Reply) bool {
	return r.Kind == resp.Error && resp.MeaningOf(r.Text).Has(resp.Retry)
}

func (s shape) receiveOne(l receiver) (resp.Reply, error) {
	reply, err := l.receive()
	if err == nil {
		err = s.check(reply)
	}
	return reply, err
}

// check returns errForm if r cannot be the reply.
func (s shape) check(r resp.Reply) error {
	if r.Kind == resp.Error || s.fits(&r) {
		return nil
	}
	return errForm
}

func (s shape) fits(r *resp.Reply) bool {
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
	case Queued:
		return isQueued(r)
	case Results:
		return r.Kind == resp.Array || r.Kind == resp.Nil
	case Page:
		return len(r.Elems) == 2 && isWord(&r.Elems[0]) &&
			r.Elems[1].Kind == resp.Array && all(r.Elems[1].Elems, isKey)
	}
	return false
}

func isStatus(r *resp.Reply) bool {
	switch r.Kind {
	case resp.Status:
		return !isQueued(r)
	case resp.Bulk:
		return string(r.Bytes) == "OK" || string(r.Bytes) == "PONG"
	}
	return false
}

func isQueued(r *resp.Reply) bool       { return r.Kind == resp.Status && r.Text == "QUEUED" }
func isValue(r *resp.Reply) bool        { return r.Kind == resp.Bulk || r.Kind == resp.Nil }
func isValueOrError(r *resp.Reply) bool { return isValue(r) || r.Kind == resp.Error }
func isKey(r *resp.Reply) bool          { return r.Kind == resp.Bulk }
func isWord(r *resp.Reply) bool {
	return r.Kind == resp.Bulk || r.Kind == resp.Status || r.Kind == resp.Int
}

// all takes pointers, because a Reply is large.
func all(elems []resp.Reply, is func(*resp.Reply) bool) bool {
	for i := range elems {
		if !is(&elems[i]) {
			return false
		}
	}
	return true
}
