//! What a thread says again and again: series of histograms, and how spans begin, with their attributes put together once.

use std::sync::Arc;

use cache_core::{ErrorKind, LevelFault, LevelOp, LoadEnd, Outcome, SpanKind, Verb};
#[cfg(feature = "bound-instruments")]
use opentelemetry::metrics::BoundHistogram;
use opentelemetry::{KeyValue, metrics::Histogram, trace::SpanBuilder};

use crate::{
    backlog::{Point, Sink, Value},
    series::Named,
    status::Timed,
};

/// Things of one kind that are remembered. A cache has a handful; the oldest goes for what comes beyond.
const MOST: usize = 32;

/// One series of a histogram.
pub(crate) struct Series<T> {
    #[cfg(feature = "bound-instruments")]
    bound: BoundHistogram<T>,
    #[cfg(not(feature = "bound-instruments"))]
    histogram: Histogram<T>,
    #[cfg(not(feature = "bound-instruments"))]
    attributes: Box<[KeyValue]>,
}

impl<T: Clone> Series<T> {
    pub(crate) fn new(histogram: &Histogram<T>, attributes: &[KeyValue]) -> Self {
        #[cfg(feature = "bound-instruments")]
        return Self { bound: histogram.bind(attributes) };
        #[cfg(not(feature = "bound-instruments"))]
        Self { histogram: histogram.clone(), attributes: attributes.into() }
    }
}

impl<T: Value + Send + Sync> Sink<T> for Series<T> {
    fn take(&self, values: &[T]) {
        for value in values {
            #[cfg(feature = "bound-instruments")]
            self.bound.record(*value);
            #[cfg(not(feature = "bound-instruments"))]
            self.histogram.record(*value, &self.attributes);
        }
    }
}

/// How long the calls of one verb took, for [`Telemetry::stats`](crate::Telemetry::stats).
pub(crate) struct Times {
    pub(crate) of: Arc<Named>,
    pub(crate) verb: Verb,
}

impl Sink<Timed> for Times {
    fn take(&self, values: &[Timed]) {
        self.of.latencies.record(self.verb, values);
    }
}

/// A few things by what tells them apart.
pub(crate) struct Few<K, V>(Vec<(K, V)>);

impl<K, V> Default for Few<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: PartialEq, V> Few<K, V> {
    /// What belongs to `key`, which `make` puts together if the thread has not had it lately.
    pub(crate) fn get(&mut self, key: K, make: impl FnOnce() -> V) -> &V {
        let at = self.0.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
            if self.0.len() == MOST {
                self.0.remove(0);
            }
            self.0.push((key, make()));
            self.0.len() - 1
        });
        &self.0[at].1
    }
}

type Histograms<T> = Point<T, Series<T>>;

/// How a call ended, and for how many it stands.
type Ending = (Verb, Option<Outcome>, Option<u8>, Option<ErrorKind>, u32);

/// What a thread has lately said of one cache.
#[derive(Default)]
pub(crate) struct Lately {
    pub(crate) latencies: Few<Verb, Point<Timed, Times>>,
    pub(crate) operations: Few<Ending, Histograms<f64>>,
    pub(crate) levels: Few<(u8, LevelOp, Option<LevelFault>), Histograms<f64>>,
    pub(crate) commands: Few<(u8, &'static str, Option<LevelFault>), Histograms<f64>>,
    pub(crate) loads: Few<LoadEnd, Histograms<f64>>,
    pub(crate) items: Few<(u8, LevelOp), Histograms<u64>>,
    /// What all spans of a kind begin with.
    pub(crate) spans: Few<SpanKind, SpanBuilder>,
}
