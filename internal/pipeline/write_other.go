//go:build !unix

package pipeline

import "net"

// nonblocking waits here: a caller that writes may be late by as long as the
// server does not read.
func nonblocking(socket net.Conn) func([]byte) (int, error) { return socket.Write }
