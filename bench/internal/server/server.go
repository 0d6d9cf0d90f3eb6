// Package server starts a redis-server of the benchmark's own, and asks it what
// it is and what it used.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gomodule/redigo/redis"

	"github.com/rediscache/rediscache/bench/internal/cert"
	"github.com/rediscache/rediscache/bench/internal/child"
)

const (
	program   = "redis-server"
	startTime = 10 * time.Second // how long a server may take until it answers
	stopTime  = 5 * time.Second  // how long it may take to end before it is killed
	tries     = 3                // a free port may be taken before the server has it
)

// Server is a redis-server child that keeps nothing on disk.
type Server struct {
	addr string
	tls  string // the address of the port with TLS, empty without
	cmd  *exec.Cmd
	done chan struct{} // closed when the child has ended

	mu    sync.Mutex // guards admin: one command at a time
	admin redis.Conn
}

// Available says whether there is a redis-server to start.
func Available() bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// Start starts a redis-server on a free port of 127.0.0.1 and returns once it
// answers. With a certificate the server has a second port, for TLS. The caller must
// call Close.
func Start(ctx context.Context, pair *cert.Pair) (*Server, error) {
	var errs []error
	for range tries {
		s, err := start(ctx, pair)
		if err == nil {
			return s, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("bench: start %s: %w", program, errors.Join(errs...))
}

func start(ctx context.Context, pair *cert.Pair) (*Server, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	host, port, _ := net.SplitHostPort(addr)
	args := []string{
		"--bind", host, "--port", port,
		"--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning",
		"--slowlog-log-slower-than", "1000",
	}
	var tlsAddr string
	if pair != nil {
		if tlsAddr, err = freeAddr(); err != nil {
			return nil, err
		}
		_, port, _ := net.SplitHostPort(tlsAddr)
		args = append(args, "--tls-port", port, "--tls-auth-clients", "no",
			"--tls-cert-file", pair.Cert, "--tls-key-file", pair.Key, "--tls-ca-cert-file", pair.CA)
	}
	cmd := exec.Command(program, args...)
	cmd.SysProcAttr = child.Apart()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &Server{addr: addr, tls: tlsAddr, cmd: cmd, done: make(chan struct{})}
	go func() { // ends with the child; Close waits for it
		defer close(s.done)
		_ = cmd.Wait() // a server that was told to end says so in its status
	}()
	if err := s.connect(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// connect tries until the child answers, has ended, or time is up.
func (s *Server) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	retry := time.NewTicker(5 * time.Millisecond)
	defer retry.Stop()
	for {
		admin, err := redis.DialContext(ctx, "tcp", s.addr)
		if err == nil {
			s.admin = admin
			return s.isOwn()
		}
		select {
		case <-retry.C:
		case <-s.done:
			return errors.New("it ended before it answered")
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// isOwn makes sure that it is the child that answers, and not another server
// that took the port in between.
func (s *Server) isOwn() error {
	pid := s.info("server", "process_id")
	if pid != strconv.Itoa(s.cmd.Process.Pid) {
		return fmt.Errorf("another server answers at %s", s.addr)
	}
	return nil
}

// Addr returns the server's host and port.
func (s *Server) Addr() string { return s.addr }

// TLSAddr returns the host and port with TLS, empty for a server that was started
// without a certificate.
func (s *Server) TLSAddr() string { return s.tls }

// Version returns the server's version.
func (s *Server) Version() string { return s.info("server", "redis_version") }

// CPU returns the processor time that the server has used, or zero where the
// server does not tell.
func (s *Server) CPU() time.Duration {
	var total time.Duration
	for _, field := range []string{"used_cpu_user", "used_cpu_sys"} {
		seconds, err := strconv.ParseFloat(s.info("cpu", field), 64)
		if err != nil {
			return 0
		}
		total += time.Duration(seconds * float64(time.Second))
	}
	return total
}

// Slowest returns how long the server executed the slowest command since it was
// asked the last time, zero if none took a millisecond.
func (s *Server) Slowest() (time.Duration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	logs, err := redis.SlowLogs(s.admin.Do("SLOWLOG", "GET", "-1"))
	if err != nil {
		return 0, fmt.Errorf("bench: ask for the slow log: %w", err)
	}
	var slowest time.Duration
	for _, l := range logs {
		slowest = max(slowest, l.ExecutionTime)
	}
	_, err = s.admin.Do("SLOWLOG", "RESET")
	return slowest, err
}

// Fill empties the server and stores what value returns for each key.
func (s *Server) Fill(keys []string, value func(key string) []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.admin.Do("FLUSHALL"); err != nil {
		return fmt.Errorf("bench: empty the server: %w", err)
	}
	const batch = 100 // keeps what is in flight small
	for len(keys) > 0 {
		n := min(batch, len(keys))
		if err := s.set(keys[:n], value); err != nil {
			return fmt.Errorf("bench: fill the server: %w", err)
		}
		keys = keys[n:]
	}
	return nil
}

func (s *Server) set(keys []string, value func(key string) []byte) error {
	for _, key := range keys {
		if err := s.admin.Send("SET", key, value(key)); err != nil {
			return err
		}
	}
	if err := s.admin.Flush(); err != nil {
		return err
	}
	for range keys {
		if _, err := s.admin.Receive(); err != nil {
			return err
		}
	}
	return nil
}

// Populate stores n keys with a value of size bytes in one command: prefix with the
// numbers from 0 on, as [PopulatedKeys] returns them.
func (s *Server) Populate(prefix string, n, size int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	const script = `local v = string.rep('x', ARGV[3])
for i = 0, ARGV[2] - 1 do redis.call('SET', ARGV[1] .. i, v) end`
	if _, err := s.admin.Do("EVAL", script, 0, prefix, n, size); err != nil {
		return fmt.Errorf("bench: populate the server: %w", err)
	}
	return nil
}

// PopulatedKeys returns the keys of Populate.
func PopulatedKeys(prefix string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = prefix + strconv.Itoa(i)
	}
	return keys
}

// info returns a field of a section of INFO, empty where there is none.
func (s *Server) info(section, field string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, err := redis.String(s.admin.Do("INFO", section))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), field+":"); ok {
			return v
		}
	}
	return ""
}

// Close stops the server and waits until it has ended.
func (s *Server) Close() error {
	if s.admin != nil {
		_ = s.admin.Close() // the server goes; its connection goes with it
	}
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		_ = s.cmd.Process.Kill() // no such signal here, or it has ended already
	}
	select {
	case <-s.done:
		return nil
	case <-time.After(stopTime):
		_ = s.cmd.Process.Kill()
		<-s.done
		return fmt.Errorf("bench: %s had to be killed", program)
	}
}
