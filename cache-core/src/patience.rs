//! One timer for all calls to a level, instead of one for each.
//!
//! A timer of the runtime costs a call as much as everything else that a level does for it. So calls only note how long they
//! may wait; a thread looks now and then, and wakes those that have waited too long. It serves all levels of the process,
//! whatever runtime their callers are on, and is there only while calls are.

use std::{
    future::Future,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use crossbeam_utils::CachePadded;
use futures::{FutureExt, future::BoxFuture};
use pin_project_lite::pin_project;
use slab::Slab;

use crate::{
    clock::{Clock, Moment},
    striped::stripe,
};

/// How many times the thread looks within a budget. The first look within the last of these steps ends a call, so that it
/// gets at least sixteen seventeenths of its budget, and at most all of it unless the thread comes late.
const STEPS: u32 = 17;
/// Steps are not shorter than this. Where they would have to be, each call has a timer of its own.
const SHORTEST: Duration = Duration::from_millis(2);
const SHARDS: usize = 8;

/// How long calls to one level may take.
pub(crate) struct Patience {
    budget: Duration,
    calls: Arc<Calls>,
}

/// Calls under way.
struct Calls {
    step: Duration,
    /// How long each of them waits at least.
    wait: Duration,
    shards: [CachePadded<Mutex<Slab<Call>>>; SHARDS],
    /// The thread looks at them.
    watched: AtomicBool,
}

struct Call {
    /// From when on it has waited too long.
    until: Moment,
    waker: Waker,
    over: bool,
}

impl Patience {
    pub(crate) fn new(budget: Duration) -> Self {
        let step = budget / STEPS;
        let calls =
            Calls { step, wait: budget - step, shards: Default::default(), watched: AtomicBool::new(false) };
        Self { budget, calls: Arc::new(calls) }
    }

    pub(crate) fn budget(&self) -> Duration {
        self.budget
    }

    /// Runs a call that begins now, by this clock, for as long as the budget lasts.
    pub(crate) fn spend<'a, F: Future>(&'a self, clock: &'a Clock, now: Moment, call: F) -> Spending<'a, F> {
        // Manual clocks are exact.
        let limit = if clock.is_system() && self.calls.step >= SHORTEST {
            Limit::Coming { calls: &self.calls, until: now.after(self.calls.wait) }
        } else {
            Limit::Timer(clock.sleep(self.budget).boxed())
        };
        Spending { call, limit }
    }
}

/// Where a call is noted.
#[derive(Clone, Copy)]
struct Place {
    shard: usize,
    at: usize,
}

impl Calls {
    fn shard(&self, at: usize) -> MutexGuard<'_, Slab<Call>> {
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(self: &Arc<Self>, until: Moment, waker: &Waker) -> Place {
        let shard = stripe() % SHARDS;
        let call = Call { until, waker: waker.clone(), over: false };
        let at = self.shard(shard).insert(call);
        if !self.watched.load(Ordering::SeqCst) {
            self.watch();
        }
        Place { shard, at }
    }

    /// Whether a call has waited too long; else it is the one to wake now.
    fn is_over(&self, place: Place, waker: &Waker) -> bool {
        let mut shard = self.shard(place.shard);
        let Some(call) = shard.get_mut(place.at) else { return true };
        if call.over || call.waker.will_wake(waker) {
            return call.over;
        }
        let before = mem::replace(&mut call.waker, waker.clone());
        drop(shard);
        // As in `forget`.
        drop(before);
        false
    }

    fn forget(&self, place: Place) {
        let gone = self.shard(place.shard).try_remove(place.at);
        // A waker's end is none of the lock's business.
        drop(gone);
    }

    fn is_idle(&self) -> bool {
        (0..SHARDS).all(|at| self.shard(at).is_empty())
    }

    /// Ends what has waited too long.
    fn look(&self, now: Moment) {
        for at in 0..SHARDS {
            let mut wakers = Vec::new();
            for (_, call) in self.shard(at).iter_mut().filter(|(_, call)| call.until <= now) {
                if !mem::replace(&mut call.over, true) {
                    wakers.push(mem::replace(&mut call.waker, Waker::noop().clone()));
                }
            }
            for waker in wakers {
                // Should one panic: with this thread no call of the process would end by its budget any more.
                let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
            }
        }
    }

    #[cold]
    fn watch(self: &Arc<Self>) {
        if self.watched.swap(true, Ordering::SeqCst) {
            return;
        }
        let mut watch = lock();
        watch.levels.push((Arc::clone(self), Clock::system().now().after(self.step)));
        if watch.awake {
            WAKE.notify_one();
            return;
        }
        let spawned = thread::Builder::new().name("cache-budgets".into()).spawn(look);
        // Without a thread there are no timeouts; the next call tries again.
        watch.awake = spawned.is_ok();
        if !watch.awake {
            for (calls, _) in watch.levels.drain(..) {
                calls.watched.store(false, Ordering::SeqCst);
            }
        }
    }
}

/// What the thread looks at.
struct Watch {
    /// With the time of the next look at each.
    levels: Vec<(Arc<Calls>, Moment)>,
    /// There is a thread.
    awake: bool,
}

static WATCH: Mutex<Watch> = Mutex::new(Watch { levels: Vec::new(), awake: false });
static WAKE: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Watch> {
    WATCH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread. Ends when no level has calls under way.
fn look() {
    let clock = Clock::system();
    let mut watch = lock();
    loop {
        let now = clock.now();
        let due: Vec<_> = watch
            .levels
            .iter_mut()
            .filter(|(_, next)| *next <= now)
            .map(|(calls, next)| {
                *next = now.after(calls.step);
                Arc::clone(calls)
            })
            .collect();
        // Wakers run without the lock: they may be anything.
        drop(watch);
        due.iter().for_each(|calls| calls.look(now));
        drop(due);
        watch = lock();
        watch.levels.retain(|(calls, _)| {
            if !calls.is_idle() {
                return true;
            }
            calls.watched.store(false, Ordering::SeqCst);
            // One may have come before it could see that.
            !calls.is_idle() && !calls.watched.swap(true, Ordering::SeqCst)
        });
        let Some(next) = watch.levels.iter().map(|(_, next)| *next).min() else {
            watch.awake = false;
            return;
        };
        let pause = next.since(clock.now());
        watch = WAKE.wait_timeout(watch, pause).unwrap_or_else(PoisonError::into_inner).0;
    }
}

pin_project! {
    /// A call that ends with its level's budget.
    pub(crate) struct Spending<'a, F> {
        #[pin]
        call: F,
        limit: Limit<'a>,
    }
}

enum Limit<'a> {
    /// Noted once it has to wait.
    Coming {
        calls: &'a Arc<Calls>,
        until: Moment,
    },
    Noted {
        calls: &'a Arc<Calls>,
        place: Place,
    },
    Timer(BoxFuture<'a, ()>),
}

impl Drop for Limit<'_> {
    fn drop(&mut self) {
        if let Self::Noted { calls, place } = self {
            calls.forget(*place);
        }
    }
}

impl Limit<'_> {
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::Noted { calls, place } => calls.is_over(*place, cx.waker()),
            Self::Coming { calls, until } => {
                let place = calls.note(*until, cx.waker());
                *self = Self::Noted { calls, place };
                false
            }
            Self::Timer(timer) => timer.poll_unpin(cx).is_ready(),
        }
    }
}

impl<F: Future> Future for Spending<'_, F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // Asks the call first: an answer that is there counts, whatever the time.
        match this.call.poll(cx) {
            Poll::Ready(out) => Poll::Ready(Some(out)),
            Poll::Pending if this.limit.is_over(cx) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        task::Wake,
        time::Instant,
    };

    use super::*;
    use crate::testing::ends_within;

    #[tokio::test]
    async fn d1_a_call_ends_with_its_budget_and_not_before() {
        let patience = Patience::new(Duration::from_millis(80));
        for _ in 0..3 {
            let started = Instant::now();
            assert!(patience.spend(&Clock::system(), Clock::system().now(), pending::<()>()).await.is_none());
            let took = started.elapsed();
            assert!(took >= Duration::from_millis(75) && took < Duration::from_secs(5), "{took:?}");
            assert!(patience.calls.is_idle());
        }
        assert_eq!(patience.spend(&Clock::system(), Clock::system().now(), ready(1)).await, Some(1));
    }

    /// However late the thread is with the look before.
    #[test]
    fn no_look_ends_a_call_before_its_time() {
        let patience = Patience::new(Duration::from_secs(34));
        let (clock, waker) = (Clock::system(), Waker::noop());
        let from = clock.now();
        let mut call = Box::pin(patience.spend(&clock, from, pending::<()>()));
        let mut asked = || call.poll_unpin(&mut Context::from_waker(waker));
        assert!(asked().is_pending());
        patience.calls.look(from.after(Duration::from_millis(31_999)));
        assert!(asked().is_pending());
        patience.calls.look(from.after(Duration::from_secs(32)));
        assert_eq!(asked(), Poll::Ready(None));
    }

    #[tokio::test]
    async fn calls_that_end_or_leave_are_forgotten_and_the_counting_ends() {
        let patience = Patience::new(Duration::from_millis(40));
        let clock = Clock::system();
        let short = patience.spend(&clock, clock.now(), tokio::time::sleep(Duration::from_millis(1)));
        assert!(short.await.is_some());
        {
            let mut left = std::pin::pin!(patience.spend(&clock, clock.now(), pending::<()>()));
            assert!(futures::poll!(left.as_mut()).is_pending());
            assert!(!patience.calls.is_idle());
        }
        assert!(patience.calls.is_idle());
        let end = Instant::now() + Duration::from_secs(30);
        while patience.calls.watched.load(Ordering::SeqCst) {
            assert!(Instant::now() < end, "it is still being watched");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // And begins again.
        assert!(patience.spend(&clock, clock.now(), pending::<()>()).await.is_none());
    }

    #[test]
    fn a_runtime_that_nobody_drives_keeps_no_other_waiting() {
        let patience = Patience::new(Duration::from_millis(40));
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (idle, other) = (runtime(), runtime());
        let clock = Clock::system();
        let mut stalled = Box::pin(patience.spend(&clock, clock.now(), pending::<()>()));
        idle.block_on(async { assert!(futures::poll!(stalled.as_mut()).is_pending()) });
        assert!(other.block_on(patience.spend(&clock, clock.now(), pending::<()>())).is_none());
    }

    #[tokio::test]
    async fn many_calls_of_many_levels_all_end() {
        let levels: Vec<_> = (0..4).map(|n| Patience::new(Duration::from_millis(40 + n))).collect();
        let clock = Clock::system();
        let calls = levels
            .iter()
            .flat_map(|level| (0..100).map(|_| level.spend(&clock, clock.now(), pending::<()>())));
        let ended = tokio::time::timeout(Duration::from_secs(30), futures::future::join_all(calls)).await;
        assert!(ended.unwrap().iter().all(Option::is_none));
    }

    /// As of an executor that has ended, and cannot be told.
    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
    }

    #[tokio::test]
    async fn a_waker_that_panics_keeps_no_other_call_waiting() {
        let patience = Patience::new(Duration::from_millis(40));
        let clock = Clock::system();
        let mut calls = [(); 2].map(|()| Box::pin(patience.spend(&clock, clock.now(), pending::<()>())));
        let waker = Waker::from(Arc::new(Panics));
        for call in &mut calls {
            assert!(call.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
        }
        for _ in 0..2 {
            let other = patience.spend(&clock, clock.now(), pending::<()>());
            let ended = tokio::time::timeout(Duration::from_secs(10), other).await;
            assert_eq!(ended, Ok(None));
        }
    }

    /// A task that only its waker keeps, with a call of its own.
    struct Task {
        _call: Mutex<BoxFuture<'static, Option<()>>>,
    }

    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn the_end_of_a_waker_may_end_another_call() {
        ends_within(Duration::from_secs(10), move || {
            let patience: &Patience = Box::leak(Box::new(Patience::new(Duration::from_secs(3600))));
            let clock: &Clock = Box::leak(Box::new(Clock::system()));
            let call = || patience.spend(clock, clock.now(), pending::<()>());
            let mut other = call().boxed();
            assert!(other.poll_unpin(&mut Context::from_waker(Waker::noop())).is_pending());
            let waker = Waker::from(Arc::new(Task { _call: Mutex::new(other) }));
            let mut moved = Box::pin(call());
            assert!(moved.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
            drop(waker);
            assert!(moved.poll_unpin(&mut Context::from_waker(Waker::noop())).is_pending());
            drop(moved);
            assert!(patience.calls.is_idle());
        });
    }
}
