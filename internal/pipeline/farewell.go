package pipeline

import (
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// farewells decides which connections of a foreign pool to close after an error reply.
// For connections of a warm.Store the store decides, because it knows when each was
// dialled. The zero value is ready.
type farewells struct{ last atomic.Pointer[time.Time] }

// farewellEvery bounds the dials to 20 a second while new connections still get the same
// error. Between two dials the connections still serve reads.
const farewellEvery = 50 * time.Millisecond

// ends reports whether to close c after the error reply answer, because a new connection,
// to another server or with another password, may work.
func (f *farewells) ends(c redis.Conn, answer string) bool {
	if ours, ok := c.(*warm.Conn); ok {
		return ours.Condemn(answer)
	}
	meaning := resp.MeaningOf(answer)
	if !meaning.Has(resp.Condemns) || !meaning.Has(resp.Retry) {
		return meaning.Has(resp.Condemns)
	}
	now, last := time.Now(), f.last.Load()
	return (last == nil || now.Sub(*last) >= farewellEvery) && f.last.CompareAndSwap(last, &now)
}
