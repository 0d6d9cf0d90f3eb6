package fill

import (
	"context"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/flight"
	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/redistest"
)

const secret = "s3cret-pa55word"

// fixture is the Leases of a Redis user app, whose permissions a test changes.
type fixture struct {
	*Leases
	s       *redistest.Server
	refused []error // the calls of Config.Refused
}

func newFixture(t *testing.T, denied ...string) *fixture {
	t.Helper()
	f := &fixture{s: redistest.Start(t)}
	f.s.Do("ACL", "SETUSER", "app", "on", ">"+secret, "~*", "+@all")
	f.acl(denied...)
	p := pipeline.New(pipeline.Config{
		Borrow: func(ctx context.Context) (redis.Conn, error) {
			return redis.DialContext(ctx, "tcp", f.s.Addr, redis.DialUsername("app"), redis.DialPassword(secret))
		},
		WriteTimeout: time.Minute,
	})
	owner := flight.NewOwner()
	t.Cleanup(func() {
		owner.Close()
		p.Close()
	})
	f.Leases = New(Config{Pipeline: p, Owner: owner, Refused: func(_ context.Context, err error) {
		f.refused = append(f.refused, err)
	}})
	return f
}

// acl changes the rules of the user.
func (f *fixture) acl(rules ...string) {
	args := []any{"SETUSER", "app"}
	for _, rule := range rules {
		args = append(args, rule)
	}
	f.s.Do("ACL", args...)
}

// age acts as if d had passed.
func (f *fixture) age(d time.Duration) {
	f.ways.mu.Lock()
	defer f.ways.mu.Unlock()
	f.ways.since = f.ways.since.Add(-d)
}

// load does what the load of a key does, and reports whether the key had a lease meanwhile.
func (f *fixture) load(t *testing.T, key string) (leased bool) {
	t.Helper()
	j := f.Job("", key, true)
	jobs := []*Job{&j}
	if j.Leased() {
		require.NoError(t, f.Take(t.Context(), jobs, time.Hour)[0].Err)
	}
	leased = f.s.Do("EXISTS", LeaseName("", key)) == int64(1)
	require.Equal(t, leased, j.Holds())
	j.Before, j.Data, j.Life = Value{Left: Forever}, []byte("v"), NoExpiry
	if leased {
		f.Store(t.Context(), jobs)
	} else {
		f.StoreUnchecked(t.Context(), jobs)
	}
	require.Equal(t, Done, j.Outcome, "%v", j.Err)
	require.Equal(t, []byte("v"), f.s.Do("GET", key))
	if j.Holds() {
		f.Release(t.Context(), jobs, time.Hour)
		require.Equal(t, Lost, j.Outcome, "nothing shows that the job held it until then")
	}
	require.EqualValues(t, 0, f.s.Do("EXISTS", LeaseName("", key)))
	return leased
}

// takeRefused returns and forgets the calls of Config.Refused.
func (f *fixture) takeRefused() []error {
	defer func() { f.refused = nil }()
	return f.refused
}

// A refused way is retried after some time, because an ACL may change.
func TestARefusedWayIsRetriedLater(t *testing.T) {
	f := newFixture(t, "-@scripting", "-@transaction")
	require.True(t, f.load(t, "a"), "nobody knows yet")
	require.False(t, f.load(t, "b"))
	require.Len(t, f.takeRefused(), 1)
	f.age(time.Minute)
	require.True(t, f.load(t, "c"))
	require.Empty(t, f.takeRefused(), "it was reported before")
	require.False(t, f.load(t, "d"))
	f.acl("+@all")
	f.age(time.Minute)
	require.True(t, f.load(t, "e"))
	require.True(t, f.load(t, "f"), "they work")
	require.Empty(t, f.takeRefused())
	f.acl("-@scripting", "-@transaction")
	require.True(t, f.load(t, "g"))
	require.False(t, f.load(t, "h"))
	require.Len(t, f.takeRefused(), 1, "it is news again")
}

// The success of one way does not delay the retry of a way that was refused.
func TestScriptsAreRetriedWhileTransactionsWork(t *testing.T) {
	f := newFixture(t, "-@scripting")
	refusals := func(key string) int {
		f.s.Do("CONFIG", "RESETSTAT")
		require.True(t, f.load(t, key))
		return f.s.CommandStats()["evalsha"].Rejected
	}
	require.Equal(t, 1, refusals("a"))
	f.age(50 * time.Second)
	require.Equal(t, 0, refusals("b"))
	f.age(10 * time.Second)
	require.Equal(t, 1, refusals("c"))
	require.Equal(t, 0, refusals("d"))
}
