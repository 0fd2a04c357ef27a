//! Nodes that share a store, a time and a backplane.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Semaphore;
use traced_cache::{
    BoxError, CacheProvider, Capabilities, Clock, Delivery, Description, Level, Loaded, Marks, Memory,
    Outcome, Policy, Put, RawKey, Result, Time, TracedCache,
    testing::{Chaos, Hub, Link, MapProvider},
};

pub(crate) const S: Duration = Duration::from_secs(1);
pub(crate) const MS: Duration = Duration::from_millis(1);
/// Within which a node without a backplane learns of what another has invalidated by tag.
pub(crate) const PERIOD: Duration = S;

pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) time: Time,
    pub(crate) store: Arc<MapProvider>,
    pub(crate) hub: Hub,
}

pub(crate) struct Node {
    pub(crate) cache: TracedCache<String>,
    pub(crate) l2: Arc<Chaos<Arc<MapProvider>>>,
    pub(crate) link: Link,
}

pub(crate) fn policy() -> Policy {
    Policy::ttl(100 * S).grace(1_000 * S).throttle(Duration::ZERO)
}

impl World {
    /// A store that keeps leases and swaps marks.
    pub(crate) fn new() -> Self {
        Self::on(MapProvider::new().leasing().marking())
    }

    pub(crate) fn on(store: MapProvider) -> Self {
        let (clock, time) = Clock::manual();
        Self { store: Arc::new(store.clock(clock.clone())), clock, time, hub: Hub::new() }
    }

    /// Memory before the store, and a backplane.
    pub(crate) fn node(&self) -> Node {
        self.build(true, true)
    }

    /// The same without a backplane.
    pub(crate) fn deaf(&self) -> Node {
        self.build(true, false)
    }

    /// The store alone.
    pub(crate) fn bare(&self) -> Node {
        self.build(false, false)
    }

    fn build(&self, memory: bool, hears: bool) -> Node {
        let l2 = Arc::new(Chaos::new(Arc::clone(&self.store)).clock(self.clock.clone()));
        let link = self.hub.node();
        let mut builder = TracedCache::builder("things").clock(self.clock.clone()).policy(policy());
        if memory {
            builder = builder.level(Memory::entries(100_000).engine_expiry(false));
        }
        if hears {
            builder = builder.backplane(link.clone());
        }
        let level = Level::new(Arc::clone(&l2)).breaker(None);
        Node { cache: builder.level(level).build().unwrap(), l2, link }
    }

    /// Lets time pass, and everything that it wakes run as far as it can.
    pub(crate) async fn pass(&self, by: Duration) {
        settled().await;
        self.time.advance(by);
        settled().await;
    }
}

/// Lets time pass until a task is done: it may be waiting for somebody else's lease.
pub(crate) async fn done<R>(world: Option<&World>, task: tokio::task::JoinHandle<R>) -> R {
    for _ in 0..10_000 {
        if task.is_finished() {
            return task.await.unwrap();
        }
        match world {
            Some(world) => world.pass(MS).await,
            None => settled().await,
        }
    }
    panic!("stuck");
}

/// Memory alone.
pub(crate) fn alone() -> TracedCache<String> {
    TracedCache::builder("alone").level(Memory::entries(100_000)).policy(policy()).build().unwrap()
}

/// One that is driven by its `block_on` only.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs every task until none can go on without time.
pub(crate) async fn settled() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// The load failed.
#[derive(Debug)]
pub(crate) struct Down;

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the source is down")
    }
}

impl std::error::Error for Down {}

/// A source whose answers carry tags; counts loads, and holds them up at a gate if told to.
#[derive(Clone)]
pub(crate) struct Source(Arc<Inner>);

struct Inner {
    loads: AtomicUsize,
    answers: Mutex<BTreeMap<String, (String, Vec<String>)>>,
    gate: Mutex<Option<Arc<Semaphore>>>,
    down: Mutex<bool>,
}

impl Source {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            loads: AtomicUsize::new(0),
            answers: Mutex::default(),
            gate: Mutex::new(None),
            down: Mutex::new(false),
        }))
    }

    /// What a load of `key` answers from now on.
    pub(crate) fn has(&self, key: &str, value: &str, tags: &[&str]) -> &Self {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        self.0.answers.lock().unwrap().insert(key.to_owned(), (value.to_owned(), tags));
        self
    }

    pub(crate) fn down(&self, down: bool) {
        *self.0.down.lock().unwrap() = down;
    }

    /// Loads that begin from now on wait at this gate; what they answer is what the source has when they begin.
    pub(crate) fn gate(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.0.gate.lock().unwrap() = Some(Arc::clone(&gate));
        gate
    }

    pub(crate) fn open(&self) {
        if let Some(gate) = self.0.gate.lock().unwrap().take() {
            gate.add_permits(1_000);
        }
    }

    pub(crate) fn loads(&self) -> usize {
        self.0.loads.load(Ordering::SeqCst)
    }

    pub(crate) async fn load(self, key: String) -> Result<Loaded<String>, BoxError> {
        self.0.loads.fetch_add(1, Ordering::SeqCst);
        let answer = self.0.answers.lock().unwrap().get(&key).cloned();
        let gate = self.0.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.acquire().await?.forget();
        }
        if *self.0.down.lock().unwrap() {
            return Err(Down.into());
        }
        Ok(match answer {
            Some((value, tags)) => Loaded::value(value).tags(tags),
            None => Loaded::absent(),
        })
    }

    /// `get_or_set`, with how it was answered.
    pub(crate) async fn ask(&self, cache: &TracedCache<String>, key: &str) -> (Outcome, String) {
        let found = self.try_ask(cache, key).await.unwrap();
        found.unwrap()
    }

    pub(crate) async fn try_ask(
        &self,
        cache: &TracedCache<String>,
        key: &str,
    ) -> Result<Option<(Outcome, String)>> {
        let found =
            cache.look_or_set_with(key, self, |source, key| async move { source.load(key).await }).await?;
        let outcome = found.outcome();
        Ok(found.into_value().map(|value| (outcome, value.as_str().to_owned())))
    }

    /// The same in a task of its own, once its load has begun or it waits for one.
    pub(crate) async fn asking(
        &self,
        cache: &TracedCache<String>,
        key: &str,
    ) -> tokio::task::JoinHandle<(Outcome, String)> {
        let (source, cache, key) = (self.clone(), cache.clone(), key.to_owned());
        let task = tokio::spawn(async move { source.ask(&cache, &key).await });
        settled().await;
        task
    }

    /// The same for several keys that all have values.
    pub(crate) async fn asking_many(
        &self,
        cache: &TracedCache<String>,
        keys: &'static [&'static str],
    ) -> tokio::task::JoinHandle<Vec<String>> {
        let (source, cache) = (self.clone(), cache.clone());
        let load = |source: Self, keys: Vec<String>| async move {
            let mut all = Vec::new();
            for key in keys {
                all.push((key.clone(), source.clone().load(key).await?));
            }
            Ok::<_, BoxError>(all)
        };
        let task = tokio::spawn(async move {
            let all = cache.get_or_set_many(keys.iter().copied(), &source, load).await.unwrap();
            all.into_iter().map(|value| value.unwrap().as_str().to_owned()).collect()
        });
        settled().await;
        task
    }
}

pub(crate) fn confirmed(delivery: Result<Delivery>) {
    assert_eq!(delivery.unwrap(), Delivery::Confirmed);
}

pub(crate) async fn get(cache: &TracedCache<String>, key: &str) -> Option<String> {
    cache.get(key).await.unwrap().map(|value| value.as_str().to_owned())
}

/// At which level a look-up found it.
pub(crate) async fn level(cache: &TracedCache<String>, key: &str) -> Option<usize> {
    cache.look(key).await.unwrap().level()
}

pub(crate) fn saw(outcome: Outcome, value: &str) -> (Outcome, String) {
    (outcome, value.to_owned())
}

/// Stores a value with tags.
pub(crate) async fn set(cache: &TracedCache<String>, key: &str, value: &str, tags: &[&str]) {
    let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
    confirmed(cache.set_loaded(key, Loaded::value(value.to_owned()).tags(tags)).await);
}

/// A store without leases whose mark can be out of reach while its entries are not: they lie on different servers.
pub(crate) struct Parted {
    pub(crate) store: Arc<MapProvider>,
    pub(crate) mute: AtomicBool,
}

#[async_trait]
impl CacheProvider for Parted {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    fn describe(&self) -> Description {
        self.store.describe()
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        let mut answers = self.store.get_many(keys).await;
        if self.mute.load(Ordering::Relaxed) {
            let marks = answers.iter_mut().zip(keys).filter(|(_, key)| key.mark);
            marks.for_each(|(answer, _)| *answer = Err(Down.into()));
        }
        answers
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        self.store.put_many(items).await
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        self.store.remove_many(keys).await
    }

    fn marks(&self) -> Option<&dyn Marks> {
        self.store.marks()
    }
}
