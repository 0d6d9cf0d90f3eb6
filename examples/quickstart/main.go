// Command quickstart opens a pool and a cache, calls the methods of the cache, closes
// both, and prints each step. It needs no Redis, because it runs an embedded miniredis.
//
//	go run ./examples/quickstart
//
// Look at the order in which the cache and the pool are closed, at the miss, which is
// an error and not an empty value, and at the context, which bounds every call.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/rediscache/rediscache"
)

func main() {
	flag.Usage = func() { log.Print("quickstart calls the methods of a cache and prints each step. It has no flags.") }
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := run(ctx); err != nil && ctx.Err() == nil {
		log.Fatal("quickstart: ", err)
	}
	fmt.Println("goodbye; to try the cache with curl: go run ./examples/server")
}

func run(ctx context.Context) error {
	server, err := miniredis.Run()
	if err != nil {
		return err
	}
	defer server.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
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
	fmt.Println("the pool is warm:", pool.Stats().Idle, "connections are idle")

	// The prefix keeps the keys of this cache apart. The TTL is that of DefaultTTL.
	cache, err := rediscache.New(pool, rediscache.WithPrefix("quickstart:"), rediscache.WithTTL(time.Hour))
	if err != nil {
		return err
	}
	defer cache.Close()
	if err := verbs(ctx, cache); err != nil {
		return err
	}
	// In this order: the cache returns its connections, then the pool closes them.
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
		return fmt.Errorf("expected a miss: %w", err) // such as ErrUnavailable: see the manual
	}
	fmt.Println("get greeting: a miss, which is an error:", err)

	for _, job := range []string{"a worker", "another worker"} {
		added, err := cache.Add(ctx, "lock", []byte(job), time.Minute)
		if err != nil {
			return err
		}
		fmt.Printf("add lock by %s: %v\n", job, added)
	}
	if err := cache.Touch(ctx, "lock", time.Hour); err != nil {
		return err
	}
	fmt.Println("touch lock: it lives for an hour from now")

	stats := cache.Stats()
	fmt.Printf("in all: %d hit, %d miss, %d set, %d deleted\n", stats.Hits, stats.Misses, stats.Sets, stats.Deletes)
	return nil
}
