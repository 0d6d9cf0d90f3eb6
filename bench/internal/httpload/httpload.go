// Package httpload asks an HTTP server the same thing again and again over
// keep-alive connections. It reads and writes the sockets itself: a load that
// costs little leaves more of the machine to the server.
package httpload

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"
)

// Conn is one connection.
type Conn struct {
	conn    net.Conn
	reader  *bufio.Reader
	request []byte
	body    []byte
	want    []byte
}

// Dial opens n connections to the server at addr, a host and a port, that ask for path
// and expect want as the body; they fail when patience is over. With an error it returns
// those that it has opened. The caller must close them.
func Dial(ctx context.Context, addr, path string, want []byte, n int, patience time.Duration) ([]*Conn, error) {
	var d net.Dialer
	var conns []*Conn
	for range n {
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err != nil {
			return conns, fmt.Errorf("bench: HTTP load: %w", err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience)) // of an open socket
		conns = append(conns, &Conn{
			conn:    conn,
			reader:  bufio.NewReader(conn),
			request: fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, addr),
			want:    want,
		})
	}
	return conns, nil
}

// Close closes the connection.
func (c *Conn) Close() error { return c.conn.Close() }

// Do sends one request and reads the answer, which must be 200 with the expected body.
func (c *Conn) Do() error {
	if _, err := c.conn.Write(c.request); err != nil {
		return err
	}
	length, err := c.readHead()
	if err != nil {
		return err
	}
	if cap(c.body) < length {
		c.body = make([]byte, length)
	}
	c.body = c.body[:length]
	if _, err := io.ReadFull(c.reader, c.body); err != nil {
		return err
	}
	if !bytes.Equal(c.body, c.want) {
		return errors.New("bench: the answer is not the expected one")
	}
	return nil
}

var (
	statusOK      = []byte("HTTP/1.1 200 ")
	contentLength = []byte("Content-Length:")
)

// readHead reads up to the empty line and returns the length of what follows.
// An answer without a length is an error: it could not be kept alive.
func (c *Conn) readHead() (int, error) {
	line, err := c.reader.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if !bytes.HasPrefix(line, statusOK) {
		return 0, fmt.Errorf("bench: the answer is %q", bytes.TrimSpace(line))
	}
	length := -1
	for {
		line, err := c.reader.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		if v, ok := bytes.CutPrefix(line, contentLength); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(v))); err != nil {
				return 0, fmt.Errorf("bench: the answer's length: %w", err)
			}
		}
	}
	if length < 0 {
		return 0, errors.New("bench: the answer has no length")
	}
	return length, nil
}
