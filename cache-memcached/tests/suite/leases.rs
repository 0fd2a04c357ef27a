//! Leases on a real memcached.

use std::time::Duration;

use super::common::{HOUR, Server, eventually, item, key, kind, provider};
use bytes::Bytes;
use cache_core::{
    Acquire, Acquired, CacheProvider, ENTRY_ID_AT, EntryId, Fill, Holding, Lease, Leases, Level, Policy, Put,
    Stance, TracedCache, ok,
};
use cache_memcached::{ErrorKind, MemcachedProvider};
use futures::future::join_all;
use test_servers::Proxy;
use tokio::time::timeout;
use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

const LONG: Duration = Duration::from_secs(100);
/// Ends after one to two seconds.
const SHORT: Duration = Duration::from_millis(500);

/// Bytes that carry an entry id where an envelope does.
fn entry(id: u64) -> Vec<u8> {
    let mut bytes = vec![b'.'; 80];
    bytes[ENTRY_ID_AT].copy_from_slice(&id.to_le_bytes());
    bytes
}

fn leases(cache: &MemcachedProvider) -> &dyn Leases {
    cache.leases().expect("it has leases")
}

async fn ask(cache: &MemcachedProvider, id: &str, holding: Holding, life: Duration) -> Acquired {
    leases(cache).acquire_many(&[Acquire { key: key(id), holding }], life).await.remove(0).unwrap()
}

fn lease(acquired: Acquired) -> Lease {
    match acquired {
        Acquired::Granted(lease) => lease,
        other => panic!("{other:?}"),
    }
}

async fn granted(cache: &MemcachedProvider, id: &str) -> Lease {
    lease(ask(cache, id, Holding::Nothing, LONG).await)
}

async fn to_refresh(cache: &MemcachedProvider, id: &str, entry: u64, life: Duration) -> Acquired {
    ask(cache, id, Holding::Entry(EntryId(entry)), life).await
}

fn is_held(acquired: &Acquired) -> bool {
    matches!(acquired, Acquired::Held)
}

fn filling<'a>(id: &'a str, bytes: &[u8], lease: &Lease) -> Fill<'a> {
    Fill { put: item(id, bytes), lease: lease.clone() }
}

async fn fill(cache: &MemcachedProvider, id: &str, bytes: &[u8], lease: &Lease) -> bool {
    leases(cache).fill_many(&[filling(id, bytes, lease)]).await.remove(0).unwrap()
}

async fn renew(cache: &MemcachedProvider, id: &str, lease: &Lease, life: Duration) {
    leases(cache).renew_many(&[(key(id), lease.clone())], life).await.remove(0).unwrap();
}

async fn release(cache: &MemcachedProvider, id: &str, lease: &Lease) {
    leases(cache).release_many(&[(key(id), lease.clone())]).await.remove(0).unwrap();
}

async fn value(cache: &MemcachedProvider, id: &str) -> Option<Bytes> {
    cache.get(key(id)).await.unwrap()
}

/// Where the right to refresh an entry lies.
fn right(id: &str, entry: u64) -> String {
    format!("~lease-{:032x}", xxh3_128_with_seed(format!("ns:{id}").as_bytes(), entry))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_who_ask_at_once_is_granted() {
    let server = Server::start();
    let (a, b) = (provider(&server), provider(&server));
    a.put(item("stale", &entry(1))).await.unwrap();
    a.put(item("tombstone", b"v")).await.unwrap();
    a.remove(key("tombstone")).await.unwrap();
    server.raw(b"ms ns:foreign 5\r\nhello\r\n");
    for (id, holding) in [
        ("absent", Holding::Nothing),
        ("stale", Holding::Entry(EntryId(1))),
        ("unreadable", Holding::Unreadable),
        ("tombstone", Holding::Nothing),
        ("foreign", Holding::Nothing),
    ] {
        a.get(key(id)).await.unwrap();
        let asked = (0..64).map(|i| {
            let cache = if i % 2 == 0 { a.clone() } else { b.clone() };
            tokio::spawn(async move { ask(&cache, id, holding, LONG).await })
        });
        let answers: Vec<Acquired> = join_all(asked).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(answers.iter().filter(|a| matches!(a, Acquired::Granted(_))).count(), 1, "{id}");
        assert_eq!(answers.iter().filter(|a| is_held(a)).count(), 63, "{id}");
    }
}

#[tokio::test]
async fn reading_leaves_no_placeholder_and_a_placeholder_is_a_miss() {
    let server = Server::start();
    let cache = provider(&server);
    assert_eq!(value(&cache, "k").await, None);
    assert_eq!(server.raw(b"mg ns:k v\r\n"), "EN\r\n");
    let lease = granted(&cache, "k").await;
    assert_eq!(server.raw(b"mg ns:k s\r\n"), "HD s0 Z\r\n");
    assert_eq!(value(&cache, "k").await, None);
    assert!(cache.get_many(&[key("k"), key("k")]).await.iter().all(|r| matches!(r, Ok(None))));
    assert!(fill(&cache, "k", b"v", &lease).await);
}

#[tokio::test]
async fn a_fill_stores_for_its_own_ttl_and_ends_the_lease() {
    let server = Server::start();
    let cache = provider(&server);
    let first = granted(&cache, "k").await;
    assert!(is_held(&ask(&cache, "k", Holding::Nothing, LONG).await));
    assert!(fill(&cache, "k", &entry(1), &first).await);
    assert_eq!(value(&cache, "k").await.unwrap(), entry(1));
    assert!(server.ttl("ns:k") > 3_000);
    assert!(!fill(&cache, "k", &entry(9), &first).await, "once only");
    assert_eq!(value(&cache, "k").await.unwrap(), entry(1));
    for (holding, found) in [(Holding::Nothing, true), (Holding::Entry(EntryId(2)), true)] {
        let answer = ask(&cache, "k", holding, LONG).await;
        assert_eq!(matches!(&answer, Acquired::Found(bytes) if *bytes == entry(1)), found, "{answer:?}");
    }
}

#[tokio::test]
async fn a_fill_is_refused_after_an_invalidation() {
    let server = Server::start();
    let (cache, other) = (provider(&server), provider(&server));
    let lease = granted(&cache, "absent").await;
    other.remove(key("absent")).await.unwrap();
    assert!(!fill(&cache, "absent", b"old", &lease).await);
    assert_eq!(value(&other, "absent").await, None);

    cache.put(item("stale", &entry(1))).await.unwrap();
    let lease = self::lease(to_refresh(&cache, "stale", 1, LONG).await);
    other.remove(key("stale")).await.unwrap();
    assert!(!fill(&cache, "stale", b"old", &lease).await);
    assert_eq!(value(&other, "stale").await, None);
}

#[tokio::test]
async fn a_fill_is_refused_after_a_set() {
    let server = Server::start();
    let (cache, other) = (provider(&server), provider(&server));
    for holding in [Holding::Nothing, Holding::Entry(EntryId(1)), Holding::Unreadable] {
        cache.remove(key("k")).await.unwrap();
        if holding != Holding::Nothing {
            cache.put(item("k", &entry(1))).await.unwrap();
        }
        let lease = lease(ask(&cache, "k", holding, LONG).await);
        // Not even one of the same bytes keeps it.
        other.put(item("k", &entry(1))).await.unwrap();
        assert!(!fill(&cache, "k", b"old", &lease).await, "{holding:?}");
        assert_eq!(value(&cache, "k").await.unwrap(), entry(1));
    }
}

#[tokio::test]
async fn a_fill_is_refused_when_its_lease_has_ended() {
    let server = Server::start();
    let (cache, other) = (provider(&server), provider(&server));
    let first = lease(ask(&cache, "k", Holding::Nothing, SHORT).await);
    eventually("it ends", async || server.raw(b"mg ns:k v\r\n") == "EN\r\n").await;
    assert!(!fill(&cache, "k", b"late", &first).await);
    let second = granted(&other, "k").await;
    assert!(!fill(&cache, "k", b"late", &first).await, "under the second lease");
    assert!(fill(&other, "k", b"new", &second).await);
    assert_eq!(value(&cache, "k").await.unwrap(), "new");
}

#[tokio::test]
async fn a_fill_is_refused_when_its_placeholder_was_evicted() {
    let server = Server::start();
    let cache = provider(&server);
    let lease = granted(&cache, "k").await;
    server.raw(b"md ns:k\r\n");
    assert!(!fill(&cache, "k", b"v", &lease).await);
    assert_eq!(value(&cache, "k").await, None);
    cache.put(item("k", &entry(1))).await.unwrap();
    let lease = self::lease(to_refresh(&cache, "k", 1, LONG).await);
    server.raw(format!("md {}\r\n", right("k", 1)).as_bytes());
    assert!(!fill(&cache, "k", b"v", &lease).await, "nor without the right to refresh");
    assert_eq!(value(&cache, "k").await.unwrap(), entry(1));
}

/// The server's own win for a live item is given once, and never again when the winner has died.
#[tokio::test]
async fn a_refresher_that_dies_is_followed_by_another_twice_in_a_row() {
    let server = Server::start();
    let (cache, other) = (provider(&server), provider(&server));
    cache.put(item("k", &entry(1))).await.unwrap();
    for _ in 0..2 {
        let dead = lease(to_refresh(&cache, "k", 1, SHORT).await);
        assert_eq!(value(&other, "k").await.unwrap(), entry(1), "the stale entry is served");
        assert!((1..=2).contains(&server.ttl(&right("k", 1))), "so another wins within 3 s");
        let mut next = to_refresh(&other, "k", 1, SHORT).await;
        while is_held(&next) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            next = to_refresh(&other, "k", 1, LONG).await;
        }
        assert!(!fill(&cache, "k", &entry(9), &dead).await);
        assert_eq!(value(&cache, "k").await.unwrap(), entry(1));
        let next = lease(next);
        assert!(fill(&other, "k", &entry(1), &next).await);
    }
    // What was filled can be refreshed at once.
    let lease = lease(to_refresh(&cache, "k", 1, LONG).await);
    assert!(fill(&cache, "k", &entry(2), &lease).await);
    assert_eq!(value(&cache, "k").await.unwrap(), entry(2));
}

#[tokio::test]
async fn who_holds_another_entry_is_given_the_new_one_and_keeps_nobody_from_refreshing_it() {
    let server = Server::start();
    let (cache, other) = (provider(&server), provider(&server));
    cache.put(item("k", &entry(2))).await.unwrap();
    let answer = to_refresh(&cache, "k", 1, LONG).await;
    assert!(matches!(answer, Acquired::Found(bytes) if bytes == entry(2)));
    assert_eq!(server.raw(format!("mg {} v\r\n", right("k", 1)).as_bytes()), "EN\r\n");
    lease(to_refresh(&other, "k", 2, LONG).await);
    // A held entry that has gone is as good as none.
    server.raw(b"md ns:k\r\n");
    let lease = lease(to_refresh(&cache, "k", 2, LONG).await);
    assert!(fill(&cache, "k", &entry(3), &lease).await);
    // A set makes an entry of its own, which a lease on the old one does not block.
    self::lease(to_refresh(&cache, "k", 3, LONG).await);
    other.put(item("k", &entry(4))).await.unwrap();
    self::lease(to_refresh(&other, "k", 4, LONG).await);
}

#[tokio::test]
async fn a_tombstone_is_a_miss_that_can_be_filled_under_a_lease() {
    let server = Server::start();
    let (cache, other) = (provider(&server), provider(&server));
    cache.put(item("k", b"v")).await.unwrap();
    cache.remove(key("k")).await.unwrap();
    assert_eq!(server.raw(b"mg ns:k v\r\n"), "VA 1\r\nT\r\n");
    assert!((50..=60).contains(&server.ttl("ns:k")));
    assert_eq!(value(&other, "k").await, None);
    for holding in [Holding::Nothing, Holding::Entry(EntryId(1)), Holding::Unreadable] {
        cache.remove(key("k")).await.unwrap();
        let first = lease(ask(&cache, "k", holding, LONG).await);
        assert!(is_held(&ask(&other, "k", holding, LONG).await));
        assert!(fill(&cache, "k", b"v", &first).await);
        assert!(!fill(&cache, "k", b"w", &first).await);
        assert_eq!(value(&other, "k").await.unwrap(), "v");
    }
}

#[tokio::test]
async fn renewed_leases_last_and_still_fill() {
    let server = Server::start();
    let cache = provider(&server);
    cache.put(item("stale", &entry(1))).await.unwrap();
    let absent = lease(ask(&cache, "absent", Holding::Nothing, Duration::from_secs(5)).await);
    let stale = lease(to_refresh(&cache, "stale", 1, Duration::from_secs(5)).await);
    for (id, lease, on) in [("absent", &absent, "ns:absent".to_owned()), ("stale", &stale, right("stale", 1))]
    {
        renew(&cache, id, lease, LONG).await;
        let answer = server.raw(format!("mg {on} t\r\n").as_bytes());
        let left = answer.split([' ', '\r']).find_map(|t| t.strip_prefix('t')).unwrap();
        assert!((90..=101).contains(&left.parse::<u32>().unwrap()), "{answer}");
        assert!(fill(&cache, id, &entry(2), lease).await, "{id}");
        assert_eq!(value(&cache, id).await.unwrap(), entry(2));
    }
    assert!(server.ttl("ns:stale") > 3_000, "the entry's own life is its own");
}

#[tokio::test]
async fn renewing_a_lost_lease_does_nothing_to_what_overtook_it() {
    let server = Server::start();
    let (cache, other) = (provider(&server), provider(&server));
    let set = granted(&cache, "set").await;
    other.put(item("set", b"v")).await.unwrap();
    renew(&cache, "set", &set, SHORT).await;
    assert!(server.ttl("ns:set") > 3_000);
    let removed = granted(&cache, "removed").await;
    other.remove(key("removed")).await.unwrap();
    renew(&cache, "removed", &removed, SHORT).await;
    assert!((50..=60).contains(&server.ttl("ns:removed")));
    let gone = granted(&cache, "gone").await;
    server.raw(b"md ns:gone\r\n");
    renew(&cache, "gone", &gone, LONG).await;
    assert_eq!(server.raw(b"mg ns:gone v\r\n"), "EN\r\n");
    for (id, lease) in [("set", &set), ("removed", &removed), ("gone", &gone)] {
        assert!(!fill(&cache, id, b"late", lease).await, "{id}");
    }
}

#[tokio::test]
async fn released_leases_are_free_and_lost_ones_take_nothing_along() {
    let server = Server::start();
    let (cache, other) = (provider(&server), provider(&server));
    cache.put(item("stale", &entry(1))).await.unwrap();
    let absent = granted(&cache, "absent").await;
    let stale = lease(to_refresh(&cache, "stale", 1, LONG).await);
    release(&cache, "absent", &absent).await;
    release(&cache, "stale", &stale).await;
    assert_eq!(value(&cache, "stale").await.unwrap(), entry(1));
    let next = granted(&other, "absent").await;
    lease(to_refresh(&other, "stale", 1, LONG).await);
    assert!(!fill(&cache, "absent", b"late", &absent).await);
    assert!(!fill(&cache, "stale", b"late", &stale).await);
    // Again: the place is another's by now.
    release(&cache, "absent", &absent).await;
    assert!(fill(&other, "absent", b"v", &next).await);
    release(&other, "absent", &next).await;
    assert_eq!(value(&cache, "absent").await.unwrap(), "v");
}

#[tokio::test]
async fn a_fill_that_is_too_large_leaves_neither_value_nor_lease() {
    let (default, small) = (Server::start(), Server::with(&["-I", "512k"]));
    for (server, size) in [(&default, 1 << 20), (&small, 600_000)] {
        let cache = provider(server);
        for id in ["absent", "stale"] {
            let holding = if id == "stale" {
                cache.put(item(id, &entry(1))).await.unwrap();
                Holding::Entry(EntryId(1))
            } else {
                Holding::Nothing
            };
            let lease = lease(ask(&cache, id, holding, LONG).await);
            let big = vec![1; size];
            let result = leases(&cache).fill_many(&[filling(id, &big, &lease)]).await.remove(0);
            assert_eq!(kind(result), ErrorKind::TooLarge);
            assert_eq!(value(&cache, id).await, None);
            granted(&cache, id).await;
        }
    }
}

#[tokio::test]
async fn batches_answer_per_item_across_servers() {
    let servers = [Server::start(), Server::start(), Server::start()];
    let cache = super::common::builder(servers[0].url())
        .servers(servers[1..].iter().map(|s| s.url()))
        .build()
        .unwrap();
    let ids: Vec<String> = (0..300).map(|i| format!("id {i}")).collect();
    // By turns: absent, live, held live, removed, leased by another.
    for (i, id) in ids.iter().enumerate() {
        match i % 5 {
            1 | 2 => cache.put(item(id, &entry(i as u64))).await.unwrap(),
            3 => cache.remove(key(id)).await.unwrap(),
            4 => drop(granted(&cache, id).await),
            _ => {}
        }
    }
    let wishes: Vec<Acquire<'_>> = (0..300)
        .map(|i| {
            let holding = if i % 5 == 2 { Holding::Entry(EntryId(i as u64)) } else { Holding::Nothing };
            Acquire { key: key(&ids[i]), holding }
        })
        .collect();
    let answers = leases(&cache).acquire_many(&wishes, LONG).await;
    let mut fills = Vec::new();
    for (i, answer) in answers.into_iter().enumerate() {
        match (i % 5, answer.unwrap()) {
            (0 | 2 | 3, Acquired::Granted(lease)) => {
                fills.push(Fill { put: item(&ids[i], ids[i].as_bytes()), lease });
            }
            (1, Acquired::Found(bytes)) => assert_eq!(bytes, entry(i as u64)),
            (4, Acquired::Held) => {}
            (_, other) => panic!("{i}: {other:?}"),
        }
    }
    // Every other one is overtaken.
    for fill in fills.iter().step_by(2) {
        cache.remove(fill.put.key).await.unwrap();
    }
    for (i, filled) in leases(&cache).fill_many(&fills).await.into_iter().enumerate() {
        assert_eq!(filled.unwrap(), i % 2 == 1, "{i}");
        assert_eq!(cache.get(fills[i].put.key).await.unwrap().is_some(), i % 2 == 1);
    }
    assert!(leases(&cache).acquire_many(&[], LONG).await.is_empty());
    assert!(leases(&cache).fill_many(&[]).await.is_empty());
    assert!(leases(&cache).renew_many(&[], LONG).await.is_empty());
    assert!(leases(&cache).release_many(&[]).await.is_empty());
}

#[tokio::test]
async fn what_is_no_lease_of_ours_fills_nothing() {
    let server = Server::start();
    let cache = provider(&server);
    let others = granted(&cache, "other").await;
    granted(&cache, "k").await;
    for odd in [Lease(Bytes::new()), Lease(Bytes::from_static(b"0123456789abcdef")), others] {
        assert!(!fill(&cache, "k", b"v", &odd).await);
        release(&cache, "k", &odd).await;
        renew(&cache, "k", &odd, LONG).await;
        assert!(is_held(&ask(&cache, "k", Holding::Nothing, LONG).await));
    }
}

/// Leaves no room, not for small items either.
async fn fill_up(server: &Server, cache: &MemcachedProvider) {
    for i in 0..2_000 {
        let id = i.to_string();
        if cache.put(item(&id, &[1; 10_000])).await.is_err() {
            break;
        }
    }
    for i in 0..60_000 {
        if server.raw(format!("ms small{i} 1\r\nx\r\n").as_bytes()) != "HD\r\n" {
            break;
        }
    }
}

#[tokio::test]
async fn where_there_is_no_memory_for_a_lease_nobody_waits_for_one() {
    let server = Server::with(&["-M", "-m", "2"]);
    let cache = provider(&server);
    let users: TracedCache<String> = TracedCache::builder("users")
        .level(Level::new(cache.clone()).budget(HOUR).stance(Stance::Absorb))
        .policy(Policy::ttl(HOUR))
        .build()
        .unwrap();
    let load = || async { ok("Ada".to_owned()) };
    users.get_or_set("before", load).await.unwrap();
    fill_up(&server, &cache).await;
    // Who waits for somebody else does so for half a minute.
    let loaded = tokio::time::timeout(Duration::from_secs(10), users.get_or_set("k", load)).await;
    assert_eq!(*loaded.expect("at once").unwrap(), "Ada");
    // What it holds is read.
    assert!(users.get("before").await.unwrap().is_some());
    let asked = async |holding| {
        leases(&cache).acquire_many(&[Acquire { key: key("k"), holding }], LONG).await.remove(0)
    };
    assert_eq!(kind(asked(Holding::Nothing).await), ErrorKind::Refused);
    assert!(matches!(asked(Holding::Still(EntryId(1))).await, Ok(Acquired::Kept)));
}

#[tokio::test]
async fn a_removal_works_where_there_is_no_memory_for_a_tombstone() {
    let server = Server::with(&["-M", "-m", "2"]);
    let cache = provider(&server);
    fill_up(&server, &cache).await;
    assert!(value(&cache, "0").await.is_some());
    cache.remove(key("0")).await.unwrap();
    assert_eq!(server.raw(b"mg ns:0 v\r\n"), "EN\r\n", "not even a tombstone");
    assert_eq!(value(&cache, "0").await, None);
}

#[tokio::test]
async fn a_fill_without_an_answer_is_in_doubt() {
    let server = Server::start();
    let cache =
        super::common::builder(server.url()).response_timeout(Duration::from_millis(150)).build().unwrap();
    let lease = granted(&cache, "k").await;
    let stopped = server.stop();
    let result = leases(&cache).fill_many(&[filling("k", b"v", &lease)]).await.remove(0);
    assert_eq!(kind(result), ErrorKind::InDoubt);
    drop(stopped);
    // An invalidation after it is final: the fill either was before it, or is refused.
    eventually("recovery", async || cache.remove(key("k")).await.is_ok()).await;
    assert_eq!(value(&cache, "k").await, None);
    let put = Put { ttl: HOUR, ..item("k", b"new") };
    cache.put(put).await.unwrap();
    assert_eq!(value(&cache, "k").await.unwrap(), "new");
}

/// The server stands still while it is asked, for longer than the caller waits.
#[tokio::test]
async fn who_does_not_wait_for_a_lease_leaves_none_behind() {
    let server = Server::start();
    let (cache, other) = (provider(&server), provider(&server));
    cache.put(item("stale", &entry(1))).await.unwrap();
    cache.put(item("removed", b"v")).await.unwrap();
    cache.remove(key("removed")).await.unwrap();
    let wish = |id, holding| Acquire { key: key(id), holding };
    let stale = Holding::Entry(EntryId(1));
    let wishes = [wish("absent", Holding::Nothing), wish("removed", Holding::Nothing), wish("stale", stale)];
    let stopped = server.stop();
    let asked = leases(&cache).acquire_many(&wishes, LONG);
    assert!(tokio::time::timeout(Duration::from_millis(50), asked).await.is_err());
    drop(stopped);
    // On the same connection, so the server has heard it by then.
    cache.get(key("absent")).await.unwrap();
    for Acquire { key, holding } in wishes {
        eventually("it is free", async || !is_held(&ask(&other, key.id, holding, LONG).await)).await;
    }
}

/// What it has put meanwhile stays, too.
#[tokio::test]
async fn who_does_not_wait_for_a_hold_leaves_none_behind() {
    let server = Server::start();
    let (cache, other) = (provider(&server), provider(&server));
    cache.put(item("put", b"old")).await.unwrap();
    let keys = [key("k"), key("put")];
    let stopped = server.stop();
    let asked = leases(&cache).hold_many(&keys, LONG);
    assert!(tokio::time::timeout(Duration::from_millis(50), asked).await.is_err());
    drop(stopped);
    cache.put(item("put", b"new")).await.unwrap();
    for key in keys {
        let kept = async || matches!(ask(&other, key.id, Holding::Nothing, LONG).await, Acquired::Kept);
        eventually("it is free", async || !kept().await).await;
    }
    assert_eq!(value(&other, "put").await.unwrap(), "new");
}

/// What is asked for is sent again when its connection breaks, and meets the placeholder of the first time.
#[tokio::test]
async fn a_lease_whose_answer_was_lost_is_had_by_who_asked() {
    let server = Server::start();
    let proxy = Proxy::start(server.addr());
    let url = format!("memcached://{}", proxy.addr());
    let cache = super::common::builder(url).response_timeout(LONG).build().unwrap();
    granted(&cache, "known").await;
    proxy.mute();
    let asked = tokio::spawn({
        let cache = cache.clone();
        async move { granted(&cache, "k").await }
    });
    eventually("it is there", async || server.raw(b"mg ns:k v\r\n") != "EN\r\n").await;
    proxy.pass();
    proxy.cut();
    let lease = asked.await.unwrap();
    assert!(is_held(&ask(&provider(&server), "k", Holding::Nothing, LONG).await));
    assert!(fill(&cache, "k", b"v", &lease).await);
}

/// As somebody may have put them by hand, who knows of no ends.
#[tokio::test]
async fn nobody_waits_for_what_lies_in_the_place_of_a_lease_and_has_no_end() {
    let server = Server::start();
    let cache = provider(&server);
    let users =
        TracedCache::<String>::builder("ns").level(Level::new(cache.clone())).policy(Policy::ttl(HOUR));
    let users = users.build().unwrap();
    let hold = format!("~hold-{:032x}", xxh3_128(b"ns:k"));
    for by_hand in [
        "ms ns:k 0 T0\r\n\r\n".to_owned(),
        "ms ns:k 0 T86400\r\n\r\n".to_owned(),
        format!("ms {hold} 1 T0\r\nW\r\n"),
        format!("ms ns:k 0 T0\r\n\r\nms {hold} 0 T0\r\n\r\n"),
    ] {
        assert!(server.raw(by_hand.as_bytes()).ends_with("HD\r\n"));
        let loaded = timeout(Duration::from_secs(10), users.get_or_set("k", || async { ok("v".to_owned()) }));
        assert_eq!(*loaded.await.expect(&by_hand).unwrap(), "v");
        assert_eq!(users.get("k").await.unwrap().as_deref().map(String::as_str), Some("v"), "{by_hand:?}");
        server.raw(format!("md ns:k\r\nmd {hold}\r\n").as_bytes());
    }
    // One of ours is waited for, also one that lives for longer.
    let _lease = granted(&cache, "k").await;
    let long = Duration::from_secs(30);
    assert!(is_held(&ask(&cache, "k", Holding::Nothing, long).await));
}
