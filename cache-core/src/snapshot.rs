//! All counts of a cache at one moment.

use std::time::Duration;

use crate::{
    BreakerState, ErrorKind, LevelFault, LevelOutcome, MissReason, Outcome, Scope, Unreadable, Verb,
    figures::share,
};

/// How many look-ups of one verb ended in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
    pub outcomes: [(LevelOutcome, u64); LevelOutcome::ALL.len()],
    /// Entries that left because their time was over.
    pub evicted_expired: u64,
    /// Entries that left because the store was full.
    pub evicted_size: u64,
    /// Calls to the level that failed, by how.
    pub faults: [(LevelFault, u64); LevelFault::ALL.len()],
    /// Entries that could not be read, by why.
    pub unreadable: [(Unreadable, u64); Unreadable::ALL.len()],
    /// Values that were not sent because they are over the level's limit.
    pub too_large: u64,
    /// Values that could not be encoded for it.
    pub not_encoded: u64,
    /// The breaker.
    pub breaker: BreakerState,
    /// How often the breaker has opened.
    pub breaker_opened: u64,
    /// Entries held, where the store is in process.
    pub entries: Option<u64>,
    /// Bytes held, where the store is in process and counts them.
    pub weight: Option<u64>,
    /// The most that it holds, where the store is in process and says so: bytes where it counts them, else entries.
    pub capacity: Option<u64>,
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

/// What a cache's backplane has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackplaneSnapshot {
    /// Messages that the channel has taken.
    pub sent: u64,
    /// Messages of other nodes that have been applied.
    pub received: u64,
    /// What was no message of this release.
    pub noise: u64,
    /// Times that messages may have been lost.
    pub gaps: u64,
}

/// All counts of a cache at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// Calls by verb.
    pub operations: Vec<(Verb, u64)>,
    /// Look-ups by verb, outcome and level; zero counts included.
    pub served: Vec<Served>,
    /// Misses by their reason: each has exactly one.
    pub miss_reasons: [(MissReason, u64); MissReason::ALL.len()],
    /// Calls that ended with an error, by its kind. Those that a closed cache refused are among them.
    pub errors: [(ErrorKind, u64); ErrorKind::ALL.len()],
    /// Invalidations by scope, those of other nodes not included. Keys are counted one by one.
    pub invalidations: [(Scope, u64); Scope::ALL.len()],
    /// By level, nearest first.
    pub levels: Vec<LevelSnapshot>,
    /// Loads that ended.
    pub loads: u64,
    /// Loads that failed.
    pub load_errors: u64,
    /// Time spent in loads.
    pub load_time: Duration,
    /// Time that loads would have taken, had levels not served: for each such look-up, what the load of its entry took
    /// (nothing for a value that was set). After the first hits at the nearest level, one in 256 is taken for all.
    pub time_saved: Duration,
    /// Fills refused because something newer had overtaken them.
    pub overtaken: u64,
    /// Loads under way.
    pub flights: usize,
    /// Invalidations that a level has not acknowledged yet, or the backplane not taken: one that neither has counts as two.
    pub pending: usize,
    /// Values of sets that a level had not taken and that were stored there later.
    pub stored_late: u64,
    /// Those that were not: something had come between, they had expired, or the journal had no room. Their keys were
    /// invalidated.
    pub values_lost: u64,
    /// The backplane, where the cache has one.
    pub backplane: Option<BackplaneSnapshot>,
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

    /// Misses for one reason.
    pub fn missed(&self, reason: MissReason) -> u64 {
        self.miss_reasons[reason as usize].1
    }

    /// Invalidations of one scope, those that only expire among them.
    pub fn invalidated(&self, scope: Scope) -> u64 {
        self.invalidations[scope as usize].1
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
        share(self.hits(), self.lookups())
    }
}
