//! Spans of what leaves the nearest level.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cache_core::{Ambient, CacheInfo, LevelOp, MissReason, Outcome, Span, SpanKind, SpanStart, Verb};
use opentelemetry::{
    Context, KeyValue,
    baggage::BaggageExt,
    trace::{Link, SpanBuilder, SpanKind as OtelKind, Status, TraceContextExt, Tracer},
};

use crate::{
    keys::{self, ShowKey},
    lasting::{lasting, lasting_name},
    names,
    observed::result,
    recorded::{address, port, position},
    series::Series,
};

/// A tracer of any kind, and not [`BoxedTracer`](opentelemetry::global::BoxedTracer): that one boxes each span, also those
/// that record nothing, or that a context boxes again.
pub(crate) trait Starts: Send + Sync {
    /// The context of a new span within `parent`, and whether the span records. `None`: it has no identity.
    fn start(&self, builder: SpanBuilder, parent: &Context) -> Option<(Context, bool)>;
}

impl<S, T> Starts for T
where
    S: opentelemetry::trace::Span + Send + Sync + 'static,
    T: Tracer<Span = S> + Send + Sync,
{
    fn start(&self, builder: SpanBuilder, parent: &Context) -> Option<(Context, bool)> {
        let span = self.build_with_context(builder, parent);
        let identity = span.span_context();
        if !identity.is_valid() {
            return None;
        }
        let recording = span.is_recording();
        // What records nothing is told by its identity alone, which takes no box and no lock.
        let cx = match recording {
            true => parent.with_span(span),
            false => parent.with_remote_span_context(identity.clone()),
        };
        Some((cx, recording))
    }
}

/// Makes spans, with what has been said about them.
pub(crate) struct Spans {
    pub(crate) tracer: Box<dyn Starts>,
    pub(crate) show_key: Option<ShowKey>,
    pub(crate) hits: bool,
    pub(crate) sentry: bool,
    /// The tracer has given a span without an identity: there is no SDK behind it, and never will be.
    pub(crate) nothing_records: AtomicBool,
}

impl Spans {
    /// Something of the current context, unless a span that is built now would go nowhere.
    fn unless_idle<R>(&self, root: bool, of: impl FnOnce(&Context) -> R) -> Option<R> {
        if self.nothing_records.load(Ordering::Relaxed) {
            return None;
        }
        Context::map_current(|cx| {
            let idle = cx.is_telemetry_suppressed() || (!root && cx.has_active_span() && !is_sampled(cx));
            (!idle).then(|| of(cx))
        })
    }

    pub(crate) fn wants_hit(&self) -> bool {
        self.hits && self.unless_idle(false, |_| ()).is_some()
    }

    /// Starts a span, if anything would come of it.
    pub(crate) fn start(
        &self,
        series: &Series,
        cache: &CacheInfo,
        start: &SpanStart<'_>,
    ) -> Option<Arc<dyn Span>> {
        // Nothing is built where nothing records.
        let current = self.unless_idle(start.root, Context::clone)?;
        // What a level is asked without a caller, such as whether anything was invalidated, would be a trace each time.
        if !start.root && matches!(start.kind, SpanKind::Level { .. }) && !current.has_active_span() {
            return None;
        }
        let mut builder = SpanBuilder::default();
        series.with(cache, |_, lately| {
            builder = lately.spans.get(start.kind, || self.builder(cache, start.kind)).clone();
        });
        builder.attributes.get_or_insert_default().extend(self.of_keys(start));
        let parent = if start.root {
            // Background work has a trace of its own, which says what set it off.
            let cause = current.span().span_context().clone();
            if cause.is_valid() {
                builder = builder.with_links(vec![Link::new(cause, link("caused_by"), 0)]);
            }
            Context::new()
        } else {
            current
        };
        let Some((cx, recording)) = self.tracer.start(builder, &parent) else {
            self.nothing_records.store(true, Ordering::Relaxed);
            return None;
        };
        // A root that was sampled out still goes on: what runs inside must follow its decision, not make its own.
        let lookup = match start.kind {
            SpanKind::Operation(_) | SpanKind::Level { .. } => start.keys <= 1,
            _ => false,
        };
        let sentry = match start.kind {
            SpanKind::Operation(verb) if self.sentry => Some(match sentry_op(verb) {
                "cache.get" => Sentry::Hit { told: AtomicBool::new(false) },
                _ => Sentry::Write,
            }),
            _ => None,
        };
        Some(Arc::new(OtelSpan {
            cx,
            recording: recording.then(|| cache.clone()),
            lookup,
            sentry,
            failed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }))
    }

    /// What all spans of a kind begin with.
    fn builder(&self, cache: &CacheInfo, of: SpanKind) -> SpanBuilder {
        let mut attributes = vec![KeyValue::new(names::CACHE_NAME, lasting(cache.name()))];
        let mut kind = OtelKind::Internal;
        let operation = |word| KeyValue::new(names::CACHE_OPERATION, word);
        let name = match of {
            SpanKind::Operation(verb) => {
                attributes.push(operation(verb.as_str()));
                if self.sentry {
                    attributes.push(KeyValue::new("sentry.op", sentry_op(verb)));
                }
                format!("cache.{} {}", verb.as_str(), cache.name())
            }
            SpanKind::Level { level, op, command } => {
                attributes.push(operation(op.as_str()));
                attributes.push(position(cache, level));
                match cache.levels().get(usize::from(level)).filter(|level| !level.in_process) {
                    Some(level) => {
                        kind = OtelKind::Client;
                        let provider = &level.provider;
                        attributes.push(KeyValue::new(names::DB_SYSTEM, provider.system));
                        attributes.push(KeyValue::new(names::DB_OPERATION, command));
                        attributes.extend(procedure(command, op));
                        let namespace = |name: &String| KeyValue::new(names::DB_NAMESPACE, lasting(name));
                        attributes.extend(provider.namespace.as_ref().map(namespace));
                        attributes.extend(address(provider));
                        attributes
                            .extend(port(provider).filter(|_| !is_usual(provider.system, provider.port)));
                        client_name(provider.system, command, provider.address.as_deref(), provider.port)
                    }
                    None => format!("cache.{} {}", op.as_str(), cache.name()),
                }
            }
            SpanKind::Source(verb) => {
                attributes.push(operation(verb.as_str()));
                format!("cache.source.{} {}", verb.as_str(), cache.name())
            }
            SpanKind::Publish => {
                kind = OtelKind::Producer;
                attributes.push(operation("publish"));
                format!("cache.publish {}", cache.name())
            }
            SpanKind::WriteBehind => {
                attributes.push(operation("write_behind"));
                format!("cache.write_behind {}", cache.name())
            }
            SpanKind::Replay => {
                attributes.push(operation("replay"));
                format!("cache.replay {}", cache.name())
            }
            _ => {
                attributes.push(operation("load"));
                format!("cache.load {}", cache.name())
            }
        };
        SpanBuilder::from_name(lasting_name(name)).with_kind(kind).with_attributes(attributes)
    }

    /// How many keys, and which, where that may be shown.
    fn of_keys(&self, start: &SpanStart<'_>) -> impl Iterator<Item = KeyValue> {
        let count = || KeyValue::new(names::KEY_COUNT, i64::try_from(start.keys).unwrap_or(i64::MAX));
        let count = (start.keys > 1).then(count);
        let shown = start.key.zip(self.show_key.as_ref()).and_then(|(key, show)| show.of(key));
        count.into_iter().chain(shown.map(keys::attribute))
    }
}

/// The name of a command's span by the conventions: the command alone for Redis, whose database index is no target; with
/// the server otherwise.
pub(crate) fn client_name(system: &str, command: &str, address: Option<&str>, port: Option<u16>) -> String {
    match (system, address, port) {
        ("redis", ..) => command.to_owned(),
        (_, Some(address), Some(port)) => format!("{command} {address}:{port}"),
        (_, Some(address), None) => format!("{command} {address}"),
        _ => format!("{command} {system}"),
    }
}

/// Whether a server of this kind is nearly always at that port: spans leave it out then, by the conventions.
pub(crate) fn is_usual(system: &str, port: Option<u16>) -> bool {
    matches!((system, port), ("redis", Some(6379)) | ("memcached", Some(11211)))
}

/// Scripts are called by a digest, which says nothing to anybody: by what they are for.
fn procedure(command: &str, op: LevelOp) -> Option<KeyValue> {
    matches!(command, "EVALSHA" | "FCALL").then(|| KeyValue::new(names::DB_PROCEDURE, op.as_str()))
}

fn link(kind: &'static str) -> Vec<KeyValue> {
    vec![KeyValue::new(names::LINK_KIND, kind)]
}

fn is_sampled(cx: &Context) -> bool {
    let span = cx.span();
    let parent = span.span_context();
    // An invalid parent is none.
    !parent.is_valid() || parent.is_sampled()
}

/// What Sentry's cache pages go by.
const fn sentry_op(verb: Verb) -> &'static str {
    match verb {
        Verb::Get | Verb::GetOrSet | Verb::GetMany | Verb::GetOrSetMany | Verb::Refresh => "cache.get",
        Verb::Set | Verb::SetMany | Verb::Update | Verb::Save | Verb::Warm => "cache.put",
        Verb::Clear => "cache.flush",
        _ => "cache.remove",
    }
}

/// What Sentry wants to know of a call, also of one that fails.
enum Sentry {
    /// Whether it could write.
    Write,
    /// Whether it hits.
    Hit { told: AtomicBool },
}

struct OtelSpan {
    cx: Context,
    /// The cache it tells of, if it is not sampled out.
    recording: Option<CacheInfo>,
    /// A look-up of one key, which hits or does not.
    lookup: bool,
    sentry: Option<Sentry>,
    failed: AtomicBool,
    ended: AtomicBool,
}

impl OtelSpan {
    fn hit(&self, yes: bool) {
        if let Some(Sentry::Hit { told }) = &self.sentry {
            told.store(true, Ordering::Relaxed);
        }
        self.cx.span().set_attribute(KeyValue::new(names::CACHE_HIT, yes));
    }
}

impl Span for OtelSpan {
    fn within(&self, work: &mut dyn FnMut()) {
        let _current = self.cx.clone().attach();
        work();
    }

    fn found(&self, outcome: Outcome, level: Option<u8>) {
        let Some(cache) = &self.recording else { return };
        let span = self.cx.span();
        span.set_attribute(KeyValue::new(names::CACHE_RESULT, result(outcome)));
        if self.lookup {
            self.hit(matches!(outcome, Outcome::Hit | Outcome::Stale));
        }
        if let Some(level) = level {
            span.set_attribute(position(cache, level));
        }
    }

    fn found_all(&self, yes: bool) {
        if self.recording.is_some() {
            self.hit(yes);
        }
    }

    fn ttl(&self, time: Duration) {
        if self.recording.is_some() {
            self.cx.span().set_attribute(KeyValue::new(names::TTL, time.as_secs_f64()));
        }
    }

    fn done(&self, keys: usize, failed: usize) {
        if self.recording.is_some() {
            let span = self.cx.span();
            let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            span.set_attribute(KeyValue::new(names::KEY_COUNT, count(keys)));
            span.set_attribute(KeyValue::new(names::ERROR_COUNT, count(failed)));
        }
    }

    fn missed(&self, reason: MissReason) {
        if self.recording.is_some() {
            self.cx.span().set_attribute(KeyValue::new(names::MISS_REASON, reason.as_str()));
        }
    }

    fn size(&self, bytes: usize) {
        if self.recording.is_some() {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.cx.span().set_attribute(KeyValue::new(names::ITEM_SIZE, bytes));
        }
    }

    fn failed(&self, error: &str) {
        self.failed.store(true, Ordering::Relaxed);
        if self.recording.is_some() {
            let span = self.cx.span();
            span.set_attribute(KeyValue::new(names::ERROR_TYPE, error.to_owned()));
            span.set_status(Status::error(error.to_owned()));
        }
    }

    fn link(&self, other: &dyn Span) {
        let Some(other) = other.as_any().downcast_ref::<Self>() else { return };
        if self.recording.is_some() {
            self.cx.span().add_link(other.cx.span().span_context().clone(), link("waited_for"));
        }
    }

    fn end(&self) {
        if self.recording.is_none() || self.ended.swap(true, Ordering::Relaxed) {
            return;
        }
        let span = self.cx.span();
        match &self.sentry {
            Some(Sentry::Hit { told }) if !told.load(Ordering::Relaxed) => self.hit(false),
            Some(Sentry::Write) => {
                span.set_attribute(KeyValue::new("cache.write", !self.failed.load(Ordering::Relaxed)));
            }
            _ => {}
        }
        // Whoever still holds the context, a task that was spawned inside say, does not keep the span open.
        span.end();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for OtelSpan {
    fn drop(&mut self) {
        if !*self.ended.get_mut() && !*self.failed.get_mut() {
            self.failed(names::CANCELLED);
        }
        self.end();
    }
}

/// The caller's context, for work that runs on a task of its own.
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
