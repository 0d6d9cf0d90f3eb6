package redistest

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Call is one command that a Script received.
type Call struct {
	Conn int             // which connection: 0 is the first
	Seq  int             // which command of that connection: 0 is the first
	Args []string        // never empty
	Done <-chan struct{} // closed when the script ends; a handler that waits must end then
}

// Name returns the command in upper case.
func (c Call) Name() string { return strings.ToUpper(c.Args[0]) }

// Handler answers a command: with reply as it stands, which may be nothing, part of a reply, more
// than one, or no RESP at all; then the connection is closed if hangUp. Calls of one connection
// come one after another, those of several at once.
type Handler func(c Call) (reply []byte, hangUp bool)

// Default answers as an empty Redis: PONG to PING, OK to what sets something, nil to GET and for
// each key of MGET, 0 to DEL and UNLINK, -2 to PTTL, no key to SCAN, an error to the rest. It serves
// a Handler for all that it does not care about.
func Default(c Call) []byte {
	switch c.Name() {
	case "PING":
		return []byte("+PONG\r\n")
	case "AUTH", "CLIENT", "SELECT", "SET":
		return []byte("+OK\r\n")
	case "GET":
		return []byte("$-1\r\n")
	case "MGET":
		n := len(c.Args) - 1
		return fmt.Appendf(nil, "*%d\r\n%s", n, strings.Repeat("$-1\r\n", n))
	case "DEL", "UNLINK":
		return []byte(":0\r\n")
	case "PTTL":
		return []byte(":-2\r\n")
	case "SCAN":
		return []byte("*2\r\n$1\r\n0\r\n*0\r\n")
	}
	return []byte("-ERR unknown command\r\n")
}

// Script is a server on a loopback socket that reads commands as Redis does and answers what a
// test wants.
type Script struct {
	Addr string // host:port

	handle Handler
	ln     net.Listener
	done   chan struct{}  // closed by Close
	wg     sync.WaitGroup // the accept loop and the connections

	mu       sync.Mutex // guards what follows
	open     map[net.Conn]bool
	accepted int
	count    map[string]int
	total    int
}

// NewScript starts a server that answers with handle. It ends with the test.
func NewScript(tb testing.TB, handle Handler) *Script {
	tb.Helper()
	return newScript(tb, listen(tb), handle)
}

// NewScriptTLS is NewScript behind TLS. What is counted came after a handshake that both sides
// completed.
func NewScriptTLS(tb testing.TB, config *tls.Config, handle Handler) *Script {
	tb.Helper()
	return newScript(tb, tls.NewListener(listen(tb), config), handle)
}

func newScript(tb testing.TB, ln net.Listener, handle Handler) *Script {
	tb.Helper()
	s := &Script{
		Addr: ln.Addr().String(), handle: handle, ln: ln, done: make(chan struct{}),
		open: make(map[net.Conn]bool), count: make(map[string]int),
	}
	tb.Cleanup(s.Close)
	s.wg.Go(s.accept)
	return s
}

// URL returns redis://Addr.
func (s *Script) URL() string { return "redis://" + s.Addr }

// Push writes b, which nobody asked for, to every open connection.
func (s *Script) Push(b []byte) {
	s.mu.Lock()
	conns := slices.Collect(maps.Keys(s.open))
	s.mu.Unlock()
	for _, c := range conns {
		_, _ = c.Write(b) // a connection that is over gets nothing
	}
}

// HangUp closes every open connection. When it returns, the clients have been sent the end.
func (s *Script) HangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		_ = c.(halfCloser).CloseWrite() // at once; Close takes effect when the goroutine that reads has seen it
		_ = c.Close()                   // its goroutine sees that and ends
	}
}

// Count returns how many commands of that name were received, or with "" of all names.
func (s *Script) Count(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == "" {
		return s.total
	}
	return s.count[strings.ToUpper(name)]
}

// Accepted counts the connections that clients have made.
func (s *Script) Accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// Close closes all connections and waits for the script's goroutines. It may be called again.
func (s *Script) Close() {
	s.mu.Lock()
	if !s.closed() {
		close(s.done) // under mu: from here on no connection is added
	}
	s.mu.Unlock()
	_ = s.ln.Close()
	s.HangUp()
	s.wg.Wait()
}

func (s *Script) closed() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *Script) accept() {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		number := s.accepted
		s.accepted++
		s.open[conn] = true
		if s.closed() {
			_ = conn.Close()
		}
		s.mu.Unlock()
		s.wg.Go(func() { s.converse(conn.(halfCloser), number) })
	}
}

// halfCloser is a connection with TLS or without.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// converse answers the commands of one connection until either side closes it.
func (s *Script) converse(conn halfCloser, number int) {
	defer func() {
		s.mu.Lock()
		delete(s.open, conn)
		s.mu.Unlock()
		_ = conn.Close()
	}()
	r := bufio.NewReader(conn)
	for seq := 0; ; seq++ {
		args, err := readCommand(r)
		if err != nil {
			return
		}
		c := Call{Conn: number, Seq: seq, Args: args, Done: s.done}
		s.mu.Lock()
		s.count[c.Name()]++
		s.total++
		s.mu.Unlock()
		reply, hangUp := s.handle(c)
		if _, err := conn.Write(reply); err != nil {
			return
		}
		if hangUp {
			// What is unread would turn the end into a reset that may overtake the reply.
			_ = conn.CloseWrite()
			_, _ = io.Copy(io.Discard, r)
			return
		}
	}
}

// What a command may hold: enough for any test, too little to exhaust its memory.
const (
	maxArgs     = 1 << 16
	maxArgBytes = 64 << 20
)

var errNotACommand = errors.New("not a command")

// readCommand reads an array of bulk strings.
func readCommand(r *bufio.Reader) ([]string, error) {
	n, err := readLength(r, '*', maxArgs)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, errNotACommand
	}
	args := make([]string, n)
	for i := range args {
		size, err := readLength(r, '$', maxArgBytes)
		if err != nil {
			return nil, err
		}
		arg := make([]byte, size+2) // CRLF after it
		if _, err := io.ReadFull(r, arg); err != nil {
			return nil, err
		}
		if string(arg[size:]) != "\r\n" {
			return nil, errNotACommand
		}
		args[i] = string(arg[:size])
	}
	return args, nil
}

// readLength reads a line such as "*3" or "$5".
func readLength(r *bufio.Reader, kind byte, most int) (int, error) {
	line, err := r.ReadSlice('\n') // fails past the buffer's 4 kB
	if err != nil {
		return 0, err
	}
	digits, crlf := strings.CutSuffix(string(line), "\r\n")
	if !crlf || digits == "" || digits[0] != kind {
		return 0, fmt.Errorf("%w: %q", errNotACommand, line)
	}
	n, err := strconv.Atoi(digits[1:])
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("%w: %q", errNotACommand, line)
	}
	return n, nil
}
