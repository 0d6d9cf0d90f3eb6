package rediscacheotel_test

import (
	"context"
	"fmt"

	"github.com/alicebob/miniredis/v2"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/rediscacheotel"
)

// A process has one Telemetry. Its providers export to a collector; here they keep the
// spans in memory.
func Example() {
	server, err := miniredis.Run()
	if err != nil {
		panic(err)
	}
	defer server.Close()
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	telemetry, err := rediscacheotel.New(rediscacheotel.WithTracerProvider(provider))
	if err != nil {
		panic(err)
	}
	defer func() { _ = telemetry.Close() }()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	if err := telemetry.AddPool("main", pool); err != nil {
		panic(err)
	}
	cache, err := rediscache.New(pool, rediscache.WithObserver(telemetry.Observer("users")))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	if err := telemetry.AddCache("users", cache); err != nil {
		panic(err)
	}

	ctx, request := provider.Tracer("example").Start(context.Background(), "GET /users/{name}")
	_, _ = cache.Get(ctx, "ulm") // a miss
	request.End()
	for _, span := range spans.GetSpans()[:1] {
		fmt.Println(span.Name)
		for _, a := range span.Attributes {
			fmt.Println(" ", a.Key, a.Value.AsString())
		}
	}
	// Output:
	// get users
	//   db.operation.name get
	//   db.system.name redis
	//   rediscache.cache users
	//   rediscache.outcome miss
}
