package rediscache

import (
	"context"
	"errors"
	"net/http"
	"os"

	"github.com/rediscache/rediscache/internal/resp"
)

// storeProblem chooses the response to an error of the store. If several match, the
// order of the cases decides:
//
//   - Denied first: wrong credentials are a misconfiguration, whatever error the
//     pool made of them.
//   - ErrOutcomeUnknown before the errors of a write that was not applied.
//   - ErrPoolExhausted and Unavailable before a timeout, because they name the cause
//     of the timeout.
func storeProblem(err error) *problem {
	meaning, _ := resp.MeaningOfError(err)
	timedOut := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
	switch {
	case meaning.Has(resp.Denied):
		return internalError
	case errors.Is(err, ErrWrongType), meaning.Has(resp.WrongType):
		return wrongType
	case meaning.Has(resp.TooLarge):
		return tooLarge
	case errors.Is(err, ErrOutcomeUnknown) && timedOut:
		return unknownTimeout
	case errors.Is(err, ErrOutcomeUnknown):
		return outcomeUnknown
	case errors.Is(err, ErrPoolExhausted), meaning.Has(resp.Unavailable):
		return cacheUnavailable
	case timedOut:
		return cacheTimeout
	case errors.Is(err, ErrUnavailable), errors.Is(err, ErrClosed):
		return cacheUnavailable
	}
	return internalError
}

// problem is an error response: a status, a stable code and a fixed text.
type problem struct {
	status       int
	code, detail string
}

var (
	noSuchRoute        = &problem{404, "no_such_route", "There is no such route."}
	wrongPlace         = &problem{404, "no_such_route", "There is no such route."} // the mount may be wrong
	badPath            = &problem{400, "bad_request", "The path is not correctly escaped."}
	invalidKey         = &problem{422, "invalid_key", "A key has 1 to 512 bytes of UTF-8, no control characters, and is neither . nor .. by itself."}
	methodNotAllowed   = &problem{405, "method_not_allowed", "The method is not supported here."}
	unauthorized       = &problem{401, "unauthorized", "The request needs credentials."}
	forbidden          = &problem{403, "forbidden", "The request is not permitted."}
	preconditionFailed = &problem{412, "precondition_failed", "A write cannot be conditional; nothing was changed."}
	notMatched         = &problem{412, "precondition_failed", "The value is none of those that If-Match names."}
	notAcceptable      = &problem{406, "not_acceptable", "A value is served as application/json or application/octet-stream."}

	badQuery      = &problem{400, "bad_request", "The query is malformed."}
	badForm       = &problem{400, "bad_request", "The form is malformed."}
	badJSON       = &problem{400, "bad_request", "The body is not a JSON object in UTF-8."}
	unknownField  = &problem{400, "bad_request", "The JSON object has a field other than value and ttl."}
	badBody       = &problem{400, "bad_request", "The body could not be read."}
	valueTwice    = &problem{400, "bad_request", "The value is given twice."}
	ttlTwice      = &problem{400, "bad_request", "The ttl is given twice."}
	bodyLost      = &problem{400, "bad_request", "The body is shorter than its Content-Length, or is empty and has none."}
	tooLarge      = &problem{413, "value_too_large", "The value is too large."}
	wrongMedia    = &problem{415, "unsupported_media_type", "The body is of a type or a charset that is not supported."}
	wrongCoding   = &problem{415, "unsupported_media_type", "The body has a content coding, and none is supported."}
	valueRequired = &problem{422, "value_required", "A value is required."}
	invalidValue  = &problem{422, "invalid_value", "The value is not a string."}
	invalidTTL    = &problem{422, "invalid_ttl", "The ttl is not a number of seconds or a duration that is allowed."}

	wrongType        = &problem{409, "wrong_type", "The key holds something that is not a cached value."}
	cacheUnavailable = &problem{503, "cache_unavailable", "The cache is not available now."}
	cacheTimeout     = &problem{504, "cache_timeout", "The cache did not answer in time."}
	outcomeUnknown   = &problem{503, "outcome_unknown", "The connection was lost; the change may have been made or not."}
	unknownTimeout   = &problem{504, "outcome_unknown", "The cache did not answer in time; the change may have been made or not."}
	internalError    = &problem{500, "internal", "The cache backend is misconfigured."}
)

// writeProblem answers with p, as problem+json (RFC 9457) if Accept names that type.
func writeProblem(w http.ResponseWriter, r *http.Request, p *problem) {
	switch p.status {
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", allowedMethods)
	case http.StatusUnsupportedMediaType:
		w.Header().Set("Accept-Post", postableTypes)
		if p == wrongCoding { // and for no other 415: RFC 9110, 12.5.3
			w.Header().Set("Accept-Encoding", "identity")
		}
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	}
	if namesProblem(r) {
		writeJSON(w, r, p.status, problemType, struct {
			Title  string `json:"title"`
			Status int    `json:"status"`
			Detail string `json:"detail"`
			Error  string `json:"error"`
		}{http.StatusText(p.status), p.status, p.detail, p.code})
		return
	}
	writeJSON(w, r, p.status, jsonType, struct {
		Error  string `json:"error"`
		Detail string `json:"detail"`
	}{p.code, p.detail})
}
