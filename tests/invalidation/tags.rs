//! G and C: what a tag reaches, and what it does not.

use std::pin::pin;

use traced_cache::{
    Access, ErrorKind, Level, Loaded, Memory, MissReason, Outcome, TracedCache,
    testing::{ChaosOp, Fault, MapProvider},
};

use crate::world::{
    MS, PERIOD, Source, World, alone, confirmed, done, get, level, policy, saw, set, settled,
};

async fn three(cache: &TracedCache<String>) {
    set(cache, "foo", "1", &["x", "y"]).await;
    set(cache, "bar", "2", &["y", "z"]).await;
    set(cache, "baz", "3", &["x", "z"]).await;
    set(cache, "bare", "4", &[]).await;
}

async fn have(cache: &TracedCache<String>) -> Vec<&'static str> {
    let keys = ["foo", "bar", "baz", "bare"];
    let found = cache.get_many(keys).await.unwrap();
    let all: Vec<_> = keys.into_iter().zip(&found).filter(|(_, f)| f.is_some()).map(|(key, _)| key).collect();
    // Alone as well.
    for key in keys {
        assert_eq!(get(cache, key).await.is_some(), all.contains(&key), "{key}");
    }
    all
}

/// Memory; memory and a store; a store alone.
fn caches() -> Vec<(TracedCache<String>, Option<World>)> {
    let (layered, bare) = (World::new(), World::new());
    vec![(alone(), None), (layered.node().cache, Some(layered)), (bare.bare().cache, Some(bare))]
}

#[tokio::test]
async fn g1_what_has_the_tag_is_gone_and_nothing_else() {
    for (cache, _world) in caches() {
        three(&cache).await;
        assert_eq!(have(&cache).await, ["foo", "bar", "baz", "bare"]);
        confirmed(cache.invalidate_tag("x").await);
        assert_eq!(have(&cache).await, ["bar", "bare"]);
        confirmed(cache.invalidate_tag("x").await);
        assert_eq!(have(&cache).await, ["bar", "bare"]);
        confirmed(cache.invalidate_tag("z").await);
        assert_eq!(have(&cache).await, ["bare"]);
    }
}

#[tokio::test]
async fn g2_any_of_several_counts_and_none_does_nothing() {
    for (cache, _world) in caches() {
        three(&cache).await;
        confirmed(cache.invalidate_tags(Vec::<String>::new()).await);
        confirmed(cache.invalidate_tag("never seen").await);
        assert_eq!(have(&cache).await.len(), 4);
        confirmed(cache.invalidate_tags(["z", "never seen", "z"]).await);
        assert_eq!(have(&cache).await, ["foo", "bare"]);
    }
}

#[tokio::test]
async fn g4_what_is_written_after_it_has_answered_is_valid() {
    for (cache, _world) in caches() {
        for value in 0..20 {
            confirmed(cache.invalidate_tag("x").await);
            set(&cache, "k", &value.to_string(), &["x"]).await;
            assert_eq!(get(&cache, "k").await, Some(value.to_string()));
        }
    }
}

#[tokio::test]
async fn g7_tags_of_the_loader_count() {
    for (cache, _world) in caches() {
        let source = Source::new();
        source.has("k", "1", &["x"]);
        assert_eq!(source.ask(&cache, "k").await, saw(Outcome::Loaded, "1"));
        assert_eq!(source.ask(&cache, "k").await, saw(Outcome::Hit, "1"));
        confirmed(cache.invalidate_tag("x").await);
        source.has("k", "2", &["y"]);
        assert_eq!(source.ask(&cache, "k").await, saw(Outcome::Loaded, "2"));
        confirmed(cache.invalidate_tag("x").await);
        assert_eq!(source.ask(&cache, "k").await, saw(Outcome::Hit, "2"), "it has another tag now");
    }
}

#[tokio::test]
async fn g8_expired_may_stand_in_and_purged_may_not() {
    for (cache, _world) in caches() {
        let stale = cache.access(Access::AllowStale);
        let source = Source::new();
        source.has("k", "1", &["x"]);
        source.ask(&cache, "k").await;
        confirmed(cache.expire_tag("x").await);
        assert_eq!(get(&cache, "k").await, None);
        assert_eq!(get(&stale, "k").await.as_deref(), Some("1"));
        source.down(true);
        assert_eq!(source.ask(&cache, "k").await, saw(Outcome::Stale, "1"));
        source.down(false);
        source.has("k", "2", &["x"]);
        confirmed(cache.expire_tag("x").await);
        assert_eq!(source.ask(&cache, "k").await, saw(Outcome::Loaded, "2"));
        assert_eq!(get(&cache, "k").await.as_deref(), Some("2"));

        confirmed(cache.invalidate_tag("x").await);
        assert_eq!(get(&stale, "k").await, None);
        source.down(true);
        assert!(source.try_ask(&cache, "k").await.is_err(), "nothing stands in");
        source.down(false);
        source.ask(&cache, "k").await;

        // Of all at once.
        confirmed(cache.expire_all().await);
        assert_eq!(get(&cache, "k").await, None);
        assert_eq!(get(&stale, "k").await.as_deref(), Some("2"));
        set(&cache, "other", "3", &[]).await;
        assert_eq!(get(&cache, "other").await.as_deref(), Some("3"));
        confirmed(cache.clear().await);
        assert_eq!((get(&stale, "k").await, get(&stale, "other").await), (None, None));
    }
}

#[tokio::test]
async fn g14_a_look_says_what_a_get_says() {
    for (cache, _world) in caches() {
        set(&cache, "k", "1", &["x"]).await;
        confirmed(cache.invalidate_tag("x").await);
        assert_eq!(cache.look("k").await.unwrap().outcome(), Outcome::Miss);
        assert_eq!(cache.access(Access::CacheOnly).look("k").await.unwrap().outcome(), Outcome::Miss);
    }
}

#[tokio::test]
async fn g17_a_cache_without_tags_refuses_them() {
    let world = World::new();
    let cache: TracedCache<String> = TracedCache::builder("plain")
        .level(Level::new(MapProvider::new().marking()))
        .tags(false)
        .policy(policy())
        .clock(world.clock.clone())
        .build()
        .unwrap();
    let refused = |error: traced_cache::Error| assert_eq!(error.kind(), ErrorKind::Tag, "{error}");
    refused(cache.set_loaded("k", Loaded::value("1".to_owned()).tag("x")).await.unwrap_err());
    refused(cache.invalidate_tag("x").await.unwrap_err());
    let source = Source::new();
    source.has("k", "1", &["x"]);
    refused(source.try_ask(&cache, "k").await.unwrap_err());
    confirmed(cache.set("k", "1".to_owned()).await);
    assert_eq!(get(&cache, "k").await.as_deref(), Some("1"));
}

#[tokio::test]
async fn tags_that_make_no_sense_are_refused() {
    let cache = alone();
    for tag in [String::new(), "x".repeat(201)] {
        for error in [
            cache.invalidate_tag(tag.as_str()).await.unwrap_err(),
            cache.set_loaded("k", Loaded::value("1".to_owned()).tag(tag.as_str())).await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Tag);
            assert!(!error.to_string().contains("xxx"), "a tag may be personal: {error}");
        }
    }
    let many: Vec<String> = (0..65).map(|n| n.to_string()).collect();
    assert_eq!(cache.invalidate_tags(many.clone()).await.unwrap_err().kind(), ErrorKind::Tag);
    confirmed(cache.invalidate_tags(many[..64].to_vec()).await);
    set(&cache, "k", "1", &["é \r\n~:"]).await;
    confirmed(cache.invalidate_tag("é \r\n~:").await);
    assert_eq!(get(&cache, "k").await, None);
}

/// What counts is when the entry was made, not when somebody learns of the invalidation.
#[tokio::test]
async fn g10_an_entry_is_judged_by_its_own_number_however_late_the_marks_are_read() {
    let world = World::new();
    let writer = world.node();
    set(&writer.cache, "before", "1", &["x"]).await;
    confirmed(writer.cache.invalidate_tag("x").await);
    set(&writer.cache, "after", "2", &["x"]).await;
    confirmed(writer.cache.invalidate_tag("other").await);
    settled().await;
    let reader = world.bare();
    assert_eq!(get(&reader.cache, "untagged").await, None);
    // The marks of the tags arrive when all of this is long over.
    reader.l2.set(ChaosOp::Get, Fault::Delay(MS));
    let asked = ["before", "after"].map(|key| {
        let cache = reader.cache.clone();
        tokio::spawn(async move { get(&cache, key).await })
    });
    let [before, after] = asked;
    assert_eq!(done(Some(&world), before).await, None);
    assert_eq!(done(Some(&world), after).await.as_deref(), Some("2"));
}

#[tokio::test]
async fn g13_ten_tags_cost_one_round_trip_more_at_most() {
    let world = World::new();
    let (writer, reader) = (world.node(), world.bare());
    let tags: Vec<String> = (0..10).map(|n| format!("t{n}")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    set(&writer.cache, "k", "1", &tags).await;
    settled().await;
    // As long as nothing has been invalidated since it was loaded, none at all.
    assert_eq!(get(&reader.cache, "k").await.as_deref(), Some("1"));
    reader.l2.reset();
    assert_eq!(get(&reader.cache, "k").await.as_deref(), Some("1"));
    assert_eq!(reader.l2.calls(ChaosOp::Get), 1);
    // Something else has: the marks of its tags are read, in one go, and known from then on.
    confirmed(writer.cache.invalidate_tag("other").await);
    world.pass(crate::world::PERIOD).await;
    reader.l2.reset();
    assert_eq!(get(&reader.cache, "k").await.as_deref(), Some("1"));
    assert_eq!(reader.l2.calls(ChaosOp::Get), 2, "the entry, and the marks");
    reader.l2.reset();
    assert_eq!(get(&reader.cache, "k").await.as_deref(), Some("1"));
    assert_eq!(reader.l2.calls(ChaosOp::Get), 1);
}

#[tokio::test]
async fn what_a_tag_does_not_reach_stays_in_memory() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    for node in [&a, &b] {
        set(&node.cache, "tagged", "1", &["x"]).await;
        set(&node.cache, "bare", "2", &[]).await;
    }
    for key in ["tagged", "bare"] {
        assert!(get(&a.cache, key).await.is_some());
    }
    settled().await;
    a.l2.reset();
    confirmed(b.cache.invalidate_tag("y").await);
    for _ in 0..2 {
        assert_eq!((level(&a.cache, "tagged").await, level(&a.cache, "bare").await), (Some(0), Some(0)));
    }
    assert_eq!(a.l2.calls(ChaosOp::Get), 0, "the message said what was invalidated");
    confirmed(b.cache.invalidate_tag("x").await);
    assert_eq!((get(&a.cache, "tagged").await, level(&a.cache, "bare").await), (None, Some(0)));
}

#[tokio::test]
async fn a_hit_after_news_that_did_not_concern_it_is_a_quick_one_again() {
    let cache = alone();
    set(&cache, "k", "1", &["x"]).await;
    confirmed(cache.invalidate_tag("y").await);
    assert_eq!(get(&cache, "k").await.as_deref(), Some("1"));
    let before = cache.stats();
    assert_eq!(get(&cache, "k").await.as_deref(), Some("1"));
    let after = cache.stats();
    assert_eq!(after.hits(), before.hits() + 1);
    // Quick ones are counted by their thread; slow ones by the level as well.
    assert_eq!(after.levels[0].lookups(), before.levels[0].lookups() + 1);
}

#[tokio::test]
async fn at_a_level_that_cannot_swap_a_tag_widens_to_the_cache() {
    let world = World::on(MapProvider::new().leasing());
    let (a, b) = (world.node(), world.deaf());
    three(&a.cache).await;
    assert_eq!(have(&b.cache).await.len(), 4);
    confirmed(a.cache.invalidate_tag("x").await);
    assert_eq!(have(&a.cache).await, [""; 0], "all of it, and never less");
    world.pass(crate::world::PERIOD).await;
    assert_eq!(have(&b.cache).await, [""; 0]);
    three(&a.cache).await;
    assert_eq!(have(&a.cache).await.len(), 4);
}

#[tokio::test]
async fn c1_caches_that_share_a_store_have_tags_of_their_own() {
    let world = World::new();
    let store = &world.store;
    let named = |name: &str| -> TracedCache<String> {
        TracedCache::builder(name)
            .level(Memory::entries(100).engine_expiry(false))
            .level(std::sync::Arc::clone(store))
            .clock(world.clock.clone())
            .policy(policy())
            .build()
            .unwrap()
    };
    let (one, two) = (named("users"), named("usersAbc"));
    for cache in [&one, &two] {
        set(cache, "k", "1", &["x"]).await;
    }
    confirmed(one.invalidate_tag("x").await);
    assert_eq!((get(&one, "k").await, get(&two, "k").await.as_deref()), (None, Some("1")));
    confirmed(one.clear().await);
    confirmed(one.expire_all().await);
    assert_eq!(get(&two, "k").await.as_deref(), Some("1"));
}

/// Another node's clear comes to light in the middle of it: what has been stored since that clear is not void by it.
#[tokio::test]
async fn a_clear_that_was_not_heard_of_does_not_swallow_an_invalidation() {
    for what in ["invalidate_tag", "expire_tag", "expire_all"] {
        let world = World::new();
        let (a, b) = (world.deaf(), world.deaf());
        // A knows the mark of before.
        get(&a.cache, "warm").await;
        confirmed(b.cache.clear().await);
        set(&b.cache, "k", "old", &["x"]).await;
        confirmed(match what {
            "invalidate_tag" => a.cache.invalidate_tag("x").await,
            "expire_tag" => a.cache.expire_tag("x").await,
            _ => a.cache.expire_all().await,
        });
        for node in [&a, &world.bare()] {
            assert_eq!(get(&node.cache, "k").await, None, "{what}");
        }
    }
}

/// What a node learns while it asks about one key's tags holds for the other keys of the batch, too.
#[tokio::test]
async fn a_batch_that_learns_of_a_clear_answers_no_key_with_what_that_has_ended() {
    let world = World::new();
    let (writer, reader) = (world.bare().cache, world.bare().cache);
    set(&writer, "plain", "1", &[]).await;
    set(&writer, "tagged", "2", &["x"]).await;
    confirmed(writer.invalidate_tag("y").await);
    // Knows the mark from now on, for a while; not the tag's.
    assert_eq!(get(&reader, "plain").await.as_deref(), Some("1"));
    confirmed(writer.clear().await);
    let found = reader.get_many(["plain", "tagged"]).await.unwrap();
    assert!(found.iter().all(Option::is_none));
    let reasons = reader.stats().miss_reasons;
    assert!(reasons.contains(&(MissReason::Invalidated, 2)), "{reasons:?}");
}

/// The mark is looked at by the first who finds it due. Should he leave before he has seen it, the next one looks.
#[tokio::test]
async fn who_leaves_does_not_take_the_look_at_the_mark_along() {
    let world = World::new();
    let (here, there) = (world.deaf(), world.bare());
    set(&there.cache, "k", "1", &["x"]).await;
    assert_eq!(get(&here.cache, "k").await.as_deref(), Some("1"));
    confirmed(there.cache.invalidate_tag("x").await);
    for _ in 0..5 {
        world.time.advance(PERIOD);
        here.l2.set(ChaosOp::Get, Fault::DelayReply(MS));
        assert!(futures::poll!(pin!(here.cache.get("other"))).is_pending());
        here.l2.set(ChaosOp::Get, Fault::None);
        settled().await;
    }
    assert_eq!(get(&here.cache, "k").await, None);
}
