package arrivals_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/internal/arrivals"
)

// TestMain lets the test binary be the clock.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == arrivals.Command {
		if err := arrivals.Main(os.Args[2:], os.Stdout); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func TestDueIsEvenAndDoesNotDrift(t *testing.T) {
	begin := time.Unix(0, 0)
	require.Equal(t, begin, arrivals.Due(begin, 0, 3))
	require.Equal(t, begin.Add(333_333_333), arrivals.Due(begin, 1, 3))
	require.Equal(t, begin.Add(1000*time.Second), arrivals.Due(begin, 3000, 3), "nothing is lost by rounding")
	require.Equal(t, begin.Add(20*time.Microsecond), arrivals.Due(begin, 1, 50_000))
	require.Equal(t, begin.Add(24*time.Hour), arrivals.Due(begin, 24*3600*50_000, 50_000), "no overflow")
}

func TestMainWritesEachArrivalWhenItIsDue(t *testing.T) {
	w := &timed{}
	require.NoError(t, arrivals.Main([]string{"-rate", "1000", "-n", "20"}, w))
	require.Equal(t, 20*8, w.Len())
	var first time.Time
	for i := range 20 {
		due := time.Unix(0, int64(binary.LittleEndian.Uint64(w.Next(8))))
		if i == 0 {
			first = due
		}
		require.Equal(t, arrivals.Due(first, i, 1000), due)
		require.False(t, w.at[i].Before(due.Add(-time.Millisecond)), "not before it is due")
	}

	require.Error(t, arrivals.Main([]string{"-n", "1"}, broken{}))
	require.Error(t, arrivals.Main([]string{"-rate", "0"}, w))
	require.Error(t, arrivals.Main([]string{"-what"}, w))
}

// timed remembers when each arrival was written.
type timed struct {
	bytes.Buffer
	at []time.Time
}

func (w *timed) Write(p []byte) (int, error) {
	for range len(p) / 8 {
		w.at = append(w.at, time.Now())
	}
	return w.Buffer.Write(p)
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }

func TestRunCallsForEachArrivalInOrderAndEndsEarly(t *testing.T) {
	next := 0
	var last time.Time
	require.NoError(t, arrivals.Run(10_000, 500, func(i int, due time.Time) bool {
		require.Equal(t, next, i)
		require.True(t, due.After(last))
		next, last = next+1, due
		return true
	}))
	require.Equal(t, 500, next)

	calls := 0
	require.NoError(t, arrivals.Run(1000, 1<<30, func(int, time.Time) bool { calls++; return calls < 3 }))
	require.Equal(t, 3, calls)

	require.Error(t, arrivals.Run(0, 5, func(int, time.Time) bool { return true }), "the child has failed")
}
