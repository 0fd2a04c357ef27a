//! Latencies by outcome, from the cache's own events.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cache_core::{CacheInfo, Event, Observer, Outcome, Verb};
use hdrhistogram::Histogram;

/// Nanoseconds in an hour; slower calls count as that slow.
const SLOWEST: u64 = 3_600_000_000_000;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Row {
    /// A look-up that a level served, 0 being the nearest.
    Hit(u8),
    /// A look-up that loaded.
    Miss,
    /// A look-up that waited for another's load.
    Coalesced,
    /// A look-up that ended in any other way.
    Other,
    /// The loader alone.
    Load,
}

/// Times look-ups of `get_or_set` by how they ended: give a clone of it to the cache as an observer.
///
/// Hits in memory come as a sample (one in 256), everything else in full.
#[derive(Clone, Debug, Default)]
pub struct Latencies(Arc<Mutex<BTreeMap<Row, Histogram<u64>>>>);

impl Row {
    /// A word for reports: `hit_l1`, `miss`, ...
    pub fn name(self) -> String {
        match self {
            Self::Hit(level) => format!("hit_l{}", u16::from(level) + 1),
            Self::Miss => "miss".to_owned(),
            Self::Coalesced => "coalesced".to_owned(),
            Self::Other => "other".to_owned(),
            Self::Load => "load".to_owned(),
        }
    }
}

impl Latencies {
    fn record(&self, row: Row, elapsed: Duration) {
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The bounds are right, so there is always a histogram.
        if !rows.contains_key(&row)
            && let Ok(new) = Histogram::new_with_bounds(1, SLOWEST, 3)
        {
            rows.insert(row, new);
        }
        if let Some(histogram) = rows.get_mut(&row) {
            histogram.saturating_record(u64::try_from(elapsed.as_nanos()).unwrap_or(SLOWEST).max(1));
        }
    }

    /// What has been timed so far.
    pub fn quantiles(&self) -> Vec<(Row, Quantiles)> {
        let rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = |h: &Histogram<u64>, q| Duration::from_nanos(h.value_at_quantile(q));
        rows.iter()
            .map(|(row, h)| {
                (*row, Quantiles { timed: h.len(), p50: at(h, 0.5), p99: at(h, 0.99), p999: at(h, 0.999) })
            })
            .collect()
    }
}

/// How long calls of one kind took.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Quantiles {
    /// How many were timed.
    pub timed: u64,
    /// Half of them took no longer.
    pub p50: Duration,
    /// 99 of 100.
    pub p99: Duration,
    /// 999 of 1,000.
    pub p999: Duration,
}

impl Observer for Latencies {
    fn event(&self, _: &CacheInfo, event: &Event<'_>) {
        match event {
            Event::Operation { verb: Verb::GetOrSet, outcome: Some(outcome), level, elapsed, .. } => {
                let row = match (outcome, level) {
                    (Outcome::Hit, Some(level)) => Row::Hit(*level),
                    (Outcome::Loaded, _) => Row::Miss,
                    (Outcome::Coalesced, _) => Row::Coalesced,
                    _ => Row::Other,
                };
                self.record(row, *elapsed);
            }
            Event::Load { elapsed, .. } => self.record(Row::Load, *elapsed),
            _ => {}
        }
    }
}
