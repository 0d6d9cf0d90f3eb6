// Package rediscache is a Redis cache on a pool that keeps connections open, with an
// optional net/http handler.
//
// A process makes one [WarmPool] with [NewPool], and a [Cache] on it with [New]. This
// function caches a page for a minute:
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
// A [Cache] stores bytes under string keys, both of any content. It stores the value
// and nothing else, so redis-cli and programs in other languages can read it.
// [Cache.Sub] and [WithPrefix] set a prefix as a namespace; a version in the prefix
// hides all older keys. Each Set has a TTL: a time, [DefaultTTL] for the TTL of the
// cache, or [NoExpiry]. Any other TTL is an error. [Cache.Add] stores only if the key does
// not exist, and [Cache.Touch] sets the TTL of a key that exists.
//
// # Loads
//
// A [View], from [Of], has typed values and can load them: callers of
// [View.GetOrLoad] that miss the same key together wait for one load. A [Policy] sets
// how long a value is fresh, how long a stale value is served while a load replaces it
// or fails, how long a View remembers that there is no value, and whether other
// processes wait for the load.
//
// With [Policy.Lease], a load that began before a Delete, in any process, or before a
// [View.Set] stores nothing after it, and no caller that comes after the Delete gets
// its value. The load also does not overwrite a value that was stored meanwhile.
// Without a lease such a load may store an old value, which stays until its TTL ends.
// If Redis is down, loads still run, shared, and an [Observer] gets the error.
//
// A load can outlive the call that began it, and keeps the values of that call's
// context. Pass r.Context(), or c.Request.Context() with gin. Do not pass a context
// that a framework reuses for its next request, such as a *gin.Context.
//
// # Errors
//
// Use [errors.Is]; an error can match more than one of these:
//
//   - [ErrNotFound]: a miss. An empty value is a hit.
//   - [ErrUnavailable]: Redis is down, or does not serve now.
//   - [ErrPoolExhausted]: all connections were in use until the context ended.
//   - [ErrOutcomeUnknown]: a write was sent and its reply was lost. After any other
//     error of a write nothing has changed, except with [Cache.SetMany] and
//     [Cache.Clear], which send more than one command.
//   - [ErrWrongType]: the key holds another type than a string.
//   - [ErrClosed]: the cache or its pool was closed.
//   - [context.Canceled], [context.DeadlineExceeded]: the context ended, or
//     [WithTimeout] expired.
//   - redis.Error, from redigo: Redis returned an error.
//
// No error text of this package holds a key, a value or a password. Errors of your
// loads, codecs and credentials are returned unchanged. An error text may hold the
// address of the server, as that of a [DialError] does: do not show it to clients.
//
// # Concurrency
//
// Pools, caches, views and handlers are safe for concurrent use. The callers of a
// cache share [WithPipelineConns] connections: callers with small values share one,
// callers with large values are spread over all of them. Commands of concurrent
// callers are written together, without a delay to wait for more. A caller whose
// context ends returns at once, or within about 20 ms if it is the only caller and
// reads its reply itself; the connection stays open. A command with a large value, with
// many keys, or without connections to share, borrows a connection of its own. If the
// context of such a command ends, its caller returns within about 20 ms, and the reply is
// read and dropped; a WarmPool closes the connection if a part of the command was not
// sent, or if the reply takes longer than a second.
//
// The caller may change a value when Set has returned, and owns the value that Get
// returns. A call ends with its context or after [WithTimeout], whichever is earlier.
//
// # The pool
//
// A [WarmPool] keeps [WithMinIdle] idle connections open, and never has more than
// [WithMaxActive] open. If all are in use, borrowers wait in the order in which they
// came. If Redis is down, borrowers get an error at once, and the pool dials with a
// backoff. When a dial succeeds, the pool fills again by itself. [NewPool] does not
// wait for Redis; [WarmPool.Ready] does.
//
// A cache works on any [Pool]: a *redis.Pool of redigo, or your own. For a command
// that the cache has no method for, borrow a connection of redigo:
//
//	conn, err := pool.GetContext(context.Background())
//	if err != nil {
//		panic(err)
//	}
//	defer conn.Close() // returns it to the pool
//	n, err := redis.Int(conn.Do("INCR", "visits"))
//
// For a library that wants a *redis.Pool, use [WarmPool.Redigo].
//
// Close in this order: shut down the HTTP server, then [Cache.Close], which leaves the
// pool open, then [WarmPool.Shutdown], which waits for borrowers, or [WarmPool.Close],
// which does not.
//
// # Copies in the process
//
// With [WithNearCache] a cache keeps copies of values in the process, and Redis reports
// each write, which removes the copy. The reads and writes of one cache never go
// back to an older value. A write of another process is seen after at most a second.
//
// # Groups
//
// The keys of a [Group], from [Cache.Group], become invisible at once, in all processes, by
// one [Group.Invalidate]. [OfGroup] makes a View of a group: what a load began before an
// Invalidate is never found after it.
//
// # Watching
//
// An [Observer], see [WithObserver], gets an [Event] for each outcome of a cache, and as a
// [Starter] and an [Ender] the begin and the end of each call. [Cache.Stats] and
// [WarmPool.Stats] have the counts. [WithPoolObserver] tells when Redis is down, when it is
// up again, and why a connection was closed. Package rediscacheprom makes metrics for
// Prometheus of these, package rediscacheotel spans and metrics for OpenTelemetry, and
// package apidocs a status page.
//
// # Tests
//
// Package rediscachetest has a cache for the tests of code that uses a cache. It needs no
// Redis, and the test moves its clock and takes it down.
//
// # HTTP
//
// [NewHandler] serves POST, GET, HEAD and DELETE of /cache/{key}. Its responses to
// errors hold no address. It takes the key from the path as the client sent it, so the
// key is the same under every router:
//
//	mux := http.NewServeMux()
//	mux.Handle("/cache/", rediscache.NewHandler(cache))
//
// [WithKeyFunc] keeps the keys of tenants apart and refuses requests. Use middleware
// for authentication, CORS and rate limits.
package rediscache
