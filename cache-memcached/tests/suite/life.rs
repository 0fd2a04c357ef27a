//! The life item: what a restart, a rollback or a long absence of a server must not bring back.

use std::time::{Duration, Instant};

use super::common::{Server, builder, eventually, item, key, kind, provider};
use cache_core::{Acquire, Acquired, CacheProvider, EntryId, Fill, Holding, Lease};
use cache_memcached::{ErrorKind, MemcachedProvider};

const LONG: Duration = Duration::from_secs(100);

async fn granted(cache: &MemcachedProvider, holding: Holding) -> Lease {
    let wish = Acquire { key: key("k"), holding };
    match cache.leases().unwrap().acquire_many(&[wish], LONG).await.remove(0).unwrap() {
        Acquired::Granted(lease) => lease,
        other => panic!("{other:?}"),
    }
}

async fn fill(cache: &MemcachedProvider, bytes: &[u8], lease: &Lease) -> bool {
    let fill = Fill { put: item("k", bytes), lease: lease.clone() };
    cache.leases().unwrap().fill_many(&[fill]).await.remove(0).unwrap()
}

/// Bytes of the life item; restarts of the server, or its end, change them.
fn life(server: &Server) -> String {
    server.raw(b"mg ~life v\r\n")
}

/// As when nobody could reach the server for longer than the life item stays.
fn end_life(server: &Server) {
    // Before 1.6.18, with a space.
    assert_eq!(server.raw(b"md ~life\r\n").trim_end(), "HD");
}

/// Versions start at 1 again: without the life item, the late fill would be stored as fresh.
#[tokio::test]
async fn a_fill_whose_lease_is_older_than_the_server_is_refused() {
    let server = Server::start();
    let (first, second) = (provider(&server), provider(&server));
    let late = granted(&first, Holding::Nothing).await;
    server.restart();
    let next = granted(&second, Holding::Nothing).await;
    assert_eq!(late.0[8..], next.0[8..], "the same version: that is the danger");
    assert!(!fill(&first, b"old", &late).await);
    assert!(second.get(key("k")).await.unwrap().is_none());
    assert!(fill(&second, b"new", &next).await);
    assert_eq!(first.get(key("k")).await.unwrap().unwrap(), "new");
}

#[tokio::test]
async fn a_lease_of_another_life_is_refused_renewed_and_released_without_effect() {
    let server = Server::start();
    let cache = provider(&server);
    let lease = granted(&cache, Holding::Nothing).await;
    end_life(&server);
    cache.ping().await.unwrap();
    let leases = cache.leases().unwrap();
    assert!(leases.renew_many(&[(key("k"), lease.clone())], LONG).await.remove(0).is_ok());
    assert!(leases.release_many(&[(key("k"), lease.clone())]).await.remove(0).is_ok());
    assert!(server.raw(b"mg ns:k s\r\n").starts_with("HD s0"), "the placeholder is there");
    assert!(!fill(&cache, b"late", &lease).await, "though nothing has touched it");
}

#[tokio::test]
async fn entries_of_another_life_are_a_miss_for_all_and_are_replaced() {
    let server = Server::start();
    let (old, new) = (provider(&server), provider(&server));
    old.put(item("k", &[b'.'; 80])).await.unwrap();
    assert!(new.get(key("k")).await.unwrap().is_some());
    end_life(&server);
    // One that comes later sees it at once, the others within seconds.
    let later = provider(&server);
    assert!(later.get(key("k")).await.unwrap().is_none());
    for cache in [&old, &new] {
        eventually("it is noticed", async || cache.get(key("k")).await.unwrap().is_none()).await;
    }
    let held = Holding::Entry(EntryId(u64::from_le_bytes([b'.'; 8])));
    let lease = granted(&old, held).await;
    assert!(fill(&old, b"v", &lease).await);
    for cache in [&old, &new, &later] {
        assert_eq!(cache.get(key("k")).await.unwrap().unwrap(), "v");
    }
}

/// Who has not yet noticed must not take another's fresh entry for an old one.
#[tokio::test]
async fn an_entry_of_a_life_not_yet_known_is_found() {
    let server = Server::start();
    let slow = provider(&server);
    assert!(slow.get(key("k")).await.unwrap().is_none());
    end_life(&server);
    let quick = provider(&server);
    quick.put(item("k", b"new")).await.unwrap();
    let wish = Acquire { key: key("k"), holding: Holding::Nothing };
    let answer = slow.leases().unwrap().acquire_many(&[wish], LONG).await.remove(0).unwrap();
    assert!(matches!(answer, Acquired::Found(bytes) if bytes == "new"));
}

#[tokio::test]
async fn a_restarted_server_gets_a_life_that_all_agree_on() {
    let server = Server::start();
    let caches: Vec<_> = (0..8).map(|_| provider(&server)).collect();
    for _ in 0..3 {
        let before = life(&server);
        server.restart();
        // A read finds out that the connection is lost; a write on it would be in doubt.
        let puts = caches.iter().map(async |cache| {
            cache.get(key("k")).await.unwrap();
            cache.put(item("k", b"v")).await.unwrap();
        });
        futures::future::join_all(puts).await;
        assert_ne!(life(&server), before);
        for cache in &caches {
            assert_eq!(cache.get(key("k")).await.unwrap().unwrap(), "v");
        }
    }
}

#[tokio::test]
async fn a_foreign_life_item_is_replaced() {
    let server = Server::start();
    for foreign in ["hello", "", "E1234567", "V12345678"] {
        server.raw(format!("ms ~life {}\r\n{foreign}\r\n", foreign.len()).as_bytes());
        let cache = provider(&server);
        cache.put(item("k", b"v")).await.unwrap();
        assert_eq!(provider(&server).get(key("k")).await.unwrap().unwrap(), "v");
        assert!(life(&server).starts_with("VA 9\r\nE"));
    }
}

#[tokio::test]
async fn prefixes_have_lives_of_their_own() {
    let server = Server::start();
    let cache = builder(server.url()).key_prefix("app:").build().unwrap();
    cache.put(item("k", b"v")).await.unwrap();
    assert_eq!(life(&server), "EN\r\n");
    assert!(server.raw(b"mg app:~life v\r\n").starts_with("VA 9\r\nE"));
}

#[tokio::test]
async fn it_is_kept_alive_while_the_provider_is_there_used_or_not() {
    let server = Server::start();
    let cache = provider(&server);
    cache.put(item("k", b"v")).await.unwrap();
    let before = life(&server);
    // Nobody calls: its end is put off all the same.
    for _ in 0..2 {
        assert!(server.raw(b"mg ~life T15 t\r\n").starts_with("HD t15"));
        eventually("it is put off", async || server.ttl("~life") > 20).await;
    }
    assert_eq!(life(&server), before);
    assert_eq!(cache.get(key("k")).await.unwrap().unwrap(), "v");
    drop(cache);
    eventually("nobody is left", async || server.number("curr_connections") <= 2).await;
}

#[tokio::test]
async fn a_hit_costs_one_command() {
    let server = Server::start();
    let cache = provider(&server);
    cache.put(item("k", b"v")).await.unwrap();
    let asked = || server.number("cmd_get") + server.number("cmd_touch");
    let (before, start) = (asked(), Instant::now());
    for _ in 0..1_000 {
        assert!(cache.get(key("k")).await.unwrap().is_some());
    }
    let polls = i64::try_from(start.elapsed().as_secs()).unwrap() + 1;
    let asked = asked() - before;
    assert!((1_000..=1_000 + 2 * polls).contains(&asked), "{asked}");
}

#[tokio::test]
async fn a_server_whose_life_cannot_be_read_has_no_values() {
    use super::common::fake::{Fake, answer, asks_for_life, opaque};
    let fake = Fake::start(|mut peer, _| async move {
        while let Some(line) = peer.line().await {
            // Takes any item, and keeps no life.
            let reply = match &line {
                line if asks_for_life(line) => format!("EN{}\r\n", opaque(line)),
                line if line.starts_with("ms ") => format!("HD{}\r\n", opaque(line)),
                line if line.starts_with("mg ") => answer(line),
                _ => continue,
            };
            peer.say(reply.as_bytes()).await;
        }
    })
    .await;
    let cache = builder(fake.url()).build().unwrap();
    assert_eq!(kind(cache.get(key("k")).await), ErrorKind::Protocol);
    assert_eq!(kind(cache.put(item("k", b"v")).await), ErrorKind::Protocol);
    assert_eq!(kind(cache.ping().await), ErrorKind::Protocol);
    assert!(cache.remove(key("k")).await.is_ok(), "an invalidation needs no life");
}

/// The probe of a breaker that is half open, too.
#[tokio::test]
async fn a_poll_closes_the_breaker() {
    let server = Server::start();
    let cache = builder(server.url()).breaker(1, LONG * 100).build().unwrap();
    cache.put(item("k", b"v")).await.unwrap();
    server.kill();
    assert_eq!(kind(cache.get(key("k")).await), ErrorKind::Connect);
    assert_eq!(kind(cache.get(key("k")).await), ErrorKind::Sick);
    server.restart();
    eventually("it is used", async || cache.get(key("k")).await.is_ok()).await;
}

/// The task that polls may live on a runtime that nobody drives any more.
#[test]
fn what_was_read_long_ago_is_not_trusted_though_nobody_polls() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let port = test_servers::free_port();
    let cache = builder(format!("memcached://127.0.0.1:{port}")).build().unwrap();
    let asleep = runtime();
    // This starts the task, and no connection.
    assert_eq!(kind(asleep.block_on(cache.get(key("k")))), ErrorKind::Connect);
    let server = Server::on(port);
    runtime().block_on(async {
        eventually("it is up", async || cache.put(item("k", b"v")).await.is_ok()).await;
        assert!(cache.get(key("k")).await.unwrap().is_some());
        end_life(&server);
        eventually("it is noticed", async || cache.get(key("k")).await.unwrap().is_none()).await;
    });
    drop(asleep);
}
