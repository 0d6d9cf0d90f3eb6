package fill

import (
	"bytes"
	"strings"
	"sync"
)

// The name of a lease is the name of its key, a colon, five letters and a suffix:
//
//		user:1  ->  user:1:klnhj:rediscache-lease
//
//	 1. Every key has a lease of its own: the name without its last 23 bytes is the key.
//	 2. A key and its lease are in the same slot of a cluster. If the key has a hash tag, so has the
//	    name of the lease. Otherwise Redis hashes both names as a whole, because the letters and the
//	    suffix have no brace, and the letters are chosen so that both have the same slot.
//	 3. The name begins with the key, so an ACL rule for a prefix covers both, and Clear removes both.
//	 4. No key of a caller is stored under the name of a lease: see [StoredName].
const (
	suffix  = ":rediscache-lease"
	letters = 5
	letter  = 'h' // to 'o': the letters differ in three bits, which makes their effect on a CRC linear
	pad     = "+"
)

// StoredName returns the name under which a cache stores key, without prefix. That is key, unless
// prefix + key ends in the suffix of leases and any number of plus signs: then StoredName appends one
// more plus sign.
//
// So no stored name ends in the suffix itself. Two keys never share a name: StoredName appends a plus
// sign to every key that ends in the suffix and plus signs, so the number of plus signs still differs.
func StoredName(prefix, key string) string {
	if n := len(key); n > 0 && key[n-1] != suffix[len(suffix)-1] && key[n-1] != pad[0] {
		return key // nearly all keys
	}
	if IsLease(prefix, key) {
		return key + pad
	}
	return key
}

// IsLease reports whether prefix + key ends in the suffix of leases and any number of plus signs.
func IsLease(prefix, key string) bool {
	if key = strings.TrimRight(key, pad); key == "" {
		prefix = strings.TrimRight(prefix, pad)
	}
	if len(key) >= len(suffix) {
		return strings.HasSuffix(key, suffix)
	}
	return strings.HasSuffix(suffix, key) && strings.HasSuffix(prefix, suffix[:len(suffix)-len(key)])
}

// GroupName returns the name of the version of a group, without a prefix. No key of a caller is stored
// under it, see [StoredName], and no lease has it, because a g is none of the letters.
func GroupName(group string) string { return group + ":group" + suffix }

// LeaseName returns the name of the lease of prefix + key, including the prefix. key must be a result
// of [StoredName].
func LeaseName(prefix, key string) string {
	return string(AppendLease(make([]byte, 0, LeaseLen(prefix, key)), prefix, key))
}

// LeaseLen returns the length of LeaseName.
func LeaseLen(prefix, key string) int { return len(prefix) + len(key) + 1 + letters + len(suffix) }

// AppendLease appends LeaseName to b.
func AppendLease(b []byte, prefix, key string) []byte {
	at := len(b)
	b = append(append(b, prefix...), key...)
	full := b[at:]
	code := uint16(0)
	if len(hashed(full)) == len(full) {
		// The letters must cancel the effect that all bytes after the key have on the slot.
		sum := crc(full)
		code = tables().codes[(tail(sum)^sum)%slots]
	}
	b = append(b, ':')
	for range letters {
		b = append(b, letter+byte(code&7))
		code >>= 3
	}
	return append(b, suffix...)
}

// tail returns update(sum, ":"+zero+suffix). It uses tables, which works because a CRC is linear.
func tail(sum uint16) uint16 {
	t := tables()
	return t.high[sum>>8] ^ t.low[byte(sum)]
}

const zero = "hhhhh" // the letters of code 0

// slots is the number of slots of a Redis Cluster.
const slots = 16384

// hashed returns the part of a key that Redis hashes: the text between the first opening brace and
// the next closing brace, or the whole key if that text is empty or a brace is missing.
func hashed(key []byte) []byte {
	_, rest, _ := bytes.Cut(key, []byte("{"))
	if tag, _, ok := bytes.Cut(rest, []byte("}")); ok && len(tag) > 0 {
		return tag
	}
	return key
}

// slotTables are computed once.
type slotTables struct {
	// codes maps each difference of two slots to the code of the letters that cause it, three bits a
	// letter. This works because a CRC that begins with zero is linear: the CRC of two messages XORed is
	// the XOR of their CRCs.
	codes [slots]uint16
	// high and low map each byte of a CRC to its part of the CRC after the tail of a name.
	high, low [256]uint16
}

var tables = sync.OnceValue(func() *slotTables {
	t := new(slotTables)
	for code := range uint16(1) << (3 * letters) {
		sum := uint16(0)
		for i := range letters {
			sum = step(sum, byte(code>>(3*i)&7))
		}
		for range len(suffix) {
			sum = step(sum, 0)
		}
		t.codes[sum%slots] = code
	}
	const rest = ":" + zero + suffix
	for b := range uint16(256) {
		t.high[b] = update(b<<8, rest) ^ update(0, rest)
		t.low[b] = update(b, rest)
	}
	return t
})

func crc(s []byte) uint16 { return update(0, s) }

func update[T string | []byte](sum uint16, s T) uint16 {
	for i := range len(s) {
		sum = step(sum, s[i])
	}
	return sum
}

func step(sum uint16, b byte) uint16 { return sum<<8 ^ table[byte(sum>>8)^b] }

// table is the table of the CRC16 of Redis Cluster: polynomial x^16 + x^12 + x^5 + 1, highest bit
// first.
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
