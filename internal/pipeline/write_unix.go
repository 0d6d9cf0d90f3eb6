//go:build unix

package pipeline

import (
	"net"
	"syscall"
)

// nonblocking returns a write that does not wait for room: it may write less.
// Where there is none it returns one that waits, and says so.
func nonblocking(socket net.Conn) (write func([]byte) (int, error), waits bool) {
	sc, ok := socket.(syscall.Conn)
	if !ok {
		return socket.Write, true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return socket.Write, true
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
	}, false
}
