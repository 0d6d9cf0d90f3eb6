package rediscache

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// input is the value and the ttl of a POST. If raw is true, the value is the whole
// body, and the response does not repeat it.
type input struct {
	value []byte
	ttl   time.Duration
	raw   bool
}

// fields holds every value and every ttl of a request: those in the query and those
// in the body.
type fields struct {
	values, ttls []string
}

// read parses a POST. It does not read the body if the head of the request already
// refuses it, and reads at most bodyLimit bytes.
func (h *handler) read(w http.ResponseWriter, r *http.Request) (input, *problem) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return input{}, badQuery
	}
	f := fields{query["value"], query["ttl"]}
	mediaType, p := bodyType(r.Header)
	if p != nil {
		return input{}, p
	}
	limit := h.bodyLimit(mediaType)
	if r.ContentLength > limit {
		return input{}, tooLarge
	}
	if conditional(r) {
		return input{}, preconditionFailed
	}
	if mediaType == formType && len(r.PostForm) > 0 { // a middleware has called ParseForm, which reads the body
		f.addForm(r.PostForm)
		return h.check(f, false)
	}
	body, p := h.readBody(w, r, mediaType, limit)
	if p != nil {
		return input{}, p
	}
	raw := false
	switch {
	case mediaType == rawType || mediaType == textType || mediaType == "" && len(body) > 0:
		raw = len(f.values) == 0 || len(body) > 0
		if raw {
			f.values = append(f.values, string(body))
		}
	case len(body) == 0:
	case mediaType == formType:
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return input{}, badForm
		}
		f.addForm(form)
	default:
		p = f.addJSON(body)
	}
	if p != nil {
		return input{}, p
	}
	return h.check(f, raw)
}

// check returns the input in f, which must hold one value and at most one ttl.
func (h *handler) check(f fields, raw bool) (input, *problem) {
	switch {
	case len(f.values) > 1:
		return input{}, valueTwice
	case len(f.ttls) > 1:
		return input{}, ttlTwice
	case len(f.values) == 0:
		return input{}, valueRequired
	case int64(len(f.values[0])) > h.maxValueBytes:
		return input{}, tooLarge
	}
	in := input{value: []byte(f.values[0]), ttl: DefaultTTL, raw: raw}
	if len(f.ttls) == 1 {
		ttl, ok := h.parseTTL(f.ttls[0])
		if !ok {
			return input{}, invalidTTL
		}
		in.ttl = ttl
	}
	return in, nil
}

// parseTTL parses whole seconds or a Go duration.
func (h *handler) parseTTL(s string) (time.Duration, bool) {
	d, err := time.ParseDuration(s)
	if n, notSeconds := strconv.ParseInt(s, 10, 64); notSeconds == nil {
		if n < 1 || n > int64(h.maxTTL/time.Second) {
			return 0, false // before the product can overflow
		}
		d, err = time.Duration(n)*time.Second, nil
	}
	return d, err == nil && d >= time.Millisecond && d <= h.maxTTL
}

// charsets are the names of UTF-8, and of its subset ASCII, that clients send.
var charsets = []string{"utf-8", "utf8", "us-ascii", "ascii"}

// bodyType returns the media type of the body, or "" if the request names none. A type
// that POST does not accept is a problem.
func bodyType(header http.Header) (string, *problem) {
	for _, coding := range listElements(header.Values("Content-Encoding")) {
		if !strings.EqualFold(coding, "identity") {
			return "", wrongCoding
		}
	}
	named := strings.Join(header.Values("Content-Type"), ",")
	if named == "" {
		return "", nil
	}
	mediaType, params, err := parseMediaType(named)
	if err != nil {
		return "", wrongMedia
	}
	if charset, ok := params["charset"]; ok && !slices.Contains(charsets, strings.ToLower(charset)) {
		return "", wrongMedia
	}
	switch mediaType {
	case jsonType, rawType, textType, formType:
		return mediaType, nil
	}
	return "", wrongMedia
}

// parseMediaType is mime.ParseMediaType, but takes empty parameters, as in
// "text/plain;;charset=utf-8" (RFC 9110, 5.6.6).
func parseMediaType(s string) (string, map[string]string, error) {
	mediaType, params, err := mime.ParseMediaType(s)
	if err == nil {
		return mediaType, params, nil
	}
	var parts []string
	for _, part := range splitUnquoted(s, ';') {
		if strings.TrimSpace(part) != "" {
			parts = append(parts, part)
		}
	}
	return mime.ParseMediaType(strings.Join(parts, ";"))
}

// listElements returns the elements of a header list, without the empty ones.
func listElements(lines []string) (list []string) {
	for _, line := range lines {
		for _, element := range splitUnquoted(line, ',') {
			if element = strings.TrimSpace(element); element != "" {
				list = append(list, element)
			}
		}
	}
	return list
}

// splitUnquoted splits s at each separator that is not in a quoted string (RFC
// 9110, 5.6.4).
func splitUnquoted(s string, separator byte) (parts []string) {
	start, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++ // an escaped quotation mark does not end the string
		case c == separator && !quoted:
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	return append(parts, s[start:])
}

// bodyLimit returns the most bytes that a body with a valid value can have. JSON may
// escape one byte as six, forms as three; 4096 more are for names, the ttl and spaces.
func (h *handler) bodyLimit(mediaType string) int64 {
	const factor, around = 6, 4096
	switch {
	case mediaType != jsonType && mediaType != formType:
		return h.maxValueBytes
	case h.maxValueBytes > (math.MaxInt64-around)/factor:
		return math.MaxInt64
	}
	return h.maxValueBytes*factor + around
}

// readBody reads the body, and refuses a body that a middleware may have read. After
// that, reads return io.EOF: the body is shorter than its Content-Length or, if the
// length is unknown (chunked, HTTP/2, HTTP/1.0), empty. A client may also have sent an
// empty body of unknown length, and net/http reads no body of an HTTP/1.0 request
// without a Content-Length. If the empty body has a type, readBody refuses it, because
// POST would store the empty value; a client that wants this must send a
// Content-Length. Without a type the body counts as absent.
func (h *handler) readBody(w http.ResponseWriter, r *http.Request, mediaType string, limit int64) ([]byte, *problem) {
	var body []byte
	if r.Body != nil {
		var err error
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
		if tooMuch := (*http.MaxBytesError)(nil); errors.As(err, &tooMuch) {
			return nil, tooLarge
		}
		if err != nil {
			return nil, badBody
		}
	}
	switch {
	case int64(len(body)) < r.ContentLength: // net/http would have returned an error, so it was not the client
		h.failures.log(r, slog.LevelError, bodyLost.code,
			errors.New("the body is shorter than Content-Length: a middleware has read it before the handler"))
		return nil, bodyLost
	case len(body) == 0 && !knowsLength(r) && mediaType != "":
		return nil, bodyLost
	}
	return body, nil
}

// knowsLength reports whether the header of a request gives the length of its body. In
// HTTP/1.1 a request without a length has no body.
func knowsLength(r *http.Request) bool {
	return r.ContentLength > 0 || r.ContentLength == 0 && (r.ProtoAtLeast(1, 1) || r.Header.Get("Content-Length") != "")
}

func (f *fields) addForm(form url.Values) {
	f.values = append(f.values, form["value"]...)
	f.ttls = append(f.ttls, form["ttl"]...)
}

// addJSON decodes an object field by field, because json.Unmarshal keeps the last of
// two fields with one name, takes "VALUE" for "value", and replaces invalid UTF-8. A
// null counts as absent. A byte order mark before the object is skipped (RFC 8259,
// 8.1).
func (f *fields) addJSON(body []byte) *problem {
	body = bytes.TrimPrefix(body, []byte("\ufeff"))
	if !utf8.Valid(body) || !json.Valid(body) || loneSurrogate(body) {
		return badJSON
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return badJSON
	}
	var value, ttl json.RawMessage
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return badJSON
		}
		var dst *json.RawMessage
		twice := valueTwice
		switch name {
		case "value":
			dst = &value
		case "ttl":
			dst, twice = &ttl, ttlTwice
		default:
			return unknownField
		}
		if *dst != nil {
			return twice
		}
		if err := dec.Decode(dst); err != nil {
			return badJSON
		}
	}
	return f.addRaw(value, ttl)
}

// addRaw adds the two fields of a JSON object, which are nil if they are absent.
func (f *fields) addRaw(value, ttl json.RawMessage) *problem {
	if value != nil && value[0] != 'n' {
		var s string
		if json.Unmarshal(value, &s) != nil {
			return invalidValue
		}
		f.values = append(f.values, s)
	}
	if ttl != nil && ttl[0] != 'n' {
		s := string(ttl) // a number reads as its text
		if ttl[0] == '"' && json.Unmarshal(ttl, &s) != nil {
			return badJSON
		}
		f.ttls = append(f.ttls, s)
	}
	return nil
}

// loneSurrogate reports whether the escapes of valid JSON include half of a surrogate
// pair. It encodes no character, and encoding/json would replace it.
func loneSurrogate(b []byte) bool {
	for {
		i := bytes.IndexByte(b, '\\')
		if i < 0 {
			return false
		}
		if b = b[i:]; b[1] != 'u' {
			b = b[2:]
			continue
		}
		first := escaped(b)
		b = b[6:]
		if !utf16.IsSurrogate(first) {
			continue
		}
		if !bytes.HasPrefix(b, []byte(`\u`)) || utf16.DecodeRune(first, escaped(b)) == unicode.ReplacementChar {
			return true
		}
		b = b[6:]
	}
}

// escaped returns the code unit of the \uXXXX at the start of b. json.Valid has
// checked its digits.
func escaped(b []byte) rune {
	n, _ := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(n)
}

// conditional reports whether a request has an If-Match or an If-None-Match.
func conditional(r *http.Request) bool {
	return len(r.Header.Values("If-Match")) > 0 || len(r.Header.Values("If-None-Match")) > 0
}

// comparison is how to compare entity tags (RFC 9110, 8.8.3.2).
type comparison bool

const (
	strongly comparison = false // a tag with W/ never matches, as for If-Match
	weakly   comparison = true  // W/ is ignored, as for If-None-Match
)

// listsTag reports whether an If-Match or an If-None-Match names tag, which is strong.
// A malformed element and all elements after it match nothing.
func listsTag(headers []string, tag string, how comparison) bool {
	list := strings.TrimSpace(strings.Join(headers, ","))
	if list == "*" {
		return true
	}
	for {
		var weak bool
		list, weak = strings.CutPrefix(strings.TrimLeft(list, " \t,"), "W/")
		if !strings.HasPrefix(list, `"`) {
			return false
		}
		opaque, rest, closed := strings.Cut(list[1:], `"`)
		if closed && `"`+opaque+`"` == tag && (how == weakly || !weak) {
			return true
		}
		list = rest
	}
}

// mediaRange is one element of an Accept header.
type mediaRange struct {
	name string
	q    float64
}

// mediaRanges parses the elements of an Accept header, and skips malformed ones.
func mediaRanges(accept []string) []mediaRange {
	var ranges []mediaRange
	for _, item := range accept {
		name, params, err := parseMediaType(item)
		if err != nil {
			continue
		}
		q := 1.0
		if s, ok := params["q"]; ok {
			if q, err = strconv.ParseFloat(s, 64); err != nil || !(q >= 0 && q <= 1) {
				continue
			}
		}
		ranges = append(ranges, mediaRange{name, q})
	}
	return ranges
}

// namesProblem reports whether Accept names problem+json.
func namesProblem(r *http.Request) bool {
	for _, a := range mediaRanges(listElements(r.Header.Values("Accept"))) {
		if a.name == problemType && a.q > 0 {
			return true
		}
	}
	return false
}

// wantsRaw reports whether the client prefers the bytes of a value to JSON, and
// whether it accepts one of them. The type with the higher quality wins, then the
// type that Accept names more exactly, then JSON. Without Accept it is JSON.
func wantsRaw(r *http.Request) (raw, ok bool) {
	accept := listElements(r.Header.Values("Accept"))
	if len(accept) == 0 {
		return false, true
	}
	ranges := mediaRanges(accept)
	asJSON, exactJSON := weigh(ranges, jsonType)
	asRaw, exactRaw := weigh(ranges, rawType)
	raw = asRaw > asJSON || asRaw == asJSON && exactRaw > exactJSON
	return raw, asRaw > 0 || asJSON > 0
}

// weigh returns the quality of an application type, from the range that names it most
// exactly, and how exactly: 3 by name, 2 as application/*, 1 as */*, 0 not at all.
func weigh(ranges []mediaRange, mediaType string) (q float64, exact int) {
	for _, a := range ranges {
		n := 0
		switch a.name {
		case mediaType:
			n = 3
		case "application/*":
			n = 2
		case "*/*":
			n = 1
		}
		if n > exact {
			q, exact = a.q, n
		}
	}
	return q, exact
}
