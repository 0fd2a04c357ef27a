//! Behaviour against a real memcached, by scenario.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::common::{HOUR, Server, builder, eventually, item, key, kind, provider};
use bytes::Bytes;
use cache_core::{CacheId, CacheProvider, Put, RawKey};
use cache_memcached::{ErrorKind, MemcachedProvider};

#[tokio::test]
async fn b1_miss_then_bytes_come_back_bit_for_bit() {
    let server = Server::start();
    let cache = provider(&server);
    assert!(cache.get(key("k")).await.unwrap().is_none());
    let bytes: Vec<u8> = (0..=255u8).chain(*b"\r\nEN\r\nVA 3\r\n").collect();
    cache.put(item("k", &bytes)).await.unwrap();
    assert_eq!(cache.get(key("k")).await.unwrap().unwrap(), bytes);
    cache.put(item("k", b"new")).await.unwrap();
    assert_eq!(cache.get(key("k")).await.unwrap().unwrap(), &b"new"[..]);
    // Another cache id is the same item, another namespace is not.
    assert!(cache.get(RawKey::new(CacheId(9), "ns", "k")).await.unwrap().is_some());
    assert!(cache.get(RawKey::new(CacheId(1), "ns2", "k")).await.unwrap().is_none());
}

#[tokio::test]
async fn b5_removing_twice_succeeds() {
    let server = Server::start();
    let cache = provider(&server);
    cache.put(item("k", b"v")).await.unwrap();
    cache.remove(key("k")).await.unwrap();
    cache.remove(key("k")).await.unwrap();
    assert!(cache.get(key("k")).await.unwrap().is_none());
}

#[tokio::test]
async fn m1_an_empty_batch_asks_nobody() {
    let cache = builder("memcached://127.0.0.1:1").build().unwrap();
    assert!(cache.get_many(&[]).await.is_empty());
    assert!(cache.put_many(&[]).await.is_empty());
    assert!(cache.remove_many(&[]).await.is_empty());
}

#[tokio::test]
async fn m8_a_batch_is_one_exchange_and_answers_in_order() {
    let server = Server::start();
    let before = server.number("total_connections");
    let cache = provider(&server);
    let ids: Vec<String> = (0..100).map(|i| format!("id-{i}")).collect();
    let items: Vec<_> = ids.iter().step_by(2).map(|id| item(id, id.as_bytes())).collect();
    assert!(cache.put_many(&items).await.iter().all(Result::is_ok));
    let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
    for (i, got) in cache.get_many(&keys).await.into_iter().enumerate() {
        let expected = (i % 2 == 0).then(|| Bytes::from(ids[i].clone()));
        assert_eq!(got.unwrap(), expected);
    }
    assert!(cache.remove_many(&keys).await.iter().all(Result::is_ok));
    assert!(cache.get_many(&keys).await.iter().all(|r| matches!(r, Ok(None))));
    // One connection of ours, and the one that asks.
    assert_eq!(server.number("total_connections") - before, 2);
}

#[tokio::test]
async fn m8_large_batches_do_not_block_on_full_buffers() {
    let server = Server::with(&["-m", "512"]);
    // The point is that it ends at all; 80 MB may take their time on a busy machine.
    let cache = builder(server.url()).response_timeout(HOUR).build().unwrap();
    let ids: Vec<String> = (0..4_000).map(|i| format!("{i}-{}", "k".repeat(200))).collect();
    let value = vec![7; 20_000];
    let items: Vec<_> = ids.iter().map(|id| item(id, &value)).collect();
    assert!(cache.put_many(&items).await.iter().all(Result::is_ok));
    let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
    let got = cache.get_many(&keys).await;
    assert!(got.iter().all(|r| r.as_ref().unwrap().as_ref().unwrap() == &value));
}

#[tokio::test]
async fn t13_300_ms_become_one_second_not_for_ever() {
    let server = Server::start();
    let cache = provider(&server);
    cache.put(Put { ttl: Duration::from_millis(300), ..item("k", b"v") }).await.unwrap();
    assert_eq!(server.ttl("ns:k"), 1);
    eventually("it expires", async || cache.get(key("k")).await.unwrap().is_none()).await;
}

#[tokio::test]
async fn t14_thirty_days_and_a_second_is_readable() {
    let server = Server::start();
    let cache = provider(&server);
    let month = Duration::from_secs(2_592_000);
    cache.put(Put { ttl: month, ..item("a", b"v") }).await.unwrap();
    cache.put(Put { ttl: month + Duration::from_secs(1), ..item("b", b"v") }).await.unwrap();
    assert!(cache.get(key("a")).await.unwrap().is_some());
    assert!(cache.get(key("b")).await.unwrap().is_some());
    // The server counts whole seconds by a clock of its own.
    assert!((2_591_990..=2_592_000).contains(&server.ttl("ns:a")));
    assert!((2_591_990..=2_592_002).contains(&server.ttl("ns:b")));
}

#[tokio::test]
async fn t16_a_hundred_years_and_for_ever_do_not_wrap() {
    let server = Server::start();
    let cache = provider(&server);
    for (id, ttl) in [("century", Duration::from_secs(100 * 365 * 86_400)), ("max", Duration::MAX)] {
        cache.put(Put { ttl, ..item(id, b"v") }).await.unwrap();
        assert!(cache.get(key(id)).await.unwrap().is_some(), "{id}");
        assert_eq!(server.ttl(&format!("ns:{id}")), -1);
    }
    // The last second that the server knows.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let ttl = Duration::from_secs(i32::MAX as u64 - now - 60);
    cache.put(Put { ttl, ..item("2038", b"v") }).await.unwrap();
    assert!(cache.get(key("2038")).await.unwrap().is_some());
    assert!(server.ttl("ns:2038") > 300 * 86_400);
}

#[tokio::test]
async fn y1_250_bytes_pass_as_they_are_251_are_shortened() {
    let server = Server::start();
    let cache = builder(server.url()).key_prefix("app:").build().unwrap();
    let id = "k".repeat(250 - "app:ns:".len());
    cache.put(item(&id, b"250")).await.unwrap();
    assert!(holds(&server, &format!("mg app:ns:{id} v\r\n"), "250"));
    let longer = id.clone() + "k";
    cache.put(item(&longer, b"251")).await.unwrap();
    assert_eq!(cache.get(key(&longer)).await.unwrap().unwrap(), &b"251"[..]);
    assert_eq!(cache.get(key(&id)).await.unwrap().unwrap(), &b"250"[..]);
    assert_eq!(cache.capabilities().key_max, Some(246));
}

#[tokio::test]
async fn y2_long_keys_that_differ_at_the_end_are_distinct() {
    let server = Server::start();
    let cache = provider(&server);
    for base in ["k".repeat(999), "k ".repeat(499), "é".repeat(499)] {
        let (a, b) = (base.clone() + "a", base + "b");
        cache.put(item(&a, b"a")).await.unwrap();
        cache.put(item(&b, b"b")).await.unwrap();
        assert_eq!(cache.get(key(&a)).await.unwrap().unwrap(), &b"a"[..]);
        assert_eq!(cache.get(key(&b)).await.unwrap().unwrap(), &b"b"[..]);
    }
}

/// Whether the answer is an entry with these bytes behind its tag and life.
fn holds(server: &Server, request: &str, bytes: &str) -> bool {
    let answer = server.raw(request.as_bytes());
    answer.starts_with(&format!("VA {}\r\nV", bytes.len() + 9)) && answer.ends_with(&format!("{bytes}\r\n"))
}

/// Each id is another item, alone and in batches, and each reads back.
async fn all_distinct(cache: &MemcachedProvider, ids: &[&str]) {
    for (i, id) in ids.iter().enumerate() {
        cache.put(item(id, format!("v{i}").as_bytes())).await.unwrap();
    }
    for (i, id) in ids.iter().enumerate() {
        assert_eq!(cache.get(key(id)).await.unwrap().unwrap(), format!("v{i}"), "{id:?}");
    }
    let items: Vec<_> = ids.iter().map(|id| item(id, id.as_bytes())).collect();
    assert!(cache.put_many(&items).await.iter().all(Result::is_ok));
    let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
    for (id, got) in ids.iter().zip(cache.get_many(&keys).await) {
        assert_eq!(got.unwrap().unwrap(), id.as_bytes(), "{id:?}");
    }
    assert!(cache.remove_many(&keys).await.iter().all(Result::is_ok));
    for id in ids {
        assert!(cache.get(key(id)).await.unwrap().is_none(), "{id:?}");
    }
}

#[tokio::test]
async fn y4_odd_bytes_round_trip_and_cannot_inject() {
    let server = Server::start();
    let cache = provider(&server);
    let limit = " ".repeat(183);
    let over = " ".repeat(184);
    all_distinct(
        &cache,
        &[
            "a b", "a%20b", "a+b", "a  b", "a\tb", "a\r\nb", "a\rb", "a\nb", "a\0b", "a\x7fb", "a\x1bb",
            "\u{85}", "YSBi", "bnM6YSBi", " ", "b", "k v", "k b", "k O1", &limit, &over,
        ],
    )
    .await;
    let attack = "x\r\nms injected 3\r\nbad\r\nmg y";
    cache.put(item(attack, b"harmless")).await.unwrap();
    cache.get(key(attack)).await.unwrap().unwrap();
    cache.remove(key(attack)).await.unwrap();
    assert_eq!(server.raw(b"mg injected v\r\n"), "EN\r\n");
    // Other clients see the raw bytes.
    cache.put(item("a b", b"v")).await.unwrap();
    assert!(holds(&server, "mg bnM6YSBi v b\r\n", "v"));
}

#[tokio::test]
async fn y5_composed_and_decomposed_are_two_keys() {
    let server = Server::start();
    all_distinct(&provider(&server), &["\u{e9}", "e\u{301}", "日本語", "😀"]).await;
}

#[tokio::test]
async fn y7_absurd_characters_work() {
    let server = Server::start();
    let absurd = "#/:*(<+=> )&$%@?;'\"`~-{}()\\";
    let plain = absurd.replace(' ', "");
    all_distinct(&provider(&server), &[absurd, &plain, "{a}", "a*", "v", "q", "-1"]).await;
}

#[tokio::test]
async fn y8_case_matters() {
    let server = Server::start();
    all_distinct(&provider(&server), &["Foo", "foo"]).await;
}

#[tokio::test]
async fn y_the_marker_is_a_key_of_its_own() {
    let server = Server::start();
    let cache = provider(&server);
    let marker = RawKey::marker(CacheId(1), "ns");
    cache.put(Put { key: marker, bytes: Bytes::from_static(b"m"), ttl: HOUR }).await.unwrap();
    assert_eq!(cache.get(marker).await.unwrap().unwrap(), &b"m"[..]);
    assert!(holds(&server, "mg ns: v\r\n", "m"));
}

#[tokio::test]
async fn z1_too_large_is_typed_and_the_largest_fits() {
    let server = Server::start();
    let cache = provider(&server);
    let most = cache.capabilities().value_max.unwrap();
    let id = "k".repeat(247);
    cache.put(item(&id, &vec![1; most])).await.unwrap();
    assert_eq!(cache.get(key(&id)).await.unwrap().unwrap().len(), most);
    for size in [most + 1, (1 << 20) + 1] {
        assert_eq!(kind(cache.put(item("new", &vec![1; size])).await), ErrorKind::TooLarge);
        assert!(cache.get(key("new")).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn z2_nothing_of_the_old_value_is_left() {
    // Refused here, and refused by a server with a smaller limit.
    let (default, small) = (Server::start(), Server::with(&["-I", "512k"]));
    for (server, size) in [(&default, 1 << 20), (&small, 600_000)] {
        let cache = provider(server);
        cache.put(item("k", b"old")).await.unwrap();
        cache.put(item("other", b"other")).await.unwrap();
        assert_eq!(kind(cache.put(item("k", &vec![1; size])).await), ErrorKind::TooLarge);
        assert!(cache.get(key("k")).await.unwrap().is_none());
        assert!(cache.get(key("other")).await.unwrap().is_some());

        // In a batch: the refused item is gone; what is reported as stored is stored.
        cache.put(item("k", b"old")).await.unwrap();
        let big = vec![1; size];
        let batch = [item("a", b"1"), item("k", &big), item("b", b"2")];
        let results = cache.put_many(&batch).await;
        assert!(results[0].is_ok());
        assert_eq!(kind(results.into_iter().nth(1).unwrap()), ErrorKind::TooLarge);
        assert_eq!(cache.get(key("a")).await.unwrap().unwrap(), &b"1"[..]);
        assert!(cache.get(key("k")).await.unwrap().is_none());
        cache.put(item("k", b"new")).await.unwrap();
        assert_eq!(cache.get(key("k")).await.unwrap().unwrap(), &b"new"[..]);
    }
}

#[tokio::test]
async fn z_a_server_without_memory_refuses_and_keeps_nothing_old() {
    let server = Server::with(&["-M", "-m", "2"]);
    let cache = provider(&server);
    let mut refused = None;
    for i in 0..2_000 {
        let id = i.to_string();
        if let Err(error) = cache.put(item(&id, &[1; 10_000])).await {
            refused = Some((id, error));
            break;
        }
    }
    let (id, error) = refused.expect("2 MiB are full");
    assert_eq!(kind::<()>(Err(error)), ErrorKind::Refused);
    assert!(cache.get(key(&id)).await.unwrap().is_none());
    assert_eq!(kind(cache.put(item("0", &[2; 10_000])).await), ErrorKind::Refused);
    assert!(cache.get(key("0")).await.unwrap().is_none());
}

#[tokio::test]
async fn z_an_empty_value_does_not_break() {
    let server = Server::start();
    let cache = provider(&server);
    cache.put(item("k", b"")).await.unwrap();
    assert_eq!(cache.get(key("k")).await.unwrap().unwrap(), Bytes::new());
}

#[tokio::test]
async fn m10_several_servers_share_the_keys() {
    let servers = [Server::start(), Server::start(), Server::start()];
    let cache = builder(servers[0].url()).servers(servers[1..].iter().map(|s| s.url())).build().unwrap();
    let ids: Vec<String> = (0..300).map(|i| format!("id {i}")).collect();
    let items: Vec<_> = ids.iter().map(|id| item(id, id.as_bytes())).collect();
    assert!(cache.put_many(&items).await.iter().all(Result::is_ok));
    let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
    for (id, got) in ids.iter().zip(cache.get_many(&keys).await) {
        assert_eq!(got.unwrap().unwrap(), id.as_bytes());
    }
    // All but the life items.
    let held: Vec<i64> = servers.iter().map(|s| s.number("curr_items") - 1).collect();
    assert_eq!(held.iter().sum::<i64>(), 300);
    assert!(held.iter().all(|n| *n > 50), "{held:?}");
    // The order of the list does not matter.
    let turned = builder(servers[2].url()).servers([servers[0].url(), servers[1].url()]).build().unwrap();
    assert!(turned.get_many(&keys).await.iter().all(|r| matches!(r, Ok(Some(_)))));
    cache.ping().await.unwrap();
}
