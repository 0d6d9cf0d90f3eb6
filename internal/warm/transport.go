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

// The zero Transport is that of a dialer of which nothing is known.
const (
	Unknown Transport = iota
	Plain
	TLS
)

// String is empty where there is nothing to say.
func (t Transport) String() string {
	if t == TLS {
		return " with TLS"
	}
	return ""
}

// explain adds to the error of a dial that reached a server what may be wrong.
// Where one side expects TLS and the other does not, the server hangs up or
// waits for more, and the error does not name TLS.
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
