//! A byte provider without a server.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{BoxError, CacheProvider, Capabilities, Clock, Description, Moment, Put, RawKey, shorten};

/// Keeps bytes in a hash map and says of itself that it is remote. Keeps to whatever capabilities it is given: rounds
/// TTLs up, shortens long keys, refuses large items. Nothing is evicted.
pub struct MapProvider {
    items: Mutex<HashMap<String, Item>>,
    capabilities: Capabilities,
    clock: Clock,
    offset_ms: AtomicI64,
}

struct Item {
    bytes: Bytes,
    until: Moment,
}

impl MapProvider {
    /// An empty provider without limits, on the system's clock.
    pub fn new() -> Self {
        Self::with(Capabilities::remote())
    }

    /// An empty provider with these capabilities.
    pub fn with(capabilities: Capabilities) -> Self {
        Self { items: Mutex::default(), capabilities, clock: Clock::system(), offset_ms: AtomicI64::new(0) }
    }

    /// Counts TTLs on this clock.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// What [`CacheProvider::time_offset_ms`] answers from now on.
    pub fn set_time_offset_ms(&self, offset: i64) {
        self.offset_ms.store(offset, Ordering::Release);
    }

    /// Items that have not expired.
    pub fn len(&self) -> usize {
        let now = self.clock.now();
        self.lock().values().filter(|item| now < item.until).count()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The stored keys, `namespace:id`, in order.
    pub fn keys(&self) -> Vec<String> {
        let now = self.clock.now();
        let mut keys: Vec<_> =
            self.lock().iter().filter(|(_, item)| now < item.until).map(|(key, _)| key.clone()).collect();
        keys.sort_unstable();
        keys
    }

    /// The stored bytes of a key (`namespace:id`), behind the back of whoever uses the provider.
    pub fn peek(&self, key: &str) -> Option<Bytes> {
        let now = self.clock.now();
        self.lock().get(key).filter(|item| now < item.until).map(|item| item.bytes.clone())
    }

    /// What is left of an item's life; `Duration::MAX` if it does not expire.
    pub fn ttl(&self, key: &str) -> Option<Duration> {
        let now = self.clock.now();
        self.lock().get(key).filter(|item| now < item.until).map(|item| item.until.since(now))
    }

    /// Stores bytes without expiry, as a foreign writer would.
    pub fn plant(&self, key: &str, bytes: impl Into<Bytes>) {
        self.lock().insert(key.to_owned(), Item { bytes: bytes.into(), until: Moment::NEVER });
    }

    /// Forgets everything, as a server does that restarts.
    pub fn wipe(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Item>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stored_key(&self, key: &RawKey<'_>) -> String {
        let joined = key.joined();
        match self.capabilities.key_max {
            Some(max) => shorten(&joined, max).into_owned(),
            None => joined,
        }
    }

    fn until(&self, ttl: Duration) -> Moment {
        if ttl == Duration::MAX || self.capabilities.ttl_max.is_some_and(|max| ttl > max) {
            return Moment::NEVER;
        }
        let step = self.capabilities.ttl_step.as_nanos().max(1);
        let nanos = ttl.as_nanos().div_ceil(step).saturating_mul(step);
        self.clock.now().after(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

impl Default for MapProvider {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MapProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapProvider")
            .field("len", &self.len())
            .field("capabilities", &self.capabilities)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl CacheProvider for MapProvider {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn describe(&self) -> Description {
        Description {
            system: "map",
            address: self.capabilities.remote.then(|| "map.test".to_owned()),
            port: None,
        }
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        keys.iter().map(|key| Ok(self.peek(&self.stored_key(key)))).collect()
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        let mut held = self.lock();
        items
            .iter()
            .map(|item| {
                let key = self.stored_key(&item.key);
                if self.capabilities.value_max.is_some_and(|max| item.bytes.len() > max) {
                    held.remove(&key);
                    return Err("the item is larger than value_max".into());
                }
                held.insert(key, Item { bytes: item.bytes.clone(), until: self.until(item.ttl) });
                Ok(())
            })
            .collect()
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        let mut held = self.lock();
        for key in keys {
            held.remove(&self.stored_key(key));
        }
        keys.iter().map(|_| Ok(())).collect()
    }

    fn time_offset_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CacheId;

    #[tokio::test]
    async fn expires_on_its_clock_and_rounds_up() {
        let (clock, time) = Clock::manual();
        let map = MapProvider::with(Capabilities::remote().ttl_step(Duration::from_secs(1))).clock(clock);
        let key = RawKey::new(CacheId(1), "users", "42");
        let bytes = Bytes::from_static(b"v");
        map.put(Put { key, bytes, ttl: Duration::from_millis(1_200) }).await.unwrap();
        assert_eq!(map.ttl("users:42"), Some(Duration::from_secs(2)));
        time.advance(Duration::from_millis(1_999));
        assert_eq!(map.keys(), ["users:42"]);
        time.advance(Duration::from_millis(1));
        assert_eq!(map.get(key).await.unwrap(), None);
        assert!(map.is_empty());
    }

    #[tokio::test]
    async fn what_is_planted_is_read_until_wiped() {
        let map = MapProvider::new();
        let key = RawKey::new(CacheId(1), "users", "42");
        map.plant("users:42", "garbage");
        assert_eq!(map.get(key).await.unwrap().as_deref(), Some(&b"garbage"[..]));
        map.wipe();
        assert_eq!(map.get(key).await.unwrap(), None);
    }
}
