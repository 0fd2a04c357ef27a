//! R16: a level that comes and goes every 100 ms under 50 writers. R17: one that was never there.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use traced_cache::{
    CacheProvider, Level, MemcachedProvider, Memory, RedisProvider, TracedCache, testing::Recorder,
};

use crate::{
    ride::Caller,
    servers::{Backend, until},
};

async fn flap(backend: Backend) {
    let backend = Arc::new(backend);
    let seen = Recorder::new();
    let nodes = [backend.bare(), backend.bare(), backend.node(&seen)];
    let confirmed = Arc::new(Mutex::new(HashSet::new()));
    let end = Instant::now() + Duration::from_secs(4);
    let writers: Vec<_> = (0..50)
        .map(|writer| {
            let (cache, confirmed) = (nodes[writer % nodes.len()].clone(), Arc::clone(&confirmed));
            tokio::spawn(async move {
                let mut round = 0;
                while Instant::now() < end {
                    round += 1;
                    let value = format!("{writer}.{round}");
                    let started = Instant::now();
                    if cache.set("k", value.clone()).await.is_ok_and(|delivery| delivery.is_confirmed()) {
                        confirmed.lock().unwrap().insert(value);
                    }
                    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                round
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    while Instant::now() < end {
        backend.proxy.refuse();
        tokio::time::sleep(Duration::from_millis(100)).await;
        backend.proxy.pass();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut writes = 0;
    for writer in writers {
        writes += writer.await.unwrap();
    }
    // Up for good: everything in doubt is delivered, and all nodes see one value, which was confirmed, or none.
    let ([first, second, third], confirmed) = (nodes, confirmed.lock().unwrap().clone());
    assert!(!confirmed.is_empty() && confirmed.len() <= writes);
    for cache in [&first, &second, &third] {
        until("delivered", || async { cache.stats().pending == 0 }).await;
    }
    let (first, second) = (Caller::new(first), Caller::new(second));
    let mut agreed = None;
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < deadline, "the nodes do not agree");
        if let (Some(one), Some(two)) = (first.look("k").await, second.look("k").await)
            && one.value() == two.value()
        {
            agreed.clone_from(&one.into_value());
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if let Some(value) = agreed {
        assert!(confirmed.contains(&*value), "{value} was never confirmed");
    }
    // And it works: a write is confirmed and seen by the other node.
    until("a write is confirmed", || async {
        first.cache.set("k", "last".to_owned()).await.is_ok_and(|delivery| delivery.is_confirmed())
    })
    .await;
    assert_eq!(second.look("k").await.unwrap().into_value().as_deref().map(String::as_str), Some("last"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r16_redis() {
    let Some(backend) = Backend::redis() else { return };
    flap(backend).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r16_memcached() {
    let Some(backend) = Backend::memcached() else { return };
    flap(backend).await;
}

/// One connection lost does not fail the requests after it: no error, no load, no breaker.
async fn lose_connections(backend: Backend) {
    let seen = Recorder::new();
    let filler = Caller::new(backend.node(&seen));
    for n in 0..20 {
        filler.ask(&n.to_string()).await;
    }
    let bare = Caller::new(backend.bare());
    until("it reads", || async { bare.look("0").await.is_some_and(|found| found.is_hit()) }).await;
    for n in 0..20 {
        backend.proxy.cut();
        for key in [n, (n + 1) % 20] {
            let found = bare.ask(&key.to_string()).await;
            assert!(found.is_hit(), "round {n}: {:?}", found.outcome());
        }
    }
    assert_eq!(bare.loads(), 0);
    bare.adds_up();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_fails_nothing_redis() {
    let Some(backend) = Backend::redis() else { return };
    lose_connections(backend).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_fails_nothing_memcached() {
    let Some(backend) = Backend::memcached() else { return };
    lose_connections(backend).await;
}

/// Nothing listens there, and a cache is built and answers all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r17_a_server_that_was_never_there() {
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let redis = RedisProvider::builder(format!("redis://127.0.0.1:{gone}")).build().unwrap();
    let memcached = MemcachedProvider::builder(format!("memcached://127.0.0.1:{gone}")).build().unwrap();
    let providers: [Arc<dyn CacheProvider>; 2] = [Arc::new(redis), Arc::new(memcached)];
    for provider in providers {
        let cache = TracedCache::builder("faults")
            .level(Memory::entries(1_000))
            .level(Level::new(provider))
            .build()
            .unwrap();
        let caller = Caller::new(cache);
        for n in 0..20 {
            let key = n.to_string();
            caller.ask(&key).await;
            assert_eq!(caller.ask(&key).await.level(), Some(0));
        }
        caller.adds_up();
    }
}
