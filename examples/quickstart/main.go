// Command quickstart takes a cache from its first connection to its last and
// prints what it does. It needs no Redis: it brings one, miniredis, along.
//
//	go run ./examples/quickstart
//
// Look at who closes what (the pool is yours, so the cache leaves it open), at
// the miss, which is an error of its own and not an empty value, and at the
// context, which every call takes and which bounds it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/rediscache/rediscache"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run() error {
	server, err := miniredis.Run()
	if err != nil {
		return err
	}
	defer server.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	// One pool for the whole process. NewPool does not wait for Redis; Ready does.
	pool, err := rediscache.NewPool("redis://"+server.Addr(),
		rediscache.WithMinIdle(2), rediscache.WithMaxActive(10))
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := pool.Ready(ctx); err != nil {
		return err
	}
	fmt.Println("the pool is warm:", pool.Stats().Idle, "connections wait for the first caller")

	// A cache on it: the prefix keeps its keys apart, the TTL is for those who name none.
	cache, err := rediscache.New(pool, rediscache.WithPrefix("quickstart:"), rediscache.WithTTL(time.Hour))
	if err != nil {
		return err
	}
	defer cache.Close()
	if err := verbs(ctx, cache); err != nil {
		return err
	}

	// In this order: the cache hands its connections back, then the pool closes them.
	if err := errors.Join(cache.Close(), pool.Shutdown(ctx)); err != nil {
		return err
	}
	fmt.Println("shut down:", pool.Stats().Open, "connections are left")
	return nil
}

func verbs(ctx context.Context, cache *rediscache.Cache) error {
	if err := cache.Set(ctx, "greeting", []byte("hello"), time.Minute); err != nil {
		return err
	}
	fmt.Println("set greeting: stored for a minute")

	value, err := cache.Get(ctx, "greeting")
	if err != nil {
		return err
	}
	left, err := cache.TTL(ctx, "greeting")
	if err != nil {
		return err
	}
	fmt.Printf("get greeting: %s, with %v left\n", value, left)

	for range 2 {
		existed, err := cache.Delete(ctx, "greeting")
		if err != nil {
			return err
		}
		fmt.Println("delete greeting:", existed, "existed")
	}

	_, err = cache.Get(ctx, "greeting")
	if !errors.Is(err, rediscache.ErrNotFound) {
		return fmt.Errorf("no miss but %w", err) // Redis down, busy, too slow: see the manual
	}
	fmt.Println("get greeting: a miss, which is an error of its own:", err)

	stats := cache.Stats()
	fmt.Printf("in all: %d hit, %d miss, %d set, %d deleted\n", stats.Hits, stats.Misses, stats.Sets, stats.Deletes)
	return nil
}
