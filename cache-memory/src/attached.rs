//! The caches that use a store, and who hears of their evictions.

use std::sync::{Arc, PoisonError, RwLock};

use cache_core::{CacheId, EvictionCause, Evictions};

/// Few, written when a cache is built or dropped, read when an entry is evicted. Hits do not touch it.
#[derive(Default)]
pub(crate) struct Attached(RwLock<Vec<(CacheId, Arc<dyn Evictions>)>>);

impl Attached {
    pub(crate) fn add(&self, cache: CacheId, evictions: Arc<dyn Evictions>) {
        self.replace(cache, Some(evictions));
    }

    pub(crate) fn remove(&self, cache: CacheId) {
        self.replace(cache, None);
    }

    fn replace(&self, cache: CacheId, by: Option<Arc<dyn Evictions>>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let at = all.iter().position(|(id, _)| *id == cache);
        let gone = at.map(|at| all.swap_remove(at));
        all.extend(by.map(|evictions| (cache, evictions)));
        drop(all);
        // Its destructor may be anything: not under the lock.
        drop(gone);
    }

    /// Runs `work` if no cache but `cache` is attached, and keeps others from attaching meanwhile.
    pub(crate) fn when_alone(&self, cache: CacheId, work: impl FnOnce()) {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if all.iter().all(|(id, _)| *id == cache) {
            work();
        }
    }

    pub(crate) fn evicted(&self, cache: CacheId, key_hash: u64, cause: EvictionCause) {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let hears = all.iter().find(|(id, _)| *id == cache).map(|(_, evictions)| Arc::clone(evictions));
        drop(all);
        if let Some(hears) = hears {
            hears.evicted(key_hash, cause);
        }
    }
}
