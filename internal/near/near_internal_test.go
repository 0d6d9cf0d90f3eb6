package near

import (
	"context"
	"errors"
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"
)

// served returns a Cache that serves copies for an hour without a tracking connection.
func served(cfg Config) *Cache {
	if cfg.Bytes == 0 {
		cfg.Bytes = 1 << 20
	}
	c := newCache(cfg)
	c.drop()
	c.until.Store(c.now() + int64(time.Hour))
	return c
}

// lead begins a fill that must lead.
func lead(t *testing.T, c *Cache, key string) *Fill {
	t.Helper()
	f, leads := c.Begin("p:", key)
	require.True(t, leads)
	return f
}

func requireCopy(t *testing.T, c *Cache, key, value string) {
	t.Helper()
	copied, ok := c.Get("p:", key)
	require.True(t, ok, "no copy of %s", key)
	require.Equal(t, value, string(copied.Value()))
}

func requireNone(t *testing.T, c *Cache, key string) {
	t.Helper()
	_, ok := c.Get("p:", key)
	require.False(t, ok, "a copy of %s", key)
}

func TestAFillIsServed(t *testing.T) {
	c := served(Config{})
	requireNone(t, c, "k")
	lead(t, c, "k").Store([]byte("v"), noExpiry)
	requireCopy(t, c, "k", "v")
	copied, ok := c.Get("", "p:k") // the same name in other parts
	require.True(t, ok)
	require.Equal(t, "v", string(copied.Value()))
	lead(t, c, "none").Store(nil, missing)
	copied, ok = c.Get("p:", "none")
	require.True(t, ok)
	require.False(t, copied.Found())
}

func TestAReportBeforeTheReplyKeepsTheOldValueOut(t *testing.T) {
	c := served(Config{})
	f := lead(t, c, "k")
	c.invalidate([]byte("p:k"))
	f.Store([]byte("old"), noExpiry)
	requireNone(t, c, "k")
}

func TestAReportRemovesTheCopy(t *testing.T) {
	c := served(Config{})
	lead(t, c, "k").Store([]byte("old"), noExpiry)
	c.invalidate([]byte("p:k"))
	requireNone(t, c, "k")
}

func TestAFillFromBeforeAReportIsNotJoined(t *testing.T) {
	c := served(Config{})
	old := lead(t, c, "k")
	c.invalidate([]byte("p:k"))
	f := lead(t, c, "k")
	old.Store([]byte("old"), noExpiry) // removes the placeholder of f too, as it may have read less
	f.Store([]byte("new"), noExpiry)
	requireNone(t, c, "k")
	lead(t, c, "k").Store([]byte("new"), noExpiry)
	requireCopy(t, c, "k", "new")
}

func TestDuringAWriteNothingIsFoundJoinedOrStored(t *testing.T) {
	c := served(Config{})
	lead(t, c, "k").Store([]byte("old"), noExpiry)
	before := lead(t, c, "k")
	for range 2 {
		c.BeginWrite("p:", "k")
	}
	mark := c.BeginWrite("p:", "k")
	for range 3 {
		requireNone(t, c, "k")
		f, _ := c.Begin("p:", "k")
		require.Nil(t, f)
		c.EndWrite(mark)
	}
	before.Store([]byte("old"), noExpiry)
	requireNone(t, c, "k")
	lead(t, c, "k").Store([]byte("new"), noExpiry)
	requireCopy(t, c, "k", "new")
}

func TestADropDuringAFillKeepsItOut(t *testing.T) {
	c := served(Config{})
	lead(t, c, "k").Store([]byte("old"), noExpiry)
	f := lead(t, c, "other")
	c.drop()
	requireNone(t, c, "k")
	again := lead(t, c, "other") // not joined: its epoch is over
	f.Store([]byte("old"), noExpiry)
	requireNone(t, c, "other")
	again.Store([]byte("new"), noExpiry)
	requireNone(t, c, "other") // f removed the placeholder, as it saw a value that may be newer
}

func TestACopyThatIsStoredDuringADropIsNotServed(t *testing.T) {
	c := served(Config{})
	f := lead(t, c, "k")
	c.copies.Set(f.hash, f.copy([]byte("old"), noExpiry)) // Store has compared the epoch before the drop
	requireCopy(t, c, "k", "old")
	c.epoch.Add(1)
	requireNone(t, c, "k")
}

func TestAReadThatPassesByRemovesAnOlderCopy(t *testing.T) {
	c := served(Config{})
	lead(t, c, "k").Store([]byte("v1"), noExpiry)
	c.Saw("p:", "k", []byte("v1"), true)
	requireCopy(t, c, "k", "v1")
	c.Saw("p:", "k", []byte("v2"), true)
	requireNone(t, c, "k")

	f := lead(t, c, "k")
	c.Saw("p:", "k", []byte("v2"), true)
	f.Store([]byte("v1"), noExpiry)
	requireNone(t, c, "k")
}

func TestWaitersShareAFillOrItsError(t *testing.T) {
	c := served(Config{})
	f := lead(t, c, "k")
	joined, leads := c.Begin("p:", "k")
	require.False(t, leads)
	require.Same(t, f, joined)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := joined.Wait(ended)
	require.ErrorIs(t, err, context.Canceled)
	f.Store([]byte("v"), noExpiry)
	copied, err := joined.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, "v", string(copied.Value()))

	failure := errors.New("down")
	f = lead(t, c, "failed")
	f.Fail(failure, false)
	_, err = f.Wait(t.Context())
	require.ErrorIs(t, err, failure)
	f = lead(t, c, "failed")
	f.Fail(context.Canceled, true)
	copied, err = f.Wait(t.Context())
	require.Nil(t, copied)
	require.NoError(t, err)
}

func TestACopyLivesNoLongerThanRedisKeepsTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := served(Config{TTL: time.Minute})
		f := lead(t, c, "short")
		time.Sleep(100 * time.Millisecond) // the reply takes this long
		f.Store([]byte("v"), 1000)
		lead(t, c, "long").Store([]byte("v"), noExpiry)
		copied, _ := c.Get("p:", "short")
		left, slack, forever := c.Left(copied)
		require.False(t, forever)
		require.Equal(t, 900*time.Millisecond, left)
		require.Equal(t, 102*time.Millisecond, slack)
		time.Sleep(900*time.Millisecond - 1)
		requireCopy(t, c, "short", "v")
		time.Sleep(time.Nanosecond)
		requireNone(t, c, "short")
		requireCopy(t, c, "long", "v")
		time.Sleep(59 * time.Second)
		requireCopy(t, c, "long", "v")
		time.Sleep(time.Second)
		requireNone(t, c, "long")
	})
}

func TestWhatIsNotAStringIsNotKept(t *testing.T) {
	c := served(Config{})
	require.False(t, lead(t, c, "list").Store(nil, noExpiry).Found())
	requireNone(t, c, "list")
	require.False(t, lead(t, c, "gone").Store([]byte("v"), missing).Found())
	copied, ok := c.Get("p:", "gone")
	require.True(t, ok)
	require.False(t, copied.Found())
}

func TestBytesBoundTheCopies(t *testing.T) {
	c := served(Config{Bytes: 1 << 20})
	for i := range 10_000 {
		lead(t, c, strconv.Itoa(i)).Store(make([]byte, 1000), noExpiry)
	}
	c.copies.CleanUp()
	require.LessOrEqual(t, c.Stats().Bytes, int64(1<<20))
	require.Greater(t, c.Stats().Entries, int64(500))
	lead(t, c, "large").Store(make([]byte, 1<<20), noExpiry)
	requireNone(t, c, "large")
}

// A million keys take no more memory than the bound and a tenth.
func TestAMillionKeysStayWithinTheBound(t *testing.T) {
	const bound = 64 << 20
	before := heap()
	c := served(Config{Bytes: bound})
	for i := range 1_000_000 {
		lead(t, c, strconv.Itoa(i)).Store(make([]byte, 100), noExpiry)
	}
	c.copies.CleanUp()
	taken := heap() - before
	t.Logf("%d entries take %d bytes of %d", c.Stats().Entries, taken, bound)
	require.LessOrEqual(t, taken, int64(bound+bound/10))
	require.Greater(t, c.Stats().Entries, int64(100_000))
	runtime.KeepAlive(c)
}

// heap returns the bytes of the heap that are in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// fake is a connection to a server that the test plays: it answers the commands of subscribe, and then
// PINGs only if answers is true.
type fake struct {
	redis.ConnWithTimeout // nil: the other methods are not called
	messages              chan any
	broken                chan struct{}
	silent                bool
	redirect              int64
	refusal               error
}

func newFake() *fake {
	return &fake{messages: make(chan any, 100), broken: make(chan struct{}), redirect: 7}
}

func (f *fake) Close() error { return nil }
func (f *fake) Flush() error { return nil }

func (f *fake) Send(cmd string, _ ...any) error {
	switch {
	case cmd == "SUBSCRIBE":
		f.messages <- []any{[]byte("subscribe"), []byte(channel), int64(1)}
	case !f.silent:
		f.messages <- []any{[]byte("pong"), []byte("")}
	}
	return nil
}

func (f *fake) DoWithTimeout(_ time.Duration, _ string, args ...any) (any, error) {
	switch args[0] {
	case "ID":
		return int64(7), f.refusal
	case "GETREDIR":
		return f.redirect, nil
	}
	return "OK", nil
}

func (f *fake) ReceiveWithTimeout(d time.Duration) (any, error) {
	select {
	case m := <-f.messages:
		return m, nil
	case <-f.broken:
		return nil, errors.New("broken")
	case <-time.After(d):
		return nil, errors.New("timeout")
	}
}

// tracked returns a Cache whose connections are those of the fakes, and then an error.
func tracked(t *testing.T, changed func(State, error), conns ...*fake) *Cache {
	c := New(Config{Bytes: 1 << 20, Changed: changed, Borrow: func(context.Context) (redis.Conn, error) {
		if len(conns) == 0 {
			return nil, errors.New("no more")
		}
		next := conns[0]
		conns = conns[1:]
		return next, nil
	}})
	t.Cleanup(c.Close)
	synctest.Wait()
	return c
}

func TestReportsAndFlushesRemoveCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := newFake()
		c := tracked(t, nil, conn)
		require.Equal(t, Live, c.State())
		for _, key := range []string{"a", "b"} {
			lead(t, c, key).Store([]byte("v"), noExpiry)
		}
		conn.messages <- []any{[]byte("message"), []byte(channel), []any{[]byte("p:a")}}
		synctest.Wait()
		requireNone(t, c, "a")
		requireCopy(t, c, "b", "v")
		conn.messages <- []any{[]byte("message"), []byte(channel), nil}
		synctest.Wait()
		requireNone(t, c, "b")
		require.Equal(t, int64(1), c.Stats().Invalidations)
		time.Sleep(time.Hour)
		require.Equal(t, Live, c.State())
	})
}

func TestTheLeaseCountsFromThePingBeforeTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := newFake()
		conn.silent = true
		c := tracked(t, nil, conn)
		began := c.now()
		time.Sleep(between) // the first PING
		synctest.Wait()
		conn.messages <- []any{[]byte("pong"), []byte("")}
		synctest.Wait()
		require.Equal(t, began+int64(Lease), c.until.Load())
		time.Sleep(between) // the second
		synctest.Wait()
		conn.messages <- []any{[]byte("pong"), []byte("")}
		synctest.Wait()
		require.Equal(t, began+int64(between)+int64(Lease), c.until.Load())
	})
}

func TestASilentConnectionServesNothingAfterTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := newFake()
		conn.silent = true
		c := tracked(t, nil, conn)
		lead(t, c, "k").Store([]byte("v"), noExpiry)
		for range 4 { // reports keep the connection alive, but extend no lease
			time.Sleep(Lease/4 - 1)
			requireCopy(t, c, "k", "v")
			conn.messages <- []any{[]byte("message"), []byte(channel), []any{[]byte("other")}}
		}
		time.Sleep(4 * time.Nanosecond)
		requireNone(t, c, "k")
		require.Equal(t, Down, c.State())
		f, _ := c.Begin("p:", "k")
		require.Nil(t, f)
	})
}

func TestALostConnectionDropsAllAndTheNextOneServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := newFake(), newFake()
		var states []State
		c := tracked(t, func(s State, _ error) { states = append(states, s) }, first, second)
		lead(t, c, "k").Store([]byte("v"), noExpiry)
		f := lead(t, c, "filling")
		close(first.broken)
		synctest.Wait()
		requireNone(t, c, "k")
		require.Zero(t, c.Stats().Entries)
		time.Sleep(firstRetry)
		synctest.Wait()
		requireNone(t, c, "k")
		f.Store([]byte("old"), noExpiry)
		requireNone(t, c, "filling")
		lead(t, c, "k").Store([]byte("v"), noExpiry)
		requireCopy(t, c, "k", "v")
		c.Close()
		requireNone(t, c, "k")
		require.Equal(t, []State{Live, Down, Live, Closed}, states)
	})
}

func TestAServerWithoutTrackingIsAskedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refusing, elsewhere := newFake(), newFake()
		refusing.refusal = redis.Error("ERR unknown subcommand 'ID'")
		elsewhere.redirect = 8
		causes := make(chan error, 10)
		c := tracked(t, func(_ State, err error) { causes <- err }, refusing, elsewhere, newFake())
		time.Sleep(time.Nanosecond) // discard reads
		synctest.Wait()
		require.Equal(t, Refused, c.State())
		require.Len(t, causes, 1)
		require.ErrorIs(t, <-causes, refusing.refusal)
		time.Sleep(afterRefusal/2 - 2)
		require.Equal(t, Refused, c.State())
		time.Sleep(2 * afterRefusal) // another connection reports, which is a refusal too
		synctest.Wait()
		require.Equal(t, Live, c.State())
		require.Len(t, causes, 1) // the second refusal is no change
		require.NoError(t, <-causes)
	})
}
