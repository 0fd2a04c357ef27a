//! Replicas of a level: who is answered by them, and what is made of it.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use test_servers::RedisCluster;
use tokio::time::Instant;
use traced_cache::{
    Access, BoxError, CacheProvider, Capabilities, Description, Leases, Level, Memory, Outcome, Policy, Put,
    RawKey, RedisProvider, Replicas, TracedCache, testing::MapProvider,
};

const MINUTE: Duration = Duration::from_secs(60);

/// A store with a replica that gets what a test gives it.
#[derive(Clone)]
struct Lagging {
    store: Arc<MapProvider>,
    replica: Arc<MapProvider>,
    asked: Arc<AtomicUsize>,
    fails: Arc<AtomicBool>,
}

impl Lagging {
    fn new() -> Self {
        let store = Arc::new(MapProvider::new().leasing());
        let replica = Arc::new(MapProvider::new());
        Self { store, replica, asked: Arc::default(), fails: Arc::default() }
    }

    fn catch_up(&self) {
        self.replica.restore(&self.store.dump());
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }
}

#[async_trait]
impl CacheProvider for Lagging {
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
    fn describe(&self) -> Description {
        self.store.describe()
    }
    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        self.store.get_many(keys).await
    }
    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        self.store.put_many(items).await
    }
    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        self.store.remove_many(keys).await
    }
    fn incarnation(&self) -> u64 {
        self.store.incarnation()
    }
    fn leases(&self) -> Option<&dyn Leases> {
        self.store.leases()
    }
    fn replicas(&self) -> Option<&dyn Replicas> {
        Some(self)
    }
}

#[async_trait]
impl Replicas for Lagging {
    async fn get_copies(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        self.asked.fetch_add(keys.len(), Ordering::SeqCst);
        if self.fails.load(Ordering::SeqCst) {
            return keys.iter().map(|_| Err("no replica".into())).collect();
        }
        self.replica.get_many(keys).await
    }
}

fn cache(level: &Lagging) -> TracedCache<String> {
    TracedCache::builder("users")
        .level(Memory::entries(100))
        .level(Level::new(level.clone()).budget(MINUTE))
        .policy(Policy::ttl(MINUTE))
        .build()
        .unwrap()
}

async fn load(cache: &TracedCache<String>, value: &str) -> Arc<String> {
    let value = value.to_owned();
    cache.get_or_set("k", || async move { traced_cache::ok(value) }).await.unwrap()
}

#[tokio::test]
async fn only_who_accepts_stale_is_answered_by_a_replica_and_it_is_flagged() {
    let level = Lagging::new();
    let (writer, reader) = (cache(&level), cache(&level));
    load(&writer, "old").await;
    level.catch_up();
    assert!(writer.set("k", "new".to_owned()).await.unwrap().is_confirmed());
    // Learns the state of the store.
    assert!(reader.get("other").await.unwrap().is_none());
    assert_eq!(level.asked(), 0);

    let stale = reader.access(Access::AllowStale);
    let found = stale.look("k").await.unwrap();
    assert_eq!((found.outcome(), found.level()), (Outcome::Stale, Some(1)));
    assert_eq!(found.value().unwrap().as_str(), "old", "the replica is behind, and the answer says so");
    let found = stale.get_or_set("k", || async { traced_cache::ok("loaded".to_owned()) }).await.unwrap();
    assert_eq!(found.as_str(), "old");
    let many = stale.get_many(["k", "other"]).await.unwrap();
    assert_eq!((many[0].as_deref().map(String::as_str), many[1].is_none()), (Some("old"), true));
    assert_eq!(level.asked(), 4);
    assert_eq!(reader.stats().loads, 0);

    // Nothing was made of it: memory is empty, and others get what the store has.
    let found = reader.look("k").await.unwrap();
    assert_eq!((found.outcome(), found.level()), (Outcome::Hit, Some(1)));
    assert_eq!(found.value().unwrap().as_str(), "new");
    // What memory has fresh is nearer.
    assert_eq!(stale.look("k").await.unwrap().level(), Some(0));
    assert_eq!(level.asked(), 0);
}

#[tokio::test]
async fn what_replicas_lack_or_will_not_say_the_store_is_asked_for() {
    let level = Lagging::new();
    let (writer, reader) = (cache(&level), cache(&level));
    load(&writer, "v").await;
    assert!(reader.get("other").await.unwrap().is_none());
    let stale = reader.access(Access::AllowStale);
    let found = stale.look("k").await.unwrap();
    assert_eq!((found.outcome(), found.level()), (Outcome::Hit, Some(1)), "the replica has nothing yet");
    level.fails.store(true, Ordering::SeqCst);
    let other = cache(&level);
    assert!(other.get("other").await.unwrap().is_none());
    assert_eq!(other.access(Access::AllowStale).look("k").await.unwrap().outcome(), Outcome::Hit);
    assert!(level.asked() >= 2);
}

/// A replica may know nothing of it, but this node does.
#[tokio::test]
async fn what_this_node_has_cleared_or_could_not_remove_no_replica_brings_back() {
    let level = Lagging::new();
    let cache = cache(&level);
    load(&cache, "old").await;
    level.catch_up();
    assert!(cache.clear().await.unwrap().is_confirmed());
    let stale = cache.access(Access::AllowStale);
    assert_eq!(stale.look("k").await.unwrap().outcome(), Outcome::Miss);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_cluster() {
    let Some(cluster) = RedisCluster::start(3, 1) else { return };
    let node = |replicas| {
        let url = format!("redis+cluster://{}", cluster.nodes()[0].addr());
        let redis = RedisProvider::builder(url).read_replicas(replicas).build().unwrap();
        TracedCache::<String>::builder("users")
            .level(Level::new(redis).budget(Duration::from_secs(5)))
            .policy(Policy::ttl(MINUTE))
            .build()
            .unwrap()
    };
    let (writer, reader) = (node(false), node(true));
    load(&writer, "v").await;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let normal = reader.look("k").await.unwrap();
        let stale = reader.access(Access::AllowStale).look("k").await.unwrap();
        assert_eq!(normal.outcome(), Outcome::Hit);
        if stale.outcome() == Outcome::Stale {
            assert_eq!(stale.value().unwrap().as_str(), "v");
            break;
        }
        assert!(Instant::now() < deadline, "no replica ever answered");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
