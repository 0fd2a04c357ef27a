//! Several servers that know each other.

use std::time::Duration;

use test_servers::{RedisCluster, RedisSentinel, until};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_cluster_serves_every_slot_and_replaces_a_dead_master() {
    let Some(cluster) = RedisCluster::start(3, 1) else { return };
    assert_eq!((cluster.nodes().len(), cluster.masters().len(), cluster.urls().len()), (6, 3, 6));
    let mut owners = std::collections::HashSet::new();
    for n in 0..50 {
        let key = format!("key-{n}");
        let owner = cluster.owner(&key).unwrap();
        owner.command::<()>(&["SET", &key, "v"]).unwrap();
        owners.insert(owner.port());
    }
    assert_eq!(owners.len(), 3);
    let dead = cluster.owner("key-0").unwrap();
    dead.kill();
    assert!(until(SOON, || {
        cluster.owner("key-0").is_some_and(|owner| owner.command::<()>(&["SET", "key-0", "w"]).is_ok())
    }));
}

#[test]
fn sentinels_replace_a_dead_master() {
    let Some(sentinel) = RedisSentinel::start() else { return };
    assert_eq!((sentinel.servers().len(), sentinel.sentinels().len(), sentinel.urls().len()), (2, 3, 3));
    let first = sentinel.master().unwrap();
    assert_eq!(first.port(), sentinel.servers()[0].port());
    first.kill();
    assert!(until(SOON, || sentinel.master_port() == Some(sentinel.servers()[1].port())));
    let second = sentinel.master().unwrap();
    assert!(until(SOON, || second.command::<()>(&["SET", "k", "v"]).is_ok()));
}
