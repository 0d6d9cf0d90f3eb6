package redistest_test

import (
	"crypto/tls"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/gomodule/redigo/redis"
	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
)

func TestEachGivesAnEmptyServerWhoseKeysAge(t *testing.T) {
	redistest.NoLeaks(t)
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		require.EqualValues(t, 0, s.Do("DBSIZE"))
		s.Do("SET", "for an hour", "x", "EX", 3600)
		s.Do("SET", "for good", "x")
		s.Advance(59 * time.Minute)
		left, err := redis.Int(s.Do("PTTL", "for an hour"), nil)
		require.NoError(t, err)
		require.InDelta(t, time.Minute.Milliseconds(), left, 10_000)
		s.Advance(time.Minute)
		require.EqualValues(t, 0, s.Do("EXISTS", "for an hour"))
		require.EqualValues(t, 1, s.Do("EXISTS", "for good"))
		s.Flush()
		require.EqualValues(t, 0, s.Do("DBSIZE"))
	})
}

func TestKeysOfOtherDatabasesAgeToo(t *testing.T) {
	s := redistest.Start(t, "--databases", "3")
	c := dial(t, s.Addr)
	_, err := c.Do("SELECT", 2)
	require.NoError(t, err)
	_, err = c.Do("SET", "k", "v", "EX", 60)
	require.NoError(t, err)
	s.Advance(time.Minute)
	n, err := redis.Int(c.Do("DBSIZE"))
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestAKilledServerComesBackEmptyOnTheSamePort(t *testing.T) {
	redistest.NoLeaks(t)
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		s.Do("SET", "k", "v")
		addr := s.Addr
		s.Kill()
		_, err := redis.Dial("tcp", addr)
		require.Error(t, err)
		s.Kill()
		s.Restart()
		require.Equal(t, addr, s.Addr)
		c := dial(t, addr)
		_, err = redis.String(c.Do("GET", "k"))
		require.ErrorIs(t, err, redis.ErrNil)
		s.Restart()
		_, err = c.Do("PING")
		require.Error(t, err, "the connection should have ended with the server")
	})
}

func TestAStoppedServerIsSilentUntilItGoesOn(t *testing.T) {
	s := redistest.Start(t)
	c := dial(t, s.Addr)
	s.Stop()
	require.NoError(t, c.Send("PING"))
	require.NoError(t, c.Flush())
	_, err := redis.ReceiveWithTimeout(c, 100*time.Millisecond)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	s.Cont()
	require.Equal(t, "PONG", s.Do("PING"))
}

func TestAStoppedServerEndsWithItsTest(t *testing.T) {
	var addr string
	t.Run("stopped", func(t *testing.T) {
		s := redistest.Start(t)
		addr = s.Addr
		s.Stop()
	})
	_, err := redis.Dial("tcp", addr)
	require.Error(t, err)
}

func TestClientsAreCountedWithoutTheAdmin(t *testing.T) {
	s := redistest.Start(t)
	require.Zero(t, s.ClientCount())
	require.Zero(t, s.TotalConnections())
	a := dial(t, s.Addr, redis.DialClientName("a"), redis.DialDatabase(3))
	dial(t, s.Addr, redis.DialClientName("ab"))
	dial(t, s.Addr)

	require.Equal(t, 3, s.ClientCount())
	require.Equal(t, 3, s.TotalConnections())
	clients := s.Clients("a")
	require.Len(t, clients, 1)
	id, err := redis.Int64(a.Do("CLIENT", "ID"))
	require.NoError(t, err)
	require.Equal(t, id, clients[0].ID)
	require.Equal(t, 3, clients[0].DB)
	require.Equal(t, "select", clients[0].Cmd)
	require.Less(t, clients[0].Age, time.Minute)
	require.Equal(t, clients[0].Addr, clients[0].Field["addr"])

	require.Equal(t, 3, s.KillClients())
	redistest.Eventually(t, func() bool { return s.ClientCount() == 0 }, "the killed clients are still there")
	s.Restart()
	require.Zero(t, s.TotalConnections())
}

func TestTheAdminSurvivesTimeoutsAndPasswords(t *testing.T) {
	s := redistest.Start(t, "--requirepass", "first", "--user", "alice", "on", ">pw", "~*", "+@all")
	_, err := dial(t, s.Addr).Do("PING")
	require.ErrorContains(t, err, "NOAUTH")
	dial(t, s.Addr, redis.DialUsername("alice"), redis.DialPassword("pw"))

	s.ConfigSet("requirepass", "second")
	require.NoError(t, s.Admin().Close())
	require.Equal(t, "PONG", s.Do("PING"))
	s.Restart()
	dial(t, s.Addr, redis.DialPassword("first"))
	require.Equal(t, "PONG", s.Do("PING"))
}

func TestServersStartSideBySide(t *testing.T) {
	for range 4 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			s := redistest.Start(t)
			dial(t, s.Addr)
			require.Equal(t, 1, s.TotalConnections())
		})
	}
}

func TestCertificatesAreWhatTheySay(t *testing.T) {
	certs := redistest.NewCerts(t)
	cases := []struct {
		name   string
		cert   redistest.Cert
		client *tls.Config
		fails  string
	}{
		{"right", certs.Server, certs.ClientConfig(), ""},
		{"expired", certs.Expired, certs.ClientConfig(), "expired"},
		{"not yet valid", certs.NotYet, certs.ClientConfig(), "not yet valid"},
		{"self-signed", certs.SelfSigned, certs.ClientConfig(), "unknown authority"},
		{"wrong name", certs.WrongName, certs.ClientConfig(), "127.0.0.1"},
		{"wrong authority", certs.Server, redistest.NewCerts(t).ClientConfig(), "unknown authority"},
		{"no client certificate", certs.Server, &tls.Config{RootCAs: certs.Pool}, "certificate required"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := redistest.StartTLS(t, certs, c.cert)
			if c.fails == "" {
				for range 2 {
					conn := dial(t, s.TLSAddr, redis.DialUseTLS(true), redis.DialTLSConfig(c.client))
					_, err := conn.Do("PING")
					require.NoError(t, err)
					s.Restart()
				}
				return
			}
			conn, err := tls.Dial("tcp", s.TLSAddr, c.client)
			if err == nil {
				// A TLS 1.3 server looks at the client's certificate after the client's handshake. Its
				// reason can be read, as long as nothing is written that it resets.
				defer func() { _ = conn.Close() }()
				_, err = conn.Read(make([]byte, 1))
			}
			require.ErrorContains(t, err, c.fails)
		})
	}
}

func TestLeftGoroutinesAreFound(t *testing.T) {
	redistest.NoLeaks(t)
	require.Empty(t, redistest.Leaked())
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		<-stop
	}()
	left := redistest.Leaked()
	require.Len(t, left, 1)
	require.Contains(t, left[0], "TestLeftGoroutinesAreFound")
	close(stop)
	<-stopped
}

func TestTheURLsDial(t *testing.T) {
	redistest.Each(t, func(t *testing.T, s *redistest.Server) {
		u, err := url.Parse(s.URL())
		require.NoError(t, err)
		require.Equal(t, s.Addr, u.Host)
		if s.Mini == nil {
			c, err := redis.Dial("unix", s.Socket)
			require.NoError(t, err)
			require.NoError(t, c.Close())
		}
	})
}

// dial connects for the length of the test.
func dial(t *testing.T, addr string, options ...redis.DialOption) redis.Conn {
	t.Helper()
	c, err := redis.Dial("tcp", addr, options...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}
