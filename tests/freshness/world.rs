//! What the scenarios share: a clock that they move, a remote level with faults, a source that counts its loads.

use std::{
    error::Error as StdError,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use traced_cache::{
    BreakerState, Builder, CacheKey, Clock, Delivery, ErrorKind, Level, LoadEnd, Loaded, Memory, Outcome,
    Policy, Time, TracedCache,
    testing::{Chaos, Fault, MapProvider, Recorded, Recorder},
};

pub(crate) const S: Duration = Duration::from_secs(1);
pub(crate) const ZERO: Duration = Duration::ZERO;
pub(crate) const MS: Duration = Duration::from_millis(1);

/// A clock, the level that nodes share, and a record of what happened.
pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) time: Time,
    pub(crate) l2: Arc<Chaos<MapProvider>>,
    pub(crate) seen: Recorder,
    _watchdog: mpsc::Sender<()>,
}

/// In virtual time nothing takes long: what does, hangs, and would hold up all other tests.
fn watchdog() -> mpsc::Sender<()> {
    let (alive, gone) = mpsc::channel();
    let test = thread::current().name().unwrap_or("a test").to_owned();
    thread::spawn(move || {
        if gone.recv_timeout(30 * S) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{test} hangs");
            std::process::abort();
        }
    });
    alive
}

impl World {
    pub(crate) fn new() -> Self {
        let (clock, time) = Clock::manual();
        let l2 = Chaos::new(MapProvider::new().clock(clock.clone())).clock(clock.clone());
        Self { clock, time, l2: Arc::new(l2), seen: Recorder::new(), _watchdog: watchdog() }
    }

    pub(crate) fn builder(&self, policy: Policy) -> Builder<String> {
        TracedCache::builder("things").policy(policy).clock(self.clock.clone()).observer(self.seen.clone())
    }

    /// Memory alone.
    pub(crate) fn local(&self, policy: Policy) -> TracedCache<String> {
        self.builder(policy).level(memory()).build().unwrap()
    }

    /// Memory of its own in front of the shared level.
    pub(crate) fn node(&self, policy: Policy) -> TracedCache<String> {
        self.builder(policy).level(memory()).level(Arc::clone(&self.l2)).build().unwrap()
    }

    /// The shared level alone.
    pub(crate) fn bare(&self, policy: Policy) -> TracedCache<String> {
        self.builder(policy).level(Arc::clone(&self.l2)).build().unwrap()
    }

    /// The shared level with settings, behind memory.
    pub(crate) fn node_with(
        &self,
        policy: Policy,
        settings: impl FnOnce(Level) -> Level,
    ) -> TracedCache<String> {
        let level = settings(Level::new(Arc::clone(&self.l2)));
        self.builder(policy).level(memory()).level(level).build().unwrap()
    }

    /// A level to share that keeps leases.
    pub(crate) fn leasing(&self) -> Arc<Chaos<MapProvider>> {
        let map = MapProvider::new().leasing().clock(self.clock.clone());
        Arc::new(Chaos::new(map).clock(self.clock.clone()))
    }

    /// Memory in front of this level.
    pub(crate) fn node_at(&self, policy: Policy, l2: &Arc<Chaos<MapProvider>>) -> TracedCache<String> {
        self.builder(policy).level(memory()).level(Arc::clone(l2)).build().unwrap()
    }

    /// Memory in front of these two.
    pub(crate) fn node_at_both(
        &self,
        policy: Policy,
        near: &Arc<Chaos<MapProvider>>,
        far: &Arc<Chaos<MapProvider>>,
    ) -> TracedCache<String> {
        let builder = self.builder(policy).level(memory());
        builder.level(Arc::clone(near)).level(Arc::clone(far)).build().unwrap()
    }

    pub(crate) fn db(&self) -> Db {
        Db(Arc::new(Source {
            clock: self.clock.clone(),
            loads: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            takes: Mutex::new(Duration::ZERO),
            answer: Mutex::new(Box::new(|| Ok(Loaded::value("1".to_owned())))),
        }))
    }

    /// Lets time pass, and everything that it wakes run as far as it can.
    pub(crate) async fn pass(&self, by: Duration) {
        settled().await;
        self.time.advance(by);
        settled().await;
    }

    pub(crate) fn down(&self) {
        self.l2.set_all(Fault::Fail);
    }

    pub(crate) fn up(&self) {
        self.l2.set_all(Fault::None);
    }

    pub(crate) fn load_events(&self, such: impl Fn(LoadEnd, bool) -> bool) -> usize {
        self.seen.count(|e| matches!(e, Recorded::Load { end, background, .. } if such(*end, *background)))
    }

    pub(crate) fn breaker_events(&self) -> Vec<BreakerState> {
        let events = self.seen.events().into_iter();
        events
            .filter_map(|e| match e {
                Recorded::Breaker { state, .. } => Some(state),
                _ => None,
            })
            .collect()
    }
}

/// One that is driven by its `block_on` only.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Expires by the cache's clock only: the engine's own is the system's.
pub(crate) fn memory() -> Memory {
    Memory::entries(100_000).engine_expiry(false)
}

/// Runs every task until none can go on without time.
pub(crate) async fn settled() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

type Script = Box<dyn Fn() -> Result<Loaded<String>, DbError> + Send>;

/// A source that counts.
#[derive(Clone)]
pub(crate) struct Db(Arc<Source>);

struct Source {
    clock: Clock,
    loads: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    takes: Mutex<Duration>,
    answer: Mutex<Script>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DbError(pub(crate) &'static str);

impl fmt::Display for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl StdError for DbError {}

impl Db {
    /// How often a load's body started.
    pub(crate) fn loads(&self) -> usize {
        self.0.loads.load(Ordering::SeqCst)
    }

    pub(crate) fn most_at_once(&self) -> usize {
        self.0.most_at_once.load(Ordering::SeqCst)
    }

    /// From now on loads take this long.
    pub(crate) fn takes(&self, long: Duration) -> &Self {
        *self.0.takes.lock().unwrap() = long;
        self
    }

    /// From now on loads answer this. What is under way answers it too: the end of a load decides.
    pub(crate) fn answers(
        &self,
        with: impl Fn() -> Result<Loaded<String>, DbError> + Send + 'static,
    ) -> &Self {
        *self.0.answer.lock().unwrap() = Box::new(with);
        self
    }

    pub(crate) fn has(&self, value: &'static str) -> &Self {
        self.answers(move || Ok(Loaded::value(value.to_owned())))
    }

    pub(crate) fn fails(&self) -> &Self {
        self.answers(|| Err(DbError("no database")))
    }

    pub(crate) async fn load(self) -> Result<Loaded<String>, DbError> {
        self.work().await;
        let answer = self.0.answer.lock().unwrap();
        answer()
    }

    /// One load of many keys, all with the same answer.
    pub(crate) async fn load_many(self, keys: Vec<String>) -> Result<Vec<(String, Loaded<String>)>, DbError> {
        self.work().await;
        let answer = self.0.answer.lock().unwrap();
        keys.into_iter().map(|key| Ok((key, answer()?))).collect()
    }

    async fn work(&self) {
        struct Running(Db);
        impl Drop for Running {
            fn drop(&mut self) {
                self.0.0.at_once.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.0.loads.fetch_add(1, Ordering::SeqCst);
        let now = self.0.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_at_once.fetch_max(now, Ordering::SeqCst);
        let _running = Running(self.clone());
        let takes = *self.0.takes.lock().unwrap();
        if !takes.is_zero() {
            self.0.clock.sleep(takes).await;
        }
    }
}

/// What a caller sees: the outcome and the value, or the kind of error.
pub(crate) type Seen = Result<(Outcome, Option<String>), ErrorKind>;

/// `get_or_set`.
pub(crate) async fn ask_for(cache: &TracedCache<String>, key: impl CacheKey, db: &Db) -> Seen {
    let found = cache.look_or_set_with(key, db, |db, _| db.load()).await;
    found.map(|found| (found.outcome(), found.value().map(|v| v.to_string()))).map_err(|e| e.kind())
}

/// `get_or_set` of the key that most scenarios need only one of.
pub(crate) async fn ask(cache: &TracedCache<String>, db: &Db) -> Seen {
    ask_for(cache, "k", db).await
}

/// The same from a task of its own, which has run as far as it can.
pub(crate) async fn asking(cache: &TracedCache<String>, db: &Db) -> tokio::task::JoinHandle<Seen> {
    let (cache, db) = (cache.clone(), db.clone());
    let task = tokio::spawn(async move { ask(&cache, &db).await });
    settled().await;
    task
}

/// `get`.
pub(crate) async fn look(cache: &TracedCache<String>) -> Seen {
    let found = cache.look("k").await;
    found.map(|found| (found.outcome(), found.value().map(|v| v.to_string()))).map_err(|e| e.kind())
}

pub(crate) fn saw(outcome: Outcome, value: &str) -> Seen {
    Ok((outcome, Some(value.to_owned())))
}

/// Every level has acknowledged it.
pub(crate) fn confirmed(delivery: traced_cache::Result<Delivery>) {
    assert_eq!(delivery.unwrap(), Delivery::Confirmed);
}

pub(crate) const MISS: Seen = Ok((Outcome::Miss, None));

/// Every call of `look_or_set_with` and `look` has been counted in exactly one outcome.
pub(crate) fn counted(cache: &TracedCache<String>, calls: u64) {
    let stats = cache.stats();
    assert_eq!(stats.lookups(), calls, "{stats:?}");
}

/// `get_or_set_many` of the one key, from a task of its own, which has run as far as it can.
pub(crate) async fn asking_many(
    cache: &TracedCache<String>,
    db: &Db,
) -> tokio::task::JoinHandle<Result<Option<String>, ErrorKind>> {
    let (cache, db) = (cache.clone(), db.clone());
    let task = tokio::spawn(async move {
        let found = cache.get_or_set_many(["k"], &db, |db, keys| async move { db.load_many(keys).await });
        found.await.map(|mut found| found.remove(0).map(|v| v.to_string())).map_err(|e| e.kind())
    });
    settled().await;
    task
}

/// What both give alike: a batch of the one key, or the key alone.
pub(crate) async fn asking_alike(
    cache: &TracedCache<String>,
    db: &Db,
    many: bool,
) -> tokio::task::JoinHandle<Result<Option<String>, ErrorKind>> {
    if many {
        return asking_many(cache, db).await;
    }
    let one = asking(cache, db).await;
    tokio::spawn(async move { one.await.unwrap().map(|(_, value)| value) })
}
