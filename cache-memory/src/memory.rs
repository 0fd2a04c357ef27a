//! The provider and its settings.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{
    BoxError, CacheProvider, Capabilities, Description, Error, ObjectStore, Put, RawKey, Result,
};

use crate::engine::{Engine, Settings};

/// Process memory as a level.
///
/// A value like any other: set it up, clone it, give it to a cache. Clones share one store; changing a setting makes a
/// new one. Memory is taken as entries come.
///
/// No call blocks or awaits, so there is nothing to cancel: the futures of [`CacheProvider`] are ready at once.
#[derive(Clone)]
pub struct Memory {
    settings: Settings,
    engine: Arc<OnceLock<Arc<Engine>>>,
}

impl Memory {
    /// Holds up to `capacity` entries, whatever their size. Zero is refused when a cache is built.
    #[must_use]
    pub fn entries(capacity: u64) -> Self {
        Self::with(Settings { capacity, weighs: false, engine_expiry: true })
    }

    /// Holds entries of up to `capacity` bytes in all: weight of the value, length of the key, and
    /// [`ENTRY_OVERHEAD`](crate::ENTRY_OVERHEAD) for each. Less than the overhead of one entry is refused when a cache
    /// is built.
    #[must_use]
    pub fn bytes(capacity: u64) -> Self {
        Self::with(Settings { capacity, weighs: true, engine_expiry: true })
    }

    /// Whether the engine lets go of an entry when its time is over (on by default).
    ///
    /// On: dead entries leave within about a second of the next use of the store, and count as evictions by expiry; a
    /// hit costs about a tenth more (6 to 12 % measured). Off: hits are cheaper, and dead entries take up room until newer ones push them
    /// out, so the number of entries is an upper bound. What is served is the same: a cache judges each entry by its
    /// own timeline.
    #[must_use]
    pub fn engine_expiry(self, on: bool) -> Self {
        Self::with(Settings { engine_expiry: on, ..self.settings })
    }

    /// Does what the engine has put off: evicts down to the bound and lets go of what has expired. Calls of the store
    /// do a part of it in passing; this is for idle stores and for tests.
    pub fn maintain(&self) {
        self.engine().maintain();
    }

    fn with(settings: Settings) -> Self {
        Self { settings, engine: Arc::default() }
    }

    fn engine(&self) -> &Arc<Engine> {
        self.engine.get_or_init(|| Arc::new(Engine::new(self.settings)))
    }

    fn put_one(&self, item: &Put<'_>) -> Result<(), BoxError> {
        let joined = item.key.joined();
        let size = item.bytes.len();
        match self.capabilities().value_max {
            Some(limit) if size > limit => {
                self.engine().remove_bytes(&joined);
                Err(format!("an item of {size} bytes is over the store's bound of {limit} bytes").into())
            }
            _ => {
                self.engine().put_bytes(&joined, item.bytes.clone(), item.ttl);
                Ok(())
            }
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl From<Memory> for Arc<dyn CacheProvider> {
    fn from(memory: Memory) -> Self {
        Arc::new(memory)
    }
}

#[async_trait]
impl CacheProvider for Memory {
    fn capabilities(&self) -> Capabilities {
        let all = Capabilities::in_process();
        match usize::try_from(self.settings.capacity) {
            Ok(capacity) if self.settings.weighs => all.value_max(capacity),
            _ => all,
        }
    }

    fn describe(&self) -> Description {
        Description::local("memory")
    }

    fn check(&self) -> Result<(), Error> {
        let Settings { capacity, weighs, .. } = self.settings;
        match (weighs, capacity) {
            (false, 0) => {
                Err(Error::config("Memory::entries", capacity, "give it room for at least one entry"))
            }
            (true, bytes) if bytes < u64::from(crate::ENTRY_OVERHEAD) => Err(Error::config(
                "Memory::bytes",
                capacity,
                format_args!("one empty entry takes {} bytes; give it more", crate::ENTRY_OVERHEAD),
            )),
            _ => Ok(()),
        }
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        keys.iter().map(|key| Ok(self.engine().get_bytes(&key.joined()))).collect()
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        items.iter().map(|item| self.put_one(item)).collect()
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        keys.iter()
            .map(|key| {
                self.engine().remove_bytes(&key.joined());
                Ok(())
            })
            .collect()
    }

    fn in_process(&self) -> Option<Arc<dyn ObjectStore>> {
        Some(Arc::clone(self.engine()) as Arc<dyn ObjectStore>)
    }
}
