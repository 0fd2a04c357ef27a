//! Reading levels: nearest first, one round trip per level, backfill with the remaining time.

use std::sync::Arc;

use crate::{
    Access, Entry, Error, Found, LevelOutcome, MissReason, Outcome, RawKey, Result, Stamp, Value,
    fill::Outgoing,
    inner::{Inner, Seen, State},
    rights::{Rights, Wish},
    slots::Ticket,
    tier::{Failure, Read, Tier},
};

/// One key on its way down the levels.
pub(crate) struct Asked<'k, T: Value> {
    pub(crate) key: RawKey<'k>,
    /// Opened before anything below the nearest in-process level is read.
    pub(crate) ticket: Option<Ticket<T>>,
    /// A fresh entry, or a remembered absence.
    pub(crate) fresh: Option<Seen<T>>,
    /// The youngest stale entry.
    pub(crate) stale: Option<Seen<T>>,
    /// The failure of a level that surfaces failures.
    pub(crate) error: Option<Error>,
    /// Why it is a miss, should it be one.
    pub(crate) reason: MissReason,
    /// Another caller's load met this look-up: it counts as coalesced, although a level answered it.
    pub(crate) met_a_load: bool,
    /// Leases taken at levels that had nothing, before deeper ones were read.
    pub(crate) rights: Rights,
    /// Set once there are rights: to give back what is not used.
    owner: Option<Arc<Inner<T>>>,
}

impl<T: Value> Drop for Asked<'_, T> {
    fn drop(&mut self) {
        if let Some(inner) = self.owner.take() {
            inner.give_back(self.key, std::mem::take(&mut self.rights));
        }
    }
}

impl<'k, T: Value> Asked<'k, T> {
    pub(crate) fn new(key: RawKey<'k>) -> Self {
        Self {
            key,
            ticket: None,
            fresh: None,
            stale: None,
            error: None,
            reason: MissReason::Bypassed,
            met_a_load: false,
            rights: Rights::new(),
            owner: None,
        }
    }

    /// A miss for a reason that is known already.
    pub(crate) fn because(mut self, reason: MissReason) -> Self {
        self.reason = reason;
        self
    }

    /// Takes why a level does not have it.
    fn missed(&mut self, outcome: LevelOutcome) {
        let reason = match outcome {
            LevelOutcome::Hit | LevelOutcome::Negative | LevelOutcome::Miss => MissReason::Absent,
            LevelOutcome::Stale | LevelOutcome::Expired => MissReason::Expired,
            LevelOutcome::Invalidated => MissReason::Invalidated,
            LevelOutcome::Unreadable => MissReason::Unreadable,
            LevelOutcome::Error | LevelOutcome::Skipped => MissReason::Error,
        };
        self.reason = self.reason.max(reason);
    }

    /// Takes what a level holds. An older entry never replaces a younger one.
    fn take(&mut self, seen: Seen<T>, state: State) {
        match state {
            State::Fresh => self.fresh = Some(seen),
            State::Stale
                if self
                    .stale
                    .as_ref()
                    .is_none_or(|held| held.entry.timeline.born < seen.entry.timeline.born) =>
            {
                self.stale = Some(seen);
            }
            State::Stale | State::Dead => {}
        }
    }
}

/// What was known when a read began: fills made from it carry this.
pub(crate) struct Begun {
    pub(crate) stamps: Vec<Stamp>,
    pub(crate) seen: u32,
}

impl<T: Value> Inner<T> {
    pub(crate) fn begin(&self) -> Begun {
        Begun { stamps: self.stamps(), seen: self.generation() }
    }

    /// Looks each key up, level by level, until it is found fresh, and fills the levels above with what was found.
    pub(crate) async fn read_levels(self: &Arc<Self>, asked: &mut [Asked<'_, T>]) {
        let mut begun = self.begin();
        for asked in asked.iter_mut() {
            asked.reason = MissReason::Absent;
        }
        for tier in &self.tiers {
            let mut open: Vec<&mut Asked<'_, T>> = asked.iter_mut().filter(|a| a.fresh.is_none()).collect();
            if open.is_empty() {
                break;
            }
            if let Some(store) = &tier.store {
                for asked in open {
                    let (entry, outcome) = self.peek(asked.key, tier, &**store);
                    asked.missed(outcome);
                    let Some(mut entry) = entry else { continue };
                    let mut state = entry.state(self.now());
                    if state == State::Stale {
                        // A load may put it back or show it to others: it counts only if it is there after the ticket
                        // was opened, so that no invalidation has come between.
                        asked.ticket.get_or_insert_with(|| self.slots.open(asked.key));
                        let Some(again) = self.held_nearby(asked.key, tier) else { continue };
                        entry = again;
                        state = entry.state(self.now());
                    }
                    asked.take(Seen { entry, level: tier.index }, state);
                }
                continue;
            }
            for asked in &mut open {
                asked.ticket.get_or_insert_with(|| self.slots.open(asked.key));
            }
            let keys: Vec<RawKey<'_>> = open.iter().map(|a| a.key).collect();
            let (answers, cleared) = tier.read_many(&self.around, &keys).await;
            if cleared {
                self.void_in_process();
                begun.seen = self.generation();
            }
            for (asked, answer) in open.into_iter().zip(answers) {
                if cleared {
                    // Read before the clear was learned of.
                    asked.stale = None;
                }
                match answer {
                    Read::Bytes(bytes) => {
                        let (entry, outcome) = self.decode(asked.key, tier, &bytes);
                        asked.missed(outcome);
                        if let Some(entry) = entry {
                            let state = entry.state(self.now());
                            asked.take(Seen { entry, level: tier.index }, state);
                        }
                    }
                    Read::Nothing => tier.count(&self.around, LevelOutcome::Miss),
                    Read::Masked => {
                        tier.count(&self.around, LevelOutcome::Skipped);
                        asked.missed(LevelOutcome::Invalidated);
                    }
                    Read::Failed(failure) => {
                        let outcome = match failure {
                            Failure::Skipped => LevelOutcome::Skipped,
                            Failure::Failed(..) => LevelOutcome::Error,
                        };
                        tier.count(&self.around, outcome);
                        asked.missed(outcome);
                        if tier.surface {
                            asked.error.get_or_insert_with(|| failure.into_error(tier.index));
                        }
                    }
                }
            }
            let deeper = usize::from(tier.index) + 1 < self.tiers.len();
            if deeper && tier.leases() {
                self.reserve(tier, asked).await;
            }
        }
        for asked in asked.iter_mut().filter(|a| a.fresh.is_none() && a.reason == MissReason::Absent) {
            asked.reason = self.stats().why_gone(asked.key.hash);
        }
        self.backfill(asked, &begun).await;
    }

    /// Takes the leases of a level for what it does not have, before anything deeper is read.
    async fn reserve(self: &Arc<Self>, tier: &Tier, asked: &mut [Asked<'_, T>]) {
        let mut missing: Vec<_> = asked.iter_mut().filter(|a| a.fresh.is_none()).collect();
        let mut wishes: Vec<_> =
            missing.iter().map(|a| Wish::at(a.key, a.stale.as_ref().map(|s| &s.entry), tier.index)).collect();
        self.ask_level(tier, &mut wishes).await;
        for (asked, wish) in missing.iter_mut().zip(wishes) {
            asked.owner = Some(Arc::clone(self));
            asked.rights.extend(wish.rights);
            if let Some(seen) = &wish.found {
                // It has been asked again, and has answered.
                let present = seen.entry.value.is_some();
                let outcome = if present { LevelOutcome::Hit } else { LevelOutcome::Negative };
                tier.count(&self.around, outcome);
            }
            asked.fresh = wish.found;
        }
    }

    /// Fills the levels above the one that had each fresh entry.
    async fn backfill(self: &Arc<Self>, asked: &mut [Asked<'_, T>], begun: &Begun) {
        for level in 0..self.tiers.len() {
            let mut items = Vec::new();
            let mut tickets = Vec::new();
            for asked in asked.iter_mut() {
                if let Some(seen) = asked.fresh.as_ref().filter(|s| usize::from(s.level) == level)
                    && let Some(ticket) = asked.ticket.as_ref().map(Ticket::again)
                {
                    asked.met_a_load = ticket.met_a_load();
                    let rights = std::mem::take(&mut asked.rights);
                    items.push(Outgoing::new(asked.key, seen.entry.clone()).with_rights(rights));
                    tickets.push(ticket);
                }
            }
            if !items.is_empty() {
                self.fill(&mut items, &tickets, level, &begun.stamps, begun.seen).await;
            }
        }
    }

    fn held_nearby(&self, key: RawKey<'_>, tier: &Tier) -> Option<Entry<T>> {
        self.peek_quietly(key, &**tier.store.as_ref()?, tier.index).0
    }

    /// A ticket under which `held`, which was read under `ticket` or at an in-process level, has not been overtaken.
    pub(crate) fn still(
        self: &Arc<Self>,
        key: RawKey<'_>,
        ticket: Option<&Ticket<T>>,
        held: &Entry<T>,
    ) -> Option<Ticket<T>> {
        match ticket {
            Some(ticket) => Some(ticket.again()).filter(Ticket::is_current),
            None => {
                let ticket = self.slots.open(key);
                let mut there = self.tiers.iter().filter_map(|tier| self.held_nearby(key, tier));
                there.any(|entry| entry.id == held.id).then_some(ticket)
            }
        }
    }

    /// What a look-up without a loader answers.
    pub(crate) fn answer(&self, asked: &Asked<'_, T>, access: Access) -> Result<Found<T>> {
        let now = self.now();
        if let Some(seen) = &asked.fresh {
            let outcome = if seen.entry.value.is_some() { Outcome::Hit } else { Outcome::Absent };
            return Ok(seen.entry.found(outcome, Some(seen.level), now));
        }
        if access == Access::AllowStale
            && let Some(seen) = &asked.stale
        {
            return Ok(seen.entry.found(Outcome::Stale, Some(seen.level), now));
        }
        match &asked.error {
            Some(error) => Err(error.clone()),
            None => Ok(Found::miss()),
        }
    }
}
