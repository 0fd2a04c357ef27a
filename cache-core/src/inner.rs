//! The shared state of a cache, and how its entries stand.

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Advised, Begun, Entry, Error, ErrorKind, Event, Extra, Found, LevelOutcome, Moment, ObjectStore, Outcome,
    Policy, RawKey, Result, Stats, Timeline, Value,
    backplane::{Plane, Trust},
    learn::Learned,
    ledger::Change,
    news::{News, Verdict},
    observers::Observers,
    returning::Returning,
    rules::{self, Rules},
    slots::Slots,
    striped::Striped,
    tags::Wide,
    tier::{Around, Heeds, Tier},
    value::Coding,
};

pub(crate) type Weigher<T> = Box<dyn Fn(&T) -> u32 + Send + Sync>;

pub(crate) struct Inner<T> {
    pub(crate) around: Around,
    pub(crate) tiers: Box<[Tier]>,
    /// The nearest level's objects, where it is in process.
    pub(crate) near: Option<Arc<dyn ObjectStore>>,
    pub(crate) plane: Option<Plane>,
    /// For how long the nearest levels are believed although nothing is heard.
    pub(crate) trust: Trust,
    pub(crate) rules: ArcSwap<Rules>,
    pub(crate) schema: u32,
    pub(crate) coding: Coding<T>,
    pub(crate) weigher: Option<Weigher<T>>,
    pub(crate) news: News,
    /// Somebody polls the marks of remote levels.
    pub(crate) watching: AtomicBool,
    /// Wakes whoever polls.
    pub(crate) poke: Arc<tokio::sync::Notify>,
    /// Entries may have tags.
    pub(crate) tagging: bool,
    pub(crate) slots: Arc<Slots<T>>,
    /// Invalidations of more than keys.
    pub(crate) under_way: Mutex<Vec<Weak<Wide>>>,
    /// Leases that are being given back.
    pub(crate) returning: Arc<Returning>,
    pub(crate) tasks: TaskTracker,
    /// Calls under way beyond the nearest level.
    pub(crate) callers: Striped<TaskTracker>,
    /// `close` has done with waiting: calls that are still under way go no further.
    pub(crate) ended: AtomicBool,
    pub(crate) closing: CancellationToken,
}

/// An entry that a level holds, and where.
pub(crate) struct Seen<T> {
    pub(crate) entry: Entry<T>,
    pub(crate) level: u8,
}

impl<T> Clone for Seen<T> {
    fn clone(&self) -> Self {
        Self { entry: self.entry.clone(), level: self.level }
    }
}

/// How an entry stands at a moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Fresh,
    Stale,
    Dead,
}

impl State {
    pub(crate) fn of(timeline: &Timeline, has_value: bool, now: Moment) -> Self {
        if now < timeline.fresh_until {
            Self::Fresh
        } else if now < timeline.usable_until && has_value {
            Self::Stale
        } else {
            Self::Dead
        }
    }

    /// What a look-up at the level comes to that has the entry.
    pub(crate) fn outcome(self, has_value: bool) -> LevelOutcome {
        match self {
            Self::Fresh if has_value => LevelOutcome::Hit,
            Self::Fresh => LevelOutcome::Negative,
            Self::Stale => LevelOutcome::Stale,
            Self::Dead => LevelOutcome::Expired,
        }
    }
}

impl<T> Entry<T> {
    pub(crate) fn state(&self, now: Moment) -> State {
        State::of(&self.timeline, self.value.is_some(), now)
    }

    pub(crate) fn found(&self, outcome: Outcome, level: Option<u8>, now: Moment) -> Found<T> {
        self.clone().into_found(outcome, level, now)
    }

    pub(crate) fn into_found(self, outcome: Outcome, level: Option<u8>, now: Moment) -> Found<T> {
        Found {
            value: self.value,
            outcome,
            level,
            age: now.since(self.timeline.born),
            cost: self.cost,
            reason: None,
        }
    }

    /// Ends its freshness by an invalidation that came at a time which is not known: as if the entry had never been fresh.
    /// Were it to end now, each read would begin anew the window in which it is served while it is refreshed. A refresh
    /// that failed before no longer holds up the next one.
    pub(crate) fn expire(&mut self) {
        self.timeline.fresh_until = self.timeline.born;
        Extra::hurry(&mut self.extra);
    }

    /// Until when no refresh should be tried after a failed one.
    pub(crate) fn retry_at(&self) -> Option<Moment> {
        self.extra.as_ref().and_then(|e| e.retry_at)
    }
}

pub(crate) fn micros(d: Duration) -> u32 {
    u32::try_from(d.as_micros()).unwrap_or(u32::MAX)
}

impl<T: Value> Inner<T> {
    /// Refuses a policy that contradicts itself or the levels.
    pub(crate) fn check_policy(&self, policy: &Policy) -> Result<()> {
        rules::check(&self.tiers.iter().map(Tier::shape).collect::<Vec<_>>(), policy)
    }

    /// Whether `close` has done with waiting: nothing is stored from here on.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The policy now. A copy: whoever asks twice may see two.
    pub(crate) fn policy(&self) -> Policy {
        self.rules.load().policy
    }

    pub(crate) fn now(&self) -> Moment {
        self.around.clock.now()
    }

    #[inline]
    pub(crate) fn stats(&self) -> &Stats {
        &self.around.stats
    }

    #[inline]
    pub(crate) fn observers(&self) -> &Observers {
        &self.around.observers
    }

    /// Refuses an id that nobody may have.
    #[inline]
    pub(crate) fn id<'a>(&self, id: &'a str) -> Result<&'a str> {
        if id.is_empty() {
            return Err(
                self.failed(Error::new(ErrorKind::Key, "key is empty: give it at least one character"))
            );
        }
        Ok(id)
    }

    /// Counts an error that a call ends with, and says whose it is.
    #[cold]
    pub(crate) fn note(&self, error: &Error) {
        self.stats().error(error.kind());
        error.belongs_to(&self.around.name);
    }

    pub(crate) fn failed(&self, error: Error) -> Error {
        self.note(&error);
        error
    }

    pub(crate) fn key<'a>(&'a self, id: &'a str) -> Result<RawKey<'a>> {
        Ok(self.named(self.id(id)?))
    }

    /// The key of an id that has been checked. The hot path makes it in place: moving it costs as much as hashing.
    #[inline]
    pub(crate) fn named<'a>(&'a self, id: &'a str) -> RawKey<'a> {
        RawKey::new(self.around.cache, &self.around.name, id)
    }

    pub(crate) fn rekey<'a>(&'a self, id: &'a str, hash: u64) -> RawKey<'a> {
        RawKey { cache: self.around.cache, namespace: &self.around.name, id, hash, mark: false }
    }

    pub(crate) fn keys<'a>(&'a self, ids: &'a [Arc<str>]) -> Result<Vec<RawKey<'a>>> {
        ids.iter().map(|id| self.key(id)).collect()
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.tasks.is_closed() { Err(self.closed()) } else { Ok(()) }
    }

    pub(crate) fn closed(&self) -> Error {
        Error::new(ErrorKind::Closed, "it has been closed")
    }

    /// The timeline of a new entry.
    pub(crate) fn timeline(
        &self,
        born: Moment,
        absent: bool,
        ttl: Option<Duration>,
        grace: Option<Duration>,
    ) -> Timeline {
        let policy = self.policy();
        let ttl = ttl.unwrap_or(if absent { policy.absent_ttl } else { policy.ttl });
        // A ttl of zero says that there is nothing to keep.
        let jitter = if policy.jitter.is_zero() || absent || ttl.is_zero() || ttl == Duration::MAX {
            Duration::ZERO
        } else {
            policy.jitter.mul_f64(fastrand::f64())
        };
        let fresh_for = ttl.saturating_add(jitter);
        let usable_for =
            if absent || ttl.is_zero() { fresh_for } else { grace.unwrap_or(policy.grace).max(fresh_for) };
        Timeline::new(born, fresh_for, usable_for)
    }

    pub(crate) fn remote(&self) -> impl DoubleEndedIterator<Item = &Tier> {
        self.tiers.iter().filter(|t| t.store.is_none())
    }

    pub(crate) fn has_remote(&self) -> bool {
        self.remote().next().is_some()
    }

    /// A clear of this cache by another node has been learned of, or may have been missed.
    pub(crate) fn cleared_elsewhere(&self) {
        self.remote().for_each(|tier| tier.ledger.outdate());
        self.void_in_process();
    }

    /// Marks an entry so that no refresh is tried until the throttle is over, after a load that began at `begun` has
    /// failed. If that failure is to `surface`, the throttle must not hide it: then it lasts only as long as the entry
    /// would be served at once in any case.
    pub(crate) fn throttled(
        &self,
        entry: &Entry<T>,
        begun: &Begun,
        now: Moment,
        surface: bool,
    ) -> Option<Entry<T>> {
        let policy = self.policy();
        let mut entry = entry.clone();
        if self.verdict(&entry) == Verdict::Expired {
            // What is expired is expired once, not with each read, which would end the throttle. What has been expired since
            // the load began still ends it: the next call is to load.
            entry.expire();
            entry.seen = begun.seen;
        }
        let mut retry_at = now.after(policy.throttle);
        if surface {
            retry_at = retry_at.min(entry.timeline.fresh_until.after(policy.revalidate));
        }
        if retry_at <= now {
            return None;
        }
        let mut extra = entry.extra.as_deref().cloned().unwrap_or_default();
        extra.retry_at = Some(retry_at);
        Some(Entry { extra: extra.boxed(), ..entry })
    }
}

impl<T: Value> Heeds for Inner<T> {
    fn heed(&self, level: u8, change: Change) -> Learned {
        let decides = self.authority().is_some_and(|authority| authority.index == level);
        match change {
            Change::Nothing => return Learned::NOTHING,
            Change::Epoch => return Learned::news(Some(self.void_in_process())),
            Change::Tags if decides => self.news.unsure(),
            Change::Expired if decides => {
                self.news.expire();
                self.news.unsure();
            }
            // Whoever invalidates tells every level: the nearest remote one knows as well.
            Change::Tags | Change::Expired => {}
        }
        Learned::news(None)
    }

    fn count_pending(&self) {
        Self::count_pending(self);
    }
}

impl<T: Value> Advised for Inner<T> {
    fn advice(&self, text: &str) {
        self.observers().event(&Event::Advice(text));
    }
}

impl Extra {
    /// Forgets that a refresh has failed.
    pub(crate) fn hurry(this: &mut Option<Arc<Self>>) {
        if let Some(extra) = this.as_deref().filter(|extra| extra.retry_at.is_some()) {
            *this = Self { retry_at: None, ..extra.clone() }.boxed();
        }
    }
}
