package warm

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

// TLSConn is TLS on a socket. Deadlines and Close are those of the socket. crypto/tls
// works on a buffer below it instead of the socket, for four reasons:
//
//   - A write that times out breaks the TLS state, and a write cannot be non-blocking. So
//     crypto/tls writes its records into memory, and TLSConn writes these to the socket,
//     as much as the socket takes.
//   - One read of the socket takes the replies to many commands, which may be many
//     records.
//   - TLSConn knows when crypto/tls has no bytes left. So bytes that no command asked for
//     cannot hide there.
//   - Records without data, such as a session ticket, can be told from such bytes without
//     waiting for data.
//
// crypto/tls calls functions of the configuration also after the handshake. If one of them
// panics, the connection is closed, and the read or the write returns the panic as an
// error.
type TLSConn struct {
	*Socket
	tls   *tls.Conn
	below *records

	reading sync.Mutex // held by Read, and by quiet if no Read is in flight
	lines   lines      // used by the reader while terse
	full    bool       // used by the reader: the last Read filled its buffer, so crypto/tls may hold more
	spoilt  bool       // used by quiet, which has read what makes the connection useless

	sealed int // used by the writer: bytes of the next write that are in a record already
}

const (
	recordHeader = 5       // type, version and length
	maxSealed    = 1 << 14 // the most bytes of data that fit in one record
	maxRecord    = recordHeader + maxSealed + 2048
)

// Handshake makes a TLS connection. The socket is for it alone from here on. The caller
// closes the socket, also after an error. config must not allow a version below TLS 1.2:
// TLS 1.0 may split a write into two records, and then n of TryWrite is not exact.
func Handshake(ctx context.Context, s *Socket, config *tls.Config) (*TLSConn, error) {
	config = config.Clone()
	// Otherwise the first 128 KiB go out in records of a packet each, which is good for a
	// browser that shows the first lines of a page. Then one write would be many records.
	config.DynamicRecordSizingDisabled = true
	s.sealed = true
	below := &records{Socket: s, handshake: true, buf: make([]byte, 2*maxRecord)}
	t := &TLSConn{Socket: s, below: below, tls: tls.Client(below, config)}
	if err := t.tls.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	below.handshake = false
	return t, nil
}

func (t *TLSConn) setTerse(on bool) {
	t.lines = lines{}
	t.Socket.setTerse(on)
}

// Read returns the data of as many records as have arrived and fit in p.
func (t *TLSConn) Read(p []byte) (n int, err error) {
	t.reading.Lock()
	defer t.reading.Unlock()
	defer t.survive(&err)
	n, err = t.tls.Read(p)
	for err == nil && n < len(p) && t.below.whole() {
		var more int
		more, err = t.readBuffered(p[n:])
		n += more
	}
	if errors.Is(err, errDry) {
		err = nil
	}
	t.full = n == len(p)
	if t.terse.Load() && !t.lines.accept(p[:n]) {
		return 0, errNotRedis
	}
	return n, err
}

// readBuffered does not touch the socket. It returns errDry if the buffered records hold
// no data.
func (t *TLSConn) readBuffered(p []byte) (_ int, err error) {
	defer t.survive(&err)
	t.below.dry = true
	defer func() { t.below.dry = false }()
	return t.tls.Read(p)
}

// quiet reads the records that have arrived on a connection without a reader. A session
// ticket or a new key changes nothing. Data, an alert and the end of the stream mean that
// the connection cannot be used.
func (t *TLSConn) quiet() bool {
	if t.over() {
		return false
	}
	if !t.reading.TryLock() {
		return t.Socket.quiet()
	}
	defer t.reading.Unlock()
	silent := t.Socket.quiet()
	if silent && !t.full && !t.spoilt && t.below.empty() {
		return true
	}
	if !silent && !t.below.whole() { // a read returns at once what Socket.quiet has seen
		t.spoilt = t.SetReadDeadline(time.Time{}) != nil || t.below.fill() != nil || t.spoilt
	}
	t.spoilt = t.spoilt || !t.onlyControl()
	return !t.spoilt
}

// onlyControl reports whether the buffered records hold no data.
func (t *TLSConn) onlyControl() bool {
	var data [1]byte
	n, err := t.readBuffered(data[:])
	t.full = false
	return n == 0 && errors.Is(err, errDry)
}

// Write writes p. After an error n is as exact as that of TryWrite, and the rest can be
// written later.
func (t *TLSConn) Write(p []byte) (int, error) { return t.send(p, t.Socket.Write) }

// TryWrite writes as much as the socket takes without waiting.
func (t *TLSConn) TryWrite(p []byte) (int, error) { return t.send(p, t.Socket.TryWrite) }

// send seals p record by record. It seals a record only if the socket has taken the one
// before, so that at most one record is kept. n does not count the data of a record that
// the socket has not taken to the last byte, because the server cannot open such a record.
func (t *TLSConn) send(p []byte, write func([]byte) (int, error)) (n int, err error) {
	defer t.survive(&err)
	for {
		whole, err := t.below.flush(write)
		if err != nil || !whole {
			return n, err
		}
		if n, t.sealed = n+t.sealed, 0; n == len(p) {
			return n, nil
		}
		next := p[n:min(n+maxSealed, len(p))]
		if _, err := t.tls.Write(next); err != nil {
			return n, err
		}
		t.sealed = len(next)
	}
}

// survive returns a panic of the configuration's functions as an error. The state of
// crypto/tls is unknown after that.
func (t *TLSConn) survive(err *error) {
	if r := recover(); r != nil {
		_ = t.Close() // never fails
		*err = fmt.Errorf("TLS panicked: %v", r)
	}
}

// records is the connection that crypto/tls reads from and writes to. Read returns at most
// the rest of a record, so that crypto/tls never holds bytes of the next one. Write only
// appends to a buffer, but for the handshake.
type records struct {
	*Socket
	handshake bool // the handshake goes on

	// Used by the reader.
	buf        []byte // has room for two records
	start, end int    // buf[start:end] is read from the socket, but not by crypto/tls
	left       int    // bytes of the current record that crypto/tls has not read; zero: its header is not read
	dry        bool   // Read returns errDry instead of reading from the socket

	writing sync.Mutex // held while bytes of out are written to the socket; locked before mu
	mu      sync.Mutex // guards below: both the reader and the writer may append a record
	out     []byte
	sent    int // bytes of out that were written
}

// errDry is temporary for crypto/tls, which reads on after it.
var errDry error = dry{}

type dry struct{}

func (dry) Error() string   { return "no record has arrived" }
func (dry) Timeout() bool   { return true }
func (dry) Temporary() bool { return true }

func (r *records) Read(p []byte) (int, error) {
	for r.left == 0 || r.start == r.end {
		if r.left == 0 && r.end-r.start >= recordHeader {
			r.left = r.recordLen()
			continue
		}
		if r.dry {
			return 0, errDry
		}
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.buf[r.start:min(r.end, r.start+r.left)])
	r.start, r.left = r.start+n, r.left-n
	return n, nil
}

// recordLen returns the length of the record at start, whose header is there.
func (r *records) recordLen() int {
	return recordHeader + int(binary.BigEndian.Uint16(r.buf[r.start+recordHeader-2:]))
}

// fill reads from the socket once. It first writes what the reader owes to the server, such
// as the answer to a request for new keys, unless a writer is about to.
func (r *records) fill() error {
	if r.owes() && r.writing.TryLock() {
		_, _ = r.flushLocked(r.TryWrite) // the next write returns the error
		r.writing.Unlock()
	}
	r.end = copy(r.buf, r.buf[r.start:r.end])
	r.start = 0
	n, err := r.Socket.Read(r.buf[r.end:])
	if r.end += n; n > 0 {
		return nil
	}
	return err
}

// whole reports whether the next record has arrived as a whole.
func (r *records) whole() bool {
	return r.left == 0 && r.end-r.start >= recordHeader && r.end-r.start >= r.recordLen()
}

// empty reports whether crypto/tls has read all that has arrived.
func (r *records) empty() bool { return r.start == r.end }

// Write appends p. It does not wait, so a reader that must answer never waits for a writer
// that waits for the server. During the handshake there is one goroutine, and Write writes.
func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.out = append(r.out, p...)
	r.mu.Unlock()
	if r.handshake {
		if _, err := r.flush(r.Socket.Write); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (r *records) owes() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.out) > 0
}

// flush writes the buffer with write. It reports false if write did not take all of it.
func (r *records) flush(write func([]byte) (int, error)) (whole bool, err error) {
	r.writing.Lock()
	defer r.writing.Unlock()
	return r.flushLocked(write)
}

// flushLocked does not hold mu while it writes. Another goroutine may append meanwhile.
func (r *records) flushLocked(write func([]byte) (int, error)) (whole bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.out) > 0 {
		rest := r.out[r.sent:]
		r.mu.Unlock()
		n, err := write(rest)
		r.mu.Lock()
		if r.sent += n; r.sent == len(r.out) {
			r.out, r.sent = r.out[:0], 0
		}
		if err != nil || n < len(rest) {
			return false, err
		}
	}
	return true, nil
}
