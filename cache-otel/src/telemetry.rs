//! The observer.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use cache_core::{Ambient, CacheInfo, CacheProvider, Event, Observer, Span, SpanStart, Stats};
use opentelemetry::{
    InstrumentationScope, global,
    metrics::{Meter, MeterProvider},
    trace::{Span as OtelSpan, Tracer, TracerProvider},
};

use crate::{
    CacheStatus, Servers, Vocabulary,
    collector::Collector,
    keys::ShowKey,
    names, observed,
    recorded::Recorded,
    series,
    spans::{self, Spans, Starts},
};

/// Reports caches to OpenTelemetry: give a clone to each cache as its observer.
///
/// Make one per process. Caches of one name are summed; two of these over one meter provider would report such caches
/// over each other. Give it to a cache once: a second clone at the same cache would count and trace each call again. The
/// counts of a cache that is dropped stay in the sum of its name; where the last clone of this goes as well, for two minutes,
/// from the next collection on.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    meter: Meter,
    collector: Arc<Collector>,
    recorded: Recorded,
    spans: Spans,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.collector.end();
    }
}

impl Telemetry {
    /// Over the providers that are global now. Set those first: what is set later is not seen.
    #[must_use]
    pub fn global() -> Self {
        Self::builder().build()
    }

    /// Over providers of your choice.
    pub fn builder() -> TelemetryBuilder {
        TelemetryBuilder {
            meter: None,
            tracer: None,
            show_key: None,
            trace_hits: false,
            sentry: false,
            vocabulary: Vocabulary::Today,
            limit: series::DEFAULT_LIMIT,
        }
    }

    /// How the caches do that this one observes, by name. Reads every counter: for a status page or a log line, not for
    /// a hot path.
    pub fn stats(&self) -> Vec<CacheStatus> {
        let mut all: Vec<_> =
            self.0.collector.now().iter().map(|(at, totals)| CacheStatus::of(at, totals)).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Asks the servers behind providers how they do, every so often until it is dropped, and reports what they say: `redis.up`,
    /// `redis.memory.used`, `redis.maxmemory`, `redis.maxmemory.policy` (1, by `redis.policy`), `redis.clients.connected`,
    /// `redis.keyspace.hits` and `.misses`, `redis.keys.evicted`, `redis.uptime`; `memcached.up`, `memcached.bytes`,
    /// `memcached.limit_maxbytes`, `memcached.connections.current`, `memcached.current_items`, `memcached.operations` (of gets, by
    /// `type`), `memcached.evictions`, `memcached.uptime`; of another backend whether it is up. By `db.client.name`, which is the
    /// name given here, `server.address` and `server.port`: of several servers, those of a cluster say, each.
    ///
    /// Also how the providers' own connections stand, where they say so, as Redis and memcached do, by the conventions:
    /// `db.client.connection.count` by `db.client.connection.state`, `.max`, `.pending_requests`, `.create_time`, `.timeouts`, and
    /// `.errors`. By `db.client.connection.pool.name`, which is the name given here.
    ///
    /// `providers` is asked each time, as [`Caches`](https://docs.rs/traced-cache) that are read again may have others; those
    /// in process are passed over. It costs each server a command, over the provider's own connection. One that does not answer
    /// within `every`, or panics, is down; a panic of `providers` counts as if none had answered. Collections read what was said
    /// last: no call of a cache waits for it, and it is in no trace. Call it once for a provider: its instruments stay for as
    /// long as the meter provider.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn watch_servers(
        &self,
        every: Duration,
        providers: impl Fn() -> Vec<(String, Arc<dyn CacheProvider>)> + Send + 'static,
    ) -> Servers {
        Servers::watch(self.0.meter.clone(), every, providers)
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry")
            .field("shows_keys", &self.0.spans.show_key.is_some())
            .finish_non_exhaustive()
    }
}

impl Observer for Telemetry {
    fn attach(&self, stats: &Arc<Stats>) {
        self.0.recorded.declare(&self.0.collector.series.of(stats.info()));
        self.0.collector.attach(stats);
    }

    fn event(&self, cache: &CacheInfo, event: &Event<'_>) {
        self.0.collector.series.with(cache, |at, lately| self.0.recorded.record(cache, at, lately, event));
    }

    fn span(&self, cache: &CacheInfo, start: &SpanStart<'_>) -> Option<Arc<dyn Span>> {
        self.0.spans.start(&self.0.collector.series, cache, start)
    }

    fn traces_hits(&self) -> bool {
        self.0.spans.hits
    }

    fn traces_hit(&self) -> bool {
        self.0.spans.wants_hit()
    }

    fn ambient(&self) -> Option<Arc<dyn Ambient>> {
        spans::ambient()
    }
}

/// Sets up a [`Telemetry`].
#[must_use]
pub struct TelemetryBuilder {
    meter: Option<Meter>,
    tracer: Option<Box<dyn Starts>>,
    show_key: Option<ShowKey>,
    trace_hits: bool,
    sentry: bool,
    vocabulary: Vocabulary,
    limit: usize,
}

impl TelemetryBuilder {
    /// Where metrics go. The global provider by default.
    pub fn meter_provider(mut self, provider: &dyn MeterProvider) -> Self {
        self.meter = Some(provider.meter_with_scope(scope()));
        self
    }

    /// Where spans go. The global provider by default.
    pub fn tracer_provider<S, T>(mut self, provider: &impl TracerProvider<Tracer = T>) -> Self
    where
        S: OtelSpan + Send + Sync + 'static,
        T: Tracer<Span = S> + Send + Sync + 'static,
    {
        self.tracer = Some(Box::new(provider.tracer_with_scope(scope())));
        self
    }

    /// Which names metrics have. [`Vocabulary::Today`] by default.
    pub fn vocabulary(mut self, vocabulary: Vocabulary) -> Self {
        self.vocabulary = vocabulary;
        self
    }

    /// Puts keys on spans, in the form that `show` gives them; `None` leaves a key out. No key is shown by default, and
    /// none is ever put on a metric. A panic in `show` leaves the key out. By their shapes:
    ///
    /// ```
    /// use cache_otel::{Telemetry, key_pattern};
    ///
    /// let telemetry = Telemetry::builder().show_keys(|key| Some(key_pattern(key))).build();
    /// ```
    pub fn show_keys(mut self, show: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        self.show_key = Some(ShowKey::by(show));
        self
    }

    /// Puts the shape of keys on spans: a key that is like one of `patterns`, `user:*:profile` say, shows as that, where `*`
    /// is anything between colons or slashes, or a part of a tuple; other keys are left out.
    pub fn show_key_patterns<P: Into<String>>(mut self, patterns: impl IntoIterator<Item = P>) -> Self {
        self.show_key = Some(ShowKey::as_patterns(patterns.into_iter().map(Into::into).collect()));
        self
    }

    /// Gives hits at the nearest level spans of their own, where the trace around them is sampled or there is none. Such
    /// a hit costs what any other call does, some microseconds; the others stay as they are. Off by default.
    pub fn trace_hits(mut self, yes: bool) -> Self {
        self.trace_hits = yes;
        self
    }

    /// Adds what Sentry's cache pages go by: `sentry.op`, `cache.write` on writes, and `cache.hit` also on look-ups that fail. Off
    /// by default.
    pub fn sentry(mut self, yes: bool) -> Self {
        self.sentry = yes;
        self
    }

    /// How many series your SDK lets an instrument have: 2,000 unless its views say otherwise. Caches whose names would take
    /// more (about 20 for each name) are summed in one series, which has `otel.metric.overflow` instead of a name.
    pub fn cardinality_limit(mut self, series: usize) -> Self {
        self.limit = series;
        self
    }

    /// Registers the instruments.
    #[must_use]
    pub fn build(self) -> Telemetry {
        let meter = self.meter.unwrap_or_else(|| global::meter_with_scope(scope()));
        let tracer = self.tracer.unwrap_or_else(|| Box::new(global::tracer_with_scope(scope())));
        let collector = Arc::new(Collector::new(self.limit));
        observed::register(&meter, &collector, self.vocabulary);
        let recorded = Recorded::new(&meter, self.vocabulary, Arc::clone(&collector.backlog));
        let spans = Spans {
            tracer,
            show_key: self.show_key,
            hits: self.trace_hits,
            sentry: self.sentry,
            nothing_records: AtomicBool::new(false),
        };
        Telemetry(Arc::new(Inner { meter, collector, recorded, spans }))
    }
}

impl fmt::Debug for TelemetryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryBuilder")
            .field("shows_keys", &self.show_key.is_some())
            .field("trace_hits", &self.trace_hits)
            .field("vocabulary", &self.vocabulary)
            .field("cardinality_limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// The instrumentation scope of this crate.
pub(crate) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(names::SCOPE).with_version(env!("CARGO_PKG_VERSION")).build()
}
