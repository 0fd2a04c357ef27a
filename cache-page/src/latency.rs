//! How long calls took, by what came of them, over the last one to two minutes.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cache_core::{Event, Outcome, Verb, figures::Durations};

/// What a call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct What {
    /// An outcome's word, `error`, `batch`, or a verb's that is no look-up.
    pub(crate) word: &'static str,
    /// The level that served it, 0 being the nearest.
    pub(crate) level: Option<u8>,
}

/// A row for each level and [`Outcome`] that levels serve, then the others.
const SERVED: [Outcome; 3] = [Outcome::Hit, Outcome::Stale, Outcome::Absent];
const OTHERS: [&str; 5] = ["coalesced", "loaded", "miss", "batch", "error"];

pub(crate) struct Latencies {
    rows: Box<[OnceLock<Box<Row>>]>,
    levels: usize,
    /// Which of a row's windows is written to.
    now: AtomicUsize,
}

/// The present minute and the one before, by turns.
type Row = [Durations; 2];

/// What of one row is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) count: u64,
    pub(crate) mean: Duration,
    pub(crate) p50: Duration,
    pub(crate) p95: Duration,
    pub(crate) p99: Duration,
}

impl Latencies {
    pub(crate) fn new(levels: usize) -> Self {
        let rows = SERVED.len() * levels + OTHERS.len() + Verb::ALL.len();
        Self { rows: (0..rows).map(|_| OnceLock::new()).collect(), levels, now: AtomicUsize::new(0) }
    }

    pub(crate) fn record(&self, event: &Event<'_>) {
        let Event::Operation { verb, outcome, level, elapsed, weight, error, .. } = event else { return };
        let others = SERVED.len() * self.levels;
        let at = match (error, outcome, level) {
            (Some(_), ..) => others + 4,
            // Of a cache that another one of its name has replaced here, which had more levels.
            (None, _, Some(level)) if usize::from(*level) >= self.levels => return,
            (None, Some(outcome), Some(level)) => {
                let Some(served) = SERVED.iter().position(|served| served == outcome) else { return };
                usize::from(*level) * SERVED.len() + served
            }
            (None, Some(Outcome::Coalesced), None) => others,
            (None, Some(Outcome::Loaded), None) => others + 1,
            (None, Some(Outcome::Miss), None) => others + 2,
            (None, Some(_), None) => return,
            (None, None, _) if matches!(verb, Verb::GetMany | Verb::GetOrSetMany) => others + 3,
            (None, None, _) => others + OTHERS.len() + *verb as usize,
        };
        let Some(row) = self.rows.get(at) else { return };
        let now = &row.get_or_init(Box::default)[self.now.load(Ordering::Relaxed) % 2];
        now.record([(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), *weight)]);
    }

    /// Lets go of what is older than a minute. Calls that end meanwhile may be lost.
    pub(crate) fn turn(&self) {
        let next = (self.now.load(Ordering::Relaxed) + 1) % 2;
        for row in self.rows.iter().filter_map(OnceLock::get) {
            row[next].clear();
        }
        self.now.store(next, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Vec<(What, Times)> {
        let seen = self.rows.iter().enumerate().filter_map(|(at, row)| Some((at, Times::of(row.get()?)?)));
        let mut all: Vec<_> = seen.map(|(at, times)| (self.what(at), times)).collect();
        // Levels nearest first, what they do not serve after them.
        all.sort_by_key(|(what, _)| what.level.map_or(usize::MAX, usize::from));
        all
    }

    fn what(&self, at: usize) -> What {
        let others = SERVED.len() * self.levels;
        match at.checked_sub(others) {
            None => {
                What { word: SERVED[at % SERVED.len()].as_str(), level: u8::try_from(at / SERVED.len()).ok() }
            }
            Some(other) => {
                let verb = |at: usize| Verb::ALL.get(at).map_or("", |verb| verb.as_str());
                let word = OTHERS.get(other).copied().unwrap_or_else(|| verb(other - OTHERS.len()));
                What { word, level: None }
            }
        }
    }
}

impl Times {
    fn of(row: &Row) -> Option<Self> {
        let all = Durations::read(row)?;
        let [p50, p95, p99] = [50, 95, 99].map(|percent| all.at(percent));
        Some(Self { count: all.count, mean: all.mean, p50, p95, p99 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(outcome: Outcome, level: Option<u8>, elapsed: Duration, weight: u32) -> Event<'static> {
        let (verb, outcome) = (Verb::Get, Some(outcome));
        Event::Operation { verb, outcome, level, elapsed, keys: 1, weight, error: None }
    }

    #[test]
    fn a_level_that_is_not_there_is_taken_for_nothing_else() {
        let latencies = Latencies::new(1);
        latencies.record(&operation(Outcome::Hit, Some(1), Duration::from_micros(1), 1));
        assert!(latencies.read().is_empty());
    }

    #[test]
    fn rows_are_by_outcome_and_level_and_end_after_two_turns() {
        let latencies = Latencies::new(2);
        for micros in 1..=100 {
            latencies.record(&operation(Outcome::Hit, Some(0), Duration::from_micros(micros), 256));
        }
        latencies.record(&operation(Outcome::Hit, Some(1), Duration::from_millis(1), 1));
        latencies.record(&operation(Outcome::Loaded, None, Duration::from_millis(20), 1));
        let read = latencies.read();
        let words: Vec<_> = read.iter().map(|(what, _)| (what.word, what.level)).collect();
        assert_eq!(words, [("hit", Some(0)), ("hit", Some(1)), ("loaded", None)]);
        let (_, hits) = &read[0];
        assert_eq!(hits.count, 25_600);
        assert!(
            (45..=55).contains(&hits.p50.as_micros()) && (94..=104).contains(&hits.p99.as_micros()),
            "{hits:?}"
        );
        latencies.turn();
        assert_eq!(latencies.read().len(), 3);
        latencies.turn();
        assert_eq!(latencies.read().len(), 0);
    }
}
