package resp

import (
	"bytes"
	"errors"
	"io"
	"os"
)

// The defaults of [Limits].
const (
	// DefaultMaxBulk is the default of proto-max-bulk-len, the longest string that Redis stores.
	DefaultMaxBulk = 512 << 20
	// DefaultMaxArray is the number of arguments that a command could have before Redis 7.0. A
	// reply of so many elements takes 80 MiB, in addition to their values.
	DefaultMaxArray = 1 << 20
	// DefaultMaxDepth is enough for all data commands. In Redis 7.0, XREAD nests 5 arrays, XREAD in
	// an EXEC 6, XINFO STREAM FULL 7 and COMMAND 8. Only COMMAND DOCS, with 12, and scripts nest more.
	DefaultMaxDepth = 8
	// DefaultMaxLine is the bound of Redis on an inline command. A length has a few bytes, an error
	// a few hundred.
	DefaultMaxLine = 64 << 10
)

const (
	// bufferSize is enough for the replies to about 600 GETs of 100 bytes. So one read of the socket
	// gets the replies to all calls of 512 callers.
	bufferSize = 64 << 10
	// firstBytes and firstElems bound the first allocation for a bulk string and for an array,
	// because the peer may claim a length that it never sends. A value of up to firstBytes costs
	// one allocation of its exact size.
	firstBytes = 1 << 20
	firstElems = 1 << 10
	// growth bounds each further allocation: at most this many times the bytes that have arrived.
	growth = 4
	// maxEmptyReads is the limit of bufio: a source that so often returns neither bytes nor an error
	// is broken.
	maxEmptyReads = 100
)

// Limits bounds one reply. A zero limit is the default; for a negative limit [NewReader] panics.
type Limits struct {
	// MaxBulk bounds the length of a bulk string.
	MaxBulk int
	// MaxArray bounds the sum of the elements of all arrays in a reply.
	MaxArray int
	// MaxDepth bounds nesting: 1 allows an array, 2 an array in an array.
	MaxDepth int
	// MaxLine bounds the line of a status, an error, an integer or a length, including the type and CRLF.
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
// A Reader allocates at most a constant and a multiple of the bytes that have arrived, whatever
// lengths the peer claims.
type Reader struct {
	src io.Reader
	lim Limits // immutable

	buf        []byte // never shorter than MaxLine, so that a line always fits
	start, end int    // buf[start:end] is read and not yet parsed

	// The reply that Read reads. If Read timed out, it has read a part of the reply.
	left   int     // how many more elements the reply may have
	arrays []array // the incomplete arrays around the next element, the outermost first
	bulk   []byte  // the bytes of an incomplete bulk string that have arrived; nil: there is none
	size   int     // the length of the complete bulk string

	srcErr error // the error that src returned with its last bytes; Read returns it after these bytes
	err    error // the first error that broke the Reader
}

// array is an array some of whose elements have not arrived.
type array struct {
	elems []Reply
	n     int // the number of all elements
}

// NewReader returns a Reader of src, which it reads with a buffer of at least 64 KiB.
//
// The Reader calls src.Read only while its buffer does not hold a whole reply. So src.Read can set a
// deadline: it does so once for each read of the socket, not once for each reply. If src times out
// (os.ErrDeadlineExceeded), the next Read continues the same reply. Any other error breaks the Reader.
func NewReader(src io.Reader, lim Limits) *Reader {
	lim = lim.withDefaults()
	return &Reader{src: src, lim: lim, buf: make([]byte, max(bufferSize, lim.MaxLine))}
}

// Reset makes r read from src, as a new Reader would. It drops all buffered bytes.
func (r *Reader) Reset(src io.Reader) {
	clear(r.arrays[:cap(r.arrays)]) // so that a Reader that is not in use keeps no values in memory
	*r = Reader{src: src, lim: r.lim, buf: r.buf, arrays: r.arrays[:0]}
}

// Read returns the next reply.
//
// The error is a [*ProtocolError], [io.EOF] if the stream ended between two replies,
// [io.ErrUnexpectedEOF] if it ended within a reply, or another error of the source. Unless the source
// timed out, every later Read returns the same error.
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

// begun reports whether Read has taken a part of a reply out of the buffer.
func (r *Reader) begun() bool { return len(r.arrays) > 0 || r.bulk != nil }

// Fill reads from the source once if the buffer is empty. An error of Fill, unlike one of Read, does
// not break the Reader.
func (r *Reader) Fill() error {
	if r.err != nil || r.Buffered() > 0 {
		return r.err
	}
	return r.fill()
}

// Whole reports whether the buffer holds that many whole replies, so that Read returns them without a
// read of the source. For an array it returns false, because it does not search for its end.
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
		case err != nil: // the length of nil, or a malformed one: Read needs no more bytes
		case len(b) < int(n)+len("\r\n"):
			return false
		default:
			b = b[int(n)+len("\r\n"):]
		}
	}
	return true
}

// Buffered returns the number of bytes in the buffer. If the caller expects no reply, the peer must not
// have sent these bytes.
func (r *Reader) Buffered() int {
	return r.end - r.start
}

// read reads a reply, or the rest of a reply. After an error the next read continues the same reply.
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

// next returns a pointer to the next element, which the caller sets.
func (a *array) next() *Reply {
	n := len(a.elems)
	if n == cap(a.elems) {
		a.elems = append(make([]Reply, 0, grow(n, a.n)), a.elems...)
	}
	return &a.elems[:n+1][n]
}

// readOne reads a reply, or the head of an array that is not empty. It adds such an array to r.arrays
// and reports that it begins.
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
			p := make([]byte, n) // the compiler does not zero it, because copy follows
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

// readBulk reads the rest of a bulk string that is longer than the buffered bytes.
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

// readArray parses the head of an array. It sets dst if the array is nil or empty, and otherwise adds
// the array to r.arrays and reports that it begins.
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

// readInto reads at least one byte into p. It reads from the source into p itself if p is as large as
// the buffer. Otherwise it fills the buffer, so that the same read also gets the bytes that follow p.
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

// readLine reads a line and returns it without its type and CRLF. The line is a part of the buffer, and
// is valid until the next fill. The buffer must not be empty.
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

// takeLine returns the line whose '\n' is byte i of the buffered bytes.
func (r *Reader) takeLine(i int) ([]byte, error) {
	if i >= r.lim.MaxLine {
		return nil, errLineLimit
	}
	line := r.buf[r.start : r.start+i]
	if i < 2 || line[i-1] != '\r' { // line[0] is the type
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

// fill reads at least one more byte into the buffer. The bytes that it moves to the front are at most a
// part of a line, because readBulk takes the bytes of a bulk string out of the buffer.
func (r *Reader) fill() error {
	r.end = copy(r.buf, r.buf[r.start:r.end])
	r.start = 0
	n, err := r.readSource(r.buf[r.end:])
	r.end += n
	return err
}

// readSource reads at least one byte, or returns an error.
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

// grow returns the next capacity of a slice that has the capacity have and will need want.
func grow(have, want int) int {
	if have >= want/growth {
		return want
	}
	return have * growth
}
