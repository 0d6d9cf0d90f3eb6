package warm

import (
	"errors"

	"github.com/gomodule/redigo/redis"
)

// The package rediscache gives these to its users under the same names.
var (
	ErrClosed              = errors.New("rediscache: closed")
	ErrPoolExhausted error = exhausted{}
	ErrUnavailable         = errors.New("rediscache: unavailable")
)

// exhausted matches the error that redigo's pool returns in the same case, for
// libraries that were written for that.
type exhausted struct{}

func (exhausted) Error() string { return "rediscache: pool exhausted" }

func (exhausted) Is(target error) bool { return target == redis.ErrPoolExhausted }

// A DialError says why no connection could be opened. It matches
// ErrUnavailable and unwraps to the cause.
type DialError struct{ Err error }

func (e *DialError) Error() string { return "rediscache: dial: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *DialError) Unwrap() error { return e.Err }

// Is reports whether target is ErrUnavailable.
func (e *DialError) Is(target error) bool { return target == ErrUnavailable }
