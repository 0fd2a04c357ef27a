//! A store on one moka cache, for objects and bytes.

use std::{
    cell::Cell,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ::moka::{Expiry, notification::RemovalCause, policy::EvictionPolicy, sync::Cache};
use bytes::Bytes;
use cache_core::{CacheId, Clock, EvictionCause, Evictions, Glance, Moment, Object, ObjectStore, RawKey};

use crate::{
    attached::Attached,
    engine::{Settings, Store},
    key::{Key, PassThrough, Query},
    slot::Slot,
    tempo::Tempo,
};

pub(crate) const ENTRY_OVERHEAD: u32 = 400;

pub(crate) struct Moka {
    engine: Engine,
    attached: Arc<Attached>,
    settings: Settings,
    tempo: Arc<Tempo>,
    /// Somebody keeps bytes here, which no cache's `clear` may sweep away.
    has_bytes: AtomicBool,
}

impl Moka {
    pub(crate) fn new(settings: Settings) -> Self {
        let attached = Arc::new(Attached::default());
        let tempo = Arc::new(Tempo::new());
        let hears = Arc::clone(&attached);
        let mut builder = Cache::builder().max_capacity(settings.capacity).eviction_listener(
            move |key: Arc<Key>, slot: Tenant, cause| {
                let cause = match cause {
                    RemovalCause::Expired => EvictionCause::Expired,
                    RemovalCause::Size => EvictionCause::Size,
                    RemovalCause::Explicit | RemovalCause::Replaced => {
                        return Putting::replaces(&key, &slot.0);
                    }
                };
                if let Some((cache, hash)) = key.owner() {
                    let _telling = Telling::begin();
                    hears.evicted(cache, hash, cause);
                }
            },
        );
        // moka's TinyLFU has no window for newcomers: a new entry is let in only if it was asked for more often than the
        // one that would leave. Look-ups of entities by id, which come in bursts, lose by that: see docs/performance.md.
        builder = builder.eviction_policy(EvictionPolicy::lru());
        if settings.weighs {
            builder = builder.weigher(|key, slot: &Tenant| slot.0.weight(key, ENTRY_OVERHEAD));
        }
        if settings.engine_expiry {
            builder = builder.expire_after(ByLife(Arc::clone(&tempo)));
        }
        Self {
            engine: Engine(builder.build_with_hasher(PassThrough::default())),
            attached,
            settings,
            tempo,
            has_bytes: AtomicBool::new(false),
        }
    }

    /// moka 0.12.16 books an entry's new weight some time after the write. Removed before that, the entry is written off
    /// by the new weight although the old one is in the books, and that much room is lost, or overdrawn, for good. So a
    /// change of weight is booked at once.
    fn insert(&self, query: &Query<'_>, slot: Slot) {
        let key = query.to_key();
        let weight = self.settings.weighs.then(|| slot.weight(&key, ENTRY_OVERHEAD));
        PUTTING.set(weight.map(|weight| Putting { weight, reweighs: false }));
        self.engine.call(|moka| moka.insert(key, Tenant(slot)));
        if PUTTING.take().is_some_and(|putting| putting.reweighs) {
            self.maintain();
        }
    }
}

struct Engine(Cache<Key, Tenant, PassThrough>);

impl Engine {
    /// Any call of moka may drop any values, also those of other stores and of other calls, and holds locks as it does: it
    /// frees them through crossbeam-epoch, whose bags are emptied in the middle of the rehash of a table.
    #[inline]
    fn call<R>(&self, call: impl FnOnce(&Cache<Key, Tenant, PassThrough>) -> R) -> R {
        Object::hold_during(|| call(&self.0))
    }

    #[inline]
    fn get(&self, query: &Query<'_>) -> Option<Tenant> {
        self.call(|moka| moka.get(query))
    }
}

thread_local! {
    /// This thread is telling of an eviction, in the middle of an engine's work.
    static TELLING: Cell<bool> = const { Cell::new(false) };
    static PUTTING: Cell<Option<Putting>> = const { Cell::new(None) };
}

/// What this thread puts. A look-up would not tell what that replaces: others put as well, and what is over, or was cleared,
/// is not found, but is in the books. The listener is told of it in the midst of the write.
#[derive(Clone, Copy)]
struct Putting {
    weight: u32,
    /// Something of another weight was there.
    reweighs: bool,
}

impl Putting {
    fn replaces(key: &Key, old: &Slot) {
        if let Some(mut putting) = PUTTING.get() {
            putting.reweighs |= old.weight(key, ENTRY_OVERHEAD) != putting.weight;
            PUTTING.set(Some(putting));
        }
    }
}

struct Telling(bool);

impl Telling {
    fn begin() -> Self {
        Self(TELLING.replace(true))
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        TELLING.set(self.0);
    }
}

impl Store for Moka {
    fn maintain(&self) {
        // The engine's work tells listeners of evictions: one that asks for a number from there would wait for itself.
        if !TELLING.get() {
            self.engine.call(Cache::run_pending_tasks);
        }
    }

    fn get_bytes(&self, joined: &str) -> Option<Bytes> {
        self.engine.get(&Query::bytes(joined))?.0.bytes()
    }

    fn put_bytes(&self, joined: &str, bytes: Bytes, ttl: Duration) {
        self.has_bytes.store(true, Ordering::Relaxed);
        // A TTL beyond the clock's end is none.
        let until = Instant::now().checked_add(ttl);
        self.insert(&Query::bytes(joined), Slot::Bytes { bytes, until });
    }

    fn remove_bytes(&self, joined: &str) {
        self.engine.call(|moka| moka.invalidate(&Query::bytes(joined)));
    }
}

/// A slot that moka drops at its own time, in whatever call of whatever thread: that may hold a lock of a cache, or of moka.
#[derive(Clone)]
struct Tenant(Slot);

impl Drop for Tenant {
    #[inline]
    fn drop(&mut self) {
        self.0.outlive_locks();
    }
}

/// Gives each entry a timer of its own.
struct ByLife(Arc<Tempo>);

impl Expiry<Key, Tenant> for ByLife {
    // moka counts from `now`, which is over by the time that this thread has been kept waiting since.
    fn expire_after_create(&self, _key: &Key, slot: &Tenant, now: Instant) -> Option<Duration> {
        match &slot.0 {
            Slot::Object(object) if self.0.is_known() => {
                let left = object.remaining(Clock::system().now());
                (left != Duration::MAX).then(|| left.saturating_add(now.elapsed()))
            }
            Slot::Object(_) => None,
            Slot::Bytes { until, .. } => until.map(|until| until.saturating_duration_since(now)),
        }
    }

    // moka would go on with the old entry's time.
    fn expire_after_update(
        &self,
        key: &Key,
        slot: &Tenant,
        now: Instant,
        _left: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, slot, now)
    }
}

impl ObjectStore for Moka {
    fn get(&self, key: RawKey<'_>) -> Option<Object> {
        self.engine.get(&Query::object(&key))?.0.object().cloned()
    }

    fn glance(&self, key: &RawKey<'_>) -> Option<Glance> {
        self.engine.get(&Query::object(key))?.0.object().map(Object::glance)
    }

    fn put(&self, key: RawKey<'_>, object: Object, now: Moment) {
        let query = Query::object(&key);
        if object.remaining(now).is_zero() {
            // Nobody could use it; what was there is replaced all the same.
            self.engine.call(|moka| moka.invalidate(&query));
            return;
        }
        self.tempo.note(now);
        self.insert(&query, Slot::Object(object));
    }

    fn remove(&self, key: RawKey<'_>) -> bool {
        self.engine.call(|moka| moka.remove(&Query::object(&key))).is_some()
    }

    /// Frees everything when `cache` is the only user of this store. Otherwise its entries stay until they are evicted:
    /// finding them among the others' would cost a walk over all.
    fn clear(&self, cache: CacheId) {
        self.engine.call(|moka| {
            self.attached.when_alone(cache, || {
                if !self.has_bytes.load(Ordering::Relaxed) {
                    moka.invalidate_all();
                }
            });
        });
    }

    /// Does the engine's outstanding work first, so that the number is right: not for a hot path. Not while an eviction is
    /// being told of: the number is then that of before this work.
    fn len(&self) -> u64 {
        self.maintain();
        self.engine.call(Cache::entry_count)
    }

    /// Bytes held; 0 where only entries are counted. Does the engine's outstanding work first.
    fn weight(&self) -> u64 {
        if !self.settings.weighs {
            return 0;
        }
        self.maintain();
        self.engine.call(Cache::weighted_size)
    }

    fn weighs(&self) -> bool {
        self.settings.weighs
    }

    fn capacity(&self) -> Option<u64> {
        Some(self.settings.capacity)
    }

    fn attach(&self, cache: CacheId, evictions: Arc<dyn Evictions>) {
        self.attached.add(cache, evictions);
    }

    fn detach(&self, cache: CacheId) {
        self.clear(cache);
        self.attached.remove(cache);
    }
}

impl fmt::Debug for Moka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moka").field("settings", &self.settings).finish_non_exhaustive()
    }
}
