package redistest_test

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/internal/redistest"
)

func TestNobodyCanListenWhereNobodyIs(t *testing.T) {
	addr := redistest.Nobody(t)
	_, err := net.Dial("tcp", addr)
	require.ErrorContains(t, err, "refused")
	_, err = net.Listen("tcp", addr)
	require.ErrorContains(t, err, "in use")
}

// While a server is down, no other test may take its port: reserve looks at the UDP port first.
func TestThePortOfAServerThatIsDownStaysReserved(t *testing.T) {
	s := redistest.NewScript(t, nil)
	s.Close()
	_, err := net.ListenPacket("udp", s.Addr)
	require.ErrorContains(t, err, "in use")
}
