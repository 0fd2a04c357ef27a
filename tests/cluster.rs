//! Caches on a Redis cluster, of which one master dies.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

use std::{sync::Arc, time::Duration};

use test_servers::{RedisCluster, eventually};
use tokio::time::Instant;
use traced_cache::{Level, Memory, Outcome, Policy, RedisProvider, TracedCache};

const LONG: Duration = Duration::from_secs(600);
const SOON: Duration = Duration::from_secs(60);

fn node(cluster: &RedisCluster, memory: bool) -> TracedCache<String> {
    let redis =
        RedisProvider::builder(format!("redis+cluster://{}", cluster.nodes()[0].addr())).build().unwrap();
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

async fn until(what: &str, check: impl AsyncFnMut() -> bool) {
    eventually(SOON, what, check).await;
}

/// Whatever the replica had not got when its master died: no node serves what has been invalidated, callers get their
/// values all the while, and afterwards the nodes agree on one state of the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_master_of_three_is_killed() {
    let Some(cluster) = RedisCluster::start(3, 1) else { return };
    let (a, b, bare) = (node(&cluster, true), node(&cluster, true), node(&cluster, false));
    let keys: Vec<String> = (0..100).map(|n| format!("k{n}")).collect();
    for key in &keys {
        load(&a, key, "old").await;
        load(&b, key, "never").await;
    }
    // The replica is cut off, so that its master's last words are lost with it.
    let dead = cluster.owner("v:{users:k0}").unwrap();
    let lost: Vec<&String> = keys
        .iter()
        .filter(|key| cluster.owner(&format!("v:{{users:{key}}}")).unwrap().port() == dead.port())
        .collect();
    let replication: String = dead.command(&["INFO", "replication"]).unwrap();
    let replica = cluster
        .nodes()
        .iter()
        .find(|node| replication.contains(&format!("port={},state=online", node.port())))
        .unwrap_or_else(|| panic!("no replica in {replication}"));
    replica.stop();
    assert_eq!(dead.command::<u64>(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap(), 1);
    for key in &lost {
        assert!(a.invalidate(key.as_str()).await.unwrap().is_confirmed());
    }
    dead.kill();
    replica.cont();
    let mut failed_over = false;
    let since = Instant::now();
    while !failed_over || since.elapsed() < Duration::from_secs(3) {
        assert!(since.elapsed() < SOON, "nobody has taken over");
        for key in &keys {
            let new = load(&bare, key, "new").await;
            let old = load(&a, key, "new").await;
            if lost.contains(&key) {
                assert_ne!((new.as_str(), old.as_str()), ("old", "old"));
                assert!(new.as_str() != "old" && old.as_str() != "old", "{key} was invalidated");
            }
        }
        failed_over = cluster.owner("v:{users:k0}").is_some_and(|owner| owner.port() == replica.port())
            && bare.set("probe", "v".to_owned()).await.is_ok_and(|delivery| delivery.is_confirmed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // One state for all: what one of them stores the others find, and nobody empties the cache any more.
    until("stored and found", async || {
        for cache in [&a, &b, &bare] {
            for key in &keys {
                load(cache, key, "new").await;
            }
        }
        let mut found = true;
        for cache in [&b, &bare] {
            for key in &keys {
                found &= cache.look(key.as_str()).await.is_ok_and(|found| found.outcome() != Outcome::Miss);
            }
        }
        found
    })
    .await;
    // The nodes tell again what the dead master may have been alone to know, when each of them notices: until then what has
    // been stored since is loaded once more, and then never again.
    let loads = || [&a, &b, &bare].iter().map(|cache| cache.stats().loads).sum::<u64>();
    until("nobody empties it any more", async || {
        let before = loads();
        for _ in 0..10 {
            for cache in [&a, &b, &bare] {
                for key in &keys {
                    load(cache, key, "never").await;
                }
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        loads() == before
    })
    .await;
}
