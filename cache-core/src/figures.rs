//! Figures for people, as observers work them out: shares, means, and percentiles of how long something took.
//!
//! For the observers of this project, which are released together with it: no promise to others.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A part of a whole, 0 to 1; `None` if the whole is nothing.
#[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
pub fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// The mean of `count` times that take `all` together; `None` if there are none. `Duration` itself divides by 32 bits only.
#[allow(clippy::cast_precision_loss, reason = "a time for people")]
pub fn mean(all: Duration, count: u64) -> Option<Duration> {
    (count > 0).then(|| all.div_f64(count as f64))
}

/// Buckets to a doubling, so that the middle of one is right to about 3 %.
const STEPS: u64 = 16;
/// Up to 2^41 ns, about 37 minutes. What takes longer is in the last one.
const BUCKETS: usize = 38 * 16;

/// How long something took, over many times. Takes about five kilobytes, and no lock.
#[derive(Debug)]
pub struct Durations {
    nanos: AtomicU64,
    /// Calls, with their weights: memory that many threads hit has four billion of them within a minute.
    buckets: [AtomicU64; BUCKETS],
}

/// What [`Durations`] came to.
#[derive(Clone, Debug)]
pub struct Percentiles {
    /// How many there were; never none.
    pub count: u64,
    /// Their mean, exact.
    pub mean: Duration,
    buckets: Vec<u64>,
}

impl Default for Durations {
    fn default() -> Self {
        Self { nanos: AtomicU64::new(0), buckets: array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Durations {
    /// Adds times: each in nanoseconds, and for how many it stands.
    pub fn record(&self, times: impl IntoIterator<Item = (u64, u32)>) {
        let mut all = 0_u64;
        for (nanos, weight) in times {
            all = all.saturating_add(nanos.saturating_mul(u64::from(weight)));
            self.buckets[bucket(nanos)].fetch_add(u64::from(weight), Ordering::Relaxed);
        }
        self.nanos.fetch_add(all, Ordering::Relaxed);
    }

    /// Forgets all. What others record at this very moment may be lost in part.
    pub fn clear(&self) {
        self.nanos.store(0, Ordering::Relaxed);
        self.buckets.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
    }

    /// All of these together; `None` if nothing has been recorded.
    pub fn read<'a>(all: impl IntoIterator<Item = &'a Self>) -> Option<Percentiles> {
        let (mut nanos, mut buckets) = (0_u64, vec![0; BUCKETS]);
        for one in all {
            nanos = nanos.saturating_add(one.nanos.load(Ordering::Relaxed));
            for (sum, bucket) in buckets.iter_mut().zip(&one.buckets) {
                *sum += bucket.load(Ordering::Relaxed);
            }
        }
        let count: u64 = buckets.iter().sum();
        let mean = Duration::from_nanos(nanos.checked_div(count)?);
        Some(Percentiles { count, mean, buckets })
    }
}

impl Percentiles {
    /// So many per cent of them, 0 to 100, took this long or less. Right to about 3 %.
    pub fn at(&self, percent: u64) -> Duration {
        let rank = u128::from(self.count) * u128::from(percent);
        let rank = rank.div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += u128::from(*count);
            seen >= rank
        });
        Duration::from_nanos(middle(found.unwrap_or_default()))
    }
}

/// The first nanoseconds have a bucket each, as many as there are steps.
fn bucket(nanos: u64) -> usize {
    let power = u64::from((nanos | (STEPS - 1)).ilog2() - (STEPS - 1).ilog2());
    let within = if power == 0 { nanos } else { (nanos >> (power - 1)) % STEPS };
    usize::try_from(power * STEPS + within).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// Nanoseconds in the middle of a bucket.
fn middle(bucket: usize) -> u64 {
    let at = u64::try_from(bucket).unwrap_or_default();
    match (at / STEPS, at % STEPS) {
        (0, nanos) => nanos,
        (power, within) => ((STEPS + within) << (power - 1)) + (1 << (power - 1)) / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_known_of_any_number_of_times() {
        assert_eq!(mean(Duration::ZERO, 0), None);
        assert_eq!(mean(Duration::from_secs(1), 4), Some(Duration::from_millis(250)));
        // Four billion and more, of a millisecond each.
        assert_eq!(mean(Duration::from_millis(1 << 33), 1 << 33), Some(Duration::from_millis(1)));
    }

    #[test]
    fn buckets_are_in_order_and_narrow() {
        let mut last = 0;
        for n in (0..64).flat_map(|power| [1u64 << power, (1 << power) + (1 << power) / 3]) {
            let at = bucket(n);
            assert!(at >= last, "{n}");
            last = at;
            if n < 1 << 41 {
                let off = middle(at).abs_diff(n);
                assert!(off * 32 <= n, "{} for {n}", middle(at));
            }
        }
        assert!((0..STEPS).all(|n| middle(bucket(n)) == n));
        assert_eq!((bucket((1 << 41) - 1), bucket(u64::MAX)), (BUCKETS - 1, BUCKETS - 1));
    }

    #[test]
    fn percentiles_are_right_to_three_percent() {
        let (one, other) = (Durations::default(), Durations::default());
        assert!(Durations::read([&one, &other]).is_none());
        one.record((1..=500).map(|micros| (micros * 1000, 1)));
        other.record((501..=1000).map(|micros| (micros * 1000, 1)));
        let all = Durations::read([&one, &other]).unwrap();
        for (percent, micros) in [(50, 500.0), (90, 900.0), (95, 950.0), (99, 990.0), (100, 1000.0)] {
            let got = all.at(percent).as_secs_f64() * 1e6;
            assert!((got / micros - 1.0_f64).abs() < 0.035, "{got} for {micros}");
        }
        assert_eq!((all.count, all.mean), (1000, Duration::from_nanos(500_500)));
        one.clear();
        assert_eq!(Durations::read([&one, &other]).map(|all| all.count), Some(500));
    }

    #[test]
    fn more_times_than_four_billion_are_not_forgotten() {
        let durations = Durations::default();
        durations.record([(1000, u32::MAX), (1000, u32::MAX), (1_000_000_000, 1)]);
        let all = Durations::read([&durations]).unwrap();
        assert_eq!(all.count, (1 << 33) - 1);
        assert!(all.at(99) < Duration::from_micros(2), "{all:?}");
    }
}
