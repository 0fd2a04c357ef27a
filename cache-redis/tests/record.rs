//! The record of masters that a cluster has been met with, while its node is not at its best.
#![allow(clippy::unwrap_used, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::time::Duration;

use cache_core::CacheProvider;
use cache_redis::RedisProvider;
use common::{get, item, put, within};
use test_servers::{RedisCluster, RedisServer};

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
    within(SOON, "stored", async || provider.put(item(&id, b"w")).await.is_ok()).await;
    assert_eq!(get(&provider, &id).await.unwrap().as_deref(), Some("w"));
    assert_ne!(provider.incarnation(), before);
}
