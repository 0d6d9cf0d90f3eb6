package rediscache_test

import (
	"context"
	"fmt"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/rediscache/rediscache"
)

// Everything that was rendered with a template is gone when the template changes.
func ExampleCache_Group() {
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
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	pages := cache.Group("pages")
	for _, name := range []string{"home", "imprint"} {
		if err := pages.Set(ctx, name, []byte("<h1>"+name), time.Hour); err != nil {
			panic(err)
		}
	}
	page, err := pages.Get(ctx, "home")
	fmt.Println(string(page), err)
	n, err := pages.Delete(ctx, "imprint")
	fmt.Println(n, err)
	fmt.Println(pages.Invalidate(ctx))
	_, err = pages.Get(ctx, "home")
	fmt.Println(err)
	// Output:
	// <h1>home <nil>
	// 1 <nil>
	// <nil>
	// rediscache: not found
}

// A request that reads several keys takes the cache of the group once.
func ExampleGroup_Cache() {
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
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	pages, err := cache.Group("pages").Cache(ctx)
	if err != nil {
		panic(err)
	}
	if err := pages.SetMany(ctx, map[string][]byte{"a": []byte("1"), "b": []byte("2")}, time.Hour); err != nil {
		panic(err)
	}
	found, err := pages.GetMany(ctx, "a", "b", "c")
	fmt.Println(len(found), err)
	// Output: 2 <nil>
}

// The prices of a shop are loaded again after the price list has changed.
func ExampleOfGroup() {
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
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	ctx := context.Background()
	group := cache.Group("prices")
	prices, err := rediscache.OfGroup(group, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	price := 5
	load := func(context.Context) (int, error) { return price, nil }
	fmt.Println(prices.View(ctx).GetOrLoad(ctx, "apple", load))
	price = 6
	fmt.Println(prices.View(ctx).GetOrLoad(ctx, "apple", load))
	if err := group.Invalidate(ctx); err != nil {
		panic(err)
	}
	fmt.Println(prices.View(ctx).GetOrLoad(ctx, "apple", load))
	// Output:
	// 5 <nil>
	// 5 <nil>
	// 6 <nil>
}
