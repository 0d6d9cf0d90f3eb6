package resp

import (
	"bytes"
	"errors"
	"io"
	"os"
)

// The defaults of [Limits].
const (
	// DefaultMaxBulk is Redis' own proto-max-bulk-len: it stores no longer string.
	DefaultMaxBulk = 512 << 20
	// DefaultMaxArray is what Redis allowed as the arguments of one command until 7.0 raised it. A
	// reply of so many elements takes 80 MiB besides their values.
	DefaultMaxArray = 1 << 20
	// DefaultMaxDepth takes what data commands reply. Of Redis 7.0, XREAD nests 5 arrays, 6 in an
	// EXEC, XINFO STREAM FULL 7 and COMMAND 8; only COMMAND DOCS, 12, and scripts go beyond.
	DefaultMaxDepth = 8
	// DefaultMaxLine is Redis' own bound on an inline command. Lengths take a few bytes and errors
	// a few hundred.
	DefaultMaxLine = 64 << 10
)

const (
	// bufferSize holds the replies to some 600 GETs of 100 bytes: one read of the socket for all
	// that a full house of callers has in flight.
	bufferSize = 64 << 10
	// firstBytes and firstElems are the most that is allocated on a peer's word alone, for a bulk
	// string and for one array. Up to here a value costs one exact allocation.
	firstBytes = 1 << 20
	firstElems = 1 << 10
	// growth bounds what is allocated beyond that: at most this many times what really came.
	growth = 4
	// maxEmptyReads is bufio's: a source that returns nothing so often is taken to be broken.
	maxEmptyReads = 100
)

// Limits bounds one reply. Zero means the default; a negative limit makes [NewReader] panic.
type Limits struct {
	// MaxBulk bounds the length of a bulk string.
	MaxBulk int
	// MaxArray bounds the elements of a whole reply, nested arrays included: they do not multiply.
	MaxArray int
	// MaxDepth bounds nesting: 1 allows an array, 2 an array in an array.
	MaxDepth int
	// MaxLine bounds the line of a status, an error, an integer or a length, type and CRLF included.
	MaxLine int
}

func (l Limits) withDefaults() Limits {
	if l.MaxBulk < 0 || l.MaxArray < 0 || l.MaxDepth < 0 || l.MaxLine < 0 {
		panic("rediscache: negative limit of a reply")
	}
	orDefault := func(p *int, d int) {
		if *p == 0 {
			*p = d
		}
	}
	orDefault(&l.MaxBulk, DefaultMaxBulk)
	orDefault(&l.MaxArray, DefaultMaxArray)
	orDefault(&l.MaxDepth, DefaultMaxDepth)
	orDefault(&l.MaxLine, DefaultMaxLine)
	return l
}

// Reader reads replies through a buffer of its own. It is not safe for concurrent use.
//
// What it allocates is bounded by a constant and by a multiple of the bytes that really came,
// whatever lengths the peer claims.
type Reader struct {
	src io.Reader
	lim Limits // immutable

	buf        []byte // never shorter than MaxLine, so that a line always fits
	start, end int    // buf[start:end] is read and not yet parsed

	// The reply being read, of which a Read that timed out may have read a part.
	left   int     // elements that the reply may still have
	arrays []array // the arrays that the next element lies in, the outermost first
	bulk   []byte  // the bulk string that has begun, as far as it has come; nil: none
	size   int     // of bulk when it is complete

	srcErr error // came with the last bytes of src; returned once they are used up
	err    error // the first failure; the Reader is broken for good
}

// array is an array whose elements have not all come.
type array struct {
	elems []Reply
	n     int // how many there will be
}

// NewReader reads replies from src, at least 64 KiB at a time where they are there to be read.
//
// src is asked only when what is buffered does not hold a whole reply. So a caller that wants a
// deadline passes a src of its own whose Read arms it: once for a read of the socket, not once for
// a reply. If src times out (os.ErrDeadlineExceeded), the next Read goes on where that one stopped. Any
// other error breaks the Reader.
func NewReader(src io.Reader, lim Limits) *Reader {
	lim = lim.withDefaults()
	return &Reader{src: src, lim: lim, buf: make([]byte, max(bufferSize, lim.MaxLine))}
}

// Reset makes r read from src, as a new Reader would. It drops all buffered bytes.
func (r *Reader) Reset(src io.Reader) {
	clear(r.arrays[:cap(r.arrays)]) // a Reader that is not in use holds no values
	*r = Reader{src: src, lim: r.lim, buf: r.buf, arrays: r.arrays[:0]}
}

// Read returns the next reply and waits for it as long as the source does.
//
// An error is a [*ProtocolError]; [io.EOF] where the stream ended between two replies and
// [io.ErrUnexpectedEOF] where it ended within one; or what the source returned. Unless the source timed
// out, every later Read returns the same error.
func (r *Reader) Read() (Reply, error) {
	if r.err != nil {
		return Reply{}, r.err
	}
	if !r.begun() {
		r.left = r.lim.MaxArray
	}
	reply, err := r.read()
	switch {
	case err == nil:
		return reply, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Reply{}, err
	case errors.Is(err, io.EOF) && (r.begun() || r.Buffered() > 0):
		err = io.ErrUnexpectedEOF
	}
	r.err = err
	return Reply{}, err
}

// begun reports whether a part of a reply was read that is not in the buffer any more.
func (r *Reader) begun() bool { return len(r.arrays) > 0 || r.bulk != nil }

// Fill asks the source once if nothing is buffered. Unlike that of Read, its error leaves the Reader
// as it was.
func (r *Reader) Fill() error {
	if r.err != nil || r.Buffered() > 0 {
		return r.err
	}
	return r.fill()
}

// Whole reports whether the buffer holds that many replies, so that Read returns them without a
// read of the source. It returns false for an array, whose end Whole does not look for.
func (r *Reader) Whole(replies int) bool {
	b := r.buf[r.start:r.end]
	for range replies {
		i := bytes.IndexByte(b, '\n')
		if i < 2 || b[0] == '*' {
			return false
		}
		kind, line := b[0], b[:i-1]
		if b = b[i+1:]; kind != '$' {
			continue
		}
		n, err := parseDigits(line[1:], uint64(r.lim.MaxBulk), errBulkLimit)
		switch {
		case err != nil: // a nil reply or a broken length, which Read returns at once
		case len(b) < int(n)+len("\r\n"):
			return false
		default:
			b = b[int(n)+len("\r\n"):]
		}
	}
	return true
}

// Buffered returns how many bytes came from the source and are not yet part of a returned reply.
// When no reply is expected they are an intruder's: the peer sent more than it was asked for.
func (r *Reader) Buffered() int {
	return r.end - r.start
}

// read reads a reply, or the rest of one. An error leaves the Reader where the next read goes on.
func (r *Reader) read() (reply Reply, err error) {
	for {
		dst := &reply
		if n := len(r.arrays); n > 0 {
			dst = r.arrays[n-1].next()
		}
		begins, err := r.readOne(dst)
		if err != nil {
			return Reply{}, err
		}
		for !begins {
			n := len(r.arrays)
			if n == 0 {
				return reply, nil
			}
			a := &r.arrays[n-1]
			if a.elems = a.elems[:len(a.elems)+1]; len(a.elems) < a.n {
				break
			}
			elems := a.elems
			a.elems, r.arrays = nil, r.arrays[:n-1]
			dst = &reply
			if n > 1 {
				dst = r.arrays[n-2].next()
			}
			*dst = Reply{Kind: Array, Elems: elems}
		}
	}
}

// next returns the place of the next element.
func (a *array) next() *Reply {
	n := len(a.elems)
	if n == cap(a.elems) {
		a.elems = append(make([]Reply, 0, grow(n, a.n)), a.elems...)
	}
	return &a.elems[:n+1][n]
}

// readOne reads a reply, or the beginning of an array with elements, which it adds to arrays.
func (r *Reader) readOne(dst *Reply) (begins bool, err error) {
	if r.bulk != nil {
		return false, r.readBulk(dst)
	}
	if r.start == r.end {
		if err := r.fill(); err != nil {
			return false, err
		}
	}
	kind := r.buf[r.start]
	switch kind {
	case '$', '+', ':', '*', '-':
	case '_', '#', ',', '(', '!', '=', '%', '~', '>', '|':
		return false, errRESP3
	default:
		return false, errType
	}
	line, err := r.readLine()
	if err != nil {
		return false, err
	}
	switch kind {
	case '+':
		dst.Kind, dst.Text = Status, text(line)
	case '-':
		dst.Kind, dst.Text = Error, text(line)
	case ':':
		dst.Kind = Int
		dst.Int, err = parseInt(line)
	case '$':
		n, err := length(line, r.lim.MaxBulk, errBulkLimit)
		switch {
		case err != nil:
			return false, err
		case n < 0:
			dst.Kind = Nil
			return false, nil
		case n+len("\r\n") <= r.Buffered():
			p := make([]byte, n) // with the copy right behind it, it is not zeroed
			copy(p, r.buf[r.start:r.end])
			dst.Kind, dst.Bytes = Bulk, p
			r.start += n
			return false, r.readTerminator()
		}
		r.bulk, r.size = make([]byte, 0, min(n, firstBytes)), n
		return false, r.readBulk(dst)
	case '*':
		return r.readArray(dst, line)
	}
	return false, err
}

// readBulk reads the rest of a bulk string that is not buffered as a whole.
func (r *Reader) readBulk(dst *Reply) error {
	for len(r.bulk) < r.size {
		p := r.bulk
		if len(p) == cap(p) {
			p = append(make([]byte, 0, grow(len(p), r.size)), p...)
			r.bulk = p
		}
		m, err := r.readInto(p[len(p):cap(p)])
		if err != nil {
			return err
		}
		r.bulk = p[:len(p)+m]
	}
	if err := r.readTerminator(); err != nil {
		return err
	}
	dst.Kind, dst.Bytes, r.bulk = Bulk, r.bulk, nil
	return nil
}

// readArray reads the head of an array.
func (r *Reader) readArray(dst *Reply, line []byte) (begins bool, err error) {
	n, err := length(line, r.left, errArrayLimit)
	switch {
	case err != nil:
		return false, err
	case len(r.arrays) == r.lim.MaxDepth:
		return false, errDepthLimit
	case n < 0:
		dst.Kind = Nil
		return false, nil
	}
	r.left -= n
	elems := make([]Reply, 0, min(n, firstElems))
	if n == 0 {
		dst.Kind, dst.Elems = Array, elems
		return false, nil
	}
	r.arrays = append(r.arrays, array{elems, n})
	return true, nil
}

// readInto reads at least one byte into p: past the buffer where p could take a whole one, else
// through it, so that what follows p comes with the same read.
func (r *Reader) readInto(p []byte) (int, error) {
	if r.start == r.end {
		if len(p) >= len(r.buf) {
			return r.readSource(p)
		}
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.buf[r.start:r.end])
	r.start += n
	return n, nil
}

// length parses the length of a bulk string or an array, -1 for nil.
func length(line []byte, limit int, beyond error) (int, error) {
	if len(line) == 2 && line[0] == '-' && line[1] == '1' {
		return -1, nil
	}
	n, err := parseDigits(line, uint64(limit), beyond)
	return int(n), err
}

// readLine reads a line and returns it without its type and CRLF. The line lies in the buffer and
// stands until the next fill. A caller has seen that its first byte is there.
func (r *Reader) readLine() ([]byte, error) {
	scanned := 0
	for {
		i := bytes.IndexByte(r.buf[r.start+scanned:r.end], '\n')
		if i >= 0 {
			return r.takeLine(scanned + i)
		}
		if scanned = r.Buffered(); scanned >= r.lim.MaxLine {
			return nil, errLineLimit
		}
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
}

// takeLine takes the line whose '\n' is its byte i.
func (r *Reader) takeLine(i int) ([]byte, error) {
	if i >= r.lim.MaxLine {
		return nil, errLineLimit
	}
	line := r.buf[r.start : r.start+i]
	if i < 2 || line[i-1] != '\r' { // byte 0 is the type
		return nil, errTerminator
	}
	r.start += i + 1
	return line[1 : i-1], nil
}

// readTerminator reads the CRLF after a bulk string.
func (r *Reader) readTerminator() error {
	for r.Buffered() < 2 {
		if err := r.fill(); err != nil {
			return err
		}
	}
	if r.buf[r.start] != '\r' || r.buf[r.start+1] != '\n' {
		return errTerminator
	}
	r.start += 2
	return nil
}

// fill reads at least one byte more into the buffer. What is moved to its front is at most a part
// of a line: bulk strings leave the buffer as they come.
func (r *Reader) fill() error {
	r.end = copy(r.buf, r.buf[r.start:r.end])
	r.start = 0
	n, err := r.readSource(r.buf[r.end:])
	r.end += n
	return err
}

// readSource reads at least one byte or fails.
func (r *Reader) readSource(p []byte) (int, error) {
	if r.srcErr != nil {
		return 0, r.srcErr
	}
	for range maxEmptyReads {
		n, err := r.src.Read(p)
		if n > 0 {
			r.srcErr = err
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, io.ErrNoProgress
}

// grow returns the capacity after have, on the way to want. The last step is want itself.
func grow(have, want int) int {
	if have >= want/growth {
		return want
	}
	return have * growth
}
