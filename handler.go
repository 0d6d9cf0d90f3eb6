package rediscache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	maxKeyBytes = 512

	jsonType    = "application/json"
	problemType = "application/problem+json"
	rawType     = "application/octet-stream"
	textType    = "text/plain"
	formType    = "application/x-www-form-urlencoded"

	allowedMethods = "GET, HEAD, POST, DELETE, OPTIONS"
	postableTypes  = jsonType + ", " + rawType + ", " + textType + ", " + formType
)

// Store is what the handler needs of a cache; a [Cache] is a Store. The handler
// chooses the response to an error by matching it against the errors of this
// package, those of package context, and redis.Error.
type Store interface {
	// Get returns the value of key, or an error that matches ErrNotFound.
	Get(ctx context.Context, key string) ([]byte, error)
	// Set stores value under key for ttl, which is DefaultTTL when the client
	// names none.
	Set(ctx context.Context, key string, value []byte, ttl time.Duration) error
	// Delete removes the keys and returns how many of them existed.
	Delete(ctx context.Context, keys ...string) (int, error)
}

var _ Store = (*Cache)(nil)

// RefusedError is an error that the function of [WithKeyFunc] returns to choose
// the status of a refused request. Any other error refuses the request with 403.
type RefusedError struct {
	// Status is 401 or 403. Any other value, zero included, counts as 403.
	Status int
	// Challenge is the WWW-Authenticate header of a 401. A 401 should have one;
	// empty sends none. For a 403 Challenge is ignored.
	Challenge string
}

// Error returns a fixed text, without the Challenge.
func (e *RefusedError) Error() string { return "rediscache: request refused" }

// NewHandler returns a handler for the three routes of a cache: POST, GET (and
// HEAD) and DELETE of base path + "/" + key, where the base path is "/cache"
// unless [WithBasePath] changes it. NewHandler panics, as a mux does on a bad
// pattern, when s is nil or an option is invalid; the panic names all faults.
//
// Mount it with one line. The prefix that StripPrefix removes may end with a slash:
//
//	mux.Handle("/cache/", h)
//	mux.Handle("/api/", http.StripPrefix("/api", h))
//	mux.Handle("/kv/", http.StripPrefix("/kv/", rootHandler)) // WithBasePath("")
//
// A handler that is mounted elsewhere answers 404 to every request. At the first
// request that shows it, the handler logs one line ([WithLogger]).
//
// The key is one path segment, unescaped from the path as the client sent it:
// a%2Fb is the key "a/b" behind any router, and a/b is 404. A key has 1 to 512
// bytes of UTF-8 without control characters and is neither "." nor "..".
//
// The handler checks a request in this order: the path (404), the key (400, 422),
// the method (204 for OPTIONS, 405), the function of WithKeyFunc (401, 403), the
// query (400), the type, the coding and the Content-Length of the body (415, 413),
// the conditions of a write (412), the body and its value and ttl (400, 413, 422).
// Then it calls the store. For a hit it checks Accept (406), If-Match (412) and
// If-None-Match (304). OPTIONS comes before WithKeyFunc, because a CORS preflight
// has no credentials.
//
// POST takes the value from the query or a form (value=), from the "value" of a
// JSON object, or from the whole body if its type is application/octet-stream or
// text/plain. A body without a type counts as application/octet-stream. Text is
// UTF-8 or its subset US-ASCII. An empty body is the empty value if its type is
// application/octet-stream or text/plain; otherwise it counts as absent. The time
// to live is "ttl" in the query, the form or the object: whole seconds or a Go
// duration.
//
// POST stores a body as the client sent it, or refuses the request with 400. If a
// middleware has called ParseForm or FormValue, the handler takes the form from
// r.PostForm, without the pairs that net/http could not parse. A middleware that
// reads any other body must put a new reader into r.Body; a middleware that
// decodes the body must set r.ContentLength to the new length or to -1. Otherwise
// the body is shorter than its Content-Length, and the handler answers 400 and
// logs a line at level Error. If the length is unknown (chunked, or HTTP/2 or HTTP/1.0
// without a Content-Length), the handler refuses an empty body that has a type,
// because a middleware may have read it. It cannot detect that a middleware has read
// only a part of such a body.
//
// In the JSON of GET and POST, a value that is not UTF-8 appears as base64 with
// "encoding":"base64".
//
// GET and HEAD honour If-Match (412) and If-None-Match (304). They ignore date
// conditions and Range, because values have no date and are served whole. A POST
// or DELETE with If-Match or If-None-Match is refused with 412, because the store
// cannot test a condition and change the value in one step. A DELETE of a key that
// does not exist is 404 with any condition.
//
// The text of an error of the store or of WithKeyFunc never reaches the client.
// The handler logs it without the key and the value, at most one line a second for
// each error code ([WithLogger]). The handler is safe for concurrent use if the
// store is, and starts no goroutine.
func NewHandler(s Store, opts ...HandlerOption) http.Handler {
	c, err := newHandlerConfig(opts)
	if cache, ok := s.(*Cache); s == nil || ok && cache == nil {
		err = errors.Join(errors.New("rediscache: NewHandler: the store is nil"), err)
	}
	if err != nil {
		panic(err)
	}
	return &handler{
		store: s, prefix: strings.TrimPrefix(c.basePath+"/", "/"), failures: newFailureLog(c.logger), handlerConfig: c,
	}
}

// handler is immutable.
type handler struct {
	store    Store
	prefix   string // of an escaped path, before the key, without the slash at its start
	failures *failureLog
	handlerConfig
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	key, p := h.key(r.URL)
	if p != nil {
		if p == wrongPlace {
			h.failures.logWrongMount(r, h.basePath)
		}
		writeProblem(w, r, p)
		return
	}
	var serve func(w http.ResponseWriter, r *http.Request, key, stored string)
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		serve = h.get
	case http.MethodPost:
		serve = h.post
	case http.MethodDelete:
		serve = h.delete
	case http.MethodOptions:
		w.Header().Set("Allow", allowedMethods)
		w.WriteHeader(http.StatusNoContent)
		return
	default:
		writeProblem(w, r, methodNotAllowed)
		return
	}
	stored, err := h.keyFunc(r, key)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	serve(w, r, key, stored)
}

// key takes the key from the path as the client sent it. Routers decode different
// parts of a path, but u.EscapedPath is the same under all of them. A path has no
// slash at its start after a StripPrefix of a prefix that ends with a slash.
func (h *handler) key(u *url.URL) (string, *problem) {
	escaped := strings.TrimPrefix(u.EscapedPath(), "/")
	segment, inside := strings.CutPrefix(escaped, h.prefix)
	several := strings.Contains(segment, "/")
	switch {
	case !inside && escaped+"/" != h.prefix, several && h.prefix == "":
		return "", wrongPlace
	case !inside, several, segment == "":
		return "", noSuchRoute
	}
	key, err := url.PathUnescape(segment)
	if err != nil {
		return "", badPath
	}
	if len(key) > maxKeyBytes || key == "." || key == ".." || !utf8.ValidString(key) ||
		strings.ContainsFunc(key, unicode.IsControl) {
		return "", invalidKey
	}
	return key, nil
}

func (h *handler) get(w http.ResponseWriter, r *http.Request, key, stored string) {
	value, err := h.store.Get(r.Context(), stored)
	if err != nil {
		h.storeFailed(w, r, err)
		return
	}
	raw, ok := wantsRaw(r)
	if !ok {
		writeProblem(w, r, notAcceptable)
		return
	}
	tag := etag(value, raw)
	if given := r.Header.Values("If-Match"); len(given) > 0 && !listsTag(given, tag, strongly) {
		writeProblem(w, r, notMatched)
		return
	}
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Add("Vary", "Accept")
	w.Header().Set("ETag", tag)
	switch {
	case listsTag(r.Header.Values("If-None-Match"), tag, weakly):
		w.WriteHeader(http.StatusNotModified)
	case raw:
		writeBody(w, r, http.StatusOK, rawType, value)
	default:
		out := reply{Key: key}
		out.show(value)
		writeJSON(w, r, http.StatusOK, jsonType, out)
	}
}

func (h *handler) post(w http.ResponseWriter, r *http.Request, key, stored string) {
	in, p := h.read(w, r)
	if p != nil {
		writeProblem(w, r, p)
		return
	}
	if err := h.store.Set(r.Context(), stored, in.value, in.ttl); err != nil {
		h.storeFailed(w, r, err)
		return
	}
	out := reply{Message: "Data cached successfully", Key: key}
	if !in.raw {
		out.show(in.value)
	}
	writeJSON(w, r, http.StatusOK, jsonType, out)
}

func (h *handler) delete(w http.ResponseWriter, r *http.Request, key, stored string) {
	if conditional(r) {
		// A server ignores a condition if the response without it is 404 (RFC 9110, 13.2.1).
		if _, err := h.store.Get(r.Context(), stored); err != nil && !errors.Is(err, ErrWrongType) {
			h.storeFailed(w, r, err)
			return
		}
		writeProblem(w, r, preconditionFailed)
		return
	}
	n, err := h.store.Delete(r.Context(), stored)
	switch {
	case err != nil:
		h.storeFailed(w, r, err)
	case n == 0:
		writeMissing(w, r)
	default:
		out := reply{Message: "Data with key " + key + " deleted successfully"}
		writeJSON(w, r, http.StatusOK, jsonType, out)
	}
}

// etag returns the strong tag of a representation. The JSON and the raw form of a
// value differ, so their tags differ too.
func etag(value []byte, raw bool) string {
	sum := sha256.Sum256(value)
	tag := hex.EncodeToString(sum[:16])
	if raw {
		tag += "-raw"
	}
	return `"` + tag + `"`
}

// reply is the body of a success. The JSON has the fields in this order.
type reply struct {
	Message  string  `json:"message,omitempty"`
	Key      string  `json:"key,omitempty"` // no key is empty
	Value    *string `json:"value,omitempty"`
	Encoding string  `json:"encoding,omitempty"`
}

// show puts value into the reply, as base64 if it is not UTF-8.
func (o *reply) show(value []byte) {
	text := string(value)
	if !utf8.ValidString(text) {
		text, o.Encoding = base64.StdEncoding.EncodeToString(value), "base64"
	}
	o.Value = &text
}

// refuse answers a request for which the function of WithKeyFunc returned err.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	p := forbidden
	if refused := (*RefusedError)(nil); errors.As(err, &refused) && refused != nil &&
		refused.Status == http.StatusUnauthorized {
		p = unauthorized
		if refused.Challenge != "" {
			w.Header().Set("WWW-Authenticate", refused.Challenge)
		}
	}
	h.failures.log(r, slog.LevelDebug, p.code, err)
	writeProblem(w, r, p)
}

// storeFailed answers a request for which the store returned err.
func (h *handler) storeFailed(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, ErrNotFound) {
		writeMissing(w, r)
		return
	}
	if errors.Is(r.Context().Err(), context.Canceled) {
		// The client is gone and reads nothing. But if the server itself cancelled
		// the request, net/http would send 200 without this status.
		h.failures.log(r, slog.LevelDebug, "client_gone", err)
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	p, level := storeProblem(err), slog.LevelWarn
	if p.status == http.StatusInternalServerError {
		level = slog.LevelError
	}
	h.failures.log(r, level, p.code, err)
	writeProblem(w, r, p)
}

// writeMissing answers 404 for a key that does not exist, always with the same body.
func writeMissing(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, r, http.StatusNotFound, jsonType, reply{Message: "Key not found"})
}

// writeJSON writes compact JSON that leaves <, > and & as they are.
func writeJSON(w http.ResponseWriter, r *http.Request, status int, contentType string, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // a struct of strings and numbers, which cannot fail
	writeBody(w, r, status, contentType, bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}

// writeBody answers with body, or for HEAD with the headers alone. It ignores an
// error of Write, because then the client is gone.
func writeBody(w http.ResponseWriter, r *http.Request, status int, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}
