//! A cluster of three masters with a replica each.
#![allow(clippy::unwrap_used, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::{
    collections::HashSet,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use cache_core::{
    Acquire, Backplane, BreakerState, CacheId, CacheProvider, Holding, Leases, Level, Listener, Policy, Put,
    RawKey, Stance, Swapped, TracedCache, ok,
    testing::conformance::{self, Options},
};
use cache_redis::{Error, ErrorKind, RedisProvider};
use common::{get, item, key, kind, put, swap, until_async};
use test_servers::{RedisCluster, RedisServer, until};

const SOON: Duration = Duration::from_secs(60);

fn url(cluster: &RedisCluster) -> String {
    format!("redis+cluster://{}", cluster.nodes()[0].addr())
}

fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error:?}");
    let text = format!("{error} {error:?}");
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text:?}");
    assert!(!text.contains("hunter2"), "{text:?}");
}

async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !check().await {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_dead_is_told_beside_those_that_answer() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let provider = RedisProvider::builder(url(&cluster)).build().unwrap();
    eventually("all answer", async || {
        let all = provider.servers().await;
        all.len() == 3 && all.iter().all(Result::is_ok)
    })
    .await;
    let dead = cluster.masters()[1];
    dead.kill();
    eventually("it is missed", async || provider.servers().await.iter().any(Result::is_err)).await;
    let all = provider.servers().await;
    let failed: Vec<_> = all.iter().filter_map(|server| server.as_ref().err()).collect();
    assert_eq!((all.len(), failed.len()), (3, 1));
    let error = cache_core::with_causes(&**failed[0]);
    assert!(error.contains(&dead.addr().to_string()), "which one: {error}");
    assert_eq!(provider.info().await.unwrap().len(), 2, "facts are of those that answer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_list() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let provider = RedisProvider::builder(url(&cluster)).key_prefix("app:").build().unwrap();
    conformance::run(Arc::new(provider), Options::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_go_to_each_node_and_come_back_in_order() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let provider = RedisProvider::builder(url(&cluster)).build().unwrap();
    let ids: Vec<String> = (0..1500).map(|n| format!("id {n}")).collect();
    let puts: Vec<Put<'_>> = ids.iter().map(|id| item(id, id.as_bytes())).collect();
    assert!(provider.put_many(&puts).await.iter().all(Result::is_ok));
    let keys: Vec<RawKey<'_>> = ids.iter().map(|id| key(id)).collect();
    for (id, found) in ids.iter().zip(provider.get_many(&keys).await) {
        assert_eq!(found.unwrap().unwrap(), id.as_bytes());
    }
    for node in cluster.nodes() {
        let held: usize = node.command(&["DBSIZE"]).unwrap();
        assert!((300..700).contains(&held), "{held} of 1500");
    }
    assert!(provider.remove_many(&keys).await.iter().all(Result::is_ok));
    assert!(provider.get_many(&keys).await.into_iter().all(|found| found.unwrap().is_none()));
    assert!(provider.get_many(&[]).await.is_empty());
}

/// Experiment 9: all keys of an id are in one slot, whatever is in the id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_ids_work_and_stay_apart() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let provider = RedisProvider::builder(url(&cluster)).build().unwrap();
    let long = "k".repeat(10_000);
    let ids = ["a}b", "{a}b}:l", "}", "{}", "{", "}{", "é", "a b\r\n", &long];
    let puts: Vec<Put<'_>> = ids.iter().map(|id| item(id, id.as_bytes())).collect();
    assert!(provider.put_many(&puts).await.iter().all(Result::is_ok));
    for id in ids {
        assert_eq!(get(&provider, id).await.unwrap().as_deref(), Some(id));
        provider.remove(key(id)).await.unwrap();
        assert_eq!(get(&provider, id).await.unwrap(), None);
    }
}

/// One of three masters dies and its replica takes over: what the others hold is served all the while, and everybody
/// learns that the state of the cluster is another one before the new master is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_master_is_replaced_and_the_others_go_on() {
    let Some(cluster) = RedisCluster::start(3, 1) else { return };
    for node in cluster.nodes() {
        node.command::<()>(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]).unwrap();
    }
    let nodes = [(); 2].map(|()| RedisProvider::builder(url(&cluster)).build().unwrap());
    for node in &nodes {
        node.connect().await.unwrap();
    }
    let [a, b] = &nodes;
    let marker = RawKey::marker(CacheId(1), "users");
    b.get(marker).await.unwrap();
    let before = a.incarnation();
    until_async("one number", || async {
        b.get(marker).await.unwrap();
        a.get(marker).await.unwrap();
        a.incarnation() == b.incarnation()
    })
    .await;
    assert_ne!(before, 0);
    let ids: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    for id in &ids {
        put(a, id, id).await;
    }
    let dead = cluster.owner("v:{users:0}").unwrap();
    let (lost, kept): (Vec<_>, Vec<_>) =
        ids.iter().partition(|id| cluster.owner(&format!("v:{{users:{id}}}")).unwrap().port() == dead.port());
    assert!(!lost.is_empty() && !kept.is_empty());
    // What the replica has not got yet would be lost with its master.
    let mut connection = dead.connection().unwrap();
    redis::cmd("SET").arg("after:{users:0}").arg("all").exec(&mut connection).unwrap();
    let acknowledged: u64 = redis::cmd("WAIT").arg(1).arg(20_000).query(&mut connection).unwrap();
    assert_eq!(acknowledged, 1);
    let before = (a.incarnation(), b.incarnation());
    dead.kill();
    eventually("served again", async || {
        for id in kept.iter().take(20) {
            assert_eq!(get(a, id).await.unwrap().as_deref(), Some(id.as_str()), "its master lives");
        }
        get(a, lost[0]).await.is_ok()
    })
    .await;
    assert_ne!(a.incarnation(), before.0, "known before the first answer");
    for id in &lost {
        assert_eq!(get(a, id).await.unwrap().as_deref(), Some(id.as_str()));
        put(a, id, "new").await;
    }
    eventually("served again", async || get(b, lost[0]).await.is_ok()).await;
    assert_eq!(b.incarnation(), a.incarnation(), "the same number for all");
    let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
    assert!(b.get_many(&keys).await.into_iter().all(|found| found.unwrap().is_some()));
}

/// Whoever has no part in it learns of the new state with the marker that was written in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_state_is_known_with_the_marker_at_the_latest() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let nodes = [(); 2].map(|()| RedisProvider::builder(url(&cluster)).build().unwrap());
    let [a, b] = &nodes;
    let marker = RawKey::marker(CacheId(1), "users");
    for node in [a, b] {
        node.connect().await.unwrap();
        node.get(marker).await.unwrap();
    }
    a.get(marker).await.unwrap();
    assert_eq!(a.incarnation(), b.incarnation());
    // A node that is unlike the one before gives the cluster another number; here a test does.
    let record = cluster.owner("r:{masters}").unwrap();
    record.command::<()>(&["HSET", "r:{masters}", "number", "00000000000000ab"]).unwrap();
    b.get_many(&[key("k"), marker]).await;
    assert_eq!(b.incarnation(), 0xab);
    a.get(marker).await.unwrap();
    assert_eq!(a.incarnation(), 0xab);
    // A record that is lost is no reason to believe anything.
    record.command::<()>(&["DEL", "r:{masters}"]).unwrap();
    a.get(marker).await.unwrap();
    b.get(marker).await.unwrap();
    a.get(marker).await.unwrap();
    assert!(a.incarnation() != 0xab && a.incarnation() == b.incarnation());
}

/// A master is replaced, becomes the replica of its successor, misses what that acknowledges last, and is promoted again:
/// the same process as the cluster has met before, and yet not to be believed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_promoted_again_is_another_one() {
    let Some(cluster) = RedisCluster::start(3, 1) else { return };
    let node = || -> TracedCache<String> {
        let provider = RedisProvider::builder(url(&cluster)).build().unwrap();
        let level = Level::new(provider).stance(Stance::Absorb).budget(Duration::from_secs(2));
        let policy = Policy::ttl(Duration::from_secs(3600));
        TracedCache::builder("users").level(level).policy(policy).build().unwrap()
    };
    let cache = node();
    let owner = |key: &str| cluster.owner(key).unwrap().port();
    let is_master = |node: &RedisServer| cluster.masters().iter().any(|master| master.port() == node.port());
    // Neither the cache's mark nor the record of masters is lost with it: they would tell by themselves.
    let marks = [owner("m:{users}"), owner("r:{masters}")];
    let id = (0..100u64).find(|id| !marks.contains(&owner(&format!("v:{{users:{id}}}")))).unwrap();
    let name = format!("v:{{users:{id}}}");
    assert!(cache.set(id, "old".to_owned()).await.unwrap().is_confirmed());
    let first = cluster.owner(&name).unwrap();
    let mut follower = None;
    eventually("it has a replica", async || {
        let replication: String = first.command(&["INFO", "replication"]).unwrap();
        let follows =
            |node: &&RedisServer| replication.contains(&format!("port={},state=online", node.port()));
        follower = cluster.nodes().iter().find(follows);
        follower.is_some()
    })
    .await;
    let second = follower.unwrap();
    eventually("the second takes over", async || {
        // Now and then the others do not agree to it at once.
        second.command::<()>(&["CLUSTER", "FAILOVER"]).ok();
        let over = || owner(&name) == second.port() && is_master(second) && !is_master(first);
        until(Duration::from_secs(8), over)
    })
    .await;
    eventually("stored there, and at its replica", async || {
        cache.get_or_set(id, || async { ok("old".to_owned()) }).await.unwrap();
        let replication: String = first.command(&["INFO", "replication"]).unwrap();
        // A tombstone is shorter than any entry.
        let lengths = [first, second].map(|node| {
            let mut connection = node.connection().unwrap();
            redis::cmd("READONLY").exec(&mut connection).unwrap();
            redis::cmd("STRLEN").arg(&name).query::<usize>(&mut connection).unwrap()
        });
        replication.contains("master_link_status:up")
            && lengths.iter().all(|length| *length > 20)
            && cache.get(id).await.unwrap().is_some()
    })
    .await;

    first.stop();
    assert_eq!(second.command::<u64>(&["CLIENT", "KILL", "TYPE", "replica"]).unwrap(), 1);
    eventually("confirmed", async || cache.invalidate(id).await.unwrap().is_confirmed()).await;
    second.kill();
    first.cont();
    let late = node();
    let mut back = None;
    let start = Instant::now();
    while back.is_none_or(|back: Instant| back.elapsed() < Duration::from_secs(3)) {
        assert!(start.elapsed() < SOON, "nobody has taken over");
        for cache in [&cache, &late] {
            assert_eq!(cache.get(id).await.unwrap(), None, "it was invalidated");
        }
        if back.is_none() && is_master(first) && owner(&name) == first.port() {
            back = Some(Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[derive(Default)]
struct Ear {
    heard: AtomicUsize,
    gaps: AtomicUsize,
}

impl Listener for Ear {
    fn message(&self, _: &[u8]) {
        self.heard.fetch_add(1, Ordering::SeqCst);
    }

    fn gap(&self) {
        self.gaps.fetch_add(1, Ordering::SeqCst);
    }

    fn keeps_in(&self, store: u64) -> bool {
        store != 0
    }

    fn is_closed(&self) -> bool {
        false
    }
}

/// It goes on by itself, and whoever listens there hears himself and nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_not_heard_at_a_node_that_was_taken_out() {
    let Some(cluster) = RedisCluster::start(3, 1) else { return };
    // Of the nodes that it knows, it listens at the first that answers: known is the one that is to go, and by it the others.
    let masters: Vec<u16> = cluster.masters().iter().map(|node| node.port()).collect();
    let goes = cluster.nodes().iter().find(|node| !masters.contains(&node.port())).unwrap();
    let provider = RedisProvider::builder(format!("redis+cluster://{}", goes.addr())).build().unwrap();
    let (messages, ear) = (provider.messages(), Arc::new(Ear::default()));
    messages.subscribe("users", Arc::clone(&ear) as _);
    let listens = |node: &RedisServer| {
        !node.command::<Vec<String>>(&["PUBSUB", "CHANNELS", "b:0:*"]).unwrap().is_empty()
    };
    eventually("it listens there", async || listens(goes)).await;
    provider.connect().await.unwrap();
    let others = || cluster.nodes().iter().filter(|node| node.port() != goes.port());
    let says = || {
        let sender = others().find(|node| masters.contains(&node.port())).unwrap();
        sender.command::<()>(&["PUBLISH", "b:0:{users}", "anything"]).unwrap();
    };
    eventually("it hears", async || {
        says();
        ear.heard.load(Ordering::SeqCst) > 0
    })
    .await;

    let id: String = goes.command(&["CLUSTER", "MYID"]).unwrap();
    let gaps = ear.gaps.load(Ordering::SeqCst);
    others().for_each(|node| node.command::<()>(&["CLUSTER", "FORGET", &id]).unwrap());
    goes.command::<()>(&["CLUSTER", "RESET", "SOFT"]).unwrap();
    eventually("it is told of a gap", async || ear.gaps.load(Ordering::SeqCst) > gaps).await;
    let heard = ear.heard.load(Ordering::SeqCst);
    eventually("it hears again", async || {
        says();
        ear.heard.load(Ordering::SeqCst) > heard
    })
    .await;
    assert!(!listens(goes) && others().any(listens));
}

/// A node that hangs costs its own keys, and after it has been given up no batch any time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hangs_holds_nobody_up_for_long() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    for node in cluster.nodes() {
        node.command::<()>(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]).unwrap();
    }
    let attempt = Duration::from_secs(6);
    let builder = RedisProvider::builder(url(&cluster)).response_timeout(Duration::from_millis(300));
    let provider = builder.connect_timeout(attempt).build().unwrap();
    let ids: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    for id in &ids {
        put(&provider, id, id).await;
    }
    let hangs = cluster.owner("v:{users:0}").unwrap();
    let served: Vec<_> = ids
        .iter()
        .filter(|id| cluster.owner(&format!("v:{{users:{id}}}")).unwrap().port() != hangs.port())
        .collect();
    hangs.stop();
    for id in &served {
        assert_eq!(get(&provider, id).await.unwrap().as_deref(), Some(id.as_str()));
    }
    let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
    let batch = async || provider.get_many(&keys).await.into_iter().filter(Result::is_ok).count();
    eventually("given up", async || batch().await == served.len()).await;
    // However long each further attempt takes.
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(batch().await, served.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(start.elapsed() < attempt - Duration::from_secs(1), "{:?}", start.elapsed());
    hangs.cont();
    eventually("back", async || batch().await == ids.len()).await;
}

/// The slot of a key is about to move. Returns which one.
fn begin_to_move(from: &RedisServer, to: &RedisServer, name: &str) -> String {
    let slot = from.command::<u16>(&["CLUSTER", "KEYSLOT", name]).unwrap().to_string();
    let id = |node: &RedisServer| node.command::<String>(&["CLUSTER", "MYID"]).unwrap();
    to.command::<()>(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &id(from)]).unwrap();
    from.command::<()>(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &id(to)]).unwrap();
    slot
}

fn move_key(from: &RedisServer, to: &RedisServer, name: &str) {
    let port = to.port().to_string();
    from.command::<()>(&["MIGRATE", "127.0.0.1", &port, name, "0", "5000"]).unwrap();
}

/// While a slot moves, a key is read where it is, and written where it was if it can be; afterwards all goes to the new
/// node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_are_followed() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let provider = RedisProvider::builder(url(&cluster)).build().unwrap();
    put(&provider, "k", "v").await;
    put(&provider, "stays", "v").await;
    let name = "v:{users:k}";
    let from = cluster.owner(name).unwrap();
    let to = cluster.nodes().iter().find(|node| node.port() != from.port()).unwrap();
    let slot = begin_to_move(from, to, name);
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"), "not moved yet");
    move_key(from, to, name);
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"), "moved already");
    let found = provider.get_many(&[key("stays"), key("k")]).await;
    assert!(found.into_iter().all(|found| found.unwrap().is_some()));
    assert_eq!(kind(provider.put(item("k", b"w")).await), ErrorKind::Unavailable);
    assert_eq!(kind(provider.remove(key("k")).await), ErrorKind::Unavailable);
    let to_id: String = to.command(&["CLUSTER", "MYID"]).unwrap();
    for node in [to, from] {
        node.command::<()>(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]).unwrap();
    }
    // The map is an old one by now.
    put(&provider, "k", "w").await;
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("w"));
    assert_eq!(to.command::<String>(&["GET", name]).unwrap(), "w");
    let moved = |node: &RedisServer| {
        let errors: String = node.command(&["INFO", "errorstats"]).unwrap();
        errors
            .lines()
            .find_map(|line| line.strip_prefix("errorstat_MOVED:count=")?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    eventually("no more redirections", async || {
        let before = moved(from);
        put(&provider, "k", "x").await;
        moved(from) == before
    })
    .await;
}

/// All marks of a cache are in one slot. Until they have moved they are swapped where they are: what is put beside them for
/// that is not there, and a transaction that names it is not let run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_are_swapped_while_their_slot_moves() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let provider = RedisProvider::builder(url(&cluster)).build().unwrap();
    let mark = RawKey::marker(CacheId(1), "users");
    let tag = RawKey::tag(CacheId(1), "users", "vip");
    let marks = provider.marks().unwrap();
    let first = [swap(tag, None, b"t", SOON), swap(mark, None, b"1", Duration::MAX)];
    assert_eq!(marks.swap(&first).await.unwrap(), Swapped::Done);
    let name = "m:{users}";
    let from = cluster.owner(name).unwrap();
    let to = cluster.nodes().iter().find(|node| node.port() != from.port()).unwrap();
    begin_to_move(from, to, name);
    let touched = [swap(mark, Some(b"1"), b"1", Duration::MAX), swap(tag, Some(b"t"), b"t", SOON)];
    assert_eq!(marks.swap(&touched).await.unwrap(), Swapped::Done);
    let next = [swap(tag, Some(b"t"), b"u", SOON), swap(mark, Some(b"1"), b"2", Duration::MAX)];
    assert_eq!(marks.swap(&next).await.unwrap(), Swapped::Done);
    assert_eq!(from.command::<String>(&["GET", name]).unwrap(), "2");
    move_key(from, to, name);
    let late = [swap(mark, Some(b"2"), b"3", Duration::MAX)];
    assert_eq!(kind(marks.swap(&late).await), ErrorKind::Unavailable);
}

/// Each look is a new connection to every node, by every process, and a move may take hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_is_no_reason_to_look_at_the_cluster() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let provider = RedisProvider::builder(url(&cluster)).build().unwrap();
    put(&provider, "k", "v").await;
    let name = "v:{users:k}";
    let from = cluster.owner(name).unwrap();
    let to = cluster.nodes().iter().find(|node| node.port() != from.port()).unwrap();
    begin_to_move(from, to, name);
    let connections = || {
        let stats: String = to.command(&["INFO", "stats"]).unwrap();
        let count = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        count.unwrap().parse::<u64>().unwrap()
    };
    let (before, start) = (connections(), Instant::now());
    let mut calls = 0;
    while start.elapsed() < Duration::from_secs(4) {
        // It is there, and its lease is not: TRYAGAIN.
        let wish = Acquire { key: key("k"), holding: Holding::Nothing };
        assert_eq!(kind(provider.acquire_many(&[wish], SOON).await.remove(0)), ErrorKind::Unavailable);
        // Its lease alone: ASK.
        assert_eq!(kind(provider.remove(key("k")).await), ErrorKind::Unavailable);
        calls += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let made = connections() - before;
    assert!(made < 10, "{made} for {calls} calls");
}

/// A node that tells of changes, and has no slots so far.
fn newcomer(cluster: &RedisCluster) -> RedisServer {
    let builder = RedisServer::builder().config("cluster-enabled", "yes");
    let new = builder.config("cluster-config-file", "nodes.conf").start().unwrap();
    let known = cluster.nodes()[0].port().to_string();
    new.command::<()>(&["CLUSTER", "MEET", "127.0.0.1", &known]).unwrap();
    let knows = |node: &RedisServer| {
        let nodes: String = node.command(&["CLUSTER", "NODES"]).unwrap();
        nodes.lines().count() == 4 && !nodes.contains("handshake")
    };
    let serves = || new.command::<String>(&["CLUSTER", "INFO"]).unwrap().contains("cluster_state:ok");
    assert!(until(SOON, || cluster.nodes().iter().all(knows) && serves()));
    new
}

/// What is given up there is a gap, for all that memory holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_to_which_slots_move_is_kept_before_it_serves_any() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let new = newcomer(&cluster);
    // A machine that stands still for a moment is no gap here.
    let builder = RedisProvider::builder(url(&cluster)).heartbeat_timeout(Duration::from_secs(30));
    let provider = builder.build().unwrap();
    let (backplane, ear) = (provider.backplane(), Arc::new(Ear::default()));
    backplane.subscribe("users", Arc::clone(&ear) as _);
    put(&provider, "k", "v").await;
    let name = "v:{users:k}";
    let from = cluster.owner(name).unwrap();
    begin_to_move(from, &new, name);
    move_key(from, &new, name);
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
    let connected = || provider.connections().iter().filter(|it| it.state == "up").count();
    eventually("all are connected to", async || connected() == 4).await;
    let gaps = ear.gaps.load(Ordering::SeqCst);
    let start = Instant::now();
    // By then the cluster has been looked at.
    while start.elapsed() < Duration::from_secs(7) {
        assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ear.gaps.load(Ordering::SeqCst), gaps);
}

/// Nodes that are to go by a name, and have none, say `?` in its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_without_the_name_that_they_are_to_go_by_are_found() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    for node in cluster.nodes() {
        node.command::<()>(&["CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname"]).unwrap();
    }
    let provider = RedisProvider::builder(url(&cluster)).build().unwrap();
    for id in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        put(&provider, id, "v").await;
        assert_eq!(get(&provider, id).await.unwrap().as_deref(), Some("v"));
    }
    // Where a slot has moved to is not said then either.
    let name = "v:{users:none}";
    let from = cluster.owner(name).unwrap();
    let to = cluster.nodes().iter().find(|node| node.port() != from.port()).unwrap();
    let slot: u16 = from.command(&["CLUSTER", "KEYSLOT", name]).unwrap();
    let to_id: String = to.command(&["CLUSTER", "MYID"]).unwrap();
    for node in [to, from] {
        node.command::<()>(&["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &to_id]).unwrap();
    }
    eventually("found", async || provider.put(item("none", b"v")).await.is_ok()).await;
    assert_eq!(get(&provider, "none").await.unwrap().as_deref(), Some("v"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_that_answers_is_enough() {
    let Some(cluster) = RedisCluster::start(3, 1) else { return };
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let replica = cluster
        .nodes()
        .iter()
        .find(|node| !cluster.masters().iter().any(|master| master.port() == node.port()))
        .unwrap();
    let provider =
        RedisProvider::builder(format!("redis+cluster://{closed},{}", replica.addr())).build().unwrap();
    for n in 0..20 {
        put(&provider, &n.to_string(), "v").await;
    }
    let connected = |node: &RedisServer| {
        let clients: String = node.command(&["CLIENT", "LIST"]).unwrap();
        clients.lines().any(|line| line.contains("lib-name=traced-cache") || line.contains("cmd=client"))
    };
    assert!(cluster.masters().iter().all(|master| connected(master)));
    provider.close().await;
    assert_eq!(kind(provider.get(key("k")).await), ErrorKind::Closed);
    assert_eq!(kind(provider.ping().await), ErrorKind::Closed);
}

#[tokio::test]
async fn the_wrong_kind_of_url_is_named() {
    let Some(server) = RedisServer::start() else { return };
    let provider =
        RedisProvider::builder(format!("redis+cluster://:hunter2@{}", server.addr())).build().unwrap();
    // Without credentials there, the server does not mind these.
    let error = provider.connect().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Config | ErrorKind::Auth), "{error:?}");
    let provider = RedisProvider::builder(format!("redis+cluster://{}", server.addr())).build().unwrap();
    says(
        &provider.connect().await.unwrap_err(),
        ErrorKind::Config,
        &["url = ", "is no node of a cluster", "redis://"],
    );
    assert_eq!(kind(provider.get(key("k")).await), ErrorKind::Config);

    let closed = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let seeds = format!("redis+cluster://:hunter2@{},{}", closed[0], closed[1]);
    let provider = RedisProvider::builder(seeds).build().unwrap();
    let names = closed.map(|at| at.to_string());
    says(
        &provider.connect().await.unwrap_err(),
        ErrorKind::Connect,
        &["no node of the cluster", &names[0], &names[1]],
    );

    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let provider = RedisProvider::builder(cluster.urls()[0].clone()).build().unwrap();
    says(&provider.connect().await.unwrap_err(), ErrorKind::Config, &["url = ", "redis+cluster://"]);
    let error = RedisProvider::builder(url(&cluster)).database(3).build().unwrap_err();
    says(&error, ErrorKind::Config, &["database = 3"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_down_at_start_is_found_later() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let provider = RedisProvider::builder(url(&cluster)).build().unwrap();
    for node in cluster.nodes() {
        node.kill();
    }
    assert_eq!(kind(provider.put(item("k", b"v")).await), ErrorKind::Connect);
    for node in cluster.nodes() {
        node.restart();
    }
    eventually("served", async || provider.put(item("k", b"v")).await.is_ok()).await;
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
    let ports: HashSet<u16> = cluster.nodes().iter().map(RedisServer::port).collect();
    assert!(ports.iter().any(|port| format!("{provider:?}").contains(&port.to_string())));
    assert!(until(SOON, || cluster.masters().len() == 3));
}

/// How nodes go away.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Killed,
    Stopped,
}

impl Fault {
    fn strike(self, node: &RedisServer) {
        if self == Self::Killed { node.kill() } else { node.stop() }
    }

    fn end(self, node: &RedisServer) {
        if self == Self::Killed { node.restart() } else { node.cont() }
    }
}

/// Three masters without replicas: one is away, then all.
async fn masters_fail_one_by_one(fault: Fault) {
    const IDS: std::ops::Range<u64> = 0..60;
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    for node in cluster.nodes() {
        node.command::<()>(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]).unwrap();
    }
    let provider = RedisProvider::builder(url(&cluster)).build().unwrap();
    let cache: TracedCache<String> = TracedCache::builder("users")
        .level(Level::new(provider).stance(Stance::Absorb).budget(Duration::from_secs(2)))
        .policy(Policy::ttl(Duration::from_secs(3600)))
        .build()
        .unwrap();
    let breaker = || cache.stats().levels[0].breaker;
    let batch = async || {
        let found = cache.get_many(IDS).await.unwrap();
        IDS.zip(found).filter_map(|(id, found)| found.map(|_| id)).collect::<Vec<u64>>()
    };
    // Each master that nobody has met before voids what is there by then: all of them are met first.
    assert!(batch().await.is_empty());
    for id in IDS {
        assert!(cache.set(id, "value".to_owned()).await.unwrap().is_confirmed());
    }
    assert_eq!(batch().await.len(), 60);
    let owner = |key: &str| cluster.owner(key).unwrap().port();
    // One that keeps neither the cache's mark nor the record of masters.
    let marks = [owner("m:{users}"), owner("r:{masters}")];
    let away = cluster.masters().into_iter().find(|node| !marks.contains(&node.port())).unwrap();
    let (lost, healthy): (Vec<u64>, Vec<u64>) =
        IDS.partition(|id| owner(&format!("v:{{users:{id}}}")) == away.port());

    fault.strike(away);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(8) {
        assert_eq!(batch().await, healthy, "{fault:?}");
        for id in &healthy {
            assert!(cache.get(*id).await.unwrap().is_some(), "{fault:?}: {id}");
            if fault == Fault::Killed {
                // Most calls fail, at once or as soon as an attempt to connect has.
                for id in &lost[..3] {
                    assert!(cache.get(*id).await.unwrap().is_none());
                }
            }
            assert_eq!(breaker(), BreakerState::Closed, "{fault:?}");
        }
        assert!(cache.get(lost[0]).await.unwrap().is_none());
    }
    for id in &healthy {
        assert!(cache.invalidate(*id).await.unwrap().is_confirmed(), "{fault:?}: {id}");
    }
    // In one call, too: what the node may have taken or not is told later.
    assert!(!cache.invalidate_many(IDS).await.unwrap().is_confirmed());
    assert_eq!(cache.stats().pending, lost.len(), "{fault:?}");

    let others = || cluster.nodes().iter().filter(|node| node.port() != away.port());
    others().for_each(|node| fault.strike(node));
    eventually("the breaker is open", async || {
        assert!(batch().await.is_empty());
        breaker() == BreakerState::Open
    })
    .await;
    cluster.nodes().iter().for_each(|node| fault.end(node));
    eventually("all of it is back, and told", async || {
        batch().await;
        breaker() == BreakerState::Closed && cache.stats().pending == 0
    })
    .await;
    assert!(batch().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_master_costs_its_own_keys_only() {
    masters_fail_one_by_one(Fault::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_master_costs_its_own_keys_only() {
    masters_fail_one_by_one(Fault::Stopped).await;
}
