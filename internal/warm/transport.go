package warm

import (
	"crypto/tls"
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
// TLS.
func (t Transport) explain(d Dialed, err error) error {
	if answer := redis.Error(""); d.Socket == nil || errors.As(err, &answer) {
		return err
	}
	var late net.Error
	silent := errors.As(err, &late) && late.Timeout()
	ended := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	var record tls.RecordHeaderError
	garbled := errors.As(err, &record) || errors.Is(err, errNotRedis)
	switch {
	case t == TLS && (silent || ended || garbled):
		return fmt.Errorf("%w (if the server does not speak TLS there, write redis:// and not rediss:// in the URL)", err)
	case t == Plain && (ended || garbled):
		return fmt.Errorf("%w (if the server expects TLS there, write rediss:// and not redis:// in the URL)", err)
	}
	return err
}
