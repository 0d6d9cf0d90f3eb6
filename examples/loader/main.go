// Loader puts a cache before a slow database: a thousand requests for a user
// that is not cached ask the database once. Then the database fails, and nobody
// notices while there are stale values; and a user that does not exist is asked
// for once.
//
//	go run ./examples/loader
//
// Look at policy, which says all of this, and at user, which is what a handler
// would call. The Redis is embedded: put your own in NewPool.
package main

import (
	"context"
	"errors"
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
	TTL:      time.Minute,      // a user is fresh for so long,
	Stale:    time.Hour,        // and better than nothing for so much longer
	Negative: 10 * time.Second, // that there is none is remembered
	Hard:     5 * time.Second,  // no query takes longer
	Lease:    10 * time.Second, // one process at a time asks
	Jitter:   0.1,              // not all users end at once
	Early:    1,                // and popular ones are asked for in time
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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		log.Fatal("loader: ", err)
	}
}

func run(ctx context.Context) error {
	redis, err := miniredis.Run()
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
	stats := cache.Stats()
	fmt.Printf("stale: %d, known to be missing: %d\n", stats.Stale, stats.Negatives)
	return ctx.Err()
}
