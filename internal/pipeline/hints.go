package pipeline

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/rediscache/rediscache/internal/resp"
)

// hints remembers which commands get a connection of their own the next time: a command whose reply
// was large, as it would hold up the replies behind it, and a command whose connection broke, as it
// may be what broke it. Redis drops a client whose reply exceeds client-output-buffer-limit, and
// some proxies drop a client that sends a command that they do not know.
//
// A command is known by the hash of all that precedes its value, so every SET of a key is the same
// command. Where a whole kind of command breaks its connections, no key tells the next one from a
// harmless one, so its name is remembered as well.
//
// A slot is forgotten when its command gets a small reply, or when another command takes it. Both
// cost no more than the first time did.
type hints struct {
	any   atomic.Bool // false until there is a command to look for
	slot  [1024]atomic.Uint64
	named atomic.Bool       // false until there is a name to look for
	names [64]atomic.Uint64 // the hash of a name, with the number of its strikes in the low bits
}

// maxStrikes is how many commands of one name must break connections of their own, and none
// succeed on one, until the name is remembered. One or two are more likely the network's doing.
const maxStrikes = 3

const strikeBits = 3

var hintSeed = maphash.MakeSeed()

func (h *hints) at(c *Call) (hash uint64, slot *atomic.Uint64) {
	hash = maphash.Bytes(hintSeed, c.identity()) | 1 // zero is no command, an even hash is doubted once
	return hash, &h.slot[hash>>1%uint64(len(h.slot))]
}

func (h *hints) name(c *Call) (hash uint64, slot *atomic.Uint64) {
	hash = maphash.String(hintSeed, c.name) >> strikeBits << strikeBits
	return hash, &h.names[hash>>strikeBits%uint64(len(h.names))]
}

// apart reports whether the call should have a connection of its own.
func (h *hints) apart(c *Call) bool {
	if !h.any.Load() {
		return false
	}
	if hash, slot := h.at(c); slot.Load() == hash {
		return true
	}
	if !h.named.Load() {
		return false
	}
	hash, slot := h.name(c)
	return slot.Load() == hash|maxStrikes
}

// learn keeps what the size of a reply says.
func (h *hints) learn(c *Call, reply resp.Reply) {
	if reply.Size() >= largeReply {
		h.remember(c)
	}
}

// remember gives the command a connection of its own from now on.
func (h *hints) remember(c *Call) {
	h.any.Store(true)
	hash, slot := h.at(c)
	slot.Store(hash)
}

// doubt remembers the command if it is doubted for the second time.
func (h *hints) doubt(c *Call) {
	hash, slot := h.at(c)
	switch once := hash &^ 1; slot.Load() {
	case hash:
	case once:
		h.remember(c)
	default:
		slot.Store(once)
	}
}

// strike remembers a command that broke a connection of its own.
func (h *hints) strike(c *Call) {
	h.remember(c)
	hash, slot := h.name(c)
	was := slot.Load()
	n := uint64(1)
	if was>>strikeBits<<strikeBits == hash {
		n = min(was-hash+1, maxStrikes)
	}
	slot.CompareAndSwap(was, hash|n) // the loser of a race adds no strike
	if n == maxStrikes {
		h.named.Store(true)
	}
}

// forget is for a command that got a reply on a connection of its own.
func (h *hints) forget(c *Call, reply resp.Reply) {
	if !h.any.Load() {
		return
	}
	hash, slot := h.name(c)
	if was := slot.Load(); was>>strikeBits<<strikeBits == hash {
		slot.CompareAndSwap(was, 0)
	}
	if reply.Kind != resp.Error && reply.Size() < largeReply {
		hash, slot = h.at(c)
		slot.CompareAndSwap(hash, 0)
	}
}
