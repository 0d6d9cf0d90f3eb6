package resp

import "strconv"

// AppendArray appends the head of a command of n arguments, including its name. The caller appends
// these n arguments after it.
func AppendArray(b []byte, n int) []byte {
	return appendHead(b, '*', n)
}

// AppendBulk appends one argument. It copies s.
func AppendBulk[T ~string | ~[]byte](b []byte, s T) []byte {
	b = appendHead(b, '$', len(s))
	b = append(b, s...)
	return append(b, '\r', '\n')
}

// AppendLength appends the head of an argument of n bytes. The caller appends the bytes and CRLF after it.
func AppendLength(b []byte, n int) []byte { return appendHead(b, '$', n) }

// AppendInt appends one argument, n in decimal.
func AppendInt(b []byte, n int64) []byte {
	var digits [20]byte // enough for the smallest int64 and its sign
	return AppendBulk(b, strconv.AppendInt(digits[:0], n, 10))
}

// appendHead appends the type and the length of an array or a bulk string. Lengths below 100, which
// nearly all names, keys and counts have, take a faster path.
func appendHead(b []byte, kind byte, n int) []byte {
	switch {
	case 0 <= n && n < 10:
		return append(b, kind, '0'+byte(n), '\r', '\n')
	case 10 <= n && n < 100:
		return append(b, kind, '0'+byte(n/10), '0'+byte(n%10), '\r', '\n')
	}
	b = append(b, kind)
	b = strconv.AppendInt(b, int64(n), 10)
	return append(b, '\r', '\n')
}

// AppendJoined appends one argument, which is head and tail joined.
func AppendJoined(b []byte, head, tail string) []byte {
	b = appendHead(b, '$', len(head)+len(tail))
	b = append(b, head...)
	b = append(b, tail...)
	return append(b, '\r', '\n')
}
