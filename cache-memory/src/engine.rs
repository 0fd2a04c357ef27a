//! The store itself: one moka cache for objects and bytes.

use std::{
    fmt,
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use cache_core::{CacheId, EvictionCause, Evictions, Moment, Object, ObjectStore, RawKey};
use moka::{Expiry, notification::RemovalCause, policy::EvictionPolicy, sync::Cache};

use crate::{
    attached::Attached,
    key::{Key, PassThrough, Query, Space},
};

/// What an entry costs besides its value and its key, in bytes: moka's nodes and this crate's. A round number from
/// measurement; the allocator's own rounding is not in it.
pub const ENTRY_OVERHEAD: u32 = 400;

/// What the engine holds under a key.
#[derive(Clone)]
pub(crate) enum Slot {
    /// Until when it is usable is the cache's to judge, on its own clock; `life` is for the engine's timer, in
    /// nanoseconds.
    Object { object: Object, life: Option<NonZeroU64> },
    /// Judged here, on the system's clock.
    Bytes { bytes: Bytes, until: Option<Instant> },
}

/// How an engine is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) capacity: u64,
    pub(crate) weighs: bool,
    pub(crate) engine_expiry: bool,
}

pub(crate) struct Engine {
    moka: Cache<Key, Slot, PassThrough>,
    attached: Arc<Attached>,
    settings: Settings,
    /// Somebody keeps bytes here, which no cache's `clear` may sweep away.
    has_bytes: AtomicBool,
}

impl Engine {
    pub(crate) fn new(settings: Settings) -> Self {
        let attached = Arc::new(Attached::default());
        let hears = Arc::clone(&attached);
        let mut builder = Cache::builder().max_capacity(settings.capacity).eviction_listener(
            move |key: Arc<Key>, _slot: Slot, cause| {
                let cause = match cause {
                    RemovalCause::Expired => EvictionCause::Expired,
                    RemovalCause::Size => EvictionCause::Size,
                    RemovalCause::Explicit | RemovalCause::Replaced => return,
                };
                if let Space::Objects(cache) = key.space {
                    hears.evicted(cache, key.hash, cause);
                }
            },
        );
        // moka's TinyLFU has no window for newcomers: a new entry is let in only if it was asked for more often than the
        // one that would leave. Look-ups of entities by id, which come in bursts, lose by that: see the crate's page.
        builder = builder.eviction_policy(EvictionPolicy::lru());
        if settings.weighs {
            builder = builder.weigher(weigh);
        }
        if settings.engine_expiry {
            builder = builder.expire_after(ByLife);
        }
        Self {
            moka: builder.build_with_hasher(PassThrough::default()),
            attached,
            settings,
            has_bytes: AtomicBool::new(false),
        }
    }

    pub(crate) fn maintain(&self) {
        self.moka.run_pending_tasks();
    }

    pub(crate) fn get_bytes(&self, joined: &str) -> Option<Bytes> {
        match self.moka.get(&Query::bytes(joined))? {
            Slot::Bytes { bytes, until } if until.is_none_or(|until| Instant::now() < until) => Some(bytes),
            _ => None,
        }
    }

    pub(crate) fn put_bytes(&self, joined: &str, bytes: Bytes, ttl: Duration) {
        self.has_bytes.store(true, Ordering::Relaxed);
        // A TTL beyond the clock's end is none.
        let until = Instant::now().checked_add(ttl);
        self.moka.insert(Query::bytes(joined).to_key(), Slot::Bytes { bytes, until });
    }

    pub(crate) fn remove_bytes(&self, joined: &str) {
        self.moka.invalidate(&Query::bytes(joined));
    }
}

fn weigh(key: &Key, slot: &Slot) -> u32 {
    let value = match slot {
        Slot::Object { object, .. } => object.weight(),
        Slot::Bytes { bytes, .. } => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
    };
    value.saturating_add(u32::try_from(key.text.len()).unwrap_or(u32::MAX)).saturating_add(ENTRY_OVERHEAD)
}

/// Gives each entry a timer of its own.
struct ByLife;

impl Expiry<Key, Slot> for ByLife {
    fn expire_after_create(&self, _key: &Key, slot: &Slot, _now: Instant) -> Option<Duration> {
        match slot {
            Slot::Object { life, .. } => life.map(|nanos| Duration::from_nanos(nanos.get())),
            Slot::Bytes { until, .. } => until.map(|until| until.saturating_duration_since(Instant::now())),
        }
    }

    // moka would go on with the old entry's time.
    fn expire_after_update(
        &self,
        key: &Key,
        slot: &Slot,
        now: Instant,
        _left: Option<Duration>,
    ) -> Option<Duration> {
        self.expire_after_create(key, slot, now)
    }
}

impl ObjectStore for Engine {
    fn get(&self, key: RawKey<'_>) -> Option<Object> {
        match self.moka.get(&Query::object(&key))? {
            Slot::Object { object, .. } => Some(object),
            Slot::Bytes { .. } => None,
        }
    }

    fn put(&self, key: RawKey<'_>, object: Object, now: Moment) {
        let query = Query::object(&key);
        let left = object.remaining(now);
        if left.is_zero() {
            // Nobody could use it; what was there is replaced all the same.
            self.moka.invalidate(&query);
            return;
        }
        // What does not fit, `Duration::MAX` above all, is as good as for ever.
        let life = u64::try_from(left.as_nanos()).ok().and_then(NonZeroU64::new);
        self.moka.insert(query.to_key(), Slot::Object { object, life });
    }

    fn remove(&self, key: RawKey<'_>) -> bool {
        self.moka.remove(&Query::object(&key)).is_some()
    }

    /// Frees everything when `cache` is the only user of this store. Otherwise its entries stay until they are evicted:
    /// finding them among the others' would cost a walk over all.
    fn clear(&self, cache: CacheId) {
        self.attached.when_alone(cache, || {
            if !self.has_bytes.load(Ordering::Relaxed) {
                self.moka.invalidate_all();
            }
        });
    }

    /// Does the engine's outstanding work first, so that the number is right: not for a hot path.
    fn len(&self) -> u64 {
        self.maintain();
        self.moka.entry_count()
    }

    /// Bytes held; 0 where only entries are counted. Does the engine's outstanding work first.
    fn weight(&self) -> u64 {
        if !self.settings.weighs {
            return 0;
        }
        self.maintain();
        self.moka.weighted_size()
    }

    fn weighs(&self) -> bool {
        self.settings.weighs
    }

    fn attach(&self, cache: CacheId, evictions: Arc<dyn Evictions>) {
        self.attached.add(cache, evictions);
    }

    fn detach(&self, cache: CacheId) {
        self.clear(cache);
        self.attached.remove(cache);
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("settings", &self.settings).finish_non_exhaustive()
    }
}
