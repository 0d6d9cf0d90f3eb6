package rediscache

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// input is what a POST asks for. A raw value is a whole body, which the answer
// does not repeat.
type input struct {
	value []byte
	ttl   time.Duration
	raw   bool
}

// fields holds every value and every ttl that a request gave, wherever it did.
type fields struct {
	values, ttls []string
}

// read takes a POST apart. It reads no more of the body than a value within
// the limit can need.
func (h *handler) read(w http.ResponseWriter, r *http.Request) (input, *problem) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return input{}, badQuery
	}
	f := fields{query["value"], query["ttl"]}
	mediaType, ok := bodyType(r.Header)
	if !ok {
		return input{}, wrongMedia
	}
	body, p := h.readBody(w, r, mediaType)
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
		p = f.addForm(string(body))
	default:
		p = f.addJSON(body)
	}
	if p != nil {
		return input{}, p
	}
	return h.judge(f, raw)
}

// judge makes an input of f if it holds one value, and a ttl at most.
func (h *handler) judge(f fields, raw bool) (input, *problem) {
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

// parseTTL takes whole seconds or a Go duration.
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

// bodyType returns the media type of a body, empty when the request names
// none, and whether it is one that POST takes.
func bodyType(header http.Header) (string, bool) {
	if c := header.Get("Content-Encoding"); c != "" && !strings.EqualFold(c, "identity") {
		return "", false
	}
	named := strings.Join(header.Values("Content-Type"), ",")
	if named == "" {
		return "", true
	}
	mediaType, params, err := mime.ParseMediaType(named)
	if err != nil {
		return "", false
	}
	if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
		return "", false
	}
	switch mediaType {
	case jsonType, rawType, textType, formType:
		return mediaType, true
	}
	return "", false
}

// readBody reads the body, bounded by what the longest value can take up: JSON
// and forms can write a byte as six, and have some more around it.
func (h *handler) readBody(w http.ResponseWriter, r *http.Request, mediaType string) ([]byte, *problem) {
	limit := h.maxValueBytes
	if mediaType == jsonType || mediaType == formType {
		const factor, around = 6, 4096
		if limit > (math.MaxInt64-around)/factor {
			limit = math.MaxInt64
		} else {
			limit = limit*factor + around
		}
	}
	if r.ContentLength > limit {
		return nil, tooLarge
	}
	if r.Body == nil {
		return nil, nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if tooMuch := (*http.MaxBytesError)(nil); errors.As(err, &tooMuch) {
		return nil, tooLarge
	}
	if err != nil {
		return nil, badBody
	}
	return body, nil
}

func (f *fields) addForm(body string) *problem {
	form, err := url.ParseQuery(body)
	if err != nil {
		return badForm
	}
	f.values = append(f.values, form["value"]...)
	f.ttls = append(f.ttls, form["ttl"]...)
	return nil
}

// addJSON takes an object apart field by field, since json.Unmarshal keeps the
// last of two fields of one name, takes "VALUE" for "value", and replaces what
// is not UTF-8. A null counts as absent.
func (f *fields) addJSON(body []byte) *problem {
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

// addRaw takes the two fields of a JSON object, nil where one is absent.
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

// loneSurrogate finds half of a surrogate pair among the escapes of valid
// JSON. It stands for no character, and encoding/json would replace it.
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

// escaped reads the code unit of a \uXXXX at the start of b, whose digits
// json.Valid has seen.
func escaped(b []byte) rune {
	n, _ := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(n)
}

// conditional says whether a request is to be served only in some state of
// the key.
func conditional(r *http.Request) bool {
	return len(r.Header.Values("If-Match")) > 0 || len(r.Header.Values("If-None-Match")) > 0
}

// listsTag says whether an If-None-Match names tag. It compares weakly, as RFC
// 9110 asks: a W/ before a tag does not count. What is malformed and what comes
// after it matches nothing.
func listsTag(headers []string, tag string) bool {
	list := strings.TrimSpace(strings.Join(headers, ","))
	if list == "*" {
		return true
	}
	for {
		list = strings.TrimPrefix(strings.TrimLeft(list, " \t,"), "W/")
		if !strings.HasPrefix(list, `"`) {
			return false
		}
		opaque, rest, closed := strings.Cut(list[1:], `"`)
		if closed && `"`+opaque+`"` == tag {
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

// accepted reads the Accept header and leaves out what is malformed.
func accepted(r *http.Request) []mediaRange {
	var ranges []mediaRange
	for item := range strings.SplitSeq(strings.Join(r.Header.Values("Accept"), ","), ",") {
		name, params, err := mime.ParseMediaType(item)
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

// namesProblem says whether the client asks for problem+json by name.
func namesProblem(r *http.Request) bool {
	for _, a := range accepted(r) {
		if a.name == problemType && a.q > 0 {
			return true
		}
	}
	return false
}

// wantsRaw says whether the client prefers a value's bytes to JSON, and whether
// it accepts either. The higher quality wins, of equals the one named more
// exactly, then JSON. No Accept header, or an empty one, is JSON.
func wantsRaw(r *http.Request) (raw, ok bool) {
	if strings.TrimSpace(strings.Join(r.Header.Values("Accept"), "")) == "" {
		return false, true
	}
	ranges := accepted(r)
	asJSON, exactJSON := weigh(ranges, jsonType)
	asRaw, exactRaw := weigh(ranges, rawType)
	raw = asRaw > asJSON || asRaw == asJSON && exactRaw > exactJSON
	return raw, asRaw > 0 || asJSON > 0
}

// weigh returns the quality of a type of the application tree and how exactly
// it is named: the most exact range counts.
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
