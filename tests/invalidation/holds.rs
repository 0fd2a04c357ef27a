//! Write-through: the old value is out of reach before the source is written.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use test_servers::{MemcachedServer, RedisServer, eventually};
use tokio::sync::Semaphore;
use traced_cache::{
    BoxError, CacheId, CacheProvider, Delivery, ErrorKind, Level, Loaded, MemcachedProvider, Memory, Policy,
    RawKey, RedisProvider, Source, Sourced, Stance, TracedCache,
    testing::{Chaos, ChaosOp, Fault, MapProvider},
};

use crate::world::{MS, S, World, confirmed, done, get, set, settled};

/// A row, and gates at which its writers and readers wait.
#[derive(Clone, Default)]
struct Table(Arc<Row>);

#[derive(Default)]
struct Row {
    value: Mutex<u64>,
    loads: AtomicUsize,
    saves: AtomicUsize,
    saving: Mutex<Option<Arc<Semaphore>>>,
    saved: Mutex<Option<Arc<Semaphore>>>,
}

async fn pass(gate: &Mutex<Option<Arc<Semaphore>>>) {
    let gate = gate.lock().unwrap().clone();
    if let Some(gate) = gate {
        let _ = gate.acquire().await.map(tokio::sync::SemaphorePermit::forget);
    }
}

fn shut(gate: &Mutex<Option<Arc<Semaphore>>>) -> Arc<Semaphore> {
    let closed = Arc::new(Semaphore::new(0));
    *gate.lock().unwrap() = Some(Arc::clone(&closed));
    closed
}

impl Source<String, u64> for Table {
    async fn load(&self, _: &String) -> Result<Loaded<u64>, BoxError> {
        self.0.loads.fetch_add(1, Ordering::SeqCst);
        Ok(Loaded::value(*self.0.value.lock().unwrap()))
    }

    async fn save(&self, _: &String, value: &u64) -> Result<(), BoxError> {
        self.0.saves.fetch_add(1, Ordering::SeqCst);
        pass(&self.0.saving).await;
        *self.0.value.lock().unwrap() = *value;
        pass(&self.0.saved).await;
        Ok(())
    }

    async fn delete(&self, _: &String) -> Result<(), BoxError> {
        Err("not here".into())
    }
}

type Users = Sourced<String, u64, Table>;

fn node(provider: Arc<dyn CacheProvider>, table: &Table, policy: Policy) -> Users {
    let cache: TracedCache<u64> = TracedCache::builder("rows")
        .level(Memory::entries(100))
        .level(Level::new(provider).budget(10 * S).breaker(None))
        .policy(policy)
        .build()
        .unwrap();
    cache.with_source(table.clone())
}

async fn read(users: &Users) -> u64 {
    *users.get("k").await.unwrap().unwrap()
}

async fn until(what: &str, mut check: impl FnMut() -> bool) {
    eventually(20 * S, what, async || check()).await;
}

/// While one node writes the source, another reads; then the writer dies.
async fn a_writer_that_dies(make: impl Fn() -> Arc<dyn CacheProvider>) {
    let table = Table::default();
    let policy = Policy::ttl(600 * S);
    let (a, b) = (node(make(), &table, policy), node(make(), &table, policy));
    *table.0.value.lock().unwrap() = 1;
    assert_eq!(read(&a).await, 1);
    let saved = shut(&table.0.saved);
    let saving = shut(&table.0.saving);
    let writing = tokio::spawn({
        let a = a.clone();
        async move { a.save("k", 2_u64).await }
    });
    until("writing", || table.0.saves.load(Ordering::SeqCst) == 1).await;
    // The source has not changed yet: who reads gets the old value from there, and stores it nowhere.
    let cold = node(make(), &table, policy);
    assert_eq!(read(&b).await, 1);
    assert_eq!(read(&b).await, 1);
    assert_eq!(read(&cold).await, 1);
    assert_eq!(table.0.loads.load(Ordering::SeqCst), 4, "each of them from the source");
    // An invalidation in between does not end it.
    confirmed(b.cache().invalidate("k").await);
    assert_eq!(read(&b).await, 1);
    saving.add_permits(1);
    until("written", || *table.0.value.lock().unwrap() == 2).await;
    // The source has it, and the writer dies before it can tell the cache.
    writing.abort();
    a.cache().clone().close(Duration::ZERO).await.is_drained();
    drop(saved);
    for users in [&b, &cold, &node(make(), &table, policy)] {
        assert_eq!(read(users).await, 2, "nobody serves what was there before");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_source_and_cache_leaves_nothing_old() {
    let map = Arc::new(MapProvider::new().leasing().marking());
    a_writer_that_dies(|| Arc::clone(&map) as _).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_source_and_cache_leaves_nothing_old_on_redis() {
    let Some(server) = RedisServer::start() else { return };
    a_writer_that_dies(|| Arc::new(RedisProvider::builder(server.url()).build().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_between_source_and_cache_leaves_nothing_old_on_memcached() {
    let Some(server) = MemcachedServer::start() else { return };
    a_writer_that_dies(|| Arc::new(MemcachedProvider::builder(server.url()).build().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_two_nodes_that_overlap_leave_no_value() {
    let map = Arc::new(MapProvider::new().leasing().marking());
    let table = Table::default();
    let policy = Policy::ttl(600 * S);
    let nodes = [node(Arc::clone(&map) as _, &table, policy), node(Arc::clone(&map) as _, &table, policy)];
    let saving = shut(&table.0.saving);
    let writing: Vec<_> = nodes
        .iter()
        .zip([2_u64, 3])
        .map(|(node, value)| {
            let node = node.clone();
            tokio::spawn(async move { node.save("k", value).await.unwrap() })
        })
        .collect();
    until("writing", || table.0.saves.load(Ordering::SeqCst) == 2).await;
    saving.add_permits(2);
    for writing in writing {
        let _ = writing.await.unwrap();
    }
    // Whichever came last: it is read from the source.
    let last = *table.0.value.lock().unwrap();
    for node in &nodes {
        assert!(node.cache().get("k").await.unwrap().is_none());
        assert_eq!(read(node).await, last);
    }
    // When both holds are over, the value is kept again.
    assert!(map.is_kept("rows:k"));
    map.unhold("rows:k");
    read(&nodes[0]).await;
    assert_eq!(nodes[0].cache().look("k").await.unwrap().level(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_do_not_wait_for_a_writer() {
    let map = Arc::new(MapProvider::new().leasing().marking());
    let table = Table::default();
    let users = node(Arc::clone(&map) as _, &table, Policy::ttl(600 * S));
    let saving = shut(&table.0.saving);
    let writing = tokio::spawn({
        let users = users.clone();
        async move { users.save("k", 2_u64).await.unwrap() }
    });
    until("writing", || table.0.saves.load(Ordering::SeqCst) == 1).await;
    // On the writer's own node as well.
    assert_eq!(tokio::time::timeout(S, read(&users)).await.unwrap(), 0);
    saving.add_permits(1);
    assert_eq!(writing.await.unwrap(), Delivery::Confirmed);
    assert_eq!(read(&users).await, 2);
    assert_eq!(users.cache().look("k").await.unwrap().level(), Some(0));
}

#[tokio::test]
async fn a_level_that_cannot_be_told_is_not_written_behind() {
    let world = World::new();
    let table = Table::default();
    let l2 = Arc::new(Chaos::new(Arc::clone(&world.store)));
    for stance in [Stance::Surface, Stance::Absorb] {
        let cache: TracedCache<u64> = TracedCache::builder("rows")
            .level(Memory::entries(100))
            .level(Level::new(Arc::clone(&l2)).stance(stance).breaker(None))
            .policy(Policy::ttl(600 * S))
            .clock(world.clock.clone())
            .build()
            .unwrap();
        let users: Users = cache.with_source(table.clone());
        l2.set_all(Fault::None);
        confirmed(cache.set("k", 1_u64).await);
        let before = table.0.saves.load(Ordering::SeqCst);
        l2.set_all(Fault::Fail);
        match stance {
            Stance::Surface => {
                assert_eq!(users.save("k", 2_u64).await.unwrap_err().kind(), ErrorKind::Level);
                assert_eq!(table.0.saves.load(Ordering::SeqCst), before, "refused before the source");
            }
            _ => {
                assert_eq!(users.save("k", 2_u64).await.unwrap(), Delivery::Pending);
                assert_eq!(table.0.saves.load(Ordering::SeqCst), before + 1);
            }
        }
        l2.set_all(Fault::None);
        for _ in 0..60 {
            world.pass(100 * MS).await;
        }
        settled().await;
        assert_eq!(cache.stats().pending, 0);
        let elsewhere: TracedCache<u64> = TracedCache::builder("rows")
            .level(Arc::clone(&world.store))
            .clock(world.clock.clone())
            .build()
            .unwrap();
        assert!(elsewhere.get("k").await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_save_that_ran_out_of_time_keeps_the_key_for_a_while() {
    let world = World::new();
    let table = Table::default();
    let cache: TracedCache<u64> = TracedCache::builder("rows")
        .level(Arc::clone(&world.store))
        .policy(Policy::ttl(600 * S).hard_limit(Some(S)))
        .clock(world.clock.clone())
        .build()
        .unwrap();
    let users: Users = cache.with_source(table.clone());
    let _saving = shut(&table.0.saving);
    let writing = tokio::spawn({
        let users = users.clone();
        async move { users.save("k", 2_u64).await.unwrap_err() }
    });
    settled().await;
    world.pass(S).await;
    assert_eq!(writing.await.unwrap().kind(), ErrorKind::LoadTimeout);
    // The source may still be at it: what is read now is not stored.
    assert_eq!(read(&users).await, 0);
    assert!(cache.get("k").await.unwrap().is_none());
    world.pass(5 * S).await;
    assert_eq!(read(&users).await, 0);
    assert!(cache.get("k").await.unwrap().is_some(), "and after that it is");
    let _ = ChaosOp::Hold;
}

/// What a load has read under a hold is stored nowhere, so nothing says whether the writer has replaced it since.
#[tokio::test]
async fn who_joins_a_load_that_a_writer_has_kept_out_does_not_get_what_was_replaced() {
    let world = World::new();
    let (a, b) = (world.bare(), world.bare());
    get(&b.cache, "k").await;
    let key = RawKey::new(CacheId(0), "things", "k");
    let holds = world.store.leases().unwrap().hold_many(&[key], 5 * S).await;
    assert!(holds[0].is_ok());
    let source = crate::world::Source::new();
    source.has("k", "old", &[]).gate();
    let early = source.asking(&b.cache, "k").await;
    source.has("k", "new", &[]);
    set(&a.cache, "k", "new", &[]).await;
    let late = source.asking(&b.cache, "k").await;
    source.open();
    assert_eq!(done(Some(&world), early).await.1, "old", "it asked before");
    assert_eq!(done(Some(&world), late).await.1, "new");
}
