package warm

import (
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheTimeOfASuspensionIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		due := time.Now()
		for _, c := range []struct{ late, more time.Duration }{
			{0, 0},
			{lateTimer, 0}, // a busy machine does that
			{lateTimer + 1, lateTimer + 1},
			{time.Second, time.Second},
			{time.Hour, time.Second},
		} {
			time.Sleep(time.Until(due.Add(c.late)))
			require.Equal(t, c.more, lost(due, time.Second), c.late)
		}
	})
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
