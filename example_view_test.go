package rediscache_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/rediscache/rediscache"
)

// city is the value of some examples.
type city struct {
	Name   string
	People int
}

// seconds is a Codec of times, as eight bytes.
type seconds struct{}

func (seconds) Encode(t time.Time) ([]byte, error) {
	return binary.BigEndian.AppendUint64(nil, uint64(t.Unix())), nil
}

func (seconds) Decode(data []byte) (time.Time, error) {
	if len(data) != 8 {
		return time.Time{}, fmt.Errorf("a time has 8 bytes, not %d", len(data)) // a miss
	}
	return time.Unix(int64(binary.BigEndian.Uint64(data)), 0), nil
}

func ExampleOf() {
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
	cities, err := rediscache.Of(cache, rediscache.JSON[city](), rediscache.Policy{
		TTL:   time.Minute, // how long a city is fresh
		Stale: time.Hour,   // how much longer it is returned while a load replaces it
	})
	if err != nil {
		panic(err) // names every fault of the policy
	}
	_ = cities.Set(ctx, "ulm", city{"Ulm", 126_000})
	stored, err := cache.Get(ctx, "ulm")
	fmt.Println(string(stored), err)
	_, err = rediscache.Of(cache, rediscache.Bytes(), rediscache.Policy{Negative: time.Minute, Jitter: 2})
	fmt.Println(err)
	// Output:
	// {"Name":"Ulm","People":126000} <nil>
	// rediscache: Policy.TTL: it is zero and the cache has no WithTTL: write a time in either, or NoExpiry for values that never expire
	// rediscache: Policy.Jitter: 2 is not in [0, 1)
	// rediscache: Policy.Negative: the codec encodes values to the empty string, which stands for none
}

// A process makes a View once. Its callers share their loads.
func ExampleView() {
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
	cities, err := rediscache.Of(cache, rediscache.JSON[city](), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	load := func(context.Context) (city, error) {
		return city{"Ulm", 126_000}, nil // SELECT name, people FROM cities WHERE id = 'ulm'
	}
	var callers sync.WaitGroup
	for range 100 {
		callers.Go(func() { _, _ = cities.GetOrLoad(context.Background(), "ulm", load) })
	}
	callers.Wait()
	fmt.Println("loads:", cache.Stats().Loads)
	// Output:
	// loads: 1
}

// A policy for a slow database. Many programs need no more than a TTL.
func ExamplePolicy() {
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
	policy := rediscache.Policy{
		TTL:      10 * time.Minute, // how long a value is fresh
		Stale:    time.Hour,        // how much longer a stale value is better than an error
		Negative: 30 * time.Second, // how long to remember that there is no value
		Hard:     5 * time.Second,  // how long a load may take
		Lease:    10 * time.Second, // one process at a time loads a key
		Jitter:   0.1,              // values that were stored together do not expire together
	}
	cities, err := rediscache.Of(cache, rediscache.JSON[city](), policy)
	if err != nil {
		panic(err)
	}
	_ = cities.Set(context.Background(), "ulm", city{"Ulm", 126_000})
	left, err := cache.TTL(context.Background(), "ulm") // TTL, less the jitter, and Stale
	fmt.Println(left > time.Hour+8*time.Minute, left <= time.Hour+10*time.Minute, err)
	// Output:
	// true true <nil>
}

func ExampleView_Get() {
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
	cities, err := rediscache.Of(cache, rediscache.JSON[city](), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	_, err = cities.Get(context.Background(), "ulm")
	fmt.Println(errors.Is(err, rediscache.ErrNotFound))
	// Output:
	// true
}

func ExampleView_Set() {
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
	cities, err := rediscache.Of(cache, rediscache.JSON[city](), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	if err := cities.Set(ctx, "ulm", city{"Ulm", 126_000}); err != nil {
		panic(err)
	}
	ulm, err := cities.Get(ctx, "ulm")
	fmt.Println(ulm.Name, ulm.People, err)
	// Output:
	// Ulm 126000 <nil>
}

// Change the database first, then delete the key: with a Lease, a load that began before
// Delete cannot store the old value.
func ExampleView_Delete() {
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
	cities, err := rediscache.Of(cache, rediscache.JSON[city](), rediscache.Policy{TTL: time.Hour, Lease: 5 * time.Second})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	_ = cities.Set(ctx, "ulm", city{"Ulm", 126_000})
	// UPDATE cities SET people = 130000 WHERE name = 'Ulm'
	n, err := cities.Delete(ctx, "ulm")
	fmt.Println(n, err)
	// Output:
	// 1 <nil>
}

func ExampleView_GetMany() {
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
	cities, err := rediscache.Of(cache, rediscache.JSON[city](), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	_ = cities.Set(ctx, "ulm", city{"Ulm", 126_000})
	found, err := cities.GetMany(ctx, "ulm", "jena")
	fmt.Println(found, err)
	// Output:
	// map[ulm:{Ulm 126000}] <nil>
}

func ExampleView_GetOrLoad() {
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
	cities, err := rediscache.Of(cache, rediscache.JSON[city](), rediscache.Policy{TTL: time.Hour, Negative: time.Minute})
	if err != nil {
		panic(err)
	}
	database := map[string]city{"ulm": {"Ulm", 126_000}}
	for _, name := range []string{"ulm", "ulm", "atlantis", "atlantis"} {
		c, err := cities.GetOrLoad(context.Background(), name, func(context.Context) (city, error) {
			fmt.Println("load", name)
			c, ok := database[name]
			if !ok {
				return city{}, rediscache.ErrNotFound // remembered for a minute
			}
			return c, nil
		})
		fmt.Println(c.Name, err)
	}
	// Output:
	// load ulm
	// Ulm <nil>
	// Ulm <nil>
	// load atlantis
	//  rediscache: not found
	//  rediscache: not found
}

func ExampleView_GetOrLoadMany() {
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
	cities, err := rediscache.Of(cache, rediscache.JSON[city](), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	_ = cities.Set(ctx, "ulm", city{"Ulm", 126_000})
	found, err := cities.GetOrLoadMany(ctx, []string{"ulm", "jena", "atlantis"},
		func(_ context.Context, names []string) (map[string]city, error) {
			fmt.Println("load", names)
			return map[string]city{"jena": {"Jena", 111_000}}, nil // there is no Atlantis
		})
	fmt.Println(found, err)
	// Output:
	// load [jena atlantis]
	// map[jena:{Jena 111000} ulm:{Ulm 126000}] <nil>
}

// A token is stored for as long as its issuer says.
func ExampleView_GetOrLoadItem() {
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
	tokens, err := rediscache.Of(cache, rediscache.String(), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	token, err := tokens.GetOrLoadItem(ctx, "api", func(context.Context) (rediscache.Item[string], error) {
		return rediscache.Item[string]{Value: "t0ken", TTL: 5 * time.Minute}, nil
	})
	fmt.Println(token, err)
	ttl, err := cache.TTL(ctx, "api")
	fmt.Println(ttl.Round(time.Minute), err)
	// Output:
	// t0ken <nil>
	// 5m0s <nil>
}

// NoStore returns a value to its callers without storing it.
func ExampleItem() {
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
	pages, err := rediscache.Of(cache, rediscache.String(), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	page, err := pages.GetOrLoadItem(ctx, "home", func(context.Context) (rediscache.Item[string], error) {
		return rediscache.Item[string]{Value: "a page of a preview", NoStore: true}, nil
	})
	fmt.Println(page, err)
	_, err = pages.Get(ctx, "home")
	fmt.Println(errors.Is(err, rediscache.ErrNotFound))
	// Output:
	// a page of a preview <nil>
	// true
}

// A load that panics makes all its callers panic with its value and its stack.
func ExamplePanicError() {
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
	v, err := rediscache.Of(cache, rediscache.String(), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	defer func() {
		if p, ok := recover().(*rediscache.PanicError); ok {
			fmt.Println("recovered:", p.Value, len(p.Stack) > 0)
		}
	}()
	_, _ = v.GetOrLoad(context.Background(), "a", func(context.Context) (string, error) {
		panic("no luck")
	})
	// Output:
	// recovered: no luck true
}

// JSON of another type is a miss, and the next load overwrites it.
func ExampleJSON() {
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
	numbers, err := rediscache.Of(cache, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	_ = numbers.Set(ctx, "a", 7)
	fmt.Println(server.Get("a"))
	_ = server.Set("a", `{"seven": 7}`) // by another program
	_, err = numbers.Get(ctx, "a")
	fmt.Println(errors.Is(err, rediscache.ErrNotFound))
	// Output:
	// 7 <nil>
	// true
}

func ExampleBytes() {
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
	images, err := rediscache.Of(cache, rediscache.Bytes(), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	_ = images.Set(ctx, "dot", []byte{0x89, 'P', 'N', 'G'})
	dot, err := images.Get(ctx, "dot")
	fmt.Printf("%q %v\n", dot, err)
	// Output:
	// "\x89PNG" <nil>
}

func ExampleString() {
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
	names, err := rediscache.Of(cache, rediscache.String(), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	_ = names.Set(ctx, "1", "Ann")
	name, err := names.Get(ctx, "1")
	fmt.Println(name, err)
	// Output:
	// Ann <nil>
}

// A codec of your own. Its Decode refuses what its Encode cannot have written.
func ExampleCodec() {
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
	logins, err := rediscache.Of(cache, seconds{}, rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	_ = logins.Set(ctx, "Ann", time.Unix(1_700_000_000, 0))
	login, err := logins.Get(ctx, "Ann")
	fmt.Println(login.UTC().Year(), err)
	_ = server.Set("Bob", "yesterday") // by another program
	_, err = logins.Get(ctx, "Bob")
	fmt.Println(errors.Is(err, rediscache.ErrNotFound))
	// Output:
	// 2023 <nil>
	// true
}
