//! Reads from replicas, for those who ask for them.
#![allow(clippy::unwrap_used, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::time::{Duration, Instant};

use cache_core::{CacheProvider, RawKey, Replicas};
use cache_redis::{ErrorKind, RedisProvider};
use common::{key, kind, put};
use test_servers::{RedisCluster, RedisSentinel, RedisServer};

async fn copies(provider: &RedisProvider, ids: &[&str]) -> Vec<Option<String>> {
    let keys: Vec<RawKey<'_>> = ids.iter().map(|id| key(id)).collect();
    let found = provider.get_copies(&keys).await.into_iter();
    found.map(|found| Some(String::from_utf8(found.ok()??.to_vec()).unwrap())).collect()
}

/// Until the replicas have what they are to have.
async fn until_copied(provider: &RedisProvider, id: &str, value: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while copies(provider, &[id]).await[0].as_deref() != Some(value) {
        assert!(Instant::now() < deadline, "no replica has {id}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn calls(server: &RedisServer, command: &str) -> u64 {
    let info: String = server.command(&["INFO", "commandstats"]).unwrap();
    let prefix = format!("cmdstat_{command}:calls=");
    info.lines().find_map(|line| line.strip_prefix(&prefix)?.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_each_masters_replica_answers() {
    let Some(cluster) = RedisCluster::start(3, 1) else { return };
    let url = format!("redis+cluster://{}", cluster.nodes()[0].addr());
    let provider = RedisProvider::builder(url).read_replicas(true).build().unwrap();
    let ids: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    for id in &ids {
        put(&provider, id, id).await;
    }
    for id in &ids {
        until_copied(&provider, id, id).await;
    }
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let of_masters = || cluster.masters().iter().map(|master| calls(master, "get")).sum::<u64>();
    let before = of_masters();
    let wanted: Vec<Option<String>> = ids.iter().map(|id| Some((*id).to_owned())).collect();
    assert_eq!(copies(&provider, &ids).await, wanted);
    assert_eq!(copies(&provider, &["nope"]).await, [None]);
    assert_eq!(of_masters(), before, "no master was asked");
    assert_eq!(provider.connections().len(), 6);

    // Whoever takes over is a master from then on, and its old one comes back as a replica.
    let dead = cluster.owner("v:{users:0}").unwrap();
    dead.kill();
    let deadline = Instant::now() + Duration::from_secs(60);
    while provider.put(common::item("0", b"new")).await.is_err() {
        assert!(Instant::now() < deadline, "nobody took over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    dead.restart();
    until_copied(&provider, "0", "new").await;
}

/// Not only when it is time for it: until then, each look-up of a copy goes to a server that is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_gone_makes_the_cluster_be_looked_at_again() {
    let Some(cluster) = RedisCluster::start(3, 1) else { return };
    let url = format!("redis+cluster://{}", cluster.nodes()[0].addr());
    let provider = RedisProvider::builder(url).read_replicas(true).build().unwrap();
    put(&provider, "k", "v").await;
    until_copied(&provider, "k", "v").await;
    let owner = cluster.owner("v:{users:k}").unwrap().port();
    let masters: Vec<u16> = cluster.masters().iter().map(|master| master.port()).collect();
    let replicas = cluster.nodes().iter().filter(|node| !masters.contains(&node.port()));
    let replica = replicas.into_iter().find(|node| {
        let about: String = node.command(&["INFO", "replication"]).unwrap();
        about.contains(&format!("master_port:{owner}\r\n"))
    });
    let replica = replica.unwrap();
    // Redis 6 counts a command with all that is below it.
    let of = |master: &&RedisServer| calls(master, "cluster|slots") + calls(master, "cluster");
    let looks = || cluster.masters().iter().map(of).sum::<u64>();
    // One that has just been is followed by another after five seconds.
    let before = looks();
    common::until("looks", || looks() > before);
    let looked = Instant::now();
    replica.kill();
    // Asks every node that is there.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = looks();
    assert!(provider.get_copies(&[key("k")]).await[0].is_err());
    let again = async || {
        while looks() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let left = Duration::from_secs(4).saturating_sub(looked.elapsed());
    assert!(tokio::time::timeout(left, again()).await.is_ok(), "not before it was time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_sentinels_a_replica_answers_and_takes_no_writes() {
    let Some(sentinels) = RedisSentinel::start() else { return };
    let provider = RedisProvider::builder(sentinels.url()).read_replicas(true).build().unwrap();
    put(&provider, "k", "v").await;
    until_copied(&provider, "k", "v").await;
    let master = sentinels.master().unwrap();
    let gets = calls(master, "mget");
    assert_eq!(copies(&provider, &["k", "nope"]).await, [Some("v".to_owned()), None]);
    assert_eq!(calls(master, "mget"), gets);
    let replica = sentinels.servers().iter().find(|server| server.port() != master.port()).unwrap();
    replica.kill();
    let error = provider.get_copies(&[key("k")]).await.remove(0);
    assert!(matches!(kind(error), ErrorKind::Disconnected | ErrorKind::Connect | ErrorKind::Unavailable));
    put(&provider, "k", "the master goes on").await;
}

#[test]
fn whoever_has_none_is_told_so() {
    let error = RedisProvider::builder("redis://x").read_replicas(true).build().unwrap_err();
    assert!(error.to_string().starts_with("read_replicas = true"), "{error}");
    let provider = RedisProvider::builder("redis+cluster://x").build().unwrap();
    assert!(provider.replicas().is_none(), "only where asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_found_while_sentinels_and_another_one_hang() {
    let Some(sentinels) = RedisSentinel::with_replicas(2) else { return };
    let provider = || {
        let builder = RedisProvider::builder(sentinels.url()).read_replicas(true);
        builder.connect_timeout(Duration::from_secs(60)).build().unwrap()
    };
    let writer = provider();
    put(&writer, "k", "v").await;
    until_copied(&writer, "k", "v").await;
    let master = sentinels.master().unwrap().port();
    let replica = sentinels.servers().iter().find(|server| server.port() != master).unwrap();
    sentinels.sentinels()[..2].iter().for_each(RedisServer::stop);
    replica.stop();
    let start = Instant::now();
    // Whom one asks first is chance.
    for _ in 0..5 {
        assert_eq!(copies(&provider(), &["k"]).await, [Some("v".to_owned())]);
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}
