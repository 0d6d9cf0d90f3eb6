package rediscacheotel

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/rediscache/rediscache"
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

// register makes a metric of each reading that read returns, with the attribute owner.
func (t *Telemetry) register(owner attribute.KeyValue, read func() []reading) error {
	instruments := make(map[string]metric.Observable)
	var all []metric.Observable
	var failed error
	for _, r := range read() {
		if instruments[r.name] != nil {
			continue
		}
		i, err := t.instrument(r)
		failed = errors.Join(failed, err)
		instruments[r.name] = i
		all = append(all, i)
	}
	if failed != nil {
		return failed
	}
	registration, err := t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, r := range read() {
			attrs := metric.WithAttributes(owner)
			if r.attr.Valid() {
				attrs = metric.WithAttributes(owner, r.attr)
			}
			switch i := instruments[r.name].(type) {
			case metric.Int64Observable:
				o.ObserveInt64(i, int64(r.value), attrs)
			case metric.Float64Observable:
				o.ObserveFloat64(i, r.value, attrs)
			}
		}
		return nil
	}, all...)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.registrations = append(t.registrations, registration)
	return nil
}

func (t *Telemetry) instrument(r reading) (metric.Observable, error) {
	switch r.kind {
	case total:
		return t.meter.Int64ObservableCounter(r.name, metric.WithUnit(r.unit))
	case seconds:
		return t.meter.Float64ObservableCounter(r.name, metric.WithUnit(r.unit))
	default:
		return t.meter.Int64ObservableUpDownCounter(r.name, metric.WithUnit(r.unit))
	}
}
