//! Nodes with memory on one Redis that tells them what changes.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{sync::Arc, time::Duration};

use test_servers::{Proxy, RedisServer, eventually};
use traced_cache::{
    Backplane, Level, Memory, Outcome, Policy, RedisProvider, TracedCache,
    testing::{Recorded, Recorder},
};

const LONG: Duration = Duration::from_secs(600);
const SOON: Duration = Duration::from_secs(30);

fn node_at(url: &str, seen: &Recorder) -> TracedCache<String> {
    node_on(RedisProvider::builder(url).build().unwrap(), seen)
}

fn node_on(redis: RedisProvider, seen: &Recorder) -> TracedCache<String> {
    TracedCache::builder("users")
        .level(Memory::entries(1000))
        .backplane(redis.backplane())
        .level(Level::new(redis).budget(Duration::from_secs(10)))
        .policy(Policy::ttl(LONG))
        .observer(seen.clone())
        .build()
        .unwrap()
}

fn node(server: &RedisServer) -> TracedCache<String> {
    node_at(&server.url(), &Recorder::new())
}

async fn load(cache: &TracedCache<String>, key: &str, value: &str) -> Arc<String> {
    let value = value.to_owned();
    cache.get_or_set(key, || async move { traced_cache::ok(value) }).await.unwrap()
}

async fn until(what: &str, check: impl AsyncFnMut() -> bool) {
    eventually(SOON, what, check).await;
}

/// Until this node's memory keeps what it reads: a channel that comes up is a gap.
async fn settled(cache: &TracedCache<String>) {
    until("memory keeps", async || {
        load(cache, "settled", "v").await;
        cache.look("settled").await.unwrap().level() == Some(0)
    })
    .await;
}

async fn in_memory(cache: &TracedCache<String>, key: &str) -> bool {
    cache.look(key).await.unwrap().level() == Some(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_what_anybody_writes_leaves_the_memory_of_all_nodes() {
    let Some(server) = RedisServer::start() else { return };
    let (a, b) = (node(&server), node(&server));
    for cache in [&a, &b] {
        settled(cache).await;
        load(cache, "k", "old").await;
        load(cache, "other", "stays").await;
        until("kept", async || in_memory(cache, "k").await && in_memory(cache, "other").await).await;
    }
    // A program in another language.
    server.command::<()>(&["DEL", "v:{users:k}"]).unwrap();
    for cache in [&a, &b] {
        until("gone", async || cache.look("k").await.unwrap().outcome() == Outcome::Miss).await;
    }
    assert!(a.set("k", "new".to_owned()).await.unwrap().is_confirmed());
    until("heard", async || load(&b, "k", "never").await.as_str() == "new").await;
    assert!(b.invalidate("k").await.unwrap().is_confirmed());
    until("heard", async || load(&a, "k", "newer").await.as_str() == "newer").await;
    // What the store holds nothing of may be in another node's memory: its removal is heard all the same.
    assert!(in_memory(&a, "other").await && in_memory(&b, "other").await, "nobody has touched it");
    assert!(a.clear().await.unwrap().is_confirmed());
    until("heard", async || b.look("other").await.unwrap().outcome() == Outcome::Miss).await;
}

/// Of names of which one begins with the other, on one connection of each node, heard of by the server's word and by messages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_caches_of_other_names_do_not_hear_of_each_other() {
    let Some(server) = RedisServer::start() else { return };
    for tracking in [true, false] {
        let node = || {
            let redis = RedisProvider::builder(server.url()).tracking(tracking).build().unwrap();
            ["users", "usersAbc"].map(|name| {
                TracedCache::<String>::builder(name)
                    .level(Memory::entries(1000))
                    .backplane(redis.backplane())
                    .level(Level::new(redis.clone()).budget(Duration::from_secs(10)))
                    .policy(Policy::ttl(LONG))
                    .build()
                    .unwrap()
            })
        };
        let nodes = [node(), node()];
        for cache in nodes.iter().flatten() {
            settled(cache).await;
            load(cache, "k", "old").await;
            until("kept", async || in_memory(cache, "k").await).await;
        }
        let [[users, _], [heard, other]] = &nodes;
        assert!(users.set("k", "new".to_owned()).await.unwrap().is_confirmed());
        until("heard", async || load(heard, "k", "never").await.as_str() == "new").await;
        assert!(users.invalidate("k").await.unwrap().is_confirmed());
        until("heard", async || heard.look("k").await.unwrap().outcome() == Outcome::Miss).await;
        load(heard, "k", "newer").await;
        assert!(users.clear().await.unwrap().is_confirmed());
        until("heard", async || heard.look("k").await.unwrap().outcome() == Outcome::Miss).await;
        assert!(in_memory(other, "k").await, "nobody has touched the other cache (tracking: {tracking})");
    }
}

/// Experiment 2: with a fill that writes the entry from a script, the node would hear of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_own_fills_and_writes_stay_in_memory() {
    let Some(server) = RedisServer::start() else { return };
    let seen = Recorder::new();
    let (a, b) = (node_at(&server.url(), &seen), node(&server));
    for cache in [&a, &b] {
        settled(cache).await;
    }
    let heard = || seen.count(|event| matches!(event, Recorded::BackplaneReceived));
    let before = heard();
    for n in 0..20 {
        load(&a, &format!("loaded {n}"), "v").await;
        assert!(a.set(format!("set {n}"), "v".to_owned()).await.unwrap().is_confirmed());
    }
    // What b does comes after whatever the server had to say about the above.
    assert!(b.set("end", "v".to_owned()).await.unwrap().is_confirmed());
    until("heard", async || heard() > before).await;
    for n in 0..20 {
        assert!(in_memory(&a, &format!("loaded {n}")).await && in_memory(&a, &format!("set {n}")).await);
    }
    assert_eq!(heard(), before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_published_where_all_nodes_hear_by_themselves() {
    let Some(server) = RedisServer::start() else { return };
    let (a, b) = (node(&server), node(&server));
    for cache in [&a, &b] {
        settled(cache).await;
    }
    let published = || {
        let info: String = server.command(&["INFO", "commandstats"]).unwrap();
        let line =
            info.lines().find_map(|line| line.strip_prefix("cmdstat_publish:calls=").map(str::to_owned));
        line.map_or(0, |line| line.split(',').next().unwrap().parse::<u64>().unwrap())
    };
    let mut n = 0;
    until("no more messages", async || {
        let before = published();
        n += 1;
        assert!(a.set("k", n.to_string()).await.unwrap().is_confirmed());
        assert!(a.invalidate("gone").await.unwrap().is_confirmed());
        published() == before
    })
    .await;
    until("heard", async || load(&b, "k", "never").await.as_str() == n.to_string()).await;
}

/// Experiment 4: reads race with writes of another node; whatever the order, memory does not keep the old value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_read_under_way_does_not_outlive_the_push() {
    let Some(server) = RedisServer::start() else { return };
    let (a, b) = (node(&server), node(&server));
    for cache in [&a, &b] {
        settled(cache).await;
    }
    for round in 0..200 {
        let (key, old, new) = (format!("k{round}"), "old".to_owned(), "new".to_owned());
        assert!(a.set(&*key, old).await.unwrap().is_confirmed());
        let reader = tokio::spawn({
            let (b, key) = (b.clone(), key.clone());
            async move {
                for _ in 0..5 {
                    load(&b, &key, "never").await;
                    tokio::task::yield_now().await;
                }
            }
        });
        assert!(a.set(&*key, new).await.unwrap().is_confirmed());
        reader.await.unwrap();
        until("the new value", async || load(&b, &key, "never").await.as_str() == "new").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_while_a_node_was_cut_off_is_not_in_its_memory_afterwards() {
    let Some(server) = RedisServer::start() else { return };
    let proxy = Proxy::start(server.addr());
    let seen = Recorder::new();
    let (a, b) = (node(&server), node_at(&format!("redis://{}", proxy.addr()), &seen));
    for cache in [&a, &b] {
        settled(cache).await;
    }
    for round in 0..5 {
        let key = format!("k{round}");
        load(&a, &key, "old").await;
        until("kept", async || {
            load(&b, &key, "never").await;
            in_memory(&b, &key).await
        })
        .await;
        let gaps = seen.count(|event| matches!(event, Recorded::BackplaneGap));
        proxy.refuse();
        assert!(a.set(&*key, "new".to_owned()).await.unwrap().is_confirmed());
        until("the gap", async || seen.count(|event| matches!(event, Recorded::BackplaneGap)) > gaps).await;
        // Its memory is void, its level away: it loads.
        assert_ne!(load(&b, &key, "loaded").await.as_str(), "old");
        proxy.pass();
        // Without a load: one that begins behind the gap, as the level had not answered, would be kept instead.
        let found = async || b.get(&*key).await.unwrap().is_some_and(|value| *value == "new");
        until("the new value", found).await;
    }
}

/// Over either kind of backplane, an operator hears why it is down, and that it is up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_a_backplane_is_down_is_told_and_that_it_is_up_again() {
    let Some(server) = RedisServer::start() else { return };
    for watches in [true, false] {
        let proxy = Proxy::start(server.addr());
        let seen = Recorder::new();
        let redis = RedisProvider::builder(format!("redis://{}", proxy.addr())).build().unwrap();
        let backplane = if watches { redis.backplane() } else { redis.messages() };
        let cache: TracedCache<String> = TracedCache::builder("users")
            .level(Memory::entries(1000))
            .level(redis)
            .backplane(backplane)
            .observer(seen.clone())
            .build()
            .unwrap();
        settled(&cache).await;
        let told = |event: &Recorded| matches!(event, Recorded::BackplaneDown(_) | Recorded::BackplaneUp);
        assert_eq!(seen.count(told), 0, "what comes up for the first time was not down");
        proxy.refuse();
        let at = proxy.addr().to_string();
        let why = |event: &Recorded| matches!(event, Recorded::BackplaneDown(why) if why.contains(&at));
        until("the reason", async || seen.count(why) > 1).await;
        assert_eq!(seen.count(|event| matches!(event, Recorded::BackplaneUp)), 0);
        proxy.pass();
        until("up again", async || seen.count(|event| matches!(event, Recorded::BackplaneUp)) == 1).await;
    }
}

/// One node may not track: it says so once, is told by the others, and tells them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_may_not_track_says_so_and_is_told_by_messages() {
    let Some(server) = RedisServer::start() else { return };
    let rights = ["ACL", "SETUSER", "ann", "on", ">hunter2", "~*", "&*", "+@all", "-client|tracking"];
    server.command::<()>(&rights).unwrap();
    let seen = Recorder::new();
    let (a, b) = (node(&server), node_at(&format!("redis://ann:hunter2@{}", server.addr()), &seen));
    for cache in [&a, &b] {
        settled(cache).await;
        load(cache, "k", "old").await;
        until("kept", async || in_memory(cache, "k").await).await;
    }
    assert!(a.set("k", "new".to_owned()).await.unwrap().is_confirmed());
    until("told", async || load(&b, "k", "never").await.as_str() == "new").await;
    assert!(b.set("k", "newer".to_owned()).await.unwrap().is_confirmed());
    until("heard", async || load(&a, "k", "never").await.as_str() == "newer").await;
    let said =
        |event: &Recorded| matches!(event, Recorded::Advice(text) if text.contains("+client|tracking"));
    assert_eq!(seen.count(said), 1);
    assert_eq!(seen.count(|event| matches!(event, Recorded::Advice(_))), 1);
}

/// Tests that look at the memory of the process take turns.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A node without a recorder, which would keep every event.
fn unwatched(redis: &RedisProvider, backplane: impl Backplane) -> TracedCache<String> {
    TracedCache::builder("users")
        .level(Memory::entries(1000))
        .backplane(backplane)
        .level(Level::new(redis.clone()).budget(Duration::from_secs(10)))
        .policy(Policy::ttl(LONG))
        .build()
        .unwrap()
}

fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

/// With `DEL`, the server would have nothing to tell of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_an_invalidation_of_what_the_store_lacks_reaches_the_memory_that_has_it() {
    let Some(server) = RedisServer::start() else { return };
    let (a, b) = (node(&server), node(&server));
    for cache in [&a, &b] {
        settled(cache).await;
    }
    // Full: what b loads stays in its memory.
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    until("kept in memory alone", async || {
        load(&b, "k", "old").await;
        in_memory(&b, "k").await
    })
    .await;
    assert!(!server.command::<bool>(&["EXISTS", "v:{users:k}"]).unwrap());
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    // Whatever b still had to tell the server.
    until("told", async || b.stats().pending == 0).await;
    load(&b, "k", "old").await;
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    assert!(a.invalidate("k").await.unwrap().is_confirmed());
    until("heard", async || !in_memory(&b, "k").await).await;
}

/// Each change is applied as it comes, also of keys that nobody holds; nothing queues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p13_a_burst_of_100_000_changes_costs_no_memory_and_no_more_than_its_keys() {
    let _alone = ALONE.lock().await;
    let Some(server) = RedisServer::start() else { return };
    let redis = RedisProvider::builder(server.url()).build().unwrap();
    let a = unwatched(&redis, redis.backplane());
    settled(&a).await;
    // On a busy machine the server may be away for longer than the node waits for it, which is a gap.
    let gaps = || a.stats().backplane.unwrap().gaps;
    let mut whole = 0;
    let mut after = Vec::new();
    for _ in 0..6 {
        load(&a, "untouched", "v").await;
        load(&a, "n500", "old").await;
        assert!(in_memory(&a, "untouched").await && in_memory(&a, "n500").await);
        let before = gaps();
        let script = "for n = 1, 100000 do redis.call('SET', 'v:{users:n'..n..'}', 'theirs') end";
        server.command::<()>(&["EVAL", script, "0"]).unwrap();
        until("heard", async || !in_memory(&a, "n500").await).await;
        server.command::<()>(&["SET", "v:{users:settled}", "theirs"]).unwrap();
        until("all heard", async || !in_memory(&a, "settled").await).await;
        let kept = in_memory(&a, "untouched").await;
        assert!(kept || gaps() > before, "nobody has touched it");
        whole += u32::from(kept);
        after.push(resident_mib());
        server.command::<()>(&["DEL", "v:{users:n500}"]).unwrap();
        settled(&a).await;
    }
    assert!(whole > 0, "a burst is no gap");
    assert!(after[5] < after[0] + 35, "MiB after each: {after:?}");
}

/// The same by messages, of which each names a key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p13_a_burst_of_100_000_messages_costs_no_memory_and_no_more_than_its_keys() {
    let _alone = ALONE.lock().await;
    let Some(server) = RedisServer::start() else { return };
    let [a, b] = [(); 2].map(|()| {
        let redis = RedisProvider::builder(server.url()).build().unwrap();
        unwatched(&redis, redis.messages())
    });
    for cache in [&a, &b] {
        settled(cache).await;
        // The channel has come up, which is the last gap.
        until("heard", async || cache.stats().backplane.is_some_and(|plane| plane.gaps > 0)).await;
    }
    load(&b, "untouched", "v").await;
    // As a node would say it, so that the burst is made by the server itself.
    let mut ear = server.connection().unwrap();
    let mut ear = ear.as_pubsub();
    ear.psubscribe("*").unwrap();
    assert!(a.invalidate("n000000").await.unwrap().is_confirmed());
    let said = std::iter::from_fn(|| ear.get_message().ok())
        .find(|said| said.get_payload_bytes().ends_with(b"n000000"))
        .unwrap();
    let (head, _) = said.get_payload_bytes().split_last_chunk::<7>().unwrap();
    let script =
        "for n = 1, 100000 do redis.call('PUBLISH', ARGV[1], ARGV[2]..string.format('n%06d', n)) end";
    let mut burst = redis::cmd("EVAL");
    burst.arg(script).arg(0).arg(said.get_channel_name()).arg(head);
    let mut after = Vec::new();
    for round in ["1", "2", "3"] {
        // Messages of the last burst may still be on their way.
        until("kept", async || {
            load(&b, "n000500", "old").await;
            in_memory(&b, "n000500").await
        })
        .await;
        burst.query::<()>(&mut server.connection().unwrap()).unwrap();
        until("heard", async || !in_memory(&b, "n000500").await).await;
        // The newest state of a key is what counts, and it comes after all of the burst. Its message may have had to wait.
        let _delivery = a.set("settled", round.to_owned()).await.unwrap();
        until("all heard", async || load(&b, "settled", "never").await.as_str() == round).await;
        assert!(in_memory(&b, "untouched").await, "nobody has named it, and a burst is no gap");
        after.push(resident_mib());
    }
    assert!(after[2] < after[0] + 8, "MiB after each: {after:?}");
}

/// Nothing is put there in its place, of which the server would tell that it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_for_the_server_stays_in_memory() {
    let Some(server) = RedisServer::start() else { return };
    let small = || {
        let redis = RedisProvider::builder(server.url()).value_max(300).build().unwrap();
        node_on(redis, &Recorder::new())
    };
    let (a, b) = (small(), small());
    let large = "x".repeat(1000);
    for cache in [&a, &b] {
        settled(cache).await;
        load(cache, "probe", "v").await;
    }
    for cache in [&a, &b] {
        load(cache, "k", &large).await;
        let there = || server.command::<bool>(&["EXISTS", "v:{users:k}"]).unwrap();
        until("over", async || !there()).await;
    }
    // Whatever has been told before this is heard by now.
    for (cache, other) in [(&a, &b), (&b, &a)] {
        load(cache, "probe", "v").await;
        until("kept", async || in_memory(cache, "probe").await).await;
        assert!(other.invalidate("probe").await.unwrap().is_confirmed());
        until("heard", async || !in_memory(cache, "probe").await).await;
    }
    for cache in [&a, &b] {
        assert!(in_memory(cache, "k").await);
    }
    let leased = || server.command::<bool>(&["EXISTS", "l:{users:k}"]).unwrap();
    until("given back", async || !leased()).await;
    assert!(b.invalidate("k").await.unwrap().is_confirmed());
    until("heard", async || !in_memory(&a, "k").await).await;
}

/// What the server tells is read by tasks of the runtime that the first call came from. Should nobody drive that any more, nothing
/// is heard, and nothing says so.
#[test]
fn memory_is_not_believed_where_the_runtime_that_hears_stands_still() {
    let Some(server) = RedisServer::start() else { return };
    let runtime = |builder: &mut tokio::runtime::Builder| builder.enable_all().build().unwrap();
    let stands = runtime(&mut tokio::runtime::Builder::new_current_thread());
    let runs = runtime(&mut tokio::runtime::Builder::new_multi_thread());
    for watches in [true, false] {
        let listening = || {
            let redis = RedisProvider::builder(server.url()).build().unwrap();
            let plane = if watches { redis.backplane() } else { redis.messages() };
            TracedCache::<String>::builder("users")
                .level(Memory::entries(1000))
                .backplane(plane)
                .level(Level::new(redis).budget(Duration::from_secs(1)))
                .policy(Policy::ttl(LONG))
                .build()
                .unwrap()
        };
        let (a, b) = (listening(), listening());
        stands.block_on(async {
            settled(&a).await;
            load(&a, "k", "old").await;
            until("kept", async || in_memory(&a, "k").await).await;
        });
        runs.block_on(async {
            assert!(b.set("k", "new".to_owned()).await.unwrap().is_confirmed());
            until("not believed", async || load(&a, "k", "new").await.as_str() == "new").await;
        });
    }
}
