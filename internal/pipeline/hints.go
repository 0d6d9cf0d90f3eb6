package pipeline

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/rediscache/rediscache/internal/resp"
)

// hints remembers which commands had a large reply the last time, by their
// hash, so that they do not hold up a lane again: each gets a connection of its
// own. A slot that two share forgets one of them, which costs no more than a
// wait.
type hints struct {
	any  atomic.Bool // before the first large reply there is nothing to look for
	slot [1024]atomic.Uint64
}

var hintSeed = maphash.MakeSeed()

func (h *hints) at(c *Call) (hash uint64, slot *atomic.Uint64) {
	hash = maphash.Bytes(hintSeed, c.req) | 1 // no hash is zero
	return hash, &h.slot[hash>>1%uint64(len(h.slot))]
}

func (h *hints) large(c *Call) bool {
	if !h.any.Load() {
		return false
	}
	hash, slot := h.at(c)
	return slot.Load() == hash
}

// learn keeps what the size of the reply says.
func (h *hints) learn(c *Call, reply resp.Reply) {
	if len(reply.Bytes) < largeReply {
		return
	}
	h.any.Store(true)
	hash, slot := h.at(c)
	slot.Store(hash)
}

// forget is for a reply that was not large after all.
func (h *hints) forget(c *Call, reply resp.Reply) {
	if len(reply.Bytes) >= largeReply || !h.any.Load() {
		return
	}
	hash, slot := h.at(c)
	slot.CompareAndSwap(hash, 0)
}
