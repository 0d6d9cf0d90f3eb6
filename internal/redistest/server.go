package redistest

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/gomodule/redigo/redis"
)

// Server is a Redis that belongs to one test: a redis-server child or a miniredis. Methods that
// say so need a redis-server and fail the test on miniredis.
type Server struct {
	Addr    string               // host:port without TLS
	TLSAddr string               // host:port with TLS, after StartTLS only
	Certs   *Certs               // of TLSAddr
	Socket  string               // path of the Unix socket, empty on miniredis
	Mini    *miniredis.Miniredis // nil on a redis-server

	t     testing.TB
	child *child // nil on miniredis

	mu       sync.Mutex // guards what follows
	password string     // of the default user
	admin    redis.Conn // nil until the first use and after a restart
	dials    int        // admin connections that the running process has seen
}

// URL returns redis://Addr, without credentials or database.
func (s *Server) URL() string { return "redis://" + s.Addr }

// Admin returns a connection outside of any pool, made anew when the last one broke. Its timeouts
// are five seconds. It serves one goroutine at a time; Do serves many.
func (s *Server) Admin() redis.Conn {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.adminLocked()
}

// Do runs a command on the admin connection and fails the test on an error.
func (s *Server) Do(command string, args ...any) any {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	reply, err := s.adminLocked().Do(command, args...)
	if err != nil {
		s.t.Fatalf("%s: %v", command, err)
	}
	return reply
}

// Flush deletes every key of every database.
func (s *Server) Flush() {
	s.t.Helper()
	s.Do("FLUSHALL")
}

// Advance brings every key that has a time to live d nearer to its end; what a redis-server
// resolves is milliseconds. Only keys age: the clock of a redis-server goes on as it did, that of
// a miniredis stands still between calls.
func (s *Server) Advance(d time.Duration) {
	s.t.Helper()
	if s.Mini != nil {
		s.Mini.FastForward(d)
		return
	}
	s.Do("EVAL", ageKeys, 0, d.Milliseconds())
}

// ageKeys runs at one instant of the server's clock, so every key loses exactly ARGV[1]. PEXPIRE
// with zero or less deletes the key and tells tracking clients so, as expiry does.
const ageKeys = `
local db = 0
while not redis.pcall('SELECT', db).err do
	for _, key in ipairs(redis.call('KEYS', '*')) do
		local left = redis.call('PTTL', key)
		if left >= 0 then redis.call('PEXPIRE', key, left - ARGV[1]) end
	end
	db = db + 1
end`

// Kill ends the server at once (SIGKILL) and returns when it is gone; a miniredis is closed.
// Killing a server that is down does nothing.
func (s *Server) Kill() {
	if s.Mini != nil {
		s.Mini.Close()
		return
	}
	s.child.kill()
}

// Restart kills the server if it runs and starts it again, empty, on the same ports with the same
// arguments. It returns when the server answers.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.closeAdmin()
	if s.Mini == nil {
		s.relaunch()
		return
	}
	s.Mini.FlushAll()
	if err := s.Mini.Restart(); err != nil {
		s.t.Fatalf("restart miniredis: %v", err)
	}
}

// Stop freezes the process (SIGSTOP): its sockets stay open and nothing is answered. It needs a
// redis-server.
func (s *Server) Stop() {
	s.t.Helper()
	s.signal(sigstop)
}

// Cont lets a stopped process go on (SIGCONT). It needs a redis-server.
func (s *Server) Cont() {
	s.t.Helper()
	s.signal(sigcont)
}

// ConfigSet changes the configuration of the running process; a restart undoes it. It needs a
// redis-server.
func (s *Server) ConfigSet(key, value string) {
	s.t.Helper()
	s.Do("CONFIG", "SET", key, value)
	if strings.EqualFold(key, "requirepass") {
		s.mu.Lock()
		s.password = value
		s.mu.Unlock()
	}
}

// adminLocked returns the admin connection if it answers, anything at all, and else a new one.
func (s *Server) adminLocked() redis.Conn {
	s.t.Helper()
	if s.admin != nil && answers(s.admin) {
		return s.admin
	}
	if err := s.dialLocked(); err != nil {
		s.t.Fatalf("admin connection: %v", err)
	}
	return s.admin
}

// dialLocked replaces the admin connection.
func (s *Server) dialLocked() error {
	s.closeAdminLocked()
	network, address := "unix", s.Socket
	if s.Mini != nil {
		network, address = "tcp", s.Addr
	}
	conn, err := redis.Dial(network, address, redis.DialPassword(s.password), redis.DialConnectTimeout(patience),
		redis.DialReadTimeout(patience), redis.DialWriteTimeout(patience))
	if err != nil {
		return err
	}
	s.admin = conn
	s.dials++
	return nil
}

func (s *Server) closeAdmin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeAdminLocked()
}

func (s *Server) closeAdminLocked() {
	if s.admin != nil {
		_ = s.admin.Close() // nothing is pending on it
		s.admin = nil
	}
}

// answers reports whether the server at the other end is alive; LOADING is an answer too.
func answers(c redis.Conn) bool {
	_, _ = c.Do("PING") // any reply will do, and an error reply does not break the connection
	return c.Err() == nil
}
