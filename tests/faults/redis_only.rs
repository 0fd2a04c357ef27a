//! What only Redis does: refusing writes for want of memory, as a replica, while loading, or without a password.

use std::time::Duration;

use test_servers::RedisServer;
use traced_cache::{
    Level, Memory, Policy, RedisProvider, TracedCache,
    testing::{Recorded, Recorder},
};

use crate::{
    ride::{Caller, Fault, ride},
    servers::{BUDGET, Backend, Server, blocking, until},
};

fn command(backend: &Backend, parts: &[&str]) {
    let Server::Redis(server) = &backend.server else { return };
    blocking(|| server.command::<()>(parts)).unwrap();
}

fn redis() -> Option<Backend> {
    Backend::redis()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_memory_with_noeviction() {
    let Some(backend) = redis() else { return };
    // Invalidations need no memory, so a server out of it confirms them: the ride's own check of that is not for here.
    let seen = Recorder::new();
    let (node, bare) = (Caller::new(backend.node(&seen)), Caller::new(backend.bare()));
    node.ask("warm").await;
    until("the level is filled", || async { bare.look("warm").await.is_some_and(|found| found.is_hit()) })
        .await;
    command(&backend, &["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    command(&backend, &["CONFIG", "SET", "maxmemory", "1"]);
    for n in 0..30 {
        let key = format!("cold {n}");
        node.ask(&key).await;
        assert_eq!(node.ask(&key).await.level(), Some(0));
        bare.ask(&key).await;
    }
    assert!(seen.count(|e| matches!(e, Recorded::Level { fault: Some(_), .. })) > 0);
    // A value that the server refuses must not leave the one before.
    let old = node.cache.set("warm", "new".to_owned()).await.unwrap();
    assert!(!old.is_confirmed(), "the server cannot have taken it");
    until("the old value is gone", || async {
        let other = Caller::new(backend.bare());
        other.look("warm").await.is_some_and(|found| found.value().is_none())
    })
    .await;
    command(&backend, &["CONFIG", "SET", "maxmemory", "0"]);
    let mut round = 0;
    until("the level is used again", || {
        round += 1;
        let (node, bare, key) = (&node, &bare, format!("again {round}"));
        async move {
            bare.ask(&key).await;
            node.look(&key).await.is_some_and(|found| found.is_hit() && found.level() == Some(1))
        }
    })
    .await;
    until("nothing is pending", || async { node.cache.stats().pending == 0 }).await;
    node.adds_up();
    bare.adds_up();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readonly_replies() {
    let Some(backend) = redis() else { return };
    // A replica of nobody: it keeps its data, answers reads, refuses writes.
    let fault = Fault::new(
        |backend| command(backend, &["REPLICAOF", "127.0.0.1", "1"]),
        |backend| command(backend, &["REPLICAOF", "NO", "ONE"]),
    );
    ride(&backend, fault.of_writes()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loading_replies() {
    let builder = RedisServer::builder().append_only().args([
        "--key-load-delay",
        "10000",
        "--loading-process-events-interval-bytes",
        "1024",
    ]);
    let Some(server) = builder.start() else { return };
    let filler = "x".repeat(4096);
    blocking(|| {
        for n in 0..200 {
            server.command::<()>(&["SET", &format!("filler {n}"), &filler]).unwrap();
        }
        server.command::<()>(&["BGREWRITEAOF"]).unwrap();
    });
    until("rewritten", || async {
        let info: String = blocking(|| server.command(&["INFO", "persistence"])).unwrap();
        info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0")
    })
    .await;
    let backend = std::sync::Arc::new(Backend::of_redis(server));
    let seen = Recorder::new();
    let node = Caller::new(backend.node(&seen));
    node.ask("warm").await;
    let loading = tokio::task::spawn_blocking({
        let backend = std::sync::Arc::clone(&backend);
        // Returns when the data is loaded.
        move || backend.restart()
    });
    let mut n = 0;
    while !loading.is_finished() {
        n += 1;
        node.ask(&format!("cold {n}")).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    loading.await.unwrap();
    let told = seen.count(|event| {
        matches!(event, Recorded::Level { error: Some(error), .. } if error.to_lowercase().contains("loading"))
    });
    assert!(told > 0, "it was asked while it loaded: {n} calls");
    let bare = Caller::new(backend.bare());
    let mut round = 0;
    until("the level is used again", || {
        round += 1;
        let (node, bare, key) = (&node, &bare, format!("again {round}"));
        async move {
            bare.ask(&key).await;
            node.look(&key).await.is_some_and(|found| found.is_hit() && found.level() == Some(1))
        }
    })
    .await;
    node.adds_up();
    bare.adds_up();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_password() {
    let Some(server) = RedisServer::builder().password("right").start() else { return };
    let seen = Recorder::new();
    let with = |url: String| {
        let provider = RedisProvider::builder(url).build().unwrap();
        TracedCache::builder("faults")
            .policy(Policy::ttl(Duration::from_secs(600)))
            .observer(seen.clone())
            .level(Memory::entries(1_000))
            .level(Level::new(provider).budget(BUDGET))
            .build()
            .unwrap()
    };
    for url in [
        format!("redis://127.0.0.1:{}", server.port()),
        format!("redis://:wrong@127.0.0.1:{}", server.port()),
    ] {
        let node = Caller::new(with(url));
        for n in 0..30 {
            let key = format!("cold {n}");
            node.ask(&key).await;
            assert_eq!(node.ask(&key).await.level(), Some(0));
        }
        assert!(!node.cache.invalidate("cold 1").await.unwrap().is_confirmed());
        node.adds_up();
    }
    let shown = format!("{:?}", seen.events());
    assert!(!shown.contains("wrong") && !shown.contains("right"), "credentials stay out of errors");
    // The password is set to what the cache uses: it is let in without a restart.
    let node = Caller::new(with(format!("redis://:later@127.0.0.1:{}", server.port())));
    node.ask("before").await;
    blocking(|| server.command::<()>(&["CONFIG", "SET", "requirepass", "later"])).unwrap();
    let other = Caller::new(with(format!("redis://:later@127.0.0.1:{}", server.port())));
    let mut round = 0;
    until("the level is used", || {
        round += 1;
        let (node, other, key) = (&node, &other, format!("again {round}"));
        async move {
            node.ask(&key).await;
            other.look(&key).await.is_some_and(|found| found.is_hit())
        }
    })
    .await;
}
