//! How entries of a level stand by what is known at one time.

use std::sync::Arc;

use super::Tier;
use crate::{Stamp, ledger, mark::Reach, news::Verdict, pending::Pending};

impl Tier {
    /// Whether the level must be treated as not having this key.
    pub(crate) fn masks(&self, id: &str) -> bool {
        // Deeper ones first: what they have heard of has been passed on to this one before.
        self.deeper.iter().any(|pending| pending.has(id)) || self.pending.masks(id)
    }

    /// How far the level must be treated as not having entries with these tags.
    pub(crate) fn reaches(&self, tags: &[Box<str>]) -> Option<Reach> {
        if tags.is_empty() {
            return None;
        }
        let of = |pending: &Arc<Pending>| pending.reaches(tags);
        // In this order, see `masks`. A purge is the last of them.
        self.deeper.iter().chain([&self.pending]).filter_map(of).max_by_key(|reach| *reach == Reach::Purge)
    }

    /// What is known now of invalidations, to judge entries of this level that have just been read.
    pub(crate) fn court(&self) -> Court<'_> {
        self.court_of(self.incarnation())
    }

    /// The same where the state of the store is known that they were read from.
    pub(crate) fn court_of(&self, home: u64) -> Court<'_> {
        Court { tier: self, known: (!self.packing.plain).then(|| self.ledger.court(home)) }
    }

    /// How an entry of this level stands that carries this stamp.
    pub(crate) fn judge(&self, stamp: Stamp, tags: &[Box<str>]) -> Verdict {
        self.court().judge(stamp, tags)
    }
}

/// Judges entries of one level that have been read from one state of the store.
pub(crate) struct Court<'a> {
    tier: &'a Tier,
    /// `None`: values are bare, and always valid.
    known: Option<ledger::Court<'a>>,
}

impl Court<'_> {
    /// How an entry stands that carries this stamp.
    pub(crate) fn judge(&self, stamp: Stamp, tags: &[Box<str>]) -> Verdict {
        let Some(known) = &self.known else { return Verdict::Valid };
        // In this order: what has been delivered in between is known by then.
        match (self.tier.reaches(tags), known.judge(stamp, tags)) {
            (_, Verdict::Void) | (Some(Reach::Purge), _) => Verdict::Void,
            // Another node may have purged what this one is yet to expire.
            (Some(Reach::Expire), Verdict::Valid) => Verdict::Expired,
            (_, verdict) => verdict,
        }
    }
}
