// Package lease holds what leases are apart from the values that a load is about: the names of
// their keys, and the wait for a lease that another load holds.
package lease

import (
	"strings"
	"sync"
)

// The name of a lease is the name of the key it belongs to, a colon, five letters and a suffix:
//
//		user:1  ->  user:1:klnhj:rediscache-lease
//
//	 1. Every key has a lease, and two keys have two: cutting 23 bytes off the name returns the key.
//	 2. Both have one slot in a cluster. A key with a hash tag keeps the tag, as it is at the front.
//	    Any other key is hashed as a whole. So is its lease, as the letters and the suffix have no
//	    brace, and the letters are chosen so that the CRC16 comes out the same.
//	 3. The name begins with the key, so an access rule for a prefix covers both, and Clear removes both.
//	 4. No key that a caller names is a lease: see [Stored].
const (
	suffix  = ":rediscache-lease"
	letters = 5
	letter  = 'h' // to 'o': the letters differ in three bits, which makes their effect on a CRC linear
	pad     = "+"
)

// Stored returns the name under which a cache stores key below prefix, without the prefix. That is
// key, unless the whole name ends in the suffix of leases and any number of plus signs: such a key
// is stored with one more plus sign.
//
// So no stored name ends in the suffix, and two keys never share a name: one that was extended ends
// in the suffix and at least one plus sign, and any other key that ends like that was extended too.
func Stored(prefix, key string) string {
	if n := len(key); n > 0 && key[n-1] != suffix[len(suffix)-1] && key[n-1] != pad[0] {
		return key // nearly all keys
	}
	if Reserved(prefix, key) {
		return key + pad
	}
	return key
}

// Reserved reports whether prefix + key ends in the suffix of leases and any number of plus signs.
func Reserved(prefix, key string) bool {
	if key = strings.TrimRight(key, pad); key == "" {
		prefix = strings.TrimRight(prefix, pad)
	}
	if len(key) >= len(suffix) {
		return strings.HasSuffix(key, suffix)
	}
	return strings.HasSuffix(suffix, key) && strings.HasSuffix(prefix, suffix[:len(suffix)-len(key)])
}

// Name returns the name of the lease of prefix + key, which is a stored name. It is the whole name,
// with the prefix.
func Name(prefix, key string) string {
	n := len(prefix) + len(key)
	var b strings.Builder
	b.Grow(n + 1 + letters + len(suffix))
	b.WriteString(prefix)
	b.WriteString(key)
	full := b.String()
	b.WriteByte(':')
	code := uint16(0)
	if hashed(full) == full {
		// What the letters must change is the difference that everything behind the key makes.
		sum := crc(full)
		code = codes()[(update(sum, ":"+zero+suffix)^sum)%slots]
	}
	for range letters {
		b.WriteByte(letter + byte(code&7))
		code >>= 3
	}
	b.WriteString(suffix)
	return b.String()
}

const zero = "hhhhh" // the letters of code 0

// slots is how many a Redis Cluster has.
const slots = 16384

// Slot returns the slot of a key in a Redis Cluster.
func Slot(key string) uint16 { return crc(hashed(key)) % slots }

// hashed returns the part of a key that says its slot: what is between the first opening brace and
// the first closing one after it, or the whole key where nothing is, or one is missing.
func hashed(key string) string {
	_, after, opened := strings.Cut(key, "{")
	tag, _, closed := strings.Cut(after, "}")
	if !opened || !closed || tag == "" {
		return key
	}
	return tag
}

// codes has for each difference of two slots a code of letters, three bits each, that makes it. A
// CRC that begins with zero is linear: bits that change in a message change the CRC by the CRC of a
// message of these bits alone.
var codes = sync.OnceValue(func() *[slots]uint16 {
	var all [slots]uint16
	for code := range uint16(1) << (3 * letters) {
		sum := uint16(0)
		for i := range letters {
			sum = step(sum, byte(code>>(3*i)&7))
		}
		for range len(suffix) {
			sum = step(sum, 0)
		}
		all[sum%slots] = code
	}
	return &all
})

func crc(s string) uint16 { return update(0, s) }

func update(sum uint16, s string) uint16 {
	for i := range len(s) {
		sum = step(sum, s[i])
	}
	return sum
}

func step(sum uint16, b byte) uint16 { return sum<<8 ^ table[byte(sum>>8)^b] }

// table is that of CRC16 with the polynomial x^16 + x^12 + x^5 + 1, highest bit first, which Redis
// Cluster uses.
var table = func() (t [256]uint16) {
	for i := range t {
		sum := uint16(i) << 8
		for range 8 {
			carry := sum >> 15
			sum = sum<<1 ^ carry*0x1021
		}
		t[i] = sum
	}
	return t
}()
