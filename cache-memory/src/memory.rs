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

use crate::{
    Engine,
    engine::{Settings, Store},
};

/// What a value leaves of an entry's greatest weight.
const ROOM_FOR_KEY: u64 = 512;

/// Process memory as a level.
///
/// A value like any other: set it up, clone it, give it to a cache. Clones share one store; changing a setting makes a
/// new one. Memory is taken as entries come; what [`Engine::Quick`] takes at once for its parts is 256 bytes for every 4096
/// entries, or for every 64 MiB, of the bound: two kilobytes or so where it is small, 16 MiB at most.
///
/// No call blocks or awaits, so there is nothing to cancel: the futures of [`CacheProvider`] are ready at once.
#[derive(Clone)]
pub struct Memory {
    settings: Settings,
    store: Arc<OnceLock<Arc<dyn Store>>>,
}

impl Memory {
    /// Holds up to `capacity` entries, whatever their size. Zero is refused when a cache is built.
    #[must_use]
    pub fn entries(capacity: u64) -> Self {
        Self::with(Settings { engine: Engine::default(), capacity, weighs: false, engine_expiry: true })
    }

    /// Holds entries of up to `capacity` bytes in all: weight of the value, length of the key, and
    /// [`Engine::entry_overhead`] for each. What has no room for an empty entry is refused when a cache is built.
    ///
    /// An entry that is too heavy does not stay: it counts as evicted, and the write that brought it as well done. On
    /// [`Engine::Moka`] that is one over the bound; on [`Engine::Quick`] one over nine tenths of a part, of which there are more
    /// the more CPUs there are: with 64 MiB 7.2 MiB on two, 3.6 MiB on four. What is up to 3.6 MiB stays wherever the bound is
    /// 4 MiB or more.
    #[must_use]
    pub fn bytes(capacity: u64) -> Self {
        Self::with(Settings { engine: Engine::default(), capacity, weighs: true, engine_expiry: true })
    }

    /// Whether the engine lets go of entries whose time is over (on by default).
    ///
    /// On: dead entries leave while the store is being used, and count as evictions by expiry: within about a second on
    /// [`Engine::Moka`], where a hit costs about a tenth more for it; as others are written on [`Engine::Quick`]. Off: they
    /// take up room until newer ones push them out. What is served is the same: a cache judges each entry by its own
    /// timeline.
    #[must_use]
    pub fn engine_expiry(self, on: bool) -> Self {
        Self::with(Settings { engine_expiry: on, ..self.settings })
    }

    /// What keeps the entries; [`Engine::Quick`] unless told otherwise.
    #[must_use]
    pub fn engine(self, engine: Engine) -> Self {
        Self::with(Settings { engine, ..self.settings })
    }

    /// Does what the engine has put off: evicts down to the bound and lets go of what has expired. Calls of the store
    /// do a part of it in passing; this is for idle stores and for tests. Costs a walk over all entries on
    /// [`Engine::Quick`], if some have expired.
    pub fn maintain(&self) {
        self.store().maintain();
    }

    fn with(settings: Settings) -> Self {
        Self { settings, store: Arc::default() }
    }

    fn store(&self) -> &Arc<dyn Store> {
        self.store.get_or_init(|| self.settings.store())
    }

    fn put_one(&self, item: &Put<'_>) -> Result<(), BoxError> {
        let joined = item.key.joined();
        let size = item.bytes.len();
        if let Some(limit) = self.settings.heaviest()
            && joined.len().saturating_add(size) as u64 > limit
        {
            self.store().remove_bytes(&joined);
            return Err(format!("an item of {size} bytes is over the store's bound of {limit} bytes").into());
        }
        self.store().put_bytes(&joined, item.bytes.clone(), item.ttl);
        Ok(())
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
        match self.settings.heaviest().map(|most| usize::try_from(most.saturating_sub(ROOM_FOR_KEY))) {
            Some(Ok(most)) => all.value_max(most),
            _ => all,
        }
    }

    fn describe(&self) -> Description {
        Description::local("memory")
    }

    fn check(&self) -> Result<(), Error> {
        let Settings { engine, capacity, weighs, .. } = self.settings;
        let overhead = engine.entry_overhead();
        match (weighs, capacity) {
            (false, 0) => {
                Err(Error::config("Memory::entries", capacity, "give it room for at least one entry"))
            }
            (true, _) if self.settings.most() < u64::from(overhead) => Err(Error::config(
                "Memory::bytes",
                capacity,
                format_args!("one empty entry takes {overhead} bytes; give it more"),
            )),
            _ => Ok(()),
        }
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        keys.iter().map(|key| Ok(self.store().get_bytes(&key.joined()))).collect()
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        items.iter().map(|item| self.put_one(item)).collect()
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        keys.iter()
            .map(|key| {
                self.store().remove_bytes(&key.joined());
                Ok(())
            })
            .collect()
    }

    fn in_process(&self) -> Option<Arc<dyn ObjectStore>> {
        Some(Arc::<dyn Store>::clone(self.store()))
    }
}
