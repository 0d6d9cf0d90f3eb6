package rediscache

import (
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/fill"
	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/resp"
)

// Group is a namespace of a [Cache] that Invalidate makes empty at once, in all processes,
// by one write, whatever it holds. Groups with one name of caches with one prefix are the
// same group, so give the keys that change together a group: the pages of a shop, what was
// rendered with a template, what a user may see. All methods are safe for concurrent use.
//
// Redis holds the version of a group under its name and ":group:rediscache-lease", and the
// keys of the group under the prefix of the cache, the name, and the version. Invalidate
// stores another version. What was stored under an older version is never read again, and
// stays in Redis until its TTL ends, so give values a TTL: with [NoExpiry] only eviction,
// or [Cache.Clear], removes them.
//
//  1. A read that begins after Invalidate has returned reads the version after that, and
//     so reads no key of an older version.
//  2. A Set or a load that began before Invalidate stores under the version that it began
//     with, so no such read finds what it stores, and no such caller joins the load.
//  3. A version is a random text, not a number. If Redis loses it, by eviction, Clear or a
//     flush, the next reader makes a new one, under which nothing is stored.
//
// With [WithNearCache] the version is a copy in the process, which costs no round trip. Then
// the processes that did not call Invalidate see it as they see any write: usually within a
// millisecond, and after a second at the latest. Without it, each call of the group reads the
// version first, which is one more round trip; a caller of many methods takes [Group.Cache]
// once.
//
// A key is in one group. What other libraries call tags, where a key has several and each of
// them can invalidate it, needs a read of all its tags: keep the keys of each tag in a group
// of its own, or combine the names of two groups.
type Group struct {
	c      *Cache
	name   string
	stored string // the name of the version in Redis, without the prefix of c

	mu      sync.Mutex // guards all below
	version string     // that was read last; empty: none
	current *Cache     // of version
}

// Group returns the group of a name, which may be empty. It sends nothing.
func (c *Cache) Group(name string) *Group {
	return &Group{c: c, name: name, stored: fill.GroupName(name)}
}

// Invalidate makes the group empty. After an error that matches [ErrOutcomeUnknown] it may
// be empty or not; Invalidate may be called again.
func (g *Group) Invalidate(ctx context.Context) (err error) {
	ctx, op := g.c.begin(ctx, "invalidate", g.name)
	defer op.end(&err)
	if _, err := g.store(ctx, newVersion()); err != nil {
		return op.fail(err)
	}
	op.observe(OutcomeOK, 0, nil)
	return nil
}

// Cache returns a cache of the keys that the group holds now. Use it for one piece of work,
// such as one request, and get another for the next: after an Invalidate it still has the old
// keys. Closing it closes the cache of the group.
func (g *Group) Cache(ctx context.Context) (*Cache, error) {
	version, err := g.now(ctx)
	if err != nil {
		return nil, g.c.step(ctx, "group", g.name).fail(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.version != version {
		g.version, g.current = version, g.c.Sub(g.name+":"+version+":")
	}
	return g.current, nil
}

// Get is [Cache.Get] of the cache of the group.
func (g *Group) Get(ctx context.Context, key string) ([]byte, error) {
	c, err := g.Cache(ctx)
	if err != nil {
		return nil, err
	}
	return c.Get(ctx, key)
}

// Set is [Cache.Set] of the cache of the group.
func (g *Group) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	c, err := g.Cache(ctx)
	if err != nil {
		return err
	}
	return c.Set(ctx, key, value, ttl)
}

// Delete is [Cache.Delete] of the cache of the group.
func (g *Group) Delete(ctx context.Context, keys ...string) (int, error) {
	c, err := g.Cache(ctx)
	if err != nil {
		return 0, err
	}
	return c.Delete(ctx, keys...)
}

var _ Store = (*Group)(nil)

func newVersion() string { return rand.Text()[:16] } // 80 random bits

// now reads the version, and makes one if there is none.
func (g *Group) now(ctx context.Context) (string, error) {
	reply, err := g.c.readOne(ctx, g.c.prefix, g.stored)
	for {
		switch {
		case err != nil:
			return "", err
		case len(reply.Bytes) > 0:
			return string(reply.Bytes), nil
		}
		version := newVersion()
		if reply, err = g.store(ctx, version, "NX"); err == nil && reply.Kind != resp.Nil {
			return version, nil
		}
		if err == nil { // another process made one
			reply, err = g.c.pipe.Do(ctx, pipeline.Read("GET", 1, pipeline.Value).Key(g.c.prefix, g.stored))
		}
	}
}

// store stores a version.
func (g *Group) store(ctx context.Context, version string, args ...string) (resp.Reply, error) {
	defer g.c.endWrites(g.c.beginWritesOf([]string{g.c.prefix + g.stored}))
	call := pipeline.Write("SET", fill.SetArgs(NoExpiry, args...), pipeline.Done)
	return g.c.pipe.Do(ctx, fill.AppendSet(call, g.c.prefix, g.stored, []byte(version), NoExpiry, args...))
}

// GroupView is a [View] of a group. Make it once, as a View.
type GroupView[V any] struct {
	g       *Group
	codec   Codec[V]
	policy  Policy
	failing *failing
	blind   *View[V] // of failing

	mu    sync.Mutex // guards all below
	cache *Cache     // that view is of
	view  *View[V]
}

// OfGroup makes a GroupView. The errors are those of [Of]; a TTL of [NoExpiry] is one too,
// because the values of older versions would stay in Redis.
func OfGroup[V any](g *Group, codec Codec[V], p Policy) (*GroupView[V], error) {
	if g == nil {
		return nil, errors.New("rediscache: the group is nil")
	}
	view, err := Of(g.c, codec, p)
	if err != nil {
		return nil, err
	}
	if view.policy.TTL == NoExpiry {
		return nil, errors.New("rediscache: Policy.TTL: values of a group need an end: what was stored before an Invalidate would stay in Redis")
	}
	failing, blind := newFailing(g.c), p
	blind.KeepDecoded = false // it has no copies
	return &GroupView[V]{
		g: g, codec: codec, policy: p, failing: failing, blind: must(Of(failing.cache, codec, blind)),
	}, nil
}

// View returns a View of the keys that the group holds now. Use it for one piece of work, such
// as one request, and get another for the next. A load joins only those that began under the
// same version. While Redis cannot be read, all calls of the View but loads return the error,
// and a load runs, shared, and stores nothing.
func (v *GroupView[V]) View(ctx context.Context) *View[V] {
	c, err := v.g.Cache(ctx)
	if err != nil {
		if ctx.Err() == nil { // or the calls of the View return the error of ctx
			v.failing.set(err)
		}
		return v.blind
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.cache != c {
		v.cache, v.view = c, must(Of(c, v.codec, v.policy))
	}
	return v.view
}

// must returns a View whose codec and policy were valid for the cache of the group.
func must[V any](v *View[V], err error) *View[V] {
	if err != nil {
		panic(err)
	}
	return v
}

// failing has a cache without Redis, for loads while the version of a group cannot be read.
// Each command returns the last error that was set.
type failing struct {
	cache *Cache
	mu    sync.Mutex // guards err
	err   error
}

func newFailing(c *Cache) *failing {
	f, copied := &failing{err: ErrUnavailable}, *c
	copied.near = nil
	copied.pipe = pipeline.New(pipeline.Config{Borrow: f.borrow})
	copied.leases = fill.New(fill.Config{Pipeline: copied.pipe, Owner: c.loads, Refused: copied.leasesRefused})
	f.cache = &copied
	return f
}

func (f *failing) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *failing) borrow(context.Context) (redis.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return nil, f.err
}
