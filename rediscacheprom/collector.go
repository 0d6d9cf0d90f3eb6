// Package rediscacheprom exports the metrics of rediscache pools and caches to
// Prometheus.
//
//	metrics := rediscacheprom.New()
//	prometheus.MustRegister(metrics)
//
//	pool, err := rediscache.NewPool(url)
//	metrics.AddPool("main", pool)
//	cache, err := rediscache.New(pool, rediscache.WithObserver(metrics.Observer("users")))
//	metrics.AddCache("users", cache)
//
// The directory of the package has a dashboard for Grafana, dashboard.json, and alerts
// for Prometheus, alerts.yml.
package rediscacheprom

import (
	"fmt"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/recorder"
)

// Collector is a prometheus.Collector over any number of pools and caches. The label
// "pool" or "cache" has the name that each was added with. A Collector reads the counts
// when Prometheus scrapes it, and starts no goroutine. All methods are safe for
// concurrent use.
type Collector struct {
	mu        sync.Mutex // guards all below
	pools     map[string]*rediscache.WarmPool
	caches    map[string]*rediscache.Cache
	recorders map[string]*recorder.Recorder
}

var _ prometheus.Collector = (*Collector)(nil)

// New returns a Collector without pools and caches. Register it once.
func New() *Collector {
	return &Collector{
		pools:     make(map[string]*rediscache.WarmPool),
		caches:    make(map[string]*rediscache.Cache),
		recorders: make(map[string]*recorder.Recorder),
	}
}

// AddPool adds a pool under a name. It panics if the name is taken. The caller still owns
// the pool; the counts of a closed pool stay.
func (c *Collector) AddPool(name string, pool *rediscache.WarmPool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pools[name] != nil {
		panic(fmt.Sprintf("rediscacheprom: there is a pool %q already", name))
	}
	c.pools[name] = pool
}

// AddCache adds a cache under a name. It panics if the name is taken. The counts of a
// cache include those of its Subs; a Sub that is added too is counted twice, under its own
// name. The caller still owns the cache; the counts of a closed cache stay.
func (c *Collector) AddCache(name string, cache *rediscache.Cache) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.caches[name] != nil {
		panic(fmt.Sprintf("rediscacheprom: there is a cache %q already", name))
	}
	c.caches[name] = cache
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(descs chan<- *prometheus.Desc) {
	for _, m := range poolMetrics {
		descs <- m.desc
	}
	descs <- closedDesc
	for _, m := range cacheMetrics {
		descs <- m.desc
	}
	for _, m := range nearMetrics {
		descs <- m.desc
	}
	descs <- nearDesc
	descs <- secondsDesc
	descs <- failedDesc
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(metrics chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, pool := range c.pools {
		collectPool(metrics, name, pool)
	}
	for name, cache := range c.caches {
		collectCache(metrics, name, cache.Stats())
	}
	for name, r := range c.recorders {
		collectCalls(metrics, name, r)
	}
}

func collectPool(metrics chan<- prometheus.Metric, name string, pool *rediscache.WarmPool) {
	var state poolState
	state.PoolStats = pool.Stats()
	state.minIdle, state.maxActive = pool.Limits()
	for _, m := range poolMetrics {
		metrics <- m.of(state, name)
	}
	for reason, n := range map[string]int64{
		"idle": state.Closed.Idle, "lifetime": state.Closed.Lifetime, "broken": state.Closed.Broken,
		"state": state.Closed.State, "shutdown": state.Closed.Shutdown,
	} {
		metrics <- prometheus.MustNewConstMetric(closedDesc, counter, float64(n), name, reason)
	}
}

func collectCache(metrics chan<- prometheus.Metric, name string, stats rediscache.Stats) {
	for _, m := range cacheMetrics {
		metrics <- m.of(stats, name)
	}
	if stats.Near.State == rediscache.NearOff {
		return
	}
	for _, m := range nearMetrics {
		metrics <- m.of(stats, name)
	}
	for _, s := range nearStates {
		now := 0.0
		if s == stats.Near.State {
			now = 1
		}
		metrics <- prometheus.MustNewConstMetric(nearDesc, gauge, now, name, string(s))
	}
}

// metric is one number of a T.
type metric[T any] struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(T) float64
}

func (m metric[T]) of(from T, name string) prometheus.Metric {
	return prometheus.MustNewConstMetric(m.desc, m.kind, m.value(from), name)
}

// poolState is what the metrics of a pool show.
type poolState struct {
	rediscache.PoolStats
	minIdle, maxActive int
}

func poolMetric(kind prometheus.ValueType, name, help string, value func(poolState) float64) metric[poolState] {
	return metric[poolState]{prometheus.NewDesc("rediscache_pool_"+name, help, []string{"pool"}, nil), kind, value}
}

func cacheMetric(kind prometheus.ValueType, name, help string, value func(rediscache.Stats) float64) metric[rediscache.Stats] {
	return metric[rediscache.Stats]{prometheus.NewDesc("rediscache_"+name, help, []string{"cache"}, nil), kind, value}
}

const (
	gauge   = prometheus.GaugeValue
	counter = prometheus.CounterValue
)

var poolMetrics = []metric[poolState]{
	poolMetric(gauge, "open_connections", "Open connections, including those being dialled or closed.",
		func(s poolState) float64 { return float64(s.Open) }),
	poolMetric(gauge, "idle_connections", "Idle connections.",
		func(s poolState) float64 { return float64(s.Idle) }),
	poolMetric(gauge, "in_use_connections", "Borrowed connections.",
		func(s poolState) float64 { return float64(s.InUse) }),
	poolMetric(gauge, "waiting_borrowers", "Borrowers that wait for a connection.",
		func(s poolState) float64 { return float64(s.Waiting) }),
	poolMetric(gauge, "min_idle_connections", "The value of WithMinIdle.",
		func(s poolState) float64 { return float64(s.minIdle) }),
	poolMetric(gauge, "max_active_connections", "The value of WithMaxActive.",
		func(s poolState) float64 { return float64(s.maxActive) }),
	poolMetric(counter, "dials_total", "Dials that began.",
		func(s poolState) float64 { return float64(s.Dials) }),
	poolMetric(counter, "dial_failures_total", "Dials that failed.",
		func(s poolState) float64 { return float64(s.DialFailures) }),
	poolMetric(counter, "waits_total", "Borrowers that got a connection after a wait.",
		func(s poolState) float64 { return float64(s.Waits) }),
	poolMetric(counter, "wait_seconds_total", "Time that borrowers waited for the connection that they got.",
		func(s poolState) float64 { return s.WaitTime.Seconds() }),
	poolMetric(counter, "wait_timeouts_total", "Borrowers whose context ended during the wait.",
		func(s poolState) float64 { return float64(s.Timeouts) }),
}

var closedDesc = prometheus.NewDesc("rediscache_pool_closed_connections_total",
	"Connections that the pool closed, by reason: idle, lifetime, broken, state or shutdown.", []string{"pool", "reason"}, nil)

var cacheMetrics = []metric[rediscache.Stats]{
	cacheMetric(counter, "hits_total", "Keys whose value was returned, stale ones included.",
		func(s rediscache.Stats) float64 { return float64(s.Hits) }),
	cacheMetric(counter, "misses_total", "Keys without a value.",
		func(s rediscache.Stats) float64 { return float64(s.Misses) }),
	cacheMetric(counter, "sets_total", "Values stored.",
		func(s rediscache.Stats) float64 { return float64(s.Sets) }),
	cacheMetric(counter, "deletes_total", "Keys removed by Delete.",
		func(s rediscache.Stats) float64 { return float64(s.Deletes) }),
	cacheMetric(counter, "errors_total", "Calls and steps of loads that failed.",
		func(s rediscache.Stats) float64 { return float64(s.Errors) }),
	cacheMetric(counter, "stale_hits_total", "Hits past their TTL.",
		func(s rediscache.Stats) float64 { return float64(s.Stale) }),
	cacheMetric(counter, "negative_hits_total", "Keys that are remembered to have no value; neither hits nor misses.",
		func(s rediscache.Stats) float64 { return float64(s.Negatives) }),
	cacheMetric(counter, "loads_total", "Calls of a load.",
		func(s rediscache.Stats) float64 { return float64(s.Loads) }),
	cacheMetric(counter, "shared_loads_total", "Keys for which a call waited for the load of another call.",
		func(s rediscache.Stats) float64 { return float64(s.Shared) }),
	cacheMetric(counter, "refused_fills_total", "Loaded values that were not stored, because a Delete or a Set came between.",
		func(s rediscache.Stats) float64 { return float64(s.Refused) }),
}

// nearMetrics are those of a cache with a near cache.
var nearMetrics = []metric[rediscache.Stats]{
	cacheMetric(counter, "near_hits_total", "Reads that a copy in the process answered.",
		func(s rediscache.Stats) float64 { return float64(s.Near.Hits) }),
	cacheMetric(counter, "near_misses_total", "Reads that no copy in the process answered.",
		func(s rediscache.Stats) float64 { return float64(s.Near.Misses) }),
	cacheMetric(gauge, "near_entries", "Copies in the process.",
		func(s rediscache.Stats) float64 { return float64(s.Near.Entries) }),
	cacheMetric(gauge, "near_bytes", "Memory of the copies in the process.",
		func(s rediscache.Stats) float64 { return float64(s.Near.Bytes) }),
	cacheMetric(counter, "near_invalidations_total", "Names of keys in the reports of Redis.",
		func(s rediscache.Stats) float64 { return float64(s.Near.Invalidations) }),
	cacheMetric(counter, "near_drops_total", "How often all copies were dropped.",
		func(s rediscache.Stats) float64 { return float64(s.Near.Drops) }),
}

var (
	nearDesc = prometheus.NewDesc("rediscache_near_state",
		"1 for the state of the near cache (live, down or refused), 0 for the others; absent without one.", []string{"cache", "state"}, nil)
	nearStates = []rediscache.NearState{rediscache.NearLive, rediscache.NearDown, rediscache.NearRefused}
)
