//! A level that goes on with another store, on purpose: memory keeps what it holds, and nothing that was invalidated comes
//! back.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use traced_cache::{
    Backplane, BoxError, CacheProvider, Capabilities, ErrorKind, Level, Listener, Loaded, Outcome, Policy,
    TracedCache,
    testing::{Hub, Link, MapProvider},
};

use crate::world::{S, World, ask_for, confirmed, memory, saw};

const POLICY: Policy = Policy::ttl(std::time::Duration::from_secs(1_000));

/// Stores with names of their own.
fn stores<const N: usize>(world: &World) -> [Arc<MapProvider>; N] {
    std::array::from_fn(|n| {
        Arc::new(MapProvider::new().leasing().marking().incarnated(n as u64 + 10).clock(world.clock.clone()))
    })
}

fn node(world: &World, store: &Arc<MapProvider>) -> TracedCache<String> {
    let level = Level::new(Arc::clone(store)).budget(10 * S);
    world.builder(POLICY).level(memory()).level(level).build().unwrap()
}

/// The same, over a channel.
fn heard(world: &World, store: &Arc<MapProvider>, link: impl Backplane) -> TracedCache<String> {
    let level = Level::new(Arc::clone(store)).budget(10 * S);
    world.builder(POLICY).level(memory()).level(level).backplane(link).build().unwrap()
}

/// Two nodes that both hold one entry with a tag, and one without.
async fn with_tags(world: &World, store: &Arc<MapProvider>) -> [TracedCache<String>; 2] {
    let (first, second) = (node(world, store), node(world, store));
    confirmed(first.set_loaded("tagged", Loaded::value("1".to_owned()).tag("t")).await);
    confirmed(first.set("plain", "1".to_owned()).await);
    for key in ["tagged", "plain"] {
        assert_eq!(outcome(&second, key).await, (Outcome::Hit, Some(1)));
    }
    [first, second]
}

fn shared(store: &Arc<MapProvider>) -> Arc<dyn CacheProvider> {
    Arc::clone(store) as _
}

async fn outcome(cache: &TracedCache<String>, key: &str) -> (Outcome, Option<usize>) {
    let found = cache.look(key).await.unwrap();
    (found.outcome(), found.level())
}

const IN_MEMORY: (Outcome, Option<usize>) = (Outcome::Hit, Some(0));
const MISS: (Outcome, Option<usize>) = (Outcome::Miss, None);

#[tokio::test]
async fn memory_keeps_what_it_holds_and_the_new_store_is_used() {
    let world = World::new();
    let [a, b] = stores(&world);
    let (cache, db) = (node(&world, &a), world.db());
    for key in ["x", "y"] {
        ask_for(&cache, key, &db).await.unwrap();
    }
    cache.move_level(1, shared(&b)).unwrap();
    assert_eq!(outcome(&cache, "x").await, IN_MEMORY);
    // A read that goes to the new store meets its marks: still nothing is lost.
    assert_eq!(outcome(&cache, "z").await, MISS);
    assert_eq!(outcome(&cache, "y").await, IN_MEMORY);
    assert_eq!(ask_for(&cache, "z", &db).await, saw(Outcome::Loaded, "1"));
    confirmed(cache.set("set", "2".to_owned()).await);
    // From here on the new store has what is stored, and hears what is invalidated.
    let other = node(&world, &b);
    assert_eq!(outcome(&other, "z").await, (Outcome::Hit, Some(1)));
    assert_eq!(outcome(&other, "set").await, (Outcome::Hit, Some(1)));
    assert_eq!(outcome(&other, "x").await, MISS);
    confirmed(cache.invalidate("z").await);
    confirmed(cache.invalidate("x").await);
    assert_eq!(outcome(&node(&world, &b), "z").await, MISS);
    assert_eq!(outcome(&cache, "x").await, MISS);
    assert_eq!(cache.stats().flights, 0);
}

#[tokio::test]
async fn nodes_that_move_one_after_the_other_keep_their_memory() {
    let world = World::new();
    let [a, b] = stores(&world);
    let (first, second, third, db) = (node(&world, &a), node(&world, &a), node(&world, &a), world.db());
    for cache in [&first, &second, &third] {
        ask_for(cache, "k", &db).await.unwrap();
    }
    for cache in [&first, &second] {
        cache.move_level(1, shared(&b)).unwrap();
        assert_eq!(outcome(cache, "other").await, MISS);
        assert_eq!(outcome(cache, "k").await, IN_MEMORY);
    }
    // Cleared in the new store, before the last one has come.
    confirmed(first.clear().await);
    third.move_level(1, shared(&b)).unwrap();
    assert_eq!(outcome(&third, "other").await, MISS);
    assert_eq!(outcome(&third, "k").await, MISS, "it has been cleared");
}

#[tokio::test]
async fn what_a_node_has_invalidated_does_not_come_back_from_where_others_went_before_it() {
    let world = World::new();
    // Also of stores that do not tell one from the other.
    let nameless = || Arc::new(MapProvider::new().leasing().marking().clock(world.clock.clone()));
    for (named, [a, b]) in [(true, stores(&world)), (false, [nameless(), nameless()])] {
        let (here, there, db) = (node(&world, &a), node(&world, &a), world.db());
        for cache in [&here, &there] {
            assert_eq!(outcome(cache, "other").await, MISS);
        }
        there.move_level(1, shared(&b)).unwrap();
        ask_for(&there, "k", &db).await.unwrap();
        assert_eq!(outcome(&node(&world, &b), "k").await, (Outcome::Hit, Some(1)));
        confirmed(here.invalidate("k").await);
        here.move_level(1, shared(&b)).unwrap();
        assert_eq!(outcome(&here, "k").await, MISS, "named: {named}");
    }
}

#[tokio::test]
async fn a_tag_invalidated_in_the_new_store_counts_for_who_comes_later() {
    let world = World::new();
    let [a, b] = stores(&world);
    let [first, second] = with_tags(&world, &a).await;
    first.move_level(1, shared(&b)).unwrap();
    confirmed(first.invalidate_tag("t").await);
    assert_eq!(outcome(&first, "tagged").await, MISS);
    second.move_level(1, shared(&b)).unwrap();
    assert_eq!(outcome(&second, "other").await, MISS);
    assert_eq!(outcome(&second, "tagged").await, MISS);
    assert_eq!(outcome(&second, "plain").await, IN_MEMORY);
}

#[tokio::test]
async fn a_tag_invalidated_in_the_old_store_counts_for_who_has_not_looked_since() {
    let world = World::new();
    let [a, b] = stores(&world);
    let [first, second] = with_tags(&world, &a).await;
    confirmed(first.invalidate_tag("t").await);
    for cache in [&first, &second] {
        cache.move_level(1, shared(&b)).unwrap();
        assert_eq!(outcome(cache, "other").await, MISS);
        assert_eq!(outcome(cache, "tagged").await, MISS);
    }
    assert_eq!(outcome(&second, "plain").await, IN_MEMORY);
    // Of what the new store has, its own marks tell.
    confirmed(second.set_loaded("tagged", Loaded::value("2".to_owned()).tag("t")).await);
    assert_eq!(outcome(&second, "tagged").await, IN_MEMORY);
}

#[tokio::test]
async fn what_a_store_has_missed_does_not_come_back_with_it() {
    let world = World::new();
    let [a, b] = stores(&world);
    let cache = node(&world, &a);
    confirmed(cache.set("k", "old".to_owned()).await);
    // Whether the new store's marks have been read in the meantime, or not.
    for reads in [false, true] {
        cache.move_level(1, shared(&b)).unwrap();
        if reads {
            assert_eq!(outcome(&cache, "other").await, MISS);
        }
        confirmed(cache.invalidate("k").await);
        // Back to where the old value still lies.
        cache.move_level(1, shared(&a)).unwrap();
        assert_eq!(outcome(&cache, "k").await, MISS);
        assert_eq!(outcome(&node(&world, &a), "k").await, MISS);
        confirmed(cache.set("k", "new".to_owned()).await);
        assert_eq!(outcome(&node(&world, &a), "k").await, (Outcome::Hit, Some(1)));
    }
}

#[tokio::test]
async fn another_way_to_the_same_store_loses_nothing_at_all() {
    let world = World::new();
    let [a] = stores(&world);
    let cache = node(&world, &a);
    confirmed(cache.set("k", "1".to_owned()).await);
    // A provider of its own, as after a change of password.
    let again: Arc<dyn CacheProvider> = Arc::new(Arc::clone(&a));
    cache.move_level(1, again).unwrap();
    assert_eq!(outcome(&cache, "other").await, MISS);
    assert_eq!(outcome(&cache, "k").await, IN_MEMORY);
    assert_eq!(
        outcome(&node(&world, &a), "k").await,
        (Outcome::Hit, Some(1)),
        "nor has the store been emptied"
    );
    confirmed(cache.invalidate("k").await);
    assert_eq!(outcome(&node(&world, &a), "k").await, MISS);
}

#[tokio::test]
async fn a_store_that_was_restored_from_the_old_one_is_not_believed() {
    let world = World::new();
    let [a, b] = stores(&world);
    let cache = node(&world, &a);
    confirmed(cache.set("k", "old".to_owned()).await);
    b.restore(&a.dump());
    confirmed(cache.invalidate("k").await);
    confirmed(cache.set("kept", "1".to_owned()).await);
    cache.move_level(1, shared(&b)).unwrap();
    assert_eq!(outcome(&cache, "k").await, MISS, "the copy is of before");
    assert_eq!(outcome(&cache, "kept").await, IN_MEMORY);
}

#[tokio::test]
async fn what_cannot_move_says_why_and_changes_nothing() {
    let world = World::new();
    let [a, b] = stores(&world);
    let cache = node(&world, &a);
    confirmed(cache.set("k", "1".to_owned()).await);
    let small = Arc::new(MapProvider::with(Capabilities::remote().value_max(100)));
    for (done, starts) in [
        (cache.move_level(0, shared(&b)), "level 1 (memory) provider = in process"),
        (cache.move_level(1, Arc::new(memory())), "level 2 (map) provider = in process"),
        (cache.move_level(1, small), "level 2 (map) provider = map: the new provider can do something else"),
        (cache.move_level(2, shared(&b)), "level = 2: the cache has 2 of them"),
        (
            cache.move_backplane(Arc::new(Hub::new().node())),
            "backplane = none: the cache was built without one",
        ),
    ] {
        let error = done.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(starts), "{error}");
    }
    assert_eq!(outcome(&node(&world, &a), "k").await, (Outcome::Hit, Some(1)));
    confirmed(cache.invalidate("k").await);
    assert_eq!(outcome(&node(&world, &a), "k").await, MISS);
}

#[tokio::test]
async fn another_channel_takes_over_without_a_gap() {
    let world = World::new();
    let [a] = stores(&world);
    let (old, new) = (Hub::new(), Hub::new());
    let left = old.node();
    let (here, there) = (heard(&world, &a, left.clone()), heard(&world, &a, old.node()));
    for cache in [&here, &there] {
        ask_for(cache, "k", &world.db()).await.unwrap();
        ask_for(cache, "l", &world.db()).await.unwrap();
    }
    let (link, other) = (new.node(), new.node());
    here.move_backplane(Arc::new(link.clone())).unwrap();
    assert_eq!(outcome(&here, "k").await, IN_MEMORY, "coming up is no gap here");
    left.notice();
    assert_eq!(outcome(&here, "k").await, IN_MEMORY, "nor is the end of the one before");
    there.move_backplane(Arc::new(other)).unwrap();
    confirmed(there.invalidate("k").await);
    assert_eq!(outcome(&here, "k").await, MISS);
    confirmed(here.invalidate("l").await);
    assert_eq!(outcome(&there, "l").await, MISS);
    // A gap of the new channel is one.
    ask_for(&here, "k", &world.db()).await.unwrap();
    link.notice();
    assert_ne!(outcome(&here, "k").await, IN_MEMORY);
}

#[tokio::test]
async fn a_channel_that_had_a_gap_is_not_taken_over_from_without_one() {
    let world = World::new();
    let [a] = stores(&world);
    let (old, new) = (Hub::new(), Hub::new());
    let (left, there) = (old.node(), heard(&world, &a, new.node()));
    let here = heard(&world, &a, left.clone());
    ask_for(&here, "other", &world.db()).await.unwrap();
    // Lost, and noticed; from here on memory may hold what nobody tells of.
    left.cut();
    left.notice();
    ask_for(&here, "k", &world.db()).await.unwrap();
    // By a node that has moved already.
    confirmed(there.invalidate("k").await);
    here.move_backplane(Arc::new(new.node())).unwrap();
    assert_eq!(outcome(&here, "k").await, MISS);
    // The channel of now has had none.
    ask_for(&here, "k", &world.db()).await.unwrap();
    here.move_backplane(Arc::new(new.node())).unwrap();
    assert_eq!(outcome(&here, "k").await, IN_MEMORY);
}

/// Two nodes over a channel, which alone hold their links, and both hold three entries.
async fn filled(world: &World, store: &Arc<MapProvider>, hub: &Hub) -> [TracedCache<String>; 2] {
    let nodes = [heard(world, store, hub.node()), heard(world, store, hub.node())];
    for key in ["k", "l", "m"] {
        for cache in &nodes {
            ask_for(cache, key, &world.db()).await.unwrap();
        }
    }
    nodes
}

#[tokio::test]
async fn a_channel_that_is_down_takes_nothing_over() {
    let world = World::new();
    let [a] = stores(&world);
    let (old, new) = (Hub::new(), Hub::new());
    let [here, there] = filled(&world, &a, &old).await;
    let cut = new.node();
    cut.cut();
    here.move_backplane(Arc::new(cut.clone())).unwrap();
    for key in ["k", "l"] {
        cut.notice();
        assert_eq!(outcome(&here, key).await, IN_MEMORY, "nothing is missed");
        confirmed(there.invalidate(key).await);
        assert_eq!(outcome(&here, key).await, MISS, "the old one is listened to");
    }
    cut.heal();
    assert_eq!(outcome(&here, "m").await, IN_MEMORY, "until it has come up");
    cut.cut();
    cut.notice();
    assert_ne!(outcome(&here, "m").await, IN_MEMORY);
}

/// The one that is listened to is the last that has come up, whatever has been tried since.
#[tokio::test]
async fn two_channels_that_are_down_take_nothing_over() {
    let world = World::new();
    let [a] = stores(&world);
    let (old, new) = (Hub::new(), Hub::new());
    let [here, there] = filled(&world, &a, &old).await;
    for key in ["k", "l"] {
        let link = new.node();
        link.cut();
        here.move_backplane(Arc::new(link.clone())).unwrap();
        link.notice();
        confirmed(there.invalidate(key).await);
        assert_eq!(outcome(&here, key).await, MISS);
    }
    assert_eq!(outcome(&here, "m").await, IN_MEMORY);
}

/// A link that shows whether anybody still holds it.
struct Held(Link, #[allow(dead_code, reason = "it is counted")] Arc<()>);

#[async_trait]
impl Backplane for Held {
    async fn publish(&self, cache: &str, message: Bytes) -> Result<(), BoxError> {
        self.0.publish(cache, message).await
    }

    fn subscribe(&self, cache: &str, listener: Arc<dyn Listener>) {
        self.0.subscribe(cache, listener);
    }
}

/// Takes what subscribes, and never comes up.
struct Silent;

#[async_trait]
impl Backplane for Silent {
    async fn publish(&self, _cache: &str, _message: Bytes) -> Result<(), BoxError> {
        Err("it is not up".into())
    }

    fn subscribe(&self, _cache: &str, _listener: Arc<dyn Listener>) {}
}

#[tokio::test]
async fn a_channel_is_let_go_of_once_another_is_up_or_the_cache_is_closed() {
    let world = World::new();
    let [a] = stores(&world);
    let held = Arc::new(());
    let link = || Held(Hub::new().node(), Arc::clone(&held));
    let cache = heard(&world, &a, link());
    ask_for(&cache, "k", &world.db()).await.unwrap();
    cache.move_backplane(Arc::new(link())).unwrap();
    assert_eq!(Arc::strong_count(&held), 2, "the second is up");
    cache.move_backplane(Arc::new(Silent)).unwrap();
    assert_eq!(Arc::strong_count(&held), 2, "the third is not");
    assert!(cache.close(S).await.is_drained());
    assert_eq!(Arc::strong_count(&held), 1);
}
