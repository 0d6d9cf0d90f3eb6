package rediscache_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rediscache/rediscache"
)

// city is what the examples keep.
type city struct {
	Name   string
	People int
}

func ExampleOf() {
	cache, end := exampleCache()
	defer end()
	cities, err := rediscache.Of(cache, rediscache.JSON[city](), rediscache.Policy{
		TTL:   time.Minute, // fresh for so long
		Stale: time.Hour,   // served for so much longer, while a load replaces it
	})
	if err != nil {
		panic(err) // names every fault of the policy
	}
	_ = cities.Set(context.Background(), "ulm", city{"Ulm", 126_000})
	stored, _ := cache.Get(context.Background(), "ulm")
	fmt.Println(string(stored))
	_, err = rediscache.Of(cache, rediscache.Bytes(), rediscache.Policy{Negative: time.Minute, Jitter: 2})
	fmt.Println(err)
	// Output:
	// {"Name":"Ulm","People":126000}
	// rediscache: Policy.TTL: it is zero and the cache has no WithTTL: write a time in either, or NoExpiry for values that never expire
	// rediscache: Policy.Jitter: 2 is not in [0, 1)
	// rediscache: Policy.Negative: the codec encodes values to the empty string, which stands for none
}

// exampleView returns a view of cities, and what ends it.
func exampleView(p rediscache.Policy, opts ...rediscache.Option) (*rediscache.View[city], func()) {
	cache, end := exampleCache(opts...)
	cities, err := rediscache.Of(cache, rediscache.JSON[city](), p)
	if err != nil {
		panic(err)
	}
	return cities, end
}

func ExampleView_Get() {
	cities, end := exampleView(rediscache.Policy{TTL: time.Hour})
	defer end()
	_, err := cities.Get(context.Background(), "ulm")
	fmt.Println(errors.Is(err, rediscache.ErrNotFound))
	// Output: true
}

func ExampleView_Set() {
	cities, end := exampleView(rediscache.Policy{TTL: time.Hour})
	defer end()
	if err := cities.Set(context.Background(), "ulm", city{"Ulm", 126_000}); err != nil {
		panic(err)
	}
	ulm, err := cities.Get(context.Background(), "ulm")
	fmt.Println(ulm.Name, ulm.People, err)
	// Output: Ulm 126000 <nil>
}

// The database first, then the cache: with a Lease no load that began before
// can bring the old value back.
func ExampleView_Delete() {
	cities, end := exampleView(rediscache.Policy{TTL: time.Hour, Lease: 5 * time.Second})
	defer end()
	_ = cities.Set(context.Background(), "ulm", city{"Ulm", 126_000})
	// UPDATE cities SET people = 130000 WHERE name = 'Ulm'
	n, err := cities.Delete(context.Background(), "ulm")
	fmt.Println(n, err)
	// Output: 1 <nil>
}

func ExampleView_GetMany() {
	cities, end := exampleView(rediscache.Policy{TTL: time.Hour})
	defer end()
	_ = cities.Set(context.Background(), "ulm", city{"Ulm", 126_000})
	found, err := cities.GetMany(context.Background(), "ulm", "jena")
	fmt.Println(found, err)
	// Output: map[ulm:{Ulm 126000}] <nil>
}

func ExampleView_GetOrLoad() {
	cities, end := exampleView(rediscache.Policy{TTL: time.Hour, Negative: time.Minute})
	defer end()
	database := map[string]city{"ulm": {"Ulm", 126_000}}
	for _, name := range []string{"ulm", "ulm", "atlantis", "atlantis"} {
		c, err := cities.GetOrLoad(context.Background(), name, func(context.Context) (city, error) {
			fmt.Println("asked for", name)
			c, ok := database[name]
			if !ok {
				return city{}, rediscache.ErrNotFound // remembered for a minute
			}
			return c, nil
		})
		fmt.Println(c.Name, err)
	}
	// Output:
	// asked for ulm
	// Ulm <nil>
	// Ulm <nil>
	// asked for atlantis
	//  rediscache: not found
	//  rediscache: not found
}

func ExampleView_GetOrLoadMany() {
	cities, end := exampleView(rediscache.Policy{TTL: time.Hour})
	defer end()
	_ = cities.Set(context.Background(), "ulm", city{"Ulm", 126_000})
	found, err := cities.GetOrLoadMany(context.Background(), []string{"ulm", "jena", "atlantis"},
		func(_ context.Context, names []string) (map[string]city, error) {
			fmt.Println("asked for", names)
			return map[string]city{"jena": {"Jena", 111_000}}, nil // and no more: there is no Atlantis
		})
	fmt.Println(found, err)
	// Output:
	// asked for [jena atlantis]
	// map[jena:{Jena 111000} ulm:{Ulm 126000}] <nil>
}

// A token is kept for as long as its issuer says.
func ExampleView_GetOrLoadItem() {
	cache, end := exampleCache()
	defer end()
	tokens, err := rediscache.Of(cache, rediscache.String(), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	token, err := tokens.GetOrLoadItem(context.Background(), "api", func(context.Context) (rediscache.Item[string], error) {
		return rediscache.Item[string]{Value: "t0ken", TTL: 5 * time.Minute}, nil
	})
	fmt.Println(token, err)
	ttl, err := cache.TTL(context.Background(), "api")
	fmt.Println(ttl.Round(time.Minute), err)
	// Output:
	// t0ken <nil>
	// 5m0s <nil>
}

func ExampleWithObserver() {
	observer := rediscache.ObserverFunc(func(_ context.Context, e rediscache.Event) {
		fmt.Println(e.Op, e.Key, e.Outcome, e.Err)
	})
	cities, end := exampleView(rediscache.Policy{TTL: time.Hour}, rediscache.WithObserver(observer))
	defer end()
	for range 2 {
		_, _ = cities.GetOrLoad(context.Background(), "ulm", func(context.Context) (city, error) {
			return city{"Ulm", 126_000}, nil
		})
	}
	// Output:
	// get or load ulm miss <nil>
	// load ulm load <nil>
	// get or load ulm hit <nil>
}
