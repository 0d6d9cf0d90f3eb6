package rediscache_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
)

func TestTheNextBorrowerFindsACleanConnection(t *testing.T) {
	dirty := map[string]func(c redis.Conn) error{
		"SELECT":            func(c redis.Conn) error { return do(c, "SELECT", 5) },
		"select":            func(c redis.Conn) error { return do(c, "select", 5) },
		"a sent SELECT":     func(c redis.Conn) error { return c.Send("SELECT", 5) },
		"CLIENT SETNAME":    func(c redis.Conn) error { return do(c, "CLIENT", "SETNAME", "other") },
		"CLIENT REPLY":      func(c redis.Conn) error { return errors.Join(c.Send("CLIENT", "REPLY", "OFF"), c.Flush()) },
		"CLIENT TRACKING":   func(c redis.Conn) error { return do(c, "CLIENT", "TRACKING", "ON", "BCAST") },
		"AUTH":              func(c redis.Conn) error { return do(c, "AUTH", "alice", "pw") },
		"MULTI":             func(c redis.Conn) error { return errors.Join(do(c, "MULTI"), do(c, "SET", "k", "dirty")) },
		"WATCH":             func(c redis.Conn) error { return do(c, "WATCH", "watched") },
		"SUBSCRIBE":         func(c redis.Conn) error { return errors.Join(c.Send("SUBSCRIBE", "a", "b"), c.Flush()) },
		"PSUBSCRIBE":        func(c redis.Conn) error { return errors.Join(c.Send("PSUBSCRIBE", "*"), c.Flush()) },
		"SSUBSCRIBE":        func(c redis.Conn) error { return errors.Join(c.Send("SSUBSCRIBE", "a"), c.Flush()) },
		"MONITOR":           func(c redis.Conn) error { return do(c, "MONITOR") },
		"QUIT":              func(c redis.Conn) error { return do(c, "QUIT") },
		"undrained replies": func(c redis.Conn) error { return errors.Join(c.Send("ECHO", "a"), c.Send("ECHO", "b"), c.Flush()) },
		"unflushed bytes":   func(c redis.Conn) error { return c.Send("ECHO", "a") },
		"half a command":    func(c redis.Conn) error { return panics(func() error { return do(c, "SET", "k", bomb{}) }) },
		"half a sent one":   func(c redis.Conn) error { return panics(func() error { return c.Send("SET", "k", bomb{}) }) },
		"half a timed one": func(c redis.Conn) error {
			return panics(func() error { _, err := redis.DoWithTimeout(c, time.Second, "SET", "k", bomb{}); return err })
		},
		"half a bounded one": func(c redis.Conn) error {
			return panics(func() error { _, err := redis.DoContext(c, context.Background(), "SET", "k", bomb{}); return err })
		},
		"an error": func(c redis.Conn) error { return errors.Join(c.Send("GET"), c.Flush()) },
	}
	s := poolServer(t, "--user", "alice", "on", ">pw", "~*", "&*", "+@all")
	p := startPool(t, s, sizes(1, 1, rediscache.WithReadTimeout(300*time.Millisecond))...)
	requireReady(t, p)
	transact := func(t *testing.T, conn redis.Conn) {
		t.Helper()
		require.NoError(t, do(conn, "MULTI"))
		require.NoError(t, conn.Send("ECHO", "mine"))
		replies, err := redis.Strings(conn.Do("EXEC"))
		require.NoError(t, err)
		require.Equal(t, []string{"mine"}, replies)
	}
	conn := borrowOne(t, p)
	transact(t, conn) // Valkey 8.1 and later list multi=-1 before the first transaction and multi=0 after it
	giveBack(t, conn)
	first := s.Clients(t.Name())[0].Field
	for name, spoil := range dirty {
		t.Run(name, func(t *testing.T) {
			conn := borrowOne(t, p)
			require.NoError(t, spoil(conn))
			_ = conn.Close() // an error means that it was closed
			conn = borrowOne(t, p)
			defer conn.Close()
			s.Do("SET", "watched", "changed")
			transact(t, conn)
			clients := s.Clients(first["name"])
			require.Len(t, clients, 1)
			for _, field := range []string{"name", "db", "user", "flags", "sub", "psub", "ssub", "multi", "resp"} {
				require.Equal(t, first[field], clients[0].Field[field], field)
			}
		})
	}
	require.Positive(t, p.Stats().Closed.State)
	require.EqualValues(t, 0, s.Do("EXISTS", "k"))
}

func do(c redis.Conn, cmd string, args ...any) error {
	_, err := c.Do(cmd, args...)
	return err
}

// bomb is an argument whose owner has a bug.
type bomb struct{}

func (bomb) RedisArg() any { panic("bomb") }

// panics returns nil if f does.
func panics(f func() error) (err error) {
	defer func() {
		if recover() == nil {
			err = errors.New("no panic")
		}
	}()
	return f()
}

// What costs a connection is what redigo does not undo, nothing more.
func TestAnOrdinaryCommandCostsNoConnection(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(1, 1)...)
	requireReady(t, p)
	ids := clientIDs(t, s)
	for _, cmd := range [][]any{{"GET", "k"}, {"WATCH", "k"}, {"MULTI"}, {"LPUSH", "k", "v"}, {"INFO"}, {"NOSUCHCOMMAND"}} {
		conn := borrowOne(t, p)
		_, _ = conn.Do(cmd[0].(string), cmd[1:]...)
		giveBack(t, conn)
	}
	require.Equal(t, ids, clientIDs(t, s))
}
