package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/rediscache/rediscache"

	"github.com/rediscache/rediscache/bench/internal/httpload"
	"github.com/rediscache/rediscache/bench/internal/load"
	"github.com/rediscache/rediscache/bench/internal/report"
)

const (
	httpConns = 64
	httpKey   = "k"
	httpPath  = "/cache/" + httpKey
	httpValue = 100 // bytes
)

// site is an HTTP server of the comparison.
type site struct {
	line     report.HTTPLine
	server   *http.Server
	addr     string
	done     chan struct{} // closed when Serve has returned
	samples  []httpload.Sample
	wantBody []byte
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

// http measures the library's handler and a bare one in turn.
func (b *session) http(ctx context.Context) (err error) {
	cache, done, err := b.cache()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	value := make([]byte, httpValue)
	load.Fill(value, httpKey)
	if err := cache.Set(ctx, httpKey, value, rediscache.NoExpiry); err != nil {
		return err
	}
	sites, err := startSites(ctx, rediscache.NewHandler(cache))
	defer func() {
		for _, s := range sites {
			err = errors.Join(err, s.stop())
		}
	}()
	if err != nil {
		return err
	}
	return b.visit(ctx, sites)
}

// visit puts load on the sites, in rounds as with the clients.
func (b *session) visit(ctx context.Context, sites []*site) error {
	for round := range b.o.rounds {
		b.progress.step("HTTP")
		for i := range sites {
			s := sites[(i+round)%len(sites)]
			sample, err := httpload.Run(ctx, httpload.Spec{
				Addr: s.addr, Path: httpPath, Body: s.wantBody, Conns: httpConns,
				Warmup: b.o.warmup(), Slice: b.o.slice,
			})
			if err != nil {
				return err
			}
			s.samples = append(s.samples, sample)
		}
	}
	for _, s := range sites {
		b.report.HTTP = append(b.report.HTTP, s.result())
	}
	return nil
}

// startSites starts the library's handler, asks it once, and starts a handler
// beside it that writes the same answer without asking anybody.
func startSites(ctx context.Context, handler http.Handler) ([]*site, error) {
	own, err := startSite("rediscache handler", handler)
	if err != nil {
		return nil, err
	}
	header, body, err := ask(ctx, own.addr)
	if err != nil {
		return []*site{own}, err
	}
	bare, err := startSite("bare net/http handler", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for name, values := range header {
			w.Header()[name] = values
		}
		_, _ = w.Write(body) // the load sees a short answer
	}))
	if err != nil {
		return []*site{own}, err
	}
	own.wantBody, bare.wantBody = body, body
	return []*site{own, bare}, nil
}

func startSite(name string, handler http.Handler) (*site, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &site{
		line: report.HTTPLine{Name: name}, addr: l.Addr().String(), done: make(chan struct{}),
		server: &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second},
	}
	go func() { // ends at stop, which waits for it
		defer close(s.done)
		_ = s.server.Serve(l) // it ends by being closed
	}()
	return s, nil
}

func (s *site) stop() error {
	err := s.server.Close()
	<-s.done
	return err
}

// ask returns the answer's header, without what net/http adds by itself, and
// its body.
func ask(ctx context.Context, addr string) (http.Header, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+httpPath, nil)
	if err != nil {
		return nil, nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = resp.Body.Close() }() // read to the end, nothing is left to fail
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("bench: GET %s: %s", httpPath, resp.Status)
	}
	resp.Header.Del("Date")
	resp.Header.Del("Connection")
	return resp.Header, body, err
}

func (s *site) result() report.HTTPLine {
	var perSec, p50, p99 []float64
	for _, x := range s.samples {
		perSec = append(perSec, x.PerSec)
		p50 = append(p50, float64(x.P50))
		p99 = append(p99, float64(x.P99))
		s.line.Errors += x.Errors
		if x.FirstFail != "" {
			s.line.First = x.FirstFail
		}
	}
	s.line.PerSec, s.line.P50, s.line.P99 = report.StatOf(perSec), report.StatOf(p50), report.StatOf(p99)
	return s.line
}
