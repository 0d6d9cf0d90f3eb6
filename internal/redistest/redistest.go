// Package redistest gives the tests of this module a Redis to run against and the means to break
// it: [Each] for tests that must hold on miniredis and on a real server alike, [Start] for a
// redis-server that can be killed, paused and restarted, [Proxy] for a bad network, [Script] for a
// server that misbehaves, and [NoLeaks] for what is left behind.
//
// Everything that it starts ends with the test that started it.
//
// Two environment variables choose the real server. REDISCACHE_SERVER is its program, a path or a
// name on the PATH: a redis-server or valkey-server from version 6.2 on. The default is redis-server.
// If there is no such program, the tests that need it are skipped, or fail if
// REDISCACHE_REQUIRE_SERVER or REDISCACHE_SERVER is set. With either of them the tests that take long run
// too (see [Long]).
package redistest

import (
	"cmp"
	"flag"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
)

// patience bounds every wait for something that must happen. It is long, because a test must not fail
// on a machine that has other things to do.
const patience = 20 * time.Second

// Each runs f as two subtests, "miniredis" and "redis-server", each with a server of its own. One
// starts in milliseconds, so nothing is shared and the subtests of f may be parallel.
func Each(t *testing.T, f func(t *testing.T, s *Server)) {
	t.Helper()
	t.Run("miniredis", func(t *testing.T) { f(t, StartMini(t)) })
	t.Run("redis-server", func(t *testing.T) { f(t, Start(t)) })
}

// StartMini starts a miniredis that ends with the test.
func StartMini(tb testing.TB) *Server {
	tb.Helper()
	mini := miniredis.NewMiniRedis()
	if err := mini.StartAddr(reserve(tb)); err != nil {
		tb.Fatalf("miniredis: %v", err)
	}
	tb.Cleanup(mini.Close)
	s := &Server{Addr: mini.Addr(), Mini: mini, t: tb}
	tb.Cleanup(s.closeAdmin)
	return s
}

// Allocated returns how many bytes the process allocates while f runs.
func Allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// Long skips a test that takes seconds, so that a plain go test of the module ends within a minute. The test
// runs if the environment chooses or requires a server, as .ci/run does, or if the flag -soak is given.
func Long(tb testing.TB) {
	tb.Helper()
	soak := flag.Lookup("soak")
	if soak != nil && soak.Value.String() != soak.DefValue || chosen() != "" || required() {
		return
	}
	tb.Skip("a long test, which REDISCACHE_REQUIRE_SERVER=1 go test runs")
}

// Eventually fails the test unless cond holds within twenty seconds. A test that claims how soon cond
// holds has to measure that itself. Eventually is the one place where a test may wait for time to pass.
func Eventually(tb testing.TB, cond func() bool, format string, args ...any) {
	tb.Helper()
	if !poll(patience, cond) {
		tb.Fatalf("not within "+patience.String()+": "+format, args...)
	}
}

// poll asks cond every two milliseconds until it holds or d has passed, and reports whether it held.
func poll(d time.Duration, cond func() bool) bool {
	for end := time.Now().Add(d); ; time.Sleep(2 * time.Millisecond) {
		if cond() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

var majorVersion = regexp.MustCompile(`\bv=(\d+)\.`)

// Major returns the first number of the version of the real server. Without a server it skips or fails
// the test, as [Start] does.
func Major(tb testing.TB) int {
	tb.Helper()
	path := binary(tb)
	said, err := exec.Command(path, "--version").Output()
	if err != nil {
		tb.Fatalf("%s --version: %v", path, err)
	}
	found := majorVersion.FindSubmatch(said)
	if found == nil {
		tb.Fatalf("%s --version: %q", path, said)
	}
	major, _ := strconv.Atoi(string(found[1])) // digits
	return major
}

// binary returns the path of the program of the real server. Without one it skips the test, or fails it
// if the environment requires a server.
func binary(tb testing.TB) string {
	tb.Helper()
	path, err := exec.LookPath(cmp.Or(chosen(), "redis-server"))
	switch {
	case err == nil:
		return path
	case chosen() != "":
		tb.Fatalf("REDISCACHE_SERVER: %v", err)
	case required():
		tb.Fatalf("REDISCACHE_REQUIRE_SERVER is set: %v", err)
	}
	tb.Skipf("no real server: %v", err)
	return ""
}

// chosen returns the program that the environment chooses, or nothing.
func chosen() string { return os.Getenv("REDISCACHE_SERVER") }

func required() bool { return os.Getenv("REDISCACHE_REQUIRE_SERVER") != "" }
