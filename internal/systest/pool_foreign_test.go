package systest_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
)

// The pool accepts any reply to a PING, and ignores a refused client name: a proxy or an ACL may refuse both.
func TestAnyReplyToAPINGIsAccepted(t *testing.T) {
	redistest.Long(t)
	for name, answer := range map[string]string{
		"unknown": "-ERR unknown command 'PING', with args beginning with:", "proxy": "-unsupported command",
		"denied":    "-NOPERM this user has no permissions to run the 'ping' command",
		"disk":      "-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
		"busy":      "-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
		"a new one": "-WHATEVER may be answered", "bulk": "$4\r\nPONG",
	} {
		t.Run(name, func(t *testing.T) {
			redistest.NoLeaks(t)
			script := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
				switch c.Name() {
				case "PING", "CLIENT":
					return []byte(answer + "\r\n"), false
				}
				return redistest.Default(c), false
			})
			p, err := rediscache.NewPool(script.URL(), sizes(2, 4,
				rediscache.WithClientName("cosmetic"), rediscache.WithHealthCheckAfter(50*time.Millisecond))...)
			require.NoError(t, err)
			defer p.Close()
			requireReady(t, p)
			redistest.Eventually(t, func() bool { return script.Count("PING") > 10 }, "the idle ones were probed")
			conn := borrowOne(t, p)
			require.NoError(t, do(conn, "SET", "k", "v"))
			giveBack(t, conn)
			require.LessOrEqual(t, script.Accepted(), 3)
			require.Zero(t, p.Stats().Closed.Broken)
		})
	}
}

// A server that does not serve returns its error to CLIENT SETNAME too, and then closes the connection.
func TestARefusalOfTheNameThatCondemnsTheServerFailsTheDial(t *testing.T) {
	redistest.NoLeaks(t)
	const refusal = "DENIED Redis is running in protected mode"
	script := redistest.NewScript(t, func(redistest.Call) ([]byte, bool) { return []byte("-" + refusal + "\r\n"), true })
	p, err := rediscache.NewPool(script.URL(), sizes(0, 1, rediscache.WithClientName("cosmetic"))...)
	require.NoError(t, err)
	defer p.Close()
	_, err = p.GetContext(t.Context())
	require.ErrorIs(t, err, rediscache.ErrUnavailable)
	require.ErrorContains(t, err, refusal)
}

// A client name in the dial options overrides WithClientName, and a server that refuses it fails the dial.
func TestTheNameAmongTheDialOptionsWins(t *testing.T) {
	s := poolServer(t, "--user", "nameless", "on", ">pw", "~*", "&*", "+@all", "-client")
	own := rediscache.WithDialOptions(redis.DialClientName(t.Name()))
	p := startPool(t, s, sizes(1, 1, rediscache.WithClientName("other"), own)...)
	requireReady(t, p)
	eventuallyClients(t, s, 1)
	require.Empty(t, s.Clients("other"))
	require.NoError(t, p.Close())

	url := strings.Replace(s.URL(), "redis://", "redis://nameless:pw@", 1)
	p = startPoolAt(t, s, url, sizes(1, 1, rediscache.WithClientName("other"))...)
	requireReady(t, p)
	require.NoError(t, p.Close())
	p = startPoolAt(t, s, url, sizes(1, 1, own)...)
	_, err := p.GetContext(t.Context())
	require.ErrorContains(t, err, "NOPERM")
}

// The user's dialer ends in every way that Go has. No slot is lost, and Close does not hang.
func TestADialerThatEndsItsGoroutineCostsNoSlot(t *testing.T) {
	s := poolServer(t)
	ways := map[string]func(){
		"Goexit": runtime.Goexit,
		"panic":  func() { panic("no dial today") },
	}
	for way, end := range ways {
		var healed atomic.Bool
		unlessHealed := func() {
			if !healed.Load() {
				end()
			}
		}
		places := map[string]rediscache.PoolOption{
			"credentials": rediscache.WithCredentials(func(context.Context) (string, string, error) {
				unlessHealed()
				return "", "", nil
			}),
			"dial func": rediscache.WithDialFunc(func(ctx context.Context) (redis.Conn, error) {
				unlessHealed()
				return redis.DialContext(ctx, "tcp", s.Addr)
			}),
			"dial option": rediscache.WithDialOptions(redis.DialContextFunc(func(ctx context.Context, network, addr string) (net.Conn, error) {
				unlessHealed()
				return new(net.Dialer).DialContext(ctx, network, addr)
			})),
			"PING": rediscache.WithDialFunc(func(ctx context.Context) (redis.Conn, error) {
				c, err := redis.DialContext(ctx, "tcp", s.Addr)
				return foreignConn{Conn: c, do: unlessHealed}, err
			}),
		}
		for place, option := range places {
			t.Run(way+" in "+place, func(t *testing.T) {
				healed.Store(false)
				p := startPool(t, s, sizes(2, 3, option)...)
				for range 5 { // more than there are slots
					_, err := p.GetContext(t.Context())
					require.ErrorIs(t, err, rediscache.ErrUnavailable)
				}
				healed.Store(true)
				requireReady(t, p)
				requireSimultaneous(t, p, 3)

				healed.Store(false)
				q, err := rediscache.NewPool(s.URL(), sizes(2, 3, option)...)
				require.NoError(t, err)
				require.NoError(t, q.Close(), "while it dials")
				require.Zero(t, q.Stats().Open)
			})
		}
	}
}

// foreignConn is a connection of the user, whose methods may do anything.
type foreignConn struct {
	redis.Conn
	do, err, close func()
}

func (c foreignConn) Do(cmd string, args ...any) (any, error) {
	if c.do != nil {
		c.do()
	}
	return c.Conn.Do(cmd, args...)
}

func (c foreignConn) Err() error {
	if c.err != nil {
		c.err()
	}
	return c.Conn.Err()
}

func (c foreignConn) Close() error {
	err := c.Conn.Close()
	if c.close != nil {
		c.close()
	}
	return err
}

// After the dial, a connection of the user panics or calls runtime.Goexit: in the PING of the janitor, in
// the clean-up of redigo, in Err, which the pool calls on its return, and in Close, in a goroutine of the
// pool.
func TestAConnectionThatEndsItsGoroutineCostsNoSlot(t *testing.T) {
	s := poolServer(t)
	for way, end := range map[string]func(){"Goexit": runtime.Goexit, "panic": func() { panic("no luck") }} {
		for place, spoil := range map[string]func(c *foreignConn, f func()){
			"Do":    func(c *foreignConn, f func()) { c.do = f },
			"Err":   func(c *foreignConn, f func()) { c.err = f },
			"Close": func(c *foreignConn, f func()) { c.close = f },
		} {
			t.Run(way+" in "+place, func(t *testing.T) {
				var spoilt atomic.Bool
				f := func() {
					if spoilt.Load() {
						end()
					}
				}
				p, err := rediscache.NewPool("", sizes(1, 3, rediscache.WithHealthCheckAfter(10*time.Millisecond),
					rediscache.WithDialFunc(func(ctx context.Context) (redis.Conn, error) {
						conn, err := redis.DialContext(ctx, "tcp", s.Addr)
						c := foreignConn{Conn: conn}
						spoil(&c, f)
						return c, err
					}))...)
				require.NoError(t, err)
				defer p.Close()
				requireReady(t, p)
				conns := borrowMany(t, p, 3)
				require.NoError(t, conns[0].Send("PING"))
				spoilt.Store(true)
				for _, conn := range conns {
					ended := make(chan struct{})
					go func() {
						defer close(ended)
						defer func() { _ = recover() }()
						_ = conn.Send("QUIT") // to have it closed
						_ = conn.Close()
					}()
					<-ended
				}
				if place == "Do" { // the janitor's
					conn, err := p.GetContext(t.Context())
					if err == nil {
						giveBack(t, conn)
					}
					redistest.Eventually(t, func() bool { return p.Stats().Closed.Broken > 0 || p.Stats().DialFailures > 0 }, "it failed")
				}
				spoilt.Store(false)
				requireReady(t, p)
				requireSimultaneous(t, p, 3)
				spoilt.Store(true)
				require.NoError(t, p.Close())
			})
		}
	}
}

// A connection with a hidden socket must answer a PING before it is lent.
func TestADeadConnectionWhoseSocketIsHiddenIsNotLent(t *testing.T) {
	s := poolServer(t)
	for name, option := range map[string]rediscache.PoolOption{
		"dial func": rediscache.WithDialFunc(func(ctx context.Context) (redis.Conn, error) {
			return redis.DialContext(ctx, "tcp", s.Addr, redis.DialClientName("hidden"))
		}),
		"dial option": rediscache.WithDialOptions(redis.DialNetDial(net.Dial)),
	} {
		t.Run(name, func(t *testing.T) {
			p := startPool(t, s, sizes(5, 5, rediscache.WithHealthCheckAfter(time.Hour), option)...)
			requireReady(t, p)
			for range 3 {
				redistest.Wait(t.Context(), 150*time.Millisecond) // a tenth of a second without use
				s.KillClients()
				requireSimultaneous(t, p, 5)
			}
		})
	}
}

// A busy connection with a hidden socket gets no PING before each loan.
func TestABusyConnectionWhoseSocketIsHiddenCostsNoPING(t *testing.T) {
	redistest.NoLeaks(t)
	script := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) { return redistest.Default(c), false })
	p, err := rediscache.NewPool(script.URL(), sizes(1, 1, rediscache.WithDialOptions(redis.DialNetDial(net.Dial)))...)
	require.NoError(t, err)
	defer p.Close()
	requireReady(t, p)
	for range 1000 {
		conn := borrowOne(t, p)
		require.NoError(t, do(conn, "SET", "k", "v"))
		giveBack(t, conn)
	}
	require.Less(t, script.Count("PING"), 100)
}

func TestErrPoolExhaustedMatchesThatOfRedigo(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(1, 1)...)
	conn := borrowOne(t, p)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	for _, get := range []func(context.Context) (redis.Conn, error){p.GetContext, p.Redigo().GetContext} {
		_, err := get(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := p.GetContext(ctx)
	require.ErrorIs(t, err, rediscache.ErrPoolExhausted)
	require.ErrorIs(t, err, redis.ErrPoolExhausted)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, rediscache.ErrClosed, redis.ErrPoolExhausted)
	_, err = newCache(t, p, rediscache.WithPipelineConns(0), rediscache.WithTimeout(200*time.Millisecond)).Get(t.Context(), "k")
	require.ErrorIs(t, err, redis.ErrPoolExhausted)
}

// The store of throttled sends SELECT with each connection that it borrows.
func TestASelectOfThePoolsOwnDatabaseCostsNoConnection(t *testing.T) {
	s := poolServer(t)
	for name, of := range map[string]struct {
		path   string
		db     any
		option rediscache.PoolOption
	}{
		"default":     {"", 0, rediscache.PoolOption{}},
		"of the URL":  {"/3", "3", rediscache.PoolOption{}},
		"of a option": {"/3", 5, rediscache.WithDialOptions(redis.DialDatabase(5), redis.DialPassword(""))},
		"0 again":     {"/3", 0, rediscache.WithDialOptions(redis.DialDatabase(0))},
	} {
		t.Run(name, func(t *testing.T) {
			p := startPoolAt(t, s, s.URL()+of.path, sizes(2, 4, of.option)...)
			requireReady(t, p)
			r := p.Redigo()
			dials := p.Stats().Dials
			for range 2000 {
				conn := r.Get()
				require.NoError(t, do(conn, "SELECT", of.db))
				giveBack(t, conn)
			}
			require.LessOrEqual(t, p.Stats().Dials-dials, int64(1), "for the spare one")
			require.Zero(t, p.Stats().Closed.State)
			conn := r.Get()
			require.NoError(t, do(conn, "SELECT", 7))
			giveBack(t, conn)
			require.EqualValues(t, 1, p.Stats().Closed.State)
		})
	}
}

// QUIT makes the pool close a connection through any number of redigo pools, and is not even written.
func TestQUITDiscardsABorrowedConnection(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(1, 2)...)
	requireReady(t, p)
	inner := &redis.Pool{DialContext: p.GetContext}
	outer := &redis.Pool{DialContext: inner.GetContext}
	for i, get := range []func() redis.Conn{p.Get, p.Redigo().Get, inner.Get, outer.Get} {
		conn := get()
		id, err := redis.Int64(conn.Do("CLIENT", "ID"))
		require.NoError(t, err)
		require.NoError(t, conn.Send("QUIT"))
		giveBack(t, conn)
		redistest.Eventually(t, func() bool {
			for _, c := range s.Clients(t.Name()) {
				if c.ID == id {
					return false
				}
			}
			return true
		}, "it is closed")
		require.EqualValues(t, i+1, p.Stats().Closed.State)
	}
}

// A TestOnBorrow checks the role of the server after a failover that closed no connection, before any write.
func TestATestOnBorrowThatRejectsLeadsToAnotherConnection(t *testing.T) {
	redistest.Long(t)
	for _, withContext := range []bool{false, true} {
		t.Run(fmt.Sprintf("with a context: %v", withContext), func(t *testing.T) {
			f := newFailover(t)
			p := startPoolAt(t, f.old, "redis://"+f.name.Addr, sizes(3, 10)...)
			requireReady(t, p)
			r := p.Redigo()
			var lastUsed time.Time
			isMaster := func(c redis.Conn, t time.Time) error {
				lastUsed = t
				role, err := redis.Values(c.Do("ROLE"))
				if err == nil && string(role[0].([]byte)) != "master" {
					err = errors.New("no master")
				}
				return err
			}
			if withContext {
				r.TestOnBorrowContext = func(_ context.Context, c redis.Conn, t time.Time) error { return isMaster(c, t) }
			} else {
				r.TestOnBorrow = isMaster
			}
			began := time.Now()
			conn, err := r.GetContext(t.Context())
			require.NoError(t, err)
			require.NoError(t, do(conn, "SET", "k", "v"))
			giveBack(t, conn)
			require.WithinDuration(t, began, lastUsed, 5*time.Second)

			f.demote(t)
			dials, refused := p.Stats().Dials, time.Now()
			for range 20 {
				_, err = r.GetContext(t.Context())
				require.ErrorContains(t, err, "TestOnBorrow")
				require.ErrorContains(t, err, "no master")
			}
			require.LessOrEqual(t, p.Stats().Dials-dials, maxFailoverDials(time.Since(refused)))
			f.name.Redirect(f.next.Addr)
			redistest.Eventually(t, func() bool {
				conn, err := r.GetContext(t.Context())
				if err != nil {
					return false
				}
				require.NoError(t, do(conn, "SET", "k", "v"))
				giveBack(t, conn)
				return true
			}, "the new one is a master")
			f.requireLeft(t)
			require.Zero(t, p.Stats().InUse)
		})
	}
}

func TestATestOnBorrowThatPanicsCostsNoSlot(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(1, 1)...)
	r := p.Redigo()
	r.TestOnBorrow = func(redis.Conn, time.Time) error { panic("no luck") }
	for range 3 {
		require.Panics(t, func() { _ = r.Get() })
	}
	conn := borrowOne(t, p)
	require.NoError(t, do(conn, "PING"))
	giveBack(t, conn)
}

// A pool of Redigo has its own Close, its own bounds and its own counts.
func TestARedigoPoolIsOneOfManyOnAWarmPool(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(2, 5)...)
	requireReady(t, p)
	r, other := p.Redigo(), p.Redigo()
	r.MaxActive = 1
	conn := r.Get()
	require.NoError(t, do(conn, "WATCH", "k"))
	_, err := r.GetContext(t.Context())
	require.ErrorIs(t, err, redis.ErrPoolExhausted)
	require.Equal(t, 1, r.Stats().ActiveCount)
	require.Equal(t, 1, p.Stats().InUse)
	giveBack(t, conn)
	require.Zero(t, r.Stats().ActiveCount)
	require.NoError(t, r.Close())
	require.Error(t, r.Get().Err())
	giveBack(t, other.Get())
	requireSimultaneous(t, p, 5)
}
