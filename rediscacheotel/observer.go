package rediscacheotel

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/rediscache/rediscache"
)

// Observer returns the observer for a cache, to be given to rediscache.WithObserver. A
// span has the name of its operation and then this name, which is also the attribute
// rediscache.cache.
//
// A call has a span if it is inside a sampled one, see [WithRootSpans]. The span has
// db.system.name, db.operation.name and, for one key,
// rediscache.outcome: the last outcome of its events. With many keys it has
// rediscache.keys.hit and rediscache.keys.miss, the numbers of such keys. A value that
// could not be stored, and a lease that failed, is an event of the span. An error is the
// status of the span, and its kind (see rediscache.ErrorKind) the attribute error.type. A
// miss is no error.
func (t *Telemetry) Observer(name string) rediscache.Observer {
	o := &observer{t: t, name: name, known: make(map[string]operation, len(operations))}
	for _, op := range operations {
		o.known[op] = o.operation(op)
	}
	return o
}

// operations are those whose attributes are made only once.
var operations = []string{
	"get", "get many", "get or load", "get or load many", "set", "set many", "add", "touch", "ttl", "delete", "clear", "ping", opLoad,
}

const opLoad = "load"

// manyKeys reports whether calls of op have an event for each key.
func manyKeys(op string) bool { return op == "get many" || op == "get or load many" }

type observer struct {
	t     *Telemetry
	name  string
	known map[string]operation // immutable
}

var (
	_ rediscache.Starter = (*observer)(nil)
	_ rediscache.Ender   = (*observer)(nil)
)

// operation is what all calls of an operation have in common.
type operation struct {
	span   string
	attrs  []attribute.KeyValue
	start  []trace.SpanStartOption
	took   metric.Float64Histogram
	record []metric.RecordOption // of a call without an error
}

func (o *observer) operation(op string) operation {
	about := operation{span: op + " " + o.name, attrs: []attribute.KeyValue{attribute.String("rediscache.cache", o.name)}}
	kind := trace.SpanKindInternal
	if about.took = o.t.loads; op != opLoad {
		about.took = o.t.calls.Inst()
		about.attrs = append(about.attrs, attribute.String("db.system.name", "redis"), attribute.String("db.operation.name", op))
		kind = trace.SpanKindClient
	}
	about.start = []trace.SpanStartOption{trace.WithSpanKind(kind), trace.WithAttributes(about.attrs...)}
	about.record = []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(about.attrs...))}
	return about
}

// call is a call or a load under way that has a span or many keys. One goroutine uses it.
type call struct {
	op           string
	began        time.Time
	span         trace.Span // nil: none
	hits, misses int
}

type callKey struct{}

// callOf returns the call of op to which a context belongs, or nil.
func callOf(ctx context.Context, op string) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok && c.op == op {
		return c
	}
	return nil
}

func (o *observer) about(op string) operation {
	if about, ok := o.known[op]; ok {
		return about
	}
	return o.operation(op)
}

// Start begins the span of a call or a load.
func (o *observer) Start(ctx context.Context, op, key string) context.Context {
	traced := o.t.roots || trace.SpanContextFromContext(ctx).IsSampled()
	if !traced && !manyKeys(op) {
		return ctx
	}
	c := &call{op: op, began: time.Now()}
	if traced {
		about := o.about(op)
		ctx, c.span = o.t.tracer.Start(ctx, about.span, about.start...)
		if o.t.keys && key != "" {
			c.span.SetAttributes(attribute.String("rediscache.key", key))
		}
	}
	return context.WithValue(ctx, callKey{}, c)
}

// Observe adds an outcome to the span of its call, and records the duration of a call with
// one key or of a load.
func (o *observer) Observe(ctx context.Context, e rediscache.Event) {
	if c := callOf(ctx, e.Op); c != nil {
		c.observe(e)
	} else if span := trace.SpanFromContext(ctx); span.IsRecording() {
		observeStep(span, e)
	}
	switch {
	case manyKeys(e.Op), e.Op == "lease", e.Op == "fill", e.Op == "near": // steps, and calls of which End knows the duration
	case e.Outcome == rediscache.OutcomeShared: // the second event of a call
	default:
		o.record(ctx, e.Op, e.Took, e.Err)
	}
}

// observe adds an outcome to the span of the call.
func (c *call) observe(e rediscache.Event) {
	switch e.Outcome {
	case rediscache.OutcomeHit, rediscache.OutcomeStale:
		c.hits++
	case rediscache.OutcomeMiss:
		c.misses++
	}
	if c.span != nil && !manyKeys(c.op) {
		c.span.SetAttributes(attribute.String("rediscache.outcome", string(e.Outcome)))
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

// End ends the span of a call or a load, and records the duration of a call with many keys.
func (o *observer) End(ctx context.Context, op string, err error) {
	c := callOf(ctx, op)
	if c == nil {
		return
	}
	if manyKeys(op) {
		o.record(ctx, op, time.Since(c.began), err)
	}
	if c.span == nil {
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

func (o *observer) record(ctx context.Context, op string, took time.Duration, err error) {
	about := o.about(op)
	record := about.record
	if kind := rediscache.ErrorKind(err); kind != "" {
		record = []metric.RecordOption{metric.WithAttributes(append(about.attrs, attribute.String("error.type", kind))...)}
	}
	about.took.Record(ctx, took.Seconds(), record...)
}
