package redistest

import (
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

// Client is one line of CLIENT LIST.
type Client struct {
	ID    int64
	Name  string
	Addr  string
	Age   time.Duration // whole seconds
	Idle  time.Duration // whole seconds
	DB    int
	Flags string
	Cmd   string            // the last command, "client|setname" for a subcommand
	Field map[string]string // every field as the server wrote it
}

// Clients lists the connections of that name as the server sees them, or with "" all of them; the
// admin connection is never among them. It needs a redis-server.
func (s *Server) Clients(name string) []Client {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	admin := s.adminLocked()
	self, err := redis.Int64(admin.Do("CLIENT", "ID"))
	if err != nil {
		s.t.Fatalf("CLIENT ID: %v", err)
	}
	list, err := redis.String(admin.Do("CLIENT", "LIST"))
	if err != nil {
		s.t.Fatalf("CLIENT LIST: %v", err)
	}
	var clients []Client
	for line := range strings.Lines(list) {
		c := parseClient(line)
		if c.ID != self && (name == "" || c.Name == name) {
			clients = append(clients, c)
		}
	}
	return clients
}

// ClientCount counts all connections but the admin's. It needs a redis-server.
func (s *Server) ClientCount() int {
	s.t.Helper()
	return len(s.Clients(""))
}

// TotalConnections counts the connections that the server has accepted since it was last started,
// without the admin's. It needs a redis-server.
func (s *Server) TotalConnections() int {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := redis.String(s.adminLocked().Do("INFO", "stats"))
	if err != nil {
		s.t.Fatalf("INFO: %v", err)
	}
	_, rest, _ := strings.Cut(info, "total_connections_received:")
	digits, _, _ := strings.Cut(rest, "\r\n")
	total, err := strconv.Atoi(digits)
	if err != nil {
		s.t.Fatalf("total_connections_received: %v", err)
	}
	return total - s.dials
}

// KillClients closes every normal connection but the admin's, not those in subscribe mode, and
// returns how many there were. It needs a redis-server.
func (s *Server) KillClients() int {
	s.t.Helper()
	return int(s.Do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes").(int64))
}

// parseClient reads "id=3 addr=127.0.0.1:4 name=x ..."; a name holds no space.
func parseClient(line string) Client {
	field := make(map[string]string)
	for pair := range strings.FieldsSeq(line) {
		key, value, _ := strings.Cut(pair, "=")
		field[key] = value
	}
	number := func(key string) int64 {
		n, _ := strconv.ParseInt(field[key], 10, 64) // absent in old servers: zero
		return n
	}
	return Client{
		ID:    number("id"),
		Name:  field["name"],
		Addr:  field["addr"],
		Age:   time.Duration(number("age")) * time.Second,
		Idle:  time.Duration(number("idle")) * time.Second,
		DB:    int(number("db")),
		Flags: field["flags"],
		Cmd:   field["cmd"],
		Field: field,
	}
}
