//! Entries as objects in an in-process level: put there, looked at, believed.

use std::{any::Any, sync::Arc, time::Duration};

use crate::{
    Entry, EntryId, Event, EvictionCause, Evictions, Extra, LevelOutcome, Moment, Object, ObjectStore,
    RawKey, Stamp, Stats, Unreadable, Value,
    entry::AbsentMark,
    gone::Cause,
    inner::{Inner, Seen, micros},
    news::Verdict,
    observers::Observers,
    slots::Ticket,
    tier::Tier,
};

/// What a look into an in-process level has shown.
pub(crate) struct Peeked<T> {
    pub(crate) entry: Option<Entry<T>>,
    pub(crate) outcome: LevelOutcome,
    /// There has been news since it was last found valid, which did not concern it.
    pub(crate) behind: bool,
    /// Whether its tags have been invalidated is not known: a remote level has to be asked.
    pub(crate) doubtful: bool,
}

impl<T> Peeked<T> {
    pub(crate) const fn nothing(outcome: LevelOutcome) -> Self {
        Self { entry: None, outcome, behind: false, doubtful: false }
    }
}

impl<T: Value> Inner<T> {
    pub(crate) fn object(&self, entry: &Entry<T>, tier: &Tier) -> Option<Object> {
        if self.tasks.is_closed() {
            // A hit asks for no more than what is there: new calls are refused only as long as there is nothing.
            return None;
        }
        let now = self.now();
        let mut timeline = entry.timeline;
        if let Some(cap) = tier.ttl_cap {
            timeline = timeline.capped(now.after(cap));
        }
        if timeline.usable_until <= now {
            return None;
        }
        let weight = match &tier.store {
            Some(store) if store.weighs() => self.weight(entry),
            _ => 0,
        };
        let quiet_until = match entry.retry_at() {
            // Throttled: a fresh entry is left in peace until then; a stale one never takes the quick path.
            Some(at) if at > now => at.min(timeline.fresh_until),
            _ => entry.quiet_until.unwrap_or_else(|| {
                // By its own life: of one that this level has cut short, a deeper one may have the rest.
                let rest = self.tiers.iter().skip(usize::from(tier.index)).map(Tier::longest).max();
                let own = rest.map_or(timeline, |rest| entry.timeline.capped(now.after(rest)));
                self.quiet_until(&own, entry.cost)
            }),
        };
        let value = match &entry.value {
            Some(value) => Arc::clone(value) as Arc<dyn Any + Send + Sync>,
            None => Arc::new(AbsentMark),
        };
        let mut object = Object::new(value, timeline, entry.id);
        object.quiet_until = match &entry.value {
            Some(_) => quiet_until.min(object.quiet_until),
            None => Moment::ORIGIN,
        };
        object.extra = Extra::for_object(entry);
        object.cost_us = micros(entry.cost);
        object.seen = entry.seen;
        object.weight = weight;
        object.by_set = entry.by_set;
        Some(object)
    }

    /// Bytes that a value counts for: the user's own measure, else the encoded size. What keys take the store adds.
    fn weight(&self, entry: &Entry<T>) -> u32 {
        match (&entry.value, &self.weigher, entry.encoded) {
            (None, ..) => 0,
            (Some(value), Some(weigher), _) => weigher(value),
            (Some(_), None, Some(encoded)) => encoded,
            (Some(value), None, None) => {
                let bytes = self.coding.measure(value).unwrap_or(size_of::<T>());
                u32::try_from(bytes).unwrap_or(u32::MAX)
            }
        }
    }

    /// Looks into an in-process level. Counts the look-up, unless there is doubt.
    pub(crate) fn peek(&self, key: RawKey<'_>, tier: &Tier) -> Peeked<T> {
        let Some(store) = &tier.store else { return Peeked::nothing(LevelOutcome::Miss) };
        let peeked = self.peek_quietly(key, &**store, tier.index);
        if !peeked.doubtful {
            tier.count(&self.around, peeked.outcome);
        }
        peeked
    }

    pub(crate) fn peek_quietly(&self, key: RawKey<'_>, store: &dyn ObjectStore, level: u8) -> Peeked<T> {
        let Some(object) = store.get(key) else { return Peeked::nothing(LevelOutcome::Miss) };
        // Where the caller holds a lock: the store may have let go of it by now, and this is the last of its value.
        object.outlive_locks();
        let behind = object.seen != self.news.count();
        let value = match Arc::clone(&object.value).downcast::<T>() {
            Ok(value) => Some(value),
            Err(other) if other.is::<AbsentMark>() => None,
            Err(_) => {
                self.unreadable(level, Unreadable::Type);
                return Peeked::nothing(LevelOutcome::Unreadable);
            }
        };
        let mut entry = Entry {
            value,
            timeline: object.timeline(),
            id: object.id,
            stamp: object.extra.as_ref().map_or_else(Stamp::default, |extra| extra.stamp),
            seen: object.seen,
            cost: Duration::from_micros(object.cost_us.into()),
            by_set: object.by_set,
            extra: object.extra,
            quiet_until: None,
            encoded: None,
        };
        let now = self.now();
        if self.tiers.get(usize::from(level)).is_some_and(|tier| tier.ttl_cap.is_some()) {
            entry.quiet_until = Some(object.quiet_until);
        }
        let mut doubtful = false;
        if behind {
            match self.verdict(&entry) {
                Verdict::Valid => {}
                Verdict::Expired => entry.expire(),
                Verdict::Void => {
                    store.remove(key);
                    self.stats().gone.left(key.hash, Cause::Invalidated);
                    return Peeked::nothing(LevelOutcome::Invalidated);
                }
                Verdict::Unsure => doubtful = true,
            }
        }
        let outcome = entry.state(now).outcome(entry.value.is_some());
        let dead = outcome == LevelOutcome::Expired;
        let behind = behind && matches!(outcome, LevelOutcome::Hit | LevelOutcome::Negative);
        Peeked { entry: (!dead).then_some(entry), outcome, behind, doubtful: doubtful && !dead }
    }

    /// What an in-process level has, if it can be believed without asking anybody.
    pub(crate) fn peek_surely(&self, key: RawKey<'_>, tier: &Tier) -> Option<Entry<T>> {
        let peeked = self.peek_quietly(key, &**tier.store.as_ref()?, tier.index);
        peeked.entry.filter(|_| !peeked.doubtful)
    }

    /// This very entry, if an in-process level still has it and it can be believed without asking anybody.
    pub(crate) fn held_nearby(&self, key: RawKey<'_>, id: EntryId) -> Option<Seen<T>> {
        let mut there = self
            .tiers
            .iter()
            .filter_map(|tier| Some(Seen { entry: self.peek_surely(key, tier)?, level: tier.index }));
        there.find(|seen| seen.entry.id == id)
    }

    /// Notes that an object has been found valid, so that the next hit need not look again.
    pub(crate) fn reseat(&self, key: RawKey<'_>, tier: &Tier, ticket: &Ticket<T>) {
        let Some(store) = &tier.store else { return };
        let count = self.news.count();
        let now = self.now();
        // Under the key's lock: what has been invalidated in between is not put back.
        ticket.commit(|| {
            let Some(mut object) = store.get(key) else { return };
            // The store may have let go of it by now.
            object.outlive_locks();
            let stamp = object.extra.as_ref().map_or_else(Stamp::default, |extra| extra.stamp);
            let tags = object.extra.as_ref().map_or(&[][..], |extra| &extra.tags);
            if self.verdict_of(object.seen, stamp, tags) == Verdict::Valid {
                object.seen = count;
                store.put(key, object, now);
            }
        });
    }

    /// Puts an entry into an in-process level, if the ticket still holds. `false`: it has been overtaken.
    pub(crate) fn keep(&self, key: RawKey<'_>, entry: &Entry<T>, tier: &Tier, ticket: &Ticket<T>) -> bool {
        let Some(store) = &tier.store else { return true };
        self.putting(key, entry, tier, &**store).is_some_and(|put| ticket.commit(put).is_some())
    }

    /// The same as the last that is done under the ticket.
    pub(crate) fn keep_last(
        &self,
        key: RawKey<'_>,
        entry: &Entry<T>,
        tier: &Tier,
        ticket: Ticket<T>,
    ) -> bool {
        let Some(store) = &tier.store else { return true };
        self.putting(key, entry, tier, &**store).is_some_and(|put| ticket.close_with(put).is_some())
    }

    /// Puts an object into an in-process level, where its key may have been missed.
    pub(crate) fn put_back(&self, key: RawKey<'_>, object: Object, store: &dyn ObjectStore, now: Moment) {
        // Before: what is too heavy has left again when it has been put.
        self.stats().gone.back(key.hash);
        store.put(key, object, now);
    }

    /// What puts an entry into an in-process level; to be run under a ticket. `None`: the cache has ended.
    fn putting<'a>(
        &'a self,
        key: RawKey<'a>,
        entry: &Entry<T>,
        tier: &Tier,
        store: &'a dyn ObjectStore,
    ) -> Option<impl FnOnce() + 'a> {
        if self.has_ended() {
            return None;
        }
        let object = self.object(entry, tier);
        let now = self.now();
        Some(move || match object {
            Some(object) => self.put_back(key, object, store, now),
            // What is there is older.
            None => drop(store.remove(key)),
        })
    }

    /// No object of before is believed, and no older fill gets in. As which piece of news.
    pub(crate) fn void_in_process(&self) -> u32 {
        let number = self.news.void();
        self.slots.revoke_all();
        self.stats().gone.forget();
        number
    }
}

impl Extra {
    /// With what is needed to judge an object with tags.
    fn for_object<T>(entry: &Entry<T>) -> Option<Arc<Self>> {
        match &entry.extra {
            Some(extra) if !extra.tags.is_empty() && extra.stamp != entry.stamp => {
                Self { stamp: entry.stamp, ..(**extra).clone() }.boxed()
            }
            other => other.clone(),
        }
    }
}

/// Counts what an in-process level lets go.
pub(crate) struct EvictionCounter {
    pub(crate) level: u8,
    pub(crate) stats: Arc<Stats>,
    pub(crate) observers: Observers,
}

impl Evictions for EvictionCounter {
    fn evicted(&self, key_hash: u64, cause: EvictionCause) {
        self.stats.evicted(self.level, key_hash, cause);
        self.observers.event(&Event::Evicted { level: self.level, cause });
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, OnceCell},
        sync::atomic::{AtomicBool, Ordering},
    };

    use futures::FutureExt;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{
        Builder, CacheId, Timeline, TracedCache, ok,
        testing::{ObjectsOnly, ends_within},
    };

    /// A value whose end uses its thread's cache.
    #[derive(Serialize, Deserialize)]
    struct Nosy(u64);

    thread_local! {
        static CACHE: OnceCell<TracedCache<Nosy>> = const { OnceCell::new() };
        /// How often the thread's store has been asked for a key.
        static LOOKS: Cell<usize> = const { Cell::new(0) };
    }

    impl Drop for Nosy {
        fn drop(&mut self) {
            let _ = CACHE.try_with(|cache| cache.get()?.invalidate("k").now_or_never().map(drop));
        }
    }

    /// A store that keeps nothing. Where it hands something out, it is the last of its value, and its time is over.
    #[derive(Clone, Copy)]
    enum Fleeting {
        Empty,
        HandsOut,
    }

    impl ObjectStore for Fleeting {
        fn get(&self, _key: RawKey<'_>) -> Option<Object> {
            LOOKS.set(LOOKS.get() + 1);
            let over = Timeline::new(Moment::ORIGIN, Duration::ZERO, Duration::ZERO);
            match self {
                Self::Empty => None,
                Self::HandsOut => Some(Object::for_tests(Arc::new(Nosy(1)), over, 0)),
            }
        }

        fn put(&self, _key: RawKey<'_>, object: Object, _now: Moment) {
            object.outlive_locks();
        }

        fn remove(&self, _key: RawKey<'_>) -> bool {
            false
        }

        fn clear(&self, _cache: CacheId) {}

        fn len(&self) -> u64 {
            0
        }

        fn weight(&self) -> u64 {
            0
        }

        fn weighs(&self) -> bool {
            true
        }

        fn attach(&self, _cache: CacheId, _evictions: Arc<dyn Evictions>) {}

        fn detach(&self, _cache: CacheId) {}
    }

    /// Runs `work` with the thread's cache. It ends, unless a lock waits for itself.
    fn ends<F: Future<Output = ()>>(
        level: Fleeting,
        more: impl FnOnce(Builder<Nosy>) -> Builder<Nosy> + Send + 'static,
        work: impl FnOnce(TracedCache<Nosy>) -> F + Send + 'static,
    ) {
        ends_within(Duration::from_secs(10), move || {
            let cache =
                more(TracedCache::builder("nosy").level(ObjectsOnly(Arc::new(level)))).build().unwrap();
            CACHE.with(|own| assert!(own.set(cache.clone()).is_ok()));
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(cache));
        });
    }

    #[test]
    fn what_is_read_under_a_lock_may_be_the_last_of_its_value() {
        ends(
            Fleeting::HandsOut,
            |builder| builder,
            async |cache| {
                cache.get_or_set("k", async || ok(Nosy(2))).await.unwrap();
            },
        );
    }

    /// An engine that decides by how often a key is asked for counts each look.
    #[test]
    fn a_get_that_misses_has_looked_once() {
        ends(
            Fleeting::Empty,
            |builder| builder,
            async |cache| {
                assert!(cache.get("k").await.unwrap().is_none());
                let counted = cache.stats().levels[0].outcome(LevelOutcome::Miss);
                assert_eq!((LOOKS.get(), counted), (1, 1));
                assert!(cache.look("k").await.unwrap().value().is_none());
                assert_eq!(LOOKS.get(), 2);
            },
        );
    }

    #[test]
    fn a_weigher_may_use_the_cache_in_an_update() {
        static WEIGHED: AtomicBool = AtomicBool::new(false);
        ends(
            Fleeting::Empty,
            |builder| {
                builder.weigher(|_| {
                    // What invalidates the key has the update try once more.
                    if !WEIGHED.swap(true, Ordering::Relaxed) {
                        CACHE.with(|cache| cache.get()?.invalidate("k").now_or_never().map(drop));
                    }
                    1
                })
            },
            async |cache| {
                let updated = cache.update("k", &(), |(), _, _| async { ok(Nosy(3)) }).await.unwrap();
                assert!(updated.delivery.is_confirmed());
                assert!(WEIGHED.load(Ordering::Relaxed));
            },
        );
    }
}
