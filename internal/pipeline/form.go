package pipeline

import (
	"errors"

	"github.com/rediscache/rediscache/internal/resp"
)

// Form is what the reply to a call is, if it is no error. One of another form
// is not the reply to that call, so those behind it are not theirs either.
type Form uint8

// The forms.
const (
	_       Form = iota // no command
	Status              // such as OK
	Done                // a status, or nil if the command did nothing
	Count               // an integer
	Value               // a bulk string, or nil
	Values              // an array with a Value for each argument
	Page                // of SCAN: a cursor, and an array of keys
	Results             // of EXEC: an array of any replies, or nil if nothing was executed
)

var errForm = errors.New("rediscache: a reply of another form than the command's")

// shape is what is known of a reply before it comes.
type shape struct {
	form   Form
	before Form  // of a command that is sent ahead, see After; zero: there is none
	argc   int32 // arguments of the command
}

// replies returns how many replies the server sends.
func (s shape) replies() int {
	if s.before != 0 {
		return 2
	}
	return 1
}

// receive reads the replies of the server and returns the reply to the call. That of a run is an
// array of both, or an error of Redis for the second command that a retry may change.
func (s shape) receive(w wire) (resp.Reply, error) {
	if s.before == 0 {
		return s.receiveOne(w)
	}
	run := resp.Reply{Kind: resp.Array, Elems: make([]resp.Reply, 2)}
	for i, one := range [2]shape{{form: s.before}, {form: s.form, argc: s.argc}} {
		r, err := one.receiveOne(w)
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

func (s shape) receiveOne(w wire) (resp.Reply, error) {
	reply, err := w.receive()
	if err == nil {
		err = s.check(reply)
	}
	return reply, err
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
		return r.Kind == resp.Status
	case Done:
		return r.Kind == resp.Status || r.Kind == resp.Nil
	case Count:
		return r.Kind == resp.Int
	case Value:
		return isValue(r)
	case Values:
		return r.Kind == resp.Array && len(r.Elems) == int(s.argc) && all(r.Elems, isValue)
	case Results:
		return r.Kind == resp.Array || r.Kind == resp.Nil
	case Page:
		return len(r.Elems) == 2 && isKey(r.Elems[0]) &&
			r.Elems[1].Kind == resp.Array && all(r.Elems[1].Elems, isKey)
	}
	return false
}

func isValue(r resp.Reply) bool { return r.Kind == resp.Bulk || r.Kind == resp.Nil }
func isKey(r resp.Reply) bool   { return r.Kind == resp.Bulk }

func all(elems []resp.Reply, is func(resp.Reply) bool) bool {
	for _, e := range elems {
		if !is(e) {
			return false
		}
	}
	return true
}
