package main

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/rediscache/rediscache"
)

// serve serves mux until ctx ends, and then stops in order.
func serve(
	ctx context.Context, listener net.Listener, mux http.Handler, cache *rediscache.Cache, pool *rediscache.WarmPool,
) error {
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      15 * time.Second, // counts from the end of the header, so a slow request gets an answer
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10, // a longer value goes into the body, not the query
	}
	base := "http://" + listener.Addr().String()
	log.Printf("listening on %[1]s; open %[2]s/docs/ in a browser, or try\n\tcurl -X POST '%[2]s/cache/a?value=hello'\n"+
		"\tcurl %[2]s/cache/a\n\tcurl -X DELETE %[2]s/cache/a", listener.Addr(), base)

	done := make(chan error, 1)
	unhook := context.AfterFunc(ctx, func() {
		signal.Reset(os.Interrupt, syscall.SIGTERM) // a second signal ends the program at once
		log.Print("stopping: no new requests; those in flight are finished")
		grace, cancel := context.WithTimeout(context.Background(), 20*time.Second) // more than a request has
		defer cancel()
		done <- errors.Join(server.Shutdown(grace), cache.Close(), pool.Shutdown(grace)) // in this order
	})
	defer unhook()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	if err := <-done; err != nil {
		return err
	}
	log.Print("goodbye: requests finished, cache closed, pool shut down")
	return nil
}
