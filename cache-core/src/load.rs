//! Running loaders: one flight per key, owned by the runtime.

use std::{
    iter::zip,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Either, join, join_all, select},
    stream::{self, FuturesUnordered},
};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{
    Access, Begun, BoxError, Entry, Error, ErrorKind, Held, Loaded, Moment, RawKey, Result, SpanKind,
    SpanStart, Value, cycle,
    cycle::LoadId,
    fill::Outgoing,
    flight::{Ended, Flight, Loader},
    inner::{Inner, Seen},
    news::Verdict,
    rights::{LEASE, Rights, Standing, Wish},
    slots::Ticket,
    within::within,
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
    /// Levels were read before: what is not in `held` they do not have.
    pub(crate) read: bool,
}

impl Terms {
    pub(crate) const NORMAL: Self = Self { background: false, remote: true, store: true, read: true };

    /// Those of a call with this access.
    pub(crate) fn of(access: Access) -> Self {
        Self { store: access != Access::Bypass, read: access.reads(), ..Self::NORMAL }
    }

    /// Whether its value goes to remote levels.
    fn fills(self) -> bool {
        self.remote && self.store
    }

    /// What the load asks leasing levels for. An entry that nobody was to read is no answer to it.
    fn wish<'k, T>(self, key: RawKey<'k>, held: Option<&Entry<T>>, rights: Rights) -> Wish<'k, T> {
        if self.read { Wish::new(key, held, rights) } else { Wish::replacing(key, rights) }
    }
}

/// A flight to start: the ticket is its own.
pub(crate) struct Departure<T> {
    pub(crate) flight: Arc<Flight<T>>,
    pub(crate) ticket: Ticket<T>,
    pub(crate) held: Option<Entry<T>>,
    /// Leases taken while levels were read.
    pub(crate) rights: Rights,
}

/// A batch's loader: gets positions among the keys asked for, answers in their order. Called once, and again for keys that
/// other processes were loading and gave up.
pub(crate) type ManyLoader<T> =
    Arc<dyn Fn(Vec<usize>) -> BoxFuture<'static, Result<Vec<Option<Loaded<T>>>, BoxError>> + Send + Sync>;

/// Ends flights whatever happens to their task: a panic of ours, an abort, a runtime that shuts down.
pub(crate) struct Landing<T: Value> {
    inner: Arc<Inner<T>>,
    pub(crate) open: Vec<(Arc<Flight<T>>, Ticket<T>)>,
    /// The leases of each, to give back should the task be dropped.
    lent: Mutex<Vec<(usize, Rights)>>,
}

impl<T: Value> Landing<T> {
    fn lend(&self, at: usize, rights: &Rights) {
        if !rights.is_empty() {
            self.lent.lock().unwrap_or_else(PoisonError::into_inner).push((at, rights.clone()));
        }
    }

    fn key(&self, at: usize) -> RawKey<'_> {
        self.open[at].1.key(&self.inner.around)
    }

    pub(crate) fn land(&self, at: usize, ended: Ended<T>) {
        let (flight, ticket) = &self.open[at];
        ticket.land(flight, &ended);
        // Before its callers are told.
        self.inner.stats().flights().fetch_sub(1, Ordering::Relaxed);
        flight.end(ended);
    }
}

impl<T: Value> Drop for Landing<T> {
    fn drop(&mut self) {
        for (at, rights) in std::mem::take(&mut *self.lent.lock().unwrap_or_else(PoisonError::into_inner)) {
            if !self.open[at].0.has_ended() {
                self.inner.give_back(self.key(at), rights);
            }
        }
        for (at, _) in self.open.iter().enumerate().filter(|(_, (flight, _))| !flight.has_ended()) {
            let error = Error::new(ErrorKind::LoadAborted, "the load was aborted before it ended");
            self.land(at, Ended::Failed { error, surface: false });
        }
    }
}

/// A load about to run: for which of a task's flights, and with which leases.
pub(crate) struct Load<'k, T> {
    load: LoadId,
    pub(crate) of: Vec<OneOf<T>>,
    /// Of each.
    pub(crate) rights: Vec<(RawKey<'k>, Rights)>,
    pub(crate) terms: Terms,
}

/// One of the flights that a load is for.
pub(crate) struct OneOf<T> {
    pub(crate) at: usize,
    /// A writer keeps its key: stored nowhere.
    pub(crate) kept: bool,
    /// What was held of it when it was started.
    pub(crate) held: Option<Entry<T>>,
}

/// What came of running a loader.
pub(crate) struct Ran<A> {
    pub(crate) answer: Result<A, Failed>,
    pub(crate) began: Began,
}

/// When a load ran, and what was known then.
pub(crate) struct Began {
    pub(crate) born: Moment,
    pub(crate) cost: Duration,
    pub(crate) begun: Begun,
}

impl Began {
    pub(crate) fn of(born: Moment, cost: Duration, begun: Begun) -> Self {
        Self { born, cost, begun }
    }
}

#[derive(Clone)]
pub(crate) struct Failed {
    pub(crate) error: Error,
    pub(crate) surface: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, surface: false }
    }
}

pub(crate) fn load_failed(cause: BoxError) -> Error {
    // A loader that asked a cache and passes on what that said keeps its kind: a cycle stays a cycle.
    match cause.downcast::<Error>() {
        Ok(inner) if inner.kind() == ErrorKind::Cycle => *inner,
        // Out of its box, which would be boxed as it is: `load_error::<Error>` would not find it.
        Ok(inner) => Error::with_source(ErrorKind::Load, passed_on(&inner), *inner),
        Err(cause) => Error::with_source(ErrorKind::Load, format!("the load failed: {cause}"), cause),
    }
}

/// What a load says that failed by another cache's error. Beyond this length it says the same as that one: of loaders that ask
/// one another very deeply, each would say more than the one below it.
const LONG: usize = 1024;

fn passed_on(inner: &Error) -> String {
    if inner.kind() == ErrorKind::Load && inner.message().len() > LONG {
        return inner.message().to_owned();
    }
    format!("the load failed: {inner}")
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

/// Reports a load that is dropped before it has ended.
struct Running<'a, T: Value> {
    inner: &'a Inner<T>,
    born: Moment,
    background: bool,
    keys: usize,
    ended: bool,
}

impl<T: Value> Drop for Running<'_, T> {
    fn drop(&mut self) {
        if !self.ended {
            let cost = self.inner.now().since(self.born);
            let error = Error::new(ErrorKind::LoadAborted, "the load was aborted before it ended");
            self.inner.loaded(cost, self.background, self.keys, Err(&error));
        }
    }
}

impl<T: Value> Inner<T> {
    /// Runs a loader: permit, hard limit, panic, cycle bookkeeping, leases kept alive, telemetry.
    async fn run<A>(
        self: &Arc<Self>,
        load: &Load<'_, T>,
        flights: &[Arc<Flight<T>>],
        loader: impl Future<Output = Result<A, BoxError>> + Send,
    ) -> Ran<A> {
        self.keeping(&load.rights, LEASE, pin!(self.run_alone(load, flights, loader))).await
    }

    async fn run_alone<A>(
        &self,
        load: &Load<'_, T>,
        flights: &[Arc<Flight<T>>],
        loader: impl Future<Output = Result<A, BoxError>> + Send,
    ) -> Ran<A> {
        let permits = self.rules.load().permits.clone();
        let _permit = match &permits {
            Some(permits) => turn(permits, flights).await,
            None => None,
        };
        let spans = self.observers().span(&SpanStart {
            kind: SpanKind::Load,
            key: None,
            keys: flights.len(),
            root: load.terms.background,
        });
        self.remote().for_each(|tier| tier.ledger.note_blind());
        let begun = self.begin();
        let born = self.now();
        for flight in flights {
            // Set once, here.
            let _ = flight.spans.set(spans.clone());
            flight.begin();
        }
        let background = load.terms.background;
        let mut running = Running { inner: self, born, background, keys: flights.len(), ended: false };
        let guarded = AssertUnwindSafe(spans.around(cycle::running(load.load, loader))).catch_unwind();
        let ended = self.within_hard_limit(pin!(guarded)).await;
        running.ended = true;
        let answer = match ended {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(cause))) => Err(load_failed(cause).into()),
            Ok(Err(_panic)) => Err(Error::new(ErrorKind::LoadPanicked, "the loader panicked").into()),
            Err(limit) => Err(Error::new(
                ErrorKind::LoadTimeout,
                format!("the loader ran into its hard limit of {limit:?}"),
            )
            .into()),
        };
        if let Err(Failed { error, .. }) = &answer {
            spans.failed(error.kind().as_str());
        }
        spans.end();
        Ran { answer, began: Began::of(born, self.now().since(born), begun) }
    }

    /// Ends what the user's code does at the policy's hard limit, that of now whatever policy comes meanwhile. The error is the
    /// limit. Pinned where it stands, as it would be kept in each future on the way.
    pub(crate) async fn within_hard_limit<F: Future>(
        &self,
        work: Pin<&mut F>,
    ) -> std::result::Result<F::Output, Duration> {
        match self.policy().hard {
            Some(limit) => self.around.clock.timeout(limit, work).await.ok_or(limit),
            None => Ok(work.await),
        }
    }

    /// Starts the flight of one key in a task of its own.
    pub(crate) fn launch(
        self: &Arc<Self>,
        departure: Departure<T>,
        loader: Loader<T>,
        terms: Terms,
    ) -> Result<()> {
        let Departure { flight, ticket, held, rights } = departure;
        let inner = Arc::clone(self);
        let landing = self.board(vec![(Arc::clone(&flight), ticket)]);
        let load = flight.load;
        let work = async move {
            let begun = inner.begin();
            let mut wish = terms.wish(landing.key(0), held.as_ref(), rights);
            // Boxed: a cache in memory has none of it to do, and many loads may be under way.
            if terms.fills() && inner.has_remote() {
                inner.stand_alone(&mut wish, &begun, &landing.open[0].0).boxed().await;
            }
            let Wish { found, ticket, rights, kept, .. } = wish;
            landing.lend(0, &rights);
            if !landing.open[0].0.has_leases() {
                return;
            }
            if let Some(seen) = found {
                return inner.arrive(&landing, 0, seen, ticket, rights, &begun).boxed().await;
            }
            drop(ticket);
            let rights = vec![(landing.key(0), rights)];
            let load = Load { load, of: vec![OneOf { at: 0, kept, held }], rights, terms };
            let loader = |shown| async move { Ok(vec![Some(loader(shown).await?)]) };
            inner.load(&landing, load, loader).await;
        };
        // Boxed, as a task that begins moves what it runs several times.
        let task = self.spawn(within(self.observers().ambient(), work.boxed()));
        flight.runs_as(task.ok_or_else(no_runtime)?);
        Ok(())
    }

    /// Starts one task for the flights of a batch. `positions` are those of the departures among the keys asked for.
    pub(crate) fn launch_many(
        self: &Arc<Self>,
        load: LoadId,
        departures: Vec<Departure<T>>,
        positions: Vec<usize>,
        terms: Terms,
        loader: ManyLoader<T>,
    ) -> Result<()> {
        let inner = Arc::clone(self);
        let mut open = Vec::with_capacity(departures.len());
        let mut held = Vec::with_capacity(departures.len());
        let mut had = Vec::with_capacity(departures.len());
        for Departure { flight, ticket, held: entry, rights } in departures {
            open.push((flight, ticket));
            held.push(entry);
            had.push(rights);
        }
        let landing = self.board(open);
        let task = self.spawn(within(self.observers().ambient(), async move {
            let begun = inner.begin();
            let mut wishes: Vec<_> = had
                .into_iter()
                .enumerate()
                .map(|(at, rights)| terms.wish(landing.key(at), held[at].as_ref(), rights))
                .collect();
            let go = async |(at, wishes): (Vec<usize>, Vec<Wish<'_, T>>)| {
                let mut load = Load { load, of: Vec::new(), rights: Vec::new(), terms };
                let mut arrivals = Vec::new();
                for (at, Wish { key, found, ticket, rights, kept, .. }) in zip(at, wishes) {
                    landing.lend(at, &rights);
                    match found {
                        Some(seen) => arrivals.push(inner.arrive(&landing, at, seen, ticket, rights, &begun)),
                        None => {
                            load.of.push(OneOf { at, kept, held: held[at].clone() });
                            load.rights.push((key, rights));
                        }
                    }
                }
                let load = async {
                    if !load.of.is_empty() {
                        let wanted = load.of.iter().map(|one| positions[one.at]).collect();
                        // Called inside the guard of the load: a panic of it stays there.
                        let loader = |_| async { loader(wanted).await };
                        inner.load(&landing, load, loader).await;
                    }
                };
                join(load, join_all(arrivals)).await;
            };
            let at: Vec<_> = (0..wishes.len()).collect();
            if !terms.fills() || !inner.has_remote() {
                return go((at, wishes)).await;
            }
            let standing = Standing::new(inner.now());
            inner.ask(&mut wishes, &begun).await;
            // Keys that other processes are loading hold up neither the others nor each other. Otherwise two batches that
            // overlap crosswise would wait for each other, and other processes for leases that this one does not use.
            let (inner, begun) = (&inner, &begun);
            stream::unfold((at, wishes, standing), |(at, mut wishes, mut standing)| async move {
                if wishes.is_empty() {
                    return None;
                }
                let decided = inner.stand(&mut wishes, begun, &mut standing, || false).await;
                let (later, now): (Vec<_>, Vec<_>) =
                    zip(at, wishes).partition(|(_, wish)| decided && inner.waits(wish));
                let (at, wishes) = later.into_iter().unzip();
                Some((now.into_iter().unzip(), (at, wishes, standing)))
            })
            .for_each_concurrent(None, go)
            .await;
        }));
        task.map(drop).ok_or_else(no_runtime)
    }

    /// Before a load for which no level is read: learns their epochs, without which they could not be filled. Whoever comes to
    /// know of another one revokes what is in flight, so that the load's ticket is opened after this.
    pub(crate) async fn meet_levels(&self, access: Access) {
        if access != Access::Reload {
            return;
        }
        for tier in self.remote() {
            tier.know_epoch(&self.around).await;
        }
    }

    fn board(self: &Arc<Self>, open: Vec<(Arc<Flight<T>>, Ticket<T>)>) -> Landing<T> {
        self.stats().flights().fetch_add(open.len(), Ordering::Relaxed);
        Landing { inner: Arc::clone(self), open, lent: Mutex::default() }
    }

    /// Another process has filled a level while this one waited for its right: that answers the flight. `ticket`: opened before
    /// the level was asked, if not the flight's own.
    async fn arrive(
        self: &Arc<Self>,
        landing: &Landing<T>,
        at: usize,
        seen: Seen<T>,
        ticket: Option<Ticket<T>>,
        rights: Rights,
        begun: &Begun,
    ) {
        let Seen { entry, level } = seen;
        let mut item = [Outgoing::new(landing.key(at), entry.clone()).with_rights(rights)];
        let ticket = [ticket.unwrap_or_else(|| landing.open[at].1.again())];
        let accepted =
            self.fill(&mut item, &ticket, usize::from(level), &begun.stamps).await.iter().all(|a| *a);
        landing.land(at, Ended::Entry { entry, level: Some(level), accepted });
    }

    /// Runs the loader for some of the flights and ends them. It is shown what is held of the first.
    async fn load<L>(
        self: &Arc<Self>,
        landing: &Landing<T>,
        mut load: Load<'_, T>,
        loader: impl FnOnce(Option<Held<T>>) -> L + Send,
    ) where
        L: Future<Output = Result<Vec<Option<Loaded<T>>>, BoxError>> + Send,
    {
        let mut of = std::mem::take(&mut load.of);
        let flights: Vec<_> = of.iter().map(|one| Arc::clone(&landing.open[one.at].0)).collect();
        let work = async {
            // The load has begun: what is invalidated from now on overtakes its answer, too.
            for one in &mut of {
                self.forego(&mut one.held).await;
            }
            let shown = of.first().and_then(|first| self.held(first.held.as_ref()?));
            loader(shown).await
        };
        let ran = self.run(&load, &flights, work).await;
        load.of = of;
        self.settle(landing, load, ran).await;
    }

    /// Lets go of what was invalidated while its load waited to begin: `unchanged` would bring it back.
    async fn forego(&self, held: &mut Option<Entry<T>>) {
        let Some(entry) = held else { return };
        let verdict = match self.verdict(entry) {
            // Boxed, as hardly any load has to ask.
            Verdict::Unsure => self.surely(entry).boxed().await,
            known => known,
        };
        if !matches!(verdict, Verdict::Valid | Verdict::Expired) {
            *held = None;
        }
    }

    pub(crate) fn held(&self, entry: &Entry<T>) -> Option<Held<T>> {
        Some(Held {
            value: Arc::clone(entry.value.as_ref()?),
            etag: entry.extra.as_ref().and_then(|e| e.etag.clone()),
            age: self.now().since(entry.timeline.born),
        })
    }
}

fn no_runtime() -> Error {
    Error::new(ErrorKind::NoRuntime, "loads run as tokio tasks: call from inside a tokio runtime")
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;
    use crate::{Clock, Policy, TracedCache, testing::MapProvider};

    #[test]
    fn an_error_that_is_passed_on_very_often_says_the_cause_and_does_not_grow() {
        let mut error = load_failed("no such row".into());
        for depth in 0..50_000 {
            let cache = if depth == 0 { "rows" } else { "more" };
            error.belongs_to(&cache.into());
            error = load_failed(error.into());
        }
        let text = error.to_string();
        assert!(text.ends_with("cache `rows`: the load failed: no such row"), "{text}");
        assert!(text.len() < 2 * LONG, "{} bytes", text.len());
        assert!(error.load_error::<Error>().is_some());
        // What is below is dropped with it, however deep.
        drop(error);
    }

    /// It ends by the limit under which it began, and says so.
    #[tokio::test]
    async fn what_runs_into_its_limit_names_that_under_another_policy_too() {
        const LIMIT: Duration = Duration::from_millis(250);
        let policy = Policy::ttl(Duration::from_secs(60)).hard_limit(Some(LIMIT));
        let (clock, time) = Clock::manual();
        let cache: TracedCache<String> = TracedCache::builder("limited")
            .level(MapProvider::new().clock(clock.clone()))
            .clock(clock)
            .policy(policy)
            .build()
            .unwrap();
        let hangs = |began: Arc<Notify>| async move {
            began.notify_one();
            std::future::pending::<Result<Loaded<String>, BoxError>>().await
        };
        for updates in [false, true] {
            cache.set_policy(policy).unwrap();
            let (began, other) = (Arc::new(Notify::new()), cache.clone());
            let signal = Arc::clone(&began);
            let call = tokio::spawn(async move {
                if updates {
                    other.update("k", &signal, move |signal, _, _| hangs(signal)).await.err()
                } else {
                    other.get_or_set_with("k", &signal, move |signal, _| hangs(signal)).await.err()
                }
            });
            began.notified().await;
            // It has been polled to its end, and so waits for its limit.
            tokio::task::yield_now().await;
            cache.set_policy(policy.hard_limit(None)).unwrap();
            time.advance(LIMIT);
            let error = call.await.unwrap().unwrap();
            assert_eq!(error.kind(), ErrorKind::LoadTimeout);
            assert!(error.to_string().contains("250ms"), "{error}");
        }
    }
}
