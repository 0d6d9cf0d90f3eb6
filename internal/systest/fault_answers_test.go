package systest_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// answer is what a verb comes to: which sentinels its error matches, and no
// others, which word of Redis it unwraps to, and what the handler says. The
// zero answer is none: the verb is served.
type answer struct {
	is     []error
	may    []error // besides
	word   string  // empty: any or none
	status int
	code   string // empty: any
}

var sentinels = []error{
	rediscache.ErrNotFound, rediscache.ErrUnavailable, rediscache.ErrPoolExhausted, rediscache.ErrOutcomeUnknown,
	rediscache.ErrWrongType, rediscache.ErrClosed, context.Canceled, context.DeadlineExceeded,
}

// fits says whether an error is that answer, and none is that of a verb that is served.
func (a answer) fits(err error) bool {
	if a.status == 0 {
		return err == nil
	}
	for _, s := range sentinels {
		if errors.Is(err, s) != slices.Contains(a.is, s) && !slices.Contains(a.may, s) {
			return false
		}
	}
	return err != nil && a.says(err)
}

// says tells whether an error unwraps to the answer of Redis.
func (a answer) says(err error) bool {
	var said redis.Error
	return a.word == "" || errors.As(err, &said) && strings.HasPrefix(string(said), a.word)
}

// refused is an error that ends by itself, denied is an error that does not, and shut out
// is an error of a dial.
func refused(word string) answer {
	return answer{is: []error{rediscache.ErrUnavailable}, word: word, status: 503, code: "cache_unavailable"}
}

// refusedSlowly is refused by a server that answers now and then: a call may time out while it
// waits for a connection, or for the answer to its retry.
func refusedSlowly(word string) answer {
	a := refused(word)
	a.may = []error{context.DeadlineExceeded}
	return a
}

func denied(word string) answer { return answer{word: word, status: 500, code: "internal"} }

func shutOut(word string) answer {
	return answer{is: []error{rediscache.ErrUnavailable}, word: word, status: 500, code: "internal"}
}

var (
	late = answer{is: []error{context.DeadlineExceeded}, status: 504, code: "cache_timeout"}
	// A write that was still waiting for a connection was not applied, and says so.
	lateWrite = answer{is: []error{context.DeadlineExceeded}, may: []error{rediscache.ErrOutcomeUnknown}, status: 504}
)

// verbs are what a cache is asked, and the request that asks the same.
var verbs = map[string]struct {
	request string
	ask     func(ctx context.Context, c *rediscache.Cache) error
}{
	"get": {"GET /cache/asked", func(ctx context.Context, c *rediscache.Cache) error { _, err := c.Get(ctx, "asked"); return err }},
	"get many": {"", func(ctx context.Context, c *rediscache.Cache) error {
		_, err := c.GetMany(ctx, "asked", "none")
		return err
	}},
	"set": {"POST /cache/told?value=v", func(ctx context.Context, c *rediscache.Cache) error { return c.Set(ctx, "told", []byte("v"), 0) }},
	"set many": {"", func(ctx context.Context, c *rediscache.Cache) error {
		return c.SetMany(ctx, map[string][]byte{"told": []byte("v"), "told too": nil}, 0)
	}},
	"delete": {"DELETE /cache/none", func(ctx context.Context, c *rediscache.Cache) error { _, err := c.Delete(ctx, "none"); return err }},
}

var reading, writing = []string{"get", "get many"}, []string{"set", "set many", "delete"}

func of(a answer, verbs ...string) map[string]answer {
	want := make(map[string]answer)
	for _, v := range verbs {
		want[v] = a
	}
	return want
}

func every(a answer) map[string]answer { return of(a, append(reading[:2:2], writing...)...) }

// faulty is a server that is to have a fault.
type faulty struct {
	*redistest.Server
	t        *testing.T
	password atomic.Value // that WithCredentials returns
}

// elsewhere runs a command on a connection of its own; the channel is closed when it is over.
func (f *faulty) elsewhere(command string, args ...any) (over <-chan struct{}) {
	conn, err := redis.Dial("tcp", f.Addr)
	require.NoError(f.t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer conn.Close()
		_, _ = conn.Do(command, args...) // it may be killed
	}()
	f.t.Cleanup(func() { f.Kill(); <-done })
	return done
}

// fault is what Redis says, or does not, while it runs. A verb that is not in
// want is served.
type fault struct {
	args     []string      // of the server
	debugs   bool          // it needs DEBUG
	user     string        // of the URL
	rotates  bool          // the pool has WithCredentials, which return
	password string        // at first
	timeout  time.Duration // of the caches; zero: the default
	begin    func(f *faulty) (heal func())
	want     map[string]answer
	behind   map[string]answer // what else is not served where callers share connections
	refuses  bool              // it answers each call, so no outcome is unknown
}

var faults = map[string]*fault{
	"CLIENT PAUSE ALL": {
		timeout: 200 * time.Millisecond,
		begin: func(f *faulty) func() {
			f.Do("CLIENT", "PAUSE", 2500, "ALL")
			return func() { f.Do("PING") } // as nobody can end it, it is waited for
		},
		want: merge(of(late, reading...), of(lateWrite, writing...)),
	},
	"CLIENT PAUSE WRITE": {
		timeout: 200 * time.Millisecond,
		begin: func(f *faulty) func() {
			f.Do("CLIENT", "PAUSE", 60_000, "WRITE")
			return func() { f.Do("CLIENT", "UNPAUSE") }
		},
		want: of(lateWrite, writing...),
		// Redis answers a connection in order.
		behind: of(late, reading...),
	},
	"LOADING": {
		debugs: true,
		begin: func(f *faulty) func() {
			// Redis 6.2 answers after each 2 MiB that it has loaded, here every 20 ms: the direct way dials
			// anew while it is refused, and needs several answers within the second of a call.
			keys, size, delay := 10_000, 32<<10, "300" // microseconds a key
			if redistest.Major(f.t) >= 7 {
				keys, size, delay = 5000, 500, "1000"
				f.ConfigSet("loading-process-events-interval-bytes", "1024") // two keys
			}
			f.Do("DEBUG", "POPULATE", keys, "filler", size)
			f.ConfigSet("rdbcompression", "no")
			f.ConfigSet("key-load-delay", delay) // 3 to 5 s for all keys
			over := f.elsewhere("DEBUG", "RELOAD")
			return func() {
				_, _ = f.Admin().Do("CONFIG", "SET", "key-load-delay", "0") // Redis 6.2 refuses that while it loads
				<-over
			}
		},
		want: every(refusedSlowly("LOADING")),
	},
	"MASTERDOWN": {
		begin: func(f *faulty) func() {
			f.ConfigSet("replica-serve-stale-data", "no")
			f.ConfigSet("replica-read-only", "no") // or writes would be READONLY
			f.Do("REPLICAOF", "127.0.0.1", "1")
			return func() { f.Do("REPLICAOF", "NO", "ONE") }
		},
		want:    every(refused("MASTERDOWN")),
		refuses: true,
	},
	"READONLY": {
		begin: func(f *faulty) func() {
			f.Do("REPLICAOF", "127.0.0.1", "1")
			return func() { f.Do("REPLICAOF", "NO", "ONE") }
		},
		want:    of(refused("READONLY"), writing...),
		refuses: true,
	},
	"OOM": {
		begin: func(f *faulty) func() {
			f.ConfigSet("maxmemory", "1")
			return func() { f.ConfigSet("maxmemory", "0") }
		},
		want:    of(refused("OOM"), "set", "set many"), // a DEL makes room
		refuses: true,
	},
	"NOREPLICAS": {
		begin: func(f *faulty) func() {
			f.ConfigSet("min-replicas-to-write", "1")
			return func() { f.ConfigSet("min-replicas-to-write", "0") }
		},
		want:    of(refused("NOREPLICAS"), writing...),
		refuses: true,
	},
	"BUSY": {
		begin: func(f *faulty) func() {
			f.ConfigSet("lua-time-limit", "10")
			over := f.elsewhere("EVAL", "while true do end", 0)
			return func() {
				f.Do("SCRIPT", "KILL")
				<-over
			}
		},
		want: every(refused("BUSY")),
	},
	"maxclients": {
		begin: func(f *faulty) func() {
			f.ConfigSet("maxclients", "1") // the admin's
			f.KillClients()
			return func() { f.ConfigSet("maxclients", "1000") }
		},
		want: every(refused("")), // a reset may overtake the answer
	},
	"NOAUTH, a password was set": {
		begin: func(f *faulty) func() {
			f.ConfigSet("requirepass", "secret")
			f.KillClients() // those that are open go on working
			return func() { f.ConfigSet("requirepass", "") }
		},
		want: every(shutOut("NOAUTH")),
	},
	"NOAUTH, WithCredentials learns the password": {
		rotates: true,
		begin: func(f *faulty) func() {
			f.ConfigSet("requirepass", "secret")
			f.KillClients()
			return func() { f.password.Store("secret") }
		},
		want: every(shutOut("NOAUTH")),
	},
	"WRONGPASS, the password was rotated": {
		args: []string{"--requirepass", "old"}, rotates: true, password: "old",
		begin: func(f *faulty) func() {
			f.ConfigSet("requirepass", "secret")
			f.KillClients()
			return func() { f.password.Store("secret") }
		},
		want: every(shutOut("WRONGPASS")),
	},
	"WRONGPASS, the user was switched off": {
		args: []string{"--user", "app", "on", ">secret", "~*", "+@all"}, user: "app:secret@",
		begin: func(f *faulty) func() {
			f.Do("ACL", "SETUSER", "app", "off")
			f.KillClients() // those that are open go on working
			return func() { f.Do("ACL", "SETUSER", "app", "on") }
		},
		want: every(shutOut("WRONGPASS")),
	},
	"WRONGPASS, the user was removed": {
		args: []string{"--user", "app", "on", ">secret", "~*", "+@all"}, user: "app:secret@",
		begin: func(f *faulty) func() {
			f.Do("ACL", "DELUSER", "app") // which closes its connections
			return func() { f.Do("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all") }
		},
		want: every(shutOut("WRONGPASS")),
	},
	"NOPERM": {
		args: []string{"--user", "app", "on", ">secret", "~*", "+@all"}, user: "app:secret@",
		begin: func(f *faulty) func() {
			f.Do("ACL", "SETUSER", "app", "-@all", "+ping", "+get", "+mget")
			return func() { f.Do("ACL", "SETUSER", "app", "+@all") }
		},
		want:    of(denied("NOPERM"), writing...),
		refuses: true,
	},
	"WRONGTYPE": {
		begin: func(f *faulty) func() {
			f.Do("DEL", "asked")
			f.Do("RPUSH", "asked", "x")
			return func() { f.Do("SET", "asked", "v") }
		},
		want: of(answer{
			is: []error{rediscache.ErrWrongType}, word: "WRONGTYPE", status: 409, code: "wrong_type",
		}, "get"),
		refuses: true,
	},
}

func merge(a, b map[string]answer) map[string]answer {
	both := maps.Clone(a)
	maps.Copy(both, b)
	return both
}

// way is a cache that callers go on to use through a fault.
type way struct {
	cache   *rediscache.Cache
	pool    *rediscache.WarmPool
	handler http.Handler
	addr    string

	wrong string    // of the last look
	right time.Time // of the first look with nothing wrong
}

// look asks every verb and sends every request, at once.
func (w *way) look(ctx context.Context, want map[string]answer) {
	wrong := make(chan string, 2*len(verbs))
	var asked sync.WaitGroup
	for name, verb := range verbs {
		asked.Go(func() {
			if err := verb.ask(ctx, w.cache); !want[name].fits(err) {
				wrong <- fmt.Sprintf("%s: %v", name, err)
			}
		})
		if verb.request == "" {
			continue
		}
		asked.Go(func() {
			method, target, _ := strings.Cut(verb.request, " ")
			r := redistest.Serve(w.handler, httptest.NewRequestWithContext(ctx, method, target, nil))
			if !want[name].isIn(r) || strings.Contains(r.Body.String(), w.addr) {
				wrong <- fmt.Sprintf("%s: %d %s", verb.request, r.Code, r.Body)
			}
		})
	}
	asked.Wait()
	select {
	case w.wrong = <-wrong:
	default:
		w.wrong, w.right = "", time.Now()
	}
}

// isIn says whether a response is that answer, or that of a verb that is served.
func (a answer) isIn(r *httptest.ResponseRecorder) bool {
	var body struct{ Error string }
	if json.Unmarshal(r.Body.Bytes(), &body) != nil {
		return false
	}
	if a.status == 0 {
		return r.Code < 500 && body.Error == "" // DELETE finds nothing
	}
	return r.Code == a.status && (body.Error == a.code || a.code == "" && body.Error != "") &&
		(r.Code == 503) == (r.Header().Get("Retry-After") != "")
}

// lookUntil waits until each way has had its look with nothing wrong.
func lookUntil(t *testing.T, ways []*way, want func(*way) map[string]answer, when string) {
	t.Helper()
	for _, w := range ways {
		w.right = time.Time{}
	}
	defer func() {
		for _, w := range ways {
			if t.Failed() {
				t.Logf("%d connections: %s", w.pool.Stats().Open, w.wrong)
			}
		}
	}()
	redistest.Eventually(t, func() bool {
		var looks sync.WaitGroup
		all := true
		for _, w := range ways {
			if w.right.IsZero() {
				all = false
				looks.Go(func() { w.look(t.Context(), want(w)) })
			}
		}
		looks.Wait()
		return all
	}, "%s", when)
}

// call stores one number after the other under a key of its own and reads it
// back, until stop. What was refused is never found.
func (w *way) call(t *testing.T, key string, told *tally, legitimate func(error) bool, stop <-chan struct{}) {
	may := map[string]bool{} // be there, as nobody knows
	applied := ""
	for n := 0; ; n++ {
		value := fmt.Sprint(n)
		err := w.cache.Set(t.Context(), key, []byte(value), 0)
		told.add(err)
		switch {
		case err == nil:
			applied = value
		case errors.Is(err, rediscache.ErrOutcomeUnknown):
			may[value] = true
		}
		got, readErr := w.cache.Get(t.Context(), key)
		told.add(readErr)
		if readErr == nil && string(got) != applied && !may[string(got)] {
			t.Errorf("%s: found %q, applied was %q", key, got, applied)
		}
		for _, err := range []error{err, readErr} {
			if err != nil && !legitimate(err) && (applied != "" || !errors.Is(err, rediscache.ErrNotFound)) {
				t.Errorf("%s: %v", key, err)
			}
		}
		select {
		case <-stop:
			return
		case <-time.After(time.Millisecond): // a caller has something else to do as well
		}
	}
}

// TestFaultAnswersAreTheRightSentinelStatusAndEnd lets a Redis that is in use
// refuse, or be silent, and ends that. Meanwhile each verb says what it should,
// in Go and in HTTP, and a write that was refused is never found. Afterwards the
// same caches serve again.
func TestFaultAnswersAreTheRightSentinelStatusAndEnd(t *testing.T) {
	redistest.Long(t)
	const soon = 3 * time.Second // a pool without connections dials every 2.5 s at least
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			redistest.NoLeaks(t)
			args := fault.args
			if fault.debugs && redistest.Major(t) >= 7 { // it was free to all before
				args = append(args, "--enable-debug-command", "yes")
			}
			f := &faulty{Server: redistest.Start(t, args...), t: t}
			f.Do("SET", "asked", "v")
			opts := sizes(2, 32)
			if fault.rotates {
				f.password.Store(fault.password)
				opts = append(opts, rediscache.WithCredentials(func(context.Context) (user, password string, err error) {
					return "", f.password.Load().(string), nil
				}))
			}
			open := func(conns int) *way {
				pool := newPool(t, "redis://"+fault.user+f.Addr, opts...)
				c := newCache(t, pool, rediscache.WithPipelineConns(conns),
					rediscache.WithTimeout(cmp.Or(fault.timeout, rediscache.DefaultTimeout)))
				return &way{cache: c, pool: pool, addr: f.Addr, handler: rediscache.NewHandler(c,
					rediscache.WithLogger(slog.New(slog.DiscardHandler)))}
			}
			shared, single := open(rediscache.DefaultPipelineConns), open(0)
			ways := []*way{shared, single}
			served := func(*way) map[string]answer { return nil }
			lookUntil(t, ways, served, "it serves")

			var told tally
			var callers sync.WaitGroup
			stop := make(chan struct{})
			end := sync.OnceFunc(func() { close(stop); callers.Wait() })
			defer end()
			for i, w := range ways {
				for n := range 4 {
					callers.Go(func() { w.call(t, fmt.Sprint("caller ", i, n), &told, fault.allows, stop) })
				}
			}

			heal := fault.begin(f)
			lookUntil(t, ways, func(w *way) map[string]answer {
				if w == shared {
					return merge(fault.want, fault.behind)
				}
				return fault.want
			}, "the right answers")
			heal()
			healed := time.Now()
			lookUntil(t, ways, served, "it serves again")
			end()

			t.Logf("%s: %d tried, %d failed, %d unknown, %d and %d dials, back after %v with lanes and %v with a connection a command",
				name, told.tried, told.failed, told.unknown, shared.pool.Stats().Dials, single.pool.Stats().Dials,
				shared.right.Sub(healed).Round(time.Microsecond), single.right.Sub(healed).Round(time.Microsecond))
			for _, w := range ways {
				require.Less(t, w.right.Sub(healed), soon)
			}
			if fault.refuses {
				require.Zero(t, told.unknown, "Redis answered each of them")
			}
		})
	}
}

// allows says whether a caller may hear that error from its connection or of its server.
func (f *fault) allows(err error) bool {
	for _, w := range f.want {
		if w.word != "" && w.says(err) {
			return true
		}
	}
	return errors.Is(err, rediscache.ErrUnavailable) || errors.Is(err, rediscache.ErrOutcomeUnknown) ||
		errors.Is(err, context.DeadlineExceeded)
}
