//! How long calls took, by what came of them, over the last one to two minutes.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use cache_core::{Event, Outcome, Verb};

/// Buckets of one power of two: the width of one is 1/16 of its value, so percentiles are right to about 3 %.
const STEPS: u32 = 16;
/// Up to 2^40 ns, about 18 minutes.
const BUCKETS: usize = 37 * STEPS as usize;

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

#[derive(Default)]
struct Row([Window; 2]);

struct Window {
    /// With their weights: memory that many threads hit has four billion of them within a minute.
    buckets: Box<[AtomicU64]>,
    count: AtomicU64,
    nanos: AtomicU64,
}

impl Default for Window {
    fn default() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), count: 0.into(), nanos: 0.into() }
    }
}

/// What of one row is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) count: u64,
    pub(crate) mean: Duration,
    pub(crate) p50: Duration,
    pub(crate) p95: Duration,
    pub(crate) p99: Duration,
}

fn bucket(nanos: u64) -> usize {
    // The first 16 nanoseconds have a bucket each.
    let high = (63 - (nanos | 15).leading_zeros()).saturating_sub(3);
    let low = if high == 0 { nanos } else { (nanos >> (high - 1)) & u64::from(STEPS - 1) };
    let at = u64::from(high * STEPS) + low;
    usize::try_from(at).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The middle of a bucket.
fn nanos(bucket: usize) -> u64 {
    let at = u32::try_from(bucket).unwrap_or(0);
    let (high, low) = (at / STEPS, u64::from(at % STEPS));
    if high == 0 { low } else { ((u64::from(STEPS) + low) << (high - 1)) + (1u64 << (high - 1)) / 2 }
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
        let window = &row.get_or_init(Box::default).0[self.now.load(Ordering::Relaxed) % 2];
        let nanos = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        window.buckets[bucket(nanos)].fetch_add((*weight).into(), Ordering::Relaxed);
        window.count.fetch_add((*weight).into(), Ordering::Relaxed);
        window.nanos.fetch_add(nanos.saturating_mul((*weight).into()), Ordering::Relaxed);
    }

    /// Lets go of what is older than a minute. Calls that end meanwhile may be lost.
    pub(crate) fn turn(&self) {
        let next = (self.now.load(Ordering::Relaxed) + 1) % 2;
        for row in self.rows.iter().filter_map(OnceLock::get) {
            let window = &row.0[next];
            window.buckets.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
            window.count.store(0, Ordering::Relaxed);
            window.nanos.store(0, Ordering::Relaxed);
        }
        self.now.store(next, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Vec<(What, Times)> {
        let seen = self.rows.iter().enumerate().filter_map(|(at, row)| Some((at, row.get()?.read()?)));
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

impl Row {
    fn read(&self) -> Option<Times> {
        let sum = |read: fn(&Window) -> &AtomicU64| -> u64 {
            self.0.iter().map(|window| read(window).load(Ordering::Relaxed)).sum()
        };
        let (count, all) = (sum(|window| &window.count), sum(|window| &window.nanos));
        if count == 0 {
            return None;
        }
        let buckets: Vec<u64> = (0..BUCKETS)
            .map(|at| self.0.iter().map(|window| window.buckets[at].load(Ordering::Relaxed)).sum())
            .collect();
        let counted: u64 = buckets.iter().sum();
        let at = |percent: u64| {
            let rank = (counted * percent).div_ceil(100).max(1);
            let mut seen = 0;
            let bucket = buckets.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            Duration::from_nanos(nanos(bucket.unwrap_or_default()))
        };
        Some(Times { count, mean: Duration::from_nanos(all / count), p50: at(50), p95: at(95), p99: at(99) })
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
    fn buckets_are_in_order_and_narrow() {
        let mut last = 0;
        for n in (0..60).flat_map(|power| [1u64 << power, (1 << power) + (1 << power) / 3]) {
            let at = bucket(n);
            assert!(at >= last, "{n}");
            last = at;
            if n < 1 << 39 {
                let (n, middle) = (n as f64, nanos(at) as f64);
                assert!((n - middle).abs() <= n * 0.05 + 0.5, "{n} {middle}");
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn more_calls_than_four_billion_are_not_forgotten() {
        let latencies = Latencies::new(1);
        for _ in 0..2 {
            latencies.record(&operation(Outcome::Hit, Some(0), Duration::from_micros(1), 1 << 31));
        }
        latencies.record(&operation(Outcome::Hit, Some(0), Duration::from_secs(1), 1));
        let (_, times) = latencies.read().remove(0);
        assert_eq!(times.count, (1 << 32) + 1);
        assert!(times.p99 < Duration::from_micros(2), "{times:?}");
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
