package pipeline

import (
	"sync/atomic"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/internal/resp"
	"github.com/rediscache/rediscache/internal/warm"
)

// farewells judges the error replies on connections of a pool that is not ours.
// Of a WarmPool's connections the store judges, which knows when each was
// dialled. The zero value is ready.
type farewells struct{ last atomic.Pointer[time.Time] }

// farewellEvery bounds the dials while new connections reach a server that gives
// the same answer, to 20 a second. Until then a connection goes on serving reads.
const farewellEvery = 50 * time.Millisecond

// ends reports whether c should not be lent again after the error reply answer:
// a new connection, to another server or with another password, may do better.
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
