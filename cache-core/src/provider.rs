//! The trait that carries every backend.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    Backplane, BoxError, CacheId, Error, Glance, Leases, LevelOp, Marks, Moment, Object, PoolStatus, RawKey,
    ServerStatus,
};

/// What a provider can do. The framework adapts to it; a provider never pretends.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Smallest step of a TTL. A TTL is rounded **up** to it; the entry's own timeline stays exact.
    pub ttl_step: Duration,
    /// Longest TTL; longer ones are kept without expiry or refused, as the provider documents. `None`: no limit.
    pub ttl_max: Option<Duration>,
    /// Most bytes of `namespace:id` that are stored as they are; longer keys are shortened with a digest.
    pub key_max: Option<usize>,
    /// Most bytes of one item. Larger ones are not sent.
    pub value_max: Option<usize>,
    /// Whether the provider is reached over a network: it can be down, slow, or shared with other processes.
    pub remote: bool,
}

impl Capabilities {
    /// A store in this process without limits.
    pub const fn in_process() -> Self {
        Self {
            ttl_step: Duration::from_nanos(1),
            ttl_max: None,
            key_max: None,
            value_max: None,
            remote: false,
        }
    }

    /// A store behind a network without limits; set what differs.
    pub const fn remote() -> Self {
        Self { ttl_step: Duration::from_millis(1), remote: true, ..Self::in_process() }
    }

    /// Sets the smallest TTL step.
    #[must_use]
    pub const fn ttl_step(mut self, step: Duration) -> Self {
        self.ttl_step = step;
        self
    }

    /// Sets the longest TTL.
    #[must_use]
    pub const fn ttl_max(mut self, max: Duration) -> Self {
        self.ttl_max = Some(max);
        self
    }

    /// Sets the longest key.
    #[must_use]
    pub const fn key_max(mut self, bytes: usize) -> Self {
        self.key_max = Some(bytes);
        self
    }

    /// Sets the largest item.
    #[must_use]
    pub const fn value_max(mut self, bytes: usize) -> Self {
        self.value_max = Some(bytes);
        self
    }
}

/// One item to store.
#[derive(Clone)]
pub struct Put<'a> {
    /// Under which key.
    pub key: RawKey<'a>,
    /// The whole item. Never empty: an envelope has a header.
    pub bytes: Bytes,
    /// Physical life, counted by the store from now, never zero. `Duration::MAX`: until evicted.
    pub ttl: Duration,
}

/// Values stay out of `Debug` output.
impl fmt::Debug for Put<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, bytes, ttl } = self;
        f.debug_struct("Put").field("key", key).field("bytes", &bytes.len()).field("ttl", ttl).finish()
    }
}

/// What a provider is, for telemetry and errors. Holds no credential.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// `db.system.name` where there is one: `redis`, `memcached`, `memory`.
    pub system: &'static str,
    /// `server.address`.
    pub address: Option<String>,
    /// `server.port`.
    pub port: Option<u16>,
    /// `db.namespace`: the database within the server, where it has several.
    pub namespace: Option<String>,
}

impl Description {
    /// A provider in this process.
    pub const fn local(system: &'static str) -> Self {
        Self { system, address: None, port: None, namespace: None }
    }

    /// A provider behind one address.
    pub fn remote(system: &'static str, address: impl Into<String>, port: Option<u16>) -> Self {
        Self { system, address: Some(address.into()), port, namespace: None }
    }

    /// The same, in this database of the server.
    #[must_use]
    pub fn within(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// Address and port as one writes them, `127.0.0.1:6379` or `[::1]:6379`; `None` in this process.
    pub fn place(&self) -> Option<String> {
        let address = self.address.as_ref()?;
        Some(match self.port {
            Some(port) if address.contains(':') => format!("[{address}]:{port}"),
            Some(port) => format!("{address}:{port}"),
            None => address.clone(),
        })
    }
}

/// A place that keeps entries: Redis, Memcached, process memory, yours.
///
/// Batches come first: a provider that has a multi-key command implements [`get_many`](Self::get_many) with it, and the
/// single-key form follows. Results are per item, in the order of the request and of the same length, because a batch
/// may fail in part. A miss is `Ok(None)`, never an error.
///
/// # Contract
/// - Values are opaque bytes: what was put comes back bit for bit, or not at all. It may be a part of a buffer that holds
///   others too, which lives as long as any part of it: a cache keeps none, and whoever else does should copy it.
/// - A put replaces what was there. A put that is refused (too large, say) leaves **nothing** of the old value.
/// - A removed, expired or evicted item is a miss. Removing what is not there succeeds.
/// - The provider has connection timeouts of its own, but need not bound each call: a level does that, by dropping the
///   future. Dropping a future must leave the provider usable, and must not mix up replies.
/// - What a dropped write still does is over before a later write of its key is answered: otherwise an old value comes
///   back after an invalidation that was confirmed. Work that goes on without its caller (a blocking task, a request in
///   a connection's queue) is ordered before what comes later: by one connection, a queue, or a lock that goes with it.
///   Bytes on a connection that is lost are the one exception; a provider that cannot fence them off says so.
/// - Nothing is retried blindly: a write whose outcome is unknown is an error.
/// - Errors, `Debug` and logs hold no key, value or credential.
///
/// `cache_core::testing::conformance` (feature `testing`) holds every provider to it.
#[async_trait]
pub trait CacheProvider: Send + Sync + 'static {
    /// What it can do. Constant over the provider's life.
    fn capabilities(&self) -> Capabilities;

    /// What it is.
    fn describe(&self) -> Description;

    /// Refuses settings that contradict themselves. Called when a cache is built, before any I/O, so that a constructor
    /// need not return a `Result`. The error names field, value and fix.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Looks up each key. What is there and will not be read, as it is larger than [`value_max`](Capabilities::value_max) say, is
    /// [`Unreadable`](crate::Unreadable) as an error: a miss, and no failure of the level.
    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>>;

    /// Stores each item.
    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>>;

    /// Makes each key a miss.
    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>>;

    /// Looks up one key. Override where single look-ups have a cheaper way, or are gathered.
    async fn get(&self, key: RawKey<'_>) -> Result<Option<Bytes>, BoxError> {
        one(self.get_many(&[key]).await)
    }

    /// Stores one item.
    async fn put(&self, item: Put<'_>) -> Result<(), BoxError> {
        one(self.put_many(&[item]).await)
    }

    /// Makes one key a miss.
    async fn remove(&self, key: RawKey<'_>) -> Result<(), BoxError> {
        one(self.remove_many(&[key]).await)
    }

    /// What the store calls what it is sent for `op` on that many keys: the command's own name, or that of what wraps
    /// several (`MULTI`). For telemetry (`db.operation.name`), so few words.
    fn command(&self, op: LevelOp, keys: usize) -> &'static str {
        let _ = keys;
        op.as_str()
    }

    /// Asks the store for a sign of life.
    async fn ping(&self) -> Result<(), BoxError> {
        Ok(())
    }

    /// Asks each server about itself, for those who watch them. Nothing where there is none, or none that says anything. A
    /// round trip to each, all at once.
    async fn servers(&self) -> Vec<Result<ServerStatus, BoxError>> {
        Vec::new()
    }

    /// How its own connections stand, for those who watch them. No I/O. `None`: it has none, does not know, or they are at rest:
    /// nobody has wanted one so far, or since the last one was lost, which is no reason for an alarm.
    fn pool(&self) -> Option<PoolStatus> {
        None
    }

    /// How far the store's wall clock is ahead of this node's, in milliseconds, as last measured.
    fn time_offset_ms(&self) -> i64 {
        0
    }

    /// Names the state of the store that calls are answered from now: another number after a restart, a failover, or
    /// anything else that may have brought older data back. 0: not known. Changes before any call is answered from the
    /// new state; a cache then believes nothing of before.
    fn incarnation(&self) -> u64 {
        0
    }

    /// Which of several servers keeps a key, by a number that stays its own. `None`: there is one, or nobody knows now. Asked
    /// for every key of every call, so quick, and without I/O. A batch then becomes a call for each server, with a time budget
    /// and a breaker of its own: one that is away, or hangs, costs its own keys only.
    fn server_of(&self, key: RawKey<'_>) -> Option<u64> {
        let _ = key;
        None
    }

    /// Names the store behind this provider, within this process: for a backplane that watches it, see
    /// [`Listener::keeps_in`](crate::Listener::keeps_in), and so that one store is not taken for two levels. 0: it has no name;
    /// an `Arc` of such a provider goes by its address.
    fn store_id(&self) -> u64 {
        0
    }

    /// Who wants to know what an operator may want to put right: a permission without which the provider goes on in a
    /// weaker form, say. Told once per finding, also of those of before.
    fn advise(&self, to: Weak<dyn Advised>) {
        let _ = to;
    }

    /// The level's leases, where the store can keep them. With them one load runs across processes, and a fill that an
    /// invalidation or a set has overtaken is refused by the store itself. Then [`put`](Self::put_many) and
    /// [`remove`](Self::remove_many) revoke the lease of their key.
    fn leases(&self) -> Option<&dyn Leases> {
        None
    }

    /// Copies of the store that may lag behind it, for those who accept stale answers.
    fn replicas(&self) -> Option<&dyn Replicas> {
        None
    }

    /// Compare-and-swap for the level's marks, where the store has it. With it tags are invalidated one by one, and two
    /// processes that meet a new store agree at once; without it, the invalidation of a tag widens to the whole cache.
    fn marks(&self) -> Option<&dyn Marks> {
        None
    }

    /// The object store behind an in-process provider. Asked once, when a cache is built; a cache that gets one keeps
    /// objects in it and never encodes for this level.
    fn in_process(&self) -> Option<Arc<dyn ObjectStore>> {
        None
    }

    /// The same store as other programs see it, for [`Level::plain`](crate::Level::plain): what is put under a key is the
    /// bare value, and a removal leaves nothing behind. A cache stands on the one form or on the other, on all its nodes.
    /// `None`: there is no such form.
    fn plain(&self) -> Option<Arc<dyn CacheProvider>> {
        None
    }

    /// A channel between the nodes of a cache over this store, where it can carry one.
    fn backplane(&self) -> Option<Arc<dyn Backplane>> {
        None
    }

    /// Gives up connections. Calls after it fail. The provider may be shared: caches do not call this.
    async fn close(&self) {}
}

/// Copies of a store that may lag behind it. A cache asks them only for callers who accept stale answers
/// ([`Access::AllowStale`](crate::Access::AllowStale)), hands what they hold out as stale, keeps it nowhere, and asks the
/// store itself for what they lack.
#[async_trait]
pub trait Replicas: Send + Sync {
    /// Looks up each key. What is found may be older than what the store has acknowledged, or removed there. Results as
    /// those of [`CacheProvider::get_many`].
    async fn get_copies(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>>;
}

/// Hears what an operator may want to put right.
pub trait Advised: Send + Sync + 'static {
    /// A sentence, without keys, values or credentials.
    fn advice(&self, text: &str);
}

/// A shared provider is a provider: several caches may stand on one.
#[async_trait]
impl<P: CacheProvider + ?Sized> CacheProvider for Arc<P> {
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn describe(&self) -> Description {
        (**self).describe()
    }

    fn check(&self) -> Result<(), Error> {
        (**self).check()
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        (**self).get_many(keys).await
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        (**self).put_many(items).await
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        (**self).remove_many(keys).await
    }

    async fn get(&self, key: RawKey<'_>) -> Result<Option<Bytes>, BoxError> {
        (**self).get(key).await
    }

    async fn put(&self, item: Put<'_>) -> Result<(), BoxError> {
        (**self).put(item).await
    }

    async fn remove(&self, key: RawKey<'_>) -> Result<(), BoxError> {
        (**self).remove(key).await
    }

    fn command(&self, op: LevelOp, keys: usize) -> &'static str {
        (**self).command(op, keys)
    }

    async fn ping(&self) -> Result<(), BoxError> {
        (**self).ping().await
    }

    async fn servers(&self) -> Vec<Result<ServerStatus, BoxError>> {
        (**self).servers().await
    }

    fn pool(&self) -> Option<PoolStatus> {
        (**self).pool()
    }

    fn time_offset_ms(&self) -> i64 {
        (**self).time_offset_ms()
    }

    fn incarnation(&self) -> u64 {
        (**self).incarnation()
    }

    fn server_of(&self, key: RawKey<'_>) -> Option<u64> {
        (**self).server_of(key)
    }

    /// Clones of an `Arc` are one store, whether the provider says so or not.
    fn store_id(&self) -> u64 {
        match (**self).store_id() {
            0 => Self::as_ptr(self).cast::<()>().addr() as u64,
            named => named,
        }
    }

    fn advise(&self, to: Weak<dyn Advised>) {
        (**self).advise(to);
    }

    fn leases(&self) -> Option<&dyn Leases> {
        (**self).leases()
    }

    fn replicas(&self) -> Option<&dyn Replicas> {
        (**self).replicas()
    }

    fn marks(&self) -> Option<&dyn Marks> {
        (**self).marks()
    }

    fn in_process(&self) -> Option<Arc<dyn ObjectStore>> {
        (**self).in_process()
    }

    fn plain(&self) -> Option<Arc<dyn CacheProvider>> {
        (**self).plain()
    }

    fn backplane(&self) -> Option<Arc<dyn Backplane>> {
        (**self).backplane()
    }

    async fn close(&self) {
        (**self).close().await;
    }
}

fn one<T>(mut results: Vec<Result<T, BoxError>>) -> Result<T, BoxError> {
    match results.pop() {
        Some(result) if results.is_empty() => result,
        _ => Err("the provider did not answer with one result per key".into()),
    }
}

/// A store of objects in this process. Synchronous: nothing here may block or await.
///
/// Entries of different caches are apart by [`RawKey::cache`]. The store may forget anything at any time; it must not
/// keep anything past the object's `usable_until` for ever (lazily is fine, capacity is the bound).
///
/// `put` and `remove` are called under a lock of the cache. What they push out is to
/// [outlive](Object::outlive_locks) it, so that a value whose destructor uses the cache does not wait for itself; and an
/// engine's own locks, where it drops values [under them](Object::hold_during).
pub trait ObjectStore: Send + Sync + 'static {
    /// Looks up a key. The hot path: no allocation, no lock that a writer holds for long.
    fn get(&self, key: RawKey<'_>) -> Option<Object>;

    /// The same for a hit, which needs only a part. Override where handing out a whole object costs more. `None` exactly where
    /// [`get`](Self::get) has nothing, whatever the object's time: the cache then does not look again.
    fn glance(&self, key: &RawKey<'_>) -> Option<Glance> {
        self.get(*key).map(Glance::from)
    }

    /// Stores an object, replacing what was there. `now` is the time on the cache's own clock, which may be a virtual
    /// one: a store that expires entries by itself counts the object's remaining life from it.
    fn put(&self, key: RawKey<'_>, object: Object, now: Moment);

    /// Forgets a key; says whether it was there.
    fn remove(&self, key: RawKey<'_>) -> bool;

    /// Frees what entries of this cache it cheaply can. Correctness never depends on it: the cache does not serve what
    /// it has cleared.
    fn clear(&self, cache: CacheId);

    /// Entries held now, over all caches; may count entries that have expired and were not yet swept.
    fn len(&self) -> u64;

    /// Whether it holds nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Total weight held now.
    fn weight(&self) -> u64;

    /// Whether capacity is counted in bytes, so that objects must carry a weight.
    fn weighs(&self) -> bool {
        false
    }

    /// The most that it holds, over all caches: bytes where it [weighs](Self::weighs), else entries. `None`: not known.
    fn capacity(&self) -> Option<u64> {
        None
    }

    /// A cache begins to use this store. `evictions` is told of entries of that cache which leave on the store's own
    /// decision.
    fn attach(&self, cache: CacheId, evictions: Arc<dyn Evictions>);

    /// The cache is gone.
    fn detach(&self, cache: CacheId);
}

/// Why a store let an entry go without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EvictionCause {
    /// Its time was over.
    Expired,
    /// The store was full.
    Size,
}

/// Hears of evictions. Called by the store, perhaps on another thread: must be quick and must not call back.
pub trait Evictions: Send + Sync + 'static {
    /// An entry left.
    fn evicted(&self, key_hash: u64, cause: EvictionCause);
}
