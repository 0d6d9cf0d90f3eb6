package warm

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/gomodule/redigo/redis"
)

// Transport is the protocol that carries RESP. Only error texts depend on it.
type Transport uint8

// The transports. The zero Transport means that the transport is unknown.
const (
	Unknown Transport = iota
	Plain
	TLS
)

// String returns " with TLS" for TLS and "" otherwise, for use in error texts.
func (t Transport) String() string {
	if t == TLS {
		return " with TLS"
	}
	return ""
}

// explain adds a hint to the error of a dial that reached a server. If only one side uses
// TLS, the server closes the connection or waits for more, and the error does not mention
// TLS. An error after the handshake has no hint, because both sides use TLS then.
func (t Transport) explain(d Dialed, err error) error {
	if answer := redis.Error(""); d.Socket == nil || errors.As(err, &answer) {
		return err
	}
	var late net.Error
	silent := errors.As(err, &late) && late.Timeout()
	ended := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	var record tls.RecordHeaderError
	garbled := errors.As(err, &record) || errors.Is(err, errNotRedis)
	_, secure := d.Stream.(*TLSConn)
	var hint string
	switch {
	case t == TLS && !secure && (silent || ended || garbled):
		hint = "if the server does not speak TLS there, write redis:// and not rediss:// in the URL"
	case t == Plain && (ended || garbled):
		hint = "if the server expects TLS there, write rediss:// and not redis:// in the URL"
	case is[x509.UnknownAuthorityError](err):
		hint = "if the server has an authority of its own, set it as RootCAs in WithTLSConfig"
	case is[x509.HostnameError](err):
		hint = "if the server has another name than in the URL, set it as ServerName in WithTLSConfig"
	default:
		return err
	}
	return fmt.Errorf("%w (%s)", err, hint)
}

// is reports whether an error of type E is in the tree of err.
func is[E error](err error) bool {
	var e E
	return errors.As(err, &e)
}
