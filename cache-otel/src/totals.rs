//! Sums over the caches of one name, for one collection.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use cache_core::{
    BackplaneSnapshot, BreakerState, ErrorKind, LevelFault, LevelOutcome, LevelSnapshot, MissReason, Outcome,
    Scope, Snapshot, Unreadable, Verb, figures::share,
};

/// What one name counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) operations: HashMap<Verb, u64>,
    pub(crate) served: HashMap<(Verb, Outcome, Option<usize>), u64>,
    pub(crate) misses: HashMap<MissReason, u64>,
    pub(crate) errors: HashMap<ErrorKind, u64>,
    pub(crate) invalidations: HashMap<Scope, u64>,
    pub(crate) levels: Vec<Level>,
    pub(crate) loads: u64,
    pub(crate) load_errors: u64,
    pub(crate) load_time: Duration,
    pub(crate) active: u64,
    pub(crate) overtaken: u64,
    pub(crate) time_saved: Duration,
    pub(crate) pending: u64,
    pub(crate) stored_late: u64,
    pub(crate) values_lost: u64,
    pub(crate) backplane: Option<BackplaneSnapshot>,
}

/// What one level counts.
#[derive(Clone, Debug)]
pub(crate) struct Level {
    pub(crate) position: Arc<str>,
    /// In some cache of this name.
    pub(crate) in_process: bool,
    /// In some cache of this name: caches of one name may differ in their levels.
    pub(crate) is_remote: bool,
    pub(crate) outcomes: HashMap<LevelOutcome, u64>,
    pub(crate) evicted_expired: u64,
    pub(crate) evicted_size: u64,
    pub(crate) faults: HashMap<LevelFault, u64>,
    pub(crate) unreadable: HashMap<Unreadable, u64>,
    pub(crate) too_large: u64,
    pub(crate) not_encoded: u64,
    pub(crate) breakers: HashMap<BreakerState, u64>,
    pub(crate) openings: u64,
    pub(crate) entries: Option<u64>,
    pub(crate) weight: Option<u64>,
}

fn size(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

impl Totals {
    pub(crate) fn of(snapshot: &Snapshot, levels: impl Iterator<Item = (Arc<str>, bool)>) -> Self {
        Self {
            operations: snapshot.operations.iter().copied().collect(),
            served: snapshot.served.iter().map(|s| ((s.verb, s.outcome, s.level), s.count)).collect(),
            misses: snapshot.miss_reasons.into_iter().collect(),
            errors: snapshot.errors.into_iter().collect(),
            invalidations: snapshot.invalidations.into_iter().collect(),
            levels: snapshot.levels.iter().zip(levels).map(|(level, at)| Level::of(level, at)).collect(),
            loads: snapshot.loads,
            load_errors: snapshot.load_errors,
            load_time: snapshot.load_time,
            active: size(snapshot.flights),
            overtaken: snapshot.overtaken,
            time_saved: snapshot.time_saved,
            pending: size(snapshot.pending),
            stored_late: snapshot.stored_late,
            values_lost: snapshot.values_lost,
            backplane: snapshot.backplane,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        add_all(&mut self.operations, &other.operations);
        add_all(&mut self.served, &other.served);
        add_all(&mut self.misses, &other.misses);
        add_all(&mut self.errors, &other.errors);
        add_all(&mut self.invalidations, &other.invalidations);
        for (at, level) in other.levels.iter().enumerate() {
            match self.levels.get_mut(at) {
                Some(mine) => mine.add(level),
                None => self.levels.push(level.clone()),
            }
        }
        self.loads += other.loads;
        self.load_errors += other.load_errors;
        self.load_time += other.load_time;
        self.active += other.active;
        self.overtaken += other.overtaken;
        self.time_saved += other.time_saved;
        self.pending += other.pending;
        self.stored_late += other.stored_late;
        self.values_lost += other.values_lost;
        if let Some(theirs) = other.backplane {
            let mine = self.backplane.get_or_insert_default();
            mine.sent += theirs.sent;
            mine.received += theirs.received;
            mine.noise += theirs.noise;
            mine.gaps += theirs.gaps;
        }
    }

    /// Without what is there now: for a cache that is gone.
    pub(crate) fn counts_only(mut self) -> Self {
        self.active = 0;
        self.pending = 0;
        for level in &mut self.levels {
            level.entries = level.entries.map(|_| 0);
            level.weight = level.weight.map(|_| 0);
            level.breakers.values_mut().for_each(|count| *count = 0);
        }
        self
    }

    pub(crate) fn outcome(&self, verb: Verb, outcome: Outcome) -> u64 {
        self.served.iter().filter(|((v, o, _), _)| (*v, *o) == (verb, outcome)).map(|(_, n)| n).sum()
    }

    pub(crate) fn all(&self, outcome: Outcome) -> u64 {
        self.served.iter().filter(|((_, o, _), _)| *o == outcome).map(|(_, n)| n).sum()
    }

    pub(crate) fn lookups(&self) -> u64 {
        self.served.values().sum()
    }

    /// Hits over look-ups; `None` before the first.
    pub(crate) fn hit_rate(&self) -> Option<f64> {
        share(self.all(Outcome::Hit), self.lookups())
    }
}

impl Level {
    fn of(level: &LevelSnapshot, (position, in_process): (Arc<str>, bool)) -> Self {
        Self {
            position,
            in_process,
            is_remote: !in_process,
            outcomes: level.outcomes.into_iter().collect(),
            evicted_expired: level.evicted_expired,
            evicted_size: level.evicted_size,
            faults: level.faults.into_iter().collect(),
            unreadable: level.unreadable.into_iter().collect(),
            too_large: level.too_large,
            not_encoded: level.not_encoded,
            // What is in process has none.
            breakers: BreakerState::ALL
                .map(|state| (state, u64::from(!in_process && state == level.breaker)))
                .into(),
            openings: level.breaker_opened,
            entries: level.entries,
            weight: level.weight,
        }
    }

    fn add(&mut self, other: &Self) {
        self.in_process |= other.in_process;
        self.is_remote |= other.is_remote;
        add_all(&mut self.outcomes, &other.outcomes);
        add_all(&mut self.faults, &other.faults);
        add_all(&mut self.unreadable, &other.unreadable);
        add_all(&mut self.breakers, &other.breakers);
        self.evicted_expired += other.evicted_expired;
        self.evicted_size += other.evicted_size;
        self.too_large += other.too_large;
        self.not_encoded += other.not_encoded;
        self.openings += other.openings;
        add_held(&mut self.entries, other.entries);
        add_held(&mut self.weight, other.weight);
    }

    pub(crate) fn asked(&self) -> u64 {
        self.outcomes.values().sum()
    }

    pub(crate) fn outcome(&self, outcome: LevelOutcome) -> u64 {
        self.outcomes.get(&outcome).copied().unwrap_or_default()
    }
}

fn add_all<K: Copy + Eq + Hash>(to: &mut HashMap<K, u64>, from: &HashMap<K, u64>) {
    for (key, count) in from {
        *to.entry(*key).or_default() += count;
    }
}

fn add_held(to: &mut Option<u64>, from: Option<u64>) {
    if let Some(from) = from {
        *to = Some(to.unwrap_or(0).saturating_add(from));
    }
}
