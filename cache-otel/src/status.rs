//! How caches do, for code that asks.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cache_core::{BreakerState, Clock, LevelOutcome, MissReason, Moment, Outcome, Verb};

use crate::{
    series::Named,
    totals::{Level, Totals, share},
};

/// How a cache does: what its metrics say, without a backend to ask. From [`Telemetry::stats`](crate::Telemetry::stats).
///
/// Counts are since the start, latencies of the last one to two minutes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CacheStatus {
    /// Its name; `None` for all those beyond the limit of series together.
    pub name: Option<Arc<str>>,
    /// Look-ups in all.
    pub lookups: u64,
    /// Those served fresh.
    pub hits: u64,
    /// Those served past their freshness.
    pub stale: u64,
    /// Those answered by a remembered absence.
    pub negative: u64,
    /// Those that waited for another call's load.
    pub coalesced: u64,
    /// Those that found nothing.
    pub misses: u64,
    /// The same by why.
    pub miss_reasons: Vec<(MissReason, u64)>,
    /// Hits over look-ups, 0 to 1; `None` before the first.
    pub hit_rate: Option<f64>,
    /// Calls in all, by verb; those that were made at least once.
    pub operations: Vec<(Verb, u64)>,
    /// Calls that ended with an error.
    pub errors: u64,
    /// Errors over calls, 0 to 1; `None` before the first.
    pub error_rate: Option<f64>,
    /// How long calls took, by verb; those seen in the last minute or two.
    pub latency: Vec<(Verb, Latency)>,
    /// Loads that ended.
    pub loads: u64,
    /// Failed loads over loads, 0 to 1; `None` before the first.
    pub load_error_rate: Option<f64>,
    /// What a load takes on average; `None` before the first.
    pub load_mean: Option<Duration>,
    /// Time that loads would have taken, had levels not served.
    pub time_saved: Duration,
    /// Invalidations that a level has not acknowledged, or the backplane not taken.
    pub pending: u64,
    /// Its levels, nearest first.
    pub levels: Vec<LevelStatus>,
}

/// How a level does.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LevelStatus {
    /// `l1`, `l2`, ...
    pub position: Arc<str>,
    /// Keys that it was asked for.
    pub asked: u64,
    /// What it had of them, fresh, 0 to 1. Conditional: only what nearer levels did not have comes here.
    pub hit_rate: Option<f64>,
    /// What it failed to answer, 0 to 1; skipped ones included.
    pub error_rate: Option<f64>,
    /// Entries held, where it is in process.
    pub entries: Option<u64>,
    /// Bytes held, where it is in process and counts them.
    pub bytes: Option<u64>,
    /// Whether its breaker keeps calls away, on any cache of this name.
    pub is_off: bool,
}

/// How long something took, over many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Latency {
    /// How many times. Hits in memory are timed 1 in 256, and counted as 256.
    pub count: u64,
    /// The mean.
    pub mean: Duration,
    /// Half of them were not above this. Percentiles are right to about 3 %.
    pub p50: Duration,
    /// Nine of ten.
    pub p90: Duration,
    /// 95 of 100.
    pub p95: Duration,
    /// 99 of 100.
    pub p99: Duration,
}

impl CacheStatus {
    pub(crate) fn of(at: &Named, totals: &Totals) -> Self {
        let calls: u64 = totals.operations.values().sum();
        let errors: u64 = totals.errors.values().sum();
        let mut operations: Vec<_> =
            totals.operations.iter().filter(|(_, n)| **n > 0).map(|(verb, n)| (*verb, *n)).collect();
        operations.sort_by_key(|(verb, _)| *verb as usize);
        let mut miss_reasons: Vec<_> = totals.misses.iter().map(|(reason, n)| (*reason, *n)).collect();
        miss_reasons.sort_by_key(|(reason, _)| *reason);
        Self {
            name: at.name.clone(),
            lookups: totals.lookups(),
            hits: totals.all(Outcome::Hit),
            stale: totals.all(Outcome::Stale),
            negative: totals.all(Outcome::Absent),
            coalesced: totals.all(Outcome::Coalesced),
            misses: totals.all(Outcome::Miss),
            miss_reasons,
            hit_rate: totals.hit_rate(),
            operations,
            errors,
            error_rate: share(errors, calls),
            latency: at.latencies.read(),
            loads: totals.loads,
            load_error_rate: share(totals.load_errors, totals.loads),
            load_mean: mean(totals.load_time, totals.loads),
            time_saved: totals.time_saved,
            pending: totals.pending,
            levels: totals.levels.iter().map(LevelStatus::of).collect(),
        }
    }
}

impl LevelStatus {
    fn of(level: &Level) -> Self {
        let failed = level.outcome(LevelOutcome::Error) + level.outcome(LevelOutcome::Skipped);
        Self {
            position: Arc::clone(&level.position),
            asked: level.asked(),
            hit_rate: share(level.outcome(LevelOutcome::Hit), level.asked()),
            error_rate: share(failed, level.asked()),
            entries: level.entries,
            bytes: level.weight,
            is_off: level.breakers.get(&BreakerState::Open).is_some_and(|n| *n > 0),
        }
    }
}

/// One line a cache, for logs and status pages.
impl fmt::Display for CacheStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: Option<f64>| match share {
            Some(share) => format!("{:.1} %", share * 100.0),
            None => "-".to_owned(),
        };
        let name = self.name.as_deref().unwrap_or("(others)");
        write!(
            f,
            "{name}: {} look-ups, hit rate {}, error rate {}",
            self.lookups,
            percent(self.hit_rate),
            percent(self.error_rate)
        )?;
        for (verb, latency) in &self.latency {
            let Latency { p50, p95, p99, .. } = latency;
            write!(f, ", {} {p50:.1?}/{p95:.1?}/{p99:.1?}", verb.as_str())?;
        }
        write!(f, ", {:.1?} saved", self.time_saved)
    }
}

/// Sixteen buckets to a doubling, in nanoseconds, up to 2^41 of them, about 37 minutes. cache-page has buckets of the same
/// widths (`latency.rs`).
const BUCKETS: usize = 38 * 16;

/// How long a call took, and for how many it stands.
#[derive(Clone, Copy, Default)]
pub(crate) struct Timed {
    pub(crate) nanos: u64,
    pub(crate) weight: u32,
}

impl Timed {
    pub(crate) fn new(elapsed: Duration, weight: u32) -> Self {
        Self { nanos: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), weight }
    }
}

/// Latencies of calls by verb, over a window that moves.
#[derive(Default)]
pub(crate) struct Latencies([OnceLock<Box<Window>>; Verb::ALL.len()]);

/// The present minute and the one before.
#[derive(Default)]
pub(crate) struct Window([Minute; 2]);

struct Minute {
    number: AtomicU64,
    nanos: AtomicU64,
    /// With their weights: memory that many threads hit has four billion of them within a minute.
    buckets: [AtomicU64; BUCKETS],
}

/// The minute that it is, never 0, which is what an unused half says. Asks the exact clock where one ends.
pub(crate) fn minute() -> u64 {
    const NANOS: u64 = 60_000_000_000;
    static END: AtomicU64 = AtomicU64::new(0);
    let clock = Clock::system();
    let mut end = END.load(Ordering::Relaxed);
    if !clock.is_before(Moment::from_nanos(end)) {
        end = (clock.now().as_nanos() / NANOS + 1) * NANOS;
        END.store(end, Ordering::Relaxed);
    }
    end / NANOS
}

fn bucket(nanos: u64) -> usize {
    if nanos < 16 {
        return usize::try_from(nanos).unwrap_or(0);
    }
    let power = nanos.ilog2();
    let within = (nanos >> (power - 4)) & 15;
    let at = usize::try_from(power - 3).unwrap_or(0) * 16 + usize::try_from(within).unwrap_or(0);
    at.min(BUCKETS - 1)
}

/// The middle of a bucket.
fn value(bucket: usize) -> Duration {
    let at = u64::try_from(bucket).unwrap_or(0);
    if at < 16 {
        return Duration::from_nanos(at);
    }
    let (power, within) = (at / 16 + 3, at % 16);
    let width = 1 << (power - 4);
    Duration::from_nanos((1 << power) + within * width + width / 2)
}

impl Default for Minute {
    fn default() -> Self {
        Self {
            number: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Window {
    pub(crate) fn record(&self, now: u64, calls: &[Timed]) {
        let minute = &self.0[usize::from(now % 2 == 1)];
        if minute.number.load(Ordering::Relaxed) != now && minute.number.swap(now, Ordering::Relaxed) != now {
            // What others record at this very moment may be lost: these numbers are for people.
            minute.nanos.store(0, Ordering::Relaxed);
            minute.buckets.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
        }
        let mut all = 0_u64;
        for Timed { nanos, weight } in calls {
            all = all.saturating_add(nanos.saturating_mul(u64::from(*weight)));
            minute.buckets[bucket(*nanos)].fetch_add(u64::from(*weight), Ordering::Relaxed);
        }
        minute.nanos.fetch_add(all, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, now: u64) -> Option<Latency> {
        let live: Vec<&Minute> =
            self.0.iter().filter(|m| m.number.load(Ordering::Relaxed) + 1 >= now).collect();
        let counts: Vec<u64> =
            (0..BUCKETS).map(|at| live.iter().map(|m| m.buckets[at].load(Ordering::Relaxed)).sum()).collect();
        let count: u64 = counts.iter().sum();
        if count == 0 {
            return None;
        }
        let nanos: u64 = live.iter().map(|m| m.nanos.load(Ordering::Relaxed)).sum();
        let at = |percent: u64| {
            let rank = (count * percent).div_ceil(100).max(1);
            let mut seen = 0;
            let found = counts.iter().position(|n| {
                seen += n;
                seen >= rank
            });
            value(found.unwrap_or(0))
        };
        let mean = Duration::from_nanos(nanos / count);
        Some(Latency { count, mean, p50: at(50), p90: at(90), p95: at(95), p99: at(99) })
    }
}

impl Latencies {
    pub(crate) fn record(&self, verb: Verb, calls: &[Timed]) {
        let window = self.0[verb as usize].get_or_init(Box::default);
        window.record(minute(), calls);
    }

    fn read(&self) -> Vec<(Verb, Latency)> {
        let now = minute();
        let seen = Verb::ALL.into_iter().zip(&self.0);
        seen.filter_map(|(verb, window)| Some((verb, window.get()?.read(now)?))).collect()
    }
}

/// Of so many; `Duration` itself divides by 32 bits only.
#[allow(clippy::cast_precision_loss, reason = "a time for people")]
fn mean(all: Duration, count: u64) -> Option<Duration> {
    (count > 0).then(|| all.div_f64(count as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_known_of_any_number_of_loads() {
        assert_eq!(mean(Duration::ZERO, 0), None);
        assert_eq!(mean(Duration::from_secs(1), 4), Some(Duration::from_millis(250)));
        // Four billion and more, of a millisecond each.
        assert_eq!(mean(Duration::from_millis(1 << 33), 1 << 33), Some(Duration::from_millis(1)));
    }

    #[test]
    fn more_calls_than_four_billion_are_not_forgotten() {
        let window = Window::default();
        for _ in 0..2 {
            window.record(7, &[Timed::new(Duration::from_micros(1), 1 << 31)]);
        }
        window.record(7, &[Timed::new(Duration::from_secs(1), 1)]);
        let latency = window.read(7).unwrap();
        assert_eq!(latency.count, (1 << 32) + 1);
        assert!(latency.p99 < Duration::from_micros(2), "{latency:?}");
    }

    #[test]
    fn percentiles_are_right_to_three_percent() {
        let window = Window::default();
        for micros in 1..=1000 {
            window.record(7, &[Timed::new(Duration::from_micros(micros), 1)]);
        }
        let latency = window.read(7).unwrap();
        for (got, micros) in
            [(latency.p50, 500.0), (latency.p90, 900.0), (latency.p95, 950.0), (latency.p99, 990.0)]
        {
            let got = got.as_secs_f64() * 1e6;
            assert!((got / micros - 1.0_f64).abs() < 0.04, "{got} for {micros}");
        }
        assert_eq!((latency.count, latency.mean), (1000, Duration::from_nanos(500_500)));
        assert_eq!(window.read(8).map(|l| l.count), Some(1000), "the minute before counts");
        assert_eq!(window.read(9), None, "the one before that does not");
        window.record(9, &[Timed::new(Duration::from_secs(1), 64)]);
        assert_eq!(window.read(9).map(|l| l.count), Some(64));
    }

    #[test]
    fn minutes_are_counted() {
        let first = minute();
        assert!(first > 0);
        assert!((first..=first + 1).contains(&minute()));
    }

    #[test]
    fn every_time_has_a_bucket_near_it() {
        for power in 0..39 {
            for nanos in [1u64 << power, (1 << power) + (1 << power) / 3] {
                let got = value(bucket(nanos)).as_nanos();
                let off = got.abs_diff(nanos.into());
                assert!(off * 16 <= u128::from(nanos), "{got} for {nanos}");
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }
}
