//go:build !unix

package warm

import "net"

// poller does not poll on this platform.
type poller struct{}

func newPoller(net.Conn, *Poll) *poller { return nil }

func (*poller) read(c net.Conn, buf []byte) (int, error) { return c.Read(buf) }
