//go:build !unix

package warm

import "net"

// peeker cannot look here: the janitor's PING has to find out.
func peeker(net.Conn) func() bool { return nil }
