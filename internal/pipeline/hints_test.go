package pipeline_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/pipeline"
	"github.com/rediscache/rediscache/internal/redistest"
)

// Seven values of 50 kB hold up a lane as much as one value of 350 kB.
func TestTheSizeOfAnArrayIncludesItsElements(t *testing.T) {
	redistest.NoLeaks(t)
	s := newPoisoned(t, func(redistest.Call) bool { return false })
	s.answers = func(c redistest.Call) []byte {
		if c.Name() != "MGET" {
			return nil
		}
		one := append(append([]byte("$51200\r\n"), make([]byte, 50<<10)...), "\r\n"...)
		return append(fmt.Appendf(nil, "*%d\r\n", len(c.Args)-1), bytes.Repeat(one, len(c.Args)-1)...)
	}
	mget := func(n int) *pipeline.Call {
		c := pipeline.Read("MGET", n, pipeline.Values)
		for i := range n {
			c.String(fmt.Sprint("k", i))
		}
		return c
	}
	p := openWarm(t, s.Addr, 10*time.Second)
	for _, n := range []int{7, 1} {
		_, err := p.Do(t.Context(), mget(n))
		require.NoError(t, err)
	}
	s.tries(t, p, func() {
		for range 3 {
			_, err := p.Do(t.Context(), mget(7))
			require.NoError(t, err, "it does not wait for the lane")
			_, errs := p.DoAll(t.Context(), mget(7), mget(7))
			require.NoError(t, errors.Join(errs...), "nor with others")
		}
		requireOnLane(t, p, mget(1))
	})
}
