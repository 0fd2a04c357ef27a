//! A level at work: asks its provider within budget and breaker, and reports what came of it.

mod answer;
mod court;
mod failure;
mod reads;
mod trouble;
mod writes;

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::FutureExt;

use crate::{
    CacheId, CacheProvider, Capabilities, Clock, Error, Event, Failover, LevelFault, LevelOp, LevelOutcome,
    Moment, ObjectStore, RawKey, SpanKind, SpanStart, Stamp, Stance, Stats,
    breaker::{Breaker, Pass},
    clock::Times,
    gates::{Gates, Whom},
    learn::Learned,
    ledger::{Change, Ledger, TagCopy, Tidings},
    level::Level,
    mark::Mark,
    observers::Observers,
    patience::Patience,
    payload::Packing,
    pending::Pending,
    recent::Recent,
    rules::Shape,
    striped::Striped,
};

use self::trouble::Trouble;
pub(crate) use self::{
    answer::{Answer, Received},
    court::Court,
    failure::{Failure, Unfit, flatten, skipped},
    reads::{Read, ReadOne},
};

/// Bare values carry no epoch: none of them is ever void by it.
pub(crate) const PLAIN: Stamp = Stamp { epoch: 1, sequence: 0 };

pub(crate) struct Tier {
    pub(crate) index: u8,
    /// Each call takes a reference.
    provider: Striped<ArcSwap<Provider>>,
    /// How often it has been replaced, by one caller at a time.
    moves: AtomicU64,
    moving: Mutex<()>,
    pub(crate) store: Option<Arc<dyn ObjectStore>>,
    pub(crate) caps: Capabilities,
    pub(crate) ttl_cap: Option<Duration>,
    pub(crate) packing: Packing,
    pub(crate) surface: bool,
    pub(crate) background: bool,
    /// What the level has yet to hear.
    pub(crate) pending: Arc<Pending>,
    /// And deeper ones: until they have, other nodes may fill this level with what they still hold.
    deeper: Vec<Arc<Pending>>,
    patience: Patience,
    gates: Option<Gates>,
    pub(crate) ledger: Ledger,
    recent: Recent,
    trouble: Trouble,
    /// Entries outlive a failover of the store.
    pub(crate) keeps: bool,
}

/// Asked as what it is: as an `Arc` of one, each call would cost a box more.
pub(crate) struct Provider(Arc<dyn CacheProvider>);

impl std::ops::Deref for Provider {
    type Target = dyn CacheProvider;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// What every level needs to know about its cache.
pub(crate) struct Around {
    pub(crate) cache: CacheId,
    pub(crate) name: Arc<str>,
    pub(crate) clock: Clock,
    pub(crate) observers: Observers,
    pub(crate) stats: Arc<Stats>,
    pub(crate) memory: Weak<dyn Heeds>,
}

/// What a remote level tells its cache of, whatever the type of its values.
pub(crate) trait Heeds: Send + Sync {
    /// Acts on what a level's mark has brought to light.
    fn heed(&self, level: u8, change: Change) -> Learned;
    /// Counts anew what levels have yet to hear.
    fn count_pending(&self);
}

impl Around {
    /// Has memory heed a change in the same step in which it becomes known: a caller who is on the way to do so may leave.
    pub(crate) fn heed(&self, level: u8, change: Change) -> Learned {
        match self.memory.upgrade() {
            Some(memory) if change != Change::Nothing => memory.heed(level, change),
            _ => Learned::NOTHING,
        }
    }

    /// Counts anew what levels have yet to hear.
    pub(crate) fn count_pending(&self) {
        if let Some(memory) = self.memory.upgrade() {
            memory.count_pending();
        }
    }
}

/// The store that a level has, told from others that it is given later, and the state in which the store is: what has been
/// written in one place is not in another.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) struct Place {
    moves: u64,
    pub(crate) home: u64,
}

/// A call under way, which its caller may leave.
struct Calling<'a> {
    tier: &'a Tier,
    around: &'a Around,
    since: Moment,
    pass: Option<Pass<'a>>,
}

impl Drop for Calling<'_> {
    fn drop(&mut self) {
        let Some(pass) = self.pass.take() else { return };
        let (waited, budget) = (self.around.clock.now().since(self.since), self.tier.budget());
        // Much longer than its budget only where nobody has polled it: that says nothing about the level.
        if pass.abandon(waited >= budget / 2 && waited < budget * 2).is_some() {
            self.tier.tell_breaker(self.around);
        }
    }
}

/// A call to a provider, before it is made.
pub(crate) struct Asking {
    pub(crate) op: LevelOp,
    /// What the provider calls it.
    pub(crate) command: &'static str,
    pub(crate) whom: Whom,
    /// How many results there are to be.
    pub(crate) keys: usize,
    /// How many of them, the last ones, are of the cache's own marks: no items.
    pub(crate) marks: usize,
    /// Bytes of items that go with it.
    pub(crate) sent: usize,
    /// How long the one item that goes with it is to live.
    pub(crate) ttl: Option<Duration>,
    pub(crate) since: Moment,
}

impl Asking {
    /// With one result.
    pub(crate) const fn one(
        op: LevelOp,
        command: &'static str,
        whom: Whom,
        marks: usize,
        since: Moment,
    ) -> Self {
        Self { op, command, whom, keys: 1, marks, sent: 0, ttl: None, since }
    }
}

impl Tier {
    /// `deeper`: what deeper levels have yet to hear.
    pub(crate) fn new(
        index: u8,
        level: Level,
        only: bool,
        deeper: Vec<Arc<Pending>>,
        tidings: Tidings,
    ) -> Self {
        let provider =
            level.packing.plain.then(|| level.provider.plain()).flatten().unwrap_or(level.provider);
        let caps = provider.capabilities();
        let store = provider.in_process();
        Self {
            index,
            store,
            caps,
            ttl_cap: level.ttl_cap,
            packing: level.packing,
            surface: level.stance.unwrap_or(if only && caps.remote {
                Stance::Surface
            } else {
                Stance::Absorb
            }) == Stance::Surface,
            background: level.background,
            pending: Arc::default(),
            deeper,
            patience: Patience::new(level.budget),
            gates: level.breaker.filter(|_| caps.remote).map(|breaker| Gates::new(breaker, level.budget)),
            ledger: Ledger::new(tidings),
            recent: Recent::default(),
            trouble: Trouble::default(),
            keeps: level.failover == Failover::Keep,
            provider: Striped::new(|| ArcSwap::from_pointee(Provider(Arc::clone(&provider)))),
            moves: AtomicU64::new(0),
            moving: Mutex::new(()),
        }
    }

    /// What it is called in errors, counted from 1.
    pub(crate) fn number(&self) -> usize {
        usize::from(self.index) + 1
    }

    /// The provider now. A call keeps to the one that it began with.
    pub(crate) fn provider(&self) -> Arc<Provider> {
        self.provider.mine().load_full()
    }

    /// How far the store's clock is ahead, see [`CacheProvider::time_offset_ms`].
    pub(crate) fn time_offset_ms(&self) -> i64 {
        self.provider.mine().load().time_offset_ms()
    }

    /// Which state of the store this is, see [`CacheProvider::incarnation`].
    pub(crate) fn incarnation(&self) -> u64 {
        self.provider.mine().load().incarnation()
    }

    /// The same for a caller who has a provider, taken when it had been replaced so many times.
    pub(super) fn incarnation_since(&self, moves: u64, provider: &Provider) -> u64 {
        if self.moves() == moves { provider.incarnation() } else { self.incarnation() }
    }

    /// To be asked for before the provider.
    pub(super) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Acquire)
    }

    /// Where calls go that are made from now on.
    pub(crate) fn place(&self) -> Place {
        let moves = self.moves();
        Place { moves, home: self.incarnation() }
    }

    /// Whether they still do.
    pub(crate) fn is_at(&self, place: Place) -> bool {
        // It may be a call itself that has made the first connection of all.
        self.moves() == place.moves && (place.home == 0 || self.incarnation() == place.home)
    }

    /// Has the ledger take what this node has written here, see [`Ledger::wrote`], unless the level has moved since: it would
    /// not know that any more.
    pub(crate) fn wrote(
        &self,
        here: Place,
        mark: (Mark, Bytes),
        tags: Vec<(Box<str>, TagCopy)>,
        changes: u64,
        sent: Moment,
        follows: bool,
    ) -> Result<Change, Failure> {
        let _stays = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        if self.moves() != here.moves {
            return Err(Failure::left());
        }
        Ok(self.ledger.wrote(mark, tags, here.home, changes, sent, follows))
    }

    /// What the clocks of this node and of the store say.
    pub(crate) fn times(&self, clock: &Clock) -> Times {
        clock.times(self.time_offset_ms())
    }

    /// Goes on with another provider of the same kind: whatever is under way keeps to the one before. What is known of the
    /// cache's invalidations is kept, see [`Ledger::moved`].
    pub(crate) fn move_to(&self, provider: Arc<dyn CacheProvider>) -> Result<(), Error> {
        let fail = |field: &str, value: &dyn std::fmt::Display, fix: &str| {
            Err(Error::config(&self.shape().field(usize::from(self.index), field), value, fix))
        };
        provider.check()?;
        if self.store.is_some() || provider.in_process().is_some() {
            return fail("provider", &"in process", "only a remote level moves: build the cache anew");
        }
        let provider = match (self.packing.plain, provider.plain()) {
            (false, _) => provider,
            (true, Some(plain)) => plain,
            (true, None) => return fail("plain", &true, "the new provider has no bare form of values"),
        };
        if provider.capabilities() != self.caps {
            let fix = "the new provider can do something else than the one before, in sizes of keys or values or in ttls: \
                       build the cache anew";
            return fail("provider", &provider.describe().system, fix);
        }
        let _alone = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        // Before and after: whoever has counted meanwhile cannot tell where his call has gone.
        self.moves.fetch_add(1, Ordering::Release);
        for place in self.provider.iter() {
            place.store(Arc::new(Provider(Arc::clone(&provider))));
        }
        self.moves.fetch_add(1, Ordering::Release);
        self.ledger.moved();
        Ok(())
    }

    pub(crate) fn breaker(&self) -> Option<&Breaker> {
        self.gates.as_ref().map(Gates::settings)
    }

    pub(crate) fn shape(&self) -> Shape {
        let system = self.provider().describe().system;
        Shape { system, caps: self.caps, ttl_cap: self.ttl_cap, plain: self.packing.plain }
    }

    /// What new entries of this level carry; an epoch of 0 while it is unknown.
    pub(crate) fn stamp(&self) -> Stamp {
        if self.packing.plain {
            return PLAIN;
        }
        self.ledger.stamp()
    }

    pub(crate) fn budget(&self) -> Duration {
        self.patience.budget()
    }

    /// Time until a breaker would let a call through.
    pub(crate) fn opens_in(&self, clock: &Clock) -> Duration {
        self.gates.as_ref().map_or(Duration::ZERO, |gates| gates.opens_in(clock))
    }

    /// Runs one call to the provider that is about marks alone, see [`Self::call_at`].
    pub(crate) async fn call_about_marks<A: Answer>(
        &self,
        around: &Around,
        op: LevelOp,
        whom: Whom,
        call: impl Future<Output = A> + Send,
    ) -> Result<A, Failure> {
        let what = Asking::one(op, self.command(op, 1), whom, 1, around.clock.now());
        self.call_at(around, &what, call).await.map(|(answer, _)| answer)
    }

    /// What the provider calls it.
    pub(crate) fn command(&self, op: LevelOp, keys: usize) -> &'static str {
        self.provider.mine().load().command(op, keys)
    }

    /// Runs one call to the provider: breaker, budget, panic, telemetry. One result, or one for each key. Says when it was
    /// answered.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    pub(crate) fn call_at<A: Answer>(
        &self,
        around: &Around,
        what: &Asking,
        call: impl Future<Output = A> + Send,
    ) -> impl Future<Output = Result<(A, Moment), Failure>> + Send {
        async move {
            let Asking { op, command, since, .. } = *what;
            let gate = self.gates.as_ref().and_then(|gates| gates.choose(what.whom, &around.clock));
            let mut calling = Calling { tier: self, around, since, pass: None };
            if let Some(gates) = &self.gates {
                // In place: what waits would keep it twice.
                calling.pass = gates.enter(gate.as_ref(), &around.clock).map_err(|()| Failure::Skipped)?;
            }
            if calling.pass.as_ref().is_some_and(Pass::is_probe) {
                self.tell_breaker(around);
            }
            let span = around.observers.span(&SpanStart {
                kind: SpanKind::Level { level: self.index, op, command },
                key: None,
                keys: what.keys - what.marks,
                root: false,
            });
            let guarded = AssertUnwindSafe(span.around(call)).catch_unwind();
            let ended = if self.caps.remote {
                self.patience.spend(&around.clock, since, guarded).await
            } else {
                Some(guarded.await)
            };
            let Asking { op, command, keys, marks, sent, ttl, since, .. } = *what;
            let ended = match ended {
                Some(Ok(answer)) if answer.count() == keys => Ok(answer),
                Some(Ok(_)) => Err(Failure::Failed(
                    LevelFault::Error,
                    Some("the provider did not answer with one result per key".into()),
                )),
                Some(Err(_panic)) => Err(Failure::Failed(LevelFault::Panic, None)),
                None => Err(Failure::Failed(LevelFault::Timeout, None)),
            };
            let (fault, cause) = match &ended {
                Ok(answer) => match answer.failure() {
                    Some(cause) => (Some(LevelFault::Error), Some(cause)),
                    None => (None, None),
                },
                Err(Failure::Failed(fault, cause)) => (Some(*fault), cause.as_ref()),
                Err(Failure::Skipped | Failure::Mute) => (None, None),
            };
            // Part of a batch failing is one key, or a server that nobody has named: the rest is well.
            let well = ended.as_ref().is_ok_and(Answer::is_well);
            let now = around.clock.now();
            if calling.pass.take().and_then(|pass| pass.end(well, now)).is_some() {
                self.tell_breaker(around);
            }
            if let Some(fault) = fault {
                self.trouble.note(fault, cause);
                around.stats.fault(self.index, fault);
                span.failed(fault.as_str());
            }
            if !around.observers.is_empty() {
                if !span.is_empty() {
                    let received = ended.as_ref().map_or(0, |answer| answer.bytes(marks));
                    if sent + received > 0 {
                        span.size(sent + received);
                    }
                    span.ttl(ttl);
                    span.end();
                }
                around.observers.event(&Event::Level {
                    level: self.index,
                    op,
                    command,
                    keys: keys - marks,
                    elapsed: now.since(since),
                    fault,
                    error: cause.map(|e| &**e as &(dyn std::error::Error + 'static)),
                });
            }
            ended.map(|answer| (answer, now))
        }
    }

    /// Something has become of a breaker: says so where that makes another one of the level.
    fn tell_breaker(&self, around: &Around) {
        let note = |state| around.stats.breaker(self.index, state);
        let news = self.gates.as_ref().and_then(|gates| gates.news(&around.clock, note));
        if let Some(state) = news {
            around.observers.event(&Event::Breaker { level: self.index, state });
        }
    }

    /// Whom a command asks that concerns these keys.
    pub(crate) fn whom<'k>(&self, keys: impl IntoIterator<Item = RawKey<'k>>) -> Whom {
        let provider = self.provider();
        let whom = keys.into_iter().map(|key| Whom::of(provider.server_of(key)));
        whom.reduce(Whom::and).unwrap_or(Whom::Level)
    }

    /// Whether the level has marks.
    pub(crate) fn is_marked(&self) -> bool {
        self.store.is_none() && !self.packing.plain
    }

    /// Counts one level look-up.
    pub(crate) fn count(&self, around: &Around, outcome: LevelOutcome) {
        around.stats.level(self.index, outcome, 1);
    }
}

/// How many look-ups of an answer ended how.
#[derive(Default)]
pub(crate) struct Outcomes([usize; LevelOutcome::ALL.len()]);

impl Outcomes {
    pub(crate) fn add(&mut self, outcome: LevelOutcome) {
        self.0[outcome as usize] += 1;
    }

    /// Counts them.
    pub(crate) fn at(self, tier: &Tier, around: &Around) {
        for (outcome, by) in LevelOutcome::ALL.into_iter().zip(self.0).filter(|(_, by)| *by > 0) {
            around.stats.level(tier.index, outcome, by);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;
    use crate::{TracedCache, testing::MapProvider};

    /// Each thread takes the provider from a place of its own.
    #[test]
    fn of_two_moves_at_a_time_one_is_the_last_for_everybody() {
        let cache: TracedCache<String> =
            TracedCache::builder("moved").level(MapProvider::new()).build().unwrap();
        let places = &cache.inner.tiers[0].provider;
        let start = Barrier::new(2);
        for round in 0..2_000 {
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        let to = Arc::new(MapProvider::new());
                        start.wait();
                        cache.move_level(0, to).unwrap();
                    });
                }
            });
            let all: Vec<_> = places.iter().map(|place| Arc::as_ptr(&place.load().0)).collect();
            assert!(all.iter().all(|one| std::ptr::addr_eq(*one, all[0])), "round {round}");
        }
    }
}
