//! How caches do, for code that asks.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cache_core::{
    BreakerState, Clock, LevelOutcome, MissReason, Moment, Outcome, Verb,
    figures::{Durations, mean, share},
};

use crate::{
    series::Named,
    totals::{Level, Totals},
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

#[derive(Default)]
struct Minute {
    number: AtomicU64,
    took: Durations,
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

impl Window {
    pub(crate) fn record(&self, now: u64, calls: &[Timed]) {
        let minute = &self.0[usize::from(now % 2 == 1)];
        if minute.number.load(Ordering::Relaxed) != now && minute.number.swap(now, Ordering::Relaxed) != now {
            minute.took.clear();
        }
        minute.took.record(calls.iter().map(|call| (call.nanos, call.weight)));
    }

    pub(crate) fn read(&self, now: u64) -> Option<Latency> {
        let live = self.0.iter().filter(|minute| minute.number.load(Ordering::Relaxed) + 1 >= now);
        let all = Durations::read(live.map(|minute| &minute.took))?;
        let [p50, p90, p95, p99] = [50, 90, 95, 99].map(|percent| all.at(percent));
        Some(Latency { count: all.count, mean: all.mean, p50, p90, p95, p99 })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_this_minute_and_the_one_before() {
        let window = Window::default();
        for micros in 1..=1000 {
            window.record(7, &[Timed::new(Duration::from_micros(micros), 1)]);
        }
        let latency = window.read(7).unwrap();
        for (got, micros) in
            [(latency.p50, 500.0), (latency.p90, 900.0), (latency.p95, 950.0), (latency.p99, 990.0)]
        {
            let got = got.as_secs_f64() * 1e6;
            assert!((got / micros - 1.0_f64).abs() < 0.035, "{got} for {micros}");
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
}
