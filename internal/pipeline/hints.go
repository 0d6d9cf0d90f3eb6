package pipeline

import (
	"hash/maphash"
	"sync/atomic"

	"github.com/rediscache/rediscache/internal/resp"
)

// hints remembers which commands get a connection of their own the next time: a command with a large
// reply, because it holds up the replies behind it, and a command that may have broken its connection.
// Redis closes the connection if a reply exceeds client-output-buffer-limit, and some proxies close it
// after a command that they do not know.
//
// A command is identified by the hash of its bytes before the value, so every SET of a key is the same
// command. If a command breaks its connections with every key, no key is remembered in time, so its name
// is remembered too.
//
// A slot is cleared when its command gets a small reply, or when another command takes the slot. The
// forgotten command then costs no more than it did the first time.
type hints struct {
	any   atomic.Bool // false until there is a command to look for
	slot  [1024]atomic.Uint64
	named atomic.Bool       // false until there is a name to look for
	names [64]atomic.Uint64 // the hash of a name, with the number of its strikes in the low bits
}

// maxStrikes is how many commands of one name must break connections of their own, with no success in
// between, until the name is remembered. One or two are more likely a failure of the network.
const maxStrikes = 3

const strikeBits = 3

// directReply is the size of a reply from which its command has a connection of its own the next time. It is
// less than largeReply, from which a reply holds up those behind it so much that they go elsewhere.
const directReply = 64 << 10

var hintSeed = maphash.MakeSeed()

func (h *hints) at(c *Call) (hash uint64, slot *atomic.Uint64) {
	hash = maphash.Bytes(hintSeed, c.identity()) | 1 // zero: no command; even: doubted once, see doubt
	return hash, &h.slot[hash>>1%uint64(len(h.slot))]
}

func (h *hints) name(c *Call) (hash uint64, slot *atomic.Uint64) {
	hash = maphash.String(hintSeed, c.name) >> strikeBits << strikeBits
	return hash, &h.names[hash>>strikeBits%uint64(len(h.names))]
}

// direct reports whether the call should have a connection of its own.
func (h *hints) direct(c *Call) bool {
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

// learn remembers a command with a large reply.
func (h *hints) learn(c *Call, reply resp.Reply) {
	if reply.Size() >= directReply {
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

// forget is called when a command got a reply on a connection of its own. It clears the strikes of the
// name and, after a small reply, the hint of the command.
func (h *hints) forget(c *Call, reply resp.Reply) {
	if !h.any.Load() {
		return
	}
	hash, slot := h.name(c)
	if was := slot.Load(); was>>strikeBits<<strikeBits == hash {
		slot.CompareAndSwap(was, 0)
	}
	if reply.Kind != resp.Error && reply.Size() < directReply {
		hash, slot = h.at(c)
		slot.CompareAndSwap(hash, 0)
	}
}
