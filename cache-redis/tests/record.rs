//! The record of masters that a cluster has been met with, while its node is not at its best.
#![allow(clippy::unwrap_used, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::time::{Duration, Instant};

use cache_core::{CacheId, CacheProvider, Level, Policy, RawKey, Stance, TracedCache};
use cache_redis::RedisProvider;
use common::{get, item, put};
use test_servers::{RedisCluster, RedisServer, eventually};

const SOON: Duration = Duration::from_secs(60);
const RECORD: &str = "r:{masters}";

/// Three masters, of which each serves what it has, whoever else is away.
fn cluster() -> Option<RedisCluster> {
    let cluster = RedisCluster::start(3, 0)?;
    for node in cluster.nodes() {
        node.command::<()>(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]).unwrap();
    }
    Some(cluster)
}

fn provider(node: &RedisServer) -> RedisProvider {
    RedisProvider::builder(format!("redis+cluster://{}", node.addr())).build().unwrap()
}

/// The node that has the record, and the others.
fn record(cluster: &RedisCluster) -> (&RedisServer, Vec<&RedisServer>) {
    let owner = cluster.owner(RECORD).unwrap();
    (owner, cluster.nodes().iter().filter(|node| node.port() != owner.port()).collect())
}

/// An interrupted move may stay like that for hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_found_while_its_slot_moves() {
    let Some(cluster) = cluster() else { return };
    let (from, others) = record(&cluster);
    let to = others[0];
    let (before, marker) = (provider(from), RawKey::marker(CacheId(1), "users"));
    before.connect().await.unwrap();
    before.get(marker).await.unwrap();
    let number = before.incarnation();

    let slot: u16 = from.command(&["CLUSTER", "KEYSLOT", RECORD]).unwrap();
    let id = |node: &RedisServer| node.command::<String>(&["CLUSTER", "MYID"]).unwrap();
    to.command::<()>(&["CLUSTER", "SETSLOT", &slot.to_string(), "IMPORTING", &id(from)]).unwrap();
    from.command::<()>(&["CLUSTER", "SETSLOT", &slot.to_string(), "MIGRATING", &id(to)]).unwrap();
    let moved: String =
        from.command(&["MIGRATE", "127.0.0.1", &to.port().to_string(), RECORD, "0", "5000"]).unwrap();
    assert_eq!(moved, "OK");

    let after = provider(from);
    for provider in [&before, &after] {
        provider.get(marker).await.unwrap();
        assert_eq!(provider.incarnation(), number, "nobody is new");
    }
    // Also to whoever connects to each of them, in whatever order.
    after.connect().await.unwrap();
    from.command::<()>(&["CLIENT", "KILL", "TYPE", "normal"]).unwrap();
    eventually(SOON, "connected again", async || before.connect().await.is_ok()).await;
    assert_eq!(before.incarnation(), number);
}

/// A master that has been restarted is new, and noting that takes memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_memory_keeps_no_other_away() {
    let Some(cluster) = cluster() else { return };
    let (full, others) = record(&cluster);
    let provider = provider(full);
    let is_there =
        |id: &String| cluster.owner(&format!("v:{{users:{id}}}")).unwrap().port() == others[0].port();
    let id = (0..100).map(|n| n.to_string()).find(is_there).unwrap();
    put(&provider, &id, "v").await;
    let before = provider.incarnation();
    for (name, value) in [("maxmemory-policy", "noeviction"), ("maxmemory", "1")] {
        full.command::<()>(&["CONFIG", "SET", name, value]).unwrap();
    }
    others[0].restart();
    eventually(SOON, "stored", async || provider.put(item(&id, b"w")).await.is_ok()).await;
    assert_eq!(get(&provider, &id).await.unwrap().as_deref(), Some("w"));
    assert_ne!(provider.incarnation(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_it_is_begun_anew_by_those_that_are_there() {
    let Some(cluster) = cluster() else { return };
    let (owner, others) = record(&cluster);
    let provider = provider(owner);
    provider.connect().await.unwrap();
    for away in others {
        let serves = |name: &String| cluster.owner(&format!("m:{{{name}}}")).unwrap().port() == away.port();
        let name = (0..100).map(|n| format!("users{n}")).find(|name| !serves(name)).unwrap();
        let marker = RawKey::marker(CacheId(1), &name);
        away.kill();
        eventually(SOON, "missed", async || provider.connect().await.is_err()).await;
        // A node that has just been started does not serve at once.
        eventually(SOON, "the other serves", async || provider.get(marker).await.is_ok()).await;
        let before = provider.incarnation();
        owner.command::<()>(&["DEL", RECORD]).unwrap();
        provider.get(marker).await.unwrap();
        assert_ne!(provider.incarnation(), before);
        away.restart();
        eventually(SOON, "back", async || provider.connect().await.is_ok()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_record_is_replaced_by_one() {
    let Some(cluster) = cluster() else { return };
    let (owner, _) = record(&cluster);
    let before = provider(owner);
    before.connect().await.unwrap();
    let number = before.incarnation();
    owner.command::<()>(&["SET", RECORD, "another program's"]).unwrap();
    before.get(RawKey::marker(CacheId(1), "users")).await.unwrap();
    assert_ne!(before.incarnation(), number);
    owner.command::<()>(&["SET", RECORD, "another program's"]).unwrap();
    let after = provider(owner);
    after.connect().await.unwrap();
    put(&after, "k", "v").await;
    assert_eq!(get(&after, "k").await.unwrap().as_deref(), Some("v"));
}

/// Who is connected needs it for what is new alone.
/// As somebody may have written it by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_number_is_replaced_by_one() {
    let Some(cluster) = cluster() else { return };
    let (owner, _) = record(&cluster);
    let (before, marker) = (provider(owner), RawKey::marker(CacheId(1), "users"));
    before.connect().await.unwrap();
    for by_hand in ["", "zz", "-1", "0000000000000000", "99999999999999999999"] {
        let number = before.incarnation();
        owner.command::<i64>(&["HSET", RECORD, "number", by_hand]).unwrap();
        let after = provider(owner);
        after.connect().await.expect(by_hand);
        assert!(after.incarnation() != 0 && after.incarnation() != number, "{by_hand:?}");
        before.get(marker).await.expect(by_hand);
        assert_eq!(before.incarnation(), after.incarnation(), "{by_hand:?}");
        owner.command::<i64>(&["HSET", RECORD, "number", by_hand]).unwrap();
        before.get(marker).await.expect(by_hand);
        assert!(before.incarnation() != 0 && before.incarnation() != after.incarnation(), "{by_hand:?}");
    }
}

async fn while_it_is_away_the_others_serve(strike: fn(&RedisServer)) {
    const IDS: std::ops::Range<u64> = 0..60;
    let Some(cluster) = cluster() else { return };
    let (owner, others) = record(&cluster);
    let serves = |key: &str| cluster.owner(key).unwrap().port();
    let name = (0..100).map(|n| format!("users{n}"));
    let name = name.into_iter().find(|name| serves(&format!("m:{{{name}}}")) == others[0].port()).unwrap();
    let cache: TracedCache<String> = TracedCache::builder(name.as_str())
        .level(Level::new(provider(others[0])).stance(Stance::Absorb).budget(Duration::from_secs(1)))
        .policy(Policy::ttl(Duration::from_secs(3600)))
        .build()
        .unwrap();
    for id in IDS {
        assert!(cache.set(id, "value".to_owned()).await.unwrap().is_confirmed());
    }
    let of = |port| IDS.filter(|id| serves(&format!("v:{{{name}:{id}}}")) == port).collect::<Vec<u64>>();
    let (beside_the_mark, elsewhere) = (of(others[0].port()), of(others[1].port()));
    strike(owner);
    let start = Instant::now();
    // The cache's mark is read along with these: what that finds out says nothing of the node that has the mark.
    while start.elapsed() < Duration::from_secs(8) {
        for id in elsewhere.iter().take(5).chain(&beside_the_mark[..1]) {
            assert!(cache.get(*id).await.unwrap().is_some(), "{id}, after {:?}", start.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for id in elsewhere.iter().chain(&beside_the_mark) {
        assert!(cache.invalidate(*id).await.unwrap().is_confirmed(), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_its_master_is_dead_the_others_serve() {
    while_it_is_away_the_others_serve(RedisServer::kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_its_master_hangs_the_others_serve() {
    while_it_is_away_the_others_serve(RedisServer::stop).await;
}

/// A connection to another master breaks meanwhile: it is the master that all have met.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_its_master_is_dead_another_is_met_again() {
    let Some(cluster) = cluster() else { return };
    let (owner, others) = record(&cluster);
    let provider = provider(others[0]);
    provider.connect().await.unwrap();
    let serves = |id: &String| cluster.owner(&format!("v:{{users:{id}}}")).unwrap().port();
    let id = (0..100).map(|n| n.to_string()).find(|id| serves(id) == others[0].port()).unwrap();
    put(&provider, &id, "v").await;
    let number = provider.incarnation();
    owner.kill();
    eventually(SOON, "missed", async || provider.connect().await.is_err()).await;
    let connections = || {
        let all = provider.connections();
        all.into_iter()
            .find(|one| one.address == others[0].addr().to_string())
            .map_or(0, |one| one.reconnects)
    };
    let before = connections();
    assert!(others[0].command::<u64>(&["CLIENT", "KILL", "TYPE", "normal"]).unwrap() > 0);
    eventually(SOON, "connected again", async || {
        get(&provider, &id).await.is_ok_and(|found| found.as_deref() == Some("v")) && connections() > before
    })
    .await;
    assert_eq!(provider.incarnation(), number);
    // One that is not the same process any more has to be met.
    others[0].restart();
    eventually(SOON, "missed", async || get(&provider, &id).await.is_err()).await;
    eventually(SOON, "started", async || others[0].command::<String>(&["PING"]).is_ok()).await;
    for _ in 0..20 {
        assert!(get(&provider, &id).await.is_err(), "nobody has met it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    owner.restart();
    eventually(SOON, "met", async || get(&provider, &id).await.is_ok()).await;
    assert_ne!(provider.incarnation(), number);
}
