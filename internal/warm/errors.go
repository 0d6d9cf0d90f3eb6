package warm

import "errors"

// The package rediscache gives these to its users under the same names.
var (
	ErrClosed        = errors.New("rediscache: closed")
	ErrPoolExhausted = errors.New("rediscache: pool exhausted")
	ErrUnavailable   = errors.New("rediscache: unavailable")
)

// A DialError says why no connection could be opened. It matches
// ErrUnavailable and unwraps to the cause.
type DialError struct{ Err error }

func (e *DialError) Error() string { return "rediscache: dial: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *DialError) Unwrap() error { return e.Err }

// Is reports whether target is ErrUnavailable.
func (e *DialError) Is(target error) bool { return target == ErrUnavailable }
