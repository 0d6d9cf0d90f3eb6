package resp

import "math"

// text returns a line as a string. It does not allocate for frequent lines.
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

// parseInt parses any int64. It accepts leading zeros and "-0", as redigo does.
func parseInt(line []byte) (int64, error) {
	if len(line) == 0 || line[0] != '-' {
		n, err := parseDigits(line, math.MaxInt64, errIntRange)
		return int64(n), err
	}
	n, err := parseDigits(line[1:], -math.MinInt64, errIntRange)
	return -int64(n), err // int64(1<<63) is math.MinInt64, and so is its negation
}

// parseDigits parses one or more decimal digits. For a number above limit it returns the error beyond.
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
		// limit is at most 1<<63, so n*10 + d does not overflow after this check.
		if n > limit/10 {
			return 0, beyond
		}
		if n = n*10 + d; n > limit {
			return 0, beyond
		}
	}
	return n, nil
}
