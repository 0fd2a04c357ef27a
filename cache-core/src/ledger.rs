//! What this node knows of a remote level's marks.

mod known;

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use crossbeam_utils::{
    atomic::AtomicCell,
    sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard},
};

pub(crate) use self::known::TagCopy;
use self::known::{Brief, Known};
use crate::{
    Moment, Stamp,
    mark::{Mark, Reach},
    news::Verdict,
};

/// Counts what has become known of the marks of any of a cache's levels.
///
/// Whoever invalidates tells every level, the deepest first. So what one level's mark has told outdates what is known of the
/// others', before anybody can go by it: what is read at another one must not be judged by what was known there before, and go
/// up to this one as what it holds since.
#[derive(Clone, Default)]
pub(crate) struct Tidings(Arc<AtomicU64>);

impl Tidings {
    fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

#[derive(Default)]
pub(crate) struct Ledger {
    tidings: Tidings,
    known: ShardedLock<Known>,
    /// The part of it that each call needs, read without a lock unless it is just being written.
    brief: AtomicCell<Brief>,
    /// In-process levels may hold what was loaded while no epoch was known. The first epoch to become known does not say
    /// whether the cache has been cleared since.
    blind: AtomicBool,
    /// One caller creates the mark; the others wait for it.
    pub(crate) creating: tokio::sync::Mutex<()>,
    /// The same for those who invalidate: one advances the mark, the others wait.
    pub(crate) advancing: tokio::sync::Mutex<()>,
}

/// What an answer has changed for in-process levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    /// Tags have been invalidated elsewhere, it is not known which.
    Tags,
    /// Every entry has been expired elsewhere, and perhaps tags.
    Expired,
    /// Every entry is void.
    Epoch,
}

/// A moment of knowledge, to tell later whether anything has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) stamp: Stamp,
    pub(crate) changes: u64,
}

impl Ledger {
    /// `tidings`: of all levels of the cache.
    pub(crate) fn new(tidings: Tidings) -> Self {
        Self { tidings, ..Self::default() }
    }

    fn read(&self) -> ShardedLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> Writing<'_> {
        let known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        Writing { known, changed: false, brief: &self.brief }
    }

    /// What new entries of the level carry; an epoch of 0 while it is unknown.
    pub(crate) fn stamp(&self) -> Stamp {
        self.brief.load().stamp()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let known = self.read();
        Snapshot { stamp: known.stamp(), changes: known.changes }
    }

    pub(crate) fn mark(&self) -> Option<(Mark, Bytes)> {
        self.read().mark.clone()
    }

    /// Whether the mark is known, and of this state of the store.
    pub(crate) fn is_of(&self, home: u64) -> bool {
        self.read().is_of(home)
    }

    /// As [`is_of`](Self::is_of), and no other node has said that the mark has changed since.
    pub(crate) fn is_current(&self, home: u64) -> bool {
        let known = self.read();
        known.is_of(home) && !known.outdated
    }

    /// Whether another node has said that the mark has changed since it was read.
    pub(crate) fn is_outdated(&self) -> bool {
        self.read().outdated
    }

    /// `Some(changes)` when the mark should be read. When that is only for the time that has passed, the next reader need not
    /// ask as well; while the epoch is unknown, or what is known is in doubt, every reader must.
    pub(crate) fn due(&self, now: Moment, home: u64, period: Duration) -> Option<u64> {
        let is_due = |known: Brief| {
            !known.is_of(home)
                || known.heeded != self.tidings.count()
                || known.asked.is_none_or(|asked| now.since(asked) >= period)
        };
        if !is_due(self.brief.load()) {
            return None;
        }
        let mut known = self.write();
        let told = self.tidings.count();
        if known.heeded != told {
            known.heeded = told;
            known.outdate();
        }
        // Several may have found it due: the first to get here asks.
        is_due(known.brief()).then(|| {
            if known.asked.is_some() {
                known.asked = Some(now);
            }
            known.changes
        })
    }

    /// How long until the mark is due for the time that has passed.
    pub(crate) fn due_in(&self, now: Moment, period: Duration) -> Duration {
        self.read().asked.map_or(period, |asked| period.saturating_sub(now.since(asked)))
    }

    /// From now on every read asks for the mark, until the level has answered.
    pub(crate) fn doubt(&self) {
        self.write().doubt();
    }

    /// Another node has changed the mark. Writers ask for it, too: what they would store with the old one is void, or stale,
    /// to every other node.
    pub(crate) fn outdate(&self) {
        self.write().outdate();
    }

    /// Has the other levels' marks looked at. What is known here now is not seen before that.
    fn spread(&self, known: &mut Writing<'_>) {
        let before = self.tidings.0.fetch_add(1, Ordering::AcqRel);
        if known.heeded == before {
            known.heeded = before + 1;
        }
    }

    pub(crate) fn changes(&self) -> u64 {
        self.read().changes
    }

    /// Whether what is known has changed since `changes` were counted, or is in doubt. Without a mark there is nothing to doubt.
    pub(crate) fn has_changed_since(&self, changes: u64) -> bool {
        let known = self.read();
        known.changed_at > changes || known.mark.is_some() && known.changes != changes
    }

    pub(crate) fn tries(&self) -> u64 {
        self.read().tries
    }

    pub(crate) fn tried(&self) {
        self.write().tries += 1;
    }

    /// Whether the level has not said for `bound` what the mark is, so that tags are no longer believed. True once per
    /// `bound`, however many ask.
    pub(crate) fn is_overdue(&self, now: Moment, bound: Duration) -> bool {
        let is_overdue = |known: &Known| known.mark.is_some() && now.since(known.proven) >= bound;
        if !is_overdue(&self.read()) {
            return false;
        }
        let mut known = self.write();
        let overdue = is_overdue(&known);
        if overdue {
            known.doubted = true;
            known.proven = now;
        }
        overdue
    }

    /// How an entry with this stamp stands.
    pub(crate) fn judge(&self, stamp: Stamp, tags: &[Box<str>]) -> Verdict {
        self.read().judge(stamp, tags)
    }

    /// What is known, to judge entries just read from this state of the store. Nothing is known of a state whose mark has
    /// not been read, even if its epoch was seen before.
    pub(crate) fn court(&self, home: u64) -> Court<'_> {
        Court { ledger: self, home }
    }

    /// The state of the store that the mark was read from.
    pub(crate) fn home(&self) -> Option<u64> {
        let known = self.read();
        known.mark.as_ref().map(|_| known.home)
    }

    /// The epoch of the level's last store, while no mark of the store that took its place has been read.
    pub(crate) fn moving(&self) -> Option<u64> {
        let known = self.read();
        known.mark.as_ref().filter(|_| known.moved).map(|(mark, _)| mark.epoch)
    }

    /// Whether the mark of a store that took the place of one with this epoch has been read, and was another store's indeed.
    pub(crate) fn has_arrived_from(&self, epoch: u64) -> bool {
        let known = self.read();
        !known.moved && known.mark.as_ref().is_some_and(|(mark, _)| mark.epoch != epoch)
    }

    /// Whether this mark, read from another state of the store, shows no loss of anything that this node knows.
    pub(crate) fn goes_on(&self, mark: &Mark) -> bool {
        let known = self.read();
        let lost = |(known, _): &(Mark, Bytes)| known.epoch != mark.epoch || mark.is_behind(known);
        !known.moved && !known.mark.as_ref().is_some_and(lost)
    }

    /// Whether this mark is older than what is known of its own epoch: the store has lost something.
    pub(crate) fn is_rolled_back(&self, mark: &Mark, changes: u64) -> bool {
        let known = self.read();
        let lost = |(known, _): &(Mark, Bytes)| known.epoch == mark.epoch && mark.is_behind(known);
        known.changes == changes && known.mark.as_ref().is_some_and(lost)
    }

    /// The level goes on with another store, on purpose, so nothing is lost. What this node knows of the cache's
    /// invalidations still counts. What in-process levels hold stays valid, but for entries with tags, unless the new store
    /// says that the cache has been cleared.
    ///
    /// All nodes that come from one epoch begin the same epoch in the new store ([`Mark::carried`]). A node that finds it
    /// there knows that nobody has cleared the cache since the first of them came, and that whatever the store may hold of
    /// an earlier time carries another epoch.
    pub(crate) fn moved(&self) {
        let mut known = self.write();
        if known.moved
            && let Some((mark, _)) = known.mark
        {
            // Moved on before the mark of the last store was read: only that store knows what was invalidated there.
            known.settle(mark.carried(u64::MAX));
        }
        known.moved = known.mark.is_some();
        known.asked = None;
        // What is under way was asked of the store before.
        known.change();
    }

    /// The first mark for a store that has none which can be believed. `used`: it has one that was made there. Then the
    /// cache has been there before, and what it left may have missed invalidations, or a node that came earlier has cleared
    /// it there.
    pub(crate) fn first(&self, home: u64, used: bool) -> Mark {
        let mut known = self.write();
        match &known.mark {
            Some((mark, _)) if known.moved && !used => {
                let carried = mark.carried(home);
                known.settle(carried);
                carried
            }
            _ => Mark::new(home),
        }
    }

    /// Whether this mark may be believed after a move: it is of the same store after all, or of the epoch that nodes from this
    /// one's begin.
    pub(crate) fn arrives(&self, mark: &Mark, changes: u64) -> bool {
        let mut known = self.write();
        let Some(old) = known.mark.as_ref().filter(|_| known.moved).map(|(old, _)| *old) else { return true };
        if known.changes != changes {
            return true;
        }
        let carried = old.carried(mark.home);
        if mark.epoch == carried.epoch {
            known.settle(carried);
        } else if mark.epoch == old.epoch {
            known.moved = false;
        }
        !known.moved
    }

    /// Takes a mark that was read. If what was known has changed by more than doubts since `changes` were counted, only one
    /// that is later for sure.
    pub(crate) fn adopt(&self, mark: Mark, raw: Bytes, home: u64, changes: u64, now: Moment) -> Change {
        let mut known = self.write();
        if known.changes != changes {
            let overtaken = known.changed_at > changes;
            let refused = match &known.mark {
                Some(_) if known.home != home => true,
                // Of one epoch the numbers tell, whichever was asked for first.
                Some((old, _)) if old.epoch == mark.epoch => mark.is_behind(old) || overtaken && known.moved,
                _ => overtaken,
            };
            if refused {
                return Change::Nothing;
            }
            if known.mark.is_none() {
                (known.home, known.proven, known.outdated) = (home, now, true);
            }
            // Others have only said meanwhile that the mark has changed again. So this one is not the last, and the next
            // reader asks once more; but it is later than what is known, and so it counts. Where news never stops, no mark
            // would count otherwise.
            let old = known.mark.replace((mark, raw)).map(|(old, _)| old);
            return self.learned(&mut known, old, mark);
        }
        known.home = home;
        known.moved = false;
        known.asked.get_or_insert(now);
        known.proven = now;
        known.doubted = false;
        known.outdated = false;
        let old = known.mark.replace((mark, raw)).map(|(old, _)| old);
        self.learned(&mut known, old, mark)
    }

    /// Whether this mark, which was just read, is not the one that is known, and that one is in doubt itself. Either it was
    /// refused for one of another epoch that was answered first, and which of them is later cannot be told; or it cannot be
    /// believed, and nothing has taken its place so far.
    pub(crate) fn is_at_odds_with(&self, raw: Option<&[u8]>) -> bool {
        let Brief { mark: Some(known), home, asked: None, moved: false, is_nobodys, .. } = self.brief.load()
        else {
            return false;
        };
        match raw.and_then(Mark::decode).filter(|mark| mark.is_of(home)) {
            Some(mark) => mark.epoch != known.epoch,
            None => !is_nobodys,
        }
    }

    /// This state of the store has no mark that can be believed, seen after `changes` had been counted, and takes none. Whatever
    /// it says next, no entry of before may be believed.
    pub(crate) fn lost(&self, home: u64, changes: u64) -> Change {
        let mut known = self.write();
        if known.is_nobodys() || !known.is_of(home) || known.changed_at > changes {
            return Change::Nothing;
        }
        known.believe_nobody(home);
        self.spread(&mut known);
        Change::Epoch
    }

    /// Takes what this node has written: the mark, and marks of tags with it. `sent`: when, after `changes` had been counted.
    /// `follows`: it has taken the place of one of its epoch, which was known then.
    pub(crate) fn wrote(
        &self,
        mark: (Mark, Bytes),
        tags: Vec<(Box<str>, TagCopy)>,
        home: u64,
        changes: u64,
        sent: Moment,
        follows: bool,
    ) -> Change {
        let mut known = self.write();
        let of_another_epoch = known.mark.as_ref().is_some_and(|(old, _)| old.epoch != mark.0.epoch);
        if of_another_epoch && follows {
            // The cache has been cleared since: what was void would be believed again.
            known.doubt();
            return Change::Nothing;
        }
        if of_another_epoch && known.changed_at > changes {
            // Another epoch has become known since, and which of the two the store has is not.
            known.believe_nobody(home);
            self.spread(&mut known);
            return Change::Epoch;
        }
        let later = |(old, _): &(Mark, Bytes)| old.epoch == mark.0.epoch && old.sequence > mark.0.sequence;
        if known.mark.as_ref().is_some_and(later) {
            // A later mark was read before this write was answered.
            return Change::Nothing;
        }
        let next =
            |(old, _): &(Mark, Bytes)| old.epoch == mark.0.epoch && old.sequence + 1 == mark.0.sequence;
        let exact = !known.arriving && known.mark.as_ref().is_some_and(next);
        known.home = home;
        known.moved = false;
        known.outdated = known.changes != changes && (known.outdated || known.mark.is_none());
        // What others have said meanwhile may be of a change that came later.
        known.asked = (!known.outdated).then_some(sent);
        known.proven = sent;
        known.doubted = false;
        let new = mark.0;
        let old = known.mark.replace(mark).map(|(old, _)| old);
        let learned = if exact {
            known.change();
            Change::Nothing
        } else {
            self.learned(&mut known, old, new)
        };
        for (tag, copy) in tags {
            known.keep(tag, copy);
        }
        learned
    }

    fn learned(&self, known: &mut Writing<'_>, old: Option<Mark>, new: Mark) -> Change {
        let arrives = std::mem::take(&mut known.arriving);
        let learned = match old {
            Some(old) if old.epoch == new.epoch => {
                if old.sequence == new.sequence && !arrives {
                    return Change::Nothing;
                }
                if old.expired == new.expired { Change::Tags } else { Change::Expired }
            }
            Some(_) => {
                self.blind.store(false, Ordering::Release);
                Change::Epoch
            }
            None if self.blind.swap(false, Ordering::AcqRel) => Change::Epoch,
            None => Change::Nothing,
        };
        known.tags.clear();
        known.change();
        self.spread(known);
        learned
    }

    /// Takes the news of another node that its invalidation of tags had this number. `false`: something that came before
    /// it is not known, and the mark should be read.
    pub(crate) fn heard<'a>(&self, number: Stamp, tags: impl Iterator<Item = &'a str>, reach: Reach) -> bool {
        let mut known = self.write();
        let Some((mark, _)) = &known.mark else { return false };
        if mark.epoch == number.epoch && mark.sequence >= number.sequence {
            return true;
        }
        let next = mark.next();
        if number != (Stamp { epoch: next.epoch, sequence: next.sequence }) {
            return false;
        }
        known.mark = Some((next, next.encode()));
        known.change();
        self.spread(&mut known);
        for tag in tags {
            if let Some(copy) = known.tags.get_mut(tag) {
                copy.mark = copy.mark.raised(reach, next.sequence);
                // What the other node has written, if both knew the same; else the next swap says what it is.
                copy.raw = Some(copy.mark.encode());
            }
        }
        true
    }

    /// Notes that something is loaded or stored without this level's epoch being known.
    pub(crate) fn note_blind(&self) {
        if self.stamp().epoch == 0 {
            self.blind.store(true, Ordering::Release);
        }
    }

    pub(crate) fn copy(&self, tag: &str) -> Option<TagCopy> {
        self.read().tags.get(tag).cloned()
    }

    /// Tags of these whose marks are not known.
    pub(crate) fn unknown<'a>(&self, tags: impl Iterator<Item = &'a str>) -> Vec<Box<str>> {
        let known = self.read();
        let mut all: Vec<Box<str>> =
            tags.filter(|tag| known.doubted || !known.tags.contains_key(*tag)).map(Into::into).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Takes marks of tags that were read while the sequence did not move. `false`: it has.
    pub(crate) fn take_tags(&self, tags: Vec<(Box<str>, TagCopy)>, at: Snapshot) -> bool {
        let mut known = self.write();
        let right = known.changes == at.changes && !known.doubted;
        if right {
            for (tag, copy) in tags {
                known.keep(tag, copy);
            }
        }
        right
    }

    /// Whether a tag has no mark that is known to be kept until then.
    pub(crate) fn needs_touch(&self, tag: &str, until: Moment) -> bool {
        !self.read().tags.get(tag).is_some_and(|copy| copy.raw.is_some() && copy.until >= until)
    }
}

/// A change of what is known. Its end is when callers see it.
struct Writing<'a> {
    known: ShardedLockWriteGuard<'a, Known>,
    changed: bool,
    brief: &'a AtomicCell<Brief>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // Under the lock still: what is stored last is what was written last.
        if self.changed {
            self.brief.store(self.known.brief());
        }
    }
}

impl Deref for Writing<'_> {
    type Target = Known;

    fn deref(&self) -> &Known {
        &self.known
    }
}

impl DerefMut for Writing<'_> {
    fn deref_mut(&mut self) -> &mut Known {
        self.changed = true;
        &mut self.known
    }
}

/// Judges by what is known of one state of the store.
pub(crate) struct Court<'a> {
    ledger: &'a Ledger,
    home: u64,
}

impl Court<'_> {
    /// How an entry with this stamp stands, by what is known now.
    pub(crate) fn judge(&self, stamp: Stamp, tags: &[Box<str>]) -> Verdict {
        let brief = self.ledger.brief.load();
        if !brief.is_of(self.home) {
            return Verdict::Void;
        }
        brief.judge(stamp, tags).unwrap_or_else(|| {
            let known = self.ledger.read();
            if known.is_of(self.home) { known.judge(stamp, tags) } else { Verdict::Void }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::TagMark;

    #[test]
    fn an_answer_that_comes_after_a_clear_does_not_take_it_back() {
        let (ledger, now, home) = (Ledger::default(), Moment::ORIGIN, 7);
        let wrote = |mark: Mark, changes, follows| {
            ledger.wrote((mark, mark.encode()), Vec::new(), home, changes, now, follows)
        };
        let (first, cleared) = (Mark::new(home), Mark::new(home));
        wrote(first, ledger.changes(), false);
        let changes = ledger.changes();
        wrote(cleared, changes, false);
        assert_eq!(wrote(first.next(), changes, true), Change::Nothing);
        assert_eq!(ledger.stamp().epoch, cleared.epoch);
        assert!(ledger.due(now, home, Duration::MAX).is_some(), "the next read asks");
    }

    #[test]
    fn an_epoch_whose_answer_comes_after_another_one_is_not_gone_back_to() {
        let (ledger, now, home) = (Ledger::default(), Moment::ORIGIN, 7);
        let (first, cleared) = (Mark::new(home), Mark::new(home));
        let stamp = Stamp { epoch: first.epoch, sequence: 0 };
        let began = ledger.changes();
        // Somebody has read it before its own writer is answered.
        ledger.adopt(first, first.encode(), home, began, now);
        ledger.wrote((cleared, cleared.encode()), Vec::new(), home, ledger.changes(), now, false);
        let late = ledger.wrote((first, first.encode()), Vec::new(), home, began, now, false);
        assert_eq!(late, Change::Epoch);
        assert_eq!(ledger.court(home).judge(stamp, &[]), Verdict::Void);
        assert!(ledger.due(now, home, Duration::MAX).is_some() && ledger.is_outdated(), "it is asked");
        ledger.adopt(cleared, cleared.encode(), home, ledger.changes(), now);
        assert_eq!((ledger.stamp().epoch, ledger.is_outdated()), (cleared.epoch, false));
    }

    /// What was read before an invalidation may be judged after it: the replay of one that had to wait takes it off its
    /// journal once it is known here.
    #[test]
    fn a_court_judges_by_what_is_known_when_it_does() {
        let (ledger, now, home) = (Ledger::default(), Moment::ORIGIN, 7);
        let mark = Mark::new(home);
        let stamp = Stamp { epoch: mark.epoch, sequence: mark.sequence };
        let tags = ["t".into()];
        ledger.wrote((mark, mark.encode()), Vec::new(), home, ledger.changes(), now, false);
        let court = ledger.court(home);
        assert_eq!(court.judge(stamp, &tags), Verdict::Valid);
        assert_eq!(court.judge(stamp, &[]), Verdict::Valid);
        let next = mark.next();
        let copy = TagMark::unknown(&mark).raised(Reach::Purge, next.sequence);
        let copy = TagCopy { mark: copy, raw: None, until: Moment::NEVER };
        ledger.wrote((next, next.encode()), vec![("t".into(), copy)], home, ledger.changes(), now, false);
        assert_eq!(court.judge(stamp, &tags), Verdict::Void);
        assert_eq!(court.judge(stamp, &[]), Verdict::Valid);
        assert_eq!(ledger.court(home + 1).judge(stamp, &[]), Verdict::Void);
    }
}
