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
    /// A low-cardinality word for telemetry (`cache.result`).
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

    /// Whether a level has answered, so that nothing had to be loaded.
    pub(crate) const fn saves_a_load(self) -> bool {
        matches!(self, Self::Hit | Self::Stale | Self::Absent)
    }
}

/// Why a look-up found nothing. Every miss has exactly one; where levels differ, the one that comes last here.
///
/// What has left the nearest level is known for as many of the latest departures as there is room for (see
/// docs/semantics.md); of a remote level's, only what this node has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum MissReason {
    /// No level has it, and nothing is known of it: not asked for before, or gone for long.
    Absent,
    /// A level in process let it go for want of room.
    Evicted,
    /// Its time was over.
    Expired,
    /// It has been invalidated, by its key, a tag, or with its cache.
    Invalidated,
    /// A level had something that could not be read.
    Unreadable,
    /// A level was not heard: it failed, its breaker was open, or the caller left first.
    Error,
    /// No level was to be asked: a `refresh`, or an [`Access`](crate::Access) that reads none.
    Bypassed,
}

impl MissReason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Absent,
        Self::Evicted,
        Self::Expired,
        Self::Invalidated,
        Self::Unreadable,
        Self::Error,
        Self::Bypassed,
    ];

    /// A low-cardinality word for telemetry (`cache.miss.reason`).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Evicted => "evicted",
            Self::Expired => "expired",
            Self::Invalidated => "invalidated",
            Self::Unreadable => "unreadable",
            Self::Error => "error",
            Self::Bypassed => "bypassed",
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
    /// What the load of the entry took.
    pub(crate) cost: Duration,
    pub(crate) reason: Option<MissReason>,
}

impl<T> Found<T> {
    pub(crate) const fn miss() -> Self {
        Self {
            value: None,
            outcome: Outcome::Miss,
            level: None,
            age: Duration::ZERO,
            cost: Duration::ZERO,
            reason: None,
        }
    }

    /// Says why it is a miss, or had to be loaded, if that is so.
    pub(crate) fn missed(&mut self, reason: MissReason) {
        if matches!(self.outcome, Outcome::Loaded | Outcome::Miss) {
            self.reason = Some(reason);
        }
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

    /// Why no level had it, where the outcome is [`Outcome::Miss`] or [`Outcome::Loaded`].
    pub fn miss_reason(&self) -> Option<MissReason> {
        self.reason
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
            .field("miss_reason", &self.reason)
            .finish_non_exhaustive()
    }
}

/// What became of a write or an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a pending invalidation holds on this node only, until the level is back"]
#[non_exhaustive]
pub enum Delivery {
    /// Every level acknowledged it, and the backplane, if there is one, has taken the message. What a level that absorbs its
    /// failures cannot hold, being too large or not to be encoded, is gone from there, and counted as that.
    Confirmed,
    /// A level, or the backplane, could not be reached: it holds on this node, and is delivered when that is back. Or it is a
    /// value on its way to a level that is written in the [background](crate::Level::background).
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
