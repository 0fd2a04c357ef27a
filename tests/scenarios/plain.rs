//! Bare values, shared with programs that know nothing of this one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use traced_cache::{
    Access, Clock, Codec, Early, ErrorKind, Level, Loaded, Memory, Outcome, Policy, Time, TracedCache,
    testing::Shelf,
};

use crate::{
    hooks::{Gate, Hooked},
    kit::{self, Loads, Recorder, S},
    stacks,
    stores::MapProvider,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct User {
    name: String,
    logins: u32,
}

fn user(name: &str) -> User {
    User { name: name.into(), logins: 3 }
}

struct Bench {
    map: MapProvider,
    shelf: Shelf,
    events: Recorder,
    time: Time,
    cache: TracedCache<User>,
}

fn bench() -> Bench {
    let (clock, time) = Clock::manual();
    let (map, shelf, events) = (MapProvider::new(), Shelf::default(), Recorder::default());
    let cache = TracedCache::builder("users")
        .level(Level::new(shelf.clone()).ttl_cap(10 * S))
        .level(stacks::level(map.clone()).plain())
        .clock(clock)
        .policy(Policy::ttl(100 * S).absent_ttl(5 * S))
        .observer(events.clone())
        .build()
        .unwrap();
    Bench { map, shelf, events, time, cache }
}

#[tokio::test]
async fn what_is_stored_is_the_codecs_bytes_and_nothing_else() {
    let bench = bench();
    kit::set(&bench.cache, 42, user("Zoë")).await;
    assert_eq!(bench.map.raw("users:42").as_deref(), Some("{\"name\":\"Zoë\",\"logins\":3}".as_bytes()));
    let ids = ["users:", "users:42"].map(|key| bench.map.raw(key).is_some());
    assert_eq!(ids, [false, true], "and no marker beside it");
    let loads = Loads::default();
    kit::load(&bench.cache, "loaded", &loads, user("Ann")).await;
    assert_eq!(bench.map.raw("users:loaded").as_deref(), Some(&b"{\"name\":\"Ann\",\"logins\":3}"[..]));
}

#[tokio::test]
async fn what_others_write_is_read() {
    let bench = bench();
    bench.map.plant("users:7", &b" {\"logins\": 1, \"name\": \"Bob\", \"more\": null} "[..]);
    let found = bench.cache.look(7).await.unwrap();
    assert_eq!((found.outcome(), found.level()), (Outcome::Hit, Some(1)));
    assert_eq!(found.value().unwrap().name, "Bob");
    // Kept nearer, no longer than the cap says: what others write after that is seen.
    bench.map.plant("users:7", &b"{\"logins\":2,\"name\":\"Bob\"}"[..]);
    assert_eq!(bench.cache.look(7).await.unwrap().level(), Some(0));
    bench.time.advance(10 * S);
    let found = bench.cache.look(7).await.unwrap();
    assert_eq!((found.level(), found.value().unwrap().logins), (Some(1), 2));
}

#[tokio::test]
async fn what_cannot_be_read_is_a_miss_and_replaced() {
    let bench = bench();
    for (at, bytes) in
        [&b""[..], b"nonsense", b"{\"name\":\"Bob\"}", b"\xc7\xac\0", b"null"].into_iter().enumerate()
    {
        bench.map.plant("users:7", bytes);
        assert_eq!(kit::get(&bench.cache, 7).await, None);
        assert_eq!(bench.events.count("unreadable 1 payload"), at + 1);
        assert_eq!(bench.map.raw("users:7").as_deref(), Some(bytes), "left alone until then");
    }
    let loads = Loads::default();
    kit::load(&bench.cache, 7, &loads, user("Bob")).await;
    assert_eq!(bench.map.raw("users:7").as_deref(), Some(&b"{\"name\":\"Bob\",\"logins\":3}"[..]));
}

#[tokio::test]
async fn an_invalidation_or_an_expiry_leaves_nothing() {
    let bench = bench();
    for expire in [false, true] {
        kit::set(&bench.cache, 1, user("x")).await;
        let done = if expire { bench.cache.expire(1).await } else { bench.cache.invalidate(1).await };
        assert!(done.unwrap().is_confirmed());
        assert_eq!(bench.map.raw("users:1"), None);
        assert_eq!(kit::get(&bench.cache, 1).await, None);
    }
    // What was set is gone for good where the source says that there is nothing.
    kit::set(&bench.cache, 1, user("x")).await;
    bench.shelf.evict_all();
    bench.map.plant("users:1", &b"not ours"[..]);
    assert_eq!(kit::absent(&bench.cache, 1, &Loads::default()).await.outcome(), Outcome::Loaded);
    assert_eq!(bench.map.raw("users:1"), None, "an absence has no bare form");
    assert_eq!(kit::outcome(&bench.cache, 1).await, Outcome::Absent, "memory remembers it");
}

#[tokio::test]
async fn a_value_lives_for_its_freshness_only() {
    let store = MapProvider::new();
    let map = Hooked::new(Arc::new(store.clone()));
    let (clock, time) = Clock::manual();
    let cache = TracedCache::builder("users")
        .level(Level::new(Shelf::default()).ttl_cap(1_000 * S))
        .level(stacks::level(map.clone()).plain())
        .clock(clock)
        .policy(Policy::ttl(100 * S).grace(1_000 * S))
        .build()
        .unwrap();
    kit::set(&cache, 1, user("x")).await;
    assert_eq!(map.hooks.ttls(), [100 * S], "not for its grace: whoever reads it takes it for fresh");
    let own = Loaded::value(user("y")).ttl(7 * S).grace(50 * S);
    assert!(cache.set_loaded(2, own).await.unwrap().is_confirmed());
    assert_eq!(map.hooks.ttls()[1..], [7 * S]);
    // Memory has its grace.
    time.advance(500 * S);
    store.plant("users:1", &b""[..]);
    let stale = cache.access(Access::AllowStale).look(1).await.unwrap();
    assert_eq!((stale.outcome(), stale.level()), (Outcome::Stale, Some(0)));
}

#[tokio::test]
async fn a_plain_cache_cannot_be_cleared() {
    let bench = bench();
    kit::set(&bench.cache, 1, user("x")).await;
    let error = bench.cache.clear().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("level 2 is plain"), "{error}");
    assert!(kit::get(&bench.cache, 1).await.is_some(), "and nothing is done by halves");
}

#[tokio::test]
async fn an_invalidation_on_one_node_beats_its_own_older_loads() {
    let bench = bench();
    let (gate, cache) = (Gate::new(), bench.cache.clone());
    let load = tokio::spawn({
        let gate = Arc::clone(&gate);
        async move {
            cache
                .get_or_set_with(1, &gate, |gate, _| async move {
                    gate.pass().await;
                    traced_cache::ok(user("old"))
                })
                .await
        }
    });
    gate.reached().await;
    kit::invalidate(&bench.cache, 1).await;
    gate.open();
    load.await.unwrap().unwrap();
    assert_eq!(bench.map.raw("users:1"), None);
    assert_eq!(kit::get(&bench.cache, 1).await, None);
}

#[test]
fn what_a_plain_level_cannot_keep_to_is_refused() {
    let map = || stacks::level(MapProvider::new()).plain();
    let refused = |levels: Vec<Level>, policy: Policy| {
        let builder =
            levels.into_iter().fold(TracedCache::<User>::builder("users"), |b, level| b.level(level));
        builder.policy(policy).build().unwrap_err().to_string()
    };
    let policy = Policy::ttl(100 * S);
    for (error, says) in [
        (
            refused(vec![Memory::entries(10).into(), map()], policy),
            "level 1 (memory) ttl_cap = none: level 2 is plain",
        ),
        (refused(vec![map()], policy.grace(200 * S)), "policy.grace = 200s: every level is plain"),
        (refused(vec![map()], policy.absent_ttl(S)), "policy.absent_ttl = 1s: every level is plain"),
        (refused(vec![map()], policy.early(Early::Fraction(0.5))), "policy.early"),
        (
            refused(vec![map().compression(traced_cache::Compression::lz4())], policy),
            "level 1 (map) compression = set: a bare value has no place",
        ),
        (
            refused(vec![map().encryption(traced_cache::Encryption::new(1, &[0; 32]))], policy),
            "level 1 (map) encryption = set: a bare value has no place",
        ),
        (refused(vec![Level::new(Memory::entries(10)).plain()], policy), "level 1 (memory) plain = true"),
        (
            refused(vec![Level::new(traced_cache::testing::Chaos::new(MapProvider::new())).plain()], policy),
            "level 1 (map) plain = true: this provider has no bare form",
        ),
    ] {
        assert!(error.starts_with(&format!("cache `users`: {says}")), "{error}");
    }
}

#[tokio::test]
async fn every_codec_can_be_bare() {
    for codec in [Codec::Json, Codec::MsgPack, Codec::Postcard] {
        let map = MapProvider::new();
        let cache = TracedCache::<User>::builder("users")
            .level(stacks::level(map.clone()).codec(codec).plain())
            .clock(Clock::manual().0)
            .build()
            .unwrap();
        kit::set(&cache, 1, user("x")).await;
        assert_eq!(kit::get(&cache, 1).await, Some(user("x")), "{codec:?}");
        // Nothing to write: not stored, and what was there is gone.
        let units = TracedCache::<()>::builder("users")
            .level(stacks::level(map.clone()).codec(Codec::Postcard).plain())
            .clock(Clock::manual().0)
            .build()
            .unwrap();
        kit::set_nowhere(&units, 1, ()).await;
        assert_eq!(map.raw("users:1"), None);
    }
}
