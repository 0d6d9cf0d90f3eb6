// Command server is a cache service: POST, GET and DELETE /cache/{key}. /docs/ is a page to
// try them on, /openapi.json describes them, and with -status /status/ shows what the
// pool and the cache do.
//
//	go run ./examples/server                              # with an embedded miniredis
//	go run ./examples/server -redis redis://localhost:6379 -min-idle 10 -max-active 50
//
// It logs what to try. Look at how it stops on SIGINT or SIGTERM (requests, cache, pool),
// and at how it starts without Redis: it logs why, and answers 503 until Redis is up.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/apidocs"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		log.Fatal("server: ", err)
	}
}

func run(args []string) error {
	fs := flag.NewFlagSet("server", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // main logs the error
	addr := fs.String("addr", "127.0.0.1:8080", "address to listen on")
	redisURL := fs.String("redis", "", "`URL` of the Redis to use (default an embedded miniredis)")
	minIdle := fs.Int("min-idle", rediscache.DefaultMinIdle, "idle connections to keep open")
	maxActive := fs.Int("max-active", rediscache.DefaultMaxActive, "connections to open at most")
	withStatus := fs.Bool("status", false, "serve /status/ to everybody who reaches this server")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Println("server serves POST, GET and DELETE of /cache/{key}. Flags:")
		fs.SetOutput(os.Stdout)
		fs.PrintDefaults()
		return nil
	case err != nil:
		return fmt.Errorf("%w (-h lists the flags)", err)
	case fs.NArg() > 0:
		return fmt.Errorf("unexpected argument %q (-h lists the flags)", fs.Arg(0))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	if *redisURL == "" {
		mini, err := miniredis.Run()
		if err != nil {
			return err
		}
		defer mini.Close()
		*redisURL = "redis://" + mini.Addr()
		log.Print("without -redis an embedded miniredis holds the data, until this program ends")
	}
	pool, err := rediscache.NewPool(*redisURL, rediscache.WithMinIdle(*minIdle),
		rediscache.WithMaxActive(*maxActive), rediscache.WithClientName("rediscache-server"))
	if err != nil {
		return err
	}
	defer pool.Close()
	mux := http.NewServeMux()
	var observer rediscache.Observer
	if *withStatus {
		status := apidocs.NewStatus(pool)
		mux.Handle("/status/", status)
		observer = status
	}
	cache, err := rediscache.New(pool, rediscache.WithObserver(observer))
	if err != nil {
		return err
	}
	defer cache.Close()
	mux.Handle("/cache/", rediscache.NewHandler(cache))
	docs := apidocs.New(rediscache.DefaultBasePath)
	mux.Handle("/docs/", docs)
	mux.Handle("/openapi.json", docs)
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	soon, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := pool.Ready(soon); err != nil && ctx.Err() == nil {
		log.Print("Redis is not ready, requests get 503 until it is: ", err)
	}
	return serve(ctx, listener, mux, cache, pool)
}
