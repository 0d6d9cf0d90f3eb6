package pipeline

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhoeverCompletesABatchWritesIt(t *testing.T) {
	l := &lane{p: New(Config{Lanes: 1}), wire: &socketWire{}}
	enqueue := func() (write, gather bool, turn int) {
		t.Helper()
		ok, write, gather, turn := l.enqueue([]*Call{Read("PING", 0, Status)})
		require.True(t, ok)
		return write, gather, turn
	}
	refuse := func(n int) {
		t.Helper()
		for range n {
			write, _, _ := enqueue()
			require.False(t, write, "another is the writer")
		}
	}
	write, gather, first := enqueue()
	require.True(t, write)
	require.True(t, gather, "the first waits for others")
	refuse(minBatch - 2)
	write, gather, second := enqueue()
	require.True(t, write, "that completes the batch")
	require.False(t, gather)
	refuse(maxBatch)

	require.Zero(t, l.write(nil, true, first), "it has lost its turn")
	refuse(1)
	wire, mine := l.claim(second)
	require.Len(t, mine, minBatch+maxBatch+1)
	refuse(maxBatch) // they come while it writes
	require.True(t, l.flushed(wire, mine, false, nil), "it goes on, and waits for others")
	write, gather, third := enqueue()
	require.True(t, write)
	require.False(t, gather)

	_, mine = l.claim(second)
	require.Empty(t, mine, "it has lost its turn as well")
	_, mine = l.claim(third)
	require.Len(t, mine, maxBatch+1)
	require.False(t, l.flushed(wire, mine, false, nil))
	_, gather, fourth := enqueue()
	require.True(t, gather)
	_, mine = l.claim(fourth)
	require.Len(t, mine, 1)
	refuse(maxBatch)
}

func TestABatchGrowsWithTheLoad(t *testing.T) {
	for load, want := range map[int64]int{0: minBatch, 8: minBatch, 100: 25, 256: maxBatch, maxQueued: maxBatch} {
		require.Equal(t, want, batchOf(load), load)
	}
}

// One that is tried again keeps its time, and comes behind younger ones.
func TestATimeoutEndsACallThatIsBehindYoungerOnes(t *testing.T) {
	p := New(Config{Lanes: 1, Timeout: tick})
	l := &lane{p: p}
	young, old := Read("PING", 0, Status), Read("PING", 0, Status)
	old.since = 1
	p.clock.Store(p.timeoutTicks)
	ok, _, _, _ := l.enqueue([]*Call{young, old})
	require.True(t, ok)
	l.tick(1 + p.timeoutTicks)
	require.True(t, old.in(unlinked))
	require.True(t, young.in(queued))
}

// No fault of a network shows this: on one machine a batch is rarely written in part.
func TestACallWasSentIfItsLastByteWas(t *testing.T) {
	const size = 27
	for _, broken := range []struct {
		wire wire
		sent int // calls of three
	}{
		{&socketWire{sent: 0}, 0},
		{&socketWire{sent: size - 1}, 0},
		{&socketWire{sent: size}, 1},
		{&socketWire{sent: 3*size - 1}, 2},
		{&redigoWire{}, 3}, // it cannot tell
	} {
		l := &lane{p: New(Config{Lanes: 1}), writing: true}
		var calls []*Call
		var mine []entry
		for range 3 {
			c := Write("SET", 2, Status).String("k").String("v")
			e := c.queue(1)
			require.True(t, e.move(queued, claimed))
			require.Equal(t, size, e.size)
			calls, mine = append(calls, c), append(mine, e)
		}
		require.False(t, l.flushed(broken.wire, mine, false, io.ErrUnexpectedEOF))
		l.fail(io.ErrUnexpectedEOF)
		for i, c := range calls {
			<-c.done
			var lost *lostError
			require.ErrorAs(t, c.err, &lost)
			require.Equal(t, i < broken.sent, lost.sent, "%T, %d sent, call %d", broken.wire, broken.sent, i)
		}
	}
}
