// Command existing mounts the cache in a server that has routes of its own, a
// middleware around all of them, and tenants whose keys must stay apart.
//
//	go run ./examples/existing
//
// Look at newMux, which mounts the handler, and at tenantKey, which refuses requests.
package main

import (
	"context"
	"crypto/sha256"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/rediscache/rediscache"
)

// grant is what a token allows.
type grant struct {
	tenant   string // without a colon, which separates it from the key
	readOnly bool
}

// grants has hashes as keys, so that the time of a look-up reveals nothing about a token.
var grants = map[[sha256.Size]byte]grant{
	sha256.Sum256([]byte("Bearer acme-writer")):   {tenant: "acme"},
	sha256.Sum256([]byte("Bearer acme-reader")):   {tenant: "acme", readOnly: true},
	sha256.Sum256([]byte("Bearer globex-writer")): {tenant: "globex"},
}

func tenantKey(r *http.Request, key string) (string, error) {
	g, ok := grants[sha256.Sum256([]byte(r.Header.Get("Authorization")))]
	if !ok {
		return "", &rediscache.RefusedError{Status: http.StatusUnauthorized, Challenge: `Bearer realm="cache"`}
	}
	if g.readOnly && r.Method != http.MethodGet && r.Method != http.MethodHead {
		return "", &rediscache.RefusedError{Status: http.StatusForbidden}
	}
	return g.tenant + ":" + key, nil
}

func newMux(cache *rediscache.Cache) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", http.RedirectHandler("/healthz", http.StatusSeeOther))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if cache.Ping(r.Context()) != nil {
			http.Error(w, "no cache", http.StatusServiceUnavailable)
		}
	})
	mux.Handle("/api/cache/", http.StripPrefix("/api", rediscache.NewHandler(cache, rediscache.WithKeyFunc(tenantKey))))
	return mux
}

// logged is the middleware, for the requests of the cache as for all others.
func logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		next.ServeHTTP(w, r)
		log.Println(r.Method, r.URL.EscapedPath(), time.Since(begin).Round(time.Microsecond))
	})
}

func main() {
	addr := flag.String("addr", "127.0.0.1:8081", "address to listen on")
	flag.Usage = func() { log.Print("existing mounts a cache in a server with tenants. Flags:"); flag.PrintDefaults() }
	flag.Parse()
	if err := run(*addr); err != nil {
		log.Fatal("existing: ", err)
	}
}

func run(addr string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	redis, err := miniredis.Run() // for your own Redis, change the URL below
	if err != nil {
		return err
	}
	defer redis.Close()
	pool, err := rediscache.NewPool("redis://" + redis.Addr())
	if err != nil {
		return err
	}
	defer pool.Close()
	cache, err := rediscache.New(pool, rediscache.WithPrefix("shop:"), rediscache.WithTTL(time.Hour))
	if err != nil {
		return err
	}
	defer cache.Close() // before the pool
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: logged(newMux(cache)), ReadTimeout: 10 * time.Second, WriteTimeout: 15 * time.Second,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }() // ends with Shutdown, or with the program
	log.Printf("listening on %[1]s; try\n\tcurl -H 'Authorization: Bearer acme-writer' -X POST 'http://%[1]s/api/cache/a?value=hello'"+
		"\n\tcurl -H 'Authorization: Bearer acme-reader' http://%[1]s/api/cache/a", listener.Addr())
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		stop() // a second signal ends the program at once
	}
	grace, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err = server.Shutdown(grace) // waits for the requests in flight
	log.Print("goodbye")
	return err
}
