package warm

import (
	"errors"

	"github.com/gomodule/redigo/redis"
)

// Package rediscache exports these errors under the same names.
var (
	ErrClosed              = errors.New("rediscache: closed")
	ErrPoolExhausted error = exhausted{}
	ErrUnavailable         = errors.New("rediscache: unavailable")
)

// exhausted matches redis.ErrPoolExhausted, for libraries that check for the error of
// redigo's pool.
type exhausted struct{}

func (exhausted) Error() string { return "rediscache: pool exhausted" }

func (exhausted) Is(target error) bool { return target == redis.ErrPoolExhausted }

// DialError is the error of a failed dial. It matches ErrUnavailable and unwraps to
// the cause.
type DialError struct{ Err error }

func (e *DialError) Error() string { return "rediscache: dial: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *DialError) Unwrap() error { return e.Err }

// Is reports whether target is ErrUnavailable.
func (e *DialError) Is(target error) bool { return target == ErrUnavailable }
