package systest_test

import (
	"context"
	"fmt"
	"net"
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

// failover is a primary behind a proxy, which stands for a DNS name, and the server that takes over.
type failover struct {
	old, next *redistest.Server
	name      *redistest.Proxy
}

func newFailover(t *testing.T) failover {
	old := poolServer(t)
	next := redistest.Start(t)
	return failover{old, next, redistest.NewProxy(t, old.Addr)}
}

// demote makes the old primary a replica, which closes no connection.
func (f failover) demote(t *testing.T) {
	host, port, err := net.SplitHostPort(f.next.Addr)
	require.NoError(t, err)
	f.old.Do("REPLICAOF", host, port)
}

// requireLeft waits until no connection of the test is left on the old primary.
func (f failover) requireLeft(t *testing.T) {
	t.Helper()
	eventuallyClients(t, f.old, 0)
}

// soonAfterFailover is how soon writes have to work: within a second, and as much for a slow machine.
const soonAfterFailover = 2 * time.Second

// maxFailoverDials is how many dials a pool may make in d while a failover lasts.
func maxFailoverDials(d time.Duration) int64 { return int64(20 * (1 + d/time.Second)) }

// When the first write is refused, the name already points to the new primary, and the pool is full of
// idle connections to the old primary.
func TestWritesWorkSoonAfterAFailoverThatClosesNoConnection(t *testing.T) {
	redistest.Long(t)
	for _, idle := range []int{11, 50, 200} {
		for _, conns := range []int{0, rediscache.DefaultPipelineConns} {
			t.Run(fmt.Sprintf("%d idle, %d lanes", idle, conns), func(t *testing.T) {
				f := newFailover(t)
				p := startPoolAt(t, f.old, "redis://"+f.name.Addr, sizes(10, max(idle, 50))...)
				requireReady(t, p)
				c := newCache(t, p, rediscache.WithPipelineConns(conns))
				require.NoError(t, c.Set(t.Context(), "k", []byte("v"), 0))
				giveBack(t, borrowMany(t, p, idle)...)
				f.demote(t)
				f.name.Redirect(f.next.Addr)
				before, began := p.Stats().Dials, time.Now()
				for c.Set(t.Context(), "k", []byte("v"), 0) != nil {
					require.Less(t, time.Since(began), 10*time.Second)
				}
				took := time.Since(began)
				t.Logf("writes worked again after %v", took)
				require.Less(t, took, soonAfterFailover)
				f.requireLeft(t)
				dials := p.Stats().Dials - before
				t.Logf("%d dials in %v", dials, time.Since(began))
				require.LessOrEqual(t, dials, maxFailoverDials(time.Since(began)))
				require.NoError(t, p.Ready(t.Context()))
			})
		}
	}
}

// The name still points to the old primary for a while: reads are served, and the pool dials slowly.
func TestAPoolWaitsForAFailoverWithoutChurn(t *testing.T) {
	redistest.Long(t)
	for name, opts := range map[string][]rediscache.PoolOption{
		"with a floor": sizes(10, 50), "of one connection": sizes(1, 1), "without a floor": sizes(0, 2), "all floor": sizes(50, 50),
	} {
		for _, conns := range []int{0, rediscache.DefaultPipelineConns} {
			t.Run(fmt.Sprintf("%s, %d lanes", name, conns), func(t *testing.T) {
				f := newFailover(t)
				p := startPoolAt(t, f.old, "redis://"+f.name.Addr, opts...)
				requireReady(t, p)
				c := newCache(t, p, rediscache.WithPipelineConns(conns))
				require.NoError(t, c.Set(t.Context(), "k", []byte("v"), 0))
				f.next.Do("SET", "k", "v") // which the old primary has once it is a replica
				f.demote(t)

				const lasts = time.Second
				before, began := p.Stats().Dials, time.Now()
				var refused, unread, written atomic.Int64
				ctx, stop := context.WithCancel(t.Context())
				var callers sync.WaitGroup
				defer callers.Wait()
				defer stop()
				for i := range 4 {
					callers.Go(func() {
						for ctx.Err() == nil {
							if i == 0 {
								count := &written
								if c.Set(ctx, "k", []byte("v"), 0) != nil {
									count = &refused
								}
								count.Add(1)
								continue
							}
							if _, err := c.Get(ctx, "k"); err != nil && ctx.Err() == nil {
								t.Logf("read: %v", err)
								unread.Add(1)
							}
						}
					})
				}
				redistest.Wait(t.Context(), lasts)
				redistest.Eventually(t, func() bool { return refused.Load() > 0 }, "a write is refused")
				dials := p.Stats().Dials - before
				t.Logf("%d dials, %d writes refused", dials, refused.Load())
				require.LessOrEqual(t, dials, maxFailoverDials(time.Since(began)))
				require.Zero(t, unread.Load(), "reads are served")

				f.name.Redirect(f.next.Addr)
				moved := time.Now()
				done := written.Load()
				redistest.Eventually(t, func() bool { return written.Load() > done }, "writes work")
				t.Logf("writes worked after %v", time.Since(moved))
				require.Less(t, time.Since(moved), soonAfterFailover)
				f.requireLeft(t)
			})
		}
	}
}

// After each error that condemns the server, the pool replaces the connections that were dialled before.
// The script acts as a name that points to another server after this error.
func TestAnAnswerThatCondemnsTheServerMovesThePool(t *testing.T) {
	for _, answer := range []string{
		"READONLY You can't write against a read only replica.", "MASTERDOWN Link with MASTER is down",
		"LOADING Redis is loading the dataset in memory", "NOAUTH Authentication required.",
	} {
		t.Run(strings.Fields(answer)[0], func(t *testing.T) {
			redistest.NoLeaks(t)
			const floor = 10
			var condemned atomic.Bool
			var last atomic.Int64 // connection of the old server
			var mu sync.Mutex
			onOld := map[int]bool{}
			script := redistest.NewScript(t, func(call redistest.Call) ([]byte, bool) {
				mu.Lock()
				defer mu.Unlock()
				if !condemned.Load() {
					onOld[call.Conn] = true
				} else if call.Name() == "SET" && onOld[call.Conn] {
					last.Add(1)
					return []byte("-" + answer + "\r\n"), false
				}
				return redistest.Default(call), false
			})
			p, err := rediscache.NewPool(script.URL(), sizes(floor, 50)...)
			require.NoError(t, err)
			defer p.Close()
			requireReady(t, p)
			condemned.Store(true)
			conn := borrowOne(t, p)
			require.ErrorContains(t, do(conn, "SET", "k", "v"), answer)
			giveBack(t, conn)
			redistest.Eventually(t, func() bool { return p.Stats().Closed.Broken == floor+1 && p.Stats().Idle == floor }, "all were replaced, with the spare one of the borrower")
			conns := borrowMany(t, p, floor)
			for _, conn := range conns {
				require.NoError(t, do(conn, "SET", "k", "v"))
			}
			giveBack(t, conns...)
			require.EqualValues(t, 1, last.Load())
		})
	}
}

// A shared redigo connection that only reads moves to the new primary too.
func TestABorrowerOfTheOldPrimaryKeepsItsConnectionUntilItReturnsIt(t *testing.T) {
	f := newFailover(t)
	p := startPoolAt(t, f.old, "redis://"+f.name.Addr, sizes(2, 10)...)
	requireReady(t, p)
	reader, writer := borrowOne(t, p), borrowOne(t, p)
	f.demote(t)
	f.name.Redirect(f.next.Addr)
	require.ErrorContains(t, do(writer, "SET", "k", "v"), "READONLY")
	giveBack(t, writer)
	redistest.Eventually(t, func() bool { return len(f.old.Clients(t.Name())) == 1 }, "the idle ones and the writer's have moved")
	_, err := redis.String(reader.Do("PING"))
	require.NoError(t, err)
	giveBack(t, reader)
	f.requireLeft(t)
}
