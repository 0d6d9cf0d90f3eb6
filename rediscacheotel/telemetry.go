// Package rediscacheotel makes spans and metrics of rediscache pools and caches, by the
// conventions of OpenTelemetry for database clients where there are some.
//
//	telemetry, err := rediscacheotel.New()
//	pool, err := rediscache.NewPool(url)
//	err = telemetry.AddPool("main", pool)
//	cache, err := rediscache.New(pool, rediscache.WithObserver(telemetry.Observer("users")))
//	err = telemetry.AddCache("users", cache)
//
// Inside a sampled span, each call of a cache is a span of kind client, and each load of a
// View a span of kind internal inside the call that began it. Their context is that of the
// call and of the load, so the spans of a load are children.
//
// Metrics with the attribute rediscache.cache:
//
//	db.client.operation.duration   of each call, by db.operation.name and error.type
//	rediscache.load.duration       of each load, by error.type
//	rediscache.hits, .misses, .sets, .deletes, .errors, .stale_hits, .negative_hits,
//	.loads, .shared_loads, .refused_fills, and .near.* of rediscache.WithNearCache
//
// Metrics with the attribute db.client.connection.pool.name:
//
//	db.client.connection.count     by db.client.connection.state: idle or used
//	db.client.connection.idle.min, .max, .pending_requests, .timeouts
//	rediscache.pool.dials, .dial_failures, .waits, .wait_duration
//	rediscache.pool.closed_connections   by rediscache.pool.close_reason
//
// A record of the SDK takes 0.3 us. So 64 callers that do nothing but Get, 500,000 times a
// second on two processors, have 0.8 of their speed with metrics, and 0.3 with a span of
// each call. A service with 10,000 calls a second spends 3 ms of each second on metrics.
package rediscacheotel

import (
	"errors"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/semconv/v1.43.0/dbconv"
	"go.opentelemetry.io/otel/trace"

	"github.com/rediscache/rediscache"
)

// scope is the name of the instrumentation.
const scope = "github.com/rediscache/rediscache/rediscacheotel"

// Telemetry makes the spans and metrics of any number of pools and caches. All methods are
// safe for concurrent use.
type Telemetry struct {
	tracer trace.Tracer
	meter  metric.Meter
	keys   bool
	roots  bool
	calls  dbconv.ClientOperationDuration
	loads  metric.Float64Histogram

	mu            sync.Mutex // guards registrations
	registrations []metric.Registration
}

// Option configures [New].
type Option struct{ apply func(*config) }

type config struct {
	tracers trace.TracerProvider
	meters  metric.MeterProvider
	keys    bool
	roots   bool
}

// WithTracerProvider sets where the spans go. The default, and nil, is the global
// provider of the time when New is called.
func WithTracerProvider(p trace.TracerProvider) Option {
	return Option{func(c *config) { c.tracers = p }}
}

// WithMeterProvider sets where the metrics go. The default, and nil, is the global
// provider of the time when New is called.
func WithMeterProvider(p metric.MeterProvider) Option {
	return Option{func(c *config) { c.meters = p }}
}

// WithKeys gives the spans of calls with one key the attribute rediscache.key. By default
// no key leaves the process, because keys often name users.
func WithKeys() Option { return Option{func(c *config) { c.keys = true }} }

// WithRootSpans also makes spans of calls that are not inside a sampled span, as far as
// the sampler of the provider wants them. By default there are none: a cache is called so
// often that even spans which are not sampled would cost a third of its speed.
func WithRootSpans() Option { return Option{func(c *config) { c.roots = true }} }

// New returns a Telemetry without pools and caches. The error is that of the provider of
// the meters.
func New(opts ...Option) (*Telemetry, error) {
	var cfg config
	for _, o := range opts {
		if o.apply != nil {
			o.apply(&cfg)
		}
	}
	if cfg.tracers == nil {
		cfg.tracers = otel.GetTracerProvider()
	}
	if cfg.meters == nil {
		cfg.meters = otel.GetMeterProvider()
	}
	t := &Telemetry{tracer: cfg.tracers.Tracer(scope), meter: cfg.meters.Meter(scope), keys: cfg.keys, roots: cfg.roots}
	buckets := metric.WithExplicitBucketBoundaries(
		.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10)
	var err, loadErr error
	t.calls, err = dbconv.NewClientOperationDuration(t.meter, buckets)
	t.loads, loadErr = t.meter.Float64Histogram("rediscache.load.duration",
		metric.WithUnit("s"), metric.WithDescription("Duration of the loads of views."), buckets)
	if err := errors.Join(err, loadErr); err != nil {
		return nil, err
	}
	return t, nil
}

// AddPool makes metrics of a pool. Two pools need two names. The caller still owns the
// pool; the counts of a closed pool stay until Close. The error is that of the provider.
func (t *Telemetry) AddPool(name string, pool *rediscache.WarmPool) error {
	return t.register(attribute.String("db.client.connection.pool.name", name), func() []reading {
		minIdle, maxActive := pool.Limits()
		return poolReadings(pool.Stats(), minIdle, maxActive)
	})
}

// AddCache makes metrics of the counts of a cache, which include those of its Subs. Two
// caches need two names. The caller still owns the cache; the counts of a closed cache
// stay until Close. The error is that of the provider.
func (t *Telemetry) AddCache(name string, cache *rediscache.Cache) error {
	return t.register(attribute.String("rediscache.cache", name), func() []reading { return cacheReadings(cache.Stats()) })
}

// Close ends the metrics of pools and caches. Later events still make spans. The error is
// that of the provider.
func (t *Telemetry) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	for _, r := range t.registrations {
		err = errors.Join(err, r.Unregister())
	}
	t.registrations = nil
	return err
}
