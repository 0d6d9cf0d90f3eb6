package warm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheTimeThatAProcessStoodStillIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		due := time.Now()
		for _, c := range []struct{ late, more time.Duration }{
			{0, 0},
			{standstill, 0}, // a busy machine does that
			{standstill + 1, standstill + 1},
			{time.Second, time.Second},
			{time.Hour, time.Second},
		} {
			time.Sleep(time.Until(due.Add(c.late)))
			require.Equal(t, c.more, lost(due, time.Second), c.late)
		}
	})
}

func TestWithinEndsOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := Within(t.Context(), time.Second)
		defer cancel()
		time.Sleep(time.Second - 1)
		synctest.Wait()
		require.NoError(t, ctx.Err())
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		require.Equal(t, context.DeadlineExceeded, ctx.Err())

		ctx, cancel = Within(t.Context(), 0)
		defer cancel()
		require.Equal(t, context.DeadlineExceeded, ctx.Err(), "at once")
	})
}

func TestWithinEndsAsItsParentDoes(t *testing.T) {
	other := errors.New("other")
	parent, stop := context.WithCancelCause(t.Context())
	ctx, cancel := Within(parent, time.Hour)
	defer cancel()
	stop(other)
	require.Equal(t, context.Canceled, ctx.Err())

	parent, stop = context.WithCancelCause(t.Context())
	ctx, cancel = Within(parent, time.Hour)
	defer cancel()
	stop(fmt.Errorf("a budget: %w", context.DeadlineExceeded))
	require.Equal(t, context.Canceled, ctx.Err(), "for any cause")

	outer, cancel := Within(t.Context(), 0)
	defer cancel()
	parent, end := context.WithCancel(outer)
	defer end()
	ctx, cancel = Within(parent, time.Hour)
	defer cancel()
	require.Equal(t, parent.Err(), ctx.Err(), "the parent ended, not this context")

	parent, end = context.WithTimeout(t.Context(), 1)
	defer end()
	ctx, cancel = Within(parent, time.Hour)
	defer cancel()
	<-ctx.Done()
	require.Equal(t, context.DeadlineExceeded, ctx.Err())

	ctx, cancel = Within(t.Context(), time.Hour)
	cancel()
	cancel()
	require.Equal(t, context.Canceled, ctx.Err())
}

func TestAReadWhoseDeadlineComesLateLooksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer func() { _ = far.Close() }()
		s := NewSocket(near, nil)
		defer s.Shut()
		s.setTerse(false)
		var b [1]byte
		read := func(patience, late time.Duration) error {
			require.NoError(t, s.SetReadDeadline(time.Now().Add(patience)))
			time.Sleep(patience)
			synctest.Wait()
			s.due = s.due.Add(-late)
			_, err := s.Read(b[:])
			return err
		}
		go func() { _, _ = far.Write([]byte("ab")) }()
		require.ErrorIs(t, read(time.Second, 0), os.ErrDeadlineExceeded)
		require.ErrorIs(t, read(-time.Hour, 0), os.ErrDeadlineExceeded, "one that was over from the first")
		require.NoError(t, read(time.Second, time.Minute))
		require.NoError(t, read(time.Second, time.Minute))

		began := time.Now()
		require.ErrorIs(t, read(time.Second, time.Minute), os.ErrDeadlineExceeded, "there is nothing")
		require.Equal(t, 2*time.Second, time.Since(began))
	})
}
