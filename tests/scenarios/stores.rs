//! Small stores that a test can look into: bytes in a map, and objects that leave when told.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use traced_cache::{
    BoxError, CacheId, CacheProvider, Capabilities, Description, Evictions, Moment, Object, ObjectStore, Put,
    RawKey, Result,
};

/// Bytes in a map, as if behind a network. Entries end by their own timeline only.
#[derive(Clone)]
pub(crate) struct MapProvider {
    items: Arc<Mutex<HashMap<String, Bytes>>>,
    capabilities: Capabilities,
}

impl MapProvider {
    pub(crate) fn new() -> Self {
        Self::with(Capabilities::remote())
    }

    pub(crate) fn with(capabilities: Capabilities) -> Self {
        Self { items: Arc::default(), capabilities }
    }

    /// What is held under `namespace:id`.
    pub(crate) fn raw(&self, joined: &str) -> Option<Bytes> {
        self.items.lock().unwrap().get(joined).cloned()
    }

    /// Writes behind the cache's back.
    pub(crate) fn plant(&self, joined: &str, bytes: impl Into<Bytes>) {
        self.items.lock().unwrap().insert(joined.to_owned(), bytes.into());
    }
}

#[async_trait]
impl CacheProvider for MapProvider {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn describe(&self) -> Description {
        Description::remote("map", "test", None)
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        let items = self.items.lock().unwrap();
        keys.iter().map(|key| Ok(items.get(&key.joined()).cloned())).collect()
    }

    async fn put_many(&self, puts: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        let mut items = self.items.lock().unwrap();
        puts.iter()
            .map(|put| {
                assert!(put.ttl > Duration::ZERO, "a ttl of zero is an invalidation");
                items.insert(put.key.joined(), put.bytes.clone());
                Ok(())
            })
            .collect()
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        let mut items = self.items.lock().unwrap();
        keys.iter()
            .map(|key| {
                items.remove(&key.joined());
                Ok(())
            })
            .collect()
    }

    /// It holds what it is given, and forgets what is removed.
    fn plain(&self) -> Option<Arc<dyn CacheProvider>> {
        Some(Arc::new(self.clone()))
    }
}

type Objects = Mutex<HashMap<(CacheId, String), Object>>;

/// Objects in a map, for one process: a level from which the test evicts.
#[derive(Clone, Default)]
pub(crate) struct Shelf(Arc<Objects>);

impl Shelf {
    /// Evicts one id, of all caches.
    pub(crate) fn evict(&self, id: &str) {
        self.0.lock().unwrap().retain(|(_, held), _| held != id);
    }

    pub(crate) fn evict_all(&self) {
        self.0.lock().unwrap().clear();
    }

    pub(crate) fn holds(&self, id: &str) -> bool {
        self.0.lock().unwrap().keys().any(|(_, held)| held == id)
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
        keys.iter().map(|_| Err("objects only".into())).collect()
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        items.iter().map(|_| Err("objects only".into())).collect()
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        keys.iter().map(|_| Err("objects only".into())).collect()
    }

    fn in_process(&self) -> Option<Arc<dyn ObjectStore>> {
        Some(Arc::new(self.clone()))
    }
}

impl ObjectStore for Shelf {
    fn get(&self, key: RawKey<'_>) -> Option<Object> {
        self.0.lock().unwrap().get(&(key.cache, key.id.to_owned())).cloned()
    }

    fn put(&self, key: RawKey<'_>, object: Object, _: Moment) {
        self.0.lock().unwrap().insert((key.cache, key.id.to_owned()), object);
    }

    fn remove(&self, key: RawKey<'_>) -> bool {
        self.0.lock().unwrap().remove(&(key.cache, key.id.to_owned())).is_some()
    }

    fn clear(&self, cache: CacheId) {
        self.0.lock().unwrap().retain(|(of, _), _| *of != cache);
    }

    fn len(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }

    fn weight(&self) -> u64 {
        0
    }

    fn attach(&self, _: CacheId, _: Arc<dyn Evictions>) {}

    fn detach(&self, cache: CacheId) {
        self.clear(cache);
    }
}
