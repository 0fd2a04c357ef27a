//! A level at work: asks its provider within budget and breaker, and reports what came of it.

use std::{borrow::Cow, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::FutureExt;

use crate::{
    Acquire, Acquired, BoxError, CacheId, CacheProvider, Capabilities, Clock, Error, ErrorKind, Event,
    Failover, Fill, Lease, LevelFault, LevelOp, LevelOutcome, Moment, ObjectStore, Put, RawKey, SpanKind,
    SpanStart, Stamp, Stance, Stats, Swapped,
    breaker::{Breaker, Pass},
    clock::Times,
    gates::{Gates, Whom},
    learn::MARK_PERIOD,
    ledger::{self, Learned, Ledger},
    level::Level,
    mark::Reach,
    news::Verdict,
    observe::Observers,
    parts::{Parts, asked, more_pieces},
    patience::Patience,
    payload::Packing,
    pending::Pending,
    recent::{Effect, Recent},
    rules::Shape,
    striped::Striped,
};

/// Bare values carry no epoch: none of them is ever void by it.
pub(crate) const PLAIN: Stamp = Stamp { epoch: 1, sequence: 0 };

pub(crate) struct Tier {
    pub(crate) index: u8,
    /// Each call takes a reference.
    provider: Striped<ArcSwap<Provider>>,
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
    /// Entries outlive a failover of the store.
    pub(crate) keeps: bool,
}

/// Why a level has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Not asked: the breaker is open, or a call of the same batch has just failed.
    Skipped,
    Failed(LevelFault, Option<BoxError>),
}

impl Failure {
    /// The provider's own error.
    fn of(cause: BoxError) -> Self {
        Self::Failed(LevelFault::Error, Some(cause))
    }

    /// Its caller did not get on with it, and others have written since.
    pub(crate) fn overtaken() -> Self {
        Self::Failed(
            LevelFault::Timeout,
            Some("the write stood still for too long, and others have overtaken it".into()),
        )
    }

    /// Others were quicker, every time.
    pub(crate) fn busy() -> Self {
        Self::Failed(LevelFault::Error, Some("others invalidate all the time".into()))
    }

    pub(crate) fn into_error(self, level: u8) -> Error {
        let at = usize::from(level) + 1;
        match self {
            Self::Skipped => Error::new(
                ErrorKind::Level,
                format!("level {at} is not being asked: its breaker is open after failures"),
            ),
            Self::Failed(fault, None) => {
                Error::new(ErrorKind::Level, format!("level {at} failed: {}", fault.as_str()))
            }
            Self::Failed(fault, Some(cause)) => {
                Error::with_source(ErrorKind::Level, format!("level {at} failed: {}", fault.as_str()), cause)
            }
        }
    }
}

/// Asked as what it is: as an `Arc` of one, each call would cost a box more.
pub(crate) struct Provider(Arc<dyn CacheProvider>);

impl std::ops::Deref for Provider {
    type Target = dyn CacheProvider;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// What a level said about one key.
pub(crate) enum Read {
    Bytes(Bytes),
    Nothing,
    Failed(Failure),
    /// An invalidation has not reached the level yet.
    Masked,
}

impl Read {
    /// Of the item, in bytes.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Nothing | Self::Failed(_) | Self::Masked => 0,
        }
    }
}

/// What every level needs to know about its cache.
pub(crate) struct Around {
    pub(crate) cache: CacheId,
    pub(crate) name: Arc<str>,
    pub(crate) clock: Clock,
    pub(crate) observers: Observers,
    pub(crate) stats: Arc<Stats>,
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
    pub(crate) keys: usize,
    /// Bytes that go with it.
    pub(crate) sent: usize,
    pub(crate) since: Moment,
}

impl Tier {
    /// `deeper`: what deeper levels have yet to hear.
    pub(crate) fn new(index: u8, level: Level, only: bool, deeper: Vec<Arc<Pending>>) -> Self {
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
            ledger: Ledger::default(),
            recent: Recent::default(),
            keeps: level.failover == Failover::Keep,
            provider: Striped::new(|| ArcSwap::from_pointee(Provider(Arc::clone(&provider)))),
        }
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
        for place in self.provider.iter() {
            place.store(Arc::new(Provider(Arc::clone(&provider))));
        }
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

    /// Runs one call to the provider: breaker, budget, panic, telemetry. One result, or one for each of so many keys, which
    /// send so many bytes.
    pub(crate) async fn call<A: Answer>(
        &self,
        around: &Around,
        op: LevelOp,
        whom: Whom,
        (keys, sent): (usize, usize),
        call: impl Future<Output = A> + Send,
    ) -> Result<A, Failure> {
        let what =
            Asking { op, whom, keys, sent, command: self.command(op, keys), since: around.clock.now() };
        self.call_at(around, &what, call).await.map(|(answer, _)| answer)
    }

    /// What the provider calls it.
    pub(crate) fn command(&self, op: LevelOp, keys: usize) -> &'static str {
        self.provider.mine().load().command(op, keys)
    }

    /// The same for a caller who has just asked for the time, and knows what the provider calls it. Says when it was
    /// answered.
    pub(crate) async fn call_at<A: Answer>(
        &self,
        around: &Around,
        what: &Asking,
        call: impl Future<Output = A> + Send,
    ) -> Result<(A, Moment), Failure> {
        let Asking { op, command, whom, since, .. } = *what;
        let gate = self.gates.as_ref().and_then(|gates| gates.choose(whom, &around.clock));
        let pass = match &self.gates {
            Some(gates) => gates.enter(gate.as_ref(), &around.clock).map_err(|()| Failure::Skipped)?,
            None => None,
        };
        if pass.as_ref().is_some_and(Pass::is_probe) {
            self.tell_breaker(around);
        }
        let mut calling = Calling { tier: self, around, since, pass };
        let span = around.observers.span(&SpanStart {
            kind: SpanKind::Level { level: self.index, op, command },
            key: None,
            keys: what.keys,
            root: false,
        });
        let guarded = AssertUnwindSafe(span.around(call)).catch_unwind();
        let ended = if self.caps.remote {
            self.patience.spend(&around.clock, guarded).await
        } else {
            Some(guarded.await)
        };
        let Asking { op, command, keys, sent, since, .. } = *what;
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
            Err(Failure::Skipped) => (None, None),
        };
        // Part of a batch failing is one key, or a server that nobody has named: the rest is well.
        let well = ended.as_ref().is_ok_and(Answer::is_well);
        let now = around.clock.now();
        if calling.pass.take().and_then(|pass| pass.end(well, now)).is_some() {
            self.tell_breaker(around);
        }
        if let Some(fault) = fault {
            around.stats.fault(self.index, fault);
            span.failed(fault.as_str());
        }
        if !around.observers.is_empty() {
            let received = ended.as_ref().map_or(0, Answer::bytes);
            if sent + received > 0 {
                span.size(sent + received);
            }
            around.observers.event(&Event::Level {
                level: self.index,
                op,
                command,
                keys,
                elapsed: now.since(since),
                fault,
                error: cause.map(|e| &**e as &(dyn std::error::Error + 'static)),
            });
        }
        ended.map(|answer| (answer, now))
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

    /// Reads keys, and the mark along with them when that is due. Says what has come to light by that.
    pub(crate) async fn read_many(&self, around: &Around, keys: &[RawKey<'_>]) -> (Vec<Read>, Learned) {
        let masked: Vec<bool> = keys.iter().map(|key| self.masks(key.id)).collect();
        let asked: Cow<'_, [RawKey<'_>]> = match masked.contains(&true) {
            // As nearly always.
            false => keys.into(),
            true => keys.iter().zip(&masked).filter(|(_, masked)| !**masked).map(|(key, _)| *key).collect(),
        };
        let (answers, learned) = self.ask(around, &asked).await;
        let mut answers = answers.into_iter();
        let all = keys.iter().zip(masked).map(|(key, masked)| match masked {
            true => Read::Masked,
            false => self.settled(*key, answers.next().unwrap_or(Err(Failure::Skipped))),
        });
        (all.collect(), learned)
    }

    /// The same for keys that are not masked, without regard to what comes up meanwhile.
    async fn ask(
        &self,
        around: &Around,
        keys: &[RawKey<'_>],
    ) -> (Vec<Result<Option<Bytes>, Failure>>, Learned) {
        let provider = self.provider();
        let home = provider.incarnation();
        let plain = self.packing.plain;
        let due = if plain { None } else { self.ledger.due(around.clock.now(), home, MARK_PERIOD) };
        let mut learned = Learned::Nothing;
        if keys.is_empty() {
            if due.is_some() {
                learned = self.read_mark(around).await.unwrap_or(learned);
            }
            return (Vec::new(), learned);
        }
        let mut answers = match due {
            None => self.get_raw(around, keys).await,
            Some(changes) => self.get_with_mark(around, keys, changes, &mut learned).await,
        };
        if due.is_none() && !plain && answers.iter().any(Result::is_ok) && self.incarnation() != home {
            // Answered from another state of the store than the epoch was read from: once more, with the mark.
            let changes = self.ledger.changes();
            answers = self.get_with_mark(around, keys, changes, &mut learned).await;
        }
        (answers, learned)
    }

    /// The same for one key, which is what nearly all reads are. Says when it was answered.
    pub(crate) async fn read_one(&self, around: &Around, key: RawKey<'_>) -> (Read, Learned, Times) {
        if self.masks(key.id) {
            // Whatever else is due is done all the same.
            let (mut all, learned) = self.read_many(around, &[key]).boxed().await;
            return (all.pop().unwrap_or(Read::Masked), learned, self.times(&around.clock));
        }
        let provider = self.provider();
        let home = provider.incarnation();
        let plain = self.packing.plain;
        let since = around.clock.now();
        let due = if plain { None } else { self.ledger.due(since, home, MARK_PERIOD) };
        let answer = match due {
            // Keeps to the provider's single-key path, where it may gather.
            None => {
                let op = LevelOp::Get;
                let whom = Whom::of(provider.server_of(key));
                let what = Asking { op, command: provider.command(op, 1), whom, keys: 1, sent: 0, since };
                self.call_at(around, &what, asked(|| provider.get(key))).await
            }
            Some(_) => Err(Failure::Skipped),
        };
        let elsewhere = !plain && answer.is_ok() && self.incarnation() != home;
        if due.is_some() || elsewhere {
            // With the mark: it is due, or the answer was given from another state of the store than the epoch was read
            // from.
            let changes = due.unwrap_or_else(|| self.ledger.changes());
            let (read, learned) = self.read_one_with_mark(around, key, changes).boxed().await;
            return (read, learned, self.times(&around.clock));
        }
        let (answer, now) = match answer {
            Ok((answer, now)) => (answer.map_err(Failure::of), now),
            Err(failure) => (Err(failure), around.clock.now()),
        };
        let times = around.clock.times_at(now, provider.time_offset_ms());
        (self.settled(key, answer), Learned::Nothing, times)
    }

    async fn read_one_with_mark(&self, around: &Around, key: RawKey<'_>, changes: u64) -> (Read, Learned) {
        let mut learned = Learned::Nothing;
        let mut answers = self.get_with_mark(around, &[key], changes, &mut learned).await;
        let answer = answers.pop().unwrap_or(Ok(None));
        (self.settled(key, answer), learned)
    }

    /// Masked while the call was under way counts too: what was read may be what is being invalidated.
    fn settled(&self, key: RawKey<'_>, answer: Result<Option<Bytes>, Failure>) -> Read {
        match answer {
            _ if self.masks(key.id) => Read::Masked,
            Ok(Some(bytes)) => Read::Bytes(bytes),
            Ok(None) => Read::Nothing,
            Err(failure) => Read::Failed(failure),
        }
    }

    /// What the level has under these keys, whatever is known of them and however it stands.
    pub(crate) async fn get_raw(
        &self,
        around: &Around,
        keys: &[RawKey<'_>],
    ) -> Vec<Result<Option<Bytes>, Failure>> {
        let provider = self.provider();
        let batch = Parts::new(&provider, keys, |key| *key);
        self.call_parts(around, LevelOp::Get, &batch, |_| 0, |keys| provider.get_many(keys)).await
    }

    /// Reads keys from replicas. Their failures are no failures of the level, so they are nothing.
    pub(crate) async fn read_copies(&self, around: &Around, keys: &[RawKey<'_>]) -> Vec<Read> {
        let masked: Vec<bool> = keys.iter().map(|key| self.masks(key.id)).collect();
        let asked: Vec<RawKey<'_>> =
            keys.iter().zip(&masked).filter(|(_, masked)| !**masked).map(|(key, _)| *key).collect();
        let provider = self.provider();
        let Some(replicas) = provider.replicas().filter(|_| !asked.is_empty()) else {
            return keys.iter().map(|_| Read::Nothing).collect();
        };
        let call = AssertUnwindSafe(replicas.get_copies(&asked)).catch_unwind();
        let answers = self.patience.spend(&around.clock, call).await;
        let answers = answers.and_then(Result::ok).filter(|answers| answers.len() == asked.len());
        let mut answers = answers.unwrap_or_default().into_iter();
        let all = keys.iter().zip(masked).map(|(key, masked)| {
            let answer = if masked { None } else { answers.next() };
            match answer {
                Some(Ok(Some(bytes))) if !self.masks(key.id) => Read::Bytes(bytes),
                _ => Read::Nothing,
            }
        });
        all.collect()
    }

    async fn get_with_mark(
        &self,
        around: &Around,
        keys: &[RawKey<'_>],
        changes: u64,
        learned: &mut Learned,
    ) -> Vec<Result<Option<Bytes>, Failure>> {
        let mut with_mark = keys.to_vec();
        with_mark.push(RawKey::marker(around.cache, &around.name));
        let mut all = self.get_raw(around, &with_mark).await;
        match all.pop() {
            Some(Ok(mark)) => *learned = learned.and(self.learn(around, mark, changes).await),
            // Whoever reads next asks again, not only when the period is over.
            _ => self.ledger.doubt(),
        }
        all
    }

    /// Stores items. Each that may have been sent and was not acknowledged is in doubt: its key is masked, and the level
    /// hears an invalidation of it when it is back.
    pub(crate) async fn put_many(&self, around: &Around, items: &[Put<'_>]) -> Vec<Result<(), Failure>> {
        let provider = self.provider();
        let batch = Parts::new(&provider, items, |item| item.key);
        let put = |items| provider.put_many(items);
        let results = self.call_parts(around, LevelOp::Put, &batch, |item| item.bytes.len(), put).await;
        for (item, result) in items.iter().zip(&results) {
            if let Err(Failure::Failed(..)) = result {
                self.pending.doubt(item.key.id);
            }
        }
        results
    }

    /// Whether the level keeps leases: then nothing but an explicit set is stored there without one.
    pub(crate) fn leases(&self) -> bool {
        self.store.is_none() && !self.packing.plain && self.provider().leases().is_some()
    }

    /// How long leases of so many keys are to last: the first must not have ended when the last is granted, nor the last
    /// when all others have been used or renewed. Longer budgets than that are for calls that go wrong.
    fn lease_life(&self, life: Duration, keys: usize) -> Duration {
        life.saturating_add(self.budget().min(life / 6).saturating_mul(2).saturating_mul(more_pieces(keys)))
    }

    pub(crate) async fn acquire_many(
        &self,
        around: &Around,
        wanted: &[Acquire<'_>],
        life: Duration,
    ) -> Vec<Result<Acquired, Failure>> {
        let provider = self.provider();
        let Some(leases) = provider.leases() else { return skipped(wanted.len()) };
        let batch = Parts::new(&provider, wanted, |wish| wish.key);
        let life = self.lease_life(life, wanted.len());
        let acquire = |wanted| leases.acquire_many(wanted, life);
        self.call_parts(around, LevelOp::Acquire, &batch, |_| 0, acquire).await
    }

    /// Stores items under their leases. `false`: refused. An item that was not acknowledged is not in doubt: should it
    /// arrive late, an invalidation or a set that came first has revoked its lease.
    pub(crate) async fn fill_many(&self, around: &Around, fills: &[Fill<'_>]) -> Vec<Result<bool, Failure>> {
        let provider = self.provider();
        let Some(leases) = provider.leases() else { return skipped(fills.len()) };
        let batch = Parts::new(&provider, fills, |fill| fill.put.key);
        let fill = |fills| leases.fill_many(fills);
        self.call_parts(around, LevelOp::Put, &batch, |fill| fill.put.bytes.len(), fill).await
    }

    /// Keeps keys for a writer.
    pub(crate) async fn hold_many(
        &self,
        around: &Around,
        keys: &[RawKey<'_>],
        life: Duration,
    ) -> Vec<Result<Lease, Failure>> {
        let provider = self.provider();
        let Some(leases) = provider.leases() else { return skipped(keys.len()) };
        let batch = Parts::new(&provider, keys, |key| *key);
        let hold = |keys| leases.hold_many(keys, life);
        let results = self.call_parts(around, LevelOp::Acquire, &batch, |_| 0, hold).await;
        self.note(around, keys.iter().zip(&results).filter(|(_, held)| held.is_ok()).map(|(key, _)| key.id));
        results
    }

    /// Notes keys that this node has written or invalidated here.
    pub(crate) fn note<'a>(&self, around: &Around, ids: impl IntoIterator<Item = &'a str>) {
        self.note_effects(around, ids.into_iter().map(|id| Effect::Key(id.into())));
    }

    fn note_effects(&self, around: &Around, effects: impl Iterator<Item = Effect>) {
        // Also for a store that has but one state, and so loses nothing: the level may move to another.
        if self.is_marked() {
            self.recent.note(around.clock.now(), effects);
        }
    }

    /// Notes an invalidation of tags, or without any, of everything.
    pub(crate) fn note_tags(&self, around: &Around, tags: &[Box<str>], reach: Reach) {
        let all = tags.is_empty().then_some(Effect::Clear);
        self.note_effects(around, tags.iter().map(|tag| Effect::Tag(tag.clone(), reach)).chain(all));
    }

    /// The store is another one now, or has lost something: what this node has lately told it is told again.
    pub(crate) fn tell_again(&self, around: &Around) {
        for effect in self.recent.take(around.clock.now()) {
            match effect {
                Effect::Key(id) => self.pending.add(&id),
                Effect::Tag(tag, reach) => self.pending.add_tags(&[tag], reach),
                Effect::Clear => self.pending.add_clear(),
            }
        }
    }

    pub(crate) async fn renew_many(&self, around: &Around, held: &[(RawKey<'_>, Lease)], life: Duration) {
        let provider = self.provider();
        if let Some(leases) = provider.leases() {
            let batch = Parts::new(&provider, held, |(key, _)| *key);
            let life = self.lease_life(life, held.len());
            let renew = |held| leases.renew_many(held, life);
            // A lease that could not be renewed refuses its fill: nothing to do about it here.
            let _ = self.call_parts(around, LevelOp::Acquire, &batch, |_| 0, renew).await;
        }
    }

    pub(crate) async fn release_many(&self, around: &Around, held: &[(RawKey<'_>, Lease)]) {
        let provider = self.provider();
        if let Some(leases) = provider.leases() {
            let batch = Parts::new(&provider, held, |(key, _)| *key);
            let release = |held| leases.release_many(held);
            // It ends by time otherwise.
            let _ = self.call_parts(around, LevelOp::Remove, &batch, |_| 0, release).await;
        }
    }

    /// Removes keys. Those not acknowledged are masked and heard of later.
    pub(crate) async fn remove_many(&self, around: &Around, keys: &[RawKey<'_>]) -> Vec<Result<(), Failure>> {
        let results = self.remove_again(around, keys).await;
        for (key, result) in keys.iter().zip(&results) {
            if result.is_err() {
                self.pending.add(key.id);
            }
        }
        results
    }

    /// Removes keys that are masked already.
    pub(crate) async fn remove_again(
        &self,
        around: &Around,
        keys: &[RawKey<'_>],
    ) -> Vec<Result<(), Failure>> {
        let provider = self.provider();
        let batch = Parts::new(&provider, keys, |key| *key);
        let remove = |keys| provider.remove_many(keys);
        let results = self.call_parts(around, LevelOp::Remove, &batch, |_| 0, remove).await;
        self.note(around, keys.iter().zip(&results).filter(|(_, gone)| gone.is_ok()).map(|(key, _)| key.id));
        results
    }

    /// Whether the level must be treated as not having this key.
    pub(crate) fn masks(&self, id: &str) -> bool {
        self.pending.masks(id) || self.deeper.iter().any(|pending| pending.has(id))
    }

    /// How far the level must be treated as not having entries with these tags.
    pub(crate) fn reaches(&self, tags: &[Box<str>]) -> Option<Reach> {
        if tags.is_empty() {
            return None;
        }
        let of = |pending: &Arc<Pending>| pending.reaches(tags);
        // A purge is the last of them.
        std::iter::once(&self.pending)
            .chain(&self.deeper)
            .filter_map(of)
            .max_by_key(|reach| *reach == Reach::Purge)
    }

    /// Whether the level has marks.
    pub(crate) fn is_marked(&self) -> bool {
        self.store.is_none() && !self.packing.plain
    }

    /// What is known now of invalidations, to judge entries of this level that have just been read.
    pub(crate) fn court(&self) -> Court<'_> {
        Court { tier: self, known: (!self.packing.plain).then(|| self.ledger.court(self.incarnation())) }
    }

    /// How an entry of this level stands that carries this stamp.
    pub(crate) fn judge(&self, stamp: Stamp, tags: &[Box<str>]) -> Verdict {
        self.court().judge(stamp, tags)
    }

    /// Counts one level look-up.
    pub(crate) fn count(&self, around: &Around, outcome: LevelOutcome) {
        around.stats.level(self.index, outcome, 1);
    }
}

/// Judges entries of one level by what is known at one time. Nothing is learned while it sits: not to be held for long.
pub(crate) struct Court<'a> {
    tier: &'a Tier,
    /// `None`: values are bare, and always valid.
    known: Option<ledger::Court<'a>>,
}

impl Court<'_> {
    /// How an entry stands that carries this stamp.
    pub(crate) fn judge(&self, stamp: Stamp, tags: &[Box<str>]) -> Verdict {
        let Some(known) = &self.known else { return Verdict::Valid };
        match (self.tier.reaches(tags), known.judge(stamp, tags)) {
            (_, Verdict::Void) | (Some(Reach::Purge), _) => Verdict::Void,
            (Some(Reach::Expire), _) => Verdict::Expired,
            (None, verdict) => verdict,
        }
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

fn spread(failure: Failure, over: usize) -> Vec<Failure> {
    let again = match &failure {
        Failure::Skipped => None,
        Failure::Failed(fault, _) => Some(*fault),
    };
    let mut all: Vec<Failure> =
        (1..over).map(|_| again.map_or(Failure::Skipped, |fault| Failure::Failed(fault, None))).collect();
    all.insert(0, failure);
    all
}

/// What a provider answers: one result, or one for each key.
pub(crate) trait Answer {
    fn count(&self) -> usize;
    /// The first failure.
    fn failure(&self) -> Option<&BoxError>;
    /// Whether anything went well.
    fn is_well(&self) -> bool;
    /// Bytes of items.
    fn bytes(&self) -> usize;
}

impl<R: Received> Answer for Result<R, BoxError> {
    fn count(&self) -> usize {
        1
    }

    fn failure(&self) -> Option<&BoxError> {
        self.as_ref().err()
    }

    fn is_well(&self) -> bool {
        self.is_ok()
    }

    fn bytes(&self) -> usize {
        self.as_ref().map_or(0, Received::bytes)
    }
}

impl<R: Received> Answer for Vec<Result<R, BoxError>> {
    fn count(&self) -> usize {
        self.len()
    }

    fn failure(&self) -> Option<&BoxError> {
        self.iter().find_map(|r| r.as_ref().err())
    }

    fn is_well(&self) -> bool {
        self.is_empty() || self.iter().any(Result::is_ok)
    }

    fn bytes(&self) -> usize {
        self.iter().flatten().map(Received::bytes).sum()
    }
}

/// What a call brings back, for its span.
pub(crate) trait Received {
    /// Bytes of items.
    fn bytes(&self) -> usize {
        0
    }
}

impl Received for () {}
impl Received for bool {}
impl Received for Swapped {}
impl Received for Option<Bytes> {
    fn bytes(&self) -> usize {
        self.as_ref().map_or(0, Bytes::len)
    }
}
impl Received for Lease {}
impl Received for Acquired {
    fn bytes(&self) -> usize {
        match self {
            Self::Found(bytes) => bytes.len(),
            Self::Granted(_) | Self::Held | Self::Kept => 0,
        }
    }
}

pub(crate) fn skipped<R>(items: usize) -> Vec<Result<R, Failure>> {
    (0..items).map(|_| Err(Failure::Skipped)).collect()
}

pub(crate) fn flatten<R>(
    called: Result<Vec<Result<R, BoxError>>, Failure>,
    items: usize,
) -> Vec<Result<R, Failure>> {
    match called {
        Ok(results) => results.into_iter().map(|result| result.map_err(Failure::of)).collect(),
        Err(failure) if items > 0 => spread(failure, items).into_iter().map(Err).collect(),
        Err(_) => Vec::new(),
    }
}
