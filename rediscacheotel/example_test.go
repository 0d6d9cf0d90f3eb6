package rediscacheotel_test

import (
	"context"
	"fmt"

	"github.com/alicebob/miniredis/v2"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
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
	telemetry := rediscacheotel.New(rediscacheotel.WithTracerProvider(provider))
	reader := sdkmetric.NewManualReader(sdkmetric.WithProducer(telemetry)) // NewPeriodicReader(exporter, …)
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	defer func() { _ = meters.Shutdown(context.Background()) }()
	pool, err := rediscache.NewPool("redis://" + server.Addr())
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	telemetry.AddPool("main", pool)
	cache, err := rediscache.New(pool, rediscache.WithObserver(telemetry.Observer("users")))
	if err != nil {
		panic(err)
	}
	defer cache.Close()
	telemetry.AddCache("users", cache)

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
	//   rediscache.cache users
	//   db.system.name redis
	//   db.operation.name get
	//   rediscache.outcome miss
}
