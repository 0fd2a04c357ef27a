//! Whose series are whose: the names of caches, within the limit of series.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use cache_core::{CacheInfo, ErrorKind, LevelOutcome, Unreadable, Verb};
use opentelemetry::KeyValue;

use crate::{names, status::Latencies};

/// What the SDK allows an instrument unless told otherwise.
pub(crate) const DEFAULT_LIMIT: usize = 2000;

/// The names that have series of their own. What comes after the limit shares one series: the SDK would do so too, but for
/// counters that are read at collection it keeps one of their values instead of their sum.
pub(crate) struct Series {
    known: RwLock<Known>,
    overflow: Arc<Named>,
}

#[derive(Default)]
struct Known {
    names: HashMap<Arc<str>, Arc<Named>>,
    /// Series that one instrument may still have.
    left: usize,
}

/// One name, or all those beyond the limit.
pub(crate) struct Named {
    /// `None` for the latter.
    pub(crate) name: Option<Arc<str>>,
    /// On each of its points.
    pub(crate) label: KeyValue,
    pub(crate) latencies: Latencies,
}

impl Series {
    pub(crate) fn new(limit: usize) -> Self {
        let label = KeyValue::new(names::OVERFLOW, true);
        Self {
            // The overflow has as many as any name.
            known: RwLock::new(Known { names: HashMap::new(), left: limit }),
            overflow: Arc::new(Named { name: None, label, latencies: Latencies::default() }),
        }
    }

    /// The series of a cache, which it gets with the first call if there is room.
    pub(crate) fn of(&self, cache: &CacheInfo) -> Arc<Named> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = known.names.get(cache.name()) {
            return Arc::clone(series);
        }
        let cost = most_points(cache.levels().len());
        // Room for the overflow itself.
        if known.left < 2 * cost {
            return Arc::clone(&self.overflow);
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = known.names.get(cache.name()) {
            return Arc::clone(series);
        }
        if known.left < 2 * cost {
            return Arc::clone(&self.overflow);
        }
        known.left -= cost;
        let name = Arc::clone(cache.shared_name());
        let label = KeyValue::new(names::CACHE_NAME, Arc::clone(&name));
        let series =
            Arc::new(Named { name: Some(Arc::clone(&name)), label, latencies: Latencies::default() });
        known.names.insert(name, Arc::clone(&series));
        series
    }
}

/// The most points that one name has in one counter.
fn most_points(levels: usize) -> usize {
    let by_level = levels * LevelOutcome::ALL.len().max(Unreadable::ALL.len());
    by_level.max(Verb::ALL.len()).max(ErrorKind::ALL.len())
}
