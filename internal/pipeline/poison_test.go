package pipeline_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/redistest"
)

// poisoned is a server that closes the connection instead of answering a poison command. It answers
// a GET of "held" when gate is closed.
type poisoned struct {
	*redistest.Script
	answers  func(c redistest.Call) []byte // may be nil, and return nil
	harmless atomic.Bool                   // no command is poison any more
	gate     chan struct{}                 // a GET of "held" is answered once it is closed

	mu    sync.Mutex
	asked map[string]map[int]int // how often, by what and by the connection
}

func newPoisoned(t *testing.T, isPoison func(c redistest.Call) bool) *poisoned {
	t.Helper()
	s := &poisoned{asked: map[string]map[int]int{}}
	s.Script = redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		what := strings.Join(c.Args, " ")
		s.mu.Lock()
		if s.asked[what] == nil {
			s.asked[what] = map[int]int{}
		}
		s.asked[what][c.Conn]++
		gate := s.gate
		s.mu.Unlock()
		if s.answers != nil && s.answers(c) != nil {
			return s.answers(c), false
		}
		switch {
		case isPoison(c) && !s.harmless.Load():
			return nil, true
		case what == "GET held":
			select {
			case <-gate:
			case <-c.Done:
			}
			return bulk(c.Args[1]), false
		case c.Name() == "GET":
			return bulk(c.Args[1]), false
		case c.Name() == "PTTL":
			return []byte(":-1\r\n"), false
		}
		return redistest.Default(c), false
	})
	return s
}

// times returns how often the server received that command.
func (s *poisoned) times(what string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, times := range s.asked[what] {
		n += times
	}
	return n
}

// forget clears the counts of commands.
func (s *poisoned) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.asked)
}

// tries calls f during one Get, and returns how often the server receives that GET: once, unless f
// breaks the lane. Calls of f on the lane wait for the reply to the Get.
func (s *poisoned) tries(t *testing.T, p *pipeline.Pipeline, f func()) int {
	t.Helper()
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	s.mu.Lock()
	s.gate = gate
	delete(s.asked, "GET held")
	s.mu.Unlock()
	got := make(chan error, 1)
	go func() {
		_, err := get(t.Context(), p, "held")
		got <- err
	}()
	redistest.Eventually(t, func() bool { return s.times("GET held") == 1 }, "the call is on the wire")
	f()
	open()
	require.NoError(t, <-got)
	return s.times("GET held")
}

func getsPoison(c redistest.Call) bool { return c.Name() == "GET" && c.Args[1] == "poison" }

func TestAReadThatEndsItsConnectionFailsAloneAmongMany(t *testing.T) {
	redistest.NoLeaks(t)
	s := newPoisoned(t, getsPoison)
	p := openOn(t, storeOf(t, s.Addr, 10, 10, true), 1, 10*time.Second)
	const others = 1000
	var wg sync.WaitGroup
	s.tries(t, p, func() {
		for i := range others {
			wg.Go(func() {
				if _, err := get(t.Context(), p, fmt.Sprint(i)); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			})
			if i == others/2 {
				wg.Go(func() {
					if _, err := get(t.Context(), p, "poison"); err == nil {
						t.Error("the poison has a reply")
					}
				})
			}
		}
		redistest.Eventually(t, func() bool { return p.Load() == others+2 }, "all are in one lane")
	})
	wg.Wait()
}

func TestAReadThatEndsItsConnectionFailsAloneInOneDoAll(t *testing.T) {
	redistest.NoLeaks(t)
	s := newPoisoned(t, getsPoison)
	p := openOn(t, storeOf(t, s.Addr, 10, 10, true), 1, 10*time.Second)
	all := func() {
		calls := make([]*pipeline.Call, 512)
		for i := range calls {
			calls[i] = read(fmt.Sprint(i))
		}
		calls[300] = read("poison")
		replies, errs := p.DoAll(t.Context(), calls...)
		for i, err := range errs {
			if i == 300 {
				require.Error(t, err)
				continue
			}
			require.NoError(t, err, i)
			require.Equal(t, fmt.Sprint(i), string(replies[i].Bytes))
		}
	}
	all()
	require.LessOrEqual(t, s.times("GET poison"), 12, "one lane, a half each time, and the last two alone")
	s.forget()
	all()
	require.Equal(t, 2, s.times("GET poison"))
	for i := range 512 {
		require.LessOrEqual(t, s.times(fmt.Sprint("GET ", i)), 1, "%d: its connection did not break", i)
	}
	s.forget()
	for _, pair := range [][2]string{{"1", "poison"}, {"poison", "2"}} {
		_, _, err := p.DoPair(t.Context(), read(pair[0]), read(pair[1]))
		require.Error(t, err)
	}
	require.Equal(t, 4, s.times("GET poison"))
	require.Equal(t, 1, s.times("GET 1"))
}

func TestACommandThatEndsItsConnectionIsRememberedUntilItSucceeds(t *testing.T) {
	redistest.NoLeaks(t)
	value := 0
	for name, call := range map[string]func() *pipeline.Call{
		"a read":  func() *pipeline.Call { return read("poison") },
		"a write": func() *pipeline.Call { return pipeline.Write("DEL", 1, pipeline.Count).String("poison") },
		"a write, each time of another value": func() *pipeline.Call {
			value++
			return pipeline.Write("SET", 4, pipeline.Status).String("poison").
				Value(fmt.Append(nil, value)).String("PX").Int(1000)
		},
	} {
		s := newPoisoned(t, func(c redistest.Call) bool { return len(c.Args) > 1 && c.Args[1] == "poison" })
		p := openWarm(t, s.Addr, 10*time.Second)
		poison := func() {
			_, err := p.Do(t.Context(), call())
			require.Error(t, err, name)
		}
		poison()
		for range 3 {
			require.Equal(t, 1, s.tries(t, p, poison), "%s: it has a connection of its own", name)
		}
		s.harmless.Store(true)
		_, err := p.Do(t.Context(), call())
		require.NoError(t, err, name)
		s.tries(t, p, func() { requireOnLane(t, p, call()) })
	}
}

// requireOnLane requires that c waits on the lane, behind the call in flight.
func requireOnLane(t *testing.T, p *pipeline.Pipeline, c *pipeline.Call) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := p.Do(ctx, c)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// Some proxies close the connection after a command that they do not know, with any key.
func TestACommandThatAProxyDoesNotKnowIsKnownByItsName(t *testing.T) {
	redistest.NoLeaks(t)
	s := newPoisoned(t, func(c redistest.Call) bool { return c.Name() == "PTTL" })
	p := openWarm(t, s.Addr, 10*time.Second)
	ttl := func(key int) *pipeline.Call {
		return pipeline.Read("PTTL", 1, pipeline.Count).String(fmt.Sprint(key))
	}
	poison := func(key int) {
		_, err := p.Do(t.Context(), ttl(key))
		require.Error(t, err)
	}
	for key := range 3 {
		poison(key)
	}
	for key := range 10 {
		require.Equal(t, 1, s.tries(t, p, func() { poison(3 + key) }), "its name is known")
	}
	s.harmless.Store(true)
	_, err := p.Do(t.Context(), ttl(100))
	require.NoError(t, err)
	s.tries(t, p, func() { requireOnLane(t, p, ttl(101)) })
}

// A server that closes every connection must not cause hundreds of dials for one call.
func TestTheRetriesOfOneCallerBreakALimitedNumberOfConnections(t *testing.T) {
	redistest.NoLeaks(t)
	s := newPoisoned(t, func(c redistest.Call) bool { return c.Name() == "GET" })
	p := openWarm(t, s.Addr, 20*time.Second)
	calls := make([]*pipeline.Call, 512)
	for i := range calls {
		calls[i] = read(fmt.Sprint(i))
	}
	_, errs := p.DoAll(t.Context(), calls...)
	for _, err := range errs {
		require.Error(t, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.asked, "PING")
	broken := map[int]bool{}
	for _, times := range s.asked {
		for conn := range times {
			broken[conn] = true
		}
	}
	require.Less(t, len(broken), 40)
}
