package redistest

import (
	"runtime"
	"strings"
	"testing"
)

const module = "github.com/rediscache/rediscache"

// NoLeaks fails the test if, twenty seconds after its other cleanups, a goroutine that runs or was
// started by code of this module is still there, and prints its stack. Call it first, so that its
// check runs last, and not in a parallel test: the goroutines of its neighbours would be counted.
func NoLeaks(tb testing.TB) {
	tb.Helper()
	before := make(map[string]bool)
	for _, g := range goroutines() {
		before[g.id] = true
	}
	tb.Cleanup(func() {
		var left []string
		if !poll(patience, func() bool { left = leaked(before); return len(left) == 0 }) {
			tb.Errorf("%d goroutines left:\n\n%s", len(left), strings.Join(left, "\n\n"))
		}
	})
}

// leaked returns the stacks of this module's goroutines that are not in before.
func leaked(before map[string]bool) []string {
	var left []string
	for _, g := range goroutines() {
		if !before[g.id] && g.ours() {
			left = append(left, g.stack)
		}
	}
	return left
}

// Waiting waits until n goroutines are in function, as a stack shows its name after the last slash:
// "flight.Ticket[...].Wait". It is for what a test cannot see in another way, such as that callers have
// joined a load.
func Waiting(tb testing.TB, n int, function string) {
	tb.Helper()
	var in int
	if !poll(patience, func() bool {
		in = 0
		for _, g := range goroutines() {
			if strings.Contains(g.stack, "/"+function+"(") {
				in++
			}
		}
		return in == n
	}) {
		tb.Fatalf("%d goroutines are in %s, not %d", in, function, n)
	}
}

// goroutine is one entry of a stack dump; its id is never used again by another.
type goroutine struct{ id, stack string }

// goroutines lists all but the caller's.
func goroutines() []goroutine {
	buf := make([]byte, 1<<20)
	n := runtime.Stack(buf, true)
	for n == len(buf) {
		buf = make([]byte, 2*len(buf))
		n = runtime.Stack(buf, true)
	}
	var all []goroutine
	for _, stack := range strings.Split(string(buf[:n]), "\n\n")[1:] { // the caller's is the first
		id, _, _ := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		all = append(all, goroutine{id, strings.TrimSpace(stack)})
	}
	return all
}

// ours tells this module's goroutines from those of the test runner and from those that this
// package started, which end with the server or the proxy that they serve.
func (g goroutine) ours() bool {
	return strings.Contains(g.stack, module) &&
		!strings.Contains(g.stack, "\ntesting.tRunner(") &&
		!strings.Contains(g.stack, "\ncreated by "+module+"/internal/redistest.")
}
