package apidocs

import (
	"context"
	"encoding/json"
	"errors"
	"math/bits"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache"
)

// A Status serves /status/, a page that shows what a pool and its caches do, and
// /status/data, its data as JSON. It takes the last part of the path, so it works below
// any prefix. The page shows no keys, values or addresses.
//
// A Status is also the [rediscache.Observer] of the caches that it shows:
//
//	status := apidocs.NewStatus(pool)
//	cache, err := rediscache.New(pool, rediscache.WithObserver(status))
//	mux.Handle("/status/", status)
//
// While a page is open, a Status takes a sample at most once a second, whatever the number
// of viewers. For that it borrows a connection and sends a PING. It keeps the samples of
// the last five minutes. It starts no goroutine and needs no Close. All methods are safe
// for concurrent use.
type Status struct {
	pages
	pool   *rediscache.WarmPool // immutable
	began  time.Time            // immutable; the times of samples count from it, by the monotonic clock
	counts counts

	mu      sync.Mutex // guards all below
	samples []sample   // in order of time, at most maxSamples
	took    [buckets]int64
}

var (
	_ rediscache.Observer = (*Status)(nil)
	_ http.Handler        = (*Status)(nil)
)

const (
	maxSamples  = 300
	sampleEvery = 900 // milliseconds: less than a second, so that a page that polls each second gets a new one
	pingWithin  = 300 * time.Millisecond
)

// NewStatus returns a Status of pool, which must not be nil. The caller still owns pool.
func NewStatus(pool *rediscache.WarmPool) *Status {
	s := &Status{pool: pool, began: time.Now()}
	s.pages = pages{dir: "status", data: s.serveData}
	return s
}

// counts are the events since the Status was made.
type counts struct {
	hits, misses, stale, negatives, loads, shared, refused, errors atomic.Int64

	took [buckets]atomic.Int64 // calls by the time that they took
}

// Observe counts an event.
func (s *Status) Observe(_ context.Context, e rediscache.Event) {
	c := &s.counts
	switch e.Outcome {
	case rediscache.OutcomeHit:
		c.hits.Add(1)
	case rediscache.OutcomeMiss:
		c.misses.Add(1)
	case rediscache.OutcomeStale:
		c.stale.Add(1)
	case rediscache.OutcomeNegative:
		c.negatives.Add(1)
	case rediscache.OutcomeLoad:
		c.loads.Add(1)
		return // its time is not that of Redis
	case rediscache.OutcomeShared:
		c.shared.Add(1)
		return
	case rediscache.OutcomeRefused:
		c.refused.Add(1)
		return
	case rediscache.OutcomeError:
		c.errors.Add(1)
	}
	c.took[bucketOf(e.Took)].Add(1)
}

// A bucket holds times that differ by less than a quarter. The last bucket has no end.
const buckets = 100

func bucketOf(d time.Duration) int {
	us := uint64(max(d.Microseconds(), 0))
	if us < 4 {
		return int(us)
	}
	power := bits.Len64(us) - 1 // at least 2
	return min(4*(power-1)+int(us>>(power-2)&3), buckets-1)
}

// longest returns the end of a bucket in microseconds.
func longest(bucket int) int64 {
	if bucket < 4 {
		return int64(bucket)
	}
	power := bucket/4 + 1
	return int64(4+bucket%4+1)<<(power-2) - 1
}

// sample is the state at one time. The counts are totals since the Status was made.
type sample struct {
	Time  int64 `json:"time"` // milliseconds since the Status was made
	Open  int   `json:"open"`
	Idle  int   `json:"idle"`
	InUse int   `json:"inUse"`

	Waiting      int   `json:"waiting"`
	Dials        int64 `json:"dials"`
	DialFailures int64 `json:"dialFailures"`

	Hits      int64 `json:"hits"`
	Misses    int64 `json:"misses"`
	Stale     int64 `json:"stale"`
	Negatives int64 `json:"negatives"`
	Loads     int64 `json:"loads"`
	Shared    int64 `json:"shared"`
	Refused   int64 `json:"refused"`
	Errors    int64 `json:"errors"`

	// Of the calls since the sample before, in microseconds; zero without calls.
	P50 int64 `json:"p50"`
	P99 int64 `json:"p99"`

	Redis string `json:"redis"` // up, down or busy: all connections are in use
	Since int64  `json:"since"` // the time of the first sample with this state
}

// serveData serves the samples after the time in the query, and takes a new one if it is
// time to.
func (s *Status) serveData(w http.ResponseWriter, r *http.Request, name string) bool {
	if name != "data" {
		return false
	}
	after, err := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
	if err != nil {
		after = -1 // all
	}
	minIdle, maxActive := s.pool.Limits()
	out := struct {
		MinIdle   int      `json:"minIdle"`
		MaxActive int      `json:"maxActive"`
		Samples   []sample `json:"samples"`
	}{minIdle, maxActive, s.since(r.Context(), after)}
	body, _ := json.Marshal(out) // numbers and strings, which cannot fail
	w.Header().Set("Content-Type", "application/json")
	serveContent(w, r, body)
	return true
}

// since returns the samples after a time, or all if that time has not come: the viewer
// has it from a server that was restarted. It holds the lock during a PING, so that a
// second viewer waits for the same sample.
func (s *Status) since(ctx context.Context, after int64) []sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Since(s.began).Milliseconds()
	if n := len(s.samples); n == 0 || now-s.samples[n-1].Time >= sampleEvery {
		s.sampleLocked(ctx, now)
	}
	first := 0
	if n := len(s.samples); n > 0 && s.samples[n-1].Time >= after {
		for first < n && s.samples[first].Time <= after {
			first++
		}
	}
	return append([]sample{}, s.samples[first:]...)
}

func (s *Status) sampleLocked(ctx context.Context, now int64) {
	state := s.redis(ctx)
	if ctx.Err() != nil {
		return // the viewer has left, so state says nothing
	}
	p, c := s.pool.Stats(), &s.counts
	one := sample{
		Time: now, Open: p.Open, Idle: p.Idle, InUse: p.InUse, Waiting: p.Waiting,
		Dials: p.Dials, DialFailures: p.DialFailures,
		Hits: c.hits.Load(), Misses: c.misses.Load(), Stale: c.stale.Load(), Negatives: c.negatives.Load(),
		Loads: c.loads.Load(), Shared: c.shared.Load(), Refused: c.refused.Load(), Errors: c.errors.Load(),
		Redis: state, Since: now,
	}
	if n := len(s.samples); n > 0 && s.samples[n-1].Redis == state {
		one.Since = s.samples[n-1].Since
	}
	one.P50, one.P99 = s.percentilesLocked()
	if len(s.samples) == maxSamples {
		s.samples = s.samples[:copy(s.samples, s.samples[1:])]
	}
	s.samples = append(s.samples, one)
}

// percentilesLocked returns the median and the 99th percentile of the calls since it was
// last called.
func (s *Status) percentilesLocked() (p50, p99 int64) {
	var since [buckets]int64
	var n int64
	for i := range since {
		total := s.counts.took[i].Load()
		since[i] = total - s.took[i]
		s.took[i] = total
		n += since[i]
	}
	rank := func(share float64) int64 {
		left := int64(share*float64(n)) + 1
		for i, k := range since {
			if left -= k; left <= 0 {
				return longest(i)
			}
		}
		return 0
	}
	if n == 0 {
		return 0, 0
	}
	return rank(0.5), rank(0.99)
}

// redis asks Redis for a sign of life.
func (s *Status) redis(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, pingWithin)
	defer cancel()
	conn, err := s.pool.GetContext(ctx)
	if err == nil {
		defer conn.Close()
		_, err = redis.DoContext(conn, ctx, "PING")
	}
	refusal := redis.Error("")
	switch {
	case err == nil, errors.As(err, &refusal) && !errors.Is(err, rediscache.ErrUnavailable):
		return "up"
	case errors.Is(err, rediscache.ErrPoolExhausted):
		return "busy"
	}
	return "down"
}
