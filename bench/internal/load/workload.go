// Package load drives one client for a short time, with many callers or at a fixed
// rate, and measures what that cost.
package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/rediscache/rediscache/bench/client"
)

// ErrForeign means that a GET was answered with something that is not the value of
// its key.
var ErrForeign = errors.New("bench: a GET returned what is not its key's value")

// Mix is how many GETs there are to how many SETs.
type Mix struct{ Gets, Sets int }

// ParseMix reads a mix such as "9:1"; "1:0" is GET only.
func ParseMix(s string) (Mix, error) {
	gets, sets, ok := strings.Cut(s, ":")
	g, gerr := strconv.Atoi(gets)
	w, werr := strconv.Atoi(sets)
	if !ok || gerr != nil || werr != nil || g < 0 || w < 0 || g+w == 0 {
		return Mix{}, fmt.Errorf("bench: %q is not a mix such as 9:1", s)
	}
	return Mix{g, w}, nil
}

// String writes the mix as tables show it.
func (m Mix) String() string {
	if m.Sets == 0 {
		return "GET only"
	}
	return fmt.Sprintf("%d:%d", m.Gets, m.Sets)
}

// Keys returns n keys of one length.
func Keys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("bench:%06d", i)
	}
	return keys
}

// Fill writes key's value into dst, whose length is the value's: the key, as
// often as it fits. A reply that belongs to another key is thereby seen.
func Fill(dst []byte, key string) {
	n := copy(dst, key)
	for n > 0 && n < len(dst) {
		n += copy(dst[n:], dst[:n])
	}
}

// refill makes dst, which holds the value of another key of the same length,
// start and end with key's own bytes, which is what Check looks at. It costs
// little, so that a SET measures the client and not this function.
func refill(dst []byte, key string) {
	copy(dst, key)
	copy(tail(dst, key), key)
}

// Check says whether value is key's: of the right size, and the key at its
// start and in its last full copy.
func Check(value []byte, key string, size int) bool {
	if len(value) != size {
		return false
	}
	if size < len(key) {
		return string(value) == key[:size]
	}
	return string(value[:len(key)]) == key && string(tail(value, key)[:len(key)]) == key
}

// tail returns value from the last place on where a whole key fits.
func tail(value []byte, key string) []byte {
	if len(value) < len(key) {
		return value
	}
	return value[len(value)/len(key)*len(key)-len(key):]
}

// Value returns key's value.
func Value(key string, size int) []byte {
	v := make([]byte, size)
	Fill(v, key)
	return v
}

// Single is GETs and SETs of one key each. Callers pass context.Background, so that
// no client pays for watching a context.
func Single(c client.Client, keys []string, size int, mix Mix) Work {
	return func(caller int) Op {
		rng := rand.New(rand.NewPCG(uint64(caller), 0))
		buf := Value(keys[0], size) // what is SET, reused: no client may keep it
		return Op{Do: func() error {
			key := keys[rng.IntN(len(keys))]
			if rng.IntN(mix.Gets+mix.Sets) < mix.Sets {
				refill(buf, key)
				return c.Set(context.Background(), key, buf)
			}
			return get(c, key, size)
		}}
	}
}

// get checks the value.
func get(c client.Client, key string, size int) error {
	value, err := c.Get(context.Background(), key)
	if err == nil && !Check(value, key, size) {
		return ErrForeign
	}
	return err
}

// Arrivals is the same for an open loop: the i-th operation, the same for each client.
func Arrivals(c client.Client, keys []string, size int, mix Mix) func(i int) error {
	values := make([][]byte, len(keys))
	for i, key := range keys {
		values[i] = Value(key, size)
	}
	return func(i int) error {
		at := i * 7919 % len(keys) // a prime: neighbours in time are no neighbours in the list
		if i%(mix.Gets+mix.Sets) < mix.Sets {
			return c.Set(context.Background(), keys[at], values[at])
		}
		return get(c, keys[at], size)
	}
}
