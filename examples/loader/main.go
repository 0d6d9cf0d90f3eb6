// Command loader puts a cache before a slow database: a thousand requests query it once,
// and stale values hide that it is down.
//
//	go run ./examples/loader
//
// Look at policy, which configures all of this, and at find, which a handler would call.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/rediscache/rediscache"
)

var policy = rediscache.Policy{
	TTL:      time.Minute,      // how long a user is fresh
	Stale:    time.Hour,        // how much longer a stale user is better than an error
	Negative: 10 * time.Second, // how long to remember that a user does not exist
	Hard:     5 * time.Second,  // how long a query may take
	Lease:    10 * time.Second, // one process at a time queries for a user
	Jitter:   0.1,              // users that were stored together do not expire together
	Early:    1,                // popular users are loaded before they expire
}

type user struct {
	Name string `json:"name"`
}

// database is slow, counts its queries, and can be down.
type database struct {
	queries atomic.Int64
	down    atomic.Bool
}

func (d *database) query(ctx context.Context, id string) (user, error) {
	d.queries.Add(1)
	select {
	case <-time.After(100 * time.Millisecond):
	case <-ctx.Done():
		return user{}, ctx.Err()
	}
	switch {
	case d.down.Load():
		return user{}, errors.New("the database is down")
	case id != "42":
		return user{}, fmt.Errorf("user %s: %w", id, rediscache.ErrNotFound)
	}
	return user{Name: "Ann"}, nil
}

func main() {
	flag.Usage = func() { log.Print("loader loads users from a slow database through a cache. It has no flags.") }
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	if err := run(ctx); err != nil && ctx.Err() == nil {
		log.Fatal("loader: ", err)
	}
	fmt.Println("goodbye")
}

func run(ctx context.Context) error {
	redis, err := miniredis.Run() // for your own Redis, change the URL below
	if err != nil {
		return err
	}
	defer redis.Close()
	pool, err := rediscache.NewPool("redis://" + redis.Addr())
	if err != nil {
		return err
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithPrefix("user:"))
	if err != nil {
		return err
	}
	defer cache.Close()
	users, err := rediscache.Of(cache, rediscache.JSON[user](), policy)
	if err != nil {
		return err
	}
	db := new(database)
	find := func(id string) (user, error) {
		return users.GetOrLoad(ctx, id, func(ctx context.Context) (user, error) { return db.query(ctx, id) })
	}

	fmt.Println("try: change policy in examples/loader/main.go and run it again")
	var requests sync.WaitGroup
	for range 1000 {
		requests.Go(func() { _, _ = find("42") })
	}
	requests.Wait()
	u, err := find("42")
	fmt.Printf("1000 requests: %d query, and the user is %q, %v\n", db.queries.Load(), u.Name, err)

	redis.FastForward(2 * time.Minute) // past the TTL
	db.down.Store(true)
	u, err = find("42")
	fmt.Printf("the database is down: %q, %v\n", u.Name, err)

	db.down.Store(false)
	for range 3 {
		_, err = find("7")
	}
	fmt.Printf("user 7, three times: %v\n", err)
	fmt.Printf("stale: %d, known to be missing: %d\n", cache.Stats().Stale, cache.Stats().Negatives)
	return ctx.Err()
}
