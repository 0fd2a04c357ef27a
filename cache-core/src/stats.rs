//! Exact counts of a cache, cheap enough to be always on.
//!
//! A hit at the nearest level is one relaxed add on a stripe of its own. Telemetry reads the sums when it collects.

use std::{
    cell::Cell,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crossbeam_utils::CachePadded;

use crate::{BreakerState, CacheInfo, EvictionCause, LoadEnd, ObjectStore, Outcome, Verb};

const STRIPES: usize = 16;
/// One look-up in this many that the nearest level serves is timed.
pub(crate) const SAMPLE: u64 = 64;

/// The verbs that look up.
const LOOKUPS: [Verb; 5] = [Verb::Get, Verb::GetOrSet, Verb::GetMany, Verb::GetOrSetMany, Verb::Refresh];
const OUTCOMES: usize = 5;

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
    pub const ALL: [Self; 8] = [
        Self::Hit,
        Self::Stale,
        Self::Negative,
        Self::Miss,
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
            Self::Invalidated => "invalidated",
            Self::Unreadable => "unreadable",
            Self::Error => "error",
            Self::Skipped => "skipped",
        }
    }
}

const LEVEL_OUTCOMES: usize = LevelOutcome::ALL.len();

#[derive(Default)]
struct Level {
    outcomes: [AtomicU64; LEVEL_OUTCOMES],
    evicted_expired: AtomicU64,
    evicted_size: AtomicU64,
    breaker: AtomicU8,
}

/// The counters of one cache. Observers get it when the cache is built and read it when they collect.
pub struct Stats {
    info: CacheInfo,
    /// Hits at the nearest level by look-up verb.
    hot: [CachePadded<[AtomicU64; 8]>; STRIPES],
    /// `[verb][outcome][level or none]`.
    lookups: Box<[AtomicU64]>,
    /// Calls by verb, but for hot hits of single look-ups.
    operations: [AtomicU64; Verb::ALL.len()],
    levels: Box<[Level]>,
    stores: Box<[Option<Arc<dyn ObjectStore>>]>,
    loads: AtomicU64,
    load_errors: AtomicU64,
    load_micros: AtomicU64,
    overtaken: AtomicU64,
    flights: AtomicUsize,
    pending: AtomicUsize,
}

thread_local! {
    static STRIPE: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    STRIPE.with(|cell| {
        let at = cell.get();
        if at < STRIPES {
            return at;
        }
        let at = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
        cell.set(at);
        at
    })
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

const fn outcome_index(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Hit => 0,
        Outcome::Stale => 1,
        Outcome::Absent => 2,
        Outcome::Coalesced => 3,
        Outcome::Loaded | Outcome::Miss => 4,
    }
}

impl Stats {
    pub(crate) fn new(info: CacheInfo, stores: Vec<Option<Arc<dyn ObjectStore>>>) -> Self {
        let levels = info.levels().len();
        Self {
            hot: Default::default(),
            lookups: (0..LOOKUPS.len() * OUTCOMES * (levels + 1)).map(|_| AtomicU64::new(0)).collect(),
            operations: Default::default(),
            levels: (0..levels).map(|_| Level::default()).collect(),
            stores: stores.into(),
            loads: AtomicU64::new(0),
            load_errors: AtomicU64::new(0),
            load_micros: AtomicU64::new(0),
            overtaken: AtomicU64::new(0),
            flights: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            info,
        }
    }

    /// The cache these are of.
    pub fn info(&self) -> &CacheInfo {
        &self.info
    }

    /// Whether the next hot hit on this thread should be timed.
    #[inline]
    pub(crate) fn sample(&self, verb: Verb) -> bool {
        self.hot[stripe()][verb_index(verb)].load(Ordering::Relaxed) % SAMPLE == SAMPLE - 1
    }

    /// A fresh hit at the nearest level: the whole of its accounting.
    #[inline]
    pub(crate) fn hot_hit(&self, verb: Verb) {
        self.hot[stripe()][verb_index(verb)].fetch_add(1, Ordering::Relaxed);
    }

    fn lookup_cell(&self, verb: Verb, outcome: Outcome, level: Option<u8>) -> &AtomicU64 {
        let levels = self.levels.len() + 1;
        let level = level.map_or(levels - 1, usize::from).min(levels - 1);
        &self.lookups[(verb_index(verb) * OUTCOMES + outcome_index(outcome)) * levels + level]
    }

    pub(crate) fn lookup(&self, verb: Verb, outcome: Outcome, level: Option<u8>, by: u64) {
        self.lookup_cell(verb, outcome, level).fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn operation(&self, verb: Verb) {
        self.operations[verb as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn level(&self, level: u8, outcome: LevelOutcome) {
        self.levels[usize::from(level)].outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn evicted(&self, level: u8, cause: EvictionCause) {
        let level = &self.levels[usize::from(level)];
        match cause {
            EvictionCause::Expired => &level.evicted_expired,
            EvictionCause::Size => &level.evicted_size,
        }
        .fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn breaker(&self, level: u8, state: BreakerState) {
        self.levels[usize::from(level)].breaker.store(state as u8, Ordering::Relaxed);
    }

    pub(crate) fn load(&self, elapsed: Duration, end: LoadEnd) {
        self.load_micros.fetch_add(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if matches!(end, LoadEnd::Failed(_)) {
            self.load_errors.fetch_add(1, Ordering::Relaxed);
        }
        self.loads.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn overtaken(&self) {
        self.overtaken.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn flights(&self) -> &AtomicUsize {
        &self.flights
    }

    pub(crate) fn pending(&self) -> &AtomicUsize {
        &self.pending
    }

    /// Reads all counters. Each look-up is in exactly one outcome at any time, so sums agree also while calls run.
    pub fn snapshot(&self) -> Snapshot {
        let hot = |verb: Verb| -> u64 {
            self.hot.iter().map(|stripe| stripe[verb_index(verb)].load(Ordering::Relaxed)).sum()
        };
        let levels = self.levels.len();
        let mut served = Vec::new();
        for verb in LOOKUPS {
            for outcome in [Outcome::Hit, Outcome::Stale, Outcome::Absent, Outcome::Coalesced, Outcome::Miss]
            {
                for level in (0..levels).map(Some).chain([None]) {
                    let at = level.and_then(|l| u8::try_from(l).ok());
                    let mut count = self.lookup_cell(verb, outcome, at).load(Ordering::Relaxed);
                    if outcome == Outcome::Hit && level == Some(0) {
                        count += hot(verb);
                    }
                    served.push(Served { verb, outcome, level, count });
                }
            }
        }
        let hot_hits: u64 = LOOKUPS.iter().map(|v| hot(*v)).sum();
        Snapshot {
            operations: Verb::ALL
                .iter()
                .map(|verb| {
                    let cold = self.operations[*verb as usize].load(Ordering::Relaxed);
                    let hot = if matches!(verb, Verb::Get | Verb::GetOrSet) { hot(*verb) } else { 0 };
                    (*verb, cold + hot)
                })
                .collect(),
            served,
            levels: self
                .levels
                .iter()
                .enumerate()
                .map(|(at, level)| {
                    let mut outcomes =
                        LevelOutcome::ALL.map(|o| (o, level.outcomes[o as usize].load(Ordering::Relaxed)));
                    if at == 0 {
                        outcomes[LevelOutcome::Hit as usize].1 += hot_hits;
                    }
                    let store = self.stores[at].as_ref();
                    LevelSnapshot {
                        outcomes,
                        evicted_expired: level.evicted_expired.load(Ordering::Relaxed),
                        evicted_size: level.evicted_size.load(Ordering::Relaxed),
                        breaker: match level.breaker.load(Ordering::Relaxed) {
                            0 => BreakerState::Closed,
                            1 => BreakerState::HalfOpen,
                            _ => BreakerState::Open,
                        },
                        entries: store.map(|s| s.len()),
                        weight: store.filter(|s| s.weighs()).map(|s| s.weight()),
                    }
                })
                .collect(),
            loads: self.loads.load(Ordering::Relaxed),
            load_errors: self.load_errors.load(Ordering::Relaxed),
            load_time: Duration::from_micros(self.load_micros.load(Ordering::Relaxed)),
            overtaken: self.overtaken.load(Ordering::Relaxed),
            flights: self.flights.load(Ordering::Relaxed),
            pending: self.pending.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stats").field("cache", &self.info.name()).finish_non_exhaustive()
    }
}

/// How many look-ups of one verb ended in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// The verb.
    pub verb: Verb,
    /// How they ended; look-ups answered by a load of their own count as [`Outcome::Miss`].
    pub outcome: Outcome,
    /// The level that served them.
    pub level: Option<usize>,
    /// How many.
    pub count: u64,
}

/// The counts of one level.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LevelSnapshot {
    /// What the level answered, key by key.
    pub outcomes: [(LevelOutcome, u64); LEVEL_OUTCOMES],
    /// Entries that left because their time was over.
    pub evicted_expired: u64,
    /// Entries that left because the store was full.
    pub evicted_size: u64,
    /// The breaker.
    pub breaker: BreakerState,
    /// Entries held, where the store is in process.
    pub entries: Option<u64>,
    /// Bytes held, where the store is in process and counts them.
    pub weight: Option<u64>,
}

impl LevelSnapshot {
    /// One count.
    pub fn outcome(&self, outcome: LevelOutcome) -> u64 {
        self.outcomes[outcome as usize].1
    }

    /// Keys that this level was asked for, including those that it was not sent.
    pub fn lookups(&self) -> u64 {
        self.outcomes.iter().map(|(_, n)| n).sum()
    }
}

/// All counts of a cache at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// Calls by verb.
    pub operations: Vec<(Verb, u64)>,
    /// Look-ups by verb, outcome and level; zero counts included.
    pub served: Vec<Served>,
    /// By level, nearest first.
    pub levels: Vec<LevelSnapshot>,
    /// Loads that ended.
    pub loads: u64,
    /// Loads that failed.
    pub load_errors: u64,
    /// Time spent in loads.
    pub load_time: Duration,
    /// Fills refused because something newer had overtaken them.
    pub overtaken: u64,
    /// Loads under way.
    pub flights: usize,
    /// Invalidations that a level has not acknowledged yet.
    pub pending: usize,
}

impl Snapshot {
    /// Look-ups that ended in `outcome` ([`Outcome::Loaded`] counts as [`Outcome::Miss`]).
    pub fn outcome(&self, outcome: Outcome) -> u64 {
        let outcome = if outcome == Outcome::Loaded { Outcome::Miss } else { outcome };
        self.served.iter().filter(|s| s.outcome == outcome).map(|s| s.count).sum()
    }

    /// Look-ups served fresh by a level.
    pub fn hits(&self) -> u64 {
        self.outcome(Outcome::Hit)
    }

    /// Look-ups that found nothing and did not wait for another's load.
    pub fn misses(&self) -> u64 {
        self.outcome(Outcome::Miss)
    }

    /// Look-ups served by another caller's load.
    pub fn coalesced(&self) -> u64 {
        self.outcome(Outcome::Coalesced)
    }

    /// Look-ups in all: the sum over outcomes.
    pub fn lookups(&self) -> u64 {
        self.served.iter().map(|s| s.count).sum()
    }

    /// Fresh hits served by one level.
    pub fn hits_at(&self, level: usize) -> u64 {
        self.served
            .iter()
            .filter(|s| s.outcome == Outcome::Hit && s.level == Some(level))
            .map(|s| s.count)
            .sum()
    }

    /// Hits over look-ups, 0 to 1; `None` before the first look-up.
    pub fn hit_rate(&self) -> Option<f64> {
        let all = self.lookups();
        #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
        (all > 0).then(|| self.hits() as f64 / all as f64)
    }
}
