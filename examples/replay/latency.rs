//! Latencies by outcome, from the cache's own events.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;
use traced_cache::{CacheInfo, Event, Observer, Outcome, Verb};

/// Nanoseconds in an hour; slower calls count as that slow.
const SLOWEST: u64 = 3_600_000_000_000;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
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

/// Hits in memory come as a sample (one in 256), everything else in full.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latencies(Arc<Mutex<BTreeMap<Row, Histogram<u64>>>>);

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
    pub(crate) fn quantiles(&self) -> Vec<(Row, Quantiles)> {
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
pub(crate) struct Quantiles {
    pub(crate) timed: u64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    pub(crate) p999: Duration,
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
