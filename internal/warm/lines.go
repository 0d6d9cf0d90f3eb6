package warm

import "errors"

// lines checks what a server sends during a dial or a probe. It accepts only replies of
// one line, which are all that redigo needs then, and a bulk PONG. The zero value is for
// the begin of a dial or a probe.
type lines struct {
	inLine bool
	inPONG int // how many bytes of bulkPONG were read
	heard  int // how many bytes were read
}

const (
	maxTerse = 64 << 10         // the most bytes that the server may send in a dial or a probe
	bulkPONG = "$4\r\nPONG\r\n" // accepted besides lines, because some proxies answer PING with it
)

var errNotRedis = errors.New("the server does not answer as Redis does")

// accept reports whether p may come next.
func (l *lines) accept(p []byte) bool {
	for _, b := range p {
		switch {
		case l.inPONG > 0 || !l.inLine && b == '$':
			if b != bulkPONG[l.inPONG] {
				return false
			}
			l.inPONG = (l.inPONG + 1) % len(bulkPONG)
		case !l.inLine && b != '+' && b != '-':
			return false
		default:
			l.inLine = b != '\n'
		}
	}
	l.heard += len(p)
	return l.heard <= maxTerse
}
