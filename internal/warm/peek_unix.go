//go:build unix

package warm

import (
	"net"
	"syscall"
)

// peeker returns a look at the socket of a connection that nobody uses: false
// means that the server has closed it or has sent what nobody asked for. It
// does not wait. It is nil where the socket is hidden.
func peeker(socket net.Conn) func() bool {
	sc, ok := socket.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	var b [1]byte
	quiet := false
	peek := func(fd uintptr) {
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = err == syscall.EAGAIN
	}
	return func() bool {
		quiet = false
		return raw.Control(peek) == nil && quiet
	}
}
