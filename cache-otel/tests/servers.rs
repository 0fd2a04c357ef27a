//! What servers behind providers say, as a reader of the SDK gets it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{
    BoxError, CacheProvider, Capabilities, Description, PoolStatus, Put, RawKey, ServerStatus,
    testing::ends_within,
};
use common::{Reader, Series, of};
use opentelemetry_sdk::metrics::Temporality;
use tokio::sync::Notify;

const EVERY: Duration = Duration::from_secs(10);

type Said = Vec<Option<ServerStatus>>;

/// A provider that has nothing but servers. `None`: they hang. An empty list: it panics.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Option<Said>>>, &'static str, Arc<Mutex<Option<PoolStatus>>>);

impl Told {
    fn says(&self, said: Said) {
        *self.0.lock().unwrap() = Some(said);
    }
}

#[async_trait]
impl CacheProvider for Told {
    fn describe(&self) -> Description {
        Description::remote(self.1, "10.0.0.9", Some(1))
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::remote()
    }
    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        keys.iter().map(|_| Ok(None)).collect()
    }
    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        items.iter().map(|_| Ok(())).collect()
    }
    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        keys.iter().map(|_| Ok(())).collect()
    }
    fn pool(&self) -> Option<PoolStatus> {
        self.2.lock().unwrap().clone()
    }
    async fn servers(&self) -> Vec<Result<ServerStatus, BoxError>> {
        let said = self.0.lock().unwrap().clone();
        match said {
            Some(said) if said.is_empty() => panic!("on purpose"),
            Some(said) => said.into_iter().map(|said| said.ok_or_else(|| "refused".into())).collect(),
            None => std::future::pending().await,
        }
    }
}

fn at(address: &str, hits: u64) -> Option<ServerStatus> {
    let mut said = ServerStatus::at(address);
    (said.hits, said.misses, said.memory_used) = (Some(hits), Some(1), Some(2048));
    said.memory_policy = Some("noeviction".to_owned());
    Some(said)
}

/// After the next round has ended, by virtual time.
async fn next(reader: &Reader) -> Series {
    tokio::time::sleep(2 * EVERY).await;
    reader.collect()
}

#[tokio::test(start_paused = true)]
async fn what_servers_say_is_reported_and_counts_never_go_back() {
    let reader = Reader::new(Temporality::Cumulative);
    let (redis, memcached) =
        (Told(Arc::default(), "redis", Arc::default()), Told(Arc::default(), "memcached", Arc::default()));
    redis.says(vec![at("10.0.0.1:6379", 100), at("[::1]:6380", 7)]);
    memcached.says(vec![at("/run/memcached.sock", 5)]);
    let all = Arc::new(Mutex::new(vec![("shared", redis.clone()), ("other", memcached.clone())]));
    let named = Arc::clone(&all);
    let servers = reader.telemetry().watch_servers(EVERY, move || {
        let named = named.lock().unwrap();
        named.iter().map(|(name, told)| ((*name).to_owned(), Arc::new(told.clone()) as Arc<_>)).collect()
    });

    let one = "db.client.name=shared,server.address=10.0.0.1,server.port=6379";
    let six = "db.client.name=shared,server.address=::1,server.port=6380";
    let other = "db.client.name=other";
    let sock = "server.address=/run/memcached.sock";
    let said = next(&reader).await;
    for (name, value) in [
        (format!("redis.up{{{one}}}"), 1.0),
        (format!("redis.up{{{six}}}"), 1.0),
        (format!("redis.keyspace.hits{{{one}}}"), 100.0),
        (format!("redis.memory.used{{{six}}}"), 2048.0),
        (
            "redis.maxmemory.policy{db.client.name=shared,redis.policy=noeviction,server.address=::1,server.port=6380}"
                .to_owned(),
            1.0,
        ),
        (format!("memcached.up{{{other},{sock}}}"), 1.0),
        (format!("memcached.bytes{{{other},{sock}}}"), 2048.0),
        (format!("memcached.operations{{{other},operation=get,{sock},type=hit}}"), 5.0),
        (format!("memcached.operations{{{other},operation=get,{sock},type=miss}}"), 1.0),
    ] {
        assert_eq!(said.get(&name), Some(&value), "{name}: {said:?}");
    }
    // Nobody has said so.
    assert_eq!(of(&said, "redis.maxmemory").count(), 0);

    // One begins anew, the other is away.
    redis.says(vec![at("10.0.0.1:6379", 3), None]);
    let said = next(&reader).await;
    assert_eq!(said[&format!("redis.keyspace.hits{{{one}}}")], 103.0);
    assert_eq!(said[&format!("redis.up{{{six}}}")], 0.0);
    assert_eq!(said[&format!("redis.keyspace.hits{{{six}}}")], 7.0, "a count goes on");
    assert!(!said.contains_key(&format!("redis.memory.used{{{six}}}")), "that is not so any more");

    // None of them answers in time.
    *redis.0.lock().unwrap() = None;
    let said = next(&reader).await;
    assert!(of(&said, "redis.up").count() == 2 && of(&said, "redis.up").all(|(_, up)| up == 0.0), "{said:?}");

    // The file has been read again, without it.
    all.lock().unwrap().remove(0);
    let said = next(&reader).await;
    assert_eq!((of(&said, "redis.up").count(), of(&said, "memcached.up").count()), (0, 1));
    drop(servers);
    assert_eq!(of(&next(&reader).await, "memcached.up").count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_panics_is_as_good_as_down() {
    let reader = Reader::new(Temporality::Cumulative);
    let redis = Told(Arc::default(), "redis", Arc::default());
    redis.says(vec![at("10.0.0.1:6379", 1)]);
    let panics = Arc::new(AtomicBool::new(false));
    let (told, list_panics) = (redis.clone(), Arc::clone(&panics));
    let _servers = reader.telemetry().watch_servers(EVERY, move || {
        assert!(!list_panics.load(Ordering::Relaxed), "on purpose");
        vec![("shared".to_owned(), Arc::new(told.clone()) as Arc<_>)]
    });
    let up = async || of(&next(&reader).await, "redis.up").map(|(_, up)| up).collect::<Vec<_>>();
    assert_eq!(up().await, [1.0]);
    redis.says(vec![]);
    assert_eq!(up().await, [0.0], "under the name and address that it had");
    redis.says(vec![at("10.0.0.1:6379", 1)]);
    assert_eq!(up().await, [1.0]);
    panics.store(true, Ordering::Relaxed);
    assert_eq!(up().await, [0.0], "nobody is asked");
    panics.store(false, Ordering::Relaxed);
    assert_eq!(up().await, [1.0], "the next round is tried all the same");
}

/// The SDK holds a lock of its own while it asks, and while an instrument is made.
#[test]
fn a_watch_may_begin_while_metrics_are_collected() {
    ends_within(Duration::from_secs(60), || {
        let reader = Reader::new(Temporality::Cumulative);
        let telemetry = reader.telemetry();
        let over = Arc::new(AtomicBool::new(false));
        let collecting = {
            let (provider, over) = (reader.provider, Arc::clone(&over));
            thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    provider.force_flush().unwrap();
                }
            })
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let redis = Told(Arc::default(), "redis", Arc::default());
            redis.says(vec![at("10.0.0.1:6379", 1)]);
            for _ in 0..50 {
                let one = redis.clone();
                let begun = telemetry.watch_servers(Duration::from_millis(1), move || {
                    vec![("shared".to_owned(), Arc::new(one.clone()) as Arc<_>)]
                });
                tokio::time::sleep(Duration::from_millis(5)).await;
                drop(begun);
            }
        });
        over.store(true, Ordering::Relaxed);
        collecting.join().unwrap();
    });
}

#[tokio::test(start_paused = true)]
async fn who_is_to_ask_without_a_pause_leaves_time_for_others() {
    let (rounds, too_many) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counted, over) = (Arc::clone(&rounds), Arc::clone(&too_many));
    let _servers =
        Reader::new(Temporality::Cumulative).telemetry().watch_servers(Duration::ZERO, move || {
            if counted.fetch_add(1, Ordering::Relaxed) == 1_000 {
                over.notify_one();
            }
            Vec::new()
        });
    tokio::select! {
        () = tokio::time::sleep(Duration::from_millis(50)) => {}
        () = too_many.notified() => {}
    }
    assert!(rounds.load(Ordering::Relaxed) < 100);
}

#[tokio::test(start_paused = true)]
async fn connections_of_a_provider_go_by_the_conventions() {
    let reader = Reader::new(Temporality::Cumulative);
    let (shared, silent) =
        (Told(Arc::default(), "redis", Arc::default()), Told(Arc::default(), "files", Arc::default()));
    let stands = |change: fn(&mut PoolStatus)| {
        change(shared.2.lock().unwrap().get_or_insert_default());
    };
    stands(|pool| {
        (pool.idle, pool.max, pool.pending) = (2, 3, 4);
        (pool.timeouts, pool.errors) = (1, 5);
        pool.count_made(Duration::from_millis(20));
        pool.count_made(Duration::from_millis(40));
    });
    let providers = [("shared", shared.clone()), ("silent", silent)];
    let servers = reader.telemetry().watch_servers(EVERY, move || {
        let named =
            providers.iter().map(|(name, told)| ((*name).to_owned(), Arc::new(told.clone()) as Arc<_>));
        named.collect()
    });
    let one = |what: &str, more: &str| {
        format!("db.client.connection.{what}{{db.client.connection.pool.name=shared{more}}}")
    };
    let said = next(&reader).await;
    let idle = one("count", ",db.client.connection.state=idle");
    for (name, value) in [
        (idle.clone(), 2.0),
        (one("count", ",db.client.connection.state=used"), 0.0),
        (one("max", ""), 3.0),
        (one("pending_requests", ""), 4.0),
        (one("timeouts", ""), 1.0),
        (one("errors", ",error.type=timeout"), 1.0),
        (one("errors", ",error.type=connection"), 5.0),
    ] {
        assert_eq!(said.get(&name), Some(&value), "{name}: {said:#?}");
    }
    assert!(said.keys().all(|name| !name.contains("pool.name=silent")), "nothing is made up");
    let times = |said: &Series| said[&one("create_time_count", "")];
    assert_eq!(times(&said), 2.0);

    // More than are remembered, and a provider of that name in its place.
    stands(|pool| (0..100).for_each(|_| pool.count_made(Duration::from_millis(1))));
    let said = next(&reader).await;
    assert_eq!(times(&said), 66.0);
    *shared.2.lock().unwrap() = None;
    assert!(!next(&reader).await.contains_key(&idle), "it does not say");
    stands(|pool| pool.errors = 2);
    let said = next(&reader).await;
    assert_eq!(said[&one("errors", ",error.type=connection")], 7.0, "a count never goes back");
    drop(servers);
    assert!(!next(&reader).await.contains_key(&idle));
}
