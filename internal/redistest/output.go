package redistest

import (
	"regexp"
	"strings"
	"sync"
	"testing"
)

// Output is what a program prints, and may be read meanwhile. The zero value is ready.
type Output struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

// Write never fails.
func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

// String returns all that was printed so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

var listening = regexp.MustCompile(`listening on ([\d.]+:\d+)`)

// Addr waits until the program says where it listens.
func (o *Output) Addr(tb testing.TB) string {
	tb.Helper()
	Eventually(tb, func() bool { return listening.MatchString(o.String()) }, "it says where it listens")
	return listening.FindStringSubmatch(o.String())[1]
}
