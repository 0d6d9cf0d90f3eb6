// Package rediscache is a Redis cache on a pool of connections that stays
// warm, with an optional net/http handler for it.
//
// A process has one [WarmPool], from [NewPool], and on it as many caches as it
// likes, from [New]. With one of them a page is kept for a minute:
//
//	page := func(ctx context.Context, name string) string {
//		value, err := cache.Get(ctx, name)
//		switch {
//		case err == nil:
//			return string(value) + " (cached)"
//		case !errors.Is(err, rediscache.ErrNotFound):
//			return "page " + name + " (no cache)" // log err
//		}
//		value = []byte("page " + name)
//		_ = cache.Set(ctx, name, value, time.Minute) // log that too
//		return string(value)
//	}
//
// A [Cache] holds bytes under strings, both of any content. What it stores is
// the value and nothing else, so redis-cli and programs in other languages read
// it too. [Cache.Sub] and [WithPrefix] are namespaces; a version in one
// invalidates all that is older. How long a value lives is said where it is
// stored: a time, [DefaultTTL] for the cache's own, or [NoExpiry]. What is none
// of these is an error, not something near it.
//
// # Loads
//
// A [View], from [Of], has typed values and can load them: callers that miss
// together wait for one [View.GetOrLoad]. Its [Policy] says how long a value is
// fresh, how long it is served stale while it is loaded anew or cannot be, how
// long it is remembered that there is none, and whether other processes share
// the load. With [Policy.Lease] a load that began before a Delete, by a View, a
// Cache or a handler of any process, or before a [View.Set] does not store its
// value after it, nor over another value that anybody has stored meanwhile, and
// no caller that comes after the Delete gets its value. Without a lease both may
// happen, until the TTL ends. With Redis down loads go on, shared, and an
// [Observer] gets an event that says why.
//
// A load can outlive the call that began it, with the values of that call's
// context: pass r.Context(), or gin's c.Request.Context(), and no context that a
// framework reuses for its next request, such as a *gin.Context.
//
// # Errors
//
// Use [errors.Is]; an error can match more than one of these:
//
//   - [ErrNotFound]: a miss. The empty value is not one.
//   - [ErrUnavailable]: Redis is down, or does not serve now.
//   - [ErrPoolExhausted]: every connection was busy until the context ended.
//   - [ErrOutcomeUnknown]: a write was sent and its reply was lost. After every
//     other error of a write nothing has changed, but for [Cache.SetMany] and
//     [Cache.Clear], which are more than one command.
//   - [ErrWrongType]: the key holds something that no cache has stored.
//   - [ErrClosed]: the cache or its pool was closed.
//   - [context.Canceled], [context.DeadlineExceeded]: the context ended, or the
//     time of [WithTimeout] was over.
//   - a redis.Error of redigo: Redis refused, and says why.
//
// No message of this package holds a key, a value or a password; those of your
// loads, codecs and credentials are passed on as they are. One may hold the
// address of the server, that of a [DialError] above all: show none to clients.
//
// # Concurrency
//
// Pools, caches and handlers are safe for concurrent use. The callers of a cache
// share [WithPipelineConns] connections: a few are spread over them, many with
// small values share one. Commands that meet travel together, without a delay
// that waits for more. A caller whose context ends leaves at once, or within 20 ms
// where it reads its reply itself, as a lone one does, and the connection stays.
// With none to share, and for a large value, a command has a connection to itself:
// on a WarmPool it ends with the command if that is cut short.
//
// A value belongs to its caller again as soon as Set has returned, and what Get
// returns belongs to its caller. A call ends with its context or with the time of
// [WithTimeout], whichever is earlier.
//
// # The pool
//
// A [WarmPool] keeps [WithMinIdle] connections open and spare although nobody
// asks, and never has more than [WithMaxActive]. When all are busy, borrowers
// wait in the order in which they came. With Redis down they fail at once,
// while one dial after another, each later than the last, finds out when it is
// back; then the floor fills again by itself. [NewPool] does not wait for
// Redis, [WarmPool.Ready] does.
//
// Any [Pool] serves a cache: redigo's own *redis.Pool, or yours. What the cache
// has no verb for, Redis does over a borrowed connection, which is redigo's in
// every respect:
//
//	conn, err := pool.GetContext(context.Background())
//	if err != nil {
//		panic(err)
//	}
//	defer conn.Close() // hands it back
//	n, err := redis.Int(conn.Do("INCR", "visits"))
//
// Who made a thing ends it, the last one first: the server, then [Cache.Close],
// which leaves the pool open, then [WarmPool.Shutdown], which waits for
// borrowers, or [WarmPool.Close], which does not.
//
// # HTTP
//
// [NewHandler] serves POST, GET, HEAD and DELETE of /cache/{key}, each with one
// status and one body for everything that can happen; its errors name no
// address. It takes the key from the path as the client sent it, so it is the
// same key under every router:
//
//	mux := http.NewServeMux()
//	mux.Handle("/cache/", rediscache.NewHandler(cache))
//
// [WithKeyFunc] keeps tenants apart and refuses who may not. Authentication,
// CORS and rate limits are a middleware's.
package rediscache
