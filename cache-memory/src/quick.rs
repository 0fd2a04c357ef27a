//! A store on quick_cache, for objects and bytes: many small caches, each behind a lock of its own.
//!
//! quick_cache knows no time. Whether an entry may be served is for its reader to judge, exactly; here it is a matter of
//! room only. After so many writes to a part of the store, the dead are looked for in that part: cheap on average, and
//! short at a time.

mod division;
mod left;

use std::{
    cell::{Cell, RefCell},
    fmt, mem,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cache_core::{CacheId, Clock, Evictions, Glance, Moment, Object, ObjectStore, RawKey};
use crossbeam_utils::CachePadded;
use quick_cache::{OptionsBuilder, Weighter, unsync::Cache};

use self::{
    division::{Division, HOT},
    left::{Leaving, Left},
};
use crate::{
    attached::Attached,
    engine::{Settings, Store},
    key::{Key, PassThrough, Query},
    slot::Slot,
    tempo::Tempo,
};

pub(crate) const ENTRY_OVERHEAD: u32 = 200;

/// Keys that have left are remembered, so that they count as hot should they come back: as many as fit into this share of
/// the room.
const REMEMBERED: f64 = 0.5;
/// Writes to a part between two looks for the dead, at least.
const PAUSE: u32 = 64;
/// Entries that `clear` lets go of in its caller's thread.
const AT_ONCE: usize = 10_000;

type Shard = Cache<Key, Slot, Weigh, PassThrough, Leaving>;

#[derive(Clone, Copy)]
struct Weigh(bool);

impl Weighter<Key, Slot> for Weigh {
    fn weight(&self, key: &Key, slot: &Slot) -> u64 {
        if self.0 { slot.weight(key, ENTRY_OVERHEAD).into() } else { 1 }
    }
}

/// Weight of the heaviest entry that stays.
pub(crate) fn heaviest(settings: Settings) -> u64 {
    Division::of(settings).heaviest()
}

struct Part {
    shard: Shard,
    /// Writes until the next look for the dead.
    until_look: u32,
    /// Nothing is dead before then.
    first_death: Moment,
}

impl Part {
    fn new(settings: Settings, division: Division) -> Self {
        let entries = usize::try_from(division.entries).unwrap_or(usize::MAX);
        let (weigh, hasher) = (Weigh(settings.weighs), PassThrough::default());
        let options = OptionsBuilder::new()
            .estimated_items_capacity(entries)
            .weight_capacity(division.room)
            .hot_allocation(HOT)
            .ghost_allocation(REMEMBERED)
            .build();
        let shard = match options {
            Ok(options) => Cache::with_options(options, weigh, hasher, Leaving),
            // Not reached: all that has to be set is set.
            Err(_missing) => Cache::with(entries, division.room, weigh, hasher, Leaving),
        };
        Self { shard, until_look: PAUSE, first_death: Moment::NEVER }
    }

    /// Lets the dead go, if there may be any.
    fn look(&mut self, left: &mut Left) {
        let (now, instant) = (left.now, Instant::now());
        if self.first_death <= now {
            let first_death = Cell::new(Moment::NEVER);
            let gone = RefCell::new(mem::take(left));
            self.shard.retain(|key, slot| {
                let end = slot.end(now, instant);
                if end <= now {
                    gone.borrow_mut().died(key, slot);
                    return false;
                }
                first_death.set(first_death.get().min(end));
                true
            });
            self.first_death = first_death.get();
            *left = gone.into_inner();
        }
        self.until_look = u32::try_from(self.shard.len() / 2).unwrap_or(u32::MAX).max(PAUSE);
    }
}

impl Slot {
    /// When nobody can use it any more. `now` and `instant` are one moment.
    fn end(&self, now: Moment, instant: Instant) -> Moment {
        match self {
            Self::Object(object) => object.usable_until(),
            Self::Bytes { until, .. } => {
                until.map_or(Moment::NEVER, |until| now.after(until.saturating_duration_since(instant)))
            }
        }
    }
}

pub(crate) struct Quick {
    parts: Box<[CachePadded<RwLock<Part>>]>,
    division: Division,
    attached: Attached,
    settings: Settings,
    tempo: Tempo,
    /// Somebody keeps bytes here, which no cache's `clear` may sweep away.
    has_bytes: AtomicBool,
}

impl Quick {
    pub(crate) fn new(settings: Settings) -> Self {
        let division = Division::of(settings);
        Self {
            parts: (0..division.parts)
                .map(|_| CachePadded::new(RwLock::new(Part::new(settings, division))))
                .collect(),
            division,
            attached: Attached::default(),
            settings,
            tempo: Tempo::new(),
            has_bytes: AtomicBool::new(false),
        }
    }

    fn part(&self, query: &Query<'_>) -> &RwLock<Part> {
        // The table within takes the lowest bits and the highest.
        let at = usize::try_from(query.mixed >> 24 & (self.division.parts - 1)).unwrap_or(0);
        &self.parts[at]
    }

    fn read(&self, query: &Query<'_>) -> RwLockReadGuard<'_, Part> {
        self.part(query).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, query: &Query<'_>) -> RwLockWriteGuard<'_, Part> {
        self.part(query).write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a write at `now` lets go. Where some cache's clock is not the system's, `now` says nothing about what is dead.
    fn left(&self, now: Moment) -> Left {
        if self.tempo.is_known() { Left::at(now) } else { Left::default() }
    }

    fn insert(&self, query: Query<'_>, slot: Slot, end: Moment, mut left: Left) {
        let key = query.to_key();
        let mut part = self.write(&query);
        part.shard.insert_with_lifecycle(key, slot, &mut left);
        part.first_death = part.first_death.min(end);
        part.until_look = part.until_look.saturating_sub(1);
        if part.until_look == 0 && self.settings.engine_expiry {
            part.look(&mut left);
        }
        drop(part);
        left.tell(&self.attached);
    }

    fn delete(&self, query: Query<'_>) -> bool {
        let gone = self.write(&query).shard.remove(&query);
        gone.inspect(|(_, slot)| slot.outlive_locks()).is_some()
    }

    /// Empties all parts; what was in them.
    fn take(&self) -> Vec<Part> {
        self.parts
            .iter()
            .map(|part| {
                let empty = Part::new(self.settings, self.division);
                mem::replace(&mut *part.write().unwrap_or_else(PoisonError::into_inner), empty)
            })
            .collect()
    }

    fn sum<N: std::iter::Sum>(&self, of: impl Fn(&Shard) -> N) -> N {
        self.parts.iter().map(|part| of(&part.read().unwrap_or_else(PoisonError::into_inner).shard)).sum()
    }
}

impl Store for Quick {
    fn maintain(&self) {
        if !self.settings.engine_expiry || !self.tempo.is_known() {
            return;
        }
        for part in &self.parts {
            let mut left = Left::at(Clock::system().now());
            part.write().unwrap_or_else(PoisonError::into_inner).look(&mut left);
            left.tell(&self.attached);
        }
    }

    fn get_bytes(&self, joined: &str) -> Option<Bytes> {
        let query = Query::bytes(joined);
        self.read(&query).shard.get(&query)?.bytes()
    }

    fn put_bytes(&self, joined: &str, bytes: Bytes, ttl: Duration) {
        self.has_bytes.store(true, Ordering::Relaxed);
        // A TTL beyond the clock's end is none.
        let until = Instant::now().checked_add(ttl);
        let now = Clock::system().now();
        let end = if until.is_some() { now.after(ttl) } else { Moment::NEVER };
        self.insert(Query::bytes(joined), Slot::Bytes { bytes, until }, end, self.left(now));
    }

    fn remove_bytes(&self, joined: &str) {
        self.delete(Query::bytes(joined));
    }
}

impl ObjectStore for Quick {
    fn get(&self, key: RawKey<'_>) -> Option<Object> {
        let query = Query::object(&key);
        self.read(&query).shard.get(&query)?.object().cloned()
    }

    fn glance(&self, key: &RawKey<'_>) -> Option<Glance> {
        let query = Query::object(key);
        self.read(&query).shard.get(&query)?.object().map(Object::glance)
    }

    fn put(&self, key: RawKey<'_>, object: Object, now: Moment) {
        let query = Query::object(&key);
        if object.remaining(now).is_zero() {
            // Nobody could use it; what was there is replaced all the same.
            self.delete(query);
            return;
        }
        self.tempo.note(now);
        let end = object.usable_until();
        self.insert(query, Slot::Object(object), end, self.left(now));
    }

    fn remove(&self, key: RawKey<'_>) -> bool {
        self.delete(Query::object(&key))
    }

    /// Frees everything when `cache` is the only user of this store. Otherwise its entries stay until they are evicted:
    /// finding them among the others' would cost a walk over all.
    fn clear(&self, cache: CacheId) {
        let mut gone = Vec::new();
        self.attached.when_alone(cache, || {
            if !self.has_bytes.load(Ordering::Relaxed) {
                gone = self.take();
            }
        });
        if gone.iter().map(|part| part.shard.len()).sum::<usize>() > AT_ONCE {
            // A million take a tenth of a second: not in a thread that serves requests. Should there be no other, here.
            let _ = thread::Builder::new().name("cache-memory-clear".into()).spawn(move || drop(gone));
        }
    }

    fn len(&self) -> u64 {
        self.sum(|shard| shard.len() as u64)
    }

    /// Bytes held; 0 where only entries are counted.
    fn weight(&self) -> u64 {
        if self.settings.weighs { self.sum(Shard::weight) } else { 0 }
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

impl fmt::Debug for Quick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quick").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [`Memory`](crate::Memory) says so.
    #[test]
    fn a_part_is_small() {
        assert!(size_of::<CachePadded<RwLock<Part>>>() <= 256);
    }
}
