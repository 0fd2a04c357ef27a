//! Several nodes of one cache: one load between them, and invalidations that reach all.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use test_servers::RedisServer;
use tokio::sync::Semaphore;
use traced_cache::{
    Delivery, Level, Memory, Outcome, Policy, RedisProvider, TracedCache,
    testing::{Chaos, ChaosOp, Fault, Hub, Link, MapProvider},
};

const MINUTE: Duration = Duration::from_secs(60);

struct Node {
    cache: TracedCache<String>,
    link: Link,
    l2: Arc<Chaos<Arc<MapProvider>>>,
}

/// Nodes with a level in memory each, one store between them, and a hub.
fn nodes(count: usize) -> (Vec<Node>, Arc<MapProvider>) {
    let store = Arc::new(MapProvider::new().leasing());
    let hub = Hub::new();
    let nodes = (0..count)
        .map(|_| {
            let l2 = Arc::new(Chaos::new(Arc::clone(&store)));
            let link = hub.node();
            let cache = TracedCache::builder("users")
                .level(Memory::entries(100))
                .level(Level::new(Arc::clone(&l2)).budget(MINUTE).breaker(None))
                .backplane(link.clone())
                .policy(Policy::ttl(MINUTE))
                .build()
                .unwrap();
            Node { cache, link, l2 }
        })
        .collect();
    (nodes, store)
}

async fn load(cache: &TracedCache<String>, value: &str) -> Arc<String> {
    let value = value.to_owned();
    cache.get_or_set("k", || async move { traced_cache::ok(value) }).await.unwrap()
}

/// A loader that waits for its gate, and counts.
async fn gated(
    cache: &TracedCache<String>,
    gate: &Arc<Semaphore>,
    loads: &Arc<AtomicUsize>,
    value: &str,
) -> Arc<String> {
    let (gate, loads, value) = (Arc::clone(gate), Arc::clone(loads), value.to_owned());
    cache
        .get_or_set("k", || async move {
            loads.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            traced_cache::ok(value)
        })
        .await
        .unwrap()
}

#[tokio::test]
async fn s6_one_load_between_two_nodes() {
    let (nodes, _) = nodes(2);
    let gate = Arc::new(Semaphore::new(0));
    let loads = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..20)
        .map(|n| {
            let (cache, gate, loads) = (nodes[n % 2].cache.clone(), Arc::clone(&gate), Arc::clone(&loads));
            tokio::spawn(async move { gated(&cache, &gate, &loads, "v").await })
        })
        .collect();
    while loads.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // Long enough for the other node to have asked for the right, and been told to wait.
    tokio::time::sleep(Duration::from_millis(30)).await;
    gate.add_permits(100);
    for caller in callers {
        assert_eq!(*caller.await.unwrap(), "v");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    let (a, b) = (nodes[0].cache.stats(), nodes[1].cache.stats());
    assert_eq!(a.loads + b.loads, 1);
    assert_eq!(a.misses() + b.misses(), 1, "the other node's leader was served by the store");
    assert_eq!((a.lookups(), b.lookups()), (10, 10));
}

#[tokio::test]
async fn p1_p2_a_change_on_one_node_reaches_the_other() {
    let (nodes, _) = nodes(2);
    let [a, b] = &nodes[..] else { unreachable!() };
    load(&a.cache, "old").await;
    assert_eq!(*load(&b.cache, "never").await, "old");
    assert_eq!(b.cache.look("k").await.unwrap().level(), Some(0));
    assert_eq!(a.cache.set("k", "new".to_owned()).await.unwrap(), Delivery::Confirmed);
    assert_eq!(b.cache.get("k").await.unwrap().unwrap().as_str(), "new");
    assert_eq!(a.cache.invalidate("k").await.unwrap(), Delivery::Confirmed);
    assert_eq!(b.cache.look("k").await.unwrap().outcome(), Outcome::Miss);
    load(&b.cache, "newer").await;
    assert_eq!(a.cache.clear().await.unwrap(), Delivery::Confirmed);
    assert_eq!(b.cache.look("k").await.unwrap().outcome(), Outcome::Miss);
}

#[tokio::test]
async fn p4_p8_own_messages_evict_nothing_and_neither_fills_nor_messages_send_any() {
    let (nodes, _) = nodes(2);
    let [a, b] = &nodes[..] else { unreachable!() };
    load(&a.cache, "v").await;
    load(&b.cache, "v").await;
    assert_eq!((a.link.published(), b.link.published()), (0, 0), "a fill changes nothing for others");
    assert!(a.cache.set("k", "w".to_owned()).await.unwrap().is_confirmed());
    assert_eq!(a.link.published(), 1);
    assert_eq!(a.cache.look("k").await.unwrap().level(), Some(0), "its own message came back");
    assert_eq!(b.link.published(), 0, "p8: handling a message sends none");
}

#[tokio::test]
async fn p5_a_message_about_what_a_node_does_not_hold_costs_it_no_read() {
    let (nodes, _) = nodes(2);
    let [a, b] = &nodes[..] else { unreachable!() };
    load(&a.cache, "v").await;
    // Known, so that there is nothing else to read.
    assert!(b.cache.get("other").await.unwrap().is_none());
    b.l2.reset();
    for n in 0..20 {
        assert!(a.cache.set("k", n.to_string()).await.unwrap().is_confirmed());
        assert!(a.cache.invalidate("k").await.unwrap().is_confirmed());
    }
    assert_eq!(a.link.published(), 40);
    tokio::task::yield_now().await;
    assert_eq!(b.l2.calls(ChaosOp::Get), 0);
}

/// Others are told at once, as they may not reach the store either; what they still read there does not stay.
#[tokio::test]
async fn p7_what_the_store_has_not_taken_is_told_again_once_it_has() {
    let (nodes, _) = nodes(2);
    let [a, b] = &nodes[..] else { unreachable!() };
    load(&a.cache, "old").await;
    load(&b.cache, "never").await;
    a.l2.set_all(Fault::Fail);
    assert_eq!(a.cache.invalidate("k").await.unwrap(), Delivery::Pending);
    assert_eq!(a.link.published(), 1);
    assert_eq!(*load(&b.cache, "never").await, "old", "the store has not heard of it");
    assert_eq!(b.cache.look("k").await.unwrap().level(), Some(0));
    a.l2.set_all(Fault::None);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while a.cache.stats().pending > 0 {
        assert!(tokio::time::Instant::now() < deadline, "never told");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(a.link.published(), 2);
    assert_eq!(*load(&b.cache, "new").await, "new");
}

/// Caches that share a store and a hub, by other names: neither waits for the other.
#[tokio::test]
async fn s7_loads_of_another_cache_are_not_waited_for() {
    let store = Arc::new(MapProvider::new().leasing());
    let caches = ["users", "users2"].map(|name| {
        TracedCache::<String>::builder(name)
            .level(Level::new(Arc::clone(&store)).budget(MINUTE))
            .policy(Policy::ttl(MINUTE))
            .build()
            .unwrap()
    });
    let gate = Arc::new(Semaphore::new(0));
    let loads = Arc::new(AtomicUsize::new(0));
    let loading = caches.map(|cache| {
        let (gate, loads) = (Arc::clone(&gate), Arc::clone(&loads));
        tokio::spawn(async move { gated(&cache, &gate, &loads, "v").await })
    });
    while loads.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(2);
    for load in loading {
        assert_eq!(*load.await.unwrap(), "v");
    }
}

#[tokio::test]
async fn p10_noise_is_dropped_and_the_ear_lives_on() {
    let (nodes, _) = nodes(2);
    let [a, b] = &nodes[..] else { unreachable!() };
    load(&a.cache, "v").await;
    load(&b.cache, "v").await;
    for noise in [&b""[..], b"hello", &[1; 9], &[2, 0, 0, 0, 0, 0, 0, 0, 0, 1, b'k']] {
        b.link.deliver("users", noise);
    }
    assert_eq!(b.cache.look("k").await.unwrap().level(), Some(0));
    assert!(a.cache.invalidate("k").await.unwrap().is_confirmed());
    assert_eq!(b.cache.look("k").await.unwrap().outcome(), Outcome::Miss);
}

#[tokio::test]
async fn a_lost_message_is_made_good_once_the_gap_is_noticed() {
    let (nodes, _) = nodes(2);
    let [a, b] = &nodes[..] else { unreachable!() };
    load(&a.cache, "old").await;
    load(&b.cache, "old").await;
    b.link.mute();
    assert!(a.cache.set("k", "new".to_owned()).await.unwrap().is_confirmed());
    assert_eq!(b.cache.get("k").await.unwrap().unwrap().as_str(), "old", "nobody told it");
    b.link.heal();
    assert_eq!(b.cache.get("k").await.unwrap().unwrap().as_str(), "new");
}

#[tokio::test]
async fn a_message_that_could_not_be_sent_is_sent_when_the_link_is_back() {
    let (nodes, _) = nodes(2);
    let [a, b] = &nodes[..] else { unreachable!() };
    load(&a.cache, "old").await;
    load(&b.cache, "old").await;
    a.link.cut();
    assert_eq!(a.cache.set("k", "new".to_owned()).await.unwrap(), Delivery::Pending);
    a.link.heal();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while b.cache.get("k").await.unwrap().unwrap().as_str() != "new" {
        assert!(tokio::time::Instant::now() < deadline, "the message never came");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_load_on_one_node_that_another_overtakes_is_stored_nowhere() {
    let (nodes, store) = nodes(2);
    let [a, b] = &nodes[..] else { unreachable!() };
    let gate = Arc::new(Semaphore::new(0));
    let loads = Arc::new(AtomicUsize::new(0));
    // Without messages: the store's leases alone must hold.
    a.link.mute();
    b.link.mute();
    let early = tokio::spawn({
        let (cache, gate, loads) = (b.cache.clone(), Arc::clone(&gate), Arc::clone(&loads));
        async move { gated(&cache, &gate, &loads, "old").await }
    });
    while loads.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    assert!(a.cache.invalidate("k").await.unwrap().is_confirmed());
    // Joins the load under way on its node, which began before the invalidation.
    let late = tokio::spawn({
        let (cache, gate, loads) = (b.cache.clone(), Arc::clone(&gate), Arc::clone(&loads));
        async move { gated(&cache, &gate, &loads, "new").await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    gate.add_permits(10);
    assert_eq!(*early.await.unwrap(), "old", "it called before the invalidation");
    assert_eq!(*late.await.unwrap(), "new", "it called after");
    assert_eq!(loads.load(Ordering::SeqCst), 2);
    assert_eq!(a.cache.get("k").await.unwrap().unwrap().as_str(), "new");
    assert!(!store.is_empty());
}

#[tokio::test]
async fn s8_a_node_that_dies_while_loading_keeps_others_waiting_for_its_lease_only() {
    let (nodes, _) = nodes(2);
    let [a, b] = &nodes[..] else { unreachable!() };
    let gate = Arc::new(Semaphore::new(0));
    let loads = Arc::new(AtomicUsize::new(0));
    let doomed = tokio::spawn({
        let (cache, gate, loads) = (a.cache.clone(), Arc::clone(&gate), Arc::clone(&loads));
        async move { gated(&cache, &gate, &loads, "old").await }
    });
    while loads.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // From now on the first node reaches nothing: it neither renews nor releases.
    a.l2.set_all(Fault::Fail);
    let started = tokio::time::Instant::now();
    assert_eq!(*load(&b.cache, "new").await, "new");
    assert!(started.elapsed() < Duration::from_secs(20));
    doomed.abort();
}

/// Between two remote levels the nearer one's lease is taken before the deeper one is read, also by a plain `get`.
#[tokio::test]
async fn a_lease_that_no_fill_uses_is_given_back() {
    let (near, deep) =
        (Arc::new(Chaos::new(MapProvider::new().leasing())), Arc::new(MapProvider::new().leasing()));
    let cache = TracedCache::<String>::builder("users")
        .level(Memory::entries(100))
        .level(Level::new(Arc::clone(&near)).budget(MINUTE))
        .level(Level::new(deep).budget(MINUTE))
        .build()
        .unwrap();
    assert!(cache.get("k").await.unwrap().is_none());
    assert_eq!(near.calls(ChaosOp::Acquire), 1);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while near.calls(ChaosOp::Release) == 0 {
        assert!(tokio::time::Instant::now() < deadline, "others wait for a lease that nobody uses");
        tokio::task::yield_now().await;
    }
}

/// Two nodes with memory, on one Redis, with its pub/sub between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_p2_on_redis() {
    let Some(server) = RedisServer::start() else { return };
    let node = || {
        let redis = RedisProvider::builder(server.url()).build().unwrap();
        TracedCache::<String>::builder("users")
            .level(Memory::entries(100))
            .backplane(redis.backplane())
            .level(Level::new(redis).budget(Duration::from_secs(10)))
            .policy(Policy::ttl(Duration::from_secs(600)))
            .build()
            .unwrap()
    };
    let (a, b) = (node(), node());
    let comes = async |cache: &TracedCache<String>, value: &str| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while load(cache, value).await.as_str() != value {
            assert!(tokio::time::Instant::now() < deadline, "{value} never came");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // A channel that comes up is a gap: until both have theirs, what was in flight is not kept.
    for cache in [&a, &b] {
        assert_eq!(*load(cache, "one").await, "one");
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while cache.look("k").await.unwrap().level() != Some(0) {
            assert!(tokio::time::Instant::now() < deadline, "memory never kept it");
            assert_eq!(*load(cache, "one").await, "one");
        }
    }
    assert!(a.set("k", "two".to_owned()).await.unwrap().is_confirmed());
    comes(&b, "two").await;
    assert!(b.invalidate("k").await.unwrap().is_confirmed());
    comes(&a, "three").await;
    assert_eq!(*load(&b, "never").await, "three");

    // Its memory outlives the server, but not what the gap may have hidden.
    server.kill();
    server.restart();
    let _ = a.set("k", "four".to_owned()).await.unwrap();
    comes(&b, "four").await;
}

/// The store comes back with what it held an hour ago: the value that has been invalidated since, too.
#[tokio::test]
async fn a_restart_from_an_old_dump_brings_nothing_back() {
    let (nodes, store) = nodes(2);
    let [a, b] = &nodes[..] else { unreachable!() };
    load(&a.cache, "old").await;
    let dump = store.dump();
    assert!(a.cache.invalidate("k").await.unwrap().is_confirmed());
    assert!(b.cache.get("k").await.unwrap().is_none());
    store.restore(&dump);
    assert!(b.cache.get("k").await.unwrap().is_none(), "the first to look finds out");
    assert!(a.cache.get("k").await.unwrap().is_none(), "and so does everybody else");
    // It tells the store once more what it may have lost.
    while a.cache.stats().pending > 0 {
        tokio::task::yield_now().await;
    }
    load(&a.cache, "new").await;
    assert_eq!(*load(&b.cache, "never").await, "new", "and the cache goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_restarted_from_an_old_dump_brings_nothing_back() {
    // It saves only when told to.
    let Some(server) = RedisServer::builder().config("save", "3600 1000000").start() else { return };
    let redis = RedisProvider::builder(server.url()).build().unwrap();
    let cache = TracedCache::<String>::builder("users")
        .level(Level::new(redis).budget(Duration::from_secs(20)).breaker(None))
        .policy(Policy::ttl(Duration::from_secs(600)))
        .build()
        .unwrap();
    assert_eq!(*load(&cache, "old").await, "old");
    server.command::<()>(&["SAVE"]).unwrap();
    assert!(cache.invalidate("k").await.unwrap().is_confirmed());
    server.kill();
    server.restart();
    assert!(server.command::<bool>(&["EXISTS", "v:{users:k}"]).unwrap(), "the dump has it");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let answer = loop {
        match cache.get("k").await {
            Ok(answer) => break answer,
            // Not connected yet; this level is alone and says so.
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(answer, None);
    assert_eq!(*load(&cache, "new").await, "new");
}
