//! The observer.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use cache_core::{Ambient, CacheInfo, Event, Observer, Span, SpanStart, Stats};
use opentelemetry::{
    InstrumentationScope,
    global::{self, BoxedTracer, ObjectSafeTracerProvider},
    metrics::{Meter, MeterProvider},
};

use crate::{
    collector::Collector,
    instruments::{self, Durations},
    names, spans,
};

/// Reports caches to OpenTelemetry: give a clone to each cache as its observer.
///
/// Make one per process. Caches of one name are summed; two of these over one meter provider would report such caches
/// over each other.
///
/// Metrics of a cache that is dropped are no longer reported, and its counts stay in the sum of its name. (Version
/// 0.33 of the SDK goes on exporting the last `cache.hit_rate` of such a name, as it does with any gauge.)
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    collector: Arc<Collector>,
    durations: Durations,
    tracer: BoxedTracer,
    show_key: Option<ShowKey>,
}

impl Telemetry {
    /// Over the providers that are global now. Set those first: what is set later is not seen.
    #[must_use]
    pub fn global() -> Self {
        Self::builder().build()
    }

    /// Over providers of your choice.
    pub fn builder() -> TelemetryBuilder {
        TelemetryBuilder { meter: None, tracer: None, show_key: None }
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("shows_keys", &self.0.show_key.is_some()).finish_non_exhaustive()
    }
}

impl Observer for Telemetry {
    fn attach(&self, stats: &Arc<Stats>) {
        self.0.collector.attach(stats);
    }

    fn event(&self, cache: &CacheInfo, event: &Event<'_>) {
        self.0.durations.record(cache, event);
    }

    fn span(&self, cache: &CacheInfo, start: &SpanStart<'_>) -> Option<Arc<dyn Span>> {
        spans::start(&self.0.tracer, cache, start, self.0.show_key.as_ref())
    }

    fn ambient(&self) -> Option<Arc<dyn Ambient>> {
        spans::ambient()
    }
}

/// Sets up a [`Telemetry`].
#[must_use]
pub struct TelemetryBuilder {
    meter: Option<Meter>,
    tracer: Option<BoxedTracer>,
    show_key: Option<ShowKey>,
}

impl TelemetryBuilder {
    /// Where metrics go. The global provider by default.
    pub fn meter_provider(mut self, provider: &dyn MeterProvider) -> Self {
        self.meter = Some(provider.meter_with_scope(scope()));
        self
    }

    /// Where spans go. The global provider by default.
    pub fn tracer_provider(mut self, provider: &dyn ObjectSafeTracerProvider) -> Self {
        self.tracer = Some(BoxedTracer::new(provider.boxed_tracer(scope())));
        self
    }

    /// Puts keys on spans, in the form that `show` gives them; `None` leaves a key out. No key is shown by default, and
    /// none is ever put on a metric. A panic in `show` leaves the key out.
    pub fn show_keys(mut self, show: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        self.show_key = Some(ShowKey(Box::new(show)));
        self
    }

    /// Registers the instruments.
    #[must_use]
    pub fn build(self) -> Telemetry {
        let meter = self.meter.unwrap_or_else(|| global::meter_with_scope(scope()));
        let tracer = self.tracer.unwrap_or_else(|| global::tracer_with_scope(scope()));
        let collector = Arc::new(Collector::default());
        instruments::observe(&meter, &collector);
        let durations = Durations::new(&meter);
        Telemetry(Arc::new(Inner { collector, durations, tracer, show_key: self.show_key }))
    }
}

impl fmt::Debug for TelemetryBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryBuilder")
            .field("shows_keys", &self.show_key.is_some())
            .finish_non_exhaustive()
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(names::SCOPE).with_version(env!("CARGO_PKG_VERSION")).build()
}

type Mask = dyn Fn(&str) -> Option<String> + Send + Sync;

/// The user's say on what of a key may be seen.
pub(crate) struct ShowKey(Box<Mask>);

impl ShowKey {
    pub(crate) fn of(&self, key: &str) -> Option<String> {
        catch_unwind(AssertUnwindSafe(|| (self.0)(key))).ok().flatten()
    }
}
