//! Sums over the caches of one name, for one collection.

use std::{collections::HashMap, sync::Arc};

use cache_core::{LevelOutcome, LevelSnapshot, Outcome, Snapshot, Verb};

/// What one name counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) operations: HashMap<Verb, u64>,
    pub(crate) served: HashMap<(Verb, Outcome, Option<usize>), u64>,
    pub(crate) levels: Vec<Level>,
    pub(crate) loads: u64,
    pub(crate) load_errors: u64,
}

/// What one level counts.
#[derive(Clone, Debug)]
pub(crate) struct Level {
    pub(crate) position: Arc<str>,
    pub(crate) outcomes: HashMap<LevelOutcome, u64>,
    pub(crate) evicted_expired: u64,
    pub(crate) evicted_size: u64,
    pub(crate) entries: Option<u64>,
    pub(crate) weight: Option<u64>,
}

impl Totals {
    pub(crate) fn of(snapshot: &Snapshot, positions: impl Iterator<Item = Arc<str>>) -> Self {
        Self {
            operations: snapshot.operations.iter().copied().collect(),
            served: snapshot.served.iter().map(|s| ((s.verb, s.outcome, s.level), s.count)).collect(),
            levels: snapshot.levels.iter().zip(positions).map(|(level, at)| Level::of(level, at)).collect(),
            loads: snapshot.loads,
            load_errors: snapshot.load_errors,
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        add_all(&mut self.operations, &other.operations);
        add_all(&mut self.served, &other.served);
        for (at, level) in other.levels.iter().enumerate() {
            match self.levels.get_mut(at) {
                Some(mine) => mine.add(level),
                None => self.levels.push(level.clone()),
            }
        }
        self.loads += other.loads;
        self.load_errors += other.load_errors;
    }

    /// Without what is held now: for a cache that is gone.
    pub(crate) fn counts_only(mut self) -> Self {
        for level in &mut self.levels {
            level.entries = level.entries.map(|_| 0);
            level.weight = level.weight.map(|_| 0);
        }
        self
    }

    pub(crate) fn outcome(&self, verb: Verb, outcome: Outcome) -> u64 {
        self.served.iter().filter(|((v, o, _), _)| (*v, *o) == (verb, outcome)).map(|(_, n)| n).sum()
    }

    /// Hits over look-ups; `None` before the first.
    pub(crate) fn hit_rate(&self) -> Option<f64> {
        let all: u64 = self.served.values().sum();
        let hits: u64 = self.served.iter().filter(|((_, o, _), _)| *o == Outcome::Hit).map(|(_, n)| n).sum();
        #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
        (all > 0).then(|| hits as f64 / all as f64)
    }
}

impl Level {
    fn of(level: &LevelSnapshot, position: Arc<str>) -> Self {
        Self {
            position,
            outcomes: level.outcomes.iter().copied().collect(),
            evicted_expired: level.evicted_expired,
            evicted_size: level.evicted_size,
            entries: level.entries,
            weight: level.weight,
        }
    }

    fn add(&mut self, other: &Self) {
        add_all(&mut self.outcomes, &other.outcomes);
        self.evicted_expired += other.evicted_expired;
        self.evicted_size += other.evicted_size;
        add_held(&mut self.entries, other.entries);
        add_held(&mut self.weight, other.weight);
    }
}

fn add_all<K: Copy + Eq + std::hash::Hash>(to: &mut HashMap<K, u64>, from: &HashMap<K, u64>) {
    for (key, count) in from {
        *to.entry(*key).or_default() += count;
    }
}

fn add_held(to: &mut Option<u64>, from: Option<u64>) {
    if let Some(from) = from {
        *to = Some(to.unwrap_or(0).saturating_add(from));
    }
}
