package rediscacheotel

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/rediscache/rediscache"
	"github.com/rediscache/rediscache/internal/recorder"
)

// Observer returns the observer for a cache, to be given to rediscache.WithObserver. A
// span has the name of its operation and then this name, which is also the attribute
// rediscache.cache.
//
// A call has a span if it is inside a sampled one, see [WithRootSpans]. The span of a call
// has db.system.name and db.operation.name. With one key it has rediscache.outcome, the last
// outcome of its events; with many keys it has rediscache.keys.hit and rediscache.keys.miss,
// the numbers of such keys. A value that could not be stored, and a lease that failed, is an
// event of the span. An error is the
// status of the span, and its kind (see rediscache.ErrorKind) the attribute error.type. A
// miss is no error.
//
// Caches with one name have the same metrics.
func (t *Telemetry) Observer(name string) rediscache.Observer {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.recorders[name]
	if r == nil {
		r = recorder.New()
		t.recorders[name] = r
	}
	return &observer{Recorder: r, t: t, name: name}
}

const opLoad = "load"

// observer makes the spans of a cache. Its Recorder has the metrics.
type observer struct {
	*recorder.Recorder
	t    *Telemetry
	name string
}

// call is a call or a load under way that has a span. One goroutine uses it.
type call struct {
	op           string
	span         trace.Span
	hits, misses int
}

// callKey is a key of each observer, because a cache may have two.
type callKey struct{ of *observer }

// callOf returns the call of op to which a context belongs, or nil.
func (o *observer) callOf(ctx context.Context, op string) *call {
	if c, ok := ctx.Value(callKey{o}).(*call); ok && c.op == op {
		return c
	}
	return nil
}

// manyKeys reports whether calls of op have an event for each key.
func manyKeys(op string) bool { return op == "get many" || op == "get or load many" }

// Start begins the span of a call or a load.
func (o *observer) Start(ctx context.Context, op, key string) context.Context {
	ctx = o.Recorder.Start(ctx, op, key)
	if !o.t.roots && !trace.SpanContextFromContext(ctx).IsSampled() {
		return ctx
	}
	kind, attrs := trace.SpanKindClient, callAttrs(o.name, op)
	if op == opLoad { // which calls no Redis
		kind, attrs = trace.SpanKindInternal, attrs[:1]
	}
	if o.t.keys && key != "" {
		attrs = append(attrs, attribute.String("rediscache.key", key))
	}
	ctx, span := o.t.tracer.Start(ctx, op+" "+o.name, trace.WithSpanKind(kind), trace.WithAttributes(attrs...))
	return context.WithValue(ctx, callKey{o}, &call{op: op, span: span})
}

// Observe adds an outcome to the span of its call.
func (o *observer) Observe(ctx context.Context, e rediscache.Event) {
	o.Recorder.Observe(ctx, e)
	if c := o.callOf(ctx, e.Op); c != nil {
		c.observe(e)
	} else if span := trace.SpanFromContext(ctx); span.IsRecording() {
		observeStep(span, e)
	}
}

// observe adds an outcome to the span of the call.
func (c *call) observe(e rediscache.Event) {
	switch {
	case !manyKeys(c.op):
		c.span.SetAttributes(attribute.String("rediscache.outcome", string(e.Outcome)))
	case e.Outcome == rediscache.OutcomeHit, e.Outcome == rediscache.OutcomeStale:
		c.hits++
	case e.Outcome == rediscache.OutcomeMiss:
		c.misses++
	}
}

// observeStep adds a failed step of a load to the span of the call that began the load.
func observeStep(span trace.Span, e rediscache.Event) {
	kind := rediscache.ErrorKind(e.Err)
	if kind == "" && e.Outcome != rediscache.OutcomeRefused {
		return
	}
	var attrs []attribute.KeyValue
	if kind != "" {
		attrs = append(attrs, attribute.String("error.type", kind))
	}
	span.AddEvent(e.Op+" "+string(e.Outcome), trace.WithAttributes(attrs...))
}

// End ends the span of a call or a load.
func (o *observer) End(ctx context.Context, op string, err error) {
	o.Recorder.End(ctx, op, err)
	c := o.callOf(ctx, op)
	if c == nil {
		return
	}
	if manyKeys(op) {
		c.span.SetAttributes(attribute.Int("rediscache.keys.hit", c.hits), attribute.Int("rediscache.keys.miss", c.misses))
	}
	if kind := rediscache.ErrorKind(err); kind != "" {
		c.span.SetAttributes(attribute.String("error.type", kind))
		c.span.SetStatus(codes.Error, err.Error())
	}
	c.span.End()
}
