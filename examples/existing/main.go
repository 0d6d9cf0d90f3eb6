// Command existing mounts the cache in a server that is already there: with routes
// of its own, a middleware around them all, and tenants who must not meet.
//
//	go run ./examples/existing
//	curl -H 'Authorization: Bearer acme-writer' -X POST 'http://127.0.0.1:8081/api/cache/a?value=hello'
//	curl -H 'Authorization: Bearer acme-reader' http://127.0.0.1:8081/api/cache/a
//
// Look at newMux, where it is mounted, and at tenantKey: who may do what, and where it lands.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
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
	tenant   string // no colon in it: it ends where the key begins
	readOnly bool
}

// grants goes by hashes: how long a look-up takes tells nothing of the tokens.
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
	handler := rediscache.NewHandler(cache, rediscache.WithKeyFunc(tenantKey))
	mux.Handle("/api/cache/", http.StripPrefix("/api", handler))
	return mux
}

// logged is the middleware. It sees the cache's requests as it does all others.
func logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		next.ServeHTTP(w, r)
		log.Println(r.Method, r.URL.EscapedPath(), time.Since(begin).Round(time.Microsecond))
	})
}

func main() {
	addr := flag.String("addr", "127.0.0.1:8081", "address to listen on")
	flag.Parse()
	if err := run(*addr); err != nil {
		log.Fatal("existing: ", err)
	}
}

func run(addr string) error {
	redis, err := miniredis.Run() // in its place your own, in NewPool
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
	defer cache.Close()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: logged(newMux(cache)), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 15 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
	}
	done := make(chan error, 1)
	defer context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		done <- server.Shutdown(grace)
	})()
	log.Print("listening on ", listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-done // after the requests under way; then the deferred: the cache before its pool
}
