//! Which keys have left lately, and why: so that a miss can say more than that nothing was there.
//!
//! A table of hashes, written when an entry leaves and read on a miss: one cache line of [`WAYS`] slots for each hash, where
//! the next departure overwrites another once all are taken. So it remembers about as many departures as it has slots,
//! the latest ones. It grows with what it loses, up to [`SLOTS_MAX`] slots of 8 bytes, and takes no room before the first
//! departure.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

/// Slots by table. Each is used after the one before has lost half as many departures as it has slots.
const SLOTS: [usize; 4] = [1 << 10, 1 << 12, 1 << 14, 1 << 16];
/// Slots that a hash may be in.
const WAYS: usize = 8;
/// Slots of the largest table. Documented in docs/semantics.md.
#[cfg(test)]
const SLOTS_MAX: usize = SLOTS[3];

/// Why an entry left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Expired,
    Evicted,
    Invalidated,
}

/// The last departures of one cache.
#[derive(Default)]
pub(crate) struct Gone {
    tables: [OnceLock<Box<[AtomicU64]>>; SLOTS.len()],
    /// The table that is written to.
    current: AtomicUsize,
    /// Departures that another one has overwritten there.
    lost: AtomicUsize,
}

/// The low bits of a hash make room for the cause: 0 is an empty slot.
const CAUSE: u64 = 3;

const fn code(cause: Cause) -> u64 {
    match cause {
        Cause::Expired => 1,
        Cause::Evicted => 2,
        Cause::Invalidated => 3,
    }
}

const fn cause(slot: u64) -> Option<Cause> {
    match slot & CAUSE {
        1 => Some(Cause::Expired),
        2 => Some(Cause::Evicted),
        3 => Some(Cause::Invalidated),
        _ => None,
    }
}

const fn is_of(slot: u64, hash: u64) -> bool {
    slot & CAUSE != 0 && (slot ^ hash) & !CAUSE == 0
}

fn line(table: &[AtomicU64], hash: u64) -> &[AtomicU64] {
    // With some seeds the hashes of one cache's keys have bits in common. Multiplied by the golden ratio, all bits count.
    let at =
        usize::try_from(hash.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 48).unwrap_or(0) % (table.len() / WAYS);
    &table[at * WAYS..][..WAYS]
}

/// Where a table has a hash, if it does.
fn find(table: &[AtomicU64], hash: u64) -> Option<(&AtomicU64, u64)> {
    let slots = line(table, hash).iter().map(|slot| (slot, slot.load(Ordering::Relaxed)));
    slots.into_iter().find(|(_, seen)| is_of(*seen, hash))
}

impl Gone {
    /// Notes that a key has left.
    pub(crate) fn left(&self, hash: u64, why: Cause) {
        let at = self.current.load(Ordering::Relaxed);
        let table = self.tables[at].get_or_init(|| (0..SLOTS[at]).map(|_| AtomicU64::new(0)).collect());
        let line = line(table, hash);
        let slot = find(table, hash).map(|(slot, _)| slot);
        let slot = slot.or_else(|| line.iter().find(|slot| slot.load(Ordering::Relaxed) == 0));
        let slot = slot.unwrap_or_else(|| {
            let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
            if lost > table.len() / 2 && at + 1 < SLOTS.len() {
                self.lost.store(0, Ordering::Relaxed);
                self.current.store(at + 1, Ordering::Relaxed);
            }
            &line[lost % WAYS]
        });
        slot.store((hash & !CAUSE) | code(why), Ordering::Relaxed);
    }

    /// Notes that a key is back.
    pub(crate) fn back(&self, hash: u64) {
        for table in self.tables.iter().filter_map(OnceLock::get) {
            if let Some((slot, seen)) = find(table, hash) {
                // Another departure may have come in between: that one stays.
                let _ = slot.compare_exchange(seen, 0, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Why a key that is not there has left, if that is remembered.
    pub(crate) fn why(&self, hash: u64) -> Option<Cause> {
        let tables = self.tables.iter().rev().filter_map(OnceLock::get);
        let mut seen = tables.filter_map(|table| find(table, hash));
        seen.next().and_then(|(_, seen)| cause(seen))
    }

    /// Nothing of before is remembered: all of it has left for another reason.
    pub(crate) fn forget(&self) {
        for slot in self.tables.iter().filter_map(OnceLock::get).flat_map(|table| table.iter()) {
            slot.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{MissReason, TracedCache, ok, testing::MapProvider};

    fn hash(n: u64) -> u64 {
        n.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29).wrapping_mul(0xD6E8_FEB8_6659_FD93)
    }

    #[test]
    fn the_last_cause_is_remembered_until_the_key_is_back() {
        let gone = Gone::default();
        assert_eq!(gone.why(hash(1)), None);
        gone.left(hash(1), Cause::Expired);
        gone.left(hash(1), Cause::Evicted);
        gone.left(hash(2), Cause::Invalidated);
        assert_eq!(gone.why(hash(1)), Some(Cause::Evicted));
        gone.back(hash(1));
        assert_eq!((gone.why(hash(1)), gone.why(hash(2))), (None, Some(Cause::Invalidated)));
        gone.forget();
        assert_eq!(gone.why(hash(2)), None);
    }

    #[test]
    fn it_grows_with_what_leaves_and_no_further_than_its_bound() {
        const LEFT: u64 = 1 << 20;
        let gone = Gone::default();
        assert!(gone.tables.iter().all(|table| table.get().is_none()), "no room before the first departure");
        for n in 0..LEFT {
            gone.left(hash(n), Cause::Evicted);
        }
        let slots: usize = gone.tables.iter().filter_map(OnceLock::get).map(|table| table.len()).sum();
        assert_eq!(slots, SLOTS.iter().sum::<usize>());
        let recent = LEFT - u64::try_from(SLOTS_MAX).unwrap() / 4;
        let known = (recent..LEFT).filter(|n| gone.why(hash(*n)).is_some()).count();
        assert!(known > SLOTS_MAX / 5, "{known} of the last {} are known", SLOTS_MAX / 4);
        let never = (LEFT..2 * LEFT).filter(|n| gone.why(hash(*n)).is_some()).count();
        assert_eq!(never, 0, "what has never been there is not mistaken for what has left");
    }

    /// Where nothing is kept in memory as well.
    #[tokio::test]
    async fn what_has_been_loaded_again_is_back() {
        let store = Arc::new(MapProvider::new());
        let cache: TracedCache<u64> =
            TracedCache::builder("remote").level(Arc::clone(&store)).build().unwrap();
        let reason = async || cache.look("k").await.unwrap().miss_reason();
        assert!(cache.invalidate("k").await.unwrap().is_confirmed());
        assert_eq!(reason().await, Some(MissReason::Invalidated));
        cache.get_or_set_with("k", &(), |(), _| async { ok(1) }).await.unwrap();
        assert_eq!(reason().await, None);
        store.evict("remote:k");
        assert_eq!(reason().await, Some(MissReason::Absent), "of a remote level's evictions nobody hears");
    }
}
