package rediscache_test

import (
	"context"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/rediscache/rediscache"
)

func ExampleWithNearCache() {
	server, err := miniredis.Run() // it does not track, so every read goes to it
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithPrefix("shop:"), rediscache.WithNearCache(64<<20))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	if err := cache.Set(ctx, "price", []byte("12"), time.Minute); err != nil {
		panic(err)
	}
	value, err := cache.Get(ctx, "price")
	fmt.Println(string(value), err, cache.Stats().Near.Hits)
	// Output:
	// 12 <nil> 0
}

func ExampleWithNearTTL() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	_, err = rediscache.New(pool, rediscache.WithNearCache(1), rediscache.WithNearTTL(-time.Second))
	fmt.Println(err)
	// Output:
	// rediscache: WithNearCache: 1 bytes is below 65536: leave the option out for no near cache
	// rediscache: WithNearTTL: -1s is negative
}
