package rediscache_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rediscache/rediscache"
)

// fakeStore is a Store in memory. Once err is set it fails every call with it.
type fakeStore struct {
	mu    sync.Mutex
	items map[string]fakeItem
	keys  []string // of all calls, in order
	err   error
}

type fakeItem struct {
	value []byte
	ttl   time.Duration
	list  bool
}

func newFakeStore() *fakeStore { return &fakeStore{items: map[string]fakeItem{}} }

func (s *fakeStore) begin(key string) error {
	s.keys = append(s.keys, key)
	return s.err
}

func (s *fakeStore) Get(_ context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	item, ok := s.items[key]
	switch err := s.begin(key); {
	case err != nil:
		return nil, err
	case !ok:
		return nil, fmt.Errorf("get: %w", rediscache.ErrNotFound)
	case item.list:
		return nil, fmt.Errorf("get: %w", rediscache.ErrWrongType)
	}
	return bytes.Clone(item.value), nil
}

func (s *fakeStore) Set(_ context.Context, key string, value []byte, ttl time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.begin(key)
	if err == nil {
		s.items[key] = fakeItem{value: bytes.Clone(value), ttl: ttl}
	}
	return err
}

func (s *fakeStore) Delete(_ context.Context, keys ...string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.items)
	for _, key := range keys {
		if err := s.begin(key); err != nil {
			return 0, err
		}
		delete(s.items, key)
	}
	return n - len(s.items), nil
}

// do answers the Redis commands of testHandler.
func (s *fakeStore) do(command string, args ...any) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := args[0].(string)
	item, ok := s.items[key]
	switch {
	case command == "SET":
		s.items[key] = fakeItem{value: []byte(args[1].(string))}
	case command == "RPUSH":
		s.items[key] = fakeItem{list: true}
	case command == "GET" && ok:
		return append([]byte{}, item.value...)
	case command == "PTTL" && item.ttl == rediscache.DefaultTTL:
		return int64(-1)
	case command == "PTTL":
		return item.ttl.Milliseconds()
	}
	return nil
}
