package resp

import "math"

// text makes a string of a line without an allocation where it is a frequent one.
func text(line []byte) string {
	switch string(line) {
	case "OK":
		return "OK"
	case "PONG":
		return "PONG"
	case "QUEUED":
		return "QUEUED"
	}
	return string(line)
}

// parseInt reads the whole range of int64. Like redigo's it takes leading zeros and "-0".
func parseInt(line []byte) (int64, error) {
	if len(line) == 0 || line[0] != '-' {
		n, err := parseDigits(line, math.MaxInt64, errIntRange)
		return int64(n), err
	}
	n, err := parseDigits(line[1:], -math.MinInt64, errIntRange)
	return -int64(n), err // int64 of 1<<63 is the smallest one, and so is its negation
}

// parseDigits reads decimal digits, of which there must be one. A number above limit is the error
// beyond.
func parseDigits(line []byte, limit uint64, beyond error) (uint64, error) {
	if len(line) == 0 {
		return 0, errNumber
	}
	var n uint64
	for _, c := range line {
		d := uint64(c - '0')
		if d > 9 {
			return 0, errNumber
		}
		// limit is at most 1<<63, so the product of what passes and the digit fit in 64 bits.
		if n > limit/10 {
			return 0, beyond
		}
		if n = n*10 + d; n > limit {
			return 0, beyond
		}
	}
	return n, nil
}
