//! Promise 1: one load per key, however many ask; waiters are counted as coalesced.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use test_servers::{MemcachedServer, RedisServer};
use traced_cache::{Level, MemcachedProvider, Memory, RedisProvider, TracedCache, ok};

async fn crowd(cache: &TracedCache<String>, key: &'static str) {
    let loads = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..1_000)
        .map(|_| {
            let (cache, loads) = (cache.clone(), Arc::clone(&loads));
            tokio::spawn(async move {
                cache
                    .get_or_set_with(key, &loads, |loads, key| async move {
                        loads.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        ok(format!("value of {key}"))
                    })
                    .await
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(*caller.await.unwrap().unwrap(), format!("value of {key}"));
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    let stats = cache.stats();
    // On a busy machine a caller may come after the load.
    assert_eq!((stats.misses(), stats.coalesced() + stats.hits()), (1, 999), "{stats:?}");
    assert_eq!(stats.lookups(), 1_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_on_memory_alone() {
    crowd(&TracedCache::builder("s1").level(Memory::entries(100)).build().unwrap(), "k").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_with_redis() {
    let Some(server) = RedisServer::start() else { return };
    let redis = RedisProvider::builder(server.url()).build().unwrap();
    let patient = |redis: RedisProvider| Level::new(redis).budget(Duration::from_secs(10));
    let both =
        TracedCache::builder("s1").level(Memory::entries(100)).level(patient(redis.clone())).build().unwrap();
    crowd(&both, "k").await;
    crowd(&TracedCache::builder("s1-alone").level(patient(redis)).build().unwrap(), "k").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_with_memcached() {
    let Some(server) = MemcachedServer::start() else { return };
    let memcached = MemcachedProvider::builder(server.url()).build().unwrap();
    let patient = |p: MemcachedProvider| Level::new(p).budget(Duration::from_secs(10));
    let both = TracedCache::builder("s1")
        .level(Memory::entries(100))
        .level(patient(memcached.clone()))
        .build()
        .unwrap();
    crowd(&both, "k").await;
    crowd(&TracedCache::builder("s1-alone").level(patient(memcached)).build().unwrap(), "k").await;
}
