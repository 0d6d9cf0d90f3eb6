package rediscacheotel

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/recorder"
)

// reading is a number of a pool or a cache at one time.
type reading struct {
	kind  kind
	name  string
	unit  string
	value float64
	attr  attribute.KeyValue // one more attribute, if valid
}

type kind uint8

const (
	level   kind = iota // rises and falls
	total               // only rises
	seconds             // only rises, and is no integer
)

// connections and the like are units: what is counted.
const (
	connections = "{connection}"
	dials       = "{dial}"
	requests    = "{request}"
	timeouts    = "{timeout}"
	keys        = "{key}"
	calls       = "{call}"
)

func poolReadings(s rediscache.PoolStats, minIdle, maxActive int) []reading {
	state := func(v string) attribute.KeyValue { return attribute.String("db.client.connection.state", v) }
	reason := func(v string) attribute.KeyValue { return attribute.String("rediscache.pool.close_reason", v) }
	return []reading{
		{kind: level, name: "db.client.connection.count", unit: connections, value: float64(s.Idle), attr: state("idle")},
		{kind: level, name: "db.client.connection.count", unit: connections, value: float64(s.InUse), attr: state("used")},
		{kind: level, name: "db.client.connection.idle.min", unit: connections, value: float64(minIdle)},
		{kind: level, name: "db.client.connection.max", unit: connections, value: float64(maxActive)},
		{kind: level, name: "db.client.connection.pending_requests", unit: requests, value: float64(s.Waiting)},
		{kind: total, name: "db.client.connection.timeouts", unit: timeouts, value: float64(s.Timeouts)},
		{kind: total, name: "rediscache.pool.dials", unit: dials, value: float64(s.Dials)},
		{kind: total, name: "rediscache.pool.dial_failures", unit: dials, value: float64(s.DialFailures)},
		{kind: total, name: "rediscache.pool.waits", unit: requests, value: float64(s.Waits)},
		{kind: seconds, name: "rediscache.pool.wait_duration", unit: "s", value: s.WaitTime.Seconds()},
		{kind: total, name: "rediscache.pool.closed_connections", unit: connections, value: float64(s.Closed.Idle), attr: reason("idle")},
		{kind: total, name: "rediscache.pool.closed_connections", unit: connections, value: float64(s.Closed.Lifetime), attr: reason("lifetime")},
		{kind: total, name: "rediscache.pool.closed_connections", unit: connections, value: float64(s.Closed.Broken), attr: reason("broken")},
		{kind: total, name: "rediscache.pool.closed_connections", unit: connections, value: float64(s.Closed.State), attr: reason("state")},
		{kind: total, name: "rediscache.pool.closed_connections", unit: connections, value: float64(s.Closed.Shutdown), attr: reason("shutdown")},
	}
}

func cacheReadings(s rediscache.Stats) []reading {
	return []reading{
		{kind: total, name: "rediscache.hits", unit: keys, value: float64(s.Hits)},
		{kind: total, name: "rediscache.misses", unit: keys, value: float64(s.Misses)},
		{kind: total, name: "rediscache.sets", unit: keys, value: float64(s.Sets)},
		{kind: total, name: "rediscache.deletes", unit: keys, value: float64(s.Deletes)},
		{kind: total, name: "rediscache.errors", unit: calls, value: float64(s.Errors)},
		{kind: total, name: "rediscache.stale_hits", unit: keys, value: float64(s.Stale)},
		{kind: total, name: "rediscache.negative_hits", unit: keys, value: float64(s.Negatives)},
		{kind: total, name: "rediscache.loads", unit: calls, value: float64(s.Loads)},
		{kind: total, name: "rediscache.shared_loads", unit: keys, value: float64(s.Shared)},
		{kind: total, name: "rediscache.refused_fills", unit: keys, value: float64(s.Refused)},
		{kind: total, name: "rediscache.near.hits", unit: keys, value: float64(s.Near.Hits)},
		{kind: total, name: "rediscache.near.misses", unit: keys, value: float64(s.Near.Misses)},
		{kind: level, name: "rediscache.near.entries", unit: keys, value: float64(s.Near.Entries)},
		{kind: level, name: "rediscache.near.size", unit: "By", value: float64(s.Near.Bytes)},
		{kind: total, name: "rediscache.near.invalidations", unit: keys, value: float64(s.Near.Invalidations)},
		{kind: total, name: "rediscache.near.drops", unit: "{drop}", value: float64(s.Near.Drops)},
	}
}

// Produce returns the metrics at one time, for a reader of the SDK.
func (t *Telemetry) Produce(context.Context) ([]metricdata.ScopeMetrics, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := production{start: t.began, now: time.Now(), at: make(map[string]int)}
	for name, pool := range t.pools {
		minIdle, maxActive := pool.Limits()
		p.add(attribute.String("db.client.connection.pool.name", name), poolReadings(pool.Stats(), minIdle, maxActive))
	}
	for name, cache := range t.caches {
		p.add(cacheAttr(name), cacheReadings(cache.Stats()))
	}
	for name, r := range t.recorders {
		r.Each(func(op, kind string, h *recorder.Histogram) { p.addDurations(name, op, kind, h) })
	}
	return []metricdata.ScopeMetrics{{Scope: instrumentation.Scope{Name: scope}, Metrics: p.metrics}}, nil
}

// production is the metrics at one time.
type production struct {
	start, now time.Time
	metrics    []metricdata.Metrics
	at         map[string]int // the index in metrics by name
}

// metric returns the metric of a name, which has zero data at first.
func (p *production) metric(name, unit string) *metricdata.Metrics {
	i, ok := p.at[name]
	if !ok {
		i = len(p.metrics)
		p.at[name] = i
		p.metrics = append(p.metrics, metricdata.Metrics{Name: name, Unit: unit})
	}
	return &p.metrics[i]
}

// add adds readings of a pool or a cache, which the attribute owner names.
func (p *production) add(owner attribute.KeyValue, readings []reading) {
	for _, r := range readings {
		attrs := []attribute.KeyValue{owner}
		if r.attr.Valid() {
			attrs = append(attrs, r.attr)
		}
		m := p.metric(r.name, r.unit)
		if r.kind == seconds {
			m.Data = sumWith(p, m.Data, r.value, true, attrs)
		} else {
			m.Data = sumWith(p, m.Data, int64(r.value), r.kind == total, attrs)
		}
	}
}

// sumWith returns the sum data with one more point.
func sumWith[N int64 | float64](
	p *production, data metricdata.Aggregation, value N, rises bool, attrs []attribute.KeyValue,
) metricdata.Sum[N] {
	sum, _ := data.(metricdata.Sum[N])
	sum.Temporality, sum.IsMonotonic = metricdata.CumulativeTemporality, rises
	sum.DataPoints = append(sum.DataPoints, metricdata.DataPoint[N]{
		Attributes: attribute.NewSet(attrs...), StartTime: p.start, Time: p.now, Value: value,
	})
	return sum
}

// addDurations adds the durations of an operation, unless there are none.
func (p *production) addDurations(cache, op, kind string, h *recorder.Histogram) {
	counts, n, sum := h.Read()
	if n == 0 {
		return
	}
	name, attrs := "rediscache.load.duration", []attribute.KeyValue{cacheAttr(cache)}
	if op != opLoad {
		name, attrs = "db.client.operation.duration", callAttrs(cache, op)
	}
	if kind != "" {
		attrs = append(attrs, attribute.String("error.type", kind))
	}
	point := metricdata.HistogramDataPoint[float64]{
		Attributes: attribute.NewSet(attrs...), StartTime: p.start, Time: p.now,
		Count: n, BucketCounts: counts[:], Sum: sum.Seconds(),
	}
	for _, bound := range recorder.Bounds {
		point.Bounds = append(point.Bounds, bound.Seconds())
	}
	m := p.metric(name, "s")
	data, _ := m.Data.(metricdata.Histogram[float64])
	data.Temporality = metricdata.CumulativeTemporality
	data.DataPoints = append(data.DataPoints, point)
	m.Data = data
}

func cacheAttr(name string) attribute.KeyValue { return attribute.String("rediscache.cache", name) }

// callAttrs returns the attributes of a call of Redis.
func callAttrs(cache, op string) []attribute.KeyValue {
	return []attribute.KeyValue{
		cacheAttr(cache), attribute.String("db.system.name", "redis"), attribute.String("db.operation.name", op),
	}
}
