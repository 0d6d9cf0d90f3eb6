//go:build unix

package warm

import (
	"net"
	"syscall"
)

// nonblocking returns a write that does not wait for room, so it may write less. It is
// nil if the socket is hidden.
func nonblocking(socket net.Conn) func([]byte) (int, error) {
	sc, ok := socket.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	var p []byte // one writer at a time
	var n int
	var failed error
	once := func(fd uintptr) bool {
		n, failed = syscall.Write(int(fd), p)
		return true
	}
	return func(b []byte) (int, error) {
		p = b
		err := raw.Write(once)
		p = nil
		switch {
		case err != nil:
			return 0, err
		case failed == syscall.EAGAIN || failed == syscall.EINTR:
			return 0, nil
		case failed != nil:
			return 0, failed
		}
		return n, nil
	}
}
