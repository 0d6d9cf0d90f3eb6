//go:build !unix

package pipeline

import "net"

// nonblocking is of no such kind here, and says so.
func nonblocking(socket net.Conn) (write func([]byte) (int, error), waits bool) {
	return socket.Write, true
}
