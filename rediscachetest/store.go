package rediscachetest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rediscache/rediscache"
)

// Store keeps values in memory. It implements [rediscache.Store], so it can be the store of
// a handler in a test. The zero value is ready to use. All methods are safe for concurrent
// use.
type Store struct {
	mu     sync.Mutex // guards all below
	values map[string]stored
	now    time.Duration // by Advance
	err    error
}

type stored struct {
	value []byte
	ends  time.Duration // negative: never
}

var _ rediscache.Store = (*Store)(nil)

// Get returns the value of key, or [rediscache.ErrNotFound].
func (s *Store) Get(_ context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	v, ok := s.getLocked(key)
	if !ok {
		return nil, rediscache.ErrNotFound
	}
	return append([]byte(nil), v.value...), nil
}

// Set stores a copy of value for ttl. [rediscache.DefaultTTL] and [rediscache.NoExpiry]
// store it without an end. Any other ttl below a millisecond is an error, as for a cache.
func (s *Store) Set(_ context.Context, key string, value []byte, ttl time.Duration) error {
	if ttl < time.Millisecond && ttl != rediscache.DefaultTTL && ttl != rediscache.NoExpiry {
		return fmt.Errorf("rediscachetest: set: ttl %v is neither a millisecond or more nor NoExpiry", ttl)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if s.values == nil {
		s.values = make(map[string]stored)
	}
	ends := time.Duration(-1)
	if ttl > 0 {
		ends = s.now + ttl
	}
	s.values[key] = stored{append([]byte(nil), value...), ends}
	return nil
}

// Delete removes the keys, and returns how many of them existed.
func (s *Store) Delete(_ context.Context, keys ...string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	n := 0
	for _, key := range keys {
		if _, ok := s.getLocked(key); ok {
			n++
		}
		delete(s.values, key)
	}
	return n, nil
}

func (s *Store) getLocked(key string) (stored, bool) {
	v, ok := s.values[key]
	return v, ok && (v.ends < 0 || s.now < v.ends)
}

// Fail makes all methods return err and change nothing, until Fail(nil).
func (s *Store) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// Advance moves the clock of the store by d. The clock does not move by itself. Advance
// panics if d is negative.
func (s *Store) Advance(d time.Duration) {
	if d < 0 {
		panic(fmt.Sprintf("rediscachetest: Advance(%v): the clock cannot go back", d))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now += d
}
