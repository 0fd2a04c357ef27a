//! Exact counts of a cache, cheap enough to be always on.
//!
//! A hit at the nearest level is one add in a row of its thread's own. Telemetry reads the sums when it collects.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crossbeam_utils::CachePadded;

use crate::{
    BackplaneSnapshot, BreakerState, CacheInfo, ErrorKind, EvictionCause, LevelFault, LevelSnapshot, LoadEnd,
    MissReason, ObjectStore, Outcome, Scope, Served, Snapshot, Unreadable, Verb,
    gone::{Cause, Gone},
    striped::{Counters, Row, THREADS},
};

/// One look-up in this many that the nearest level serves is timed.
pub(crate) const SAMPLE: u64 = 256;

/// The verbs that look up.
const LOOKUPS: [Verb; 5] = [Verb::Get, Verb::GetOrSet, Verb::GetMany, Verb::GetOrSetMany, Verb::Refresh];
/// Those that a level, or another call's load, may have served.
const SERVED: [Outcome; 4] = [Outcome::Hit, Outcome::Stale, Outcome::Absent, Outcome::Coalesced];
/// Where a row keeps the microseconds that its hits have saved, after one counter for each verb.
const SAVED: usize = LOOKUPS.len();

/// What a level answered to one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LevelOutcome {
    /// A fresh entry.
    Hit,
    /// A stale entry.
    Stale,
    /// A remembered absence.
    Negative,
    /// Nothing.
    Miss,
    /// An entry whose time is over.
    Expired,
    /// An entry that has been invalidated as part of its cache or by a tag.
    Invalidated,
    /// Bytes that could not be read.
    Unreadable,
    /// An error or a timeout.
    Error,
    /// Not asked: the breaker was open, or an invalidation has not reached it yet.
    Skipped,
}

impl LevelOutcome {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Hit,
        Self::Stale,
        Self::Negative,
        Self::Miss,
        Self::Expired,
        Self::Invalidated,
        Self::Unreadable,
        Self::Error,
        Self::Skipped,
    ];

    /// A low-cardinality word for telemetry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Negative => "negative",
            Self::Miss => "miss",
            Self::Expired => "expired",
            Self::Invalidated => "invalidated",
            Self::Unreadable => "unreadable",
            Self::Error => "error",
            Self::Skipped => "skipped",
        }
    }
}

const LEVEL_OUTCOMES: usize = LevelOutcome::ALL.len();

// In `Stats::cold`: calls by verb, but for hot hits of single look-ups, from 0 on; then these.
/// Microseconds that look-ups below the nearest level have saved.
const COLD_SAVED: usize = Verb::ALL.len();
/// `[level][outcome]`, and behind them `[verb][outcome][level or none]`, for the outcomes of [`SERVED`].
const COLD_LEVELS: usize = COLD_SAVED + 1;

#[derive(Default)]
struct Level {
    evicted_expired: AtomicU64,
    evicted_size: AtomicU64,
    faults: [AtomicU64; LevelFault::ALL.len()],
    unreadable: [AtomicU64; Unreadable::ALL.len()],
    too_large: AtomicU64,
    not_encoded: AtomicU64,
    breaker: AtomicU8,
    opened: AtomicU64,
}

/// What happens on the backplane.
#[derive(Clone, Copy)]
pub(crate) enum OnBackplane {
    Sent,
    Received,
    Noise,
    Gap,
}

/// The counters of one cache. Observers get it when the cache is built and read it when they collect.
pub struct Stats {
    info: CacheInfo,
    /// Hits at the nearest level by look-up verb, and what they have saved.
    hot: [CachePadded<[AtomicU64; 8]>; THREADS],
    /// What every call below the nearest level counts: see the numbers after [`LEVEL_OUTCOMES`].
    cold: Counters,
    /// `[verb][reason]`: each miss has exactly one.
    missed: [AtomicU64; LOOKUPS.len() * MissReason::ALL.len()],
    errors: [AtomicU64; ErrorKind::ALL.len()],
    invalidations: [AtomicU64; Scope::ALL.len()],
    levels: Box<[Level]>,
    stores: Box<[Option<Arc<dyn ObjectStore>>]>,
    pub(crate) gone: Gone,
    loads: AtomicU64,
    load_errors: AtomicU64,
    load_micros: AtomicU64,
    overtaken: AtomicU64,
    flights: AtomicUsize,
    pending: AtomicUsize,
    stored_late: AtomicU64,
    lost: AtomicU64,
    has_backplane: bool,
    backplane: [AtomicU64; 4],
    over: AtomicBool,
}

const fn verb_index(verb: Verb) -> usize {
    match verb {
        Verb::GetOrSet => 1,
        Verb::GetMany => 2,
        Verb::GetOrSetMany => 3,
        Verb::Refresh => 4,
        _ => 0,
    }
}

const fn served_index(outcome: Outcome) -> Option<usize> {
    match outcome {
        Outcome::Hit => Some(0),
        Outcome::Stale => Some(1),
        Outcome::Absent => Some(2),
        Outcome::Coalesced => Some(3),
        Outcome::Loaded | Outcome::Miss => None,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn read<const N: usize>(counters: &[AtomicU64; N]) -> [u64; N] {
    std::array::from_fn(|at| counters[at].load(Ordering::Relaxed))
}

/// Hits at the nearest level, as one thread counts them.
#[derive(Clone, Copy)]
pub(crate) struct Hot<'a>(Row<'a, 8>);

impl Hot<'_> {
    /// Whether the next one should be timed.
    #[inline]
    pub(crate) fn are_sampled(self, verb: Verb) -> bool {
        self.0.get(verb_index(verb)) % SAMPLE == SAMPLE - 1
    }

    /// A fresh hit, on an entry whose load took `cost_us`: the whole of its accounting. What it saves is added for the
    /// first hits one by one, then for one in [`SAMPLE`] that stands for the others.
    #[inline]
    pub(crate) fn add(self, verb: Verb, cost_us: u32) {
        let before = self.0.add(verb_index(verb), 1);
        if before < SAMPLE || before % SAMPLE == SAMPLE - 1 {
            let hits = if before < SAMPLE { 1 } else { SAMPLE };
            self.0.add(SAVED, hits * u64::from(cost_us));
        }
    }
}

impl Stats {
    pub(crate) fn new(
        info: CacheInfo,
        stores: Vec<Option<Arc<dyn ObjectStore>>>,
        has_backplane: bool,
    ) -> Self {
        let levels = info.levels().len();
        Self {
            hot: Default::default(),
            cold: Counters::new(
                COLD_LEVELS + levels * LEVEL_OUTCOMES + LOOKUPS.len() * SERVED.len() * (levels + 1),
            ),
            missed: std::array::from_fn(|_| AtomicU64::new(0)),
            errors: Default::default(),
            invalidations: Default::default(),
            levels: (0..levels).map(|_| Level::default()).collect(),
            stores: stores.into(),
            gone: Gone::default(),
            loads: AtomicU64::new(0),
            load_errors: AtomicU64::new(0),
            load_micros: AtomicU64::new(0),
            overtaken: AtomicU64::new(0),
            flights: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            stored_late: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            has_backplane,
            backplane: Default::default(),
            over: AtomicBool::new(false),
            info,
        }
    }

    /// The cache these are of.
    pub fn info(&self) -> &CacheInfo {
        &self.info
    }

    /// Whether the cache is gone: nothing is counted any more, whoever still holds the counters.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// The store of the nearest level, where that is in process: caches may share one.
    pub fn store(&self) -> Option<&Arc<dyn ObjectStore>> {
        self.stores.first()?.as_ref()
    }

    /// Where this thread counts its hits at the nearest level.
    #[inline]
    pub(crate) fn hot(&self) -> Hot<'_> {
        Hot(Row::mine(&self.hot))
    }

    /// Look-ups that ended alike. `reason` is that of a miss.
    pub(crate) fn lookups(
        &self,
        verb: Verb,
        outcome: Outcome,
        level: Option<u8>,
        reason: MissReason,
        by: usize,
    ) {
        match served_index(outcome) {
            Some(outcome) => self.cold.add(self.served_at(verb, outcome, level), by as u64),
            None => {
                let at = verb_index(verb) * MissReason::ALL.len() + reason as usize;
                self.missed[at].fetch_add(by as u64, Ordering::Relaxed);
            }
        }
    }

    fn served_at(&self, verb: Verb, outcome: usize, level: Option<u8>) -> usize {
        let levels = self.levels.len();
        let level = level.map_or(levels, usize::from).min(levels);
        let from = COLD_LEVELS + levels * LEVEL_OUTCOMES;
        from + (verb_index(verb) * SERVED.len() + outcome) * (levels + 1) + level
    }

    /// Time that a look-up would have taken, had no level served it.
    pub(crate) fn saved(&self, cost: Duration) {
        if !cost.is_zero() {
            self.cold.add(COLD_SAVED, micros(cost));
        }
    }

    pub(crate) fn operation(&self, verb: Verb) {
        self.cold.add(verb as usize, 1);
    }

    pub(crate) fn level(&self, level: u8, outcome: LevelOutcome, by: usize) {
        self.cold.add(COLD_LEVELS + usize::from(level) * LEVEL_OUTCOMES + outcome as usize, by as u64);
    }

    pub(crate) fn error(&self, kind: ErrorKind) {
        self.errors[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn invalidated(&self, scope: Scope, by: usize) {
        self.invalidations[scope as usize].fetch_add(by as u64, Ordering::Relaxed);
    }

    pub(crate) fn fault(&self, level: u8, fault: LevelFault) {
        self.levels[usize::from(level)].faults[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn unreadable(&self, level: u8, reason: Unreadable) {
        self.levels[usize::from(level)].unreadable[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn too_large(&self, level: u8) {
        self.levels[usize::from(level)].too_large.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn not_encoded(&self, level: u8) {
        self.levels[usize::from(level)].not_encoded.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn evicted(&self, level: u8, key_hash: u64, cause: EvictionCause) {
        let level = &self.levels[usize::from(level)];
        let (counter, why) = match cause {
            EvictionCause::Expired => (&level.evicted_expired, Cause::Expired),
            EvictionCause::Size => (&level.evicted_size, Cause::Evicted),
        };
        self.gone.left(key_hash, why);
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn breaker(&self, level: u8, state: BreakerState) {
        let level = &self.levels[usize::from(level)];
        let before = level.breaker.swap(state as u8, Ordering::Relaxed);
        // A probe that fails leaves it as open as it was.
        if state == BreakerState::Open && before == BreakerState::Closed as u8 {
            level.opened.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Why a key that no level has is not there, as far as this node knows.
    pub(crate) fn why_gone(&self, key_hash: u64) -> MissReason {
        match self.gone.why(key_hash) {
            None => MissReason::Absent,
            Some(Cause::Evicted) => MissReason::Evicted,
            Some(Cause::Expired) => MissReason::Expired,
            Some(Cause::Invalidated) => MissReason::Invalidated,
        }
    }

    pub(crate) fn on_backplane(&self, what: OnBackplane) {
        self.backplane[what as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn load(&self, elapsed: Duration, end: LoadEnd) {
        self.load_micros.fetch_add(micros(elapsed), Ordering::Relaxed);
        if matches!(end, LoadEnd::Failed(_)) {
            self.load_errors.fetch_add(1, Ordering::Relaxed);
        }
        self.loads.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn overtaken(&self) {
        self.overtaken.fetch_add(1, Ordering::Relaxed);
    }

    /// Values that a level has taken after all.
    pub(crate) fn stored_late(&self, values: usize) {
        self.stored_late.fetch_add(values as u64, Ordering::Relaxed);
    }

    pub(crate) fn lost(&self) -> &AtomicU64 {
        &self.lost
    }

    pub(crate) fn flights(&self) -> &AtomicUsize {
        &self.flights
    }

    pub(crate) fn pending(&self) -> &AtomicUsize {
        &self.pending
    }

    /// Reads all counters. Each look-up is in exactly one outcome at any time, so sums agree also while calls run.
    pub fn snapshot(&self) -> Snapshot {
        // Once, so that what is counted in several places agrees.
        let hot: [u64; SAVED + 1] =
            std::array::from_fn(|at| self.hot.iter().map(|stripe| stripe[at].load(Ordering::Relaxed)).sum());
        let hot_hits: u64 = hot[..SAVED].iter().sum();
        let missed = read(&self.missed);
        let reasons = MissReason::ALL.len();
        let levels = self.levels.len();
        let mut served = Vec::with_capacity(LOOKUPS.len() * (SERVED.len() + 1) * (levels + 1));
        for verb in LOOKUPS {
            let at_verb = verb_index(verb);
            for (at, outcome) in SERVED.into_iter().enumerate() {
                for level in (0..levels).map(Some).chain([None]) {
                    let by = level.and_then(|l| u8::try_from(l).ok());
                    let mut count = self.cold.sum(self.served_at(verb, at, by));
                    if outcome == Outcome::Hit && level == Some(0) {
                        count += hot[at_verb];
                    }
                    served.push(Served { verb, outcome, level, count });
                }
            }
            let count = missed[at_verb * reasons..][..reasons].iter().sum();
            served.push(Served { verb, outcome: Outcome::Miss, level: None, count });
        }
        let [sent, received, noise, gaps] = read(&self.backplane);
        Snapshot {
            operations: Verb::ALL
                .iter()
                .map(|verb| {
                    let cold = self.cold.sum(*verb as usize);
                    let hot = match verb {
                        Verb::Get | Verb::GetOrSet => hot[verb_index(*verb)],
                        _ => 0,
                    };
                    (*verb, cold + hot)
                })
                .collect(),
            served,
            miss_reasons: MissReason::ALL
                .map(|reason| (reason, missed.iter().skip(reason as usize).step_by(reasons).sum())),
            errors: std::array::from_fn(|at| (ErrorKind::ALL[at], self.errors[at].load(Ordering::Relaxed))),
            invalidations: std::array::from_fn(|at| {
                (Scope::ALL[at], self.invalidations[at].load(Ordering::Relaxed))
            }),
            levels: (0..levels).map(|at| self.level_snapshot(at, hot_hits)).collect(),
            loads: self.loads.load(Ordering::Relaxed),
            load_errors: self.load_errors.load(Ordering::Relaxed),
            load_time: Duration::from_micros(self.load_micros.load(Ordering::Relaxed)),
            time_saved: Duration::from_micros(self.cold.sum(COLD_SAVED) + hot[SAVED]),
            overtaken: self.overtaken.load(Ordering::Relaxed),
            flights: self.flights.load(Ordering::Relaxed),
            pending: self.pending.load(Ordering::Relaxed),
            stored_late: self.stored_late.load(Ordering::Relaxed),
            values_lost: self.lost.load(Ordering::Relaxed),
            backplane: self.has_backplane.then_some(BackplaneSnapshot { sent, received, noise, gaps }),
        }
    }

    fn level_snapshot(&self, at: usize, hot_hits: u64) -> LevelSnapshot {
        let level = &self.levels[at];
        let mut outcomes =
            LevelOutcome::ALL.map(|o| (o, self.cold.sum(COLD_LEVELS + at * LEVEL_OUTCOMES + o as usize)));
        if at == 0 {
            outcomes[LevelOutcome::Hit as usize].1 += hot_hits;
        }
        let store = self.stores[at].as_ref();
        LevelSnapshot {
            outcomes,
            evicted_expired: level.evicted_expired.load(Ordering::Relaxed),
            evicted_size: level.evicted_size.load(Ordering::Relaxed),
            faults: LevelFault::ALL.map(|f| (f, level.faults[f as usize].load(Ordering::Relaxed))),
            unreadable: Unreadable::ALL.map(|r| (r, level.unreadable[r as usize].load(Ordering::Relaxed))),
            too_large: level.too_large.load(Ordering::Relaxed),
            not_encoded: level.not_encoded.load(Ordering::Relaxed),
            breaker: match level.breaker.load(Ordering::Relaxed) {
                0 => BreakerState::Closed,
                1 => BreakerState::HalfOpen,
                _ => BreakerState::Open,
            },
            breaker_opened: level.opened.load(Ordering::Relaxed),
            entries: store.map(|s| s.len()),
            weight: store.filter(|s| s.weighs()).map(|s| s.weight()),
            capacity: store.and_then(|s| s.capacity()),
        }
    }
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stats").field("cache", &self.info.name()).finish_non_exhaustive()
    }
}
