// Package load drives one client with many callers for a short time and
// measures what that cost.
package load

import (
	"fmt"
	"strconv"
	"strings"
)

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
