//! `get` and `get_or_set` beyond the nearest level.

use std::{slice, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use tokio::runtime::Handle;

use crate::{
    Access, Entry, Error, ErrorKind, Event, Found, LevelOutcome, MissReason, Moment, Outcome, RawKey, Result,
    Stats, Timeline, Value, Verb,
    cycle::{self, LoadId},
    flight::{Ended, Flight, Loader, SIGN_OF_LIFE},
    inner::{Inner, Seen, State},
    load::{Departure, Terms},
    news::Verdict,
    observers::Spans,
    read::Asked,
    rights::Rights,
    slots::{Role, Ticket},
};

/// Counts one look-up exactly once, also when its caller leaves.
pub(crate) struct Counted<'a> {
    stats: &'a Stats,
    verb: Verb,
    outcome: Outcome,
    level: Option<u8>,
    /// Why it is a miss, should it be one.
    reason: MissReason,
    cost: Duration,
    /// The call's span, to link to the load that it waits for.
    spans: &'a Spans,
    /// The look-up has joined a load that was overtaken, and tries once more.
    again: bool,
}

impl<'a> Counted<'a> {
    pub(crate) fn new(stats: &'a Stats, verb: Verb, spans: &'a Spans) -> Self {
        Self {
            stats,
            verb,
            outcome: Outcome::Miss,
            level: None,
            reason: MissReason::Error,
            cost: Duration::ZERO,
            spans,
            again: false,
        }
    }

    pub(crate) fn missed(&mut self, reason: MissReason) {
        self.reason = reason;
    }

    /// Takes what levels have of the key.
    fn looked<T: Value>(&mut self, asked: &Asked<'_, T>, now: Moment) {
        self.missed(asked.reason);
        if let Some(Seen { entry, .. }) = &asked.fresh {
            self.spans.entry(entry, now);
        }
    }

    pub(crate) const fn reason(&self) -> MissReason {
        self.reason
    }

    /// Counts as what the caller is told, who is told why it was a miss.
    pub(crate) fn as_found<T>(&mut self, found: &mut Found<T>) {
        self.outcome = found.outcome;
        self.level = found.level;
        self.cost = found.cost;
        found.missed(self.reason);
    }

    pub(crate) fn coalesced(&mut self) {
        self.outcome = Outcome::Coalesced;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.stats.lookups(self.verb, self.outcome, self.level, self.reason, 1);
        if self.outcome.saves_a_load() {
            self.stats.saved(self.cost);
        }
    }
}

/// Whether this caller started the load that it waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Leader,
    Waiter,
}

/// What a call with a loader does next about a key that the levels have been asked for.
pub(crate) enum Next<T> {
    Answer(Found<T>),
    /// An answer, and the entry that it is of, which is to be loaded anew.
    Refresh(Found<T>, Entry<T>),
    /// Only a load can answer. What is stale may stand in for one that is slow or fails.
    Load(Option<Seen<T>>),
}

/// What a caller whose key no level had is to do.
pub(crate) enum Taken<T: Value> {
    /// Nothing: somebody else's load has just answered.
    Answered(Found<T>),
    /// Launch this.
    Lead(Departure<T>),
    /// Wait for this, under its ticket still.
    Join(Arc<Flight<T>>, Ticket<T>),
}

/// What waiting for a flight has come to.
pub(crate) enum Awaited<'s, T> {
    Ended(Ended<T>),
    /// The time for it is over, and this stale value may stand in.
    StandsIn(&'s Seen<T>),
    /// The time for it is over, and nothing may stand in.
    Over,
    /// It is a task of another runtime, which stands still.
    Idle,
}

/// What a waiter needs to load for itself.
type Alone<T> = (Ticket<T>, Loader<T>, Access);

/// What becomes of a caller whose key no level had.
enum Aboard<T: Value> {
    /// Somebody else's load has just answered.
    Answered(Found<T>),
    /// It waits, and has what it needs to go on alone unless it leads.
    Waits(Arc<Flight<T>>, Part, Option<Alone<T>>),
}

impl<T: Value> Inner<T> {
    /// A look-up without a loader. `bare`: the nearest level has just been seen to have nothing.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    pub(crate) fn look(
        self: &Arc<Self>,
        key: &RawKey<'_>,
        verb: Verb,
        access: Access,
        bare: bool,
        spans: &Spans,
    ) -> impl Future<Output = Result<Found<T>>> + Send {
        async move {
            self.check_open()?;
            let mut counted = Counted::new(self.stats(), verb, spans);
            let mut asked = Asked::only(*key);
            asked.bare = bare;
            self.observers().asked(&asked.key);
            let now = self.read_for(&mut asked, access).await;
            counted.looked(&asked, now);
            let mut found = self.answer(&mut asked, access, now)?;
            counted.as_found(&mut found);
            Ok(found)
        }
    }

    /// Looks one key up at the levels, unless none is to be asked. Says what time it is.
    async fn read_for(self: &Arc<Self>, asked: &mut Asked<'_, T>, access: Access) -> Moment {
        let now = match access.reads() {
            // In boxes that a thread keeps for itself: see `LARGEST` in the tests of `TracedCache`.
            true => self.read_levels(slice::from_mut(asked), access).boxed().await,
            false => None,
        };
        now.unwrap_or_else(|| self.now())
    }

    /// A look-up with a loader.
    pub(crate) async fn fetch(
        self: &Arc<Self>,
        key: RawKey<'_>,
        verb: Verb,
        access: Access,
        loader: Loader<T>,
        spans: &Spans,
    ) -> Result<Found<T>> {
        self.check_open()?;
        let mut counted = Counted::new(self.stats(), verb, spans);
        self.observers().asked(&key);
        let mut found = self.fetch_counted(key, access, loader, &mut counted).boxed().await;
        // After an error the look-up stays what it was counted as: a miss, or a wait for another's load.
        if let Ok(found) = &mut found {
            counted.as_found(found);
        }
        found
    }

    async fn fetch_counted(
        self: &Arc<Self>,
        key: RawKey<'_>,
        access: Access,
        loader: Loader<T>,
        counted: &mut Counted<'_>,
    ) -> Result<Found<T>> {
        if access == Access::Normal
            && let Some((flight, ticket)) = self.slots.awaited(key)
        {
            counted.coalesced();
            counted.missed(flight.reason);
            // Its leader believed the stale value when it asked.
            let stale = match &flight.stale {
                Some(seen) => {
                    let verdict = self.surely(&seen.entry).boxed().await;
                    matches!(verdict, Verdict::Valid | Verdict::Expired).then_some(seen)
                }
                None => None,
            };
            let again = Some((ticket, loader, access));
            return self.attend(&flight, Part::Waiter, stale, again, counted).boxed().await;
        }
        let mut asked = Asked::new(key);
        let now = self.read_for(&mut asked, access).await;
        counted.looked(&asked, now);
        self.meet_levels(access).await;
        let stale = match self.decide(&mut asked, access, now) {
            Next::Answer(found) => return Ok(found),
            Next::Refresh(found, held) => {
                let terms = Terms { background: true, ..Terms::NORMAL };
                self.refresh(key, asked.ticket.as_ref(), &held, LoadId::next(), |departure| {
                    // Without a runtime there is no refresh; the caller has its answer.
                    let _ = self.launch(departure, loader, terms);
                });
                return Ok(found);
            }
            Next::Load(stale) => stale,
        };
        let ticket = asked.ticket.take().unwrap_or_else(|| self.slots.open(key));
        let rights = std::mem::take(&mut asked.rights);
        match self.lead_or_join(access, ticket, rights, stale.as_ref(), loader, counted)? {
            Aboard::Answered(found) => Ok(found),
            Aboard::Waits(flight, part, alone) => {
                self.attend(&flight, part, stale.as_ref(), alone, counted).boxed().await
            }
        }
    }

    /// Says what a call with a loader does next about a key that the levels have been asked for.
    pub(crate) fn decide(&self, asked: &mut Asked<'_, T>, access: Access, now: Moment) -> Next<T> {
        if let Some(Seen { entry, level }) = asked.fresh.take() {
            let outcome = match entry.value {
                None => Outcome::Absent,
                Some(_) if asked.met_a_load => Outcome::Coalesced,
                Some(_) => Outcome::Hit,
            };
            if access != Access::CacheOnly && self.wants_early(&entry, now) {
                return Next::Refresh(entry.found(outcome, Some(level), now), entry);
            }
            return Next::Answer(entry.into_found(outcome, Some(level), now));
        }
        if access == Access::CacheOnly {
            return Next::Answer(Found::miss());
        }
        let Some(Seen { entry, level }) = asked.take_stale() else { return Next::Load(None) };
        if access == Access::AllowStale || entry.retry_at().is_some_and(|at| now < at) {
            return Next::Answer(entry.into_found(Outcome::Stale, Some(level), now));
        }
        if access == Access::Normal && now < entry.timeline.fresh_until.after(self.policy().revalidate) {
            return Next::Refresh(entry.found(Outcome::Stale, Some(level), now), entry);
        }
        Next::Load(Some(Seen { entry, level }))
    }

    /// Begins a refresh that nobody waits for, which `depart` is to launch, unless one is under way or `held`, which was
    /// read under `ticket`, has been overtaken: a load that fails would put it back.
    pub(crate) fn refresh(
        self: &Arc<Self>,
        key: RawKey<'_>,
        ticket: Option<&Ticket<T>>,
        held: &Entry<T>,
        load: LoadId,
        depart: impl FnOnce(Departure<T>),
    ) {
        let Some((ticket, held)) = self.still(key, ticket, held) else { return };
        let start = |_| Flight::new(load, false, None, MissReason::Bypassed);
        if let Role::Lead(flight, own) = self.slots.role(&ticket, |_| false, || None::<()>, start) {
            let held = ticket.is_current().then_some(held);
            depart(Departure { flight, ticket: own, held, rights: Rights::new() });
        }
    }

    /// Starts a load of the ticket's key, or joins the one under way.
    fn lead_or_join(
        self: &Arc<Self>,
        access: Access,
        ticket: Ticket<T>,
        rights: Rights,
        stale: Option<&Seen<T>>,
        loader: Loader<T>,
        counted: &mut Counted<'_>,
    ) -> Result<Aboard<T>> {
        match self.take_role(access, ticket, rights, stale, LoadId::next, counted)? {
            Taken::Answered(found) => Ok(Aboard::Answered(found)),
            Taken::Lead(departure) => {
                let flight = Arc::clone(&departure.flight);
                self.launch(departure, loader, Terms::of(access))?;
                Ok(Aboard::Waits(flight, Part::Leader, None))
            }
            Taken::Join(flight, ticket) => {
                Ok(Aboard::Waits(flight, Part::Waiter, Some((ticket, loader, access))))
            }
        }
    }

    /// Has a caller whose key no level had begin a load of it, which the caller is to launch, or join the one under way.
    pub(crate) fn take_role(
        self: &Arc<Self>,
        access: Access,
        ticket: Ticket<T>,
        rights: Rights,
        stale: Option<&Seen<T>>,
        load: impl FnOnce() -> LoadId,
        counted: &mut Counted<'_>,
    ) -> Result<Taken<T>> {
        let key = ticket.key(&self.around);
        let recheck = || if access.reads() { self.refilled(key) } else { None };
        let reason = counted.reason;
        let start = |current: bool| {
            Flight::new(load(), access.reads(), stale.cloned().filter(|_| current), reason).led()
        };
        let role = self.slots.role(&ticket, |ended| self.serves(ended), recheck, start);
        if let Role::Lead(flight, own) = role {
            let held = flight.stale.as_ref().map(|seen| seen.entry.clone());
            return Ok(Taken::Lead(Departure { flight, ticket: own, held, rights }));
        }
        self.give_back(key, rights);
        match role {
            Role::Filled(seen) => Ok(Taken::Answered(self.served(&seen))),
            Role::Landed(ended) => {
                counted.coalesced();
                self.conclude(ended, stale, Outcome::Coalesced).map(Taken::Answered)
            }
            Role::Lead(flight, _) | Role::Join(flight) => {
                counted.coalesced();
                Ok(Taken::Join(flight, ticket))
            }
        }
    }

    /// Whether what a load has left is still valid, as far as this node knows, and still fresh. An answer that is kept
    /// nowhere never was fresh: whoever asked in time may have it all the same.
    fn serves(&self, ended: &Ended<T>) -> bool {
        match ended {
            Ended::Entry { entry, .. } => {
                let Timeline { born, fresh_until, .. } = entry.timeline;
                (fresh_until <= born || self.now() < fresh_until) && self.verdict(entry) == Verdict::Valid
            }
            // Whoever cancelled it, or ended its runtime, did not know that somebody was about to wait for it.
            Ended::Failed { error, .. } => error.kind() != ErrorKind::LoadAborted,
        }
    }

    /// Whether a stale value may stand in.
    pub(crate) fn stands_in(&self, seen: &Seen<T>) -> bool {
        seen.entry.state(self.now()) != State::Dead && !self.verdict(&seen.entry).is_void()
    }

    /// Whether the nearest level has been filled since this caller looked.
    fn refilled(&self, key: RawKey<'_>) -> Option<Seen<T>> {
        let tier = self.tiers.first()?;
        self.peek_surely(key, tier)
            .filter(|entry| entry.state(self.now()) == State::Fresh)
            .map(|entry| Seen { entry, level: tier.index })
    }

    /// Waits for a flight as long as this caller should.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    fn attend(
        self: &Arc<Self>,
        flight: &Arc<Flight<T>>,
        part: Part,
        stale: Option<&Seen<T>>,
        alone: Option<Alone<T>>,
        counted: &mut Counted<'_>,
    ) -> impl Future<Output = Result<Found<T>>> + Send {
        async move {
            let joins = part == Part::Waiter && !counted.again;
            let late = joins && flight.has_begun();
            let waiting = match part {
                Part::Leader => flight.leading(),
                Part::Waiter => flight.waiting(),
            };
            let edge = wait_for(flight)?;
            let from = self.now();
            let budget = if part == Part::Waiter { self.policy().wait } else { None };
            let awaited = self.wait_for_end(flight, stale, from, budget).await;
            let outcome = match part {
                Part::Leader => Outcome::Loaded,
                Part::Waiter => {
                    self.has_waited(flight, from, counted);
                    Outcome::Coalesced
                }
            };
            drop(edge);
            let (fallback, idle) = match awaited {
                Awaited::Ended(ended) => {
                    let overtaken = joins && self.was_overtaken(flight, &ended, late).await;
                    if let (true, Some((ticket, loader, access))) = (overtaken, alone) {
                        return self.load_again(&ticket, stale.cloned(), loader, access, counted).await;
                    }
                    return self.conclude(ended, stale, outcome);
                }
                Awaited::StandsIn(seen) => (Some(seen), flight.stands_still(self.now())),
                Awaited::Over => (None, flight.stands_still(self.now())),
                Awaited::Idle => (stale.filter(|seen| self.stands_in(seen)), true),
            };
            if let (true, Some((ticket, ..))) = (idle, &alone) {
                // Should its runtime go on, what it comes to is its own callers' only.
                self.slots.disown(ticket.key(&self.around), flight);
            }
            if let Some(Seen { entry, level }) = fallback {
                // Others may have nothing to fall back on.
                let policy = self.policy();
                let is_late = policy.soft.is_some_and(|soft| self.now().since(from) >= soft);
                if is_late && !policy.complete && waiting.is_last() {
                    flight.abort();
                }
                return Ok(entry.found(Outcome::Stale, Some(*level), self.now()));
            }
            let Some((ticket, loader, access)) = alone else {
                return self.conclude(flight.wait().await, None, outcome);
            };
            if idle {
                return self.load_again(&ticket, stale.cloned(), loader, access, counted).await;
            }
            // The wait budget is over: load alone. The value stays out of remote levels, where it would need the right that
            // the other load holds.
            let own = Flight::new(LoadId::next(), true, None, counted.reason);
            let _edge = wait_for(&own)?;
            let departure = Departure { flight: Arc::clone(&own), ticket, held: None, rights: Rights::new() };
            self.launch(departure, loader, Terms { remote: false, ..Terms::of(access) })?;
            self.conclude(own.wait().await, stale, Outcome::Loaded)
        }
    }

    /// Whether what a caller has joined, `late` if that had begun before, has ended with something that this caller must not
    /// be given: an entry that may be older than an invalidation which it has to see, or another's cancellation.
    pub(crate) async fn was_overtaken(&self, flight: &Flight<T>, ended: &Ended<T>, late: bool) -> bool {
        match ended {
            // What a level had after all was read there at some time while this caller waited, or before.
            Ended::Entry { accepted, entry, level } => {
                (late || level.is_some()) && !(*accepted && self.believes(entry).boxed().await)
            }
            // Who cancelled it did not know that this caller was about to wait, and a runtime that ends takes along what others
            // wait for.
            Ended::Failed { error, .. } => {
                flight.is_aborted() || error.kind() == ErrorKind::LoadAborted && !self.tasks.is_closed()
            }
        }
    }

    /// Waits for the end of a flight: with a stale value at hand for the soft limit, and for no longer than `budget`, if there
    /// is one. Both count from `from`.
    pub(crate) async fn wait_for_end<'s>(
        &self,
        flight: &Flight<T>,
        stale: Option<&'s Seen<T>>,
        from: Moment,
        budget: Option<Duration>,
    ) -> Awaited<'s, T> {
        let left = |limit: Duration| limit.saturating_sub(self.now().since(from));
        let soft = stale.and_then(|_| self.policy().soft);
        if let Some(limit) = [soft, budget].into_iter().flatten().min() {
            if let Some(ended) = self.around.clock.timeout(left(limit), flight.wait()).await {
                return Awaited::Ended(ended);
            }
            if let Some(seen) = stale.filter(|seen| self.stands_in(seen)) {
                return Awaited::StandsIn(seen);
            }
            // Nothing to fall back on, or it died meanwhile: only a load can answer.
        }
        match budget.map(left) {
            None => self.await_end(flight).await.map_or(Awaited::Idle, Awaited::Ended),
            Some(Duration::ZERO) => Awaited::Over,
            Some(rest) => {
                let ended = self.around.clock.timeout(rest, flight.wait()).await;
                ended.map_or(Awaited::Over, Awaited::Ended)
            }
        }
    }

    /// Waits for the end of a flight, however long that takes. `None`: it is a task of another runtime, which stands still.
    async fn await_end(&self, flight: &Flight<T>) -> Option<Ended<T>> {
        match flight.elsewhere() {
            None => Some(flight.wait().await),
            // Boxed: hardly any process has two.
            Some(home) => self.await_end_elsewhere(flight, home).boxed().await,
        }
    }

    async fn await_end_elsewhere(&self, flight: &Flight<T>, home: &Handle) -> Option<Ended<T>> {
        loop {
            if let Some(ended) = self.around.clock.timeout(SIGN_OF_LIFE, flight.wait()).await {
                return Some(ended);
            }
            let sign_of_life = home.spawn(async {});
            let unasked = sign_of_life.abort_handle();
            if self.around.clock.timeout(SIGN_OF_LIFE, sign_of_life).await.is_none() {
                unasked.abort();
                return None;
            }
        }
    }

    /// Tells that a look-up has waited for a load that is not its own.
    pub(crate) fn has_waited(&self, flight: &Flight<T>, from: Moment, counted: &Counted<'_>) {
        self.observers().event(&Event::Coalesced { waited: self.now().since(from) });
        if let Some(load) = flight.spans.get() {
            counted.spans.link(load);
        }
    }

    /// The load that this caller joined was overtaken, and had begun before this call: its value may be older than an
    /// invalidation that this caller must see. Those in the same place share one new load, which begins after they called.
    fn load_again<'a>(
        self: &'a Arc<Self>,
        ticket: &'a Ticket<T>,
        stale: Option<Seen<T>>,
        loader: Loader<T>,
        access: Access,
        counted: &'a mut Counted<'_>,
    ) -> BoxFuture<'a, Result<Found<T>>> {
        async move {
            // Once: whatever it joins now began after it called.
            counted.again = true;
            let key = ticket.key(&self.around);
            self.meet_levels(access).await;
            let own = self.slots.open(key);
            // An expiry leaves it there, an invalidation does not.
            let stale = stale.and_then(|seen| self.held_nearby(key, seen.entry.id));
            let stale = stale.as_ref();
            match self.lead_or_join(access, own, Rights::new(), stale, loader, counted)? {
                Aboard::Answered(found) => Ok(found),
                Aboard::Waits(flight, part, alone) => self.attend(&flight, part, stale, alone, counted).await,
            }
        }
        .boxed()
    }

    /// A level has answered after all, when it was asked once more.
    pub(crate) fn served(&self, seen: &Seen<T>) -> Found<T> {
        let (outcome, at_level) = match seen.entry.value {
            Some(_) => (Outcome::Hit, LevelOutcome::Hit),
            None => (Outcome::Absent, LevelOutcome::Negative),
        };
        self.stats().level(seen.level, at_level, 1);
        seen.entry.found(outcome, Some(seen.level), self.now())
    }

    /// A flight's end, as one caller sees it.
    pub(crate) fn conclude(
        &self,
        ended: Ended<T>,
        stale: Option<&Seen<T>>,
        outcome: Outcome,
    ) -> Result<Found<T>> {
        let now = self.now();
        match ended {
            Ended::Entry { entry, level: Some(level), .. } if outcome == Outcome::Loaded => {
                Ok(self.served(&Seen { entry, level }))
            }
            Ended::Entry { entry, .. } => Ok(entry.found(outcome, None, now)),
            Ended::Failed { error, surface } => match stale {
                Some(seen) if !surface && self.stands_in(seen) => {
                    Ok(seen.entry.found(Outcome::Stale, Some(seen.level), now))
                }
                _ => Err(error),
            },
        }
    }
}

/// Notes that this caller waits for a flight.
pub(crate) fn wait_for<T>(flight: &Flight<T>) -> Result<cycle::Waiting> {
    let waiting = cycle::wait_for(flight.load).ok_or_else(|| {
        Error::new(
            ErrorKind::Cycle,
            "a loader asks, directly or through others, for the key that it is loading",
        )
    })?;
    if waiting.is_of_a_load() {
        flight.is_needed();
    }
    Ok(waiting)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Clock, Policy, TracedCache,
        testing::{ObjectsOnly, conformance::object_store::tests::fifo},
    };

    /// It would put back what it found, and have it left in peace for a while: fresh once more.
    #[tokio::test]
    async fn a_refresh_that_fails_does_not_undo_an_expiry_that_came_before_it_began() {
        let cache: TracedCache<u32> = TracedCache::builder("expired")
            .level(ObjectsOnly(fifo(10)))
            .clock(Clock::manual().0)
            .policy(Policy::ttl(Duration::from_secs(10)).grace(Duration::from_secs(60)))
            .build()
            .unwrap();
        assert!(cache.set("k", 1).await.unwrap().is_confirmed());
        let inner = &cache.inner;
        let key = inner.key("k").unwrap();
        // By a hit who is about to have it refreshed.
        let found = inner.peek_surely(key, &inner.tiers[0]).unwrap();
        assert!(cache.expire("k").await.unwrap().is_confirmed());
        let mut loads = 0;
        inner.refresh(key, None, &found, LoadId::next(), |departure| {
            let loader: Loader<u32> = Box::new(|_| async { Err("no database".into()) }.boxed());
            inner.launch(departure, loader, Terms { background: true, ..Terms::NORMAL }).unwrap();
            loads += 1;
        });
        while cache.stats().load_errors < loads {
            tokio::task::yield_now().await;
        }
        let outcome = async |access| cache.access(access).look("k").await.unwrap().outcome();
        assert_eq!(outcome(Access::Normal).await, Outcome::Miss);
        assert_eq!(outcome(Access::AllowStale).await, Outcome::Stale);
    }

    /// Whoever joins in another thread, and gives up at once, would cancel the load under who has just begun it.
    #[tokio::test]
    async fn who_begins_a_load_waits_for_it_before_anybody_can_join() {
        let cache: TracedCache<u32> =
            TracedCache::builder("begun").level(ObjectsOnly(fifo(10))).build().unwrap();
        let inner = &cache.inner;
        let spans = Spans::default();
        let mut counted = Counted::new(inner.stats(), Verb::GetOrSet, &spans);
        let ticket = inner.slots.open(inner.key("k").unwrap());
        let role = inner.take_role(Access::Normal, ticket, Rights::new(), None, LoadId::next, &mut counted);
        let Ok(Taken::Lead(departure)) = role else { panic!("nobody else loads") };
        assert!(!departure.flight.waiting().is_last());
    }
}
