//! A level at work: asks its provider within budget and breaker, and reports what came of it.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::FutureExt;

use crate::{
    Acquire, Acquired, BoxError, BreakerState, CacheId, CacheProvider, Capabilities, Clock, Error, ErrorKind,
    Event, Fill, Lease, LevelFault, LevelOp, LevelOutcome, Moment, ObjectStore, Put, RawKey, SpanKind,
    SpanStart, Stamp, Stance, Stats,
    breaker::{Gate, Pass},
    envelope::{self, Header},
    level::Level,
    observe::Observers,
    payload::{Form, Packing},
    pending::Pending,
};

/// How often a remote level's marker is read along with a look-up. The period within which a clear by another node shows.
pub(crate) const MARKER_PERIOD: Duration = Duration::from_secs(1);

/// Bare values carry no epoch: none of them is ever void by it.
pub(crate) const PLAIN: Stamp = Stamp { epoch: 1, sequence: 0 };

pub(crate) struct Tier {
    pub(crate) index: u8,
    pub(crate) provider: Arc<dyn CacheProvider>,
    pub(crate) store: Option<Arc<dyn ObjectStore>>,
    pub(crate) caps: Capabilities,
    pub(crate) ttl_cap: Option<Duration>,
    pub(crate) packing: Packing,
    pub(crate) surface: bool,
    pub(crate) background: bool,
    pub(crate) pending: Pending,
    budget: Duration,
    gate: Option<Gate>,
    epoch: Epoch,
}

/// The level's idea of the cache's epoch: entries that carry another one have been cleared away.
#[derive(Default)]
struct Epoch {
    known: Mutex<Known>,
    /// Mirrors `known.value` for readers.
    value: AtomicU64,
    /// In-process levels may hold what was loaded while no epoch was known: whether the cache has been cleared since
    /// cannot be told from the first one.
    blind: AtomicBool,
    /// One caller creates the marker; the others wait for it.
    creating: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    /// 0: not yet.
    value: u64,
    /// The state of the store that it was read from.
    home: u64,
    asked: Option<Moment>,
    /// Counts tries to create the marker.
    tries: u64,
    /// Counts changes, so that an answer that was under way during a clear is not believed.
    changes: u64,
}

/// Why a level has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Not asked: the breaker is open.
    Skipped,
    Failed(LevelFault, Option<BoxError>),
}

impl Failure {
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

/// What a level said about one key.
pub(crate) enum Read {
    Bytes(Bytes),
    Nothing,
    Failed(Failure),
    /// An invalidation has not reached the level yet.
    Masked,
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
        let waited = self.around.clock.now().since(self.since);
        if let Some(change) = pass.abandon(waited >= self.tier.budget / 2) {
            self.tier.breaker_is(self.around, change);
        }
    }
}

impl Tier {
    pub(crate) fn new(index: u8, level: Level, only: bool) -> Self {
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
            pending: Pending::default(),
            budget: level.budget,
            gate: level.breaker.filter(|_| caps.remote).map(|breaker| Gate::new(breaker, level.budget)),
            epoch: Epoch::default(),
            provider,
        }
    }

    /// The epoch that new entries of this level carry; 0 while it is unknown.
    pub(crate) fn stamp(&self) -> Stamp {
        if self.packing.plain {
            return PLAIN;
        }
        Stamp { epoch: self.epoch.value.load(Ordering::Acquire), sequence: 0 }
    }

    /// Time until the breaker would let a call through.
    pub(crate) fn opens_in(&self, clock: &Clock) -> Duration {
        self.gate.as_ref().map_or(Duration::ZERO, |gate| gate.opens_in(clock))
    }

    /// Runs one call to the provider: breaker, budget, panic, telemetry. `keys` results are expected.
    async fn call<R: Received>(
        &self,
        around: &Around,
        op: LevelOp,
        keys: usize,
        sent: usize,
        call: impl Future<Output = Vec<Result<R, BoxError>>> + Send,
    ) -> Result<Vec<Result<R, BoxError>>, Failure> {
        let pass = match &self.gate {
            Some(gate) => Some(gate.enter(&around.clock).ok_or(Failure::Skipped)?),
            None => None,
        };
        if pass.as_ref().is_some_and(Pass::is_probe) {
            self.breaker_is(around, BreakerState::HalfOpen);
        }
        let mut calling = Calling { tier: self, around, since: around.clock.now(), pass };
        let command = self.provider.command(op, keys);
        let span = around.observers.span(&SpanStart {
            kind: SpanKind::Level { level: self.index, op, command },
            key: None,
            keys,
            root: false,
        });
        let started = (!around.observers.is_empty()).then(|| around.clock.now());
        let guarded = AssertUnwindSafe(span.around(call)).catch_unwind();
        let ended = if self.caps.remote {
            around.clock.timeout(self.budget, guarded).await
        } else {
            Some(guarded.await)
        };
        let ended = match ended {
            Some(Ok(results)) if results.len() == keys => Ok(results),
            Some(Ok(_)) => Err(Failure::Failed(
                LevelFault::Error,
                Some("the provider did not answer with one result per key".into()),
            )),
            Some(Err(_panic)) => Err(Failure::Failed(LevelFault::Panic, None)),
            None => Err(Failure::Failed(LevelFault::Timeout, None)),
        };
        let (fault, cause) = match &ended {
            Ok(results) => match results.iter().find_map(|r| r.as_ref().err()) {
                Some(cause) => (Some(LevelFault::Error), Some(cause)),
                None => (None, None),
            },
            Err(Failure::Failed(fault, cause)) => (Some(*fault), cause.as_ref()),
            Err(Failure::Skipped) => (None, None),
        };
        // Part of a batch failing is one server of many, or one key: the level as a whole is well.
        let well = ended.as_ref().is_ok_and(|r| r.is_empty() || r.iter().any(Result::is_ok));
        if let Some(change) = calling.pass.take().and_then(|pass| pass.end(well)) {
            self.breaker_is(around, change);
        }
        if let Some(fault) = fault {
            around.stats.fault(self.index, fault);
            span.failed(fault.as_str());
        }
        let received: usize = ended.iter().flatten().flatten().map(Received::bytes).sum();
        if sent + received > 0 {
            span.size(sent + received);
        }
        if let Some(started) = started {
            around.observers.event(&Event::Level {
                level: self.index,
                op,
                command,
                keys,
                elapsed: around.clock.now().since(started),
                fault,
                error: cause.map(|e| &**e as &(dyn std::error::Error + 'static)),
            });
        }
        ended
    }

    fn breaker_is(&self, around: &Around, state: BreakerState) {
        around.stats.breaker(self.index, state);
        around.observers.event(&Event::Breaker { level: self.index, state });
    }

    /// Reads keys, and the marker along with them when that is due. The second answer says that the marker has changed:
    /// another node has cleared the cache.
    pub(crate) async fn read_many(&self, around: &Around, keys: &[RawKey<'_>]) -> (Vec<Read>, bool) {
        let masked: Vec<bool> = keys.iter().map(|key| self.pending.masks(key.id)).collect();
        let asked: Vec<RawKey<'_>> =
            keys.iter().zip(&masked).filter(|(_, masked)| !**masked).map(|(key, _)| *key).collect();
        if asked.is_empty() {
            return (keys.iter().map(|_| Read::Masked).collect(), false);
        }
        let home = self.provider.incarnation();
        let due = self.marker_due(&around.clock, home);
        let fixed = self.packing.plain;
        let mut changed = false;
        let mut answers = match due {
            // The usual case keeps to the provider's single-key path, where it may gather.
            None if asked.len() == 1 => {
                let call = async { vec![self.provider.get(asked[0]).await] };
                self.call(around, LevelOp::Get, 1, 0, call).await
            }
            None => self.call(around, LevelOp::Get, asked.len(), 0, self.provider.get_many(&asked)).await,
            Some(changes) => self.get_with_marker(around, &asked, changes, &mut changed).await,
        };
        if due.is_none() && !fixed && answers.is_ok() && self.provider.incarnation() != home {
            // Answered from another state of the store than the epoch was read from: once more, with the marker.
            let changes = self.changes();
            answers = self.get_with_marker(around, &asked, changes, &mut changed).await;
        }
        let mut answers = match answers {
            Ok(answers) => answers
                .into_iter()
                .map(|answer| match answer {
                    Ok(Some(bytes)) => Read::Bytes(bytes),
                    Ok(None) => Read::Nothing,
                    Err(cause) => Read::Failed(Failure::Failed(LevelFault::Error, Some(cause))),
                })
                .collect::<Vec<_>>(),
            Err(failure) => spread(failure, asked.len()).into_iter().map(Read::Failed).collect(),
        }
        .into_iter();
        let all = keys
            .iter()
            .zip(masked)
            // Masked while the call was under way counts too: what was read may be what is being invalidated.
            .map(|(key, masked)| {
                let answer = if masked { None } else { answers.next() };
                answer.filter(|_| !self.pending.masks(key.id)).unwrap_or(Read::Masked)
            })
            .collect();
        (all, changed)
    }

    async fn get_with_marker(
        &self,
        around: &Around,
        keys: &[RawKey<'_>],
        changes: u64,
        changed: &mut bool,
    ) -> Result<Vec<Result<Option<Bytes>, BoxError>>, Failure> {
        let mut with_marker = keys.to_vec();
        with_marker.push(RawKey::marker(around.cache, &around.name));
        let count = with_marker.len();
        let call = self.provider.get_many(&with_marker);
        let mut all = self.call(around, LevelOp::Get, count, 0, call).await?;
        if let Some(Ok(marker)) = all.pop() {
            *changed = self.learn(around, marker, changes).await;
        }
        Ok(all)
    }

    /// Stores items. Each that may have been sent and was not acknowledged is in doubt: its key is masked, and the level
    /// hears an invalidation of it when it is back.
    pub(crate) async fn put_many(&self, around: &Around, items: &[Put<'_>]) -> Vec<Result<(), Failure>> {
        let sent = items.iter().map(|item| item.bytes.len()).sum();
        let results = flatten(
            self.call(around, LevelOp::Put, items.len(), sent, self.provider.put_many(items)).await,
            items.len(),
        );
        for (item, result) in items.iter().zip(&results) {
            if let Err(Failure::Failed(..)) = result {
                self.pending.add(item.key.id);
            }
        }
        results
    }

    /// Whether the level keeps leases: then nothing but an explicit set is stored there without one.
    pub(crate) fn leases(&self) -> bool {
        self.store.is_none() && !self.packing.plain && self.provider.leases().is_some()
    }

    pub(crate) async fn acquire_many(
        &self,
        around: &Around,
        wanted: &[Acquire<'_>],
        life: Duration,
    ) -> Vec<Result<Acquired, Failure>> {
        let Some(leases) = self.provider.leases() else { return skipped(wanted.len()) };
        flatten(
            self.call(around, LevelOp::Acquire, wanted.len(), 0, leases.acquire_many(wanted, life)).await,
            wanted.len(),
        )
    }

    /// Stores items under their leases. `false`: refused. An item that was not acknowledged is not in doubt: should it
    /// arrive late, an invalidation or a set that came first has revoked its lease.
    pub(crate) async fn fill_many(&self, around: &Around, fills: &[Fill<'_>]) -> Vec<Result<bool, Failure>> {
        let Some(leases) = self.provider.leases() else { return skipped(fills.len()) };
        let sent = fills.iter().map(|fill| fill.put.bytes.len()).sum();
        flatten(
            self.call(around, LevelOp::Put, fills.len(), sent, leases.fill_many(fills)).await,
            fills.len(),
        )
    }

    pub(crate) async fn renew_many(&self, around: &Around, held: &[(RawKey<'_>, Lease)], life: Duration) {
        if let Some(leases) = self.provider.leases() {
            // A lease that could not be renewed refuses its fill: nothing to do about it here.
            let _ = self.call(around, LevelOp::Acquire, held.len(), 0, leases.renew_many(held, life)).await;
        }
    }

    pub(crate) async fn release_many(&self, around: &Around, held: &[(RawKey<'_>, Lease)]) {
        if let Some(leases) = self.provider.leases() {
            // It ends by time otherwise.
            let _ = self.call(around, LevelOp::Remove, held.len(), 0, leases.release_many(held)).await;
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
        flatten(
            self.call(around, LevelOp::Remove, keys.len(), 0, self.provider.remove_many(keys)).await,
            keys.len(),
        )
    }

    /// `Some(changes)` when the marker should be read.
    fn marker_due(&self, clock: &Clock, home: u64) -> Option<u64> {
        if self.packing.plain {
            return None;
        }
        let mut known = self.epoch.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock.now();
        let due = known.value == 0
            || known.home != home
            || known.asked.is_none_or(|asked| now.since(asked) >= MARKER_PERIOD);
        // The next reader need not ask as well. While the epoch is unknown every reader must.
        known.asked = due.then_some(now).or(known.asked);
        due.then_some(known.changes)
    }

    /// The next read looks at the marker, whenever the last one did.
    pub(crate) fn doubt_epoch(&self) {
        self.epoch.known.lock().unwrap_or_else(PoisonError::into_inner).asked = None;
    }

    /// Takes the marker that a read brought. Says whether an epoch that was known has been replaced.
    async fn learn(&self, around: &Around, marker: Option<Bytes>, changes: u64) -> bool {
        let key = RawKey::marker(around.cache, &around.name);
        let home = self.provider.incarnation();
        match marker.and_then(|bytes| envelope::open(key, &bytes).ok()) {
            // Written to this very state of the store, or nobody can tell.
            Some((header, _)) if header.stamp.epoch != 0 && (home == 0 || header.id.0 == home) => {
                self.adopt(header.stamp.epoch, home, changes)
            }
            // Lost, damaged, or of a store that has since been restarted or replaced: whatever it said, no entry of
            // before may be believed.
            _ => {
                let tries = self.known().tries;
                // Whoever has waited for another's try has waited long enough, whatever came of it.
                let turn = around.clock.timeout(self.budget, self.epoch.creating.lock()).await;
                if turn.is_none() || self.changes() != changes || self.known().tries != tries {
                    return false;
                }
                let replaced = self.new_epoch(around).await.unwrap_or(false);
                self.known().tries += 1;
                replaced
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.epoch.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes(&self) -> u64 {
        self.known().changes
    }

    fn adopt(&self, epoch: u64, home: u64, changes: u64) -> bool {
        let mut known = self.epoch.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.changes != changes {
            return false;
        }
        known.home = home;
        if known.value == epoch {
            return false;
        }
        let old = std::mem::replace(&mut known.value, epoch);
        known.changes += 1;
        self.epoch.value.store(epoch, Ordering::Release);
        old != 0 || self.epoch.blind.swap(false, Ordering::AcqRel)
    }

    /// Notes that something is loaded or stored without this level's epoch being known.
    pub(crate) fn note_blind(&self) {
        if self.caps.remote && self.stamp().epoch == 0 {
            self.epoch.blind.store(true, Ordering::Release);
        }
    }

    /// Gives the cache a new epoch at this level: everything stored in it before is void. Says whether another one was
    /// known; a reader may have seen the new one already.
    pub(crate) async fn new_epoch(&self, around: &Around) -> Result<bool, Failure> {
        if self.packing.plain {
            // It has none: after more invalidations than can be remembered it is not read any more.
            return Err(Failure::Skipped);
        }
        let epoch = fastrand::u64(1..);
        let home = self.provider.incarnation();
        let key = RawKey::marker(around.cache, &around.name);
        let header = Header {
            codec: None,
            form: Form::default(),
            by_set: true,
            expired: false,
            // Which state of the store this epoch belongs to.
            id: crate::EntryId(home),
            schema: 0,
            born_ms: u64::try_from(around.clock.wall_ms()).unwrap_or(0),
            fresh_for: Duration::MAX,
            usable_for: Duration::MAX,
            cost_us: 0,
            stamp: Stamp { epoch, sequence: 0 },
            extra: None,
        };
        let put = [Put { key, bytes: envelope::seal(key, &header, &[]), ttl: Duration::MAX }];
        let results = flatten(self.call(around, LevelOp::Put, 1, 0, self.provider.put_many(&put)).await, 1);
        for result in results {
            result?;
        }
        let mut known = self.epoch.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.changes += 1;
        known.home = home;
        known.asked = Some(around.clock.now());
        self.epoch.value.store(epoch, Ordering::Release);
        let old = std::mem::replace(&mut known.value, epoch);
        Ok((old != 0 && old != epoch) || self.epoch.blind.swap(false, Ordering::AcqRel))
    }

    /// Makes sure that the epoch is known, for writers that have read nothing. Says whether in-process levels are in doubt.
    #[must_use]
    pub(crate) async fn know_epoch(&self, around: &Around) -> bool {
        let home = self.provider.incarnation();
        let (changes, is_known) = {
            let known = self.known();
            (known.changes, known.value != 0 && known.home == home)
        };
        if self.caps.remote && !is_known && !self.packing.plain {
            let marker = [RawKey::marker(around.cache, &around.name)];
            let answer = self.call(around, LevelOp::Get, 1, 0, self.provider.get_many(&marker)).await;
            if let Ok(mut answers) = answer
                && let Some(Ok(marker)) = answers.pop()
            {
                return self.learn(around, marker, changes).await;
            }
        }
        false
    }

    /// Counts one level look-up.
    pub(crate) fn count(&self, around: &Around, outcome: LevelOutcome) {
        around.stats.level(self.index, outcome);
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

/// What a call brings back, for its span.
trait Received {
    /// Bytes of items.
    fn bytes(&self) -> usize {
        0
    }
}

impl Received for () {}
impl Received for bool {}
impl Received for Option<Bytes> {
    fn bytes(&self) -> usize {
        self.as_ref().map_or(0, Bytes::len)
    }
}
impl Received for Acquired {
    fn bytes(&self) -> usize {
        match self {
            Self::Found(bytes) => bytes.len(),
            Self::Granted(_) | Self::Held => 0,
        }
    }
}

fn skipped<R>(items: usize) -> Vec<Result<R, Failure>> {
    (0..items).map(|_| Err(Failure::Skipped)).collect()
}

fn flatten<R>(called: Result<Vec<Result<R, BoxError>>, Failure>, items: usize) -> Vec<Result<R, Failure>> {
    match called {
        Ok(results) => results
            .into_iter()
            .map(|r| r.map_err(|cause| Failure::Failed(LevelFault::Error, Some(cause))))
            .collect(),
        Err(failure) if items > 0 => spread(failure, items).into_iter().map(Err).collect(),
        Err(_) => Vec::new(),
    }
}
