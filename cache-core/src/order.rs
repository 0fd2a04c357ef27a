//! The order of writers of a key at remote levels: what is written later does not arrive earlier.
//!
//! Writers take turns. Sets, invalidations and fills are polled by whoever called them, or by a runtime that may stand
//! still: who is not polled for long loses its turn, so that those who come after are not kept. It sends nothing any
//! more, and levels hear an invalidation of its keys, as if its caller had left in the middle.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures::FutureExt;
use pin_project_lite::pin_project;
use smallvec::SmallVec;
use tokio::sync::Semaphore;

use crate::{Value, backplane, inner::Inner, slots::Ticket, tier::Tier};

/// Budgets for which a turn may go without being polled.
const LOOKS: u32 = 2;

/// Where writers of one key wait for their turn.
pub(crate) struct Line {
    /// One permit. Closed once a turn is lost.
    free: Semaphore,
    /// Of whoever's turn it is, if that is its only one. Once it is lost another line takes its place.
    own: Pace,
    /// Of whoever's turn it is, if that has more of them.
    shared: Mutex<Option<Arc<Pace>>>,
    /// Whose turn it is, if that is a write: see [`Ticket::writer`].
    writer: AtomicU64,
}

/// How a writer gets on. A batch, which has a turn at each of its keys and is polled often, has one for all.
#[derive(Default)]
struct Pace {
    /// Counts how often it is polled.
    steps: AtomicU64,
    /// It does not lose its turns.
    firm: AtomicBool,
    /// It has lost one.
    lost: AtomicBool,
}

impl Pace {
    fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}

impl Default for Line {
    fn default() -> Self {
        Self {
            free: Semaphore::new(1),
            own: Pace::default(),
            shared: Mutex::default(),
            writer: AtomicU64::new(0),
        }
    }
}

impl Line {
    /// Ends this line: whose turn it is has lost it.
    pub(crate) fn end(&self) {
        // Under the lock no batch begins a turn in between.
        let shared = self.shared();
        for pace in std::iter::once(&self.own).chain(shared.as_deref()) {
            pace.lost.store(true, Ordering::Release);
        }
    }

    /// All who wait go elsewhere. To be called with no lock held: what wakes them may be anything.
    pub(crate) fn close(&self) {
        self.free.close();
    }

    fn shared(&self) -> MutexGuard<'_, Option<Arc<Pace>>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another answer once somebody gets on. `None`: whose turn it is does not lose it.
    fn steps(&self) -> Option<(u64, u64)> {
        let shared = self.shared();
        let firm = |pace: &Pace| pace.firm.load(Ordering::Relaxed);
        if firm(&self.own) || shared.as_deref().is_some_and(firm) {
            return None;
        }
        let steps = |pace: &Pace| pace.steps.load(Ordering::Relaxed);
        Some((steps(&self.own), shared.as_deref().map_or(0, steps)))
    }

    pub(crate) fn writer(&self) -> u64 {
        self.writer.load(Ordering::Acquire)
    }

    /// A write has ended. It may have its turn still, for what it sends in the background.
    pub(crate) fn ended(&self, writer: u64) {
        let _ = self.writer.compare_exchange(writer, 0, Ordering::AcqRel, Ordering::Relaxed);
    }

    fn enter_at_once(self: &Arc<Self>, writer: u64, shared: Option<&Arc<Pace>>) -> Option<Turn> {
        self.free.try_acquire().ok()?.forget();
        Turn::begin(self, writer, shared)
    }

    /// `None`: the line has ended.
    async fn enter(self: &Arc<Self>, writer: u64, shared: Option<&Arc<Pace>>) -> Option<Turn> {
        self.free.acquire().await.ok()?.forget();
        Turn::begin(self, writer, shared)
    }
}

/// A writer's turn at a key, until dropped.
struct Turn {
    line: Arc<Line>,
    is_shared: bool,
}

impl Turn {
    /// With the permit of a line, which goes back however this ends. `None`: the line has ended.
    fn begin(line: &Arc<Line>, writer: u64, shared: Option<&Arc<Pace>>) -> Option<Self> {
        let mut turn = Self { line: Arc::clone(line), is_shared: false };
        line.writer.store(writer, Ordering::Release);
        line.own.step();
        match shared {
            None if line.own.is_lost() => return None,
            None => {}
            Some(pace) => {
                // Under the lock: a batch that comes too late is not to count as one that has lost a turn.
                let mut shared = line.shared();
                if line.own.is_lost() {
                    return None;
                }
                *shared = Some(Arc::clone(pace));
                turn.is_shared = true;
            }
        }
        Some(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Self { line, is_shared } = self;
        if *is_shared {
            *line.shared() = None;
        }
        line.own.firm.store(false, Ordering::Relaxed);
        line.writer.store(0, Ordering::Release);
        line.free.add_permits(1);
    }
}

/// For writers that need no turn.
pub(crate) static NO_ORDER: WriteOrder =
    WriteOrder { turns: SmallVec::new_const(), shared: None, took_over: false };

/// A writer's turns at some keys.
#[derive(Default)]
pub(crate) struct WriteOrder {
    turns: SmallVec<[Turn; 1]>,
    /// Where there are many.
    shared: Option<Arc<Pace>>,
    /// Somebody had to lose a turn for it: remote levels are yet to hear of that.
    pub(crate) took_over: bool,
}

impl WriteOrder {
    /// For writers that run as tasks and do more than write to levels: they may go unpolled for long without losing their
    /// turn.
    pub(crate) fn firm(self) -> Self {
        if let Some(pace) = self.pace() {
            pace.firm.store(true, Ordering::Relaxed);
        }
        self
    }

    /// `None`: there are no turns.
    fn pace(&self) -> Option<&Pace> {
        let own = || self.turns.first().map(|turn| &turn.line.own);
        self.shared.as_deref().or_else(own)
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.pace().is_some_and(Pace::is_lost)
    }

    /// Shows that the writer gets on.
    pub(crate) fn step(&self) {
        if let Some(pace) = self.pace() {
            pace.step();
        }
    }

    /// Goes on with `work` even when a turn is lost: it sends nothing to any level.
    pub(crate) fn meanwhile<F: Future>(&self, work: F) -> Meanwhile<'_, F> {
        Meanwhile { work, order: self }
    }

    /// Goes on with `work` while the turns last. `None`: one of them is lost, and nothing more was sent since.
    pub(crate) fn while_it_lasts<F: Future>(&self, work: F) -> WhileItLasts<'_, F> {
        WhileItLasts { work, order: self }
    }
}

pin_project! {
    /// See [`WriteOrder::while_it_lasts`]. A call to a level may have yet to be sent when it is polled again, so each poll
    /// asks.
    pub(crate) struct WhileItLasts<'a, F> {
        #[pin]
        work: F,
        order: &'a WriteOrder,
    }
}

impl<F: Future> Future for WhileItLasts<'_, F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.order.is_lost() {
            return Poll::Ready(None);
        }
        this.order.step();
        // A single poll may take so long that a turn is lost during it.
        this.work.poll(cx).map(|ended| Some(ended).filter(|_| !this.order.is_lost()))
    }
}

pin_project! {
    /// See [`WriteOrder::meanwhile`].
    pub(crate) struct Meanwhile<'a, F> {
        #[pin]
        work: F,
        order: &'a WriteOrder,
    }
}

impl<F: Future> Future for Meanwhile<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let polled = this.work.poll(cx);
        // Work that is over need not show that it gets on.
        if polled.is_pending() {
            this.order.step();
        }
        polled
    }
}

impl<T: Value> Inner<T> {
    /// Waits until the writes that came before, on these keys, have ended or lost their turn.
    pub(crate) async fn in_order<'t>(&self, tickets: impl IntoIterator<Item = &'t Ticket<T>>) -> WriteOrder {
        // One order for all, so that two batches cannot wait for each other.
        let mut tickets: SmallVec<[_; 1]> = tickets.into_iter().collect();
        tickets.sort_by(|a, b| a.id().cmp(b.id()));
        tickets.dedup_by(|a, b| a.id() == b.id());
        let shared = (tickets.len() > 1).then(Arc::default);
        let mut order =
            WriteOrder { turns: SmallVec::with_capacity(tickets.len()), shared, took_over: false };
        for ticket in tickets {
            match ticket.line().enter_at_once(ticket.writer(), order.shared.as_ref()) {
                Some(turn) => order.turns.push(turn),
                // Boxed: hardly any writer waits, and all would carry its size.
                None => self.queue(ticket, &mut order).boxed().await,
            }
        }
        order
    }

    async fn queue(&self, ticket: &Ticket<T>, order: &mut WriteOrder) {
        let turn = loop {
            let line = ticket.line();
            if let Some(turn) = self.wait_in(&line, ticket.writer(), order).await {
                break turn;
            }
            if ticket.leave(&line) {
                // What the writer who has lost its turn has sent may still arrive.
                self.in_doubt([ticket.key(&self.around)]);
                order.took_over = true;
            }
        };
        order.turns.push(turn);
    }

    /// `None`: the line has ended, or has to, as nobody polls the writer whose turn it is.
    async fn wait_in(&self, line: &Arc<Line>, writer: u64, order: &WriteOrder) -> Option<Turn> {
        // How long a writer that is being polled may wait until it is polled again: for the longest budget of what it may
        // call. Where it calls nothing, as an update of objects in process, there is a pause between looks all the same:
        // without one this caller could keep that writer from its thread.
        let told = self.plane.as_ref().map(|_| backplane::BUDGET);
        let longest = self.remote().map(Tier::budget).chain(told).max().unwrap_or(backplane::BUDGET);
        let mut entering = pin!(line.enter(writer, order.shared.as_ref()));
        let (mut steps, mut looks) = (line.steps(), 0);
        while looks < LOOKS {
            if let Some(entered) = self.around.clock.timeout(longest, entering.as_mut()).await {
                return entered;
            }
            // This writer gets on, too: others may be waiting for turns that it already has.
            order.step();
            let now = line.steps();
            looks = if now == steps && now.is_some() { looks + 1 } else { 0 };
            steps = now;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::{
        task::{Wake, Waker},
        time::Duration,
    };

    use async_trait::async_trait;
    use bytes::Bytes;
    use futures::future::BoxFuture;

    use super::*;
    use crate::{
        BoxError, CacheId, CacheProvider, Capabilities, Clock, Delivery, Description, Level, Policy, Put,
        RawKey, TracedCache,
        slots::Slots,
        testing::{ObjectsOnly, conformance::object_store::tests::fifo, ends_within},
    };

    #[test]
    fn updates_take_turns_also_where_nothing_has_a_budget() {
        let count = ends_within(Duration::from_secs(10), || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let cache: TracedCache<u64> = TracedCache::builder("counts")
                    .level(Level::new(ObjectsOnly(fifo(10))))
                    .clock(Clock::manual().0)
                    .policy(Policy::ttl(Duration::from_secs(60)))
                    .build()
                    .unwrap();
                let one_more = || {
                    cache.update("k", &(), |(), _, count| async move {
                        tokio::task::yield_now().await;
                        crate::ok(count.map_or(1, |count| *count + 1))
                    })
                };
                let (first, second) = futures::future::join(one_more(), one_more()).await;
                (*first.unwrap().value, *second.unwrap().value)
            })
        });
        assert_eq!(count, (1, 2));
    }

    /// Nothing is there, and it takes a thousand polls to say so.
    struct Polled;

    #[async_trait]
    impl CacheProvider for Polled {
        fn capabilities(&self) -> Capabilities {
            Capabilities::remote()
        }

        fn describe(&self) -> Description {
            Description::local("polled")
        }

        async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
            keys.iter().map(|_| Ok(None)).collect()
        }

        async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
            items.iter().map(|_| Ok(())).collect()
        }

        async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            keys.iter().map(|_| Ok(())).collect()
        }
    }

    /// It is polled once and again for each thousand of its keys: a look at every key each time would be quadratic.
    #[test]
    fn a_batch_does_not_look_at_all_of_its_keys_at_each_poll() {
        let delivery = ends_within(Duration::from_secs(30), || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let level = Level::new(Polled).budget(Duration::from_secs(30));
                let cache: TracedCache<u64> = TracedCache::builder("large").level(level).build().unwrap();
                cache.invalidate_many(0..60_000u32).await.unwrap()
            })
        });
        assert_eq!(delivery, Delivery::Confirmed);
    }

    /// Where the next writer is not counted, `close` tells nobody of it.
    #[test]
    fn a_write_that_has_ended_loses_its_turn_alone() {
        let slots = Slots::<u8>::new();
        let key = RawKey::new(CacheId(1), "t", "a");
        let mut first = slots.open_write(key);
        let line = first.line();
        // A background level has yet to take its value.
        let _turn = line.enter_at_once(first.writer(), None);
        first.end_write(|_| ());
        let mut second = slots.open_write(key);
        assert!(second.leave(&line));
        assert_eq!(slots.being_written(), ["a"]);
        assert!(!slots.open(key).is_current());
        second.end_write(|_| ());
        assert!(slots.being_written().is_empty() && slots.open(key).is_current());
    }

    /// A task of an executor that has ended: what wakes it drops it, with all that it has.
    struct Orphan(Mutex<BoxFuture<'static, ()>>);

    impl Wake for Orphan {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn who_loses_its_turn_may_end_those_who_wait() {
        ends_within(Duration::from_secs(10), move || {
            let slots = Slots::<u8>::new();
            let key = RawKey::new(CacheId(1), "t", "a");
            let first = slots.open_write(key);
            let line = first.line();
            let _turn = line.enter_at_once(first.writer(), None);
            let second = slots.open_write(key);
            let waits = async move {
                let turn = second.line().enter(second.writer(), None).await;
                drop((turn, second));
            };
            let orphan = Arc::new(Orphan(Mutex::new(waits.boxed())));
            let waker = Waker::from(Arc::clone(&orphan));
            assert!(orphan.0.lock().unwrap().poll_unpin(&mut Context::from_waker(&waker)).is_pending());
            drop((orphan, waker));
            assert!(slots.open_write(key).leave(&line));
            drop(first);
            assert_eq!(slots.len(), 0, "it has ended");
        });
    }
}
