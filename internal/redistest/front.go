package redistest

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
)

// NewTLSFront puts TLS before target, a host:port without it: what a client sends is forwarded, and
// what target answers comes back. When target closes a connection, its client gets the last bytes,
// the end of TLS and the end of the stream. The front ends with the test.
func NewTLSFront(tb testing.TB, target string, config *tls.Config) (addr string) {
	tb.Helper()
	ln := listen(tb)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	tb.Cleanup(func() {
		cancel()
		_ = ln.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				stop := context.AfterFunc(ctx, func() { _ = client.Close() })
				defer stop()
				front(ctx, tls.Server(client, config), target)
			})
		}
	})
	return ln.Addr().String()
}

// front serves one client.
func front(ctx context.Context, client *tls.Conn, target string) {
	defer func() { _ = client.Close() }()
	if client.HandshakeContext(ctx) != nil {
		return
	}
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", target)
	if err != nil {
		return
	}
	server := conn.(*net.TCPConn)
	defer func() { _ = server.Close() }()
	var up sync.WaitGroup
	defer up.Wait()
	up.Go(func() {
		_, _ = io.Copy(server, client)
		_ = server.CloseWrite()
		_, _ = io.Copy(io.Discard, client) // after a failed write the last answers still come back
	})
	_, _ = io.Copy(client, server)
	_ = client.Close() // ends the other direction too
}
