package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"time"

	"github.com/rediscache/rediscache"

	"github.com/rediscache/rediscache/bench/client"
	"github.com/rediscache/rediscache/bench/internal/httpload"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/report"
)

// bare is the line of a handler that asks nobody.
const bare = "(no Redis)"

// httpGrace is how long the last request of a turn may take.
const httpGrace = 5 * time.Second

// http is the section of the library's handler beside handlers by hand.
func (b *session) http() plan {
	p := plan{section: &report.Section{
		Title: "HTTP", Unit: "request", Axes: []string{"connections"},
		About: "GET /cache/{key} over keep-alive connections: this library's handler beside handlers written by hand over the other " +
			"clients, which answer with the same body; every answer is compared. The handler of this library also sends ETag, Vary and " +
			"Cache-Control. " + bare + " writes its headers and its bytes and asks nobody. Load and server share the process: the " +
			"client CPU is that of both.",
		Main: report.PerSec, Tail: report.P99,
	}}
	key := b.keys[0]
	path := "/cache/" + key
	for _, conns := range pick(b.o.quick, []int{8, 64}, []int{64}) {
		visit := func(ctx context.Context, handler http.Handler) (load.Sample, error) {
			return b.visit(ctx, handler, conns, path, byHandBody(key, load.Value(key, small)))
		}
		turns := b.turns("http", b.plain(conns), func(ctx context.Context, c client.Client) (load.Sample, error) {
			return visit(ctx, handlerOf(c))
		})
		turns = append(turns, turn{client: bare, run: func(ctx context.Context) (load.Sample, error) {
			answer, err := b.answer(ctx, path)
			if err != nil {
				return load.Sample{}, err
			}
			return visit(ctx, copied(answer))
		}})
		p.rows = append(p.rows, rowPlan{
			row:     report.Row{At: []string{strconv.Itoa(conns)}, Column: strconv.Itoa(conns) + " connections"},
			prepare: b.fill(b.keys, small),
			turns:   turns,
		})
	}
	return p
}

// visit serves the handler and puts load on it.
func (b *session) visit(ctx context.Context, handler http.Handler, conns int, path string, want []byte) (_ load.Sample, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return load.Sample{}, err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() { // ends when the server is closed, below
		defer close(done)
		_ = server.Serve(l) // it ends by being closed
	}()
	defer func() {
		err = errors.Join(err, server.Close())
		<-done
	}()
	callers, err := httpload.Dial(ctx, l.Addr().String(), path, want, conns, b.o.warmup()+b.o.slice+httpGrace)
	defer func() {
		for _, c := range callers {
			_ = c.Close() // the load is over
		}
	}()
	if err != nil {
		return load.Sample{}, err
	}
	return b.runner.Run(ctx, func(caller int) load.Op { return load.Op{Do: callers[caller].Do} }, b.spec(conns))
}

// handlerOf is this library's handler for its own client, and one by hand for another.
func handlerOf(c client.Client) http.Handler {
	if own, ok := c.(interface{ Cache() *rediscache.Cache }); ok {
		return rediscache.NewHandler(own.Cache())
	}
	return byHand(c)
}

// item is the answer to a GET.
type item struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// byHandBody returns the body of an answer.
func byHandBody(key string, value []byte) []byte {
	body, err := json.Marshal(item{key, string(value)})
	if err != nil {
		panic(err) // of strings
	}
	return body
}

// byHand is a handler as one writes it without this library: GET and POST of a key.
func byHand(c client.Client) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /cache/{key}", func(w http.ResponseWriter, r *http.Request) {
		key := r.PathValue("key")
		value, err := c.Get(r.Context(), key)
		if err != nil {
			http.Error(w, "unavailable", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(byHandBody(key, value)) // the load sees a short answer
	})
	mux.HandleFunc("POST /cache/{key}", func(w http.ResponseWriter, r *http.Request) {
		if err := c.Set(r.Context(), r.PathValue("key"), []byte(r.FormValue("value"))); err != nil {
			http.Error(w, "unavailable", http.StatusServiceUnavailable)
		}
	})
	return mux
}

// answer is what this library's handler answers.
func (b *session) answer(ctx context.Context, path string) (_ *httptest.ResponseRecorder, err error) {
	cache, done, err := b.cache()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	w := httptest.NewRecorder()
	rediscache.NewHandler(cache).ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil))
	if w.Code != http.StatusOK {
		return nil, fmt.Errorf("bench: GET %s: %d", path, w.Code)
	}
	return w, nil
}

// copied answers like that without asking anybody.
func copied(answer *httptest.ResponseRecorder) http.Handler {
	body := answer.Body.Bytes()
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for name, values := range answer.Header() {
			w.Header()[name] = values
		}
		_, _ = w.Write(body) // the load sees a short answer
	})
}

// cache opens one on the session's server, and returns what closes it.
func (b *session) cache(opts ...rediscache.Option) (_ *rediscache.Cache, done func() error, err error) {
	pool, err := rediscache.NewPool("redis://" + b.srv.Addr())
	if err != nil {
		return nil, nil, err
	}
	cache, err := rediscache.New(pool, opts...)
	if err != nil {
		return nil, nil, errors.Join(err, pool.Close())
	}
	return cache, func() error { return errors.Join(cache.Close(), pool.Close()) }, nil
}
