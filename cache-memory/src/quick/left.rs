//! What leaves a store on the engine's decision.

use cache_core::{CacheId, EvictionCause, Moment};
use quick_cache::Lifecycle;

use crate::{attached::Attached, key::Key, slot::Slot};

/// The engine's hooks.
#[derive(Clone, Copy)]
pub(super) struct Leaving;

impl Lifecycle<Key, Slot> for Leaving {
    type RequestState = Left;

    // Not called for an entry that is replaced. The other one is.
    fn before_evict(&self, left: &mut Left, key: &Key, slot: &mut Slot) {
        left.note(key, slot);
    }

    fn on_evict(&self, left: &mut Left, key: Key, slot: Slot) {
        drop(key);
        left.kept.push(slot);
    }
}

/// What one call lets go: told, and dropped, when no lock is held. Destructors of values may be anything.
pub(super) struct Left {
    /// The time of the call; the origin where it tells nothing about what is dead.
    pub(super) now: Moment,
    told: Few<(CacheId, u64, EvictionCause)>,
    kept: Few<Slot>,
}

impl Default for Left {
    fn default() -> Self {
        Self::at(Moment::ORIGIN)
    }
}

impl Left {
    pub(super) fn at(now: Moment) -> Self {
        Self { now, told: Few::default(), kept: Few::default() }
    }

    fn note(&mut self, key: &Key, slot: &Slot) {
        if let (Some((cache, hash)), Some(object)) = (key.owner(), slot.object()) {
            let dead = object.usable_until() <= self.now;
            let cause = if dead { EvictionCause::Expired } else { EvictionCause::Size };
            self.told.push((cache, hash, cause));
        }
    }

    /// An entry is dead and about to be dropped by its table, which is locked.
    pub(super) fn died(&mut self, key: &Key, slot: &Slot) {
        self.note(key, slot);
        self.kept.push(slot.clone());
    }

    #[inline]
    pub(super) fn tell(self, attached: &Attached) {
        for (cache, hash, cause) in self.told.iter() {
            attached.evicted(*cache, *hash, *cause);
        }
        self.kept.iter().for_each(Slot::outlive_locks);
    }
}

/// Mostly none or one: no allocation.
struct Few<T> {
    first: Option<T>,
    more: Vec<T>,
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self { first: None, more: Vec::new() }
    }
}

impl<T> Few<T> {
    fn push(&mut self, item: T) {
        match self.first {
            None => self.first = Some(item),
            Some(_) => self.more.push(item),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(&self.more)
    }
}
