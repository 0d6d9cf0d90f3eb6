package rediscacheprom_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/rediscacheprom"
)

// open returns a pool and a cache that metrics knows under the names "p" and "c".
func open(t *testing.T, metrics *rediscacheprom.Collector, url string, opts ...rediscache.Option) (*rediscache.WarmPool, *rediscache.Cache) {
	t.Helper()
	pool, err := rediscache.NewPool(url, rediscache.WithMinIdle(2), rediscache.WithMaxActive(5))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, pool.Close()) })
	require.NoError(t, pool.Ready(t.Context()))
	cache, err := rediscache.New(pool, append(opts, rediscache.WithObserver(metrics.Observer("c")))...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cache.Close()) })
	metrics.AddPool("p", pool)
	metrics.AddCache("c", cache)
	return pool, cache
}

// use makes calls of each kind.
func use(t *testing.T, c *rediscache.Cache) {
	t.Helper()
	ctx := t.Context()
	v, err := rediscache.Of(c, rediscache.JSON[int](), rediscache.Policy{TTL: time.Hour, Negative: time.Hour})
	require.NoError(t, err)
	require.NoError(t, c.Set(ctx, "a", []byte("1"), 0))
	require.NoError(t, c.SetMany(ctx, map[string][]byte{"b": nil, "c": nil}, 0))
	for range 3 {
		_, err = c.Get(ctx, "a")
		require.NoError(t, err)
	}
	_, err = c.Get(ctx, "none")
	require.ErrorIs(t, err, rediscache.ErrNotFound)
	_, err = c.GetMany(ctx, "a", "b", "none", "none either")
	require.NoError(t, err)
	_, err = c.Delete(ctx, "b", "c")
	require.NoError(t, err)
	_, err = v.GetOrLoad(ctx, "l", func(context.Context) (int, error) { return 1, nil })
	require.NoError(t, err)
	for range 2 {
		_, err = v.GetOrLoad(ctx, "n", func(context.Context) (int, error) { return 0, rediscache.ErrNotFound })
		require.ErrorIs(t, err, rediscache.ErrNotFound)
	}
	_, err = v.GetOrLoadMany(ctx, []string{"l", "a", "m"}, func(context.Context, []string) (map[string]int, error) {
		return nil, errors.New("the database is down")
	})
	require.Error(t, err)
	require.NoError(t, c.Ping(ctx))
}

func TestTheMetricsAreTheCountsOfThePoolAndTheCache(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		metrics := rediscacheprom.New()
		pool, cache := open(t, metrics, s.URL())
		use(t, cache)
		stats, of := cache.Stats(), pool.Stats()
		require.Zero(t, stats.Refused)
		const help = "# HELP %[1]s %[2]s\n# TYPE %[1]s %[3]s\n%[1]s{%[4]s} %[5]v\n"
		for _, m := range []struct {
			name, help, kind, labels string
			want                     any
		}{
			{"rediscache_hits_total", "Keys whose value was returned, stale ones included.", "counter", `cache="c"`, stats.Hits},
			{"rediscache_misses_total", "Keys without a value.", "counter", `cache="c"`, stats.Misses},
			{"rediscache_sets_total", "Values stored.", "counter", `cache="c"`, 4},
			{"rediscache_deletes_total", "Keys removed by Delete.", "counter", `cache="c"`, 2},
			{"rediscache_loads_total", "Calls of a load.", "counter", `cache="c"`, 3},
			{"rediscache_negative_hits_total", "Keys that are remembered to have no value; neither hits nor misses.", "counter", `cache="c"`, 1},
			{"rediscache_pool_idle_connections", "Idle connections.", "gauge", `pool="p"`, of.Idle},
			{"rediscache_pool_in_use_connections", "Borrowed connections.", "gauge", `pool="p"`, of.InUse},
			{"rediscache_pool_min_idle_connections", "The value of WithMinIdle.", "gauge", `pool="p"`, 2},
			{"rediscache_pool_max_active_connections", "The value of WithMaxActive.", "gauge", `pool="p"`, 5},
		} {
			want := fmt.Sprintf(help, m.name, m.help, m.kind, m.labels, m.want)
			require.NoError(t, testutil.CollectAndCompare(metrics, strings.NewReader(want), m.name))
		}
		const failed = `# HELP rediscache_operation_errors_total Errors by operation and kind, see rediscache.ErrorKind.
# TYPE rediscache_operation_errors_total counter
rediscache_operation_errors_total{cache="c",kind="other",operation="get or load many"} 1
rediscache_operation_errors_total{cache="c",kind="other",operation="load"} 1
`
		require.NoError(t, testutil.CollectAndCompare(metrics, strings.NewReader(failed), "rediscache_operation_errors_total"))
	})
}

func TestEachCallAndEachLoadHasOneDuration(t *testing.T) {
	s := redistest.StartMini(t)
	metrics := rediscacheprom.New()
	_, cache := open(t, metrics, s.URL())
	use(t, cache)
	require.Equal(t, map[string]uint64{
		"get": 4, "get many": 1, "set": 1, "set many": 1, "delete": 1, "ping": 1,
		"get or load": 3, "get or load many": 1, "load": 3, "fill": 2,
	}, durations(t, metrics))
}

// durations returns how many durations each operation has.
func durations(t *testing.T, metrics prometheus.Collector) map[string]uint64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(metrics))
	families, err := registry.Gather()
	require.NoError(t, err)
	counts := make(map[string]uint64)
	for _, f := range families {
		if f.GetName() != "rediscache_operation_duration_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == "operation" {
					counts[l.GetValue()] = m.GetHistogram().GetSampleCount()
				}
			}
		}
	}
	return counts
}

func TestAnErrorHasItsKind(t *testing.T) {
	s := redistest.StartMini(t)
	metrics := rediscacheprom.New()
	pool, cache := open(t, metrics, s.URL())
	s.Do("LPUSH", "list", "x")
	_, err := cache.Get(t.Context(), "list")
	require.ErrorIs(t, err, rediscache.ErrWrongType)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, cache.Set(ended, "k", nil, 0), context.Canceled)
	require.NoError(t, pool.Close())
	require.Error(t, cache.Ping(t.Context()))
	want := `
# HELP rediscache_operation_errors_total Errors by operation and kind, see rediscache.ErrorKind.
# TYPE rediscache_operation_errors_total counter
rediscache_operation_errors_total{cache="c",kind="canceled",operation="set"} 1
rediscache_operation_errors_total{cache="c",kind="closed",operation="ping"} 1
rediscache_operation_errors_total{cache="c",kind="wrong type",operation="get"} 1
`
	require.NoError(t, testutil.CollectAndCompare(metrics, strings.NewReader(want), "rediscache_operation_errors_total"))
}

// everything returns a Collector that has each of its metrics, and their names with their labels.
func everything(t *testing.T) (*rediscacheprom.Collector, map[string][]string) {
	t.Helper()
	metrics := rediscacheprom.New()
	_, cache := open(t, metrics, redistest.StartMini(t).URL(), rediscache.WithNearCache(1<<20))
	use(t, cache)
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(metrics))
	families, err := registry.Gather()
	require.NoError(t, err)
	labels := make(map[string][]string)
	for _, f := range families {
		var names []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			names = append(names, l.GetName())
		}
		labels[f.GetName()] = names
		if f.GetMetric()[0].GetHistogram() != nil {
			for _, part := range []string{"_bucket", "_count", "_sum"} {
				labels[f.GetName()+part] = append(names, "le")
			}
		}
	}
	return metrics, labels
}

func TestTheMetricsFollowTheConventionsOfPrometheus(t *testing.T) {
	metrics, labels := everything(t)
	require.Greater(t, len(labels), 30)
	problems, err := testutil.CollectAndLint(metrics)
	require.NoError(t, err)
	require.Empty(t, problems)
}

var (
	metricPattern = regexp.MustCompile(`(rediscache_[a-z_]+)(\{[^}]*\})?`)
	labelPattern  = regexp.MustCompile(`([a-z_]+)(?:=~?|!=)"`)
	byPattern     = regexp.MustCompile(`by \(([^)]*)\)`)
)

func TestTheQueriesOfTheDashboardAndTheAlertsNameMetricsThatExist(t *testing.T) {
	_, labels := everything(t)
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	text, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &dashboard))
	var queries []string
	for _, p := range dashboard.Panels {
		require.NotEmpty(t, p.Targets, p.Title)
		for _, target := range p.Targets {
			queries = append(queries, target.Expr)
		}
	}
	text, err = os.ReadFile("alerts.yml")
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if query, ok := strings.CutPrefix(strings.TrimSpace(line), "expr: "); ok {
			queries = append(queries, query)
		}
	}
	used := make(map[string]bool)
	for _, query := range queries {
		found := metricPattern.FindAllStringSubmatch(query, -1)
		require.NotEmpty(t, found, query)
		for _, m := range found {
			name := m[1]
			used[strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count")] = true
			has := append([]string{"job", "instance"}, labels[name]...) // these two come from the scrape
			require.Contains(t, labels, name, query)
			for _, l := range labelPattern.FindAllStringSubmatch(m[2], -1) {
				require.Contains(t, has, l[1], query)
			}
			for _, by := range byPattern.FindAllStringSubmatch(query, -1) {
				for l := range strings.SplitSeq(by[1], ",") {
					require.Contains(t, has, strings.TrimSpace(l), query)
				}
			}
		}
	}
	for name := range labels {
		base := strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(name, "_bucket"), "_count"), "_sum")
		// The errors of the stats have no kind, so the dashboard shows those of the events.
		require.True(t, used[base] || base == "rediscache_errors_total", "no query has %s", name)
	}
}

func TestANameCanBeTakenOnce(t *testing.T) {
	metrics := rediscacheprom.New()
	pool, cache := open(t, metrics, redistest.StartMini(t).URL())
	require.PanicsWithValue(t, `rediscacheprom: there is a pool "p" already`, func() { metrics.AddPool("p", pool) })
	require.PanicsWithValue(t, `rediscacheprom: there is a cache "c" already`, func() { metrics.AddCache("c", cache) })
	metrics.AddPool("q", pool)
	require.Equal(t, 2, testutil.CollectAndCount(metrics, "rediscache_pool_dials_total"))
}

func TestTheStateOfANearCacheIsOneOfThree(t *testing.T) {
	s := redistest.Start(t)
	metrics := rediscacheprom.New()
	_, cache := open(t, metrics, s.URL(), rediscache.WithNearCache(1<<20))
	redistest.Eventually(t, func() bool { return cache.Stats().Near.State == rediscache.NearLive }, "it is live")
	want := `
# HELP rediscache_near_state 1 for the state of the near cache (live, down or refused), 0 for the others; absent without one.
# TYPE rediscache_near_state gauge
rediscache_near_state{cache="c",state="down"} 0
rediscache_near_state{cache="c",state="live"} 1
rediscache_near_state{cache="c",state="refused"} 0
`
	require.NoError(t, testutil.CollectAndCompare(metrics, strings.NewReader(want), "rediscache_near_state"))
	require.Equal(t, 1, testutil.CollectAndCount(metrics, "rediscache_near_bytes"))
}
