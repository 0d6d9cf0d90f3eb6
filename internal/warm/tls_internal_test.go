package warm

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
)

// tlsPair returns both ends of a TLS connection, and the socket of the far end. Both functions may
// be nil: wrap wraps that socket for TLS, and change changes the configuration of the near end.
func tlsPair(
	t *testing.T, wrap func(far net.Conn) net.Conn, change func(*tls.Config),
) (*TLSConn, *tls.Conn, *net.TCPConn) {
	t.Helper()
	certs := redistest.NewCerts(t)
	s, raw := socketPair(t)
	t.Cleanup(s.Shut)
	t.Cleanup(func() { _ = raw.Close() })
	var end net.Conn = raw
	if wrap != nil {
		end = wrap(raw)
	}
	far := tls.Server(end, certs.ServerConfig())
	done := make(chan error, 1)
	go func() { done <- far.Handshake() }()
	config := certs.ClientConfig()
	config.ServerName = "localhost"
	if change != nil {
		change(config)
	}
	near, err := Handshake(t.Context(), s, config)
	require.NoError(t, err)
	require.NoError(t, <-done)
	near.setTerse(false)
	return near, far, raw
}

// requireQuiet requires that the connection stays quiet, or that it soon is not and stays so.
func requireQuiet(t *testing.T, c *TLSConn, want bool) {
	t.Helper()
	if want {
		for range 100 {
			require.True(t, c.quiet())
		}
		return
	}
	require.Eventually(t, func() bool { return !c.quiet() }, 5*time.Second, time.Millisecond)
	require.False(t, c.quiet())
}

// A server sends session tickets when it wants. They are not an answer to anything.
func TestASessionTicketIsReadWhileNobodyReads(t *testing.T) {
	cache := tls.NewLRUClientSessionCache(1)
	near, far, _ := tlsPair(t, nil, func(config *tls.Config) { config.ClientSessionCache = cache })
	if near.peek == nil {
		t.Skip("sockets cannot be looked at here")
	}
	require.Eventually(t, func() bool {
		require.True(t, near.quiet())
		_, ok := cache.Get("localhost")
		return ok
	}, 5*time.Second, time.Millisecond)

	_, err := far.Write([]byte("+OK\r\n"))
	require.NoError(t, err)
	requireQuiet(t, near, false)
}

func TestTheEndOfTLSIsNotQuiet(t *testing.T) {
	for name, end := range map[string]func(far *tls.Conn, raw *net.TCPConn) error{
		"close_notify":          func(far *tls.Conn, _ *net.TCPConn) error { return far.CloseWrite() },
		"the end of the stream": func(_ *tls.Conn, raw *net.TCPConn) error { return raw.CloseWrite() },
		"noise":                 func(_ *tls.Conn, raw *net.TCPConn) error { _, err := raw.Write([]byte("noise")); return err },
		"an oversized record": func(_ *tls.Conn, raw *net.TCPConn) error {
			_, err := raw.Write([]byte("\x17\x03\x03\xff\xff" + strings.Repeat("x", 1<<16)))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			near, far, raw := tlsPair(t, nil, nil)
			if near.peek == nil {
				t.Skip("sockets cannot be looked at here")
			}
			requireQuiet(t, near, true)
			require.NoError(t, end(far, raw))
			requireQuiet(t, near, false)
		})
	}
}

// What fits in no buffer of the caller stays in crypto/tls, where nothing shows it.
func TestBytesThatCryptoTLSHoldsAreNotQuiet(t *testing.T) {
	near, far, _ := tlsPair(t, nil, nil)
	_, err := far.Write([]byte("+OK\r\n+more"))
	require.NoError(t, err)
	p := make([]byte, len("+OK\r\n"))
	_, err = io.ReadFull(near, p)
	require.NoError(t, err)
	require.False(t, near.quiet())

	near, far, _ = tlsPair(t, nil, nil)
	_, err = far.Write([]byte("+OK\r\n"))
	require.NoError(t, err)
	_, err = io.ReadFull(near, p)
	require.NoError(t, err)
	require.True(t, near.quiet())
	require.False(t, near.full)
}

func TestOneReadTakesManyRecords(t *testing.T) {
	near, far, _ := tlsPair(t, nil, nil)
	for range 100 {
		_, err := far.Write([]byte("+OK\r\n"))
		require.NoError(t, err)
	}
	before, p := near.Received(), make([]byte, 1000)
	_, err := near.Read(p[:1]) // now the records are in the buffer
	require.NoError(t, err)
	require.Positive(t, near.Received()-before)
	for n := 1; n < 500; {
		m, err := near.Read(p[n:])
		require.NoError(t, err)
		require.False(t, near.below.whole(), "a read leaves no record that fits")
		n += m
	}
}

// holding is the server's socket. While held is not nil, writes go there.
type holding struct {
	net.Conn
	held *[]byte
}

func (h *holding) Write(p []byte) (int, error) {
	if h.held == nil {
		return h.Conn.Write(p)
	}
	*h.held = append(*h.held, p...)
	return len(p), nil
}

// A deadline that interrupts a read loses no byte, wherever in a record it comes.
func TestAReadThatIsInterruptedGoesOn(t *testing.T) {
	var end holding
	near, far, raw := tlsPair(t, func(far net.Conn) net.Conn { end.Conn = far; return &end }, nil)
	said := []byte("$10\r\n0123456789\r\n")
	_, err := far.Write(said)
	require.NoError(t, err)
	_, err = near.Read(make([]byte, 100)) // and with it the session ticket
	require.NoError(t, err)
	for cut := range recordHeader + len(said) {
		var record []byte
		end.held = &record
		_, err := far.Write(said)
		require.NoError(t, err)
		before, p, read := near.Received(), make([]byte, 100), make(chan error)
		go func() {
			_, err := near.Read(p)
			read <- err
		}()
		_, err = raw.Write(record[:cut])
		require.NoError(t, err)
		require.Eventually(t, func() bool { return near.Received() == before+int64(cut) }, 5*time.Second, time.Millisecond)
		require.NoError(t, near.SetReadDeadline(time.Unix(1, 0)))
		require.ErrorIs(t, <-read, os.ErrDeadlineExceeded, cut)
		require.NoError(t, near.SetReadDeadline(time.Time{}))
		_, err = raw.Write(record[cut:])
		require.NoError(t, err)
		n, err := near.Read(p)
		require.NoError(t, err)
		require.Equal(t, said, p[:n])
	}
}

// limited is a socket that takes only some bytes.
type limited struct {
	net.Conn
	left int
}

func (l *limited) take(p []byte) (int, error) {
	n, err := l.Conn.Write(p[:min(l.left, len(p))])
	l.left -= n
	return n, err
}

func (l *limited) Write(p []byte) (int, error) {
	n, err := l.take(p)
	if err == nil && n < len(p) {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

// What a write returns decides whether a command is sent again, so it must count each byte that the
// server can use, and after a partial write the rest follows without a gap.
func TestAPartialWriteSaysWhatTheServerCanUse(t *testing.T) {
	p := make([]byte, 2*maxSealed+1000)
	for i := range p {
		p[i] = byte(i % 251)
	}
	for _, tries := range []bool{true, false} {
		for _, goesOn := range []bool{true, false} {
			for limit := 0; limit < len(p)+3*100; limit += 1499 {
				near, far, _ := tlsPair(t, nil, nil)
				l := &limited{Conn: near.Conn, left: limit}
				near.Conn, near.try = l, l.take
				heard := make(chan []byte)
				go func() {
					all, _ := io.ReadAll(far)
					heard <- all
				}()
				var n int
				var err error
				if tries {
					n, err = near.TryWrite(p)
					require.NoError(t, err)
				} else if n, err = near.Write(p); n < len(p) {
					require.ErrorIs(t, err, os.ErrDeadlineExceeded)
				}
				require.LessOrEqual(t, n, limit)
				want := p[:n]
				if goesOn {
					l.left = 1 << 20
					m, err := near.Write(p[n:])
					require.NoError(t, err)
					require.Equal(t, len(p), n+m)
					want = p
				}
				near.Conn = l.Conn // which can end the stream
				require.NoError(t, near.Close())
				require.Equal(t, want, <-heard, "%d bytes taken", limit)
			}
		}
	}
}

// A reader answers a request for new keys, but only into memory, since a writer may use the socket. The
// answer leaves before the reader waits, or with the next write.
func TestWhatAReaderOwesIsSentBeforeItWaits(t *testing.T) {
	near, far, _ := tlsPair(t, nil, nil)
	_, err := near.tls.Write([]byte("owed"))
	require.NoError(t, err)
	require.True(t, near.below.owes())
	read := make(chan error)
	go func() {
		_, err := near.Read(make([]byte, 10))
		read <- err
	}()
	p := make([]byte, len("owed"))
	_, err = io.ReadFull(far, p)
	require.NoError(t, err)
	require.Equal(t, "owed", string(p))
	require.NoError(t, near.Close())
	require.ErrorIs(t, <-read, net.ErrClosed)

	near, far, _ = tlsPair(t, nil, nil)
	_, err = near.tls.Write([]byte("ow"))
	require.NoError(t, err)
	n, err := near.TryWrite([]byte("ed"))
	require.NoError(t, err)
	require.Equal(t, 2, n)
	_, err = io.ReadFull(far, p)
	require.NoError(t, err)
	require.Equal(t, "owed", string(p))
}

// crypto/tls calls this function when a ticket comes, in whichever goroutine reads.
func TestAPanicOfTheConfigurationIsTheErrorOfARead(t *testing.T) {
	near, far, _ := tlsPair(t, nil, func(config *tls.Config) { config.ClientSessionCache = panicking{} })
	_, err := far.Write([]byte("+OK\r\n"))
	require.NoError(t, err)
	_, err = near.Read(make([]byte, 10))
	require.ErrorContains(t, err, "TLS panicked: put")
	_, err = near.Read(make([]byte, 10))
	require.Error(t, err)
	require.False(t, near.quiet())
}

type panicking struct{}

func (panicking) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (panicking) Put(string, *tls.ClientSessionState)        { panic("put") }

func TestInsideTLSADialHearsLinesOnly(t *testing.T) {
	for said, passes := range map[string]bool{
		"+OK\r\n-ERR no\r\n":   true,
		"$4\r\nPONG\r\n":       true,
		"*1000000000\r\n":      false,
		"\x15\x03\x03\x00\x02": false,
	} {
		near, far, _ := tlsPair(t, nil, nil)
		near.setTerse(true)
		_, err := far.Write([]byte(said))
		require.NoError(t, err)
		p := make([]byte, 100)
		n, err := near.Read(p)
		if !passes {
			require.ErrorIs(t, err, errNotRedis, said)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, said, string(p[:n]))
	}
}
