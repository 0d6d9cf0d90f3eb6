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
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// grace is how long a request may go on after the time is up.
const grace = 5 * time.Second

// Spec is what one slice does.
type Spec struct {
	Addr   string // host and port of the server
	Path   string
	Body   []byte // what every answer must hold
	Conns  int
	Warmup time.Duration // runs before the measurement and is not counted
	Slice  time.Duration // how long the measurement lasts
}

// Sample is what one slice measured.
type Sample struct {
	Requests  int64 // answered with 200 and the expected body
	Errors    int64 // connections that ended in an error, which ends their load
	PerSec    float64
	P50, P99  time.Duration
	FirstFail string
}

// Run puts load on the server: first the warm-up, then what is counted, on the
// same connections.
func Run(ctx context.Context, spec Spec) (Sample, error) {
	conns, err := dial(ctx, spec)
	defer func() {
		for _, c := range conns {
			_ = c.conn.Close() // the load is over
		}
	}()
	if err != nil {
		return Sample{}, err
	}
	drive(conns, spec, spec.Warmup)
	for _, c := range conns {
		c.latency.Reset()
	}
	elapsed := drive(conns, spec, spec.Slice)
	return collect(conns, elapsed), ctx.Err()
}

func dial(ctx context.Context, spec Spec) ([]*caller, error) {
	var d net.Dialer
	var conns []*caller
	for range spec.Conns {
		conn, err := d.DialContext(ctx, "tcp", spec.Addr)
		if err != nil {
			return conns, fmt.Errorf("bench: HTTP load: %w", err)
		}
		conns = append(conns, newCaller(conn, spec))
	}
	return conns, nil
}

// drive lets all callers start at once and returns when the last has ended.
func drive(conns []*caller, spec Spec, d time.Duration) time.Duration {
	var done sync.WaitGroup
	begin := time.Now()
	for _, c := range conns {
		done.Go(func() { c.run(spec, begin.Add(d)) })
	}
	done.Wait()
	return time.Since(begin)
}

func collect(conns []*caller, elapsed time.Duration) Sample {
	var s Sample
	total := newHistogram()
	for _, c := range conns {
		total.Merge(c.latency)
		if c.err != nil {
			s.Errors++
			s.FirstFail = c.err.Error()
		}
	}
	s.Requests = total.TotalCount()
	s.PerSec = float64(s.Requests) / elapsed.Seconds()
	s.P50 = time.Duration(total.ValueAtQuantile(50))
	s.P99 = time.Duration(total.ValueAtQuantile(99))
	return s
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, int64(time.Minute), 2)
}

// caller is one connection. After its first error it sends no more.
type caller struct {
	conn    net.Conn
	reader  *bufio.Reader
	request []byte
	body    []byte
	latency *hdrhistogram.Histogram
	err     error
}

func newCaller(conn net.Conn, spec Spec) *caller {
	return &caller{
		conn:    conn,
		reader:  bufio.NewReader(conn),
		request: fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", spec.Path, spec.Addr),
		latency: newHistogram(),
	}
}

func (c *caller) run(spec Spec, deadline time.Time) {
	if c.err == nil {
		c.err = c.conn.SetDeadline(deadline.Add(grace))
	}
	for last := time.Now(); c.err == nil && last.Before(deadline); {
		c.err = c.ask(spec.Body)
		now := time.Now()
		if c.err == nil {
			_ = c.latency.RecordValue(int64(now.Sub(last))) // the deadline keeps it in range
		}
		last = now
	}
}

func (c *caller) ask(want []byte) error {
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
	if !bytes.Equal(c.body, want) {
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
func (c *caller) readHead() (int, error) {
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
