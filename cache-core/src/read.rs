//! Reading levels: nearest first, one round trip per level, backfill with the remaining time.

use std::sync::Arc;

use futures::FutureExt;

use crate::{
    Access, Begun, Entry, Error, Found, LevelOp, LevelOutcome, MissReason, Moment, Outcome, RawKey, Result,
    Stamp, Value,
    clock::Times,
    fill::Outgoing,
    inner::{Inner, Seen, State},
    learn::Learned,
    nearby::Peeked,
    news::Verdict,
    rights::Rights,
    slots::Ticket,
    tier::{Court, Failure, Outcomes, Read, ReadOne, Tier},
    wire::Decoded,
};

/// One key on its way down the levels.
pub(crate) struct Asked<'k, T: Value> {
    pub(crate) key: RawKey<'k>,
    /// Opened before anything below the nearest in-process level is read.
    pub(crate) ticket: Option<Ticket<T>>,
    /// A fresh entry, or a remembered absence.
    pub(crate) fresh: Option<Seen<T>>,
    /// The youngest stale entry. Boxed: few look-ups meet one, and all carry its room.
    pub(crate) stale: Option<Box<Seen<T>>>,
    /// The failure of a level that surfaces failures.
    pub(crate) error: Option<Error>,
    /// Why it is a miss, should it be one.
    pub(crate) reason: MissReason,
    /// A replica has answered: nothing deeper is asked, and nothing is made of it.
    pub(crate) from_copy: bool,
    /// Another caller's load met this look-up: it counts as coalesced, although a level answered it.
    pub(crate) met_a_load: bool,
    /// Leases taken at levels that had nothing, before deeper ones were read.
    pub(crate) rights: Rights,
    /// No load follows, whatever is found: a ticket is needed only to fill levels above.
    only_looks: bool,
    /// The nearest level has just been seen to have nothing.
    pub(crate) bare: bool,
    /// Set once there are rights: to give back what is not used.
    pub(crate) owner: Option<Arc<Inner<T>>>,
}

/// Keys that are not answered yet.
pub(crate) type Open<'a, 'k, T> = Vec<&'a mut Asked<'k, T>>;

fn open<'a, 'k, T: Value>(asked: &'a mut [Asked<'k, T>]) -> impl Iterator<Item = &'a mut Asked<'k, T>> {
    asked.iter_mut().filter(|asked| asked.is_open())
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
            from_copy: false,
            met_a_load: false,
            rights: Rights::new(),
            only_looks: false,
            bare: false,
            owner: None,
        }
    }

    /// For a look-up that loads nothing.
    pub(crate) fn only(key: RawKey<'k>) -> Self {
        let mut asked = Self::new(key);
        asked.only_looks = true;
        asked
    }

    /// Whether it is not answered yet.
    pub(crate) fn is_open(&self) -> bool {
        self.fresh.is_none() && !self.from_copy
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
    pub(crate) fn take(&mut self, seen: Seen<T>, state: State) {
        match state {
            State::Fresh => self.fresh = Some(seen),
            State::Stale
                if self
                    .stale
                    .as_ref()
                    .is_none_or(|held| held.entry.timeline.born < seen.entry.timeline.born) =>
            {
                self.stale = Some(Box::new(seen));
            }
            State::Stale | State::Dead => {}
        }
    }

    /// Gives the stale entry away.
    pub(crate) fn take_stale(&mut self) -> Option<Seen<T>> {
        self.stale.take().map(|seen| *seen)
    }
}

impl<T: Value> Inner<T> {
    pub(crate) fn begin(&self) -> Begun {
        // Numbers before marks: what is learned in between is judged once more.
        let seen = self.news.count();
        Begun { stamps: self.stamps(), seen }
    }

    /// Looks each key up, level by level, until it is found fresh, and fills the levels above with what was found. Says
    /// what time it is, if a clock has just been asked.
    #[allow(
        clippy::manual_async_fn,
        reason = "an `async fn` would keep each argument twice, as would those below"
    )]
    pub(crate) fn read_levels(
        self: &Arc<Self>,
        asked: &mut [Asked<'_, T>],
        access: Access,
    ) -> impl Future<Output = Option<Moment>> + Send {
        async move {
            let mut begun = self.begin();
            let mut now = None;
            for asked in asked.iter_mut() {
                asked.reason = MissReason::Absent;
            }
            for tier in &self.tiers {
                if !asked.iter().any(Asked::is_open) {
                    break;
                }
                now = self.read_level(tier, asked, access, &mut begun).await;
                let deeper = usize::from(tier.index) + 1 < self.tiers.len();
                if deeper && tier.leases() {
                    self.reserve(tier, asked, &begun).boxed().await;
                    now = None;
                }
            }
            for asked in asked.iter_mut().filter(|a| a.fresh.is_none() && a.reason == MissReason::Absent) {
                asked.reason = self.stats().why_gone(asked.key.hash);
            }
            if !self.backfill_memory(asked) {
                self.backfill(asked, &begun).boxed().await;
                now = None;
            }
            now
        }
    }

    /// Looks up at one level what is not answered yet.
    #[allow(clippy::manual_async_fn, reason = "see `read_levels`")]
    fn read_level(
        self: &Arc<Self>,
        tier: &Tier,
        asked: &mut [Asked<'_, T>],
        access: Access,
        begun: &mut Begun,
    ) -> impl Future<Output = Option<Moment>> + Send {
        async move {
            if tier.store.is_some() {
                self.read_near(tier, asked).await;
                return None;
            }
            for asked in open(asked) {
                if tier.index > 0 || !asked.only_looks {
                    asked.ticket.get_or_insert_with(|| self.slots.open(asked.key));
                }
            }
            if access == Access::AllowStale && tier.provider().replicas().is_some() {
                self.read_copies(tier, open(asked).collect()).boxed().await;
            }
            let mut waiting = open(asked);
            match (waiting.next(), waiting.next()) {
                (None, _) => None,
                (Some(one), None) => Some(self.read_far_one(tier, one, begun).await),
                (Some(one), Some(other)) => {
                    let all = [one, other].into_iter().chain(waiting).collect();
                    Some(self.read_far(tier, all, begun).boxed().await)
                }
            }
        }
    }

    /// Looks keys up at an in-process level.
    async fn read_near(self: &Arc<Self>, tier: &Tier, asked: &mut [Asked<'_, T>]) {
        let mut doubtful = Vec::new();
        let mut tags = Vec::new();
        for asked in open(asked) {
            if tier.index > 0 {
                // What is found fills the levels above.
                asked.ticket.get_or_insert_with(|| self.slots.open(asked.key));
            }
            let peeked = match std::mem::take(&mut asked.bare) {
                true => {
                    tier.count(&self.around, LevelOutcome::Miss);
                    Peeked::nothing(LevelOutcome::Miss)
                }
                false => self.peek(asked.key, tier),
            };
            if peeked.doubtful {
                tags.extend(peeked.entry.into_iter().flat_map(|entry| entry.tags().to_vec()));
                doubtful.push(asked);
            } else {
                self.take_near(asked, tier, peeked);
            }
        }
        if !doubtful.is_empty() {
            self.read_doubtful(tier, doubtful, tags).boxed().await;
        }
    }

    /// Looks keys up once more whose entries have tags that may have been invalidated.
    async fn read_doubtful(
        self: &Arc<Self>,
        tier: &Tier,
        doubtful: Vec<&mut Asked<'_, T>>,
        tags: Vec<Box<str>>,
    ) {
        // The remote level knows which tags have been invalidated; if it does not say, nothing that has some is believed.
        self.learn_tags(tags.iter().map(|tag| &**tag)).await;
        for asked in doubtful {
            let peeked = self.peek(asked.key, tier);
            if peeked.doubtful {
                tier.count(&self.around, LevelOutcome::Invalidated);
                asked.missed(LevelOutcome::Invalidated);
            } else {
                self.take_near(asked, tier, peeked);
            }
        }
    }

    fn take_near(self: &Arc<Self>, asked: &mut Asked<'_, T>, tier: &Tier, peeked: Peeked<T>) {
        asked.missed(peeked.outcome);
        let Some(mut entry) = peeked.entry else { return };
        let mut state = entry.state(self.now());
        if state == State::Stale {
            // A load may put it back or show it to others: it counts only if it is there after the ticket was opened, so
            // that no invalidation has come between.
            asked.ticket.get_or_insert_with(|| self.slots.open(asked.key));
            let Some(again) = self.peek_surely(asked.key, tier) else { return };
            entry = again;
            state = entry.state(self.now());
        } else if peeked.behind {
            let ticket = asked.ticket.get_or_insert_with(|| self.slots.open(asked.key));
            self.reseat(asked.key, tier, ticket);
        }
        asked.take(Seen { entry, level: tier.index }, state);
    }

    /// Looks a key up at a remote level, as most look-ups there do. Says when it was answered.
    #[allow(clippy::manual_async_fn, reason = "see `read_levels`")]
    fn read_far_one(
        self: &Arc<Self>,
        tier: &Tier,
        asked: &mut Asked<'_, T>,
        begun: &mut Begun,
    ) -> impl Future<Output = Moment> + Send {
        async move {
            let ReadOne { read: answer, learned, times, home } = tier.read_one(&self.around, asked.key).await;
            begun.heed(learned);
            let size = answer.size();
            let read = self.open_answer(asked, tier, answer, times);
            if read.is_ok() {
                self.observers().items(tier.index, LevelOp::Get, &[size]);
            }
            let verdict = verdict_on(&tier.court_of(home), &read);
            if learned.is_nothing() && verdict != Verdict::Unsure {
                tier.count(&self.around, self.take_far(tier, asked, read, verdict, begun, times.now));
                return times.now;
            }
            self.judge_far(tier, &mut [asked], vec![(0, read)], learned, begun, times.now).boxed().await
        }
    }

    /// Looks keys up at a remote level, in one round trip, or two where marks of tags have to be asked for. Says when it
    /// was answered.
    async fn read_far(self: &Arc<Self>, tier: &Tier, mut open: Open<'_, '_, T>, begun: &mut Begun) -> Moment {
        let keys: Vec<RawKey<'_>> = open.iter().map(|a| a.key).collect();
        let (answers, learned) = tier.read_many(&self.around, &keys).await;
        let times = tier.times(&self.around.clock);
        begun.heed(learned);
        let court = tier.court();
        let mut outcomes = Outcomes::default();
        let mut sizes = Vec::with_capacity(open.len());
        let mut unjudged = Vec::new();
        for (at, (asked, answer)) in open.iter_mut().zip(answers).enumerate() {
            let size = answer.size();
            let read = self.open_answer(asked, tier, answer, times).inspect(|_| sizes.push(size));
            match verdict_on(&court, &read) {
                verdict if learned.is_nothing() && verdict != Verdict::Unsure => {
                    outcomes.add(self.take_far(tier, asked, read, verdict, begun, times.now));
                }
                _ => unjudged.push((at, read)),
            }
        }
        self.observers().items(tier.index, LevelOp::Get, &sizes);
        outcomes.at(tier, &self.around);
        match unjudged.is_empty() {
            true => times.now,
            false => self.judge_far(tier, &mut open, unjudged, learned, begun, times.now).boxed().await,
        }
    }

    /// Judges what a level has answered by what is known of invalidations, once its tags are, and takes what is worth
    /// something: answers for some of `open`, with their positions. Says what time it is.
    async fn judge_far(
        self: &Arc<Self>,
        tier: &Tier,
        open: &mut [&mut Asked<'_, T>],
        read: Vec<(usize, Answered<T>)>,
        learned: Learned,
        begun: &mut Begun,
        mut now: Moment,
    ) -> Moment {
        let court = tier.court();
        let unsure = read.iter().filter(|(_, read)| verdict_on(&court, read) == Verdict::Unsure);
        // In a list first: to judge, and to ask which of them are unknown, each locks what is known.
        let tags: Vec<_> =
            unsure.flat_map(|(_, read)| read.iter().flat_map(|read| read.entry.tags())).collect();
        let unknown = tier.ledger.unknown(tags.iter().map(|tag| &***tag));
        let mut more = Learned::NOTHING;
        if !unknown.is_empty() {
            more = tier.read_tags(&self.around, &unknown).await;
            begun.heed(more);
            now = self.now();
        }
        if !learned.and(more).is_nothing() {
            // Taken before that was learned of.
            let gone = |seen: &Seen<T>| matches!(self.verdict(&seen.entry), Verdict::Void | Verdict::Unsure);
            for asked in open.iter_mut() {
                let stale = asked.stale.take_if(|seen| gone(seen)).is_some();
                if asked.fresh.take_if(|seen| gone(seen)).is_some() || stale {
                    asked.missed(LevelOutcome::Invalidated);
                }
            }
        }
        let court = tier.court();
        let mut outcomes = Outcomes::default();
        for (at, read) in read {
            let verdict = verdict_on(&court, &read);
            outcomes.add(self.take_far(tier, open[at], read, verdict, begun, now));
        }
        outcomes.at(tier, &self.around);
        now
    }

    /// Reads what a remote level has answered for one key.
    fn open_answer(&self, asked: &mut Asked<'_, T>, tier: &Tier, answer: Read, times: Times) -> Answered<T> {
        match answer {
            Read::Bytes(bytes) => self.decode(asked.key, tier, &bytes, times),
            Read::Nothing => Err(LevelOutcome::Miss),
            Read::Unreadable(reason) => {
                self.unreadable(tier.index, reason);
                Err(LevelOutcome::Unreadable)
            }
            Read::Masked => {
                asked.missed(LevelOutcome::Invalidated);
                Err(LevelOutcome::Skipped)
            }
            Read::Failed(failure) => {
                let outcome = match failure {
                    Failure::Skipped | Failure::Mute => LevelOutcome::Skipped,
                    Failure::Failed(..) => LevelOutcome::Error,
                };
                asked.missed(outcome);
                if tier.surface {
                    asked.error.get_or_insert_with(|| failure.into_error(tier));
                }
                Err(outcome)
            }
        }
    }

    /// Takes what a remote level has answered for one key. Says what that was worth.
    fn take_far(
        &self,
        tier: &Tier,
        asked: &mut Asked<'_, T>,
        read: Answered<T>,
        verdict: Verdict,
        begun: &Begun,
        now: Moment,
    ) -> LevelOutcome {
        let outcome = match read {
            Ok(Decoded { entry, stamp }) => {
                let mut entry = entry.known(self.near_stamp(tier, begun, stamp), begun.seen);
                let outcome = entry.worth(verdict, now);
                let state = entry.state(now);
                if outcome != LevelOutcome::Invalidated {
                    asked.take(Seen { entry, level: tier.index }, state);
                }
                outcome
            }
            Err(outcome) => outcome,
        };
        if outcome != LevelOutcome::Skipped {
            asked.missed(outcome);
        }
        outcome
    }

    /// Reads an entry from a remote level's bytes.
    fn decode(&self, key: RawKey<'_>, tier: &Tier, bytes: &[u8], times: Times) -> Answered<T> {
        self.decode_quietly(key, tier, bytes, times).map_err(|reason| {
            self.unreadable(tier.index, reason);
            LevelOutcome::Unreadable
        })
    }

    /// An entry that was read at a level, if it is valid there; its tags are asked about where they are not known.
    pub(crate) async fn believed(
        &self,
        tier: &Tier,
        entry: Entry<T>,
        stamp: Stamp,
        begun: &Begun,
    ) -> Option<Entry<T>> {
        if tier.judge(stamp, entry.tags()) == Verdict::Unsure {
            let unknown = tier.ledger.unknown(entry.tags().iter().map(|tag| &**tag));
            tier.read_tags(&self.around, &unknown).await;
        }
        let mut entry = entry.known(self.near_stamp(tier, begun, stamp), begun.seen);
        let worth = entry.worth(tier.judge(stamp, entry.tags()), self.now());
        (worth != LevelOutcome::Invalidated).then_some(entry)
    }

    /// The stamp of the nearest remote level under which an entry is kept that was read at `tier`: what was known of that
    /// level before the read, or if nothing was, and it is that level, the stamp that the entry carried there.
    fn near_stamp(&self, tier: &Tier, begun: &Begun, own: Stamp) -> Stamp {
        let Some(authority) = self.authority() else { return Stamp::default() };
        let begun = begun.stamp(authority.index);
        if begun.epoch == 0 && authority.index == tier.index { own } else { begun }
    }

    /// Fills the levels above the one that had a fresh entry, where that needs not wait for anything: for one key, and if
    /// only in-process levels are above. Says whether that is so.
    fn backfill_memory(self: &Arc<Self>, asked: &mut [Asked<'_, T>]) -> bool {
        let [asked] = asked else { return false };
        let level = asked.fresh.as_ref().map_or(0, |seen| usize::from(seen.level));
        let above = &self.tiers[..level];
        if above.iter().any(|tier| tier.store.is_none()) {
            return false;
        }
        let Some(Seen { entry, .. }) = &asked.fresh else { return true };
        asked.met_a_load = !asked.only_looks && asked.ticket.as_ref().is_some_and(Ticket::met_a_load);
        let Some((nearest, others)) = above.split_first() else { return true };
        let Some(ticket) = asked.ticket.take() else { return true };
        let mut held = others.iter().rev().all(|tier| self.keep(asked.key, entry, tier, &ticket));
        if asked.only_looks {
            held = held && self.keep_last(asked.key, entry, nearest, ticket);
        } else {
            held = held && self.keep(asked.key, entry, nearest, &ticket);
            // A refresh may follow under it.
            asked.ticket = Some(ticket);
        }
        if !held || self.verdict(entry).is_void() {
            self.overtaken();
        }
        true
    }

    /// Fills the levels above the one that had each fresh entry.
    async fn backfill(self: &Arc<Self>, asked: &mut [Asked<'_, T>], begun: &Begun) {
        for level in 0..self.tiers.len() {
            let mut items = Vec::new();
            let (mut tickets, mut filled) = (Vec::new(), Vec::new());
            for asked in asked.iter_mut() {
                if let Some(seen) = asked.fresh.as_ref().filter(|s| usize::from(s.level) == level)
                    && let Some(ticket) = asked.ticket.as_ref().map(Ticket::again)
                {
                    asked.met_a_load = ticket.met_a_load();
                    // Its own still: should its caller leave meanwhile, they are given back.
                    let rights = asked.rights.clone();
                    items.push(Outgoing::new(asked.key, seen.entry.clone()).with_rights(rights));
                    tickets.push(ticket);
                    filled.push(asked);
                }
            }
            if !items.is_empty() {
                self.fill(&mut items, &tickets, level, &begun.stamps).await;
            }
            filled.into_iter().for_each(|asked| asked.rights.clear());
        }
    }

    /// A ticket under which `held`, which was read under `ticket` or at an in-process level, has not been overtaken, and the
    /// entry as it stands then: one that was expired in between is the same still.
    pub(crate) fn still(
        self: &Arc<Self>,
        key: RawKey<'_>,
        ticket: Option<&Ticket<T>>,
        held: &Entry<T>,
    ) -> Option<(Ticket<T>, Entry<T>)> {
        match ticket {
            Some(ticket) => {
                Some(ticket.again()).filter(Ticket::is_current).map(|ticket| (ticket, held.clone()))
            }
            None => {
                let ticket = self.slots.open(key);
                self.held_nearby(key, held.id).map(|seen| (ticket, seen.entry))
            }
        }
    }

    /// What a look-up without a loader answers.
    pub(crate) fn answer(&self, asked: &mut Asked<'_, T>, access: Access, now: Moment) -> Result<Found<T>> {
        if let Some(Seen { entry, level }) = asked.fresh.take() {
            let outcome = if entry.value.is_some() { Outcome::Hit } else { Outcome::Absent };
            return Ok(entry.into_found(outcome, Some(level), now));
        }
        if access == Access::AllowStale
            && let Some(Seen { entry, level }) = asked.take_stale()
        {
            return Ok(entry.into_found(Outcome::Stale, Some(level), now));
        }
        match asked.error.take() {
            Some(error) => Err(error),
            None => Ok(Found::miss()),
        }
    }
}

impl<T> Entry<T> {
    /// What a remote level's entry is worth that stands like this.
    pub(crate) fn worth(&mut self, verdict: Verdict, now: Moment) -> LevelOutcome {
        match verdict {
            Verdict::Valid => {}
            Verdict::Expired => self.expire(),
            Verdict::Void | Verdict::Unsure => return LevelOutcome::Invalidated,
        }
        self.state(now).outcome(self.value.is_some())
    }
}

/// What a remote level has answered for a key.
type Answered<T> = std::result::Result<Decoded<T>, LevelOutcome>;

/// How an entry that was answered stands, by what is known now.
fn verdict_on<T>(court: &Court<'_>, read: &Answered<T>) -> Verdict {
    read.as_ref().map_or(Verdict::Void, |Decoded { entry, stamp }| court.judge(*stamp, entry.tags()))
}
