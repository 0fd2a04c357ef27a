//! Spans of what leaves the nearest level.

use std::{any::Any, sync::Arc};

use cache_core::{Ambient, CacheInfo, LevelInfo, Outcome, Span, SpanKind, SpanStart};
use opentelemetry::{
    Array, Context, KeyValue, StringValue, Value,
    baggage::BaggageExt,
    trace::{Link, Span as _, SpanBuilder, SpanKind as OtelKind, Status, TraceContextExt, Tracer},
};

use crate::{instruments, names, telemetry::ShowKey};

/// Starts a span, if anything would come of it.
pub(crate) fn start<T>(
    tracer: &T,
    cache: &CacheInfo,
    start: &SpanStart<'_>,
    show: Option<&ShowKey>,
) -> Option<Arc<dyn Span>>
where
    T: Tracer,
    T::Span: Send + Sync + 'static,
{
    // Nothing is built where nothing records.
    let skip = Context::map_current(|cx| {
        cx.is_telemetry_suppressed() || (!start.root && cx.has_active_span() && !is_sampled(cx))
    });
    if skip {
        return None;
    }
    let mut builder = builder(cache, start, show);
    let parent = if start.root {
        // Background work has a trace of its own, which says what set it off.
        builder =
            builder.with_links(vec![Link::with_context(Context::current().span().span_context().clone())]);
        Context::new()
    } else {
        Context::current()
    };
    let span = tracer.build_with_context(builder, &parent);
    // No tracer is installed.
    if !span.span_context().is_valid() {
        return None;
    }
    // A root that was sampled out still goes on: what runs inside must follow its decision, not make its own.
    let lookup = match start.kind {
        SpanKind::Operation(_) | SpanKind::Level { .. } => start.keys <= 1,
        _ => false,
    };
    let levels = cache.levels().iter().map(|LevelInfo { position, .. }| Arc::clone(position)).collect();
    Some(Arc::new(OtelSpan { recording: span.is_recording(), cx: parent.with_span(span), lookup, levels }))
}

fn is_sampled(cx: &Context) -> bool {
    let span = cx.span();
    let parent = span.span_context();
    // An invalid parent is none.
    !parent.is_valid() || parent.is_sampled()
}

fn builder(cache: &CacheInfo, start: &SpanStart<'_>, show: Option<&ShowKey>) -> SpanBuilder {
    let mut attributes = Vec::with_capacity(8);
    attributes.push(instruments::cache_name(cache));
    let name = match start.kind {
        SpanKind::Operation(verb) => {
            attributes.push(KeyValue::new(names::CACHE_OPERATION, verb.as_str()));
            format!("cache.{} {}", verb.as_str(), cache.name())
        }
        SpanKind::Level { level, op, .. } => {
            let position = instruments::position(cache, level, names::CACHE_LEVEL);
            let name = format!("cache.{} {} {}", op.as_str(), cache.name(), position.value.as_str());
            attributes.push(KeyValue::new(names::CACHE_OPERATION, op.as_str()));
            attributes.push(position);
            name
        }
        _ => {
            attributes.push(KeyValue::new(names::CACHE_OPERATION, "load"));
            format!("cache.load {}", cache.name())
        }
    };
    if start.keys > 1 {
        attributes.push(KeyValue::new(names::KEY_COUNT, i64::try_from(start.keys).unwrap_or(i64::MAX)));
    }
    if let Some(shown) = start.key.zip(show).and_then(|(key, show)| show.of(key)) {
        let keys = Value::Array(Array::String(vec![StringValue::from(shown)]));
        attributes.push(KeyValue::new(names::CACHE_KEY, keys));
    }
    SpanBuilder::from_name(name).with_kind(OtelKind::Internal).with_attributes(attributes)
}

struct OtelSpan {
    cx: Context,
    recording: bool,
    /// A look-up of one key, which hits or does not.
    lookup: bool,
    levels: Vec<Arc<str>>,
}

impl Span for OtelSpan {
    fn within(&self, work: &mut dyn FnMut()) {
        let _current = self.cx.clone().attach();
        work();
    }

    fn found(&self, outcome: Outcome, level: Option<u8>) {
        if !self.recording {
            return;
        }
        let span = self.cx.span();
        span.set_attribute(KeyValue::new(names::CACHE_RESULT, instruments::result(outcome)));
        if self.lookup {
            span.set_attribute(KeyValue::new(
                names::CACHE_HIT,
                matches!(outcome, Outcome::Hit | Outcome::Stale),
            ));
        }
        if let Some(position) = level.and_then(|level| self.levels.get(usize::from(level))) {
            span.set_attribute(KeyValue::new(names::CACHE_LEVEL, Arc::clone(position)));
        }
    }

    fn size(&self, bytes: usize) {
        if self.recording {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.cx.span().set_attribute(KeyValue::new(names::ITEM_SIZE, bytes));
        }
    }

    fn failed(&self, error: &str) {
        if self.recording {
            let span = self.cx.span();
            span.set_attribute(KeyValue::new(names::ERROR_TYPE, error.to_owned()));
            span.set_status(Status::error(error.to_owned()));
        }
    }

    fn link(&self, other: &dyn Span) {
        let Some(other) = other.as_any().downcast_ref::<Self>() else { return };
        if self.recording {
            self.cx.span().add_link(other.cx.span().span_context().clone(), Vec::new());
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for OtelSpan {
    fn drop(&mut self) {
        // Whoever still holds the context, a task that was spawned inside say, does not keep the span open.
        self.cx.span().end();
    }
}

/// The caller's context, for a load that runs on a task of its own.
struct Caller(Context);

impl Ambient for Caller {
    fn within(&self, work: &mut dyn FnMut()) {
        let _current = self.0.clone().attach();
        work();
    }
}

/// What the caller has, if it has anything.
pub(crate) fn ambient() -> Option<Arc<dyn Ambient>> {
    Context::map_current(|cx| {
        let empty = !cx.has_active_span() && !cx.is_telemetry_suppressed() && cx.baggage().is_empty();
        (!empty).then(|| Arc::new(Caller(cx.clone())) as Arc<dyn Ambient>)
    })
}
