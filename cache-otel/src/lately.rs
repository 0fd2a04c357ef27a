//! What a thread says again and again: series of histograms, and how spans begin, with their attributes put together once.

use cache_core::{ErrorKind, LevelFault, LevelOp, LoadEnd, Outcome, SpanKind, Verb};
#[cfg(feature = "bound-instruments")]
use opentelemetry::metrics::BoundHistogram;
use opentelemetry::{KeyValue, metrics::Histogram, trace::SpanBuilder};

/// Things of one kind that are remembered. A cache has a handful; the oldest goes for what comes beyond.
const MOST: usize = 32;

/// One series of a histogram.
pub(crate) struct Point<T> {
    #[cfg(feature = "bound-instruments")]
    bound: BoundHistogram<T>,
    #[cfg(not(feature = "bound-instruments"))]
    histogram: Histogram<T>,
    #[cfg(not(feature = "bound-instruments"))]
    attributes: Box<[KeyValue]>,
}

impl<T: Clone> Point<T> {
    pub(crate) fn new(histogram: &Histogram<T>, attributes: &[KeyValue]) -> Self {
        #[cfg(feature = "bound-instruments")]
        return Self { bound: histogram.bind(attributes) };
        #[cfg(not(feature = "bound-instruments"))]
        Self { histogram: histogram.clone(), attributes: attributes.into() }
    }

    pub(crate) fn record(&self, value: T) {
        #[cfg(feature = "bound-instruments")]
        self.bound.record(value);
        #[cfg(not(feature = "bound-instruments"))]
        self.histogram.record(value, &self.attributes);
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

/// How a call ended, and for how many it stands.
type Ending = (Verb, Option<Outcome>, Option<u8>, Option<ErrorKind>, u32);

/// What a thread has lately said of one cache.
#[derive(Default)]
pub(crate) struct Lately {
    pub(crate) operations: Few<Ending, Point<f64>>,
    pub(crate) levels: Few<(u8, LevelOp, Option<LevelFault>), Point<f64>>,
    pub(crate) commands: Few<(u8, &'static str, Option<LevelFault>), Point<f64>>,
    pub(crate) loads: Few<LoadEnd, Point<f64>>,
    pub(crate) items: Few<(u8, LevelOp), Point<u64>>,
    /// What all spans of a kind begin with.
    pub(crate) spans: Few<SpanKind, SpanBuilder>,
}
