//! The same on real servers.

use std::{sync::Arc, time::Duration};

use test_servers::{MemcachedServer, RedisServer};
use traced_cache::{
    CacheProvider, Level, Loaded, MemcachedProvider, Memory, Policy, RedisProvider, TracedCache,
};

use crate::world::{Source, confirmed, get, set};

const LIMIT: Duration = Duration::from_secs(20);

/// A node of its own on a server: memory, and a connection of its own.
fn node(provider: impl CacheProvider) -> TracedCache<String> {
    TracedCache::builder("things")
        .level(Memory::entries(1_000))
        .level(Level::new(provider).budget(Duration::from_secs(10)).breaker(None))
        .policy(Policy::ttl(Duration::from_secs(600)))
        .build()
        .unwrap()
}

async fn tags_reach_all_nodes(make: impl Fn() -> Arc<dyn CacheProvider>) {
    let (a, b) = (node(make()), node(make()));
    for (key, tags) in [("foo", &["x", "y"][..]), ("bar", &["y"]), ("baz", &["x"]), ("bare", &[])] {
        set(&a, key, key, tags).await;
        assert_eq!(get(&b, key).await.as_deref(), Some(key));
    }
    confirmed(a.invalidate_tag("x").await);
    let cold = node(make());
    for (key, there) in [("foo", false), ("bar", true), ("baz", false), ("bare", true)] {
        assert_eq!(get(&a, key).await.is_some(), there, "{key}");
        assert_eq!(get(&cold, key).await.is_some(), there, "{key} on a cold node");
    }
    // Without a backplane: within the period.
    let seen = async || get(&b, "foo").await.is_none() && get(&b, "baz").await.is_none();
    assert!(eventually(seen).await);
    assert_eq!(get(&b, "bar").await.as_deref(), Some("bar"));

    confirmed(b.expire_tags(["y"]).await);
    assert_eq!(get(&node(make()), "bar").await, None);
    confirmed(b.expire_all().await);
    assert_eq!(get(&node(make()), "bare").await, None);
    set(&b, "after", "1", &["x", "y"]).await;
    for cache in [&b, &node(make())] {
        assert_eq!(get(cache, "after").await.as_deref(), Some("1"));
    }
    confirmed(a.clear().await);
    assert_eq!(get(&node(make()), "after").await, None);
}

async fn eventually(mut check: impl AsyncFnMut() -> bool) -> bool {
    let start = std::time::Instant::now();
    while start.elapsed() < LIMIT {
        if check().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

/// Many nodes invalidate many tags at once, and none is lost.
async fn none_is_lost(make: impl Fn() -> Arc<dyn CacheProvider>) {
    let nodes: Vec<_> = (0..4).map(|_| node(make())).collect();
    for n in 0..40 {
        set(&nodes[0], &format!("k{n}"), "old", &[&format!("t{n}")]).await;
    }
    let tasks: Vec<_> = (0..40)
        .map(|n| {
            let cache = nodes[n % nodes.len()].clone();
            tokio::spawn(async move { cache.invalidate_tag(format!("t{n}")).await.unwrap() })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap().is_confirmed());
    }
    let cold = node(make());
    for n in 0..40 {
        assert_eq!(get(&cold, &format!("k{n}")).await, None, "k{n}");
    }
}

/// Two nodes ask for one cold key; the one that does not load has the value as soon as it is there.
async fn one_load(make: impl Fn() -> Arc<dyn CacheProvider>) {
    let nodes = [node(make()), node(make())];
    for cache in &nodes {
        assert_eq!(get(cache, "warm").await, None);
    }
    for round in 0..5 {
        let source = Source::new();
        let key = format!("k{round}");
        source.has(&key, "v", &[]);
        let gate = source.gate();
        let asking: Vec<_> = (0..40)
            .map(|n| {
                let (source, cache, key) = (source.clone(), nodes[n % 2].clone(), key.clone());
                tokio::spawn(async move { source.ask(&cache, &key).await })
            })
            .collect();
        assert!(eventually(async || source.loads() > 0).await);
        // The others have been told to wait by now, or ask the moment it is over.
        tokio::time::sleep(Duration::from_millis(20)).await;
        gate.add_permits(1_000);
        for asked in asking {
            assert_eq!(asked.await.unwrap().1, "v");
        }
        assert_eq!(source.loads(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_one_load_between_two_nodes_on_redis() {
    let Some(server) = RedisServer::start() else { return };
    one_load(|| Arc::new(RedisProvider::builder(server.url()).build().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_one_load_between_two_nodes_on_memcached() {
    let Some(server) = MemcachedServer::start() else { return };
    one_load(|| Arc::new(MemcachedProvider::builder(server.url()).build().unwrap())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_redis() {
    let Some(server) = RedisServer::start() else { return };
    let make = || Arc::new(RedisProvider::builder(server.url()).build().unwrap()) as Arc<dyn CacheProvider>;
    tags_reach_all_nodes(make).await;
    none_is_lost(make).await;
    let mark: String = server.command(&["GET", "m:{things}"]).unwrap();
    assert!(mark.starts_with("mark1 "), "an operator can read it: {mark}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_memcached() {
    let Some(server) = MemcachedServer::start() else { return };
    let make =
        || Arc::new(MemcachedProvider::builder(server.url()).build().unwrap()) as Arc<dyn CacheProvider>;
    tags_reach_all_nodes(make).await;
    none_is_lost(make).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_memcached_servers() {
    let (Some(a), Some(b), Some(c)) =
        (MemcachedServer::start(), MemcachedServer::start(), MemcachedServer::start())
    else {
        return;
    };
    let make = || {
        let provider = MemcachedProvider::builder(a.url()).server(b.url()).server(c.url()).build().unwrap();
        Arc::new(provider) as Arc<dyn CacheProvider>
    };
    tags_reach_all_nodes(make).await;
    none_is_lost(make).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backplane_tells_of_tags_and_of_expiry() {
    let Some(server) = RedisServer::start() else { return };
    let node = || {
        let redis = RedisProvider::builder(server.url()).build().unwrap();
        TracedCache::<String>::builder("things")
            .level(Memory::entries(1_000))
            .backplane(redis.backplane())
            .level(Level::new(redis).budget(Duration::from_secs(10)))
            .policy(Policy::ttl(Duration::from_secs(600)))
            .build()
            .unwrap()
    };
    let (a, b) = (node(), node());
    // Until the channel has taken it: what it takes too long for, as it may on a busy machine, is told later.
    macro_rules! told {
        ($write:expr) => {
            assert!(eventually(async || $write.await.unwrap().is_confirmed()).await)
        };
    }
    told!(a.set_loaded("k", Loaded::value("1".to_owned()).tag("x")));
    assert!(eventually(async || get(&b, "k").await.as_deref() == Some("1")).await);
    told!(a.invalidate_tag("x"));
    assert!(eventually(async || get(&b, "k").await.is_none()).await);
    told!(a.set("k", "2".to_owned()));
    assert!(eventually(async || get(&b, "k").await.as_deref() == Some("2")).await);
    told!(a.expire_all());
    assert!(eventually(async || get(&b, "k").await.is_none()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_out_of_memory_still_takes_an_invalidation() {
    let Some(server) = RedisServer::start() else { return };
    let redis = || RedisProvider::builder(server.url()).build().unwrap();
    let (a, b) = (node(redis()), node(redis()));
    set(&a, "k", "1", &["x"]).await;
    assert_eq!(get(&b, "k").await.as_deref(), Some("1"));
    for (name, value) in [("maxmemory-policy", "noeviction"), ("maxmemory", "1")] {
        let _: String = server.command(&["CONFIG", "SET", name, value]).unwrap();
    }
    confirmed(a.invalidate_tag("x").await);
    assert_eq!(get(&node(redis()), "k").await, None);
    confirmed(a.invalidate_tags(["x", "never seen"]).await);
}

/// The first that a process says to a server, before it knows which one it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_set_after_a_first_clear_is_there_for_all() {
    let Some(server) = RedisServer::start() else { return };
    for round in 0..5 {
        let node = || node(RedisProvider::builder(server.url()).build().unwrap());
        let (a, b) = (node(), node());
        confirmed(a.clear().await);
        set(&a, "k", "v", &[]).await;
        assert_eq!(get(&b, "k").await.as_deref(), Some("v"), "{round}");
        assert_eq!(get(&a, "k").await.as_deref(), Some("v"), "{round}");
    }
}
