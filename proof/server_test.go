//go:build unix

package proof_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
)

// What examples/server sets.
const (
	headerTimeout  = 5 * time.Second
	requestTimeout = 10 * time.Second
)

// slack is what a busy machine may add to a time, and how long a client that behaves waits at most.
const slack = 4 * time.Second

// workshop is where the server is built.
var workshop string

func TestMain(m *testing.M) {
	defer func() { _ = os.RemoveAll(workshop) }() // what is left in the temporary directory fails nothing
	m.Run()
}

// build makes the program that a user would make, for the first test that wants it.
var build = sync.OnceValues(func() (path string, err error) {
	if workshop, err = os.MkdirTemp("", "proof"); err != nil {
		return "", err
	}
	path = filepath.Join(workshop, "server")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, "./examples/server")
	cmd.Dir = ".." // the root module's
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %w\n%s", cmd, err, out)
	}
	return path, nil
})

// server is examples/server as a process of its own.
type server struct {
	redistest.Output

	addr string // where it listens

	cmd   *exec.Cmd
	ended chan struct{} // closed when the process is gone
}

// startServer starts one that ends with the test at the latest, and waits until it listens.
func startServer(t *testing.T, args ...string) *server {
	t.Helper()
	path, err := build()
	require.NoError(t, err)
	s := &server{cmd: exec.Command(path, append([]string{"-addr", "127.0.0.1:0"}, args...)...), ended: make(chan struct{})}
	s.cmd.Stdout, s.cmd.Stderr = &s.Output, &s.Output
	require.NoError(t, s.cmd.Start())
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // the exit code says it all
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // an error where it has ended by itself
		<-s.ended
	})
	s.addr = s.Addr(t)
	return s
}

// stop sends SIGTERM and returns when the server no longer listens.
func (s *server) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGTERM))
	redistest.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", s.addr)
		if err == nil {
			_ = conn.Close() // nothing was written
		}
		return err != nil
	}, "it refuses connections")
}

// requireGoodbye requires that the server ends within d, in order.
func (s *server) requireGoodbye(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-s.ended:
	case <-time.After(d):
		t.Fatalf("it runs %v later: %s", d, s.String())
	}
	require.Equal(t, 0, s.cmd.ProcessState.ExitCode(), s.String())
	require.Regexp(t, `goodbye: requests finished, cache closed, pool shut down\n$`, s.String())
}

// rss returns how much memory the server has, in MiB, or zero where no file says so.
func (s *server) rss(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if errors.Is(err, os.ErrNotExist) && runtime.GOOS != "linux" {
		return 0
	}
	require.NoError(t, err)
	kib := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	require.NotNil(t, kib)
	n, err := strconv.Atoi(string(kib[1]))
	require.NoError(t, err)
	return n >> 10
}

// client is one keep-alive connection. It reads and writes the socket itself: it costs little, and
// knows whether an answer was cut or never began.
type client struct {
	conn net.Conn
	r    *bufio.Reader
}

func dial(addr string) (*client, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &client{conn, bufio.NewReaderSize(conn, 1<<10)}, nil
}

// mustDial is dial for a connection that ends with the test.
func (s *server) mustDial(t *testing.T) *client {
	t.Helper()
	c, err := dial(s.addr)
	require.NoError(t, err)
	t.Cleanup(c.close)
	return c
}

func (c *client) close() { _ = c.conn.Close() } // what was to be read has been read

// errUnanswered means that not one byte of an answer came.
var errUnanswered = errors.New("unanswered")

type answer struct {
	status int
	header http.Header
	body   string
	last   bool // the server closes the connection
}

// ask sends a request and reads the whole answer.
func (c *client) ask(method, key, value string) (answer, error) {
	return c.exchange(fmt.Sprintf("%s /cache/%s HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s",
		method, key, len(value), value))
}

// exchange writes the bytes of a request and reads the whole answer.
func (c *client) exchange(request string) (answer, error) {
	_ = c.conn.SetDeadline(time.Now().Add(slack)) // an error comes again below
	_, _ = io.WriteString(c.conn, request)        // so does this one, unless the server had enough
	return c.answer()
}

// answer reads one within the connection's deadline.
func (c *client) answer() (answer, error) {
	if _, err := c.r.Peek(1); err != nil {
		return answer{}, fmt.Errorf("%w: %w", errUnanswered, err)
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return answer{}, fmt.Errorf("cut in its header: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, fmt.Errorf("cut in its body: %w", err)
	}
	return answer{resp.StatusCode, resp.Header, string(body), resp.Close}, nil
}

// What the handler answers to ask.

const missing = `{"message":"Key not found"}`

func stored(key string) string {
	return fmt.Sprintf(`{"message":"Data cached successfully","key":%q}`, key)
}

func hit(key, value string) string { return fmt.Sprintf(`{"key":%q,"value":%q}`, key, value) }

func deletedBody(key string) string {
	return fmt.Sprintf(`{"message":"Data with key %s deleted successfully"}`, key)
}
