package systest_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/redistest"
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
	p := startPool(t, s, sizes(1, 1, rediscache.WithReadTimeout(time.Second))...)
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

// The server refuses a command with which redigo undoes the state of a borrower. The next borrower, and
// the caches on the pool, still get their own replies.
func TestNoReplyReachesAnotherBorrowerUnderAnyACL(t *testing.T) {
	subscribe := func(c redis.Conn) error { return errors.Join(c.Send("SUBSCRIBE", "a", "b"), c.Flush()) }
	psubscribe := func(c redis.Conn) error { return errors.Join(c.Send("PSUBSCRIBE", "a*", "b*"), c.Flush()) }
	watch := func(c redis.Conn) error { return do(c, "WATCH", "watched") }
	multi := func(c redis.Conn) error {
		return errors.Join(do(c, "WATCH", "watched"), do(c, "MULTI"), do(c, "GET", "k1"))
	}
	for _, of := range []struct {
		denied string
		dirty  func(redis.Conn) error
	}{
		{"-punsubscribe", subscribe},
		{"-unsubscribe", subscribe},
		{"-echo", subscribe},
		{"-punsubscribe", psubscribe},
		{"-unsubscribe", psubscribe},
		{"-echo", psubscribe},
		{"-unwatch", watch},
		{"-unwatch", func(c redis.Conn) error { _, _ = watch(c), do(c, "UNWATCH"); return nil }},
		{"-unwatch", func(c redis.Conn) error { return errors.Join(c.Send("WATCH", "watched"), c.Send("UNWATCH"), c.Flush()) }},
		{"-discard", multi},
		{"-discard", func(c redis.Conn) error { _, _ = multi(c), do(c, "DISCARD"); return nil }},
		{"-exec", func(c redis.Conn) error { _, _ = multi(c), do(c, "EXEC"); return nil }},
		{"-exec", func(c redis.Conn) error {
			_ = multi(c)
			_, _ = redis.DoContext(c, context.Background(), "EXEC")
			return nil
		}},
		// Three replies each, or from Valkey 8.0 an error.
		{"-get", func(c redis.Conn) error { _ = do(c, "UNSUBSCRIBE", "a", "b", "c"); return nil }},
		{"-get", func(c redis.Conn) error { _ = do(c, "PUNSUBSCRIBE", "a", "b", "c"); return nil }},
	} {
		t.Run(of.denied, func(t *testing.T) {
			s := poolServer(t, "--user", "limited", "on", ">pw", "~*", "&*", "+@all", of.denied)
			url := strings.Replace(s.URL(), "redis://", "redis://limited:pw@", 1)
			for range 2 {
				p := startPoolAt(t, s, url, sizes(1, 1, rediscache.WithReadTimeout(time.Second))...)
				requireReady(t, p)
				conn := borrowOne(t, p)
				require.NoError(t, of.dirty(conn))
				_ = conn.Close() // an error says what was refused
				s.Do("SET", "watched", "changed")
				for range 3 {
					conn = borrowOne(t, p)
					for i := range 4 {
						echo := fmt.Sprint("mine ", i)
						reply, err := redis.String(conn.Do("PING", echo))
						require.NoError(t, err)
						require.Equal(t, echo, reply)
					}
					giveBack(t, conn)
				}
				requireAsNew(t, s)
				for _, conns := range []int{0, 1} {
					c := newCache(t, p, rediscache.WithPipelineConns(conns))
					for i := range 4 {
						value := []byte(fmt.Sprint("value ", i))
						require.NoError(t, c.Set(t.Context(), fmt.Sprint("k", i), value, 0))
						if of.denied == "-get" {
							continue
						}
						got, err := c.Get(t.Context(), fmt.Sprint("k", i))
						require.NoError(t, err)
						require.Equal(t, value, got)
					}
					require.NoError(t, c.Close())
				}
				require.NoError(t, p.Close())
			}
		})
	}
}

// requireAsNew requires that the connections of the test have no subscription, transaction or watched
// key.
func requireAsNew(t *testing.T, s *redistest.Server) {
	t.Helper()
	for _, c := range s.Clients(t.Name()) {
		require.Equal(t, "0", c.Field["sub"])
		require.Equal(t, "0", c.Field["psub"])
		require.NotContains(t, c.Flags, "x", "in a MULTI")
		require.NotContains(t, c.Flags, "d", "a watched key was changed")
		require.NotContains(t, c.Flags, "P", "subscribed")
	}
}

// Valkey 8.0 answers NOSUB to an UNSUBSCRIBE without a subscription.
func TestACleanUpThatTheServerRefusesClosesTheConnection(t *testing.T) {
	redistest.NoLeaks(t)
	script := redistest.NewScript(t, func(c redistest.Call) ([]byte, bool) {
		switch c.Name() {
		case "SUBSCRIBE":
			return []byte("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"), false
		case "UNSUBSCRIBE":
			return []byte("*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n"), false
		case "PUNSUBSCRIBE":
			return []byte("-NOSUB 'PUNSUBSCRIBE' command executed not in subscribed mode\r\n"), false
		case "ECHO", "GET":
			return fmt.Appendf(nil, "$%d\r\n%s\r\n", len(c.Args[1]), c.Args[1]), false
		}
		return redistest.Default(c), false
	})
	p, err := rediscache.NewPool(script.URL(), sizes(1, 1)...)
	require.NoError(t, err)
	defer p.Close()
	for range 3 {
		conn := borrowOne(t, p)
		require.NoError(t, errors.Join(conn.Send("SUBSCRIBE", "a"), conn.Flush()))
		_ = conn.Close() // an error says what was refused
		c := newCache(t, p, rediscache.WithPipelineConns(0))
		for i := range 4 {
			got, err := c.Get(t.Context(), fmt.Sprint("k", i))
			require.NoError(t, err)
			require.Equal(t, fmt.Sprint("k", i), string(got))
		}
	}
	require.EqualValues(t, 3, p.Stats().Closed.State)
}

// redigo allows one goroutine to send while another receives, also errors. This is for the race detector.
func TestASenderAndAReceiverMayShareABorrowedConnection(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(1, 1)...)
	conn := borrowOne(t, p)
	const n = 200
	received := make(chan error)
	require.NoError(t, do(conn, "WATCH", "watched"))
	go func() {
		for range n {
			if _, err := conn.Receive(); err != nil && !strings.HasPrefix(err.Error(), "ERR") {
				received <- err
				return
			}
		}
		received <- nil
	}()
	for range n / 2 {
		require.NoError(t, errors.Join(conn.Send("GET"), conn.Send("CLIENT", "ID"), conn.Flush()))
	}
	require.NoError(t, <-received)
	giveBack(t, conn)
	require.EqualValues(t, 1, p.Stats().Closed.State, "an error while a key was watched")
	requireSimultaneous(t, p, 1)
}

// Do("") sends the buffer and returns all replies, in any state of the connection.
func TestABorrowerGetsTheRepliesToAllThatItSent(t *testing.T) {
	s := poolServer(t)
	p := startPool(t, s, sizes(1, 1)...)
	requireReady(t, p)
	for _, cmd := range [][]any{{"SELECT", 1}, {"CLIENT", "SETNAME", "other"}, {"MULTI"}} {
		conn := borrowOne(t, p)
		require.NoError(t, conn.Send(cmd[0].(string), cmd[1:]...))
		require.NoError(t, conn.Send("SET", "k", "v"))
		replies, err := redis.Values(conn.Do(""))
		require.NoError(t, err, cmd)
		require.Len(t, replies, 2, cmd)
		giveBack(t, conn)
	}
}
