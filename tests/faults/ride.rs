//! One level through one fault and out again.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use traced_cache::{
    BreakerState, Delivery, Found, LevelOutcome, Outcome, TracedCache, ok,
    testing::{Recorded, Recorder},
};

use crate::servers::{BUDGET, Backend, OPEN_FOR, until};

type Step = Box<dyn Fn(&Backend)>;

pub(crate) struct Fault {
    hurt: Step,
    heal: Step,
    /// Whether the level stops answering altogether, so that its breaker must open and no write be confirmed.
    pub(crate) total: bool,
}

impl Fault {
    pub(crate) fn new(hurt: impl Fn(&Backend) + 'static, heal: impl Fn(&Backend) + 'static) -> Self {
        Self { hurt: Box::new(hurt), heal: Box::new(heal), total: true }
    }

    /// Reads go on.
    pub(crate) fn of_writes(self) -> Self {
        Self { total: false, ..self }
    }
}

/// The calls of a cache, and what they must come to.
pub(crate) struct Caller {
    pub(crate) cache: TracedCache<String>,
    calls: AtomicU64,
    loads: Arc<AtomicU64>,
}

/// One operation of `get_or_set` at a level: read, epoch, lease, fill, removal, each within its budget; the rest is room for
/// a busy machine.
const LONGEST: Duration = Duration::from_secs(5);

impl Caller {
    pub(crate) fn new(cache: TracedCache<String>) -> Self {
        Self { cache, calls: AtomicU64::new(0), loads: Arc::default() }
    }

    /// `get_or_set`, which must answer whatever the level does.
    pub(crate) async fn ask(&self, key: &str) -> Found<String> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let started = Instant::now();
        let load = |loads: Arc<AtomicU64>, key: String| async move {
            loads.fetch_add(1, Ordering::SeqCst);
            ok(format!("value of {key}"))
        };
        let found: Result<_, traced_cache::Error> =
            self.cache.look_or_set_with::<_, _, String, Infallible, _, _>(key, &self.loads, load).await;
        let found = found.unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(found.value().map(|v| v.as_str()), Some(&*format!("value of {key}")));
        assert!(started.elapsed() < LONGEST, "{:?} with a budget of {BUDGET:?}", started.elapsed());
        found
    }

    /// `look`; `None` where the level's failure surfaces.
    pub(crate) async fn look(&self, key: &str) -> Option<Found<String>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let started = Instant::now();
        let found = self.cache.look(key).await.ok();
        assert!(started.elapsed() < LONGEST);
        found
    }

    pub(crate) fn loads(&self) -> u64 {
        self.loads.load(Ordering::SeqCst)
    }

    /// Every call is in exactly one outcome, and every load in the count of loads.
    pub(crate) fn adds_up(&self) {
        let stats = self.cache.stats();
        let calls = self.calls.load(Ordering::SeqCst);
        let operations: u64 = stats
            .operations
            .iter()
            .filter(|(verb, _)| matches!(verb, traced_cache::Verb::Get | traced_cache::Verb::GetOrSet))
            .map(|(_, n)| n)
            .sum();
        let outcomes = [Outcome::Hit, Outcome::Stale, Outcome::Absent, Outcome::Coalesced, Outcome::Miss];
        let sum: u64 = outcomes.iter().map(|outcome| stats.outcome(*outcome)).sum();
        assert_eq!((stats.lookups(), operations, sum), (calls, calls, calls), "{stats:?}");
        assert_eq!((stats.loads, stats.load_errors), (self.loads(), 0));
    }
}

fn breaker_events(seen: &Recorder) -> Vec<BreakerState> {
    seen.events()
        .iter()
        .filter_map(|event| match event {
            Recorded::Breaker { state, .. } => Some(*state),
            _ => None,
        })
        .collect()
}

/// Open, then single probes, each of which ends before the next begins, the last of them well.
pub(crate) fn probed_one_by_one(seen: &Recorder) {
    let states = breaker_events(seen);
    assert_eq!((states.first(), states.last()), (Some(&BreakerState::Open), Some(&BreakerState::Closed)));
    for pair in states.windows(2) {
        let fine = matches!(
            pair,
            [BreakerState::Open, BreakerState::HalfOpen]
                | [BreakerState::HalfOpen, BreakerState::Open | BreakerState::Closed]
                | [BreakerState::Closed, BreakerState::Open]
        );
        assert!(fine, "{states:?}");
    }
}

/// Round trips to the level so far.
fn round_trips(seen: &Recorder) -> usize {
    seen.count(|event| matches!(event, Recorded::Level { level: 1, .. }))
}

pub(crate) async fn ride(backend: &Backend, fault: Fault) {
    let seen = Recorder::new();
    let node = Caller::new(backend.node(&seen));
    let bare = Caller::new(backend.bare());

    // Well: what one node loads another finds in the level.
    until("the level is filled", || async {
        node.ask("warm").await;
        bare.look("warm").await.is_some_and(|found| found.is_hit())
    })
    .await;
    until("the level is read", || async {
        bare.ask("fresh").await;
        node.look("fresh").await.is_some_and(|found| found.is_hit())
    })
    .await;

    (fault.hurt)(backend);

    // Sick: no error, bounded time, one load per key, memory is filled.
    let before = node.loads();
    for n in 0..30 {
        let key = format!("cold {n}");
        node.ask(&key).await;
        assert_eq!(node.ask(&key).await.level(), Some(0));
    }
    let all = futures::future::join_all((0..50).map(|n| {
        let (node, key) = (&node, format!("crowd {}", n % 10));
        async move { node.ask(&key).await }
    }));
    all.await;
    assert_eq!(node.loads() - before, 40, "one load per cold key");
    bare.ask("alone").await;

    // What is invalidated now holds on this node at once, and the level hears of it later.
    assert_eq!(node.cache.invalidate("warm").await.unwrap(), Delivery::Pending);
    assert!(node.look("warm").await.is_some_and(|found| found.value().is_none()));
    assert!(node.cache.stats().pending > 0);

    if fault.total {
        open_costs_nothing(&node, &seen).await;
    }

    (fault.heal)(backend);

    // Well again, without a restart of the cache: the level is filled and read, by both caches.
    let mut round = 0;
    until("the level is used again", || {
        round += 1;
        let (node, bare, key) = (&node, &bare, format!("again {round}"));
        async move {
            bare.ask(&key).await;
            node.look(&key).await.is_some_and(|found| found.is_hit() && found.level() == Some(1))
        }
    })
    .await;
    until("the level has heard of the invalidation", || async { node.cache.stats().pending == 0 }).await;
    let other = Caller::new(backend.bare());
    until("another node reads", || async { other.look("warm").await.is_some() }).await;
    let warm = other.look("warm").await.unwrap();
    assert_eq!(warm.outcome(), Outcome::Miss, "the level still has what was invalidated");
    // Nothing fails any more.
    for n in 0..20 {
        bare.ask(&format!("after {n}")).await;
    }
    until("the breaker is closed", || async {
        node.look("fresh breath").await;
        node.cache.stats().levels[1].breaker == BreakerState::Closed
    })
    .await;
    if fault.total {
        probed_one_by_one(&seen);
    }
    node.adds_up();
    bare.adds_up();
}

/// While the breaker is open a cold key costs its load alone; a probe goes out once in a while, by itself.
async fn open_costs_nothing(node: &Caller, seen: &Recorder) {
    let mut n = 0;
    until("the breaker is open", || {
        n += 1;
        let key = format!("until open {n}");
        async move {
            node.ask(&key).await;
            node.cache.stats().levels[1].breaker == BreakerState::Open
        }
    })
    .await;
    let (started, trips) = (Instant::now(), round_trips(seen));
    let skipped = node.cache.stats().levels[1].outcome(LevelOutcome::Skipped);
    for n in 0..200 {
        node.ask(&format!("open {n}")).await;
    }
    let probes = round_trips(seen) - trips;
    let most = started.elapsed().as_millis() / OPEN_FOR.as_millis() + 2;
    assert!(probes as u128 <= most, "{probes} round trips in {:?}", started.elapsed());
    let skipped = node.cache.stats().levels[1].outcome(LevelOutcome::Skipped) - skipped;
    assert!(skipped >= 190, "{skipped} of 200 look-ups did not ask the level");
}
