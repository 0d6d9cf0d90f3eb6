package redistest

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// Nobody returns an address of 127.0.0.1 that refuses every connection until the test ends. The
// client end of a connection holds its port, so no process can listen there.
func Nobody(tb testing.TB) (addr string) {
	tb.Helper()
	peer := listen(tb)
	defer func() { _ = peer.Close() }()
	for range 100 {
		addr := reserve(tb)
		local, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			tb.Fatal(err)
		}
		conn, err := (&net.Dialer{LocalAddr: local}).Dial("tcp", peer.Addr().String())
		if err != nil {
			continue // a connection of the past holds the port
		}
		tb.Cleanup(func() { _ = conn.Close() })
		return addr
	}
	tb.Fatal("no free port")
	return ""
}

// listen listens on a reserved port.
func listen(tb testing.TB) net.Listener {
	tb.Helper()
	for range 20 {
		ln, err := net.Listen("tcp", reserve(tb))
		if err == nil {
			return ln
		}
	}
	tb.Fatal("no free port")
	return nil
}

// reserve returns an address of 127.0.0.1 whose TCP port no other test uses until this one ends, not
// even while nobody listens there: a server that is down must not be mistaken for another test's. The
// mark of a reserved port is a UDP socket on the port of the same number, which all test processes
// see. The ports are below those that systems give to outgoing connections (from 32768 on Linux).
func reserve(tb testing.TB) (addr string) {
	tb.Helper()
	for range 100 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(10000+rand.IntN(22000)))
		mark, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			_ = mark.Close()
			continue
		}
		_ = ln.Close()
		tb.Cleanup(func() { _ = mark.Close() })
		return addr
	}
	tb.Fatal("no free port")
	return ""
}
