//! The per-key table of what is in flight: tickets, the current load, and the order of writers.
//!
//! A *ticket* is the right to fill the nearest level with what is read below it. It is opened before anything below is
//! read, and revoked by any invalidation or set of the key. Checking a ticket and inserting, and revoking tickets and
//! removing, are one critical section each, so neither can slip between the other's halves. A record exists only while a
//! ticket of its key is open: the table is bounded by what is in flight.

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crossbeam_utils::CachePadded;
use hashbrown::{HashTable, hash_table::OccupiedEntry};
use smol_str::SmolStr;

use crate::{
    RawKey,
    flight::{Ended, Flight},
    limbo::Hold,
    order::Line,
};

const SHARDS: usize = 64;

type Table<T> = HashTable<Slot<T>>;
type Shard<T> = Mutex<Table<T>>;

/// Keys that are locked. What stores let go of meanwhile is dropped after that.
struct Locked<'a, T> {
    table: MutexGuard<'a, Table<T>>,
    _hold: Hold,
}

impl<'a, T> Locked<'a, T> {
    #[inline]
    fn new(shard: &'a Shard<T>) -> Self {
        Self { _hold: Hold::begin(), table: shard.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

impl<T> Deref for Locked<'_, T> {
    type Target = Table<T>;

    fn deref(&self) -> &Table<T> {
        &self.table
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut Table<T> {
        &mut self.table
    }
}

pub(crate) struct Slots<T> {
    shards: Box<[CachePadded<Shard<T>>]>,
    /// Counts clears of the whole cache: each revokes every ticket.
    clears: AtomicU64,
}

struct Slot<T> {
    id: SmolStr,
    hash: u64,
    /// Open tickets.
    open: usize,
    /// Counts invalidations and sets while the record exists.
    revision: u64,
    /// Writes under way.
    writing: usize,
    /// Numbers of the tickets of writers that have lost their turn: these do not count as under way.
    lost: Vec<u64>,
    /// Counts tickets opened, to tell "before the load ended" from "after".
    opened: u64,
    flight: Option<Arc<Flight<T>>>,
    /// The last load that ended without being overtaken, for callers who were here before it did.
    landed: Option<(u64, Ended<T>)>,
    /// Remote levels are written by one at a time, so that an older write cannot arrive after a newer one.
    line: Option<Arc<Line>>,
}

/// What has values, and is to be dropped with no lock held: their destructors may be anything.
#[must_use]
struct Gone<T> {
    _flight: Option<Arc<Flight<T>>>,
    _landed: Option<(u64, Ended<T>)>,
}

impl<T> Slot<T> {
    fn is_of(&self, id: &str, hash: u64) -> bool {
        self.hash == hash && *self.id == *id
    }

    /// The load under way.
    fn under_way(&self) -> Option<&Arc<Flight<T>>> {
        self.flight.as_ref().filter(|flight| !flight.is_aborted())
    }

    fn revoke(&mut self) -> Gone<T> {
        self.revision += 1;
        Gone { _flight: self.flight.take(), _landed: self.landed.take() }
    }

    /// One ticket less. The record, if that was the last.
    fn closed(mut entry: OccupiedEntry<'_, Self>) -> Option<Self> {
        entry.get_mut().open -= 1;
        (entry.get().open == 0).then(|| entry.remove().0)
    }
}

/// What a caller with an open ticket and nothing to read should do.
pub(crate) enum Role<T, R> {
    /// Wait for the load under way.
    Join(Arc<Flight<T>>),
    /// A load ended while this caller was reading below.
    Landed(Ended<T>),
    /// The nearest level was filled while this caller was reading below.
    Filled(R),
    /// Load; the ticket is the flight's own.
    Lead(Arc<Flight<T>>, Ticket<T>),
}

impl<T> Slots<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| CachePadded::new(Mutex::new(HashTable::new()))).collect(),
            clears: AtomicU64::new(0),
        })
    }

    #[inline]
    fn shard(&self, hash: u64) -> Locked<'_, T> {
        // The low bits choose the bucket within the table.
        let at = usize::try_from(hash >> 48).unwrap_or(0) % SHARDS;
        Locked::new(&self.shards[at])
    }

    fn slot_in<'a>(shard: &'a mut Table<T>, id: &str, hash: u64) -> &'a mut Slot<T> {
        shard
            .entry(hash, |s| s.is_of(id, hash), |s| s.hash)
            .or_insert_with(|| Slot {
                id: id.into(),
                hash,
                open: 0,
                revision: 0,
                writing: 0,
                lost: Vec::new(),
                opened: 0,
                flight: None,
                landed: None,
                line: None,
            })
            .into_mut()
    }

    fn ticket(self: &Arc<Self>, slot: &mut Slot<T>, revision: u64, writes: bool) -> Ticket<T> {
        slot.open += 1;
        slot.opened += 1;
        Ticket {
            slots: Arc::clone(self),
            id: slot.id.clone(),
            hash: slot.hash,
            revision,
            number: slot.opened,
            clears: self.clears.load(Ordering::Acquire),
            writes,
            closed: false,
        }
    }

    fn open_in(self: &Arc<Self>, shard: &mut Table<T>, id: &str, hash: u64) -> Ticket<T> {
        let slot = Self::slot_in(shard, id, hash);
        // The end of a write revokes what began during it. Its holder may as well know now, and not wait for the turn to
        // fill a level: the writer may be waiting for a slow source.
        let doomed = slot.writing > 0;
        let revision = if doomed { slot.revision.wrapping_sub(1) } else { slot.revision };
        self.ticket(slot, revision, false)
    }

    /// Opens a ticket. Call before reading below the nearest level.
    pub(crate) fn open(self: &Arc<Self>, key: RawKey<'_>) -> Ticket<T> {
        self.open_in(&mut self.shard(key.hash), key.id, key.hash)
    }

    /// Opens a writer's ticket: revokes all others of the key.
    pub(crate) fn open_write(self: &Arc<Self>, key: RawKey<'_>) -> Ticket<T> {
        let mut shard = self.shard(key.hash);
        let slot = Self::slot_in(&mut shard, key.id, key.hash);
        let gone = slot.revoke();
        slot.writing += 1;
        let revision = slot.revision;
        let ticket = self.ticket(slot, revision, true);
        drop(shard);
        drop(gone);
        ticket
    }

    /// Revokes the key's tickets, detaches its flight and runs `remove`, all in one step.
    pub(crate) fn revoke(&self, key: RawKey<'_>, remove: impl FnOnce()) {
        let mut shard = self.shard(key.hash);
        let slot = shard.find_mut(key.hash, |s| s.is_of(key.id, key.hash));
        let gone = slot.map(Slot::revoke);
        remove();
        drop(shard);
        drop(gone);
    }

    /// Revokes the key's tickets if this is its flight still: what that comes to is not for the cache.
    pub(crate) fn disown(&self, key: RawKey<'_>, flight: &Arc<Flight<T>>) {
        let mut shard = self.shard(key.hash);
        let slot = shard.find_mut(key.hash, |s| s.is_of(key.id, key.hash));
        let its = |slot: &&mut Slot<T>| slot.flight.as_ref().is_some_and(|own| Arc::ptr_eq(own, flight));
        let gone = slot.filter(its).map(Slot::revoke);
        drop(shard);
        drop(gone);
    }

    /// Revokes all tickets and detaches all flights. When it returns, no fill of an older ticket is under way.
    pub(crate) fn revoke_all(&self) {
        self.clears.fetch_add(1, Ordering::AcqRel);
        for shard in &self.shards {
            let gone: Vec<_> = Locked::new(shard).iter_mut().map(Slot::revoke).collect();
            drop(gone);
        }
    }

    /// The load under way, if there is one.
    pub(crate) fn flight(&self, key: RawKey<'_>) -> Option<Arc<Flight<T>>> {
        let shard = self.shard(key.hash);
        let slot = shard.find(key.hash, |s| s.is_of(key.id, key.hash))?;
        slot.under_way().map(Arc::clone)
    }

    /// The load that others are waiting for, if there is one: the levels below have been asked already.
    pub(crate) fn awaited(self: &Arc<Self>, key: RawKey<'_>) -> Option<(Arc<Flight<T>>, Ticket<T>)> {
        let mut shard = self.shard(key.hash);
        let slot = shard.find(key.hash, |s| s.is_of(key.id, key.hash))?;
        let flight = slot.under_way().filter(|flight| flight.awaited).map(Arc::clone)?;
        Some((flight, self.open_in(&mut shard, key.id, key.hash)))
    }

    /// Joins the load under way, or starts one. `recheck` looks at the nearest level once more, under the key's lock, so
    /// that a caller who comes late does not load twice; `serves` says whether what a load has left may be shown. `start` is
    /// told whether the ticket still holds: if not, what was read under it has been overtaken and is none of the new
    /// load's business.
    pub(crate) fn role<R>(
        self: &Arc<Self>,
        ticket: &Ticket<T>,
        serves: impl FnOnce(&Ended<T>) -> bool,
        recheck: impl FnOnce() -> Option<R>,
        start: impl FnOnce(bool) -> Arc<Flight<T>>,
    ) -> Role<T, R> {
        let mut shard = self.shard(ticket.hash);
        if let Some(slot) = shard.find_mut(ticket.hash, |s| ticket.is_of(s)) {
            if let Some(flight) = slot.under_way() {
                return Role::Join(Arc::clone(flight));
            }
            if let Some((until, ended)) = &slot.landed
                && ticket.number <= *until
                && serves(ended)
            {
                return Role::Landed(ended.clone());
            }
        }
        if let Some(filled) = recheck() {
            return Role::Filled(filled);
        }
        let current = shard.find(ticket.hash, |s| ticket.is_of(s)).is_some_and(|s| ticket.holds(s));
        let flight = start(current);
        let own = self.open_in(&mut shard, &ticket.id, ticket.hash);
        if let Some(slot) = shard.find_mut(ticket.hash, |s| ticket.is_of(s)) {
            slot.flight = Some(Arc::clone(&flight));
        }
        Role::Lead(flight, own)
    }

    /// Keys of writes that are under way.
    pub(crate) fn being_written(&self) -> Vec<SmolStr> {
        let mut ids = Vec::new();
        for shard in &self.shards {
            let shard = Locked::new(shard);
            ids.extend(shard.iter().filter(|slot| slot.writing > 0).map(|slot| slot.id.clone()));
        }
        ids
    }

    /// Keys with something in flight.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }
}

/// The right to fill, until revoked. Closes when dropped.
pub(crate) struct Ticket<T> {
    slots: Arc<Slots<T>>,
    id: SmolStr,
    hash: u64,
    revision: u64,
    number: u64,
    clears: u64,
    /// A writer's.
    writes: bool,
    closed: bool,
}

impl<T> Ticket<T> {
    fn is_of(&self, slot: &Slot<T>) -> bool {
        slot.is_of(&self.id, self.hash)
    }

    pub(crate) fn id(&self) -> &SmolStr {
        &self.id
    }

    fn holds(&self, slot: &Slot<T>) -> bool {
        slot.revision == self.revision && self.clears == self.slots.clears.load(Ordering::Acquire)
    }

    /// The same right once more, for work that outlives this one.
    pub(crate) fn again(&self) -> Self {
        let mut shard = self.slots.shard(self.hash);
        if let Some(slot) = shard.find_mut(self.hash, |s| self.is_of(s)) {
            slot.open += 1;
        }
        Self { slots: Arc::clone(&self.slots), id: self.id.clone(), writes: false, ..*self }
    }

    /// The key that it is for.
    pub(crate) fn key<'a>(&'a self, around: &'a crate::tier::Around) -> RawKey<'a> {
        RawKey { cache: around.cache, namespace: &around.name, id: &self.id, hash: self.hash, mark: false }
    }

    /// Whether nothing has revoked it yet. It may be revoked right after: use [`Ticket::commit`] to act on it.
    pub(crate) fn is_current(&self) -> bool {
        self.slots.shard(self.hash).find(self.hash, |s| self.is_of(s)).is_some_and(|s| self.holds(s))
    }

    /// Whether a load that callers wait for was under way, or ended, while this ticket was open: what its holder found
    /// below may be what that load has just put there.
    pub(crate) fn met_a_load(&self) -> bool {
        self.slots.shard(self.hash).find(self.hash, |s| self.is_of(s)).is_some_and(|slot| {
            slot.flight.as_ref().is_some_and(|f| f.awaited)
                || slot.landed.as_ref().is_some_and(|(until, _)| self.number <= *until)
        })
    }

    /// Runs `fill` if the ticket still holds, with the key locked.
    pub(crate) fn commit<R>(&self, fill: impl FnOnce() -> R) -> Option<R> {
        let shard = self.slots.shard(self.hash);
        let holds = shard.find(self.hash, |s| self.is_of(s)).is_some_and(|s| self.holds(s));
        holds.then(fill)
    }

    /// The same, and the end of the ticket: the key is locked once.
    pub(crate) fn close_with<R>(mut self, fill: impl FnOnce() -> R) -> Option<R> {
        let mut shard = self.slots.shard(self.hash);
        let entry = shard.find_entry(self.hash, |s| self.is_of(s)).ok();
        let holds = entry.as_ref().is_some_and(|entry| self.holds(entry.get()));
        let done = holds.then(fill);
        let gone = entry.and_then(Slot::closed);
        // Before destructors run, which may panic.
        self.closed = true;
        drop(shard);
        drop(gone);
        done
    }

    /// Runs `fill` if the ticket still holds, with the key locked, and revokes it and all others of the key with it.
    pub(crate) fn swap(&self, fill: impl FnOnce()) -> bool {
        let mut shard = self.slots.shard(self.hash);
        let slot = shard.find_mut(self.hash, |s| self.is_of(s)).filter(|s| self.holds(s));
        let gone = slot.map(Slot::revoke);
        if gone.is_some() {
            fill();
        }
        drop(shard);
        gone.is_some()
    }

    /// Ends a write: revokes once more, because reads that began during the write may have seen what it replaced. Runs
    /// `work` with the key locked, and tells it whether no other write or invalidation of the key came in between.
    pub(crate) fn end_write<R>(&mut self, work: impl FnOnce(bool) -> R) -> R {
        let mut shard = self.slots.shard(self.hash);
        let mut alone = false;
        let mut gone = None;
        if let Some(slot) = shard.find_mut(self.hash, |s| self.is_of(s)) {
            alone = self.holds(slot);
            gone = Some(slot.revoke());
            match slot.lost.iter().position(|number| *number == self.number) {
                Some(at) => drop(slot.lost.swap_remove(at)),
                None => slot.writing = slot.writing.saturating_sub(1),
            }
            if let Some(line) = &slot.line {
                line.ended(self.number);
            }
        }
        let done = work(alone);
        drop(shard);
        drop(gone);
        done
    }

    /// Takes a flight off its key when it has ended, leaving its result to those who came before.
    pub(crate) fn land(&self, flight: &Arc<Flight<T>>, ended: &Ended<T>) {
        let mut before = None;
        let mut shard = self.slots.shard(self.hash);
        if let Some(slot) = shard.find_mut(self.hash, |s| self.is_of(s))
            && slot.flight.as_ref().is_some_and(|f| Arc::ptr_eq(f, flight))
        {
            // Not the last of it, which must not be dropped under the lock: the caller has it, too.
            slot.flight = None;
            let overtaken = matches!(ended, Ended::Entry { accepted: false, .. });
            if self.holds(slot) && !overtaken {
                before = slot.landed.replace((slot.opened, ended.clone()));
            }
        }
        drop(shard);
        drop(before);
    }

    /// Where writers of the key at remote levels wait for their turn.
    pub(crate) fn line(&self) -> Arc<Line> {
        let mut shard = self.slots.shard(self.hash);
        match shard.find_mut(self.hash, |s| self.is_of(s)) {
            Some(slot) => Arc::clone(slot.line.get_or_insert_default()),
            // A record lives as long as its tickets, so this is never reached.
            None => Arc::default(),
        }
    }

    /// The number of a writer's ticket; 0 of any other.
    pub(crate) fn writer(&self) -> u64 {
        if self.writes { self.number } else { 0 }
    }

    /// Ends a line whose turn does not end; the next writer begins another. `false`: somebody else has.
    pub(crate) fn leave(&self, line: &Arc<Line>) -> bool {
        let mut shard = self.slots.shard(self.hash);
        let mut gone = None;
        let slot = shard.find_mut(self.hash, |s| self.is_of(s));
        let left = slot.is_some_and(|slot| {
            let left = slot.line.take_if(|current| Arc::ptr_eq(current, line)).is_some();
            let writer = line.writer();
            if left && writer != 0 && !slot.lost.contains(&writer) {
                // It counts as dropped: what is read from now on is no older than what it may have written.
                slot.lost.push(writer);
                slot.writing = slot.writing.saturating_sub(1);
                gone = Some(slot.revoke());
            }
            left
        });
        if left {
            // Before any other writer can begin.
            line.end();
        }
        drop(shard);
        drop(gone);
        if left {
            line.close();
        }
        left
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        if self.closed {
            return;
        }
        let mut shard = self.slots.shard(self.hash);
        let gone = shard.find_entry(self.hash, |s| self.is_of(s)).ok().and_then(Slot::closed);
        drop(shard);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use super::*;
    use crate::{CacheId, MissReason, cycle::LoadId, limbo::tests::let_go_of_one_that_panics};

    fn key(id: &str) -> RawKey<'_> {
        RawKey::new(CacheId(1), "t", id)
    }

    #[test]
    fn a_revoked_ticket_fills_nothing_and_the_table_empties() {
        let slots = Slots::<u8>::new();
        let a = slots.open(key("a"));
        let b = slots.open(key("a"));
        assert!(a.commit(|| ()).is_some());
        slots.revoke(key("a"), || ());
        assert!(a.commit(|| ()).is_none() && !b.is_current());
        let c = slots.open(key("a"));
        assert!(c.commit(|| ()).is_some());
        slots.revoke_all();
        assert!(c.commit(|| ()).is_none());
        drop((a, b, c));
        assert_eq!(slots.len(), 0);
    }

    #[test]
    fn a_ticket_ends_with_what_it_fills_and_others_stay() {
        let slots = Slots::<u8>::new();
        let (last, other) = (slots.open(key("a")), slots.open(key("a")));
        let filled = last.close_with(|| 7);
        assert_eq!((filled, slots.len()), (Some(7), 1));
        assert!(other.is_current());
        slots.revoke(key("a"), || ());
        assert!(other.close_with(|| ()).is_none());
        assert_eq!(slots.len(), 0);
    }

    /// It would take the record from under the other ticket, which could then not be revoked.
    #[test]
    fn a_ticket_ends_once_whatever_destructors_do() {
        let slots = Slots::<u8>::new();
        let (last, other) = (slots.open(key("a")), slots.open(key("a")));
        let panicked =
            std::panic::catch_unwind(AssertUnwindSafe(|| last.close_with(let_go_of_one_that_panics)));
        assert!(panicked.is_err());
        assert_eq!(slots.len(), 1);
        assert!(other.is_current());
        drop(other);
        assert_eq!(slots.len(), 0);
    }

    #[test]
    fn reads_during_a_write_do_not_fill_and_overlapping_writes_leave_nothing() {
        let slots = Slots::<u8>::new();
        let mut write = slots.open_write(key("a"));
        let read = slots.open(key("a"));
        assert!(write.end_write(|alone| alone));
        assert!(read.commit(|| ()).is_none(), "it may have read what the write replaced");

        let mut first = slots.open_write(key("a"));
        let mut second = slots.open_write(key("a"));
        assert!(!first.end_write(|alone| alone));
        assert!(!second.end_write(|alone| alone));
    }

    #[test]
    fn a_detached_flight_cannot_be_joined() {
        let slots = Slots::<u8>::new();
        let caller = slots.open(key("a"));
        let start = |_| Flight::new(LoadId::next(), true, None, MissReason::Absent);
        let Role::Lead(first, own) = slots.role(&caller, |_| true, || None::<()>, start) else { panic!() };
        assert!(
            matches!(slots.role(&caller, |_| true, || None::<()>, start), Role::Join(f) if Arc::ptr_eq(&f, &first))
        );
        slots.revoke(key("a"), || ());
        let Role::Lead(second, _) = slots.role(&caller, |_| true, || None::<()>, start) else { panic!() };
        assert!(!Arc::ptr_eq(&first, &second));
        own.land(
            &first,
            &Ended::Failed { error: crate::Error::new(crate::ErrorKind::Load, ""), surface: false },
        );
        assert!(
            matches!(slots.role(&caller, |_| true, || None::<()>, start), Role::Join(f) if Arc::ptr_eq(&f, &second)),
            "the old flight's end leaves the new one alone"
        );
    }

    #[test]
    fn only_callers_from_before_the_end_get_a_landed_result() {
        let slots = Slots::<u8>::new();
        let early = slots.open(key("a"));
        let start = |_| Flight::new(LoadId::next(), true, None, MissReason::Absent);
        let Role::Lead(flight, own) = slots.role(&early, |_| true, || None::<()>, start) else { panic!() };
        let ended = Ended::Failed { error: crate::Error::new(crate::ErrorKind::Load, ""), surface: false };
        own.land(&flight, &ended);
        let late = slots.open(key("a"));
        assert!(matches!(slots.role(&early, |_| true, || None::<()>, start), Role::Landed(_)));
        assert!(matches!(slots.role(&late, |_| true, || None::<()>, start), Role::Lead(..)));
    }
}
