//! Whose series are whose: the names of caches, within the limit of series.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use cache_core::{CacheInfo, ErrorKind, LevelOutcome, Unreadable, Verb};
use opentelemetry::KeyValue;

use crate::{lasting::lasting, lately::Lately, names, status::Latencies};

/// What the SDK allows an instrument unless told otherwise.
pub(crate) const DEFAULT_LIMIT: usize = 2000;

/// Caches whose series a thread finds without asking the others.
const NEAR: usize = 32;

/// The names that have series of their own. What comes after the limit shares one series: the SDK would do so too, but for
/// counters that are read at collection it keeps one of their values instead of their sum.
pub(crate) struct Series {
    /// Tells it from others of the process.
    number: u64,
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
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            // The overflow has as many as any name.
            known: RwLock::new(Known { names: HashMap::new(), left: limit }),
            overflow: Arc::new(Named { name: None, label, latencies: Latencies::default() }),
        }
    }

    /// Works with the series of a cache. Once a thread knows it, it asks for no lock and counts no references.
    pub(crate) fn with(&self, cache: &CacheInfo, mut work: impl FnMut(&Arc<Named>, &mut Lately)) {
        thread_local! {
            static RECENT: RefCell<Vec<Recent>> = const { RefCell::new(Vec::new()) };
        }
        struct Recent {
            series: u64,
            name: Arc<str>,
            named: Arc<Named>,
            lately: Lately,
        }
        let done = RECENT.try_with(|recent| {
            let mut recent = recent.try_borrow_mut().ok()?;
            let mut all = recent.iter_mut();
            let mine =
                all.find(|one| one.series == self.number && Arc::ptr_eq(&one.name, cache.shared_name()))?;
            work(&mine.named, &mut mine.lately);
            Some(())
        });
        if matches!(done, Ok(Some(()))) {
            return;
        }
        let named = self.of(cache);
        let mut lately = Lately::default();
        work(&named, &mut lately);
        let _ = RECENT.try_with(|recent| {
            // One that is being worked with stays as it is.
            let Ok(mut recent) = recent.try_borrow_mut() else { return };
            if recent.len() == NEAR {
                recent.remove(0);
            }
            let name = Arc::clone(cache.shared_name());
            recent.push(Recent { series: self.number, name, named, lately });
        });
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
        let label = KeyValue::new(names::CACHE_NAME, lasting(&name));
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
