package rediscacheotel_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/semconv/v1.43.0/dbconv"
	"go.opentelemetry.io/otel/trace"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/rediscacheotel"
)

// world is a cache whose telemetry the test reads.
type world struct {
	pool    *rediscache.WarmPool
	cache   *rediscache.Cache
	spans   *tracetest.SpanRecorder
	metrics *sdkmetric.ManualReader
	tracer  trace.Tracer
	it      *rediscacheotel.Telemetry
}

func newWorld(t *testing.T, url string, opts ...rediscacheotel.Option) *world {
	t.Helper()
	w := &world{spans: tracetest.NewSpanRecorder()}
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(w.spans))
	w.it = rediscacheotel.New(append(opts, rediscacheotel.WithTracerProvider(tracers))...)
	w.metrics = sdkmetric.NewManualReader(sdkmetric.WithProducer(w.it))
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(w.metrics))
	t.Cleanup(func() {
		require.NoError(t, tracers.Shutdown(context.Background()))
		require.NoError(t, meters.Shutdown(context.Background()))
	})
	w.tracer = tracers.Tracer("test")
	var err error
	w.pool, err = rediscache.NewPool(url, rediscache.WithMinIdle(2), rediscache.WithMaxActive(5))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.pool.Close()) })
	require.NoError(t, w.pool.Ready(t.Context()))
	w.it.AddPool("p", w.pool)
	w.cache, err = rediscache.New(w.pool, rediscache.WithObserver(w.it.Observer("c")))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.cache.Close()) })
	w.it.AddCache("c", w.cache)
	return w
}

// span returns the only ended span of a name.
func (w *world) span(t *testing.T, name string) sdktrace.ReadOnlySpan {
	t.Helper()
	var found []sdktrace.ReadOnlySpan
	for _, s := range w.spans.Ended() {
		if s.Name() == name {
			found = append(found, s)
		}
	}
	require.Len(t, found, 1, name)
	return found[0]
}

func attrsOf(s sdktrace.ReadOnlySpan) map[string]any {
	attrs := make(map[string]any)
	for _, a := range s.Attributes() {
		attrs[string(a.Key)] = a.Value.AsInterface()
	}
	return attrs
}

func TestTheSpansOfALoadAreInsideThoseOfTheCall(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		w := newWorld(t, s.URL())
		v, err := rediscache.Of(w.cache, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour})
		require.NoError(t, err)
		ctx, request := w.tracer.Start(t.Context(), "request")
		_, err = v.GetOrLoad(ctx, "k", func(ctx context.Context) (int, error) {
			_, query := w.tracer.Start(ctx, "query")
			query.End()
			return 1, nil
		})
		require.NoError(t, err)
		request.End()
		call, load := w.span(t, "get or load c"), w.span(t, "load c")
		require.Equal(t, request.SpanContext().SpanID(), call.Parent().SpanID())
		require.Equal(t, call.SpanContext().SpanID(), load.Parent().SpanID())
		require.Equal(t, load.SpanContext().SpanID(), w.span(t, "query").Parent().SpanID())
		require.Equal(t, trace.SpanKindClient, call.SpanKind())
		require.Equal(t, trace.SpanKindInternal, load.SpanKind())
		require.Equal(t, map[string]any{
			"db.system.name": "redis", "db.operation.name": "get or load", "rediscache.cache": "c", "rediscache.outcome": "miss",
		}, attrsOf(call))
		require.Equal(t, map[string]any{"rediscache.cache": "c", "rediscache.outcome": "load"}, attrsOf(load))
		require.Equal(t, codes.Unset, call.Status().Code)
	})
}

func TestASpanHasTheOutcomeAndTheError(t *testing.T) {
	s := redistest.StartMini(t)
	w, ctx := newWorld(t, s.URL(), rediscacheotel.WithRootSpans()), t.Context()
	require.NoError(t, w.cache.Set(ctx, "a", []byte("1"), 0))
	require.Equal(t, "ok", attrsOf(w.span(t, "set c"))["rediscache.outcome"])
	_, err := w.cache.Get(ctx, "none")
	require.ErrorIs(t, err, rediscache.ErrNotFound)
	miss := w.span(t, "get c")
	require.Equal(t, "miss", attrsOf(miss)["rediscache.outcome"])
	require.Equal(t, codes.Unset, miss.Status().Code, "a miss is no error")
	_, err = w.cache.GetMany(ctx, "a", "none", "none either")
	require.NoError(t, err)
	many := attrsOf(w.span(t, "get many c"))
	require.EqualValues(t, 1, many["rediscache.keys.hit"])
	require.EqualValues(t, 2, many["rediscache.keys.miss"])
	s.Do("LPUSH", "list", "x")
	require.NoError(t, w.cache.Touch(ctx, "list", time.Hour))
	v, err := rediscache.Of(w.cache, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour, Lease: time.Second})
	require.NoError(t, err)
	failure := errors.New("the database is down")
	_, err = v.GetOrLoad(ctx, "l", func(context.Context) (int, error) { return 0, failure })
	require.ErrorIs(t, err, failure)
	for _, name := range []string{"get or load c", "load c"} {
		require.Equal(t, sdktrace.Status{Code: codes.Error, Description: "the database is down"}, w.span(t, name).Status())
		require.Equal(t, "other", attrsOf(w.span(t, name))["error.type"])
	}
	_, err = v.GetOrLoadMany(ctx, []string{"r"}, func(ctx context.Context, _ []string) (map[string]int, error) {
		_, err := w.cache.Delete(ctx, "r") // takes the lease from the load
		return map[string]int{"r": 1}, err
	})
	require.NoError(t, err)
	events := w.span(t, "get or load many c").Events()
	require.Len(t, events, 1)
	require.Equal(t, "fill refused", events[0].Name)
}

func TestNoKeyLeavesTheProcessUnlessAsked(t *testing.T) {
	for _, asked := range []bool{false, true} {
		opts := []rediscacheotel.Option{rediscacheotel.WithRootSpans()}
		if asked {
			opts = append(opts, rediscacheotel.WithKeys())
		}
		w := newWorld(t, redistest.StartMini(t).URL(), opts...)
		require.NoError(t, w.cache.Set(t.Context(), "secret", nil, 0))
		key, has := attrsOf(w.span(t, "set c"))["rediscache.key"]
		require.Equal(t, asked, has)
		if asked {
			require.Equal(t, "secret", key)
		}
	}
}

func TestTwoObserversOfOneCacheEachEndTheirSpans(t *testing.T) {
	w := newWorld(t, redistest.StartMini(t).URL(), rediscacheotel.WithRootSpans())
	cache, err := rediscache.New(w.pool, rediscache.WithObserver(w.it.Observer("a")), rediscache.WithObserver(w.it.Observer("b")))
	require.NoError(t, err)
	require.NoError(t, cache.Ping(t.Context()))
	require.NoError(t, cache.Close())
	require.Equal(t, "ok", attrsOf(w.span(t, "ping a"))["rediscache.outcome"])
	require.Equal(t, "ok", attrsOf(w.span(t, "ping b"))["rediscache.outcome"])
}

func TestACallOutsideOfASampledSpanHasNoSpan(t *testing.T) {
	w := newWorld(t, redistest.StartMini(t).URL())
	_, err := w.cache.Get(t.Context(), "none")
	require.ErrorIs(t, err, rediscache.ErrNotFound)
	_, err = w.cache.GetMany(t.Context(), "none")
	require.NoError(t, err)
	require.Empty(t, w.spans.Ended())
	ctx, request := w.tracer.Start(t.Context(), "request")
	request.End() // a load in the background goes on
	_, err = w.cache.Get(ctx, "none")
	require.ErrorIs(t, err, rediscache.ErrNotFound)
	require.Equal(t, request.SpanContext().SpanID(), w.span(t, "get c").Parent().SpanID())
}

// collect returns the metrics by name.
func (w *world) collect(t *testing.T) map[string]metricdata.Metrics {
	t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(t, w.metrics.Collect(t.Context(), &all))
	byName := make(map[string]metricdata.Metrics)
	for _, s := range all.ScopeMetrics {
		require.Equal(t, "github.com/rediscache/rediscache/rediscacheotel", s.Scope.Name)
		for _, m := range s.Metrics {
			byName[m.Name] = m
		}
	}
	return byName
}

func TestTheMetricsAreTheCountsOfThePoolAndTheCache(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		w, ctx := newWorld(t, s.URL()), t.Context()
		require.NoError(t, w.cache.Set(ctx, "a", nil, 0))
		_, err := w.cache.GetMany(ctx, "a", "none")
		require.NoError(t, err)
		_, err = w.cache.Get(ctx, "none")
		require.ErrorIs(t, err, rediscache.ErrNotFound)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		require.Error(t, w.cache.Ping(ended))
		all := w.collect(t)
		require.EqualValues(t, 1, sumOf(t, all["rediscache.hits"]))
		require.EqualValues(t, 2, sumOf(t, all["rediscache.misses"]))
		require.EqualValues(t, 1, sumOf(t, all["rediscache.sets"]))
		require.EqualValues(t, 1, sumOf(t, all["rediscache.errors"]))
		stats := w.pool.Stats()
		require.EqualValues(t, stats.Idle, valueOf(t, all["db.client.connection.count"], attribute.String("db.client.connection.state", "idle")))
		require.EqualValues(t, stats.InUse, valueOf(t, all["db.client.connection.count"], attribute.String("db.client.connection.state", "used")))
		require.EqualValues(t, 2, sumOf(t, all["db.client.connection.idle.min"]))
		require.EqualValues(t, 5, sumOf(t, all["db.client.connection.max"]))
		require.EqualValues(t, stats.Dials, sumOf(t, all["rediscache.pool.dials"]))

		counts := make(map[string]uint64)
		for _, p := range all["db.client.operation.duration"].Data.(metricdata.Histogram[float64]).DataPoints {
			op, _ := p.Attributes.Value("db.operation.name")
			kind, _ := p.Attributes.Value("error.type")
			system, _ := p.Attributes.Value("db.system.name")
			require.Equal(t, "redis", system.AsString())
			counts[op.AsString()+kind.AsString()] = p.Count
		}
		require.Equal(t, map[string]uint64{"set": 1, "get many": 1, "get": 1, "pingcanceled": 1}, counts)
	})
}

func TestANameCanBeTakenOnce(t *testing.T) {
	w := newWorld(t, redistest.StartMini(t).URL())
	require.PanicsWithValue(t, `rediscacheotel: there is a pool "p" already`, func() { w.it.AddPool("p", w.pool) })
	require.PanicsWithValue(t, `rediscacheotel: there is a cache "c" already`, func() { w.it.AddCache("c", w.cache) })
	w.it.AddCache("d", w.cache)
	require.NoError(t, w.cache.Set(t.Context(), "k", nil, 0))
	require.EqualValues(t, 2, sumOf(t, w.collect(t)["rediscache.sets"]))
}

func sumOf(t *testing.T, m metricdata.Metrics) (sum int64) {
	t.Helper()
	data, ok := m.Data.(metricdata.Sum[int64])
	require.True(t, ok, "%s is a %T", m.Name, m.Data)
	for _, p := range data.DataPoints {
		sum += p.Value
	}
	return sum
}

func valueOf(t *testing.T, m metricdata.Metrics, with attribute.KeyValue) int64 {
	t.Helper()
	for _, p := range m.Data.(metricdata.Sum[int64]).DataPoints {
		if v, ok := p.Attributes.Value(with.Key); ok && v == with.Value {
			return p.Value
		}
	}
	t.Fatalf("%s has no point with %v", m.Name, with)
	return 0
}

// The metrics that OpenTelemetry has conventions for have their names and units.
func TestTheMetricsFollowTheConventionsForDatabases(t *testing.T) {
	w := newWorld(t, redistest.StartMini(t).URL())
	require.NoError(t, w.cache.Ping(t.Context()))
	all := w.collect(t)
	for _, want := range []interface {
		Name() string
		Unit() string
	}{
		dbconv.ClientOperationDuration{},
		dbconv.ClientConnectionCountObservable{},
		dbconv.ClientConnectionIdleMinObservable{},
		dbconv.ClientConnectionMaxObservable{},
		dbconv.ClientConnectionPendingRequestsObservable{},
		dbconv.ClientConnectionTimeoutsObservable{},
	} {
		m, ok := all[want.Name()]
		require.True(t, ok, want.Name())
		require.Equal(t, want.Unit(), m.Unit, m.Name)
	}
	for name, m := range all {
		require.NotEmpty(t, m.Unit, name)
	}
}
