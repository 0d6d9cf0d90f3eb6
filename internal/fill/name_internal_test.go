package fill

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
)

// pieces are the parts of the keys in the tests below.
var pieces = []string{"", "{", "}", "a", "+", suffix, suffix[:6], suffix[6:], "e", ":hhhhh"}

// slot returns the slot of a key in a Redis Cluster.
func slot(key string) uint16 { return crc(hashed([]byte(key))) % slots }

// words returns every concatenation of up to n pieces, each once.
func words(n int) []string {
	all := []string{""}
	for range n {
		for _, w := range slices.Clone(all) {
			for _, p := range pieces {
				all = append(all, w+p)
			}
		}
		slices.Sort(all)
		all = slices.Compact(all)
	}
	return all
}

// eachSplit calls f with every split of key into a prefix and the rest.
func eachSplit(full string, f func(prefix, key string)) {
	for i := range len(full) + 1 {
		f(full[:i], full[i:])
	}
}

func TestEveryKeyHasANameAndALeaseOfItsOwn(t *testing.T) {
	names := make(map[string]string)
	for _, full := range words(4) {
		stored := StoredName("", full)
		eachSplit(full, func(prefix, key string) {
			if prefix+StoredName(prefix, key) != stored {
				t.Errorf("%q and %q: %q", prefix, key, StoredName(prefix, key))
			}
		})
		lease := LeaseName("", stored)
		for _, name := range []string{stored, lease} {
			require.Empty(t, names[name], "%q is also that of %q", name, full)
			names[name] = "the key " + full
		}
		require.Equal(t, slot(stored), slot(lease), "%q", full)
		require.True(t, strings.HasPrefix(lease, full))
	}
	t.Log(len(names), "names")
}

func TestAKeyIsStoredUnderItsOwnNameUnlessThatLooksLikeALease(t *testing.T) {
	for key, want := range map[string]string{
		"": "", "a": "a", "e": "e", "lease": "lease", "a+": "a+", suffix + "a": suffix + "a",
		suffix: suffix + "+", "x" + suffix + "++": "x" + suffix + "+++", LeaseName("", "k"): LeaseName("", "k") + "+",
	} {
		require.Equal(t, want, StoredName("", key))
	}
	require.Equal(t, "+", StoredName("p"+suffix, ""))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		for _, key := range []string{"user:1", "name", "a+", "lease", ""} {
			if StoredName("p:", key) != key {
				t.Error(key)
			}
		}
	}))
}

func TestALeaseNameIsReadable(t *testing.T) {
	require.Regexp(t, `^p:user:1:[h-o]{5}:rediscache-lease$`, LeaseName("p:", "user:1"))
	require.Equal(t, "p:{user}:1:hhhhh:rediscache-lease", LeaseName("p:", "{user}:1"))
}

func TestLettersMakeEveryDifferenceOfTwoSlots(t *testing.T) {
	seen := make(map[uint16]bool)
	for _, code := range tables().codes {
		seen[code] = true
	}
	require.Len(t, seen, slots, "a missing code would be 0, the code of another difference")
}

func TestALeaseHasTheSlotOfItsKey(t *testing.T) {
	s := redistest.Start(t, "--cluster-enabled", "yes")
	for _, full := range append(words(2), "123456789", "\x00\xff\r\n", "{}a", "a{b}{c}", "{{a}}", strings.Repeat("long", 5000)) {
		want := s.Do("CLUSTER", "KEYSLOT", full)
		require.EqualValues(t, slot(full), want, "%q", full)
		require.Equal(t, want, s.Do("CLUSTER", "KEYSLOT", LeaseName("", full)), "%q", full)
	}
}

func FuzzName(f *testing.F) {
	f.Add("a{b", "c}d")
	f.Add(suffix, suffix+"+")
	f.Add("k", LeaseName("", "k"))
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, full := range []string{a, b, a + b} {
			stored := StoredName("", full)
			eachSplit(full, func(prefix, key string) { require.Equal(t, stored, prefix+StoredName(prefix, key)) })
			lease := LeaseName("", stored)
			require.Equal(t, slot(stored), slot(lease))
			require.Equal(t, stored, lease[:len(lease)-1-letters-len(suffix)])
			require.True(t, strings.HasSuffix(lease, suffix))
			require.False(t, strings.HasSuffix(stored, suffix))
		}
		require.Equal(t, a == b, StoredName("", a) == StoredName("", b))
		require.Equal(t, a == b, LeaseName("", StoredName("", a)) == LeaseName("", StoredName("", b)))
	})
}

func BenchmarkStored(b *testing.B) {
	for b.Loop() {
		StoredName("p:", "user:12345")
	}
}

func BenchmarkName(b *testing.B) {
	for b.Loop() {
		LeaseName("p:", "user:12345")
	}
}
