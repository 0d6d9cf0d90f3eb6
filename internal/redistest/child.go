package redistest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gomodule/redigo/redis"
)

// errPortTaken means that someone else listens where the child wanted to.
var errPortTaken = errors.New("port taken")

// Start starts a redis-server on 127.0.0.1 that ends with the test, with args after its own
// ("--maxclients", "20", or "--user", "alice", "on", ">pw", "~*", "+@all"). It saves nothing.
// "--requirepass" is understood: the admin connection uses it.
func Start(tb testing.TB, args ...string) *Server {
	tb.Helper()
	return start(tb, func(s *Server) []string {
		return append([]string{"--port", portOf(s.Addr)}, args...)
	})
}

// StartTLS is Start with a second port, TLSAddr, that shows cert and demands a client certificate
// of the same authority. "--tls-auth-clients", "no" in args lifts the demand.
func StartTLS(tb testing.TB, c *Certs, cert Cert, args ...string) *Server {
	tb.Helper()
	return start(tb, func(s *Server) []string {
		s.TLSAddr, s.Certs = reserve(tb), c
		own := []string{
			"--port", portOf(s.Addr), "--tls-port", portOf(s.TLSAddr), "--tls-ca-cert-file", c.CAFile,
			"--tls-cert-file", cert.CertFile, "--tls-key-file", cert.KeyFile,
		}
		return append(own, args...)
	})
}

// StartSentinel starts a redis-server as a Redis Sentinel, which watches nothing yet: see SENTINEL
// MONITOR.
func StartSentinel(tb testing.TB, args ...string) *Server {
	tb.Helper()
	return start(tb, func(s *Server) []string {
		s.child.config = filepath.Join(s.child.dir, "sentinel.conf") // it writes what it learns there
		if err := os.WriteFile(s.child.config, nil, 0o600); err != nil {
			tb.Fatal(err)
		}
		return append([]string{"--sentinel", "--port", portOf(s.Addr)}, args...)
	})
}

// start tries fresh ports until the server has them to itself. portArgs sets the addresses of s
// that it adds and returns the arguments.
func start(tb testing.TB, portArgs func(s *Server) []string) *Server {
	tb.Helper()
	path := binary(tb)
	// Not t.TempDir: with the name of the test in it the path of the socket passes the 104 to 108
	// bytes that systems allow.
	dir, err := os.MkdirTemp("", "redis") //nolint:usetesting // see above
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{Socket: filepath.Join(dir, "redis.sock"), t: tb, child: &child{path: path, dir: dir}}
	tb.Cleanup(func() {
		s.Kill() // first: what waits for a stopped server holds mu
		s.closeAdmin()
		_ = os.RemoveAll(dir) // a file left in the temporary directory fails nothing
	})
	for range 20 {
		s.Addr = reserve(tb)
		s.child.args = portArgs(s)
		if err = s.launch(); !errors.Is(err, errPortTaken) {
			break
		}
	}
	if err != nil {
		tb.Fatalf("start %s: %v", path, err)
	}
	return s
}

// relaunch starts the child where it was, waiting for its ports if someone holds them.
func (s *Server) relaunch() {
	s.t.Helper()
	var err error
	poll(patience, func() bool {
		err = s.launch()
		return !errors.Is(err, errPortTaken)
	})
	if err != nil {
		s.t.Fatalf("restart %s: %v", s.child.path, err)
	}
}

// launch runs the child and waits until it answers on its socket, which lies in a directory of its
// own: so it is this child that answers, whoever else took a port. It listens there last.
func (s *Server) launch() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dials, s.password = 0, ""
	if i := slices.Index(s.child.args, "--requirepass"); i >= 0 {
		s.password = s.child.args[i+1]
	}
	ended, err := s.child.run()
	if err != nil {
		return err
	}
	up := poll(2*patience, func() bool {
		select {
		case <-ended:
			return true
		default:
			err = s.dialLocked()
			return err == nil && loaded(s.admin)
		}
	})
	select {
	case <-ended:
		return s.child.failure("ended")
	default:
	}
	if !up {
		s.child.kill()
		return s.child.failure(fmt.Sprintf("does not answer (%v)", err))
	}
	return nil
}

// child is a redis-server process that can be run again and again with the same arguments.
type child struct {
	path, dir string
	config    string // file; empty: none
	args      []string

	mu    sync.Mutex // guards the process
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process is gone and reaped
}

// run starts the process. The goroutine that does so keeps its thread until the process has
// ended, because Linux sends the death signal when the thread that started the child exits, not the
// program. kill ends it and waits for it.
func (c *child) run() (ended <-chan struct{}, err error) {
	log, err := os.Create(c.log())
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the child has its own
	args := []string{"--bind", "127.0.0.1", "--unixsocket", "redis.sock", "--dir", c.dir, "--save", "", "--appendonly", "no"}
	if c.config != "" {
		args = append([]string{c.config}, args...)
	}
	cmd := exec.Command(c.path, append(args, c.args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = c.dir, log, log, dieWithParent()

	c.mu.Lock()
	defer c.mu.Unlock()
	started, done := make(chan error), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed, as a rule; the log tells the rest
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	c.cmd, c.ended = cmd, done
	return done, nil
}

// kill ends the process if it runs and waits for its end.
func (c *child) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd != nil {
		_ = c.cmd.Process.Kill() // an error means that it is gone
		<-c.ended
	}
}

func (c *child) log() string { return filepath.Join(c.dir, "redis.log") }

// failure explains why the process is of no use, with what it wrote.
func (c *child) failure(what string) error {
	log, err := os.ReadFile(c.log())
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if strings.Contains(strings.ToLower(string(log)), "address already in use") {
		return errPortTaken
	}
	return fmt.Errorf("%s: %s", what, log)
}

// signal sends sig to the child.
func (s *Server) signal(sig os.Signal) {
	s.t.Helper()
	if s.child == nil {
		s.t.Fatalf("%v needs a redis-server", sig)
	}
	s.child.mu.Lock()
	defer s.child.mu.Unlock()
	if err := s.child.cmd.Process.Signal(sig); err != nil {
		s.t.Fatalf("%v: %v", sig, err)
	}
}

// loaded reports whether the server behind c is up. An error reply other than LOADING is an answer.
func loaded(c redis.Conn) bool {
	_, err := c.Do("PING")
	return c.Err() == nil && (err == nil || !strings.HasPrefix(err.Error(), "LOADING"))
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// Freeze stops a process of the test's own, as [Server.Stop] does a server. The process goes on when
// thaw is called.
func Freeze(tb testing.TB, p *os.Process) (thaw func()) {
	tb.Helper()
	send := func(sig os.Signal) {
		tb.Helper()
		if err := p.Signal(sig); err != nil {
			tb.Fatalf("%v: %v", sig, err)
		}
	}
	send(sigstop)
	return func() { send(sigcont) }
}
