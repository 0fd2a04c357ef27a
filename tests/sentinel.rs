//! Caches on a Redis master that sentinels watch over, and that dies.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{sync::Arc, time::Duration};

use test_servers::{RedisSentinel, RedisServer, until};
use tokio::time::Instant;
use traced_cache::{Level, Memory, Policy, RedisBackplane, RedisProvider, TracedCache};

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

/// A master is replaced, becomes the replica of its successor, misses what that acknowledges last, and is promoted again: the
/// same process as all have met before, and yet not to be believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_promoted_again_is_another_one() {
    let Some(sentinels) = RedisSentinel::start() else { return };
    let cache = node(&sentinels, false);
    load(&cache, "k", "old").await;
    // Nothing from one whose clients a sentinel has just thrown out, having given it another part.
    let info = |server: &RedisServer| server.command::<String>(&["INFO", "replication"]).unwrap_or_default();
    let first = sentinels.master().unwrap();
    let second = sentinels.servers().iter().find(|server| server.port() != first.port()).unwrap();
    let all_name = |master: &RedisServer| {
        let named = |sentinel: &RedisServer| {
            let name = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", RedisSentinel::MASTER];
            sentinel.command::<(String, u16)>(&name).unwrap().1
        };
        sentinels.sentinels().iter().all(|sentinel| named(sentinel) == master.port())
    };
    assert!(until(SOON, || second.command::<bool>(&["EXISTS", "v:{users:k}"]).unwrap()));
    sentinels.sentinels()[0].command::<()>(&["SENTINEL", "FAILOVER", RedisSentinel::MASTER]).unwrap();
    let follows = || {
        let info = info(first);
        info.contains("role:slave") && info.contains("master_link_status:up")
    };
    assert!(until(SOON, || all_name(second) && follows()));

    first.stop();
    assert_eq!(second.command::<u64>(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap(), 1);
    assert!(cache.invalidate("k").await.unwrap().is_confirmed());
    second.kill();
    first.cont();
    // Whoever has invalidated it knows so.
    drop(cache);
    let late = node(&sentinels, false);
    let since = Instant::now();
    while !(all_name(first) && info(first).contains("role:master") && late.get("probe").await.is_ok()) {
        assert!(since.elapsed() < SOON, "nobody has taken over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(first.command::<u64>(&["STRLEN", "v:{users:k}"]).unwrap() > 20, "it has the old value");
    assert_eq!(late.get("k").await.unwrap(), None, "it was invalidated");
}

/// With its first replica a master begins another history. Who was connected before and who comes after go by one number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_gets_its_first_replica_is_one_for_all() {
    let Some(sentinels) = RedisSentinel::start() else { return };
    let master = sentinels.master().unwrap();
    let replica = sentinels.servers().iter().find(|server| server.port() != master.port()).unwrap();
    let history = || -> String {
        let info: String = master.command(&["INFO", "replication"]).unwrap();
        info.lines().find(|line| line.starts_with("master_replid:")).unwrap().to_owned()
    };
    let first = history();
    // Without a replica the master forgets its history after a while.
    master.command::<()>(&["CONFIG", "SET", "repl-backlog-ttl", "1"]).unwrap();
    replica.kill();
    let before = node(&sentinels, false);
    load(&before, "probe", "v").await;
    assert!(until(SOON, || history() != first));
    let after = node(&sentinels, false);
    load(&after, "k", "v").await;
    let since = Instant::now();
    while before.get("k").await.unwrap().is_none() {
        assert!(since.elapsed() < SOON, "they never agree");
        load(&after, "k", "v").await;
    }
    // Several periods in which each looks at the mark.
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        for cache in [&before, &after] {
            assert_eq!(load(cache, "k", "another").await.as_str(), "v");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn node_that(
    sentinels: &RedisSentinel,
    listens: impl Fn(&RedisProvider) -> RedisBackplane,
) -> TracedCache<String> {
    let redis = RedisProvider::builder(sentinels.url()).build().unwrap();
    let builder = TracedCache::builder("users").level(Memory::entries(1000)).backplane(listens(&redis));
    builder.level(Level::new(redis).budget(Duration::from_secs(5))).policy(Policy::ttl(LONG)).build().unwrap()
}

/// Until it is found in memory.
async fn keeps(cache: &TracedCache<String>) {
    let since = Instant::now();
    load(cache, "k", "before").await;
    while cache.look("k").await.ok().and_then(|found| found.level()) != Some(0) {
        assert!(since.elapsed() < SOON, "it is not kept in memory");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whichever way nodes hear of each other, they do so on the master that takes over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_after_a_failover_leaves_the_memory_of_other_nodes() {
    for watches in [true, false] {
        let Some(sentinels) = RedisSentinel::start() else { return };
        let listens = |redis: &RedisProvider| if watches { redis.backplane() } else { redis.messages() };
        let (a, b) = (node_that(&sentinels, listens), node_that(&sentinels, listens));
        keeps(&a).await;
        keeps(&b).await;
        let first = sentinels.master().unwrap();
        sentinels.sentinels()[0].command::<()>(&["SENTINEL", "FAILOVER", RedisSentinel::MASTER]).unwrap();
        // What the old one still takes as a master is lost.
        let role = || first.command::<String>(&["INFO", "replication"]).unwrap_or_default();
        assert!(until(SOON, || role().contains("role:slave")));
        for round in 0..3 {
            let value = format!("after {round}");
            let since = Instant::now();
            while !a.set("k", value.clone()).await.is_ok_and(|delivery| delivery.is_confirmed()) {
                assert!(since.elapsed() < SOON, "nobody takes it");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // Kept for ten minutes: it goes because of what it hears.
            while b.get("k").await.ok().flatten().is_none_or(|seen| *seen != value) {
                assert!(since.elapsed() < SOON, "{watches} {round}: not heard of");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            keeps(&b).await;
        }
    }
}
