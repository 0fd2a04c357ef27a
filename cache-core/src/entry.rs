//! Entries: a value and one timeline, the same at every level.

use std::{any::Any, fmt, sync::Arc, time::Duration};

use smallvec::SmallVec;

use crate::{clock::Moment, learn::Learned, life::Life};

/// Names one stored version of one key, so that nodes can tell "the entry that I hold" from another. Random, never
/// zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryId(pub u64);

impl EntryId {
    /// A new id.
    pub fn random() -> Self {
        Self(fastrand::u64(1..))
    }
}

/// When an entry was born (when its load **started**), until when it is fresh, and until when it is usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// When the load of the value started.
    pub born: Moment,
    /// Exclusive: at this moment the entry is no longer fresh.
    pub fresh_until: Moment,
    /// Exclusive; never before `fresh_until`. Between the two the entry is stale: a choice, never an accident.
    pub usable_until: Moment,
}

impl Timeline {
    /// A timeline of an entry born at `born`.
    pub fn new(born: Moment, fresh_for: Duration, usable_for: Duration) -> Self {
        let fresh_until = born.after(fresh_for);
        Self { born, fresh_until, usable_until: born.after(usable_for).max(fresh_until) }
    }

    /// How long the entry lives from birth.
    pub fn lifetime(&self) -> Duration {
        self.usable_until.since(self.born)
    }

    /// What is left at `now`.
    pub fn remaining(&self, now: Moment) -> Duration {
        self.usable_until.since(now)
    }

    /// The same timeline, ending no later than `by`.
    #[must_use]
    pub fn capped(self, by: Moment) -> Self {
        Self {
            born: self.born,
            fresh_until: self.fresh_until.min(by),
            usable_until: self.usable_until.min(by),
        }
    }
}

/// Where an entry stands on its cache's logical clock: the epoch, and the invalidation number that its loader knew
/// before it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Random; a new one makes every older entry invalid.
    pub epoch: u64,
    /// Number of the last invalidation known before the load began.
    pub sequence: u64,
}

/// What few entries have, kept behind one pointer.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Extra {
    /// Tags by which the entry can be invalidated.
    pub tags: Vec<Box<str>>,
    /// The source's validator, for conditional refresh.
    pub etag: Option<Box<str>>,
    /// After a failed refresh: do not load again before this moment. Never written to a remote level.
    pub(crate) retry_at: Option<Moment>,
    /// Of an object with tags: see [`Entry::stamp`]. Never written to a remote level.
    pub(crate) stamp: Stamp,
}

/// Tags and validators come with the value, and stay out of `Debug` output.
impl fmt::Debug for Extra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let etag = self.etag.as_ref().map(|etag| etag.len());
        f.debug_struct("Extra").field("tags", &self.tags.len()).field("etag", &etag).finish_non_exhaustive()
    }
}

impl Extra {
    pub(crate) fn boxed(self) -> Option<Arc<Self>> {
        (self != Self::default()).then(|| Arc::new(self))
    }
}

/// A decoded entry on its way between levels.
pub(crate) struct Entry<T> {
    /// `None`: the source is known not to have it.
    pub(crate) value: Option<Arc<T>>,
    pub(crate) timeline: Timeline,
    pub(crate) id: EntryId,
    /// What the nearest remote level's mark was when it was last known to be valid.
    pub(crate) stamp: Stamp,
    /// The number of the last news then, see [`crate::news`].
    pub(crate) seen: u32,
    /// How long the load took: for XFetch and "time saved".
    pub(crate) cost: Duration,
    /// Made by an explicit `set`, not by a load.
    pub(crate) by_set: bool,
    pub(crate) extra: Option<Arc<Extra>>,
    /// Of one that a level has capped: until when a hit has no reason to refresh it. Its own life, of which that is a share, is
    /// longer than the timeline says.
    pub(crate) quiet_until: Option<Moment>,
    /// Size of the encoded payload in bytes, where the entry was decoded or encoded.
    pub(crate) encoded: Option<u32>,
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), extra: self.extra.clone(), ..*self }
    }
}

/// Marks by level. Few caches have more than two.
pub(crate) type Stamps = SmallVec<[Stamp; 2]>;

/// What was known when a load or a read began: what comes of it was valid then.
#[derive(Clone, Debug)]
pub(crate) struct Begun {
    /// The marks by level; of an in-process one, that of the nearest remote level.
    pub(crate) stamps: Stamps,
    /// The number of the last news.
    pub(crate) seen: u32,
}

impl Begun {
    pub(crate) fn stamp(&self, level: u8) -> Stamp {
        self.stamps.get(usize::from(level)).copied().unwrap_or_default()
    }

    /// What has been read along with news is not of before them.
    pub(crate) fn heed(&mut self, learned: Learned) {
        self.seen = learned.void().unwrap_or(self.seen);
    }
}

impl<T> Entry<T> {
    pub(crate) fn tags(&self) -> &[Box<str>] {
        self.extra.as_ref().map_or(&[], |extra| &extra.tags)
    }

    /// Valid as of then.
    pub(crate) fn known(mut self, stamp: Stamp, seen: u32) -> Self {
        self.stamp = stamp;
        self.seen = seen;
        self
    }
}

/// What an in-process store keeps: the object itself, never its bytes, and a copy of its timeline.
///
/// Cloning costs two reference counts.
#[derive(Clone)]
pub struct Object {
    pub(crate) value: Arc<dyn Any + Send + Sync>,
    pub(crate) quiet_until: Moment,
    pub(crate) id: EntryId,
    pub(crate) extra: Option<Arc<Extra>>,
    // Stores hold many of these: the timeline is packed.
    born: Moment,
    fresh_for: Life,
    usable_for: Life,
    pub(crate) cost_us: u32,
    pub(crate) seen: u32,
    pub(crate) weight: u32,
    pub(crate) by_set: bool,
}

/// What a hit needs of an object: the value, and what tells whether it may be served without a second thought.
#[derive(Clone)]
pub struct Glance {
    pub(crate) value: Arc<dyn Any + Send + Sync>,
    pub(crate) quiet_until: Moment,
    pub(crate) cost_us: u32,
    pub(crate) seen: u32,
}

/// Costs no reference count.
impl From<Object> for Glance {
    #[inline]
    fn from(object: Object) -> Self {
        let Object { value, quiet_until, cost_us, seen, .. } = object;
        Self { value, quiet_until, cost_us, seen }
    }
}

/// Stands in for the value of an entry that says "the source does not have this key".
pub(crate) struct AbsentMark;

impl Object {
    /// An object that is fresh all its life, weighs nothing and was seen before all invalidations.
    pub(crate) fn new(value: Arc<dyn Any + Send + Sync>, timeline: Timeline, id: EntryId) -> Self {
        let mut object = Self {
            value,
            quiet_until: Moment::NEVER,
            id,
            extra: None,
            born: timeline.born,
            fresh_for: Life::between(timeline.born, timeline.fresh_until),
            usable_for: Life::between(timeline.born, timeline.usable_until),
            cost_us: 0,
            seen: 0,
            weight: 0,
            by_set: false,
        };
        object.quiet_until = object.timeline().fresh_until;
        object
    }

    /// Its timeline. Freshness and life are rounded down, by less than a ten-millionth, to eight digits.
    pub fn timeline(&self) -> Timeline {
        Timeline {
            born: self.born,
            fresh_until: self.fresh_for.end(self.born),
            usable_until: self.usable_for.end(self.born),
        }
    }

    /// Ends its freshness at `now`, if it has not ended before. The next refresh is due, even if one has just failed.
    pub(crate) fn expire(&mut self, now: Moment) {
        if now < self.fresh_for.end(self.born) {
            self.fresh_for = Life::between(self.born, now);
        }
        self.quiet_until = Moment::ORIGIN;
        Extra::hurry(&mut self.extra);
    }

    /// What a hit needs.
    #[inline]
    pub fn glance(&self) -> Glance {
        Glance {
            value: Arc::clone(&self.value),
            quiet_until: self.quiet_until,
            cost_us: self.cost_us,
            seen: self.seen,
        }
    }

    /// When the store may forget the object for good.
    pub fn usable_until(&self) -> Moment {
        self.usable_for.end(self.born)
    }

    /// What is left of its life.
    pub fn remaining(&self, now: Moment) -> Duration {
        self.usable_until().since(now)
    }

    /// Weight of the value in bytes (0 where the store does not weigh). What its key takes is for the store to add.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// An object without a cache around it, for testing a store.
    pub fn for_tests(value: Arc<dyn Any + Send + Sync>, timeline: Timeline, weight: u32) -> Self {
        Self { weight, ..Self::new(value, timeline, EntryId::random()) }
    }

    /// The value, if it is a `T`.
    pub fn value<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        Arc::clone(&self.value).downcast().ok()
    }
}

/// Values stay out of `Debug` output.
impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("timeline", &self.timeline())
            .field("weight", &self.weight)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Glance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Glance").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_small() {
        assert_eq!(size_of::<Object>(), 72);
    }
}
