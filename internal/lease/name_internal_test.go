package lease

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
)

// pieces are the parts of the keys in the tests below.
var pieces = []string{"", "{", "}", "a", "+", suffix, suffix[:6], suffix[6:], "e", ":hhhhh"}

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
		stored := Stored("", full)
		eachSplit(full, func(prefix, key string) {
			if prefix+Stored(prefix, key) != stored {
				t.Errorf("%q and %q: %q", prefix, key, Stored(prefix, key))
			}
		})
		lease := Name("", stored)
		for _, name := range []string{stored, lease} {
			require.Empty(t, names[name], "%q is also that of %q", name, full)
			names[name] = "the key " + full
		}
		require.Equal(t, Slot(stored), Slot(lease), "%q", full)
		require.True(t, strings.HasPrefix(lease, full))
	}
	t.Log(len(names), "names")
}

func TestAKeyIsStoredUnderItsOwnNameUnlessThatLooksLikeALease(t *testing.T) {
	for key, want := range map[string]string{
		"": "", "a": "a", "e": "e", "lease": "lease", "a+": "a+", suffix + "a": suffix + "a",
		suffix: suffix + "+", "x" + suffix + "++": "x" + suffix + "+++", Name("", "k"): Name("", "k") + "+",
	} {
		require.Equal(t, want, Stored("", key))
	}
	require.Equal(t, "+", Stored("p"+suffix, ""))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		for _, key := range []string{"user:1", "name", "a+", "lease", ""} {
			if Stored("p:", key) != key {
				t.Error(key)
			}
		}
	}))
}

func TestALeaseNameIsReadable(t *testing.T) {
	require.Regexp(t, `^p:user:1:[h-o]{5}:rediscache-lease$`, Name("p:", "user:1"))
	require.Equal(t, "p:{user}:1:hhhhh:rediscache-lease", Name("p:", "{user}:1"))
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
		slot := s.Do("CLUSTER", "KEYSLOT", full)
		require.EqualValues(t, Slot(full), slot, "%q", full)
		require.Equal(t, slot, s.Do("CLUSTER", "KEYSLOT", Name("", full)), "%q", full)
	}
}

func FuzzName(f *testing.F) {
	f.Add("a{b", "c}d")
	f.Add(suffix, suffix+"+")
	f.Add("k", Name("", "k"))
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, full := range []string{a, b, a + b} {
			stored := Stored("", full)
			eachSplit(full, func(prefix, key string) { require.Equal(t, stored, prefix+Stored(prefix, key)) })
			lease := Name("", stored)
			require.Equal(t, Slot(stored), Slot(lease))
			require.Equal(t, stored, lease[:len(lease)-1-letters-len(suffix)])
			require.True(t, strings.HasSuffix(lease, suffix))
			require.False(t, strings.HasSuffix(stored, suffix))
		}
		require.Equal(t, a == b, Stored("", a) == Stored("", b))
		require.Equal(t, a == b, Name("", Stored("", a)) == Name("", Stored("", b)))
	})
}

func BenchmarkStored(b *testing.B) {
	for b.Loop() {
		Stored("p:", "user:12345")
	}
}

func BenchmarkName(b *testing.B) {
	for b.Loop() {
		Name("p:", "user:12345")
	}
}
