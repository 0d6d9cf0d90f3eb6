package load_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/internal/load"
)

// fake answers each operation after a time, on the bubble's clock.
type fake struct {
	mu     sync.Mutex
	n      int
	values map[string][]byte

	after func(n int) time.Duration
	get   func(key string) ([]byte, error) // instead of values, where set
}

func (f *fake) wait() {
	f.mu.Lock()
	f.n++
	n := f.n
	f.mu.Unlock()
	time.Sleep(f.after(n))
}

func (f *fake) Get(_ context.Context, key string) ([]byte, error) {
	f.wait()
	if f.get != nil {
		return f.get(key)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.values[key], nil
}

func (f *fake) Set(_ context.Context, key string, value []byte) error {
	f.wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.values[key] = append([]byte(nil), value...)
	return nil
}

func (f *fake) Close() error { return nil }

const valueSize = 100

func filled(keys []string) map[string][]byte {
	values := map[string][]byte{}
	for _, key := range keys {
		v := make([]byte, valueSize)
		load.Fill(v, key)
		values[key] = v
	}
	return values
}

func aMillisecond(int) time.Duration { return time.Millisecond }

func run(t *testing.T, f *fake, keys []string, mix load.Mix, spec load.Spec) load.Sample {
	t.Helper()
	server := time.Duration(0)
	r := load.NewRunner(func() time.Duration { server += time.Second; return server })
	s, err := r.Run(t.Context(), load.Single(f, keys, valueSize, mix), spec)
	require.NoError(t, err)
	return s
}

func TestASampleCountsWhatTheCallersDid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := load.Keys(50)
		f := &fake{values: filled(keys), after: aMillisecond}
		s := run(t, f, keys, load.Mix{Gets: 1, Sets: 1}, load.Spec{Callers: 8, Warmup: 10 * time.Millisecond, Slice: time.Second})
		require.EqualValues(t, 8000, s.Ops, "one a millisecond for each caller")
		require.Zero(t, s.Errors, s.FirstError)
		require.InEpsilon(t, 8000, s.OpsPerSec, 0.01)
		require.InEpsilon(t, time.Millisecond, s.P50, 0.01)
		require.InEpsilon(t, time.Millisecond, s.P99, 0.01)
		require.Equal(t, time.Second/8000, s.ServerCPUPerOp)
		require.Positive(t, s.AllocsPerOp, "the fake copies what is set")
	})
}

func TestPercentilesAreThoseOfTheLatencies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := load.Keys(10)
		f := &fake{values: filled(keys), after: func(n int) time.Duration {
			if n%40 == 0 { // more than one in a hundred
				return 20 * time.Millisecond
			}
			return time.Millisecond
		}}
		s := run(t, f, keys, load.Mix{Gets: 1}, load.Spec{Callers: 1, Slice: 10 * time.Second})
		require.InEpsilon(t, time.Millisecond, s.P50, 0.01)
		require.InEpsilon(t, 20*time.Millisecond, s.P99, 0.01)
		require.InEpsilon(t, 20*time.Millisecond, s.P999, 0.01)
	})
}

func TestWhatPreparesAnOperationIsNotTimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pause := func(d time.Duration) func() error {
			return func() error { time.Sleep(d); return nil }
		}
		r := load.NewRunner(func() time.Duration { return 0 })
		s, err := r.Run(t.Context(), func(int) load.Op {
			return load.Op{Before: pause(9 * time.Millisecond), Do: pause(time.Millisecond)}
		}, load.Spec{Callers: 3, Slice: time.Second, Weight: 10})
		require.NoError(t, err)
		require.EqualValues(t, 3*100*10, s.Ops, "one in 10 ms for each caller, which counts as ten")
		require.InEpsilon(t, 3*1000*10, s.OpsPerSec, 0.01, "as if they had done nothing else")
		require.InEpsilon(t, time.Millisecond, s.P99, 0.01)
	})
}

func TestAFailedPreparationIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := load.NewRunner(func() time.Duration { return 0 })
		s, err := r.Run(t.Context(), func(int) load.Op {
			return load.Op{
				Before: func() error { return errors.New("no keys") },
				Do:     func() error { time.Sleep(time.Millisecond); return nil },
			}
		}, load.Spec{Callers: 1, Slice: 10 * time.Millisecond})
		require.NoError(t, err)
		require.EqualValues(t, 10, s.Errors)
		require.Equal(t, "no keys", s.FirstError)
	})
}

func TestAnOpenLoopAsksForEachKeyAlikeWhoeverAnswers(t *testing.T) {
	keys := load.Keys(50)
	ask := func() []string {
		var asked []string
		values := filled(keys)
		do := load.Arrivals(&fake{
			after: func(int) time.Duration { return 0 },
			get:   func(key string) ([]byte, error) { asked = append(asked, key); return values[key], nil },
		}, keys, valueSize, load.Mix{Gets: 1})
		for i := range 2 * len(keys) {
			require.NoError(t, do(i))
		}
		return asked
	}
	first := ask()
	require.Equal(t, first, ask())
	require.ElementsMatch(t, append(keys, keys...), first)
}

func TestAnotherKeysValueIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := load.Keys(2)
		values := filled(keys)
		f := &fake{after: aMillisecond, get: func(string) ([]byte, error) { return values[keys[1]], nil }}
		s := run(t, f, keys, load.Mix{Gets: 1}, load.Spec{Callers: 4, Slice: time.Second})
		require.Positive(t, s.Ops)
		require.Positive(t, s.Errors, "the value of keys[1] is not that of keys[0]")
		require.EqualValues(t, 4000, s.Ops+s.Errors)
		require.Contains(t, s.FirstError, "not its key's value")
	})
}

func TestAFailureIsCountedAndNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{after: aMillisecond, get: func(string) ([]byte, error) { return nil, errors.New("broken") }}
		s := run(t, f, load.Keys(1), load.Mix{Gets: 1}, load.Spec{Callers: 2, Slice: time.Second})
		require.Zero(t, s.Ops)
		require.EqualValues(t, 2000, s.Errors)
		require.Equal(t, "broken", s.FirstError)
		require.Zero(t, s.OpsPerSec, "failures are no throughput")
	})
}

func TestAnEndedContextEndsTheSlice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := load.Keys(1)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		begin := time.Now()
		r := load.NewRunner(func() time.Duration { return 0 })
		f := &fake{values: filled(keys), after: aMillisecond}
		_, err := r.Run(ctx, load.Single(f, keys, valueSize, load.Mix{Gets: 1}), load.Spec{Callers: 2, Slice: time.Hour})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Less(t, time.Since(begin), time.Second)
	})
}

func TestCheckKnowsAKeysValue(t *testing.T) {
	keys := load.Keys(3)
	for _, size := range []int{1, len(keys[0]) - 1, len(keys[0]), 100, 10_000} {
		value := make([]byte, size)
		load.Fill(value, keys[1])
		require.True(t, load.Check(value, keys[1], size), size)
		require.False(t, load.Check(value, keys[1], size+1), size)
		if size >= len(keys[0]) {
			require.False(t, load.Check(value, keys[2], size), size)
		}
	}
	long := make([]byte, 1000)
	load.Fill(long, keys[1])
	load.Fill(long[500:], keys[2]) // the tail of another reply
	require.False(t, load.Check(long, keys[1], 1000))
}

func TestParseMix(t *testing.T) {
	m, err := load.ParseMix("9:1")
	require.NoError(t, err)
	require.Equal(t, load.Mix{Gets: 9, Sets: 1}, m)
	require.Equal(t, "9:1", m.String())
	require.Equal(t, "GET only", load.Mix{Gets: 1}.String())
	for _, bad := range []string{"", "9", "0:0", "-1:2", "a:b"} {
		_, err := load.ParseMix(bad)
		require.Error(t, err, bad)
	}
}
