//! The provider's contract on a real server.
#![allow(clippy::unwrap_used, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cache_core::{
    CacheId, CacheProvider, LevelOp, Put, RawKey, Swapped,
    testing::conformance::{self, Options},
};
use cache_redis::{ErrorKind, RedisProvider};
use common::{RedisServer, get, item, key, kind, put, swap, until, until_async};
use tokio::time::timeout;

const HANG: Duration = Duration::from_secs(20);

fn provider(server: &RedisServer) -> RedisProvider {
    RedisProvider::builder(server.url()).build().unwrap()
}

#[tokio::test]
async fn items_come_back_bit_for_bit_and_in_order() {
    let server = RedisServer::start();
    let provider = provider(&server);
    let all: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let puts = [item("a", &all), item("b", b"\r\n$-1\r\n"), item("c", b"")];
    assert!(provider.put_many(&puts).await.iter().all(Result::is_ok));
    let keys = ["c", "nope", "a", "b", "a"].map(key);
    let found: Vec<Option<Bytes>> = provider.get_many(&keys).await.into_iter().map(Result::unwrap).collect();
    let wanted: [Option<&[u8]>; 5] = [Some(b""), None, Some(&all), Some(b"\r\n$-1\r\n"), Some(&all)];
    assert_eq!(found.iter().map(Option::as_deref).collect::<Vec<_>>(), wanted);
    assert!(provider.get_many(&[]).await.is_empty());
    assert!(provider.put_many(&[]).await.is_empty());
    assert!(provider.remove_many(&[]).await.is_empty());
}

#[test]
fn each_operation_has_the_name_of_a_command() {
    let provider = RedisProvider::builder("redis://127.0.0.1:1").build().unwrap();
    for op in [LevelOp::Get, LevelOp::Acquire, LevelOp::Put, LevelOp::Remove, LevelOp::Swap] {
        let name = provider.command(op, 1);
        assert!(name.chars().all(|c| c.is_ascii_uppercase()), "{op:?}: {name}");
    }
}

#[tokio::test]
async fn b5_removing_twice_succeeds() {
    let server = RedisServer::start();
    let provider = provider(&server);
    put(&provider, "k", "v").await;
    for _ in 0..2 {
        provider.remove(key("k")).await.unwrap();
        assert_eq!(get(&provider, "k").await.unwrap(), None);
    }
}

#[tokio::test]
async fn t10_t11_ttls_are_in_milliseconds_and_never_lost() {
    let server = RedisServer::start();
    let provider = provider(&server);
    let with = |id, ttl| Put { ttl, ..item(id, b"v") };
    provider.put(with("quarter", Duration::from_millis(250))).await.unwrap();
    let pttl: i64 = server.command(&["PTTL", "v:{users:quarter}"]).unwrap();
    assert!((1..=250).contains(&pttl), "{pttl}");

    provider.put(with("short", Duration::from_micros(400))).await.unwrap();
    until("0.4 ms are over", || {
        let pttl: i64 = server.command(&["PTTL", "v:{users:short}"]).unwrap();
        assert_ne!(pttl, -1, "stored without expiry");
        pttl == -2
    });

    provider.put(with("ever", Duration::MAX)).await.unwrap();
    assert_eq!(server.command::<i64>(&["PTTL", "v:{users:ever}"]).unwrap(), -1);
    provider.put(with("eons", Duration::MAX - Duration::from_nanos(1))).await.unwrap();
    assert!(server.command::<i64>(&["PTTL", "v:{users:eons}"]).unwrap() > 0);
    // A put replaces the expiry as well.
    provider.put(with("ever", Duration::from_secs(9))).await.unwrap();
    assert!((1..=9000).contains(&server.command::<i64>(&["PTTL", "v:{users:ever}"]).unwrap()));
}

#[tokio::test]
async fn y4_y7_odd_keys_work_and_stay_apart() {
    let server = RedisServer::start();
    let provider = provider(&server);
    let long = "k".repeat(10_000);
    let long_b = format!("{long}b");
    let ids = [
        "a b",
        "a%20b",
        "a\tb",
        "a\r\nFLUSHALL\r\n",
        "nul\0",
        "\u{7f}",
        "é",
        "e\u{301}",
        "}",
        "{}",
        "a}b",
        "{a}b}:l",
        "*",
        "?[a-z]",
        "#/:*(<+=> )&$%@?;'\"`~-{}()\\",
        &long,
        &long_b,
    ];
    let puts: Vec<Put<'_>> = ids.iter().map(|id| item(id, id.as_bytes())).collect();
    assert!(provider.put_many(&puts).await.iter().all(Result::is_ok));
    for id in ids {
        assert_eq!(get(&provider, id).await.unwrap().as_deref(), Some(id));
    }
    assert_eq!(server.command::<usize>(&["DBSIZE"]).unwrap(), ids.len());
    for id in ids {
        provider.remove(key(id)).await.unwrap();
    }
    for id in ids {
        assert_eq!(get(&provider, id).await.unwrap(), None);
    }
}

#[tokio::test]
async fn m8_a_batch_is_one_command() {
    let server = RedisServer::start();
    let provider = provider(&server);
    let ids: Vec<String> = (0..1300).map(|n| n.to_string()).collect();
    let puts: Vec<Put<'_>> = ids.iter().map(|id| item(id, id.as_bytes())).collect();
    assert!(provider.put_many(&puts).await.iter().all(Result::is_ok));
    let keys: Vec<RawKey<'_>> = ids.iter().map(|id| key(id)).collect();

    provider.get_many(&keys[..100]).await;
    assert_eq!((server.calls("mget"), server.calls("get")), (1, 0));
    // A very large batch does not keep the server from others for long.
    let found = provider.get_many(&keys).await;
    assert_eq!(server.calls("mget"), 1 + 3);
    for (id, found) in ids.iter().zip(found) {
        assert_eq!(found.unwrap().unwrap(), id.as_bytes());
    }
    assert!(provider.remove_many(&keys).await.iter().all(Result::is_ok));
    assert!(provider.get_many(&keys).await.into_iter().all(|found| found.unwrap().is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_list_over_a_socket_and_in_another_database() {
    let server = RedisServer::start();
    let url = format!("unix://{}?db=3", server.socket().display());
    conformance::run(Arc::new(RedisProvider::builder(url).build().unwrap()), Options::default()).await;
}

#[tokio::test]
async fn database_prefix_socket_and_marker() {
    let server = RedisServer::start();
    let url = format!("unix://{}?db=3", server.socket().display());
    let provider = RedisProvider::builder(url).key_prefix("app:").build().unwrap();
    put(&provider, "42", "v").await;
    provider.put(Put { key: RawKey::marker(CacheId(1), "users"), ..item("", b"marker") }).await.unwrap();
    assert!(server.command::<String>(&["INFO", "keyspace"]).unwrap().contains("db3:keys=2"));
    let other = RedisProvider::builder(format!("{}/3", server.url())).build().unwrap();
    assert_eq!(get(&other, "42").await.unwrap(), None);
    let dump = |name: &str| {
        server.command::<String>(&[
            "EVAL",
            &format!("redis.call('select', 3) return redis.call('get', '{name}')"),
            "0",
        ])
    };
    assert_eq!(dump("app:v:{users:42}").unwrap(), "v");
    assert_eq!(dump("app:m:{users}").unwrap(), "marker");
    assert_eq!(other.describe().port, Some(server.port()));
    assert_eq!(other.describe().namespace.as_deref(), Some("3"));
    assert_eq!((provider.describe().system, provider.describe().port), ("redis", None));
}

#[tokio::test]
async fn a_refused_item_leaves_nothing_of_the_old_one() {
    let server = RedisServer::start();
    let provider = RedisProvider::builder(server.url()).value_max(1000).build().unwrap();
    put(&provider, "big", "old").await;
    let results = provider.put_many(&[item("small", b"v"), item("big", &[0; 1001])]).await;
    let [small, big] = <[_; 2]>::try_from(results).unwrap();
    small.unwrap();
    assert_eq!(kind(big), ErrorKind::TooLarge);
    assert_eq!(get(&provider, "big").await.unwrap(), None);
    assert_eq!(get(&provider, "small").await.unwrap().as_deref(), Some("v"));

    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    assert_eq!(kind(provider.put(item("small", b"new")).await), ErrorKind::OutOfMemory);
    assert_eq!(get(&provider, "small").await.unwrap(), None);
}

/// All of a cache is invalidated by its mark. What stands for a removed key would be in the way of whoever gives it another.
#[tokio::test]
async fn a_mark_is_put_without_memory() {
    let server = RedisServer::start();
    let provider = provider(&server);
    let mark = RawKey::marker(CacheId(1), "users");
    let put = |bytes, ttl| provider.put(Put { key: mark, bytes: Bytes::from_static(bytes), ttl });
    put(b"1", Duration::MAX).await.unwrap();
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    put(b"2", Duration::MAX).await.unwrap();
    assert_eq!(provider.get(mark).await.unwrap().as_deref(), Some(b"2".as_slice()));
    assert_eq!(server.command::<i64>(&["PTTL", "m:{users}"]).unwrap(), -1);
    let third = [swap(mark, Some(b"2"), b"3", Duration::MAX)];
    assert_eq!(provider.marks().unwrap().swap(&third).await.unwrap(), Swapped::Done);
    put(b"4", HANG).await.unwrap();
    assert!(server.command::<i64>(&["PTTL", "m:{users}"]).unwrap() > 0);
}

#[tokio::test]
async fn a_foreign_type_is_a_miss_and_is_replaced() {
    let server = RedisServer::start();
    let provider = provider(&server);
    server.command::<()>(&["LPUSH", "v:{users:k}", "x"]).unwrap();
    assert_eq!(get(&provider, "k").await.unwrap(), None);
    assert!(provider.get_many(&[key("k")]).await.remove(0).unwrap().is_none());
    put(&provider, "k", "v").await;
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
}

/// As somebody may have put it there by hand.
#[tokio::test]
async fn what_is_no_mark_gives_way_to_one() {
    let server = RedisServer::start();
    let provider = RedisProvider::builder(server.url()).value_max(1 << 20).build().unwrap();
    let (mark, tag) = (RawKey::marker(CacheId(1), "users"), RawKey::tag(CacheId(1), "users", "x"));
    let huge = "x".repeat(2 << 20);
    for by_hand in ["\0removed", &huge, &huge[..2000]] {
        for (key, name) in [(mark, "m:{users}"), (tag, "t:{users}:x")] {
            server.command::<()>(&["SET", name, by_hand]).unwrap();
            let swapped =
                provider.marks().unwrap().swap(&[swap(key, None, b"1", Duration::from_secs(60))]).await;
            assert_eq!(swapped.unwrap(), Swapped::Done, "{name}");
        }
    }
}

#[tokio::test]
async fn wrong_credentials_are_a_typed_error_without_the_password() {
    let server = RedisServer::with(&[], Some("hunter2"));
    put(&provider(&server), "k", "v").await;
    for url in [
        format!("redis://:letmein99@127.0.0.1:{}", server.port()),
        format!("redis://127.0.0.1:{}", server.port()),
    ] {
        let provider = RedisProvider::builder(url).build().unwrap();
        let error = provider.connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth, "{error:?}");
        assert_eq!(kind(provider.get(key("k")).await), ErrorKind::Auth);
        let shown = format!("{error} {error:?} {provider:?}");
        assert!(!shown.contains("letmein99") && !shown.contains("hunter2"), "{shown}");
    }
    // What cannot be put into a URL as it is goes through the builder.
    let provider =
        RedisProvider::builder(format!("redis://:wrong@127.0.0.1:{}", server.port())).password("hunter2");
    assert!(!format!("{provider:?}").contains("hunter2"));
    let provider = provider.build().unwrap();
    provider.connect().await.unwrap();
    assert!(!format!("{provider:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_missing_permission_is_a_typed_error() {
    let server = RedisServer::start();
    server.command::<()>(&["ACL", "SETUSER", "ann", "on", ">pw", "~*", "+get", "+mget"]).unwrap();
    let url = format!("redis://ann:pw@127.0.0.1:{}", server.port());
    let provider = RedisProvider::builder(url).build().unwrap();
    assert_eq!(get(&provider, "secret-id").await.unwrap(), None, "a user who may only read can connect");
    let error = provider.put(item("secret-id", b"v")).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("secret-id"));
    assert_eq!(kind(Err::<(), _>(error)), ErrorKind::Denied);
}

#[tokio::test]
async fn a_database_that_is_not_there() {
    let server = RedisServer::start();
    for url in [format!("{}/99", server.url()), format!("unix://{}?db=99", server.socket().display())] {
        let error = RedisProvider::builder(url).build().unwrap().connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().starts_with("database = 99: "), "{error}");
    }
}

#[tokio::test]
async fn a_cluster_node_with_a_database() {
    let server = RedisServer::with(&["--cluster-enabled", "yes"], None);
    for database in ["", "/1"] {
        let url = format!("{}{database}", server.url());
        let error = RedisProvider::builder(url).build().unwrap().connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        let text = error.to_string();
        assert!(text.starts_with("url = ") && text.contains("redis+cluster://"), "{text}");
    }
}

#[test]
fn bad_settings_name_field_and_fix() {
    let url = "redis://127.0.0.1:1";
    for (builder, field) in [
        (RedisProvider::builder("memcached://x"), "url"),
        (RedisProvider::builder(url).key_prefix("a{b}"), "key_prefix"),
        (RedisProvider::builder(url).connect_timeout(Duration::ZERO), "connect_timeout"),
        (RedisProvider::builder(url).response_timeout(Duration::MAX), "response_timeout"),
        (RedisProvider::builder(url).value_max(0), "value_max"),
        (RedisProvider::builder(url).heartbeat(Duration::ZERO), "heartbeat"),
        (RedisProvider::builder(url).heartbeat_timeout(Duration::MAX), "heartbeat_timeout"),
        (RedisProvider::builder(url).username("ann"), "password"),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(&format!("{field} = ")), "{error}");
    }
}

#[test]
fn built_outside_of_a_runtime_and_used_on_several() {
    let server = RedisServer::start();
    let provider = provider(&server);
    assert_eq!(kind(futures::executor::block_on(provider.get(key("k")))), ErrorKind::NoRuntime);
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for round in 0..3 {
        let runtime = runtime();
        runtime.block_on(async {
            put(&provider, "k", &round.to_string()).await;
            assert_eq!(get(&provider, "k").await.unwrap(), Some(round.to_string()));
        });
        // The connection lived on this runtime and ends with it.
        drop(runtime);
    }
}

/// Some end in the middle of look-ups.
#[test]
fn runtimes_come_and_go() {
    let server = RedisServer::start();
    let provider = provider(&server);
    for n in 0..60 {
        let mut runtime = match n % 2 {
            0 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            for task in 0..20 {
                let provider = provider.clone();
                tokio::spawn(async move {
                    loop {
                        let _ = get(&provider, &task.to_string()).await;
                    }
                });
            }
            timeout(HANG, put(&provider, "k", "v")).await.unwrap();
            let found = timeout(HANG, get(&provider, "k")).await.unwrap();
            assert_eq!(found.unwrap().as_deref(), Some("v"));
            // Each ends at another point of what the tasks do.
            tokio::time::sleep(Duration::from_millis(n % 7)).await;
        });
    }
    drop(provider);
    until("no client is left", || {
        server.command::<String>(&["INFO", "clients"]).unwrap().contains("connected_clients:1\r")
    });
}

#[tokio::test]
async fn close_and_drop_give_the_connection_up() {
    let server = RedisServer::start();
    let connected = || server.command::<String>(&["CLIENT", "LIST"]).unwrap().lines().count() > 1;
    let first = provider(&server);
    first.ping().await.unwrap();
    assert!(connected());
    first.close().await;
    first.close().await;
    until("closed", || !connected());
    assert_eq!(kind(first.get(key("k")).await), ErrorKind::Closed);
    assert_eq!(kind(first.put(item("k", b"v")).await), ErrorKind::Closed);
    assert_eq!(kind(first.ping().await), ErrorKind::Closed);

    let second = provider(&server);
    let clone = second.clone();
    clone.ping().await.unwrap();
    drop(second);
    clone.ping().await.unwrap();
    drop(clone);
    until_async("dropped", || async { !connected() }).await;
}

#[tokio::test]
async fn the_servers_clock_is_known() {
    let server = RedisServer::start();
    let provider = provider(&server);
    assert_eq!(provider.time_offset_ms(), 0);
    provider.connect().await.unwrap();
    assert!(provider.time_offset_ms().abs() < 1000, "one machine, one clock");
    assert!(format!("{provider:?}").contains("run_id"));
}
