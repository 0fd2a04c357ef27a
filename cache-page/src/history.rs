//! Counts over time.

use std::{collections::VecDeque, time::Duration};

use cache_core::{Snapshot, figures::share};
use serde::Serialize;

/// How far apart points are.
pub(crate) const STEP: Duration = Duration::from_secs(2);
/// Half an hour of them.
const POINTS: usize = 900;

/// What happened in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Point {
    /// Look-ups.
    pub(crate) lookups: u64,
    /// Those served fresh.
    pub(crate) hits: u64,
    /// Loads that ended.
    pub(crate) loads: u64,
    /// Calls that ended with an error.
    pub(crate) errors: u64,
}

impl Point {
    fn total(snapshot: &Snapshot) -> Self {
        Self {
            lookups: snapshot.lookups(),
            hits: snapshot.hits(),
            loads: snapshot.loads,
            errors: snapshot.errors.iter().map(|(_, count)| count).sum(),
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            lookups: self.lookups.saturating_sub(before.lookups),
            hits: self.hits.saturating_sub(before.hits),
            loads: self.loads.saturating_sub(before.loads),
            errors: self.errors.saturating_sub(before.errors),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            lookups: self.lookups + other.lookups,
            hits: self.hits + other.hits,
            loads: self.loads + other.loads,
            errors: self.errors + other.errors,
        }
    }

    /// Hits over look-ups, 0 to 1.
    pub(crate) fn hit_rate(self) -> Option<f64> {
        share(self.hits, self.lookups)
    }
}

#[derive(Default)]
pub(crate) struct History {
    points: VecDeque<Point>,
    last: Point,
}

impl History {
    /// Another step is over.
    pub(crate) fn step(&mut self, now: &Snapshot) {
        let now = Point::total(now);
        if self.points.len() == POINTS {
            self.points.pop_front();
        }
        self.points.push_back(now.since(self.last));
        self.last = now;
    }

    /// Oldest first, at most `most`, of equal length in time; and how long each is.
    pub(crate) fn points(&self, most: usize) -> (Vec<Point>, Duration) {
        let together = self.points.len().div_ceil(most).max(1);
        let mut all = Vec::new();
        // From the newest back, so that it is the oldest that may be shorter.
        let mut rest: Vec<Point> = self.points.iter().copied().collect();
        while !rest.is_empty() {
            let tail = rest.split_off(rest.len().saturating_sub(together));
            all.push(tail.into_iter().fold(Point::default(), Point::and));
        }
        all.reverse();
        (all, STEP * u32::try_from(together).unwrap_or(u32::MAX))
    }

    /// The latest steps, this many at most, and how long they took.
    pub(crate) fn recent(&self, steps: usize) -> (Point, Duration) {
        let steps = steps.min(self.points.len());
        let sum = self.points.iter().rev().take(steps).copied().fold(Point::default(), Point::and);
        (sum, STEP * u32::try_from(steps).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_joined_from_the_newest_back() {
        let mut history = History::default();
        for n in 1..=7 {
            history.points.push_back(Point { lookups: n, ..Point::default() });
        }
        let lookups = |points: Vec<Point>| points.iter().map(|point| point.lookups).collect::<Vec<_>>();
        let (points, step) = history.points(3);
        assert_eq!((lookups(points), step), (vec![1, 2 + 3 + 4, 5 + 6 + 7], STEP * 3));
        let (points, step) = history.points(100);
        assert_eq!((points.len(), step), (7, STEP));
        let (sum, took) = history.recent(2);
        assert_eq!((sum.lookups, took), (13, STEP * 2));
        assert_eq!(history.recent(100).0.lookups, 28);
    }
}
