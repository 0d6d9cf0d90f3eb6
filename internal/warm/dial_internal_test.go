package warm

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// One of several dials that were begun together fails: those who wait are still
// served by the others.
func TestOneFailedDialOfManyFailsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(1, prompt)
		dials := make(chan bool) // whether the next dial succeeds
		s := New(Config{
			MaxActive: 2, DialTimeout: time.Minute, ReadTimeout: time.Minute,
			Dial: func(ctx context.Context) (Dialed, error) {
				if !<-dials {
					return Dialed{}, errFake
				}
				return f.dial(ctx)
			},
		})
		defer s.Close()
		answers := make(chan error)
		for range 2 {
			go func() {
				c, err := s.Acquire(context.Background())
				if err == nil {
					err = c.Close()
				}
				answers <- err
			}()
		}
		synctest.Wait()
		dials <- false
		synctest.Wait()
		dials <- true
		require.NoError(t, <-answers)
		require.NoError(t, <-answers)
	})
}
