//! A small store that a test can look into: bytes in a map.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use traced_cache::{BoxError, CacheProvider, Capabilities, Description, Put, RawKey, Result};

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
