package warm

import "net"

// Stream carries RESP for a caller that speaks it without redigo: a [Socket], or a
// [TLSConn] on one. One goroutine may read while another writes. The buffers of redigo
// are empty then.
type Stream interface {
	net.Conn

	// TryWrite writes as much of p as it can without waiting, unless Waits reports true. The
	// next call of TryWrite or Write must be for the rest of p, unless the connection is
	// given up. n is exact: the server cannot use any byte after the first n.
	TryWrite(p []byte) (n int, err error)
	// Waits reports whether TryWrite waits for a server that does not read.
	Waits() bool

	// Received returns how many bytes have arrived on the socket.
	Received() int64

	// setTerse begins or ends a dial or a probe. No read may be in flight.
	setTerse(on bool)
	// quiet reports whether the connection is open and has no unread bytes that a command
	// could take for its reply. It does not wait.
	quiet() bool
}

var (
	_ Stream = (*Socket)(nil)
	_ Stream = (*TLSConn)(nil)
)
