package cert_test

import (
	"crypto/tls"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/rediscache/rediscache/bench/internal/cert"
)

func TestAClientVerifiesTheServerAndNoOther(t *testing.T) {
	pair, err := cert.Make(t.TempDir())
	require.NoError(t, err)
	other, err := cert.Make(t.TempDir())
	require.NoError(t, err)

	certificate, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
	require.NoError(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, c) // until the client has gone
			_ = c.Close()
		}
	}()
	defer func() {
		require.NoError(t, l.Close())
		<-done
	}()

	c, err := tls.Dial("tcp", l.Addr().String(), pair.Config())
	require.NoError(t, err)
	require.NoError(t, c.Close())
	_, err = tls.Dial("tcp", l.Addr().String(), other.Config())
	require.ErrorContains(t, err, "unknown authority")

	_, err = cert.Make("/nowhere/at/all")
	require.Error(t, err)
}
