// Command observed is a cache service that its operators can watch: metrics for
// Prometheus, a status page, spans of OpenTelemetry, a log line when Redis goes down and
// when it is up again, and the answers that an orchestrator asks for.
//
//	cd examples/observed && go run .
//
// It needs no Redis; -redis names one, and -traces prints each span.
//
// Look at open in service.go, where a pool and a cache get their observers, and at newMux.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8083", "address to listen on")
	redisURL := flag.String("redis", "", "`URL` of the Redis to use (default an embedded miniredis)")
	traces := flag.Bool("traces", false, "print each span as JSON")
	flag.Usage = func() {
		_, _ = fmt.Fprintln(flag.CommandLine.Output(), "observed is a cache service with metrics, traces, logs and a status page. Flags:")
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := run(*addr, *redisURL, *traces); err != nil {
		log.Fatal("observed: ", err)
	}
}

func run(addr, url string, traces bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if url == "" {
		mini, err := miniredis.Run()
		if err != nil {
			return err
		}
		defer mini.Close()
		url = "redis://" + mini.Addr()
	}
	tracers := sdktrace.NewTracerProvider()
	if traces {
		exporter, err := stdouttrace.New()
		if err != nil {
			return err
		}
		tracers = sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter))
	}
	defer func() { _ = tracers.Shutdown(context.Background()) }()
	s, err := open(url, tracers)
	if err != nil {
		return err
	}
	defer s.pool.Close()
	defer s.cache.Close()
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	base := "http://" + listener.Addr().String()
	log.Printf("listening on %s; open %s/status/ in a browser, or try\n\tcurl %[2]s/users/ulm\n\tcurl %[2]s/metrics\n\tcurl %[2]s/readyz", listener.Addr(), base)
	server := &http.Server{Handler: s.newMux(ctx), ReadHeaderTimeout: 5 * time.Second}
	done := make(chan error, 1)
	unhook := context.AfterFunc(ctx, func() {
		stop() // a second signal ends the program at once
		grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		done <- errors.Join(server.Shutdown(grace), s.cache.Close(), s.pool.Shutdown(grace)) // in this order
	})
	defer unhook()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	if err := <-done; err != nil {
		return err
	}
	log.Print("goodbye")
	return nil
}
