//! A byte provider without a server.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    Acquire, Acquired, BoxError, CacheProvider, Capabilities, Clock, Description, ENTRY_ID_AT, Fill, Holding,
    Lease, Leases, Marks, Moment, Put, RawKey, Swap, Swapped, Unreadable, shorten,
};

/// Keeps bytes in a hash map and says of itself that it is remote. Keeps to whatever capabilities it is given: rounds
/// TTLs up, shortens long keys, neither takes nor hands out large items. Nothing is evicted. Gives leases and swaps marks if told to
/// ([`leasing`](Self::leasing), [`marking`](Self::marking)).
pub struct MapProvider {
    held: Mutex<Held>,
    leasing: bool,
    marking: bool,
    capabilities: Capabilities,
    clock: Clock,
    offset_ms: AtomicI64,
    incarnation: AtomicU64,
    watch: Option<Watch>,
}

type Watch = Box<dyn Fn(&str) + Send + Sync>;

#[derive(Default)]
struct Held {
    items: HashMap<String, Item>,
    /// Under one lock with the items: whoever writes an item ends its lease in one step.
    leases: HashMap<String, Lent>,
    /// Keys kept for a writer.
    holds: HashMap<String, Lent>,
}

/// What a [`MapProvider`] held at one moment.
#[derive(Clone)]
pub struct Dump(Vec<(String, Bytes, Moment)>);

impl fmt::Debug for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dump").field("len", &self.0.len()).finish()
    }
}

struct Item {
    bytes: Bytes,
    until: Moment,
}

struct Lent {
    lease: Lease,
    until: Moment,
}

impl Held {
    fn item(&self, key: &str, now: Moment) -> Option<&Item> {
        self.items.get(key).filter(|item| now < item.until)
    }

    fn lent(&mut self, key: &str, now: Moment) -> Option<&mut Lent> {
        self.leases.get_mut(key).filter(|lent| now < lent.until)
    }

    fn holds(&mut self, key: &str, lease: &Lease, now: Moment) -> bool {
        self.lent(key, now).is_some_and(|lent| lent.lease == *lease)
    }

    fn kept(&mut self, key: &str, now: Moment) -> Option<&mut Lent> {
        self.holds.get_mut(key).filter(|lent| now < lent.until)
    }

    /// Ends a hold, if it is this one.
    fn let_go(&mut self, key: &str, lease: &Lease) {
        if self.holds.get(key).is_some_and(|kept| kept.lease == *lease) {
            self.holds.remove(key);
        }
    }
}

impl MapProvider {
    /// An empty provider without limits, on the system's clock.
    pub fn new() -> Self {
        Self::with(Capabilities::remote())
    }

    /// An empty provider with these capabilities.
    pub fn with(capabilities: Capabilities) -> Self {
        Self {
            held: Mutex::default(),
            leasing: false,
            marking: false,
            capabilities,
            clock: Clock::system(),
            offset_ms: AtomicI64::new(0),
            incarnation: AtomicU64::new(1),
            watch: None,
        }
    }

    /// Gives leases.
    #[must_use]
    pub fn leasing(mut self) -> Self {
        self.leasing = true;
        self
    }

    /// Swaps marks, so that tags are invalidated one by one.
    #[must_use]
    pub fn marking(mut self) -> Self {
        self.marking = true;
        self
    }

    /// Says of itself that it is another store than maps with another number. 1 unless set.
    #[must_use]
    pub fn incarnated(self, number: u64) -> Self {
        self.incarnation.store(number, Ordering::Release);
        self
    }

    /// Tells of each stored key whose item a call may have changed, before the call is answered: what a
    /// [`Backplane`](crate::Backplane) that [hears writes](crate::Backplane::hears_writes) goes by. Not what goes by itself.
    #[must_use]
    pub fn watched(mut self, changed: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.watch = Some(Box::new(changed));
        self
    }

    /// Counts TTLs on this clock.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// What is held now, to bring it back with [`restore`](Self::restore).
    pub fn dump(&self) -> Dump {
        Dump(
            self.lock()
                .items
                .iter()
                .map(|(key, item)| (key.clone(), item.bytes.clone(), item.until))
                .collect(),
        )
    }

    /// Restarts from a dump: what has happened since is forgotten, and the store says that it is another one.
    pub fn restore(&self, dump: &Dump) {
        let mut held = self.lock();
        held.items = dump
            .0
            .iter()
            .map(|(key, bytes, until)| (key.clone(), Item { bytes: bytes.clone(), until: *until }))
            .collect();
        self.incarnation.fetch_add(1, Ordering::AcqRel);
    }

    /// What [`CacheProvider::time_offset_ms`] answers from now on.
    pub fn set_time_offset_ms(&self, offset: i64) {
        self.offset_ms.store(offset, Ordering::Release);
    }

    /// Items that have not expired.
    pub fn len(&self) -> usize {
        let now = self.clock.now();
        self.lock().items.values().filter(|item| now < item.until).count()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The stored keys, `namespace:id`, in order.
    pub fn keys(&self) -> Vec<String> {
        let now = self.clock.now();
        let held = self.lock();
        let mut keys: Vec<_> =
            held.items.iter().filter(|(_, item)| now < item.until).map(|(key, _)| key.clone()).collect();
        keys.sort_unstable();
        keys
    }

    /// The stored bytes of a key (`namespace:id`), behind the back of whoever uses the provider.
    pub fn peek(&self, key: &str) -> Option<Bytes> {
        let now = self.clock.now();
        self.lock().item(key, now).map(|item| item.bytes.clone())
    }

    /// What is left of an item's life; `Duration::MAX` if it does not expire.
    pub fn ttl(&self, key: &str) -> Option<Duration> {
        let now = self.clock.now();
        self.lock().item(key, now).map(|item| item.until.since(now))
    }

    /// Whether somebody has the lease of a key (`namespace:id`).
    pub fn is_leased(&self, key: &str) -> bool {
        let now = self.clock.now();
        self.lock().lent(key, now).is_some()
    }

    /// The lease of a key (`namespace:id`) that somebody has.
    pub fn leased(&self, key: &str) -> Option<Lease> {
        let now = self.clock.now();
        self.lock().lent(key, now).map(|lent| lent.lease.clone())
    }

    /// Whether a key (`namespace:id`) is kept for a writer.
    pub fn is_kept(&self, key: &str) -> bool {
        let now = self.clock.now();
        self.lock().kept(key, now).is_some()
    }

    /// Ends a writer's hold of a key (`namespace:id`), and leaves its lease.
    pub fn unhold(&self, key: &str) {
        self.lock().holds.remove(key);
    }

    /// Stores bytes without expiry, as a foreign writer would: one who knows of no leases.
    pub fn plant(&self, key: &str, bytes: impl Into<Bytes>) {
        self.lock().items.insert(key.to_owned(), Item { bytes: bytes.into(), until: Moment::NEVER });
    }

    /// Makes a lease of a key (`namespace:id`) out of nothing, in the place of whatever there is.
    pub fn lend(&self, key: &str, lease: Lease, life: Duration) {
        let until = self.until(life);
        self.lock().leases.insert(key.to_owned(), Lent { lease, until });
    }

    /// Ends the lease of a key (`namespace:id`), as an eviction does.
    pub fn revoke(&self, key: &str) {
        self.lock().leases.remove(key);
    }

    /// Forgets the item of a key (`namespace:id`) and leaves its lease, as an eviction does.
    pub fn evict(&self, key: &str) {
        self.lock().items.remove(key);
    }

    /// Forgets everything, leases too, as a server does that restarts.
    pub fn wipe(&self) {
        *self.lock() = Held::default();
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With no lock held.
    fn tell<'k>(&self, keys: impl IntoIterator<Item = &'k RawKey<'k>>) {
        if let Some(watch) = &self.watch {
            keys.into_iter().for_each(|key| watch(&self.stored_key(key)));
        }
    }

    fn stored_key(&self, key: &RawKey<'_>) -> String {
        let joined = key.joined();
        match self.capabilities.key_max {
            Some(max) => shorten(&joined, max).into_owned(),
            None => joined,
        }
    }

    /// A refused item leaves nothing of the old one.
    fn store(&self, held: &mut Held, key: String, item: &Put<'_>) -> Result<(), BoxError> {
        if self.capabilities.value_max.is_some_and(|max| item.bytes.len() > max) {
            held.items.remove(&key);
            return Err("the item is larger than value_max".into());
        }
        held.items.insert(key, Item { bytes: item.bytes.clone(), until: self.until(item.ttl) });
        Ok(())
    }

    fn hand_out(&self, found: Bytes) -> Result<Bytes, BoxError> {
        match self.capabilities.value_max {
            Some(max) if found.len() > max => Err(Unreadable::TooLarge.into()),
            _ => Ok(found),
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
            namespace: None,
        }
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        keys.iter()
            .map(|key| self.peek(&self.stored_key(key)).map(|found| self.hand_out(found)).transpose())
            .collect()
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        let mut held = self.lock();
        let stored = items
            .iter()
            .map(|item| {
                let key = self.stored_key(&item.key);
                held.leases.remove(&key);
                self.store(&mut held, key, item)
            })
            .collect();
        drop(held);
        self.tell(items.iter().map(|item| &item.key));
        stored
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        let mut held = self.lock();
        for key in keys {
            let key = self.stored_key(key);
            held.leases.remove(&key);
            held.items.remove(&key);
        }
        drop(held);
        self.tell(keys);
        keys.iter().map(|_| Ok(())).collect()
    }

    fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Acquire)
    }

    fn time_offset_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Acquire)
    }

    fn leases(&self) -> Option<&dyn Leases> {
        self.leasing.then_some(self)
    }

    fn marks(&self) -> Option<&dyn Marks> {
        self.marking.then_some(self)
    }
}

#[async_trait]
impl Marks for MapProvider {
    async fn swap(&self, marks: &[Swap<'_>]) -> Result<Swapped, BoxError> {
        let mut held = self.lock();
        let clock = self.clock.now();
        for (at, mark) in marks.iter().enumerate() {
            let key = self.stored_key(&mark.key);
            let (now, kept) = held.item(&key, clock).map(|item| (item.bytes.clone(), item.until)).unzip();
            if now != mark.seen {
                return Ok(Swapped::Other { at, now });
            }
            let until = self.until(mark.ttl).max(kept.unwrap_or(Moment::ORIGIN));
            held.items.insert(key, Item { bytes: mark.bytes.clone(), until });
        }
        drop(held);
        self.tell(marks.iter().map(|mark| &mark.key));
        Ok(Swapped::Done)
    }
}

#[async_trait]
impl Leases for MapProvider {
    async fn acquire_many(&self, wanted: &[Acquire<'_>], life: Duration) -> Vec<Result<Acquired, BoxError>> {
        let mut held = self.lock();
        let now = self.clock.now();
        wanted
            .iter()
            .map(|wish| {
                let key = self.stored_key(&wish.key);
                let item = held.item(&key, now);
                if let Some(item) = item.filter(|item| !is_held(&item.bytes, wish.holding)) {
                    return self.hand_out(item.bytes.clone()).map(Acquired::Found);
                }
                let gone = item.is_none() && matches!(wish.holding, Holding::Still(_));
                if gone || held.kept(&key, now).is_some() {
                    return Ok(Acquired::Kept);
                }
                if held.lent(&key, now).is_some() {
                    return Ok(Acquired::Held);
                }
                let lease = new_lease();
                held.leases.insert(key, Lent { lease: lease.clone(), until: self.until(life) });
                Ok(Acquired::Granted(lease))
            })
            .collect()
    }

    async fn fill_many(&self, fills: &[Fill<'_>]) -> Vec<Result<bool, BoxError>> {
        let mut held = self.lock();
        let now = self.clock.now();
        let stored = fills
            .iter()
            .map(|fill| {
                let key = self.stored_key(&fill.put.key);
                if !held.holds(&key, &fill.lease, now) {
                    return Ok(false);
                }
                held.leases.remove(&key);
                held.let_go(&key, &fill.lease);
                self.store(&mut held, key, &fill.put).map(|()| true)
            })
            .collect();
        drop(held);
        self.tell(fills.iter().map(|fill| &fill.put.key));
        stored
    }

    async fn hold_many(&self, keys: &[RawKey<'_>], life: Duration) -> Vec<Result<Lease, BoxError>> {
        let mut held = self.lock();
        let now = self.clock.now();
        let kept = keys
            .iter()
            .map(|key| {
                let key = self.stored_key(key);
                let lease = new_lease();
                let alone = held.kept(&key, now).is_none();
                let until = self.until(life);
                held.items.remove(&key);
                held.holds.insert(key.clone(), Lent { lease: lease.clone(), until });
                // Nobody has this one.
                let right = if alone { lease.clone() } else { new_lease() };
                held.leases.insert(key, Lent { lease: right, until });
                Ok(lease)
            })
            .collect();
        drop(held);
        self.tell(keys);
        kept
    }

    async fn renew_many(&self, leases: &[(RawKey<'_>, Lease)], life: Duration) -> Vec<Result<(), BoxError>> {
        let mut held = self.lock();
        let now = self.clock.now();
        let until = self.until(life);
        for (key, lease) in leases {
            let key = self.stored_key(key);
            if let Some(lent) = held.lent(&key, now).filter(|lent| lent.lease == *lease) {
                lent.until = until;
            }
            if let Some(kept) = held.kept(&key, now).filter(|kept| kept.lease == *lease) {
                kept.until = until;
            }
        }
        leases.iter().map(|_| Ok(())).collect()
    }

    async fn release_many(&self, leases: &[(RawKey<'_>, Lease)]) -> Vec<Result<(), BoxError>> {
        let mut held = self.lock();
        let now = self.clock.now();
        for (key, lease) in leases {
            let key = self.stored_key(key);
            if held.holds(&key, lease, now) {
                held.leases.remove(&key);
            }
            held.let_go(&key, lease);
        }
        leases.iter().map(|_| Ok(())).collect()
    }
}

fn new_lease() -> Lease {
    Lease(Bytes::copy_from_slice(&fastrand::u128(..).to_le_bytes()))
}

/// Whether these bytes are what the asker holds, and so no answer.
fn is_held(bytes: &[u8], holding: Holding) -> bool {
    match holding {
        Holding::Nothing => false,
        Holding::Entry(id) | Holding::Still(id) => bytes.get(ENTRY_ID_AT) == Some(&id.0.to_le_bytes()),
        Holding::Unreadable => true,
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

    #[tokio::test]
    async fn whoever_watches_hears_of_writes() {
        let (changed, heard) = std::sync::mpsc::channel();
        let map =
            MapProvider::new().leasing().marking().watched(move |key| changed.send(key.to_owned()).unwrap());
        let key = |id| RawKey::new(CacheId(1), "users", id);
        let put = |id| Put { key: key(id), bytes: Bytes::from_static(b"v"), ttl: Duration::MAX };
        map.put(put("put")).await.unwrap();
        map.remove(key("removed")).await.unwrap();
        let lease = map.hold_many(&[key("held")], Duration::MAX).await.remove(0).unwrap();
        map.fill_many(&[Fill { put: put("filled"), lease }]).await.remove(0).unwrap();
        let mark = Swap { key: key("mark"), seen: None, bytes: Bytes::from_static(b"m"), ttl: Duration::MAX };
        assert!(matches!(map.swap(&[mark]).await.unwrap(), Swapped::Done));
        map.get(key("read")).await.unwrap();
        let heard: Vec<_> = heard.try_iter().collect();
        assert_eq!(heard, ["users:put", "users:removed", "users:held", "users:filled", "users:mark"]);
    }

    #[tokio::test]
    async fn leases_end_on_its_clock() {
        let (clock, time) = Clock::manual();
        let map = MapProvider::new().leasing().clock(clock);
        let key = RawKey::new(CacheId(1), "users", "42");
        let wish = [Acquire { key, holding: Holding::Nothing }];
        let ask = || map.acquire_many(&wish, Duration::from_secs(2));
        let Acquired::Granted(lease) = ask().await.remove(0).unwrap() else { panic!("granted") };
        time.advance(Duration::from_millis(1_999));
        assert!(matches!(ask().await.remove(0).unwrap(), Acquired::Held));
        map.renew_many(&[(key, lease.clone())], Duration::from_secs(2)).await.remove(0).unwrap();
        time.advance(Duration::from_millis(1_999));
        assert!(map.is_leased("users:42"));
        time.advance(Duration::from_millis(1));
        assert!(!map.is_leased("users:42"));
        let put = Put { key, bytes: Bytes::from_static(b"v"), ttl: Duration::MAX };
        assert!(!map.fill_many(&[Fill { put, lease }]).await.remove(0).unwrap());
        assert!(map.is_empty() && matches!(ask().await.remove(0).unwrap(), Acquired::Granted(_)));
    }
}
