//! Levels of objects alone: over a store of one's own, or one from which a test evicts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    BoxError, CacheId, CacheProvider, Capabilities, Description, Evictions, Moment, Object, ObjectStore, Put,
    RawKey,
};

/// An in-process provider of the objects of one store, for levels over a store of a test's own. It holds no bytes: asked for
/// any, it fails.
pub struct ObjectsOnly(pub Arc<dyn ObjectStore>);

fn refused<T>(count: usize) -> Vec<Result<T, BoxError>> {
    (0..count).map(|_| Err("objects only".into())).collect()
}

#[async_trait]
impl CacheProvider for ObjectsOnly {
    fn capabilities(&self) -> Capabilities {
        Capabilities::in_process()
    }

    fn describe(&self) -> Description {
        Description::local("objects")
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        refused(keys.len())
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        refused(items.len())
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        refused(keys.len())
    }

    fn in_process(&self) -> Option<Arc<dyn ObjectStore>> {
        Some(Arc::clone(&self.0))
    }
}

impl std::fmt::Debug for ObjectsOnly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectsOnly").finish_non_exhaustive()
    }
}

type Objects = HashMap<(CacheId, String), Object>;

/// Objects in a map: a level from which the test evicts, without telling anybody. Clones are the same store.
#[derive(Clone, Default)]
pub struct Shelf(Arc<Mutex<Objects>>);

impl Shelf {
    /// Evicts one id, of all caches.
    pub fn evict(&self, id: &str) {
        self.lock().retain(|(_, held), _| held != id);
    }

    /// Evicts everything.
    pub fn evict_all(&self) {
        self.lock().clear();
    }

    /// Whether it has something of this id, of whichever cache.
    pub fn holds(&self, id: &str) -> bool {
        self.lock().keys().any(|(_, held)| held == id)
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CacheProvider for Shelf {
    fn capabilities(&self) -> Capabilities {
        Capabilities::in_process()
    }

    fn describe(&self) -> Description {
        Description::local("shelf")
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        refused(keys.len())
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        refused(items.len())
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        refused(keys.len())
    }

    fn in_process(&self) -> Option<Arc<dyn ObjectStore>> {
        Some(Arc::new(self.clone()))
    }
}

impl ObjectStore for Shelf {
    fn get(&self, key: RawKey<'_>) -> Option<Object> {
        self.lock().get(&(key.cache, key.id.to_owned())).cloned()
    }

    fn put(&self, key: RawKey<'_>, object: Object, _: Moment) {
        self.lock().insert((key.cache, key.id.to_owned()), object);
    }

    fn remove(&self, key: RawKey<'_>) -> bool {
        self.lock().remove(&(key.cache, key.id.to_owned())).is_some()
    }

    fn clear(&self, cache: CacheId) {
        self.lock().retain(|(of, _), _| *of != cache);
    }

    fn len(&self) -> u64 {
        self.lock().len() as u64
    }

    fn weight(&self) -> u64 {
        0
    }

    fn attach(&self, _: CacheId, _: Arc<dyn Evictions>) {}

    fn detach(&self, cache: CacheId) {
        self.clear(cache);
    }
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shelf").finish_non_exhaustive()
    }
}
