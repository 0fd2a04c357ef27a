//! Counting the look-ups of a batch: each exactly once, also when its caller leaves, and those that end alike together.

use std::time::Duration;

use crate::{Found, MissReason, Outcome, Stats, Verb};

/// How a look-up ended: outcome, level, and why it is a miss, should it be one.
type End = (Outcome, Option<u8>, MissReason);

/// Counts what it is told when it is dropped; what it has not been told of are misses of callers who left.
pub(crate) struct Tally<'a> {
    stats: &'a Stats,
    verb: Verb,
    /// Look-ups that have not ended.
    open: usize,
    /// The last ones that ended alike, and how many.
    run: Option<(End, usize)>,
    saved: Duration,
}

impl<'a> Tally<'a> {
    pub(crate) const fn new(stats: &'a Stats, verb: Verb, keys: usize) -> Self {
        Self { stats, verb, open: keys, run: None, saved: Duration::ZERO }
    }

    /// One ended as what the caller is told, who is told why it was a miss.
    pub(crate) fn found<T>(&mut self, found: &mut Found<T>, reason: MissReason) {
        found.missed(reason);
        if found.outcome.saves_a_load() {
            self.saved += found.cost;
        }
        self.ended((found.outcome, found.level, reason));
    }

    /// One ended, and its caller is told nothing of it.
    pub(crate) fn missed(&mut self, reason: MissReason) {
        self.ended((Outcome::Miss, None, reason));
    }

    fn ended(&mut self, end: End) {
        self.open = self.open.saturating_sub(1);
        match &mut self.run {
            Some((last, count)) if *last == end => *count += 1,
            _ => {
                self.count();
                self.run = Some((end, 1));
            }
        }
    }

    fn count(&mut self) {
        if let Some(((outcome, level, reason), count)) = self.run.take() {
            self.stats.lookups(self.verb, outcome, level, reason, count);
        }
    }
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        self.count();
        self.stats.lookups(self.verb, Outcome::Miss, None, MissReason::Error, self.open);
        self.stats.saved(self.saved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CacheInfo;

    #[test]
    fn each_look_up_is_counted_once_also_when_its_caller_leaves() {
        let stats = Stats::new(CacheInfo::for_tests("t", Vec::new()), Vec::new(), false);
        let mut tally = Tally::new(&stats, Verb::GetMany, 7);
        let hit = || Found::<u8> { outcome: Outcome::Hit, cost: Duration::from_micros(5), ..Found::miss() };
        tally.found(&mut hit(), MissReason::Absent);
        tally.found(&mut hit(), MissReason::Absent);
        let mut miss = Found::<u8>::miss();
        tally.found(&mut miss, MissReason::Expired);
        assert_eq!(miss.reason, Some(MissReason::Expired));
        tally.found(&mut hit(), MissReason::Absent);
        tally.missed(MissReason::Evicted);
        drop(tally);
        let snapshot = stats.snapshot();
        let count = |outcome| {
            let of = snapshot.served.iter().filter(|served| served.outcome == outcome);
            of.map(|served| served.count).sum::<u64>()
        };
        assert_eq!((count(Outcome::Hit), count(Outcome::Miss)), (3, 4));
        let reasons: Vec<_> = snapshot.miss_reasons.into_iter().filter(|(_, count)| *count > 0).collect();
        let expected = [(MissReason::Evicted, 1), (MissReason::Expired, 1), (MissReason::Error, 2)];
        assert_eq!(reasons, expected);
        assert_eq!(snapshot.time_saved, Duration::from_micros(15));
    }
}
