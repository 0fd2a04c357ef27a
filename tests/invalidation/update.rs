//! Read, change, write: no update is lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use test_servers::{MemcachedServer, RedisServer};
use tokio::sync::Semaphore;
use traced_cache::{
    Acquire, Acquired, BoxError, CacheProvider, Capabilities, Description, ErrorKind, Fill, Lease, Leases,
    Level, Loaded, Marks, MemcachedProvider, Memory, Policy, Put, RawKey, RedisProvider, TracedCache, ok,
    testing::{Chaos, ChaosOp, Fault, MapProvider},
    with_causes,
};

use crate::world::{Down, MS, Parted, S, Source, World, confirmed, done, get, set, settled};

type Counter = TracedCache<u64>;

async fn add(cache: &Counter, key: &str) -> u64 {
    *cache.update(key, &(), |(), _, seen| async move { ok(seen.map_or(1, |n| *n + 1)) }).await.unwrap().value
}

async fn read(cache: &Counter, key: &str) -> Option<u64> {
    cache.get(key).await.unwrap().map(|n| *n)
}

fn counter(provider: Option<Arc<dyn CacheProvider>>, memory: bool) -> Counter {
    let mut builder = TracedCache::builder("counts").policy(Policy::ttl(600 * S));
    if memory {
        builder = builder.level(Memory::entries(1_000));
    }
    if let Some(provider) = provider {
        builder = builder.level(Level::new(provider).budget(10 * S).breaker(None));
    }
    builder.build().unwrap()
}

/// Many callers on each of two nodes.
async fn nothing_is_lost(nodes: &[Counter]) {
    const EACH: u64 = 25;
    let tasks: Vec<_> = nodes
        .iter()
        .flat_map(|node| (0..2).map(move |_| node.clone()))
        .map(|node| {
            tokio::spawn(async move {
                for _ in 0..EACH {
                    add(&node, "k").await;
                }
            })
        })
        .collect();
    let count = u64::try_from(tasks.len()).unwrap() * EACH;
    for task in tasks {
        task.await.unwrap();
    }
    // Whatever memory of one node still has of the other's: an update reads at the level that they share.
    assert_eq!(add(&nodes[0], "k").await, count + 1);
    assert_eq!(read(&nodes[0], "k").await, Some(count + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_update_is_lost_in_one_process() {
    nothing_is_lost(&[counter(None, true)]).await;
    nothing_is_lost(&[counter(Some(Arc::new(MapProvider::new())), true)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_update_is_lost_between_nodes() {
    let store: Arc<dyn CacheProvider> = Arc::new(MapProvider::new().leasing().marking());
    nothing_is_lost(&[counter(Some(Arc::clone(&store)), true), counter(Some(store), false)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_update_is_lost_between_nodes_on_redis() {
    let Some(server) = RedisServer::start() else { return };
    let redis =
        || Some(Arc::new(RedisProvider::builder(server.url()).build().unwrap()) as Arc<dyn CacheProvider>);
    nothing_is_lost(&[counter(redis(), true), counter(redis(), false)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_update_is_lost_between_nodes_on_memcached() {
    let Some(server) = MemcachedServer::start() else { return };
    let memcached = || {
        Some(Arc::new(MemcachedProvider::builder(server.url()).build().unwrap()) as Arc<dyn CacheProvider>)
    };
    nothing_is_lost(&[counter(memcached(), true), counter(memcached(), false)]).await;
}

#[tokio::test]
async fn what_is_written_in_between_is_not_overwritten() {
    let world = World::new();
    let caches = [
        counter(None, true),
        counter(Some(Arc::clone(&world.store) as _), true),
        counter(Some(Arc::new(MapProvider::new()) as _), false),
    ];
    for (at, cache) in caches.into_iter().enumerate() {
        confirmed(cache.set("k", 10_u64).await);
        let (gate, runs) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let updating = tokio::spawn({
            let (cache, gate, runs) = (cache.clone(), Arc::clone(&gate), Arc::clone(&runs));
            async move {
                let state = (gate, runs);
                cache
                    .update(
                        "k",
                        &state,
                        |(gate, runs): (Arc<Semaphore>, Arc<AtomicUsize>), _, seen| async move {
                            if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                                gate.acquire().await.unwrap().forget();
                            }
                            ok(seen.map_or(1, |n| *n + 1))
                        },
                    )
                    .await
            }
        });
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(MS).await;
        }
        // On levels that nodes share, another node's set; this node's own waits for its turn.
        let setter = match at {
            0 => cache.clone(),
            1 => counter(Some(Arc::clone(&world.store) as _), false),
            _ => {
                gate.add_permits(10);
                assert_eq!(*updating.await.unwrap().unwrap().value, 11);
                continue;
            }
        };
        confirmed(setter.set("k", 100_u64).await);
        gate.add_permits(10);
        assert_eq!(*updating.await.unwrap().unwrap().value, 101, "run again, on what was set");
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        assert_eq!(add(&cache, "k").await, 102);
    }
}

#[tokio::test]
async fn an_update_may_remove_or_leave_alone_or_fail() {
    let world = World::new();
    for cache in [counter(None, true), counter(Some(Arc::clone(&world.store) as _), true)] {
        confirmed(cache.set("k", 7_u64).await);
        let keep = |(), _, seen: Option<Arc<u64>>| async move {
            Ok::<_, BoxError>(Loaded::do_not_store(seen.map(|n| *n * 2)))
        };
        assert_eq!(cache.update("k", &(), keep).await.unwrap().value.as_deref(), Some(&14));
        assert_eq!(read(&cache, "k").await, Some(7));

        let fail = |(), _, _| async { Err::<u64, _>(Down) };
        let error = cache.update("k", &(), fail).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Load);
        assert!(error.load_error::<Down>().is_some());
        let panic = |(), _: String, seen: Option<Arc<u64>>| async move {
            assert!(seen.is_none(), "on purpose");
            ok(1_u64)
        };
        assert_eq!(cache.update("k", &(), panic).await.unwrap_err().kind(), ErrorKind::LoadPanicked);
        assert_eq!(read(&cache, "k").await, Some(7));

        let gone = |(), _, _| async { ok(None::<u64>) };
        assert_eq!(cache.update("k", &(), gone).await.unwrap().value, None);
        assert_eq!(read(&cache, "k").await, None);
        assert_eq!(add(&cache, "k").await, 1);
    }
}

#[tokio::test]
async fn an_update_beats_a_load_under_way() {
    let world = World::new();
    for cache in [counter(None, true), counter(Some(Arc::clone(&world.store) as _), true)] {
        let gate = Arc::new(Semaphore::new(0));
        let loading = tokio::spawn({
            let (cache, gate) = (cache.clone(), Arc::clone(&gate));
            async move {
                cache
                    .get_or_set_with("k", &gate, |gate, _| async move {
                        let _ = gate.acquire().await;
                        ok(5_u64)
                    })
                    .await
            }
        });
        tokio::task::yield_now().await;
        let updating = tokio::spawn({
            let cache = cache.clone();
            async move { add(&cache, "k").await }
        });
        // It waits for the load's lease where there is one: what that loads is older, or is seen.
        tokio::time::sleep(20 * MS).await;
        gate.add_permits(1);
        loading.await.unwrap().unwrap();
        let count = updating.await.unwrap();
        assert!(count == 1 || count == 6, "{count}");
        assert_eq!(add(&cache, "k").await, count + 1);
    }
}

#[tokio::test]
async fn without_its_level_nothing_is_updated() {
    let world = World::new();
    let node = world.node();
    node.l2.set_all(Fault::Fail);
    let error = node.cache.update("k", &(), |(), _, _| async { ok("v".to_owned()) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Level);
    // The level's own words, and not what comes of its silence.
    assert_eq!(with_causes(&error), "cache `things`: level 2 failed: injected failure");
    node.l2.set_all(Fault::None);
    // A write whose answer is lost is an error, and is read by nobody until it has been removed.
    assert!(node.cache.get("k").await.unwrap().is_none());
    node.l2.set(ChaosOp::Fill, Fault::LoseReply);
    let error = node.cache.update("k", &(), |(), _, _| async { ok("v".to_owned()) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Level);
    node.l2.set_all(Fault::None);
    assert!(node.cache.get("k").await.unwrap().is_none());
}

#[tokio::test]
async fn a_caller_who_leaves_does_not_stop_its_update() {
    let world = World::new();
    let cache = counter(Some(Arc::clone(&world.store) as _), true);
    let (gate, began) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let leaving = tokio::spawn({
        let (cache, state) = (cache.clone(), (Arc::clone(&gate), Arc::clone(&began)));
        async move {
            let _ = cache
                .update("k", &state, |(gate, began): (Arc<Semaphore>, Arc<Semaphore>), _, _| async move {
                    began.add_permits(1);
                    let _ = gate.acquire().await;
                    ok(3_u64)
                })
                .await;
        }
    });
    let _ = began.acquire().await;
    leaving.abort();
    gate.add_permits(1);
    let start = std::time::Instant::now();
    while read(&cache, "k").await != Some(3) {
        assert!(start.elapsed() < 20 * S, "it was not stored");
        tokio::time::sleep(MS).await;
    }
    let _ = done(None, tokio::spawn(async {})).await;
}

#[tokio::test]
async fn what_is_made_of_a_value_whose_tag_is_invalidated_meanwhile_is_made_anew() {
    let world = World::new();
    let caches = [
        counter(None, true),
        counter(Some(Arc::clone(&world.store) as _), true),
        counter(Some(Arc::new(MapProvider::new()) as _), true),
    ];
    for (at, cache) in caches.into_iter().enumerate() {
        confirmed(cache.set_loaded("k", Loaded::value(41_u64).tag("x")).await);
        let (gate, runs) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let updating = tokio::spawn({
            let (cache, state) = (cache.clone(), (Arc::clone(&gate), Arc::clone(&runs)));
            let change = |(gate, runs): (Arc<Semaphore>, Arc<AtomicUsize>), _, seen: Option<Arc<u64>>| async move {
                runs.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                ok(seen.map_or(1, |n| *n + 1))
            };
            async move { cache.update("k", &state, change).await }
        });
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        confirmed(cache.invalidate_tag("x").await);
        assert_eq!(read(&cache, "k").await, None);
        gate.add_permits(2);
        assert_eq!(*updating.await.unwrap().unwrap().value, 1, "{at}");
        assert_eq!(runs.load(Ordering::SeqCst), 2, "{at}");
        assert_eq!(read(&cache, "k").await, Some(1), "{at}");
    }
}

#[tokio::test]
async fn an_absence_keeps_the_tags_of_what_it_replaces() {
    let stores: [Option<Arc<dyn CacheProvider>>; 3] =
        [None, Some(Arc::new(MapProvider::new())), Some(Arc::new(MapProvider::new().leasing().marking()))];
    for (at, store) in stores.into_iter().enumerate() {
        let mut builder =
            TracedCache::<u64>::builder("users").policy(Policy::ttl(600 * S).absent_ttl(600 * S));
        builder = builder.level(Memory::entries(1_000));
        if let Some(store) = store {
            builder = builder.level(store);
        }
        let cache = builder.build().unwrap();
        let load = async || cache.get_or_set("k", || async { ok(Some(5_u64)) }).await.unwrap();
        confirmed(cache.set_loaded("k", Loaded::value(41_u64).tag("x")).await);
        let gone = cache.update("k", &(), |(), _, _| async { ok(None::<u64>) }).await.unwrap();
        assert!(gone.value.is_none() && gone.delivery.is_confirmed());
        assert!(load().await.is_none(), "{at}: it is remembered");
        confirmed(cache.invalidate_tag("x").await);
        assert!(load().await.is_some(), "{at}: the tag is invalidated");
    }
}

/// It would be made of nothing, and void where it lies.
#[tokio::test]
async fn a_store_that_does_not_say_what_is_valid_takes_no_update() {
    let store = Arc::new(MapProvider::new().marking());
    let parted = Arc::new(Parted { store: Arc::clone(&store), mute: AtomicBool::new(false) });
    let (before, node) = (counter(Some(store), false), counter(Some(Arc::clone(&parted) as _), false));
    assert_eq!(add(&before, "k").await, 1);
    parted.mute.store(true, Ordering::Relaxed);
    let error = node.update("k", &(), |(), _, _| async { ok(7) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Level);
    assert!(with_causes(&error).ends_with("level 1 failed: the source is down"), "{error:?}");
    assert_eq!(read(&before, "k").await, Some(1));
    parted.mute.store(false, Ordering::Relaxed);
    assert_eq!(add(&node, "k").await, 2);
    assert_eq!(read(&before, "k").await, Some(2));
}

/// What a nearer level has to say of its mark comes only while the change is made, and after it the cache is cleared.
#[tokio::test]
async fn an_update_without_leases_does_not_outlive_what_clears_the_cache_while_it_is_made() {
    let world = World::on(MapProvider::new().marking());
    let near = Arc::new(Chaos::new(Arc::clone(&world.store)).clock(world.clock.clone()));
    let deep = Arc::new(MapProvider::new().marking().clock(world.clock.clone()));
    let build = |near: Arc<dyn CacheProvider>| -> Counter {
        TracedCache::builder("counts")
            .clock(world.clock.clone())
            .policy(Policy::ttl(600 * S))
            .backplane(world.hub.node())
            .level(Level::new(near).breaker(None))
            .level(Level::new(Arc::clone(&deep) as Arc<dyn CacheProvider>).breaker(None))
            .build()
            .unwrap()
    };
    let (a, b) = (build(Arc::clone(&world.store) as _), build(Arc::clone(&near) as _));
    confirmed(a.set("k", 1_u64).await);
    assert_eq!(read(&b, "k").await, Some(1));
    confirmed(a.clear().await);
    settled().await;
    near.set(ChaosOp::Get, Fault::Fail);
    let clears = (b.clone(), Arc::clone(&near));
    let change = |clears: (Counter, Arc<Chaos<Arc<MapProvider>>>), _, seen: Option<Arc<u64>>| async move {
        let (b, near) = clears;
        near.set(ChaosOp::Get, Fault::None);
        assert_eq!(read(&b, "other").await, None);
        if seen.is_none() {
            confirmed(b.clear().await);
        }
        ok(7_u64)
    };
    let _ = b.update("k", &clears, change).await.unwrap();
    settled().await;
    for node in [&a, &b] {
        assert_eq!(read(node, "k").await, None);
    }
}

/// Another node invalidates what a store has just been found to hold, before that may be replaced.
struct Between {
    store: Arc<dyn CacheProvider>,
    other: Counter,
    due: AtomicBool,
}

#[async_trait]
impl CacheProvider for Between {
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

    fn marks(&self) -> Option<&dyn Marks> {
        self.store.marks()
    }

    fn leases(&self) -> Option<&dyn Leases> {
        Some(self)
    }
}

#[async_trait]
impl Leases for Between {
    async fn acquire_many(&self, wanted: &[Acquire<'_>], life: Duration) -> Vec<Result<Acquired, BoxError>> {
        let answers = self.store.leases().unwrap().acquire_many(wanted, life).await;
        if matches!(answers[..], [Ok(Acquired::Found(_))]) && self.due.swap(false, Ordering::SeqCst) {
            confirmed(self.other.invalidate("k").await);
        }
        answers
    }

    async fn fill_many(&self, fills: &[Fill<'_>]) -> Vec<Result<bool, BoxError>> {
        self.store.leases().unwrap().fill_many(fills).await
    }

    async fn hold_many(&self, keys: &[RawKey<'_>], life: Duration) -> Vec<Result<Lease, BoxError>> {
        self.store.leases().unwrap().hold_many(keys, life).await
    }

    async fn renew_many(&self, leases: &[(RawKey<'_>, Lease)], life: Duration) -> Vec<Result<(), BoxError>> {
        self.store.leases().unwrap().renew_many(leases, life).await
    }

    async fn release_many(&self, leases: &[(RawKey<'_>, Lease)]) -> Vec<Result<(), BoxError>> {
        self.store.leases().unwrap().release_many(leases).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_invalidated_before_it_may_be_replaced_is_not_brought_back() {
    let mut stores: Vec<Arc<dyn CacheProvider>> = vec![Arc::new(MapProvider::new().leasing().marking())];
    let (redis, memcached) = (RedisServer::start(), MemcachedServer::start());
    if let Some(server) = &redis {
        stores.push(Arc::new(RedisProvider::builder(server.url()).build().unwrap()));
    }
    if let Some(server) = &memcached {
        stores.push(Arc::new(MemcachedProvider::builder(server.url()).build().unwrap()));
    }
    for (at, store) in stores.into_iter().enumerate() {
        let other = counter(Some(Arc::clone(&store)), false);
        let between = Between { store, other: other.clone(), due: AtomicBool::new(true) };
        let node = counter(Some(Arc::new(between)), false);
        confirmed(other.set("k", 41_u64).await);
        assert_eq!(add(&node, "k").await, 1, "{at}");
        assert_eq!((add(&other, "k").await, add(&node, "k").await), (2, 3), "{at}");
    }
}

/// The update has its turn among the writers, and waits for the lease of the load, which waits for no turn to use it up.
#[tokio::test]
async fn an_update_waits_no_longer_for_a_load_that_leaves_nothing() {
    for node in [World::node, World::bare] {
        let world = World::new();
        let (cache, source) = (node(&world).cache, Source::new());
        set(&cache, "k", "old", &[]).await;
        confirmed(cache.expire("k").await);
        source.gate();
        let load = tokio::spawn({
            let (cache, source) = (cache.clone(), source.clone());
            async move { source.try_ask(&cache, "k").await.unwrap() }
        });
        settled().await;
        let update = tokio::spawn({
            let cache = cache.clone();
            async move {
                cache.update("k", &(), |(), _, _| async { ok("new".to_owned()) }).await.unwrap().delivery
            }
        });
        settled().await;
        source.open();
        world.pass(100 * MS).await;
        assert!(load.is_finished() && update.is_finished(), "they wait for the end of the lease");
        assert_eq!(load.await.unwrap(), None);
        assert!(update.await.unwrap().is_confirmed());
        assert_eq!(get(&cache, "k").await.as_deref(), Some("new"));
    }
}
