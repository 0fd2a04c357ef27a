//! What a look-up answers.

use std::{fmt, sync::Arc, time::Duration};

/// How a look-up ended. Every look-up ends in exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// A fresh entry.
    Hit,
    /// An entry past its freshness, inside its grace, by the caller's or the policy's choice.
    Stale,
    /// A remembered absence: the source was asked before and does not have the key.
    Absent,
    /// No usable entry, and a load of this call answered.
    Loaded,
    /// No usable entry, and the load of another call answered.
    Coalesced,
    /// No usable entry, and no load was asked for (or it failed).
    Miss,
}

impl Outcome {
    /// A low-cardinality word for telemetry (`cache.outcome`).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Absent => "negative",
            Self::Loaded => "loaded",
            Self::Coalesced => "coalesced",
            Self::Miss => "miss",
        }
    }
}

/// The whole answer of a look-up: value, outcome, level, age. Metrics, spans and logs are made from the same.
#[derive(Clone)]
pub struct Found<T> {
    pub(crate) value: Option<Arc<T>>,
    pub(crate) outcome: Outcome,
    pub(crate) level: Option<u8>,
    pub(crate) age: Duration,
}

impl<T> Found<T> {
    pub(crate) const fn miss() -> Self {
        Self { value: None, outcome: Outcome::Miss, level: None, age: Duration::ZERO }
    }

    /// The value; `None` on a miss and for an absence.
    pub fn value(&self) -> Option<&Arc<T>> {
        self.value.as_ref()
    }

    /// The value, taken.
    pub fn into_value(self) -> Option<Arc<T>> {
        self.value
    }

    /// How the look-up ended.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The level that served it, 0 being the nearest; `None` where no level did.
    pub fn level(&self) -> Option<usize> {
        self.level.map(usize::from)
    }

    /// Time since the load of the entry started.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// Whether a level served it fresh.
    pub fn is_hit(&self) -> bool {
        self.outcome == Outcome::Hit
    }

    /// Whether it is past its freshness.
    pub fn is_stale(&self) -> bool {
        self.outcome == Outcome::Stale
    }
}

/// Values stay out of `Debug` output.
impl<T> fmt::Debug for Found<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found")
            .field("outcome", &self.outcome)
            .field("level", &self.level)
            .field("age", &self.age)
            .finish_non_exhaustive()
    }
}

/// What became of a write or an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a pending invalidation holds on this node only, until the level is back"]
pub enum Delivery {
    /// Every level acknowledged it.
    Confirmed,
    /// A level could not be reached: it holds on this node, and is delivered when the level is back.
    Pending,
}

impl Delivery {
    /// Whether every level acknowledged it.
    pub fn is_confirmed(self) -> bool {
        self == Self::Confirmed
    }

    pub(crate) fn and(self, other: Self) -> Self {
        if self == Self::Pending { self } else { other }
    }
}
