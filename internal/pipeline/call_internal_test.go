package pipeline

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// After a suspension the clock ends reads while the reader receives their replies.
func TestACallThatTwoGoroutinesEndHasOneOutcome(t *testing.T) {
	for range 2000 {
		c := Read("GET", 1, Value).String("k")
		e := c.queue(1)
		require.True(t, e.move(queued, claimed))
		var wg sync.WaitGroup
		wg.Go(func() { e.end(claimed, resp.Reply{Kind: resp.Bulk}, nil) })
		wg.Go(func() { goElsewhere([]entry{e}, errSuspended) })
		<-c.done
		require.True(t, c.in(ended))
		require.Equal(t, c.err == nil, c.reply.Kind == resp.Bulk)
		c.release() // the next caller may get the call at once
		wg.Wait()
	}
}

// A caller may look at a lane that Close ends meanwhile.
func TestAClosedPipelineStartsNoClock(t *testing.T) {
	p := New(Config{Lanes: 1})
	p.Close()
	_, err := p.await(t.Context(), []*Call{Read("PING", 0, Status)})
	require.ErrorIs(t, err, warm.ErrClosed)
	require.False(t, p.ticking)
}
