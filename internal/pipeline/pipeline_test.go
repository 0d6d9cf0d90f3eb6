package pipeline_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// open makes a pipeline of lanes on a store for addr.
func open(t testing.TB, addr string, lanes int, timeout time.Duration) *pipeline.Pipeline {
	t.Helper()
	return openOn(t, leaseOf(t, addr, 10), lanes, timeout)
}

// openWarm is open for one lane and a connection to spare: a call that needs that does not wait
// for a dial, for which the lane might be wanted back.
func openWarm(t testing.TB, addr string, timeout time.Duration) *pipeline.Pipeline {
	t.Helper()
	return openOn(t, storeOf(t, addr, 10, 2, true), 1, timeout)
}

func openOn(
	t testing.TB, lease func(context.Context) (redis.Conn, error), lanes int, timeout time.Duration,
) *pipeline.Pipeline {
	t.Helper()
	p := pipeline.New(pipeline.Config{Borrow: lease, Lanes: lanes, Timeout: timeout, ReadTimeout: timeout})
	t.Cleanup(p.Close)
	return p
}

// leaseOf borrows from a store of at most n connections to addr.
func leaseOf(t testing.TB, addr string, n int) func(context.Context) (redis.Conn, error) {
	t.Helper()
	return storeOf(t, addr, n, 0, true)
}

// storeOf is leaseOf for as many spare connections, and plain ones or such as
// have to be read and written by redigo.
func storeOf(t testing.TB, addr string, n, spare int, plain bool) func(context.Context) (redis.Conn, error) {
	t.Helper()
	store := warm.New(warm.Config{
		MinIdle: spare, MaxActive: n, DialTimeout: time.Second, ReadTimeout: time.Second,
		Dial: func(ctx context.Context) (warm.Dialed, error) {
			raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
			if err != nil {
				return warm.Dialed{}, err
			}
			socket := warm.NewSocket(raw, nil)
			var stream warm.Stream
			if plain {
				stream = socket
			}
			return warm.Dialed{Conn: redis.NewConn(socket, 20*time.Second, 20*time.Second), Socket: socket, Stream: stream}, nil
		},
	})
	t.Cleanup(store.Close)
	if spare > 0 {
		_, err := store.Ready(t.Context())
		require.NoError(t, err)
	}
	return func(ctx context.Context) (redis.Conn, error) {
		c, err := store.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
}

func get(ctx context.Context, p *pipeline.Pipeline, key string) (resp.Reply, error) {
	return p.Do(ctx, read(key))
}

func read(key string) *pipeline.Call { return pipeline.Read("GET", 1, pipeline.Value).String(key) }

// bulk answers a GET with its key.
func bulk(key string) []byte { return fmt.Appendf(nil, "$%d\r\n%s\r\n", len(key), key) }

// A server that loads answers now and then. The call has an answer when it times out.
func TestARefusedCallThatTimesOutWrapsTheRefusal(t *testing.T) {
	redistest.NoLeaks(t)
	for _, lanes := range []int{1, 0} {
		var refused atomic.Bool
		s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
			switch {
			case c.Name() == "PING":
				return redistest.Default(c), false
			case refused.CompareAndSwap(false, true):
				return []byte("-LOADING Redis is loading the dataset in memory\r\n"), false
			}
			<-c.Done
			return nil, true
		})
		p := open(t, s.Addr, lanes, 200*time.Millisecond)
		_, err := get(t.Context(), p, "k")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, redis.Error("LOADING Redis is loading the dataset in memory"))
		s.HangUp()
	}
}

// What has broken one connection may have broken the other, which does not know it yet.
func TestAReadIsTriedAgainOnAConnectionThatCameAfterTheBreak(t *testing.T) {
	redistest.NoLeaks(t)
	asked, release := make(chan struct{}), make(chan struct{})
	var doomed atomic.Bool
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		switch {
		case c.Name() != "GET":
			return redistest.Default(c), false
		case doomed.Load() && c.Conn == 1:
			return nil, true
		case c.Args[1] == "held":
			close(asked)
			select {
			case <-release:
			case <-c.Done:
			}
		}
		return fmt.Appendf(nil, "$1\r\n%d\r\n", c.Conn), false
	})
	p := open(t, s.Addr, 2, 10*time.Second)
	p.Spread()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := get(t.Context(), p, "held"); err != nil {
			t.Errorf("held: %v", err)
		}
	})
	<-asked
	redistest.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		served, err := get(ctx, p, "k")
		return err == nil && string(served.Bytes) == "1"
	}, "the first lane has something to do, so there is a second")
	doomed.Store(true)
	served, err := get(t.Context(), p, "k") // on the second, which has less to do
	require.NoError(t, err)
	require.Equal(t, "2", string(served.Bytes))
	close(release)
	wg.Wait()
	served, err = get(t.Context(), p, "k")
	require.NoError(t, err)
	require.Equal(t, "2", string(served.Bytes), "nor is the first used again")
}

func TestALargeReplyHoldsUpNobody(t *testing.T) {
	redistest.NoLeaks(t)
	var large sync.Map // connections that have half of one to come
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if _, busy := large.Load(c.Conn); busy {
			<-c.Done
		}
		switch {
		case c.Name() != "GET":
			return redistest.Default(c), false
		case c.Args[1] == "large":
			large.Store(c.Conn, true)
			return append([]byte("$1048576\r\n"), make([]byte, 1<<19)...), false
		}
		return bulk(c.Args[1]), false
	})
	p := open(t, s.Addr, 2, 10*time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	small := func() error {
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := get(short, p, "small")
		return err
	}
	var wg sync.WaitGroup
	for lane := range 2 {
		wg.Go(func() {
			if _, err := get(ctx, p, "large"); !errors.Is(err, context.Canceled) {
				t.Errorf("large: %v", err)
			}
		})
		redistest.Eventually(t, func() bool {
			_, busy := large.Load(lane)
			return busy && small() == nil
		}, "a small one goes past %d large ones", lane+1)
	}
	for range 100 {
		_, err := get(t.Context(), p, "small") // which may have to dial
		require.NoError(t, err)
	}
	short, end := context.WithTimeout(t.Context(), 5*time.Second)
	defer end()
	_, errs := p.DoAll(short, read("a"), read("b"))
	require.NoError(t, errors.Join(errs...), "several go past them, too")
	cancel()
	wg.Wait()
	s.HangUp()
}

func TestACallThatWasBehindLargeRepliesTwiceHasAConnectionOfItsOwn(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" {
			return bulk(fmt.Sprint(c.Conn)), false
		}
		return redistest.Default(c), false
	})
	p := openWarm(t, s.Addr, 10*time.Second)
	on := func(calls ...*pipeline.Call) string {
		replies, errs := p.DoAll(t.Context(), calls...)
		require.NoError(t, errors.Join(errs...))
		return string(replies[0].Bytes)
	}
	lane := on(read("k"))
	require.Equal(t, lane, on(pipeline.Bounced(read("k"), 1)))
	require.NotEqual(t, lane, on(pipeline.Bounced(read("k"), 2)))
	require.NotEqual(t, lane, on(read("k"), pipeline.Bounced(read("k"), 2)))
	require.Equal(t, lane, on(read("k"), read("k")))
}

func TestAnErrorIsNoReasonToTakeALargeReplyForASmallOne(t *testing.T) {
	redistest.NoLeaks(t)
	var last atomic.Int64
	var silent, refusing atomic.Bool
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() != "GET" {
			return redistest.Default(c), false
		}
		last.Store(int64(c.Conn))
		if silent.Load() {
			<-c.Done
		}
		if refusing.Load() {
			return []byte("-ERR not now\r\n"), false
		}
		return bulk(strings.Repeat("x", 300<<10)), false
	})
	p := openWarm(t, s.Addr, 10*time.Second)
	_, err := get(t.Context(), p, "k")
	require.NoError(t, err)
	lane := last.Load()
	silent.Store(true)
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = get(short, p, "k")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	silent.Store(false)
	refusing.Store(true)
	_, err = get(t.Context(), p, "k")
	require.ErrorContains(t, err, "not now")
	require.NotEqual(t, lane, last.Load())
	refusing.Store(false)
	_, err = get(t.Context(), p, "k")
	require.NoError(t, err)
	require.NotEqual(t, lane, last.Load())
	s.HangUp()
}

// half is a server that answers each GET with its key. For "large" it has half of a large reply,
// once more is closed, and nothing for what comes after that on the first connection.
func half(t *testing.T) (s *redistest.Script, asked, more chan struct{}) {
	t.Helper()
	asked, more = make(chan struct{}), make(chan struct{})
	return redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		switch {
		case c.Name() != "GET":
			return redistest.Default(c), false
		case c.Args[1] == "large":
			close(asked)
			<-more
			return append([]byte("$1048576\r\n"), make([]byte, 1<<19)...), false
		case c.Conn == 0 && c.Args[1] != "warm up":
			<-c.Done
		}
		return bulk(c.Args[1]), false
	}), asked, more
}

func TestReadsBehindALargeReplyGoElsewhere(t *testing.T) {
	redistest.NoLeaks(t)
	s, asked, more := half(t)
	p := open(t, s.Addr, 2, 10*time.Second)
	_, err := get(t.Context(), p, "warm up")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var large, small sync.WaitGroup
	large.Go(func() { _, _ = get(ctx, p, "large") })
	<-asked
	const n = 20
	var served atomic.Int64
	for i := range n {
		small.Go(func() {
			key := fmt.Sprint("small", i)
			if reply, err := get(t.Context(), p, key); err != nil || string(reply.Bytes) != key {
				t.Errorf("%s: %q, %v", key, reply.Bytes, err)
			}
			served.Add(1)
		})
	}
	redistest.Eventually(t, func() bool {
		return p.Receiving() && p.Load()+int(served.Load()) == 1+n
	}, "they are in flight behind it, or served by the other lane")
	close(more)
	small.Wait()
	cancel()
	large.Wait()
	s.HangUp()
}

// It is written, and the writer has not said so yet, when the reply turns out to be large.
func TestAReadThatIsBeingWrittenBehindALargeReplyGoesElsewhereToo(t *testing.T) {
	redistest.NoLeaks(t)
	s, asked, more := half(t)
	p := open(t, s.Addr, 1, 20*time.Second)
	_, err := get(t.Context(), p, "warm up")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var large sync.WaitGroup
	large.Go(func() { _, _ = get(ctx, p, "large") })
	<-asked
	redistest.Eventually(t, p.Receiving, "the writer has left")
	p.AfterWrite(func() {
		close(more)
		redistest.Eventually(t, p.Slow, "it is large")
	})
	short, end := context.WithTimeout(t.Context(), 5*time.Second)
	defer end()
	_, err = get(short, p, "small")
	require.NoError(t, err)
	cancel()
	large.Wait()
	s.HangUp()
}

func TestACommandWithALargeReplyHasItsOwnConnectionTheNextTime(t *testing.T) {
	redistest.NoLeaks(t)
	var size, last atomic.Int64
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() != "GET" {
			return redistest.Default(c), false
		}
		last.Store(int64(c.Conn))
		return bulk(strings.Repeat("x", int(size.Load()))), false
	})
	p := openWarm(t, s.Addr, 5*time.Second)
	on := func(key string, n int) int64 {
		size.Store(int64(n))
		reply, err := get(t.Context(), p, key)
		require.NoError(t, err)
		require.Len(t, reply.Bytes, n)
		return last.Load()
	}
	const large = 256 << 10
	lane := on("k", 10)
	require.Equal(t, lane, on("k", large), "nobody knows that it is large")
	require.NotEqual(t, lane, on("k", large), "now it is known")
	require.NotEqual(t, lane, on("k", 10), "it is small again")
	require.Equal(t, lane, on("k", 10), "and that is known too")
	require.Equal(t, lane, on("other", 10))
}

func TestALargeValueGoesOnAConnectionOfItsOwn(t *testing.T) {
	redistest.NoLeaks(t)
	var on [2]atomic.Int64 // the connection of the last GET and of the last SET
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		switch c.Name() {
		case "GET":
			on[0].Store(int64(c.Conn))
		case "SET":
			on[1].Store(int64(c.Conn))
		}
		return redistest.Default(c), false
	})
	p := openWarm(t, s.Addr, 5*time.Second)
	for size, apart := range map[int]bool{100: false, 64 << 10: true} {
		_, err := get(t.Context(), p, "k")
		require.NoError(t, err)
		_, err = p.Do(t.Context(), pipeline.Write("SET", 2, pipeline.Status).Key("", "k").Value(make([]byte, size)))
		require.NoError(t, err)
		require.Equal(t, apart, on[0].Load() != on[1].Load(), "%d bytes", size)
	}
}

// A pool that has no second connection is not asked for one all the time.
func TestASecondConnectionIsForThePoolToSpare(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" {
			return bulk(c.Args[1]), false
		}
		return redistest.Default(c), false
	})
	one := &redis.Pool{MaxActive: 1, Dial: func() (redis.Conn, error) { return redis.Dial("tcp", s.Addr) }}
	defer one.Close()
	for name, lease := range map[string]func(context.Context) (redis.Conn, error){
		"a store": leaseOf(t, s.Addr, 1), "a pool that refuses": one.GetContext,
	} {
		t.Run(name, func(t *testing.T) {
			var leases atomic.Int64
			p := pipeline.New(pipeline.Config{
				Borrow: func(ctx context.Context) (redis.Conn, error) {
					leases.Add(1)
					return lease(ctx)
				},
				Lanes: 2, Timeout: 10 * time.Second, ReadTimeout: 10 * time.Second,
			})
			defer p.Close()
			const callers = 8
			var wg sync.WaitGroup
			until := time.Now().Add(300 * time.Millisecond)
			for range callers {
				wg.Go(func() {
					for time.Now().Before(until) {
						if _, err := get(t.Context(), p, "k"); err != nil {
							t.Errorf("%v", err)
						}
					}
				})
			}
			wg.Wait()
			require.LessOrEqual(t, leases.Load(), int64(2+callers), "each may have looked before it was known")
		})
	}
}

// Neither when there are more than one lane should have, nor when that ends and still has the
// connection that the next one would need.
func TestAConnectionThatThePoolDoesNotHaveFailsNoCall(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	var gets, leases atomic.Int64
	var pace time.Duration // changed while nobody is served
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		switch {
		case c.Name() != "GET":
			return redistest.Default(c), false
		case gets.Add(1)%100 == 0:
			return []byte("-READONLY You can't write against a read only replica.\r\n"), false // the lane ends
		}
		time.Sleep(pace)
		return bulk(c.Args[1]), false
	})
	for _, callers := range []int{8, 3000} {
		if pace = 0; callers == 8 {
			pace = time.Millisecond // a lane does not end at once
		}
		for _, waits := range []bool{false, true} {
			pool := &redis.Pool{MaxActive: 1, Wait: waits, Dial: func() (redis.Conn, error) { return redis.Dial("tcp", s.Addr) }}
			leases.Store(0)
			p := openOn(t, func(ctx context.Context) (redis.Conn, error) {
				leases.Add(1)
				return pool.GetContext(ctx)
			}, 2, 20*time.Second)
			var wg sync.WaitGroup
			until := time.Now().Add(500 * time.Millisecond)
			for range callers {
				wg.Go(func() {
					for time.Now().Before(until) {
						if _, err := get(t.Context(), p, "k"); err != nil {
							t.Errorf("%d callers: %v", callers, err)
							return
						}
					}
				})
			}
			wg.Wait()
			p.Close()
			require.NoError(t, pool.Close())
			require.Less(t, leases.Load(), int64(100))
		}
	}
}

func TestALaneThatEndsIsWaitedForWhereThePoolHasNoOtherConnection(t *testing.T) {
	redistest.NoLeaks(t)
	goOn := make(chan struct{})
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() != "GET" {
			return redistest.Default(c), false
		}
		if c.Args[1] == "slow" {
			<-goOn
		}
		return bulk(c.Args[1]), false
	})
	pool := &redis.Pool{MaxActive: 1, Dial: func() (redis.Conn, error) { return redis.Dial("tcp", s.Addr) }}
	defer pool.Close()
	p := openOn(t, pool.GetContext, 2, 20*time.Second)
	var wg sync.WaitGroup
	ask := func(key string) {
		wg.Go(func() {
			if _, err := get(t.Context(), p, key); err != nil {
				t.Errorf("%s: %v", key, err)
			}
		})
	}
	ask("slow")
	redistest.Eventually(t, func() bool { return s.Count("GET") == 1 }, "it is on the wire")
	p.Finish()
	for range 10 {
		ask("k")
	}
	redistest.Eventually(t, func() bool { return p.Load() == 1+10 }, "the calls wait for the next lane, which the pool refused")
	close(goOn)
	wg.Wait()
	p.Close()
}

// The connection is returned after the pool refused the call and before the call gets the refusal.
func TestACallThatThePoolRefusedIsServedByTheConnectionThatCameBack(t *testing.T) {
	redistest.NoLeaks(t)
	var hold atomic.Pointer[chan struct{}]
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if until := hold.Load(); until != nil && c.Name() == "GET" {
			<-*until
		}
		return redistest.Default(c), false
	})
	lease := leaseOf(t, s.Addr, 10)
	var leases atomic.Int64
	refused, heard := make(chan struct{}), make(chan struct{})
	p := openOn(t, func(ctx context.Context) (redis.Conn, error) {
		if leases.Add(1) == 2 {
			close(refused)
			<-heard
			return nil, errors.New("refused")
		}
		return lease(ctx)
	}, 2, 20*time.Second)
	slow := make(chan struct{})
	hold.Store(&slow)
	var wg sync.WaitGroup
	ask := func() {
		wg.Go(func() {
			if _, err := get(t.Context(), p, "k"); err != nil {
				t.Error(err)
			}
		})
	}
	ask()
	redistest.Eventually(t, func() bool { return s.Count("GET") == 1 }, "it is on the wire")
	p.Finish()
	hold.Store(nil)
	ask()
	<-refused
	close(slow)
	redistest.Eventually(t, func() bool { return p.Lanes() == 1 }, "the first lane has ended")
	close(heard)
	wg.Wait()
}

// That a lane could not be opened says nothing of another beside it.
func TestAnOutageThatIsOverHoldsBackNoSecondLane(t *testing.T) {
	redistest.NoLeaks(t)
	s, _, more := half(t)
	close(more)
	lease := leaseOf(t, s.Addr, 10)
	var down atomic.Bool
	down.Store(true)
	p := openOn(t, func(ctx context.Context) (redis.Conn, error) {
		if down.Load() {
			return nil, errors.New("down")
		}
		return lease(ctx)
	}, 2, 20*time.Second)
	_, err := get(t.Context(), p, "warm up")
	require.ErrorContains(t, err, "down")
	require.False(t, p.Refused())
	down.Store(false)
	_, err = get(t.Context(), p, "warm up")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var large sync.WaitGroup
	large.Go(func() { _, _ = get(ctx, p, "large") })
	redistest.Eventually(t, p.Slow, "it is arriving")
	short, end := context.WithTimeout(t.Context(), 5*time.Second)
	defer end()
	_, err = get(short, p, "small")
	require.NoError(t, err)
	cancel()
	large.Wait()
	s.HangUp()
}

// A lane ends behind a slow reply, so that nothing changes, and the pool has a connection by then.
func TestWhoWaitsAfterARefusalIsServedWhenThePoolHasAConnectionAgain(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		switch {
		case c.Name() != "GET":
			return redistest.Default(c), false
		case c.Args[1] == "slow":
			<-c.Done
		}
		return bulk(c.Args[1]), false
	})
	lease := leaseOf(t, s.Addr, 10)
	var leases atomic.Int64
	p := openOn(t, func(ctx context.Context) (redis.Conn, error) {
		if leases.Add(1) == 2 {
			return nil, errors.New("refused")
		}
		return lease(ctx)
	}, 2, 20*time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	var slow sync.WaitGroup
	slow.Go(func() { _, _ = get(ctx, p, "slow") })
	redistest.Eventually(t, func() bool { return s.Count("GET") == 1 }, "it is on the wire")
	p.Finish()
	short, end := context.WithTimeout(t.Context(), 10*time.Second)
	defer end()
	_, err := get(short, p, "k")
	require.NoError(t, err)
	cancel()
	slow.Wait()
	s.HangUp()
}

func TestTheTimeOfACallThatIsRefusedGoesOnWithoutALane(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	began := time.Now()
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		switch {
		case c.Name() != "GET":
			return redistest.Default(c), false
		case time.Since(began) < 700*time.Millisecond:
			return []byte("-MASTERDOWN Link with MASTER is down\r\n"), false // the lane ends, too
		}
		<-c.Done
		return nil, true
	})
	p := open(t, s.Addr, 2, time.Second)
	_, err := get(t.Context(), p, "k")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(began), 1500*time.Millisecond)
	s.HangUp()
}

func TestInFlightIsBounded(t *testing.T) {
	redistest.NoLeaks(t)
	const bound = 8192
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" {
			return nil, false
		}
		return redistest.Default(c), false
	})
	p := open(t, s.Addr, 1, 20*time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	const together = 512
	for range bound / together {
		wg.Go(func() {
			calls := make([]*pipeline.Call, together)
			for i := range calls {
				calls[i] = read("k")
			}
			if _, errs := p.DoAll(ctx, calls...); !errors.Is(errs[0], context.Canceled) {
				t.Errorf("get: %v", errs[0])
			}
		})
	}
	redistest.Eventually(t, func() bool { return s.Count("GET") == bound }, "as many as the bound are sent")
	for range 500 {
		wg.Go(func() {
			if _, err := get(ctx, p, "k"); !errors.Is(err, context.Canceled) {
				t.Errorf("get: %v", err)
			}
		})
	}
	redistest.Eventually(t, func() bool { return p.Waiting() == 500 }, "the rest wait")
	cancel()
	wg.Wait()
	require.Equal(t, bound, s.Count("GET"), "the rest waited, and left unsent")
	s.HangUp()
}

func TestACallWaitsForRoomAndGetsIt(t *testing.T) {
	redistest.NoLeaks(t)
	const bound = 8192
	// A lane without calls ends after a second, which makes room too. A caller that
	// waits for less time got its room from the replies. A slow machine may need several
	// attempts.
	for range 10 {
		release := make(chan struct{})
		s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
			if c.Name() != "GET" {
				return redistest.Default(c), false
			}
			if c.Args[1] == "first" {
				select {
				case <-release:
				case <-c.Done:
				}
			}
			return bulk(c.Args[1]), false
		})
		p := open(t, s.Addr, 1, 20*time.Second)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = get(t.Context(), p, "first") })
		redistest.Eventually(t, func() bool { return s.Count("GET") == 1 }, "the first is on the wire")
		for n := range bound / 512 {
			calls := make([]*pipeline.Call, min(512, bound-1-512*n))
			for i := range calls {
				calls[i] = read("k")
			}
			wg.Go(func() { _, _ = p.DoAll(t.Context(), calls...) })
		}
		redistest.Eventually(t, func() bool { return p.Load() == bound }, "the lane is full")
		waited := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
			defer cancel()
			_, err := get(ctx, p, "k")
			waited <- err
		}()
		redistest.Eventually(t, func() bool { return p.Waiting() == 1 || len(waited) > 0 }, "it waits")
		close(release)
		err := <-waited
		wg.Wait()
		if err == nil {
			return
		}
	}
	t.Error("no caller that waited got room")
}

func TestACancelledCallersReplyIsDropped(t *testing.T) {
	redistest.NoLeaks(t)
	release := make(chan struct{})
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() != "GET" {
			return redistest.Default(c), false
		}
		if c.Args[1] == "slow" {
			<-release
		}
		return bulk(c.Args[1]), false
	})
	p := open(t, s.Addr, 1, 10*time.Second)
	_, err := get(t.Context(), p, "warm up")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	left, answered := make(chan error), make(chan string)
	go func() { _, err := get(ctx, p, "slow"); left <- err }()
	redistest.Eventually(t, func() bool { return s.Count("GET") == 2 }, "it is on the wire")
	go func() {
		reply, _ := get(t.Context(), p, "next")
		answered <- string(reply.Bytes)
	}()
	cancel()
	require.ErrorIs(t, <-left, context.Canceled)
	close(release)
	require.Equal(t, "next", <-answered)
	require.Equal(t, 1, s.Accepted(), "it cost no connection")
}

func TestALoneCallerThatOthersJoinKeepsItsPlace(t *testing.T) {
	redistest.NoLeaks(t)
	release := make(chan struct{})
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		switch {
		case c.Name() != "GET":
			return redistest.Default(c), false
		case c.Args[1] == "lone":
			<-release
		}
		return bulk(c.Args[1]), false
	})
	p := open(t, s.Addr, 1, 10*time.Second)
	for range 5 {
		before := s.Count("GET")
		var wg sync.WaitGroup
		ask := func(key string) {
			wg.Go(func() {
				if reply, err := get(t.Context(), p, key); err != nil || string(reply.Bytes) != key {
					t.Errorf("%s: %q, %v", key, reply.Bytes, err)
				}
			})
		}
		ask("lone")
		redistest.Eventually(t, func() bool { return s.Count("GET") == before+1 }, "it is on the wire")
		for i := range 5 {
			ask(fmt.Sprint("other", i))
		}
		redistest.Eventually(t, func() bool { return p.Receiving() && p.Load() == 6 }, "the reader has taken over from it")
		release <- struct{}{}
		wg.Wait()
	}
}

// A batch that is large is the reader's before it is written, so its replies may
// all have been received when the writer goes on.
func TestTheReplyToACallThatTheReaderHasIsNobodyElses(t *testing.T) {
	redistest.NoLeaks(t)
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() != "GET" {
			return redistest.Default(c), false
		}
		return bulk(c.Args[1]), false
	})
	p := open(t, s.Addr, 1, 10*time.Second)
	asked := func(key string) {
		reply, err := get(t.Context(), p, key)
		require.NoError(t, err)
		require.Equal(t, key, string(reply.Bytes))
	}
	asked("first")
	asked("second")
	p.AfterWrite(func() { redistest.Eventually(t, p.Resting, "every reply was received") })
	long := strings.Repeat("x", 40<<10)
	replies, errs := p.DoAll(t.Context(), read("1"+long), read("2"+long))
	require.NoError(t, errors.Join(errs...))
	require.Equal(t, "1"+long, string(replies[0].Bytes))
	require.Equal(t, "2"+long, string(replies[1].Bytes))
	for i := range 4 {
		asked(fmt.Sprint("key", i))
	}
	require.Zero(t, p.Load())
}

// After a batch that callers shared the reader waits for bytes before there is a call.
func TestAReaderThatWaitsForBytesIsSentOffAndLooksAtWhatComes(t *testing.T) {
	redistest.Long(t)
	redistest.NoLeaks(t)
	var conn atomic.Int64 // that was asked last
	release := make(chan struct{})
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		conn.Store(int64(c.Conn))
		switch c.Name() {
		case "GET":
			return bulk(c.Args[1]), false
		case "SET":
			<-release
		}
		return redistest.Default(c), false
	})
	p := open(t, s.Addr, 1, 10*time.Second)
	share := func(begin func(i int) *pipeline.Call) (_ []resp.Reply, failed error) {
		var calls []*pipeline.Call
		for i := range 8 {
			calls = append(calls, begin(i))
		}
		replies, errs := p.DoAll(t.Context(), calls...)
		return replies, errors.Join(errs...)
	}
	shareGets := func() {
		t.Helper()
		replies, err := share(func(i int) *pipeline.Call { return pipeline.Read("GET", 1, pipeline.Value).Key("k", fmt.Sprint(i)) })
		require.NoError(t, err)
		for i, r := range replies {
			require.Equal(t, fmt.Sprint("k", i), string(r.Bytes))
		}
	}
	for range 200 { // a reply may arrive before the writer has handed its calls to the reader
		shareGets()
	}
	for range 3 {
		reply, err := get(t.Context(), p, "alone")
		require.NoError(t, err)
		require.Equal(t, "alone", string(reply.Bytes))
	}
	shareGets()
	first := conn.Load()
	require.Zero(t, first, "the first connection serves all of them")
	redistest.Eventually(t, func() bool { return p.Lanes() == 0 }, "it hands a lane that rests back")
	shareGets()
	require.Equal(t, first, conn.Load(), "and its connection is good")

	s.Push([]byte("+SURPRISE\r\n"))
	redistest.Eventually(t, func() bool { return p.Lanes() == 0 }, "nobody asked for that")
	shareGets()
	require.NotEqual(t, first, conn.Load())

	sets := make(chan error)
	go func() {
		_, err := share(func(int) *pipeline.Call { return pipeline.Write("SET", 2, pipeline.Status).Key("", "k").String("v") })
		sets <- err
	}()
	redistest.Eventually(t, func() bool { return s.Count("SET") > 0 }, "sets are under way")
	closed := make(chan struct{})
	go func() { p.Close(); close(closed) }()
	redistest.Eventually(t, p.Finishing, "the reader is sent off")
	close(release)
	require.NoError(t, <-sets, "and goes on with what is in flight")
	<-closed
}

func TestRedigosPanicBreaksOnlyTheLane(t *testing.T) {
	redistest.NoLeaks(t)
	var bad atomic.Bool
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" && bad.Load() {
			return fmt.Appendf(nil, "*%d\r\n$7\r\nnot you\r\n+OK\r\n", math.MaxInt), false
		}
		return redistest.Default(c), false
	})
	for _, lanes := range []int{0, 1} {
		pool := &redis.Pool{MaxIdle: 1, Dial: func() (redis.Conn, error) { return redis.Dial("tcp", s.Addr) }}
		p := pipeline.New(pipeline.Config{Borrow: pool.GetContext, Lanes: lanes, Timeout: time.Second, ReadTimeout: time.Second})
		bad.Store(true)
		_, err := get(t.Context(), p, "k")
		require.Error(t, err)
		bad.Store(false)
		_, err = get(t.Context(), p, "k")
		require.NoError(t, err, "nothing of it is left in the pool")
		p.Close()
		pool.Close()
	}
}

// FuzzLane answers with arbitrary bytes.
func FuzzLane(f *testing.F) {
	for _, seed := range []string{
		"$5\r\nhello\r\n", "$-1\r\n", "-ERR no\r\n", ":1\r\n", "*1\r\n$1\r\nx\r\n", "+OK\r\n+OK\r\n",
		"$9223372036854775807\r\n", "*1000000000\r\n", "$5\r\nhel", "", "\r\n", "-LOADING\r\n", "-NOAUTH\r\n",
		"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n", ">1\r\n:1\r\n", "_\r\n",
	} {
		f.Add([]byte(seed))
	}
	var answer atomic.Pointer[[]byte]
	s := redistest.NewScript(f, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" {
			return *answer.Load(), true
		}
		return redistest.Default(c), false
	})
	p := open(f, s.Addr, 1, time.Second)
	f.Fuzz(func(t *testing.T, b []byte) {
		answer.Store(&b)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		reply, err := get(t.Context(), p, "k")
		runtime.ReadMemStats(&after)
		if err == nil && reply.Kind == resp.Bulk && !bytes.Contains(b, reply.Bytes) {
			t.Errorf("%q became %q", b, reply.Bytes)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 16<<20 {
			t.Errorf("%d bytes allocated for %d", took, len(b))
		}
		if _, err := p.Do(t.Context(), pipeline.Read("PING", 0, pipeline.Status)); err != nil {
			t.Errorf("the lane was not replaced: %v", err)
		}
	})
}
