package rediscache

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// The errors of this package, for [errors.Is]. An error can match more than one of them.
// If the context of a call ended, its error also matches [context.Canceled] or
// [context.DeadlineExceeded].
var (
	// ErrNotFound is returned when the key does not exist. An empty value is a hit. A
	// key that holds another type than a string is ErrWrongType.
	ErrNotFound = errors.New("rediscache: not found")

	// ErrUnavailable is returned when Redis cannot be reached, breaks the connection,
	// or refuses to serve because it is loading, out of memory, a read-only replica
	// and the like. A write was not applied, unless the error also matches
	// ErrOutcomeUnknown: a proxy lost its server during the write.
	ErrUnavailable = warm.ErrUnavailable

	// ErrPoolExhausted is returned when all connections were in use until the context
	// ended or [WithTimeout] expired. A write was not applied. If there was room for a
	// connection and it could not be made, the error is ErrUnavailable.
	ErrPoolExhausted = warm.ErrPoolExhausted

	// ErrOutcomeUnknown is returned when a write was sent and its reply was lost: the
	// write may have been applied. After an error of a write that does not match
	// ErrOutcomeUnknown, the write was not applied.
	ErrOutcomeUnknown = pipeline.ErrOutcomeUnknown

	// ErrWrongType is returned when the key holds another type than a string, such as a
	// list that another program stored. GetMany treats such a key as a miss.
	ErrWrongType = errors.New("rediscache: wrong type")

	// ErrClosed is returned after Close of the cache, or after Close or Shutdown of the
	// [WarmPool] that it borrows from. Redis may still be up.
	ErrClosed = warm.ErrClosed
)

// DialError is the error of a failed dial of a [WarmPool]. It matches [ErrUnavailable]
// and unwraps to the cause. Its text may hold the address of the server, but never a
// password.
type DialError struct {
	Err error // the cause; not nil
}

// Error returns the text of the cause after "rediscache: dial: ".
func (e *DialError) Error() string { return "rediscache: dial: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *DialError) Unwrap() error { return e.Err }

// Is reports whether target is [ErrUnavailable].
func (e *DialError) Is(target error) bool { return target == ErrUnavailable }

// exportDialError returns a *DialError if err is the internal pool's error of a dial, and
// otherwise err.
func exportDialError(err error) error {
	var dial *warm.DialError
	if errors.As(err, &dial) {
		return &DialError{Err: dial.Err}
	}
	return err
}

// ErrorKind returns a word for the kind of err, for a label of a metric: "closed",
// "wrong type", "pool exhausted", "outcome unknown", "unavailable", "timeout", "canceled",
// or "other". The first of these that err matches counts. It is empty for nil and for
// [ErrNotFound], which are no failures.
func ErrorKind(err error) string {
	if err == nil || errors.Is(err, ErrNotFound) {
		return ""
	}
	for _, k := range errorKinds {
		if errors.Is(err, k.err) {
			return k.name
		}
	}
	return "other"
}

var errorKinds = []struct {
	err  error
	name string
}{
	{ErrClosed, "closed"},
	{ErrWrongType, "wrong type"},
	{ErrPoolExhausted, "pool exhausted"},
	{ErrOutcomeUnknown, "outcome unknown"},
	{ErrUnavailable, "unavailable"},
	{context.DeadlineExceeded, "timeout"},
	{context.Canceled, "canceled"},
}

// PanicError is the value with which [View.GetOrLoad], [View.GetOrLoadItem] and
// [View.GetOrLoadMany] panic when the load that they wait for panics. All callers of one
// load panic.
type PanicError struct {
	Value any    // the value of the load's panic
	Stack []byte // the stack of the goroutine that ran the load
}

// Error returns the value and the stack as text.
func (e *PanicError) Error() string { return fmt.Sprintf("%v\n\n%s", e.Value, e.Stack) }

// Unwrap returns the value if it is an error, and otherwise nil.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// opError is the error of an operation, such as "get". It matches its cause, and the
// sentinel that sentinelOf returns for the cause, if any.
type opError struct {
	op       string
	sentinel error // may be nil
	cause    error
}

func newOpError(op string, cause error) *opError {
	return &opError{op: op, sentinel: sentinelOf(cause), cause: cause}
}

// Error returns "rediscache: ", then the operation, the sentinel and the cause.
func (e *opError) Error() string {
	text := "rediscache: " + e.op + ": "
	if e.sentinel != nil {
		text += strings.TrimPrefix(e.sentinel.Error(), "rediscache: ") + ": "
	}
	return text + strings.TrimPrefix(e.cause.Error(), "rediscache: ")
}

// Unwrap returns the sentinel, if there is one, and the cause.
func (e *opError) Unwrap() []error {
	if e.sentinel == nil {
		return []error{e.cause}
	}
	return []error{e.sentinel, e.cause}
}

// sentinelOf returns the sentinel that err stands for but does not match. It returns nil
// if err matches a sentinel or an error of its context, and for NOAUTH, NOPERM and an
// error of Redis that [resp.MeaningOf] does not know.
func sentinelOf(err error) error {
	meaning, answered := resp.MeaningOfError(err)
	if meaning.Has(resp.Unavailable) {
		return ErrUnavailable
	}
	for _, sentinel := range []error{ErrUnavailable, ErrPoolExhausted, ErrOutcomeUnknown, ErrClosed} {
		if errors.Is(err, sentinel) {
			return nil
		}
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return nil
	case errors.Is(err, redis.ErrPoolExhausted):
		return ErrPoolExhausted
	case !answered:
		return ErrUnavailable
	case meaning.Has(resp.WrongType):
		return ErrWrongType
	}
	return nil
}
