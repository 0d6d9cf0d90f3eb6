package pipeline_test

import (
	"context"
	"errors"
	"fmt"
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
)

// eachOfDo runs f on each kind of pipeline: with lanes on sockets, with lanes of redigo, and without
// lanes.
func eachOfDo(t *testing.T, addr string, timeout time.Duration, f func(t *testing.T, p *pipeline.Pipeline)) {
	t.Helper()
	t.Run("lanes", func(t *testing.T) { f(t, openWarm(t, addr, timeout)) })
	t.Run("lanes of redigo", func(t *testing.T) { f(t, openOn(t, storeOf(t, addr, 10, 2, false), 1, timeout)) })
	t.Run("a connection a call", func(t *testing.T) { f(t, open(t, addr, 0, timeout)) })
	t.Run("another's pool", func(t *testing.T) {
		pool := &redis.Pool{Dial: func() (redis.Conn, error) { return redis.Dial("tcp", addr) }}
		t.Cleanup(func() { _ = pool.Close() }) // never fails
		f(t, openOn(t, pool.GetContext, 0, timeout))
	})
}

func run(ctx context.Context, p *pipeline.Pipeline, first string, n int) (reply resp.Reply, refused, err error) {
	c := pipeline.Write("SET", 2, pipeline.Status).String("key").Value(make([]byte, n))
	_, reply, refused, err = p.DoRun(ctx, pipeline.Write("DEL", 1, pipeline.Count).String(first), c)
	return reply, refused, err
}

func TestTwoCommandsOfARunAreAnsweredTogether(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		eachOfDo(t, s.Addr, time.Second, func(t *testing.T, p *pipeline.Pipeline) {
			for _, size := range []int{0, 10, 100 << 10} { // the last has a connection of its own
				s.Do("SET", "first", "1")
				var wg sync.WaitGroup
				for range 20 { // neighbours
					wg.Go(func() {
						if got, err := get(t.Context(), p, "none"); got.Kind != resp.Nil || err != nil {
							t.Errorf("%v, %v", got, err)
						}
					})
				}
				reply, refused, err := run(t.Context(), p, "first", size)
				require.NoError(t, err)
				require.NoError(t, refused)
				require.Equal(t, "OK", reply.Text)
				wg.Wait()
				require.EqualValues(t, 0, s.Do("EXISTS", "first"))
				require.Len(t, s.Do("GET", "key"), size)
			}
			_, reply, refused, err := p.DoRun(t.Context(), pipeline.Write("INCR", 1, pipeline.Count).String("key"),
				pipeline.Write("DEL", 2, pipeline.Count).String("key").String("none"))
			require.NoError(t, err)
			require.ErrorContains(t, refused, "ERR value is not an integer")
			require.EqualValues(t, 1, reply.Int)
			before, reply, refused, err := p.DoRun(t.Context(), pipeline.Read("PTTL", 1, pipeline.Count).String("first"),
				pipeline.Write("PERSIST", 1, pipeline.Count).String("first"))
			require.NoError(t, errors.Join(refused, err))
			require.EqualValues(t, -2, before.Int)
			require.EqualValues(t, 0, reply.Int)
			_, _, refused, err = p.DoRun(t.Context(), pipeline.Write("DEL", 1, pipeline.Count).String("x"),
				pipeline.Write("INCR", 2, pipeline.Count).String("x").String("too many"))
			require.NoError(t, refused)
			require.ErrorContains(t, err, "ERR wrong number of arguments")
		})
	})
}

// The second reply may come late, whether a lone caller reads its replies itself or not.
func TestTheRepliesOfARunMayComeApart(t *testing.T) {
	for _, cut := range []int{1, 4, 5, 8} {
		more := make(chan struct{})
		s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
			switch c.Name() {
			case "PING":
				return []byte("+PONG\r\n"), false
			case "DEL":
				return []byte(":1\r\n+OK\r\n"[:cut]), false
			}
			select {
			case <-more:
			case <-c.Done:
			}
			return []byte(":1\r\n+OK\r\n"[cut:]), false
		})
		p := openWarm(t, s.Addr, 5*time.Second)
		done := make(chan struct{})
		go func() {
			defer close(done)
			reply, refused, err := run(t.Context(), p, "first", 1)
			if reply.Text != "OK" || refused != nil || err != nil {
				t.Errorf("%v, %v, %v", reply, refused, err)
			}
		}()
		redistest.Eventually(t, func() bool { return s.Count("SET") == 1 }, "it is under way")
		since := time.Now()
		redistest.Eventually(t, func() bool { return time.Since(since) > 50*time.Millisecond }, "the clock hands the read to the reader")
		close(more)
		<-done
	}
}

// A run with a missing reply may have been executed, even if the other reply has arrived.
func TestARunThatLosesItsConnectionIsUnknownAndNotRepeated(t *testing.T) {
	for _, reply := range []string{"", ":1\r\n", ":1\r\n+O", ":1\r\n:1\r\n", "+OK\r\n+OK\r\n"} {
		var sets atomic.Int64
		s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
			switch c.Name() {
			case "DEL":
				return nil, false
			case "SET":
				sets.Add(1)
				return []byte(reply), true
			}
			return redistest.Default(c), false
		})
		eachOfDo(t, s.Addr, time.Second, func(t *testing.T, p *pipeline.Pipeline) {
			before := sets.Load()
			_, _, err := run(t.Context(), p, "first", 1)
			require.ErrorIs(t, err, pipeline.ErrOutcomeUnknown)
			require.EqualValues(t, 1, sets.Load()-before)
		})
	}
}

func TestATalkIsSeveralRoundTripsOnOneConnection(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		eachOfDo(t, s.Addr, time.Second, func(t *testing.T, p *pipeline.Pipeline) {
			for _, interfere := range []bool{false, true} {
				s.Do("SET", "k", "1")
				var exec resp.Reply
				err := p.Talk(t.Context(), func(ask pipeline.Ask) error {
					replies, err := ask(pipeline.Read("WATCH", 1, pipeline.Status).String("k"), read("k"),
						pipeline.Read("MULTI", 0, pipeline.Status))
					if err != nil {
						return err
					}
					if interfere {
						s.Do("SET", "k", "3")
					}
					require.Equal(t, "1", string(replies[1].Bytes))
					replies, err = ask(pipeline.Write("SET", 2, pipeline.Status).String("k").String("2").Queued(), pipeline.Write("EXEC", 0, pipeline.Results))
					if err == nil {
						exec = replies[1]
					}
					return err
				})
				require.NoError(t, err)
				if interfere {
					require.Equal(t, resp.Nil, exec.Kind)
					require.Equal(t, []byte("3"), s.Do("GET", "k"))
				} else {
					require.Len(t, exec.Elems, 1)
					require.Equal(t, []byte("2"), s.Do("GET", "k"))
				}
			}
		})
	})
}

// A talk that fails may leave state on its connection.
func TestTheConnectionOfAFailedTalkIsNotLentAgain(t *testing.T) {
	s := redistest.Start(t)
	eachOfDo(t, s.Addr, time.Second, func(t *testing.T, p *pipeline.Pipeline) {
		err := p.Talk(t.Context(), func(ask pipeline.Ask) error {
			_, err := ask(pipeline.Read("WATCH", 1, pipeline.Status).String("k"))
			require.NoError(t, err)
			return fmt.Errorf("a reason")
		})
		require.ErrorContains(t, err, "a reason")
		redistest.Eventually(t, func() bool {
			for _, c := range s.Clients("") {
				if c.Field["watch"] != "0" && c.Field["watch"] != "" || strings.Contains(c.Flags, "d") || c.Cmd == "watch" {
					return false
				}
			}
			return true
		}, "its connection is closed")
		require.NoError(t, p.Talk(t.Context(), func(ask pipeline.Ask) error {
			_, err := ask(read("k"))
			return err
		}))
	})
}

func TestATalkTimesOut(t *testing.T) {
	s := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		if c.Name() == "GET" {
			return nil, false
		}
		return redistest.Default(c), false
	})
	eachOfDo(t, s.Addr, 10*time.Second, func(t *testing.T, p *pipeline.Pipeline) {
		talk := func(ask pipeline.Ask) error {
			_, err := ask(read("k"))
			return err
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, p.Talk(ctx, talk), context.DeadlineExceeded)
		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, p.Talk(ctx, talk), context.Canceled)
		s.HangUp() // another's pool waits for that
	})
}
