//! Running loaders: one flight per key, owned by the runtime, and what becomes of its answer.

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use futures::{
    FutureExt, StreamExt,
    future::{Either, select},
    stream::FuturesUnordered,
};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    BoxError, Entry, EntryId, Error, ErrorKind, Event, Extra, Held, LoadEnd, Loaded, Moment, RawKey, Result,
    SpanKind, SpanStart, Value, cycle,
    cycle::LoadId,
    fill::Outgoing,
    flight::{Ended, Flight, Loader},
    inner::Inner,
    loaded::Answered,
    observe::{Ambient, within},
    slots::Ticket,
};

/// How a load relates to its callers and to the levels.
#[derive(Clone, Copy)]
pub(crate) struct Terms {
    /// Nobody waits for it.
    pub(crate) background: bool,
    /// Its value may go to remote levels. A caller whose wait budget ended loads without that right.
    pub(crate) remote: bool,
    /// Its value is stored at all.
    pub(crate) store: bool,
}

impl Terms {
    pub(crate) const NORMAL: Self = Self { background: false, remote: true, store: true };
}

/// A flight to start: the ticket is its own.
pub(crate) struct Departure<T> {
    pub(crate) flight: Arc<Flight<T>>,
    pub(crate) ticket: Ticket<T>,
    pub(crate) held: Option<Entry<T>>,
}

/// Ends flights whatever happens to their task: a panic of ours, an abort, a runtime that shuts down.
struct Landing<T: Value> {
    inner: Arc<Inner<T>>,
    open: Vec<(Arc<Flight<T>>, Ticket<T>)>,
}

impl<T: Value> Landing<T> {
    fn land(&mut self, at: usize, ended: Ended<T>) {
        let (flight, ticket) = &self.open[at];
        ticket.land(flight, &ended);
        flight.end(ended);
    }
}

impl<T: Value> Drop for Landing<T> {
    fn drop(&mut self) {
        for (flight, ticket) in &self.open {
            let ended = Ended::Failed {
                error: Error::new(ErrorKind::LoadAborted, "the load was aborted before it ended"),
                surface: false,
            };
            ticket.land(flight, &ended);
            // Ends only flights that have not ended: the first ending counts.
            flight.end(ended);
        }
        self.inner.stats().flights().fetch_sub(self.open.len(), std::sync::atomic::Ordering::Relaxed);
    }
}

/// What came of running a loader.
pub(crate) struct Ran<A> {
    pub(crate) answer: Result<A, Failed>,
    pub(crate) born: Moment,
    pub(crate) cost: Duration,
    /// Taken before the loader began.
    pub(crate) stamps: Vec<crate::Stamp>,
    pub(crate) seen: u32,
}

pub(crate) struct Failed {
    pub(crate) error: Error,
    pub(crate) surface: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, surface: false }
    }
}

fn load_failed(cause: BoxError) -> Error {
    // A loader that asked a cache and passes on what that said keeps its kind: a cycle stays a cycle.
    match cause.downcast::<Error>() {
        Ok(inner) if inner.kind() == ErrorKind::Cycle => *inner,
        Ok(inner) => Error::with_source(ErrorKind::Load, format!("the load failed: {inner}"), inner),
        Err(cause) => Error::with_source(ErrorKind::Load, format!("the load failed: {cause}"), cause),
    }
}

/// Waits for a turn among the loads of the cache. A load that another one waits for goes ahead without: that one may
/// hold the turn which it would wait for.
async fn turn<'a, T>(permits: &'a Semaphore, flights: &[Arc<Flight<T>>]) -> Option<SemaphorePermit<'a>> {
    let mut needed: FuturesUnordered<_> = flights.iter().map(|flight| flight.needed()).collect();
    match select(pin!(permits.acquire()), needed.next()).await {
        // Closed never: the semaphore lives as long as the cache.
        Either::Left((permit, _)) => permit.ok(),
        Either::Right(_) => None,
    }
}

impl<T: Value> Inner<T> {
    /// Runs a loader: permit, hard limit, panic, cycle bookkeeping, telemetry.
    pub(crate) async fn run<A>(
        &self,
        load: LoadId,
        keys: usize,
        background: bool,
        flights: &[Arc<Flight<T>>],
        loader: impl Future<Output = Result<A, BoxError>> + Send,
    ) -> Ran<A> {
        let _permit = match &self.permits {
            Some(permits) => turn(permits, flights).await,
            None => None,
        };
        let spans =
            self.observers().span(&SpanStart { kind: SpanKind::Load, key: None, keys, root: background });
        for flight in flights {
            // Set once, here.
            let _ = flight.spans.set(spans.clone());
        }
        let stamps = self.stamps();
        let seen = self.generation();
        let born = self.now();
        let guarded = AssertUnwindSafe(spans.around(cycle::running(load, loader))).catch_unwind();
        let ended = match self.policy.hard {
            Some(limit) => self.around.clock.timeout(limit, guarded).await,
            None => Some(guarded.await),
        };
        let answer = match ended {
            Some(Ok(Ok(answer))) => Ok(answer),
            Some(Ok(Err(cause))) => Err(load_failed(cause).into()),
            Some(Err(_panic)) => Err(Error::new(ErrorKind::LoadPanicked, "the loader panicked").into()),
            None => Err(Error::new(
                ErrorKind::LoadTimeout,
                format!("the loader ran into its hard limit of {:?}", self.policy.hard.unwrap_or_default()),
            )
            .into()),
        };
        if let Err(Failed { error, .. }) = &answer {
            spans.failed(error.kind().as_str());
        }
        Ran { answer, born, cost: self.now().since(born), stamps, seen }
    }

    /// Starts the flight of one key in a task of its own.
    pub(crate) fn launch(
        self: &Arc<Self>,
        departure: Departure<T>,
        loader: Loader<T>,
        terms: Terms,
    ) -> Result<()> {
        let Departure { flight, ticket, held } = departure;
        let inner = Arc::clone(self);
        let around: Vec<Arc<dyn Ambient>> = self.observers().ambient();
        self.stats().flights().fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut landing = Landing { inner: Arc::clone(self), open: vec![(Arc::clone(&flight), ticket)] };
        let load = flight.load;
        let flights = [Arc::clone(&flight)];
        let task = self.spawn(within(around, async move {
            let shown = held.as_ref().and_then(|entry| inner.held(entry));
            let ran =
                inner.run(load, 1, terms.background, &flights, async move { loader(shown).await }).await;
            let ticket = &landing.open[0].1;
            let key = ticket.key(&inner.around);
            let ended = inner.settle(key, ticket, ran, held.as_ref(), terms).await;
            landing.land(0, ended);
        }));
        match task {
            Some(task) => {
                flight.runs_as(task);
                Ok(())
            }
            None => Err(Error::new(
                ErrorKind::NoRuntime,
                "loads run as tokio tasks: call from inside a tokio runtime",
            )),
        }
    }

    fn held(&self, entry: &Entry<T>) -> Option<Held<T>> {
        Some(Held {
            value: Arc::clone(entry.value.as_ref()?),
            etag: entry.extra.as_ref().and_then(|e| e.etag.clone()),
            age: self.now().since(entry.timeline.born),
        })
    }

    /// Stores what a load of one key answered, as far as it has not been overtaken.
    async fn settle(
        self: &Arc<Self>,
        key: RawKey<'_>,
        ticket: &Ticket<T>,
        ran: Ran<Loaded<T>>,
        held: Option<&Entry<T>>,
        terms: Terms,
    ) -> Ended<T> {
        let Ran { answer, born, cost, stamps, seen } = ran;
        let made = answer.and_then(|loaded| self.make(loaded, born, cost, held));
        self.loaded(cost, terms.background, 1, made.as_ref().map(|m| m.end).map_err(|f| f.error.kind()));
        let made = match made {
            Ok(made) => made,
            Err(Failed { error, surface }) => {
                if !surface {
                    self.throttle(key, ticket, held, seen);
                }
                return Ended::Failed { error, surface };
            }
        };
        let entry = made.entry.clone();
        if terms.store {
            let mut item = [Outgoing::new(key, made.entry)];
            self.store(&mut item, std::slice::from_ref(ticket), &[made.keep], &stamps, seen, terms.remote)
                .await;
        }
        Ended::Entry(entry)
    }

    /// Stores new entries at every level, or removes what they replace.
    pub(crate) async fn store(
        self: &Arc<Self>,
        items: &mut [Outgoing<'_, T>],
        tickets: &[Ticket<T>],
        keep: &[Keep],
        stamps: &[crate::Stamp],
        seen: u32,
        remote: bool,
    ) {
        for ((item, ticket), keep) in items.iter().zip(tickets).zip(keep) {
            if *keep == Keep::Forget && ticket.is_current() {
                // Not an invalidation: what is forgotten is older than what the caller got.
                self.forget(item.key, ticket, remote).await;
            }
        }
        let below = if remote {
            self.tiers.len()
        } else {
            self.tiers.iter().take_while(|t| t.store.is_some()).count()
        };
        if keep.iter().all(|k| *k == Keep::Store) {
            self.fill(items, tickets, below, stamps, seen).await;
            return;
        }
        let (mut kept, mut kept_tickets) = (Vec::new(), Vec::new());
        for ((item, ticket), keep) in items.iter().zip(tickets).zip(keep) {
            if *keep == Keep::Store {
                kept.push(Outgoing::new(item.key, item.entry.clone()));
                kept_tickets.push(ticket.again());
            }
        }
        self.fill(&mut kept, &kept_tickets, below, stamps, seen).await;
    }

    /// Removes what levels hold of a key that the source no longer has.
    async fn forget(self: &Arc<Self>, key: RawKey<'_>, ticket: &Ticket<T>, remote: bool) {
        let _order = if remote && self.has_remote() { self.in_order(&[ticket]).await } else { Vec::new() };
        if !ticket.is_current() {
            return;
        }
        for tier in self.tiers.iter().rev() {
            match &tier.store {
                Some(store) => {
                    ticket.commit(|| store.remove(key));
                }
                None if remote => {
                    tier.remove_many(&self.around, &[key]).await;
                }
                None => {}
            }
        }
        self.replay();
    }

    /// After a failed refresh: leaves the held entry alone for a while.
    fn throttle(&self, key: RawKey<'_>, ticket: &Ticket<T>, held: Option<&Entry<T>>, seen: u32) {
        let Some(held) = held.filter(|_| !self.policy.throttle.is_zero()) else { return };
        if let Some(tier) = self.tiers.first().filter(|t| t.store.is_some()) {
            let entry = self.throttled(held, self.now());
            self.keep(key, &entry, tier, ticket, seen);
        }
    }

    /// Reports a load that ended.
    pub(crate) fn loaded(
        &self,
        cost: Duration,
        background: bool,
        keys: usize,
        end: Result<LoadEnd, ErrorKind>,
    ) {
        let end = end.unwrap_or_else(LoadEnd::Failed);
        self.stats().load(cost, end);
        self.observers().event(&Event::Load { elapsed: cost, end, background, keys });
    }

    /// Makes the entry of a loader's answer.
    pub(crate) fn make(
        &self,
        loaded: Loaded<T>,
        born: Moment,
        cost: Duration,
        held: Option<&Entry<T>>,
    ) -> Result<Made<T>, Failed> {
        let Loaded { answer, ttl, grace, mut extra, surface } = loaded;
        let (value, end, keep) = match answer {
            Answered::Value(value) => (Some(value), LoadEnd::Value, Keep::Store),
            Answered::Absent => (None, LoadEnd::Absent, Keep::Store),
            Answered::DoNotStore(value) => (value, LoadEnd::NotStored, Keep::Nothing),
            Answered::Unchanged => {
                let Some((value, old)) = held.and_then(|h| h.value.clone().map(|v| (v, h.extra.as_deref())))
                else {
                    let error = Error::new(
                        ErrorKind::Load,
                        "the loader answered `unchanged`, but no value was held for the key",
                    );
                    return Err(Failed { error, surface });
                };
                if let Some(old) = old {
                    extra.etag = extra.etag.or_else(|| old.etag.clone());
                    if extra.tags.is_empty() {
                        extra.tags.clone_from(&old.tags);
                    }
                }
                (Some(value), LoadEnd::Unchanged, Keep::Store)
            }
            Answered::Failed(cause) => return Err(Failed { error: load_failed(cause), surface }),
        };
        let timeline = self.timeline(born, value.is_none(), ttl, grace);
        let keep = match keep {
            // Nothing to keep: a ttl of zero, or absences are not remembered. What was there is out of date.
            Keep::Store if timeline.fresh_until <= born => Keep::Forget,
            keep => keep,
        };
        let entry = Entry {
            value,
            timeline,
            id: EntryId::random(),
            stamp: crate::Stamp::default(),
            cost,
            by_set: false,
            extra: Extra { retry_at: None, ..extra }.boxed(),
            encoded: None,
        };
        Ok(Made { entry, end, keep })
    }

    /// Starts one task for the flights of a batch.
    pub(crate) fn launch_many(
        self: &Arc<Self>,
        load: LoadId,
        departures: Vec<Departure<T>>,
        terms: Terms,
        loader: impl Future<Output = Result<Vec<Option<Loaded<T>>>, BoxError>> + Send + 'static,
    ) -> Result<()> {
        let inner = Arc::clone(self);
        let around = self.observers().ambient();
        self.stats().flights().fetch_add(departures.len(), std::sync::atomic::Ordering::Relaxed);
        let (open, held): (Vec<_>, Vec<_>) =
            departures.into_iter().map(|d| ((d.flight, d.ticket), d.held)).unzip();
        let flights: Vec<_> = open.iter().map(|(flight, _)| Arc::clone(flight)).collect();
        let mut landing = Landing { inner: Arc::clone(self), open };
        let spawned = self.spawn(within(around, async move {
            let ran = inner.run(load, flights.len(), false, &flights, loader).await;
            inner.settle_many(&mut landing, ran, &held, terms).await;
        }));
        if spawned.is_none() {
            return Err(Error::new(
                ErrorKind::NoRuntime,
                "loads run as tokio tasks: call from inside a tokio runtime",
            ));
        }
        Ok(())
    }

    async fn settle_many(
        self: &Arc<Self>,
        landing: &mut Landing<T>,
        ran: Ran<Vec<Option<Loaded<T>>>>,
        held: &[Option<Entry<T>>],
        terms: Terms,
    ) {
        let Ran { answer, born, cost, stamps, seen } = ran;
        let count = held.len();
        let answers = match answer {
            Ok(answers) => {
                self.loaded(cost, false, count, Ok(LoadEnd::Value));
                answers
            }
            Err(Failed { error, surface }) => {
                self.loaded(cost, false, count, Err(error.kind()));
                for at in 0..count {
                    let ticket = &landing.open[at].1;
                    self.throttle(ticket.key(&self.around), ticket, held[at].as_ref(), seen);
                    landing.land(at, Ended::Failed { error: error.clone(), surface });
                }
                return;
            }
        };
        let mut ended = Vec::with_capacity(count);
        let mut items = Vec::new();
        let mut tickets = Vec::new();
        let mut keep = Vec::new();
        let open: Vec<_> = landing.open.iter().map(|(_, ticket)| ticket.again()).collect();
        for ((ticket, held), loaded) in open.iter().zip(held).zip(answers) {
            let loaded = loaded.unwrap_or_else(Loaded::absent);
            match self.make(loaded, born, cost, held.as_ref()) {
                Ok(made) => {
                    ended.push(Ended::Entry(made.entry.clone()));
                    items.push(Outgoing::new(ticket.key(&self.around), made.entry));
                    tickets.push(ticket.again());
                    keep.push(made.keep);
                }
                Err(Failed { error, surface }) => {
                    self.throttle(ticket.key(&self.around), ticket, held.as_ref(), seen);
                    ended.push(Ended::Failed { error, surface });
                }
            }
        }
        if terms.store {
            self.store(&mut items, &tickets, &keep, &stamps, seen, terms.remote).await;
        }
        for (at, ended) in ended.into_iter().enumerate() {
            landing.land(at, ended);
        }
    }
}

/// What to do with an entry that a load made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    Store,
    /// Store nothing and remove what levels hold.
    Forget,
    /// Leave the levels alone.
    Nothing,
}

pub(crate) struct Made<T> {
    pub(crate) entry: Entry<T>,
    pub(crate) end: LoadEnd,
    pub(crate) keep: Keep,
}
