//! Caches on a Redis master that sentinels watch over, and that dies.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{sync::Arc, time::Duration};

use test_servers::RedisSentinel;
use tokio::time::Instant;
use traced_cache::{Level, Memory, Policy, RedisProvider, TracedCache};

const LONG: Duration = Duration::from_secs(600);
const SOON: Duration = Duration::from_secs(60);

fn node(sentinels: &RedisSentinel, memory: bool) -> TracedCache<String> {
    let redis = RedisProvider::builder(sentinels.url()).build().unwrap();
    let mut builder = TracedCache::builder("users");
    if memory {
        builder = builder.level(Memory::entries(1000)).backplane(redis.backplane());
    }
    builder.level(Level::new(redis).budget(Duration::from_secs(5))).policy(Policy::ttl(LONG)).build().unwrap()
}

async fn load(cache: &TracedCache<String>, key: &str, value: &str) -> Arc<String> {
    let value = value.to_owned();
    cache.get_or_set(key, || async move { traced_cache::ok(value) }).await.unwrap()
}

/// The replica that takes over has never heard of the invalidations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_brings_no_invalidated_value_back() {
    let Some(sentinels) = RedisSentinel::start() else { return };
    let (a, b, bare) = (node(&sentinels, true), node(&sentinels, true), node(&sentinels, false));
    let keys: Vec<String> = (0..50).map(|n| format!("k{n}")).collect();
    for key in &keys {
        load(&a, key, "old").await;
        load(&b, key, "never").await;
    }
    let first = sentinels.master().unwrap();
    let replica = sentinels.servers().iter().find(|server| server.port() != first.port()).unwrap();
    replica.stop();
    assert_eq!(first.command::<u64>(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap(), 1);
    for key in &keys {
        assert!(a.invalidate(key.as_str()).await.unwrap().is_confirmed());
    }
    first.kill();
    replica.cont();
    let since = Instant::now();
    let mut over = false;
    while !over || since.elapsed() < Duration::from_secs(3) {
        assert!(since.elapsed() < SOON, "nobody has taken over");
        for key in &keys {
            for cache in [&a, &b, &bare] {
                assert_ne!(load(cache, key, "new").await.as_str(), "old", "{key} was invalidated");
            }
        }
        over = sentinels.master_port() == Some(replica.port())
            && bare.set("probe", "v".to_owned()).await.is_ok_and(|delivery| delivery.is_confirmed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(replica.command::<bool>(&["EXISTS", "v:{users:k0}"]).unwrap());
}
