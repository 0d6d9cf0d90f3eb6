package codecs_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/alicebob/miniredis/v2"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/examples/codecs"
)

type article struct{ Title, Text string }

// A View whose values are JSON, compressed. A value has at most 1 MiB of JSON.
func ExampleCompressed() {
	server, cache, stop := open()
	defer stop()
	articles, err := rediscache.Of(cache, codecs.Compressed(rediscache.JSON[article](), 1<<20), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	_ = articles.Set(ctx, "1", article{"Caches", strings.Repeat("lorem ipsum ", 1000)})
	got, err := articles.Get(ctx, "1")
	stored, _ := server.Get("1")
	fmt.Println(got.Title, len(got.Text), err)
	fmt.Println("less than 100 bytes in Redis:", len(stored) < 100)
	// Output:
	// Caches 12000 <nil>
	// less than 100 bytes in Redis: true
}

func ExampleMsgPack() {
	server, cache, stop := open()
	defer stop()
	articles, err := rediscache.Of(cache, codecs.MsgPack[article](1<<20), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	_ = articles.Set(ctx, "1", article{Title: "Caches"})
	got, err := articles.Get(ctx, "1")
	stored, _ := server.Get("1")
	fmt.Println(got.Title, err)
	fmt.Printf("%q\n", stored)
	// Output:
	// Caches <nil>
	// "\x82\xa5Title\xa6Caches\xa4Text\xa0"
}

// Bytes that the codec did not write are a miss, so GetOrLoad loads the value.
func ExampleProtobuf() {
	server, cache, stop := open()
	defer stop()
	settings, err := rediscache.Of(cache, codecs.Protobuf[*structpb.Struct](), rediscache.Policy{TTL: time.Hour})
	if err != nil {
		panic(err)
	}
	_ = server.Set("1", "written by another program")
	for range 2 {
		got, err := settings.GetOrLoad(context.Background(), "1", func(context.Context) (*structpb.Struct, error) {
			fmt.Println("load")
			return structpb.NewStruct(map[string]any{"theme": "dark"})
		})
		fmt.Println(got.GetFields()["theme"].GetStringValue(), err)
	}
	// Output:
	// load
	// dark <nil>
	// dark <nil>
}

func open() (*miniredis.Miniredis, *rediscache.Cache, func()) {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	cache, err := rediscache.New(pool)
	if err != nil {
		panic(err)
	}
	return server, cache, func() {
		_ = cache.Close()
		_ = pool.Close()
		server.Close()
	}
}
