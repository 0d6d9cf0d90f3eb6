// Command redigo runs two libraries that want redigo's *redis.Pool on one WarmPool:
// the session store of github.com/alexedwards/scs and the locks of
// github.com/go-redsync/redsync. The cache shares the same connections.
//
//	cd examples/redigo && go run .
//
// Look at open, where each library gets a pool of its own from WarmPool.Redigo.
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

	"github.com/alexedwards/scs/redisstore"
	"github.com/alexedwards/scs/v2"
	"github.com/alicebob/miniredis/v2"
	"github.com/go-redsync/redsync/v4"
	redsyncredigo "github.com/go-redsync/redsync/v4/redis/redigo"
	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache"
)

// open puts both libraries on pool. Their pools keep no connection of their own, so
// nothing has to be closed but pool.
func open(pool *rediscache.WarmPool) (*scs.SessionManager, *redsync.Redsync) {
	sessions := scs.New()
	sessions.Store = redisstore.New(pool.Redigo())
	locks := pool.Redigo()
	locks.MaxActive, locks.Wait = 5, true // so that locks leave connections to the rest
	locks.TestOnBorrow = func(c redis.Conn, lastUsed time.Time) error {
		if time.Since(lastUsed) < time.Second {
			return nil
		}
		_, err := c.Do("PING") // a connection that fails is closed, and the next one is tested
		return err
	}
	return sessions, redsync.New(redsyncredigo.NewPool(locks))
}

func newHandler(sessions *scs.SessionManager, locks *redsync.Redsync, cache *rediscache.Cache) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/cache/", rediscache.NewHandler(cache))
	mux.HandleFunc("GET /visits", func(w http.ResponseWriter, r *http.Request) {
		visits := sessions.GetInt(r.Context(), "visits") + 1
		sessions.Put(r.Context(), "visits", visits)
		_, _ = fmt.Fprintln(w, "visits in this session:", visits)
	})
	mux.HandleFunc("POST /report", func(w http.ResponseWriter, r *http.Request) {
		lock := locks.NewMutex("lock:report", redsync.WithExpiry(10*time.Second), redsync.WithTries(1))
		if err := lock.LockContext(r.Context()); err != nil {
			http.Error(w, "another request writes the report", http.StatusConflict)
			return
		}
		defer lock.Unlock() //nolint:errcheck // if this fails, the lock expires by itself
		time.Sleep(time.Second)
		_, _ = fmt.Fprintln(w, "the report is written, by one request at a time")
	})
	return sessions.LoadAndSave(mux)
}

func main() {
	addr := flag.String("addr", "127.0.0.1:8082", "address to listen on")
	flag.Usage = func() {
		_, _ = fmt.Fprintln(flag.CommandLine.Output(), "redigo runs scs sessions and redsync locks on one warm pool. Flags:")
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := run(*addr); err != nil {
		log.Fatal("redigo: ", err)
	}
}

func run(addr string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	server, err := miniredis.Run() // for your own Redis, change the URL below
	if err != nil {
		return err
	}
	defer server.Close()
	pool, err := rediscache.NewPool("redis://"+server.Addr(), rediscache.WithMinIdle(2), rediscache.WithMaxActive(20))
	if err != nil {
		return err
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithTTL(time.Hour))
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	sessions, locks := open(pool)
	web := &http.Server{Handler: newHandler(sessions, locks, cache), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- web.Serve(listener) }() // ends with Shutdown or with the program
	log.Printf("listening on %[1]s; try\n\tcurl -b jar -c jar http://%[1]s/visits\n\tcurl -X POST http://%[1]s/report", listener.Addr())
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		stop() // a second signal ends the program at once
	}
	grace, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err = errors.Join(web.Shutdown(grace), cache.Close(), pool.Shutdown(grace)) // the last closes all connections
	log.Printf("goodbye: %d connections are left", pool.Stats().Open)
	return err
}
