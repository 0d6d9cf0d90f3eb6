package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/trace"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/apidocs"
	"github.com/rediscache/rediscache/rediscacheotel"
	"github.com/rediscache/rediscache/rediscacheprom"
)

// service is a pool, a cache on it, and what shows them.
type service struct {
	pool    *rediscache.WarmPool
	cache   *rediscache.Cache
	users   *rediscache.View[string]
	status  *apidocs.Status
	metrics *prometheus.Registry
	tracer  trace.Tracer
}

// open opens a service. Close the cache and then the pool.
func open(url string, tracers trace.TracerProvider) (*service, error) {
	pool, err := rediscache.NewPool(url, rediscache.WithClientName("observed"), rediscache.WithPoolObserver(logEvent))
	if err != nil {
		return nil, err
	}
	collector := rediscacheprom.New()
	collector.AddPool("main", pool)
	telemetry := rediscacheotel.New(rediscacheotel.WithTracerProvider(tracers)) // the metrics go to Prometheus
	s := &service{pool: pool, status: apidocs.NewStatus(pool), metrics: prometheus.NewRegistry(), tracer: tracers.Tracer("observed")}
	s.metrics.MustRegister(collector)
	s.cache, err = rediscache.New(pool, rediscache.WithTTL(time.Minute), rediscache.WithObserver(s.status),
		rediscache.WithObserver(collector.Observer("main")), rediscache.WithObserver(telemetry.Observer("main")))
	if err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	collector.AddCache("main", s.cache)
	s.users, err = rediscache.Of(s.cache.Sub("users:"), rediscache.String(), rediscache.Policy{Stale: time.Minute})
	if err != nil {
		return nil, errors.Join(err, s.cache.Close(), pool.Close())
	}
	return s, nil
}

// logEvent logs an outage of Redis twice: when it begins and when it ends.
func logEvent(e rediscache.PoolEvent) {
	switch e.Kind {
	case rediscache.PoolDown:
		slog.Error("redis is down", "error", e.Err)
	case rediscache.PoolUp:
		slog.Info("redis is up again", "after", e.After)
	case rediscache.PoolConnClosed:
		slog.Debug("connection closed", "reason", e.Reason)
	}
}

// newMux returns the routes. stopping ends when the process is about to stop.
func (s *service) newMux(stopping context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/cache/", rediscache.NewHandler(s.cache))
	mux.HandleFunc("GET /users/{name}", s.getUser)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics, promhttp.HandlerOpts{}))
	mux.Handle("/status/", s.status)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		// Redis is not asked: without it users are still loaded, and an orchestrator that
		// took every replica out of service would turn a slow cache into an outage.
		if stopping.Err() != nil {
			http.Error(w, "stopping", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	return s.traced(mux)
}

// traced makes a span of each request. A program uses otelhttp for this.
func (s *service) traced(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, span := s.tracer.Start(r.Context(), r.Method+" "+r.URL.Path, trace.WithSpanKind(trace.SpanKindServer))
		defer span.End()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (s *service) getUser(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	user, err := s.users.GetOrLoad(r.Context(), name, func(ctx context.Context) (string, error) {
		_, span := s.tracer.Start(ctx, "SELECT user") // inside the span of the load
		defer span.End()
		return "the user " + name, nil
	})
	if err != nil {
		http.Error(w, "no user", http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, user)
}
