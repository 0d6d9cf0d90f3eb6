package rediscache_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
	"github.com/rediscache/rediscache/internal/systest"
)

// Another process holds the lease of b. The value of a is loaded. Its callers get it, and so does a
// caller that gives up waiting for b, with both orders of the keys.
func TestNoKeyWaitsForTheLeaseOfAnotherKey(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		for _, keys := range [][]string{{"a", "b"}, {"b", "a"}} {
			s.Flush()
			v, c := systest.Process(t, s, rediscache.Policy{Lease: time.Hour})
			s.Do("SET", rediscache.LeaseKey("", "b"), "of another process")
			begun, goOn := make(chan struct{}), make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var wg sync.WaitGroup
			wg.Go(func() {
				got, err := v.GetOrLoadMany(ctx, keys, func(_ context.Context, keys []string) (map[string]int, error) {
					if fmt.Sprint(keys) != "[a]" {
						t.Errorf("%q", keys)
					}
					close(begun)
					<-goOn
					return map[string]int{"a": 1}, nil
				})
				if !errors.Is(err, context.Canceled) || fmt.Sprint(got) != "map[a:1]" {
					t.Errorf("many: %v, %v", got, err)
				}
			})
			<-begun
			time.AfterFunc(50*time.Millisecond, func() { close(goOn) }) // the next caller has joined by then, or finds the value
			patience, end := context.WithTimeout(t.Context(), 5*time.Second)
			got, err := v.GetOrLoad(patience, "a", never[int](t))
			end()
			cancel()
			wg.Wait()
			require.NoError(t, err)
			require.Equal(t, 1, got)
			require.NotNil(t, s.Do("GET", rediscache.LeaseKey("", "b")), "nobody has waited for it")
			require.NoError(t, c.Close())
		}
	})
}

// As TestNoKeyWaitsForTheLeaseOfAnotherKey, but another caller of this process loads b.
func TestACancelledCallerGetsTheValuesThatAreReady(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		for _, p := range []rediscache.Policy{{}, {Lease: time.Hour}} {
			s.Flush()
			v, c := systest.Process(t, s, p)
			begun, goOn := make(chan struct{}), make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				_, _ = v.GetOrLoad(t.Context(), "b", func(context.Context) (int, error) { close(begun); <-goOn; return 2, nil })
			})
			<-begun
			for range 10 { // by chance alone half of them hold
				s.Do("DEL", "a", "c")
				ctx, cancel := context.WithCancel(t.Context())
				shared := c.Stats().Shared
				var joiner sync.WaitGroup
				got, err := v.GetOrLoadMany(ctx, []string{"b", "a", "c"}, func(context.Context, []string) (map[string]int, error) {
					joiner.Go(func() {
						defer cancel()
						if got, err := v.GetOrLoadMany(t.Context(), []string{"a", "c"}, nil); err != nil || len(got) != 2 {
							t.Errorf("%v, %v", got, err)
						}
						if c.Stats().Shared-shared < 2 {
							time.Sleep(100 * time.Millisecond) // it was late and found them, before their callers had them
						}
					})
					time.Sleep(10 * time.Millisecond) // it joins
					return map[string]int{"a": 1, "c": 3}, nil
				})
				joiner.Wait()
				if !errors.Is(err, context.Canceled) || fmt.Sprint(got) != "map[a:1 c:3]" {
					t.Errorf("%v, %v", got, err)
				}
			}
			close(goOn)
			wg.Wait()
		}
	})
}

// scrambler is JSON with a cipher that works in place, as some do. After Decode its input is junk.
type scrambler struct{ t *testing.T }

func scramble(data []byte) {
	for i := range data {
		data[i] ^= 0x5a
	}
}

func (scrambler) Encode(value int) ([]byte, error) {
	data, err := json.Marshal(value)
	scramble(data)
	return data, err
}

func (s scrambler) Decode(data []byte) (value int, err error) {
	scramble(data)
	if bytes.Equal(data, []byte("junk")) {
		return 0, errors.New("junk")
	}
	if err = json.Unmarshal(data, &value); err != nil {
		s.t.Errorf("decoded twice: %q", data)
	}
	copy(data, "0123456789")
	return value, err
}

func TestACodecMayDecodeInPlace(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		redistest.NoLeaks(t)
		stored := func(n int) []byte {
			data, err := scrambler{}.Encode(n)
			require.NoError(t, err)
			return data
		}
		junk := []byte("junk")
		scramble(junk)
		for name, p := range map[string]rediscache.Policy{
			"plain": {}, "lease": {Lease: time.Hour},
			"stale": {TTL: time.Hour, Stale: time.Hour},
			"all":   {TTL: time.Hour, Stale: time.Hour, Lease: time.Hour, Soft: time.Minute, Negative: time.Minute},
			"early": {TTL: time.Hour, Stale: time.Hour, Lease: time.Hour, Early: 1e9},
		} {
			t.Run(name, func(t *testing.T) {
				s.Flush()
				c := newCache(t, newPool(t, s.URL()), unhurried)
				v := newView[int](t, c, scrambler{t}, p)
				v.SetLoadTime(time.Second)
				asks := func(want int, load func(context.Context) (int, error)) {
					t.Helper()
					got, err := v.GetOrLoad(t.Context(), "k", load)
					require.NoError(t, err)
					require.Equal(t, want, got)
				}
				holds := func(n int) {
					t.Helper()
					redistest.Eventually(t, func() bool {
						held, _ := s.Do("GET", "k").([]byte)
						return bytes.Equal(held, stored(n)) && s.Do("EXISTS", rediscache.LeaseKey("", "k")) == int64(0)
					}, "it is stored")
				}
				asks(1111, returns(1111))
				holds(1111)
				s.Do("SET", "k", junk)
				asks(2222, returns(2222))
				holds(2222)
				if p.Early > 0 { // and so a load in the background
					asks(2222, returns(3333))
					holds(3333)
				}
				if p.Stale > 0 {
					s.Do("SET", "k", stored(4444), "PX", (30 * time.Minute).Milliseconds())
					var loads atomic.Int64
					for range 5 {
						asks(4444, func(context.Context) (int, error) { loads.Add(1); return 0, systest.ErrDatabase })
						redistest.Eventually(t, func() bool { return loads.Load() == 1 && s.Do("EXISTS", rediscache.LeaseKey("", "k")) == int64(0) },
							"once until the back-off is over")
					}
					v.SetBackoff(0)
					v = newView[int](t, c, scrambler{t}, p)
					got, err := v.GetOrLoad(t.Context(), "k", returns(5555))
					require.NoError(t, err)
					require.Contains(t, []int{4444, 5555}, got)
					holds(5555)
				}
				many, err := v.GetOrLoadMany(t.Context(), []string{"k", "l"}, func(_ context.Context, keys []string) (map[string]int, error) {
					return map[string]int{"k": 6666, "l": 6666}, nil
				})
				require.NoError(t, err)
				require.Len(t, many, 2)
				require.Zero(t, c.Stats().Refused)
			})
		}
	})
}

// A load in the background has no caller that could panic. Its panic must not end the process.
func TestAPanicOfALoadInTheBackgroundIsAnEvent(t *testing.T) {
	eachStale(t, func(t *testing.T, s *redistest.Server, _ *rediscache.Cache, p rediscache.Policy) {
		var failed atomic.Int64
		var where atomic.Value // which part of a load panics
		where.Store("")
		explode := func(part string) {
			if where.Load() == part {
				where.Store("")
				panic("of the " + part)
			}
		}
		c := newCache(t, newPool(t, s.URL()), rediscache.WithObserver(rediscache.ObserverFunc(func(_ context.Context, e rediscache.Event) {
			if e.Op == "load" {
				if e.Err != nil && strings.Contains(e.Err.Error(), "panicked or ended its goroutine") {
					failed.Add(1)
				}
				explode("observer")
			}
		})))
		for i, part := range []string{"load", "exit", "codec", "observer"} {
			v := newView[int](t, c, exploding{rediscache.JSON[int](), explode}, p)
			where.Store(part)
			got, err := v.GetOrLoad(t.Context(), "k", func(context.Context) (int, error) {
				explode("load")
				if part == "exit" {
					where.Store("")
					runtime.Goexit()
				}
				return 2, nil
			})
			require.NoError(t, err)
			require.Equal(t, 1, got)
			redistest.Eventually(t, func() bool { return c.Stats().Loads == int64(i+1) && where.Load() == "" }, "the %s panics", part)
			redistest.Eventually(t, func() bool { return s.Do("EXISTS", rediscache.LeaseKey("", "k")) == int64(0) }, "its lease is ended")
		}
		require.EqualValues(t, 2, failed.Load(), "an observer is given the panic and the exit of the load")
		require.Equal(t, []byte("1"), s.Do("GET", "k"))
		v := newView(t, c, rediscache.JSON[int](), p)
		_, err := v.GetOrLoad(t.Context(), "k", returns(2))
		require.NoError(t, err)
		redistest.Eventually(t, func() bool { return string(s.Do("GET", "k").([]byte)) == "2" }, "the next load is stored")
	})
}

// exploding panics in Encode.
type exploding struct {
	rediscache.Codec[int]
	explode func(part string)
}

func (e exploding) Encode(value int) ([]byte, error) {
	e.explode("codec")
	return e.Codec.Encode(value)
}
