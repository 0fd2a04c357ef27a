//! Marks that the store has lost or rolled back, and marks that another node has changed unheard.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use traced_cache::{
    Access, Level, Outcome, TracedCache,
    testing::{ChaosOp, Fault},
};

use crate::world::{
    MS, PERIOD, Parted, S, Source, World, confirmed, done, get, level, policy, saw, set, settled,
};

#[tokio::test]
async fn g16_a_tags_mark_that_is_lost_makes_nothing_valid_again() {
    let world = World::new();
    let (a, b) = (world.node(), world.bare());
    set(&a.cache, "k", "1", &["x"]).await;
    set(&a.cache, "other", "2", &["y"]).await;
    settled().await;
    confirmed(a.cache.invalidate_tag("x").await);
    assert!(world.store.keys().contains(&"things~:x".to_owned()), "{:?}", world.store.keys());
    world.store.evict("things~:x");
    for node in [&b, &world.bare(), &world.node()] {
        assert_eq!(get(&node.cache, "k").await, None);
    }
    // Nor when somebody makes it anew.
    set(&a.cache, "third", "3", &["x"]).await;
    settled().await;
    for node in [&b, &world.bare(), &a] {
        assert_eq!(get(&node.cache, "k").await, None);
        assert_eq!(get(&node.cache, "third").await.as_deref(), Some("3"));
        assert_eq!(get(&node.cache, "other").await.as_deref(), Some("2"));
    }
}

#[tokio::test]
async fn g16_marks_of_tags_outlive_the_entries() {
    let world = World::new();
    let a = world.node();
    set(&a.cache, "k", "1", &["x"]).await;
    settled().await;
    let (entry, mark) = (world.store.ttl("things:k").unwrap(), world.store.ttl("things~:x").unwrap());
    assert!(mark >= entry * 2, "{mark:?} is not twice {entry:?}");
    // An entry that is loaded later is covered as well.
    world.pass(entry + S).await;
    set(&a.cache, "k", "2", &["x"]).await;
    settled().await;
    let (entry, mark) = (world.store.ttl("things:k").unwrap(), world.store.ttl("things~:x").unwrap());
    assert!(mark >= entry, "{mark:?} ends before {entry:?}");
}

#[tokio::test]
async fn a_caches_mark_that_is_lost_empties_the_cache() {
    let world = World::new();
    let (a, b) = (world.node(), world.deaf());
    set(&a.cache, "k", "1", &[]).await;
    assert_eq!(get(&b.cache, "k").await.as_deref(), Some("1"));
    world.store.evict("things:");
    world.pass(PERIOD).await;
    for node in [&b, &a, &world.bare()] {
        assert_eq!(get(&node.cache, "k").await, None);
    }
}

/// An invalidation finds the clear by its first swap, and its caller leaves with the second one under way.
#[tokio::test]
async fn what_a_caller_who_leaves_has_learned_memory_has_heeded() {
    let world = World::new();
    let (a, b) = (world.node(), world.deaf());
    set(&a.cache, "k", "1", &[]).await;
    assert_eq!(get(&b.cache, "k").await.as_deref(), Some("1"));
    confirmed(a.cache.clear().await);
    b.l2.set(ChaosOp::Swap, Fault::Delay(10 * MS));
    let cache = b.cache.clone();
    let leaving = tokio::spawn(async move { cache.invalidate_tag("x").await });
    settled().await;
    world.pass(10 * MS).await;
    assert_eq!((b.l2.calls(ChaosOp::Swap), leaving.is_finished()), (2, false));
    leaving.abort();
    settled().await;
    assert_eq!(get(&b.cache, "k").await, None);
}

/// The store answers and takes nothing, as a Redis does whose disk is full.
#[tokio::test]
async fn a_caches_mark_that_is_lost_and_cannot_be_made_anew_makes_nothing_valid_again() {
    let world = World::new();
    let (a, b, c) = (world.node(), world.deaf(), world.bare());
    set(&a.cache, "k", "1", &[]).await;
    for node in [&b, &c] {
        assert_eq!(get(&node.cache, "k").await.as_deref(), Some("1"));
    }
    confirmed(a.cache.clear().await);
    // It would make the mark anew.
    drop(a);
    world.store.evict("things:");
    for node in [&b, &c] {
        node.l2.set(ChaosOp::Swap, Fault::Fail);
        node.l2.set(ChaosOp::Put, Fault::Fail);
        node.l2.set(ChaosOp::Fill, Fault::Fail);
    }
    let source = Source::new();
    for _ in 0..3 {
        world.pass(PERIOD).await;
        for node in [&b, &c] {
            assert_eq!(get(&node.cache, "k").await, None);
            assert_eq!(get(&node.cache.access(Access::AllowStale), "k").await, None);
        }
    }
    // Memory holds what has been loaded since, though the mark is looked for all the time.
    source.has("other", "2", &["x"]);
    assert_eq!(source.ask(&b.cache, "other").await, saw(Outcome::Loaded, "2"));
    for _ in 0..3 {
        world.pass(PERIOD).await;
        assert_eq!(get(&b.cache, "k").await, None);
        assert_eq!(level(&b.cache, "other").await, Some(0));
    }
    for node in [&b, &c] {
        node.l2.set_all(Fault::None);
    }
    world.pass(PERIOD).await;
    set(&b.cache, "k", "2", &[]).await;
    for node in [&b, &c, &world.node()] {
        assert_eq!(get(&node.cache, "k").await.as_deref(), Some("2"));
    }
}

/// While the answer that there is no mark is under way, another look at it fails.
#[tokio::test]
async fn a_caches_mark_that_is_lost_is_missed_also_by_who_is_in_doubt() {
    let world = World::new();
    let (a, b) = (world.bare(), world.bare());
    set(&a.cache, "k", "1", &[]).await;
    assert_eq!(get(&b.cache, "k").await.as_deref(), Some("1"));
    confirmed(a.cache.clear().await);
    drop(a);
    world.store.evict("things:");
    // From here on each look-up asks for the mark.
    b.l2.set(ChaosOp::Get, Fault::Fail);
    world.pass(PERIOD).await;
    b.l2.set(ChaosOp::Get, Fault::DelayReply(200 * MS));
    let slow = tokio::spawn({
        let cache = b.cache.clone();
        async move { cache.get("k").await }
    });
    settled().await;
    b.l2.set(ChaosOp::Get, Fault::Fail);
    assert!(b.cache.get("k").await.is_err());
    b.l2.set_all(Fault::None);
    world.pass(200 * MS).await;
    assert_eq!(done(Some(&world), slow).await.unwrap(), None);
}

/// The server that has the mark does not answer, and the one that has the entry does.
#[tokio::test]
async fn what_is_said_to_be_gone_is_not_believed_while_the_mark_is_out_of_reach() {
    let world = World::new();
    let a = world.node();
    let parted = Arc::new(Parted { store: Arc::clone(&world.store), mute: AtomicBool::new(false) });
    let b: TracedCache<String> = TracedCache::builder("things")
        .clock(world.clock.clone())
        .policy(policy())
        .backplane(world.hub.node())
        .level(Level::new(Arc::clone(&parted)).breaker(None))
        .build()
        .unwrap();
    set(&a.cache, "k", "1", &[]).await;
    assert_eq!(get(&b, "k").await.as_deref(), Some("1"));
    parted.mute.store(true, Ordering::Relaxed);
    confirmed(a.cache.clear().await);
    settled().await;
    assert_eq!(b.get("k").await.ok().flatten(), None);
    parted.mute.store(false, Ordering::Relaxed);
    assert_eq!(get(&b, "k").await, None);
    set(&a.cache, "k", "2", &[]).await;
    assert_eq!(get(&b, "k").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_caches_mark_that_is_rolled_back_empties_the_cache() {
    let world = World::new();
    let (a, b) = (world.node(), world.deaf());
    set(&a.cache, "k", "1", &["x"]).await;
    settled().await;
    let before = world.store.peek("things:").unwrap();
    let tag_before = world.store.peek("things~:x").unwrap();
    confirmed(a.cache.invalidate_tag("x").await);
    assert_eq!(get(&b.cache, "k").await, None);
    world.store.plant("things:", before);
    world.store.plant("things~:x", tag_before);
    world.pass(PERIOD).await;
    for node in [&a, &b] {
        assert_eq!(get(&node.cache, "k").await, None);
    }
    // Whoever saw the later number has given the cache a new epoch, which everybody else sees.
    assert_eq!(get(&world.bare().cache, "k").await, None);
}

#[tokio::test]
async fn a_stale_idea_of_the_number_makes_no_mark_that_is_too_low() {
    let world = World::new();
    let (a, b) = (world.bare(), world.bare());
    set(&a.cache, "k", "1", &["x"]).await;
    settled().await;
    // B knows the number of now; later it stores something with a tag whose mark it does not know.
    assert_eq!(get(&b.cache, "none").await, None);
    confirmed(a.cache.invalidate_tag("other").await);
    set(&a.cache, "k", "1", &["x"]).await;
    confirmed(a.cache.invalidate_tag("x").await);
    world.store.evict("things~:x");
    b.l2.set(ChaosOp::Get, Fault::Fail);
    set(&b.cache, "mine", "2", &["x"]).await;
    settled().await;
    b.l2.set(ChaosOp::Get, Fault::None);
    world.pass(PERIOD).await;
    for node in [&a, &b, &world.bare()] {
        assert_eq!(get(&node.cache, "k").await, None, "invalidated, whoever has made the mark anew");
    }
}

#[tokio::test]
async fn without_a_backplane_memory_learns_of_tags_within_the_period() {
    let world = World::new();
    let (a, b) = (world.deaf(), world.deaf());
    set(&a.cache, "k", "1", &["x"]).await;
    set(&a.cache, "other", "2", &["y"]).await;
    set(&a.cache, "bare", "3", &[]).await;
    for key in ["k", "other", "bare"] {
        assert!(get(&b.cache, key).await.is_some());
        assert_eq!(level(&b.cache, key).await, Some(0));
    }
    settled().await;
    confirmed(a.cache.invalidate_tag("x").await);
    assert_eq!(level(&b.cache, "k").await, Some(0), "nobody has told it");
    world.pass(PERIOD).await;
    assert_eq!(get(&b.cache, "k").await, None);
    assert_eq!((level(&b.cache, "other").await, level(&b.cache, "bare").await), (Some(0), Some(0)));
    // The same for what ends all freshness, and for a clear.
    confirmed(a.cache.expire_all().await);
    world.pass(PERIOD).await;
    assert_eq!((get(&b.cache, "other").await, get(&b.cache, "bare").await), (None, None));
    assert!(get(&b.cache.access(Access::AllowStale), "other").await.is_some());
    confirmed(a.cache.clear().await);
    world.pass(PERIOD).await;
    assert_eq!(get(&b.cache.access(Access::AllowStale), "other").await, None);
}

/// The second counts from the node's last look, and whoever invalidates looks, too: between two rounds of the poll.
#[tokio::test]
async fn the_period_begins_with_whatever_looks_at_the_mark() {
    for whole in [false, true] {
        let world = World::new();
        let (a, b) = (world.deaf(), world.deaf());
        set(&a.cache, "k", "1", &["x"]).await;
        assert!(get(&b.cache, "k").await.is_some());
        world.pass(PERIOD / 2).await;
        confirmed(b.cache.invalidate_tag("other").await);
        assert_eq!(level(&b.cache, "k").await, Some(0));
        confirmed(if whole { a.cache.clear().await } else { a.cache.invalidate_tag("x").await });
        world.pass(PERIOD / 2).await;
        assert_eq!(level(&b.cache, "k").await, Some(0), "its last look is half a second ago");
        world.pass(PERIOD / 2).await;
        assert_eq!(get(&b.cache, "k").await, None);
    }
}

#[tokio::test]
async fn g11_what_has_tags_is_believed_for_a_while_without_the_store() {
    let world = World::new();
    let (a, b) = (world.deaf(), world.deaf());
    set(&a.cache, "tagged", "1", &["x"]).await;
    set(&a.cache, "bare", "2", &[]).await;
    for key in ["tagged", "bare"] {
        assert!(get(&b.cache, key).await.is_some());
    }
    b.l2.set_all(Fault::Fail);
    world.pass(9 * S).await;
    assert_eq!(level(&b.cache, "tagged").await, Some(0));
    for _ in 0..3 {
        world.pass(S).await;
    }
    let source = Source::new();
    source.has("tagged", "new", &["x"]);
    assert_eq!(level(&b.cache, "bare").await, Some(0), "what has none is bounded by its own time");
    assert_eq!(source.ask(&b.cache, "tagged").await, saw(Outcome::Loaded, "new"));
    assert_eq!(source.ask(&b.cache, "tagged").await, saw(Outcome::Hit, "new"), "proven by its load");
    // The store is back, and nothing has happened.
    b.l2.set_all(Fault::None);
    world.pass(2 * S).await;
    assert_eq!(level(&b.cache, "tagged").await, Some(0));
}

#[tokio::test]
async fn a_message_that_was_lost_shows_by_the_next_number() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    set(&a.cache, "one", "1", &["x"]).await;
    set(&a.cache, "two", "2", &["y"]).await;
    for key in ["one", "two"] {
        assert!(get(&b.cache, key).await.is_some());
    }
    settled().await;
    b.link.mute();
    confirmed(a.cache.invalidate_tag("x").await);
    assert_eq!(level(&b.cache, "one").await, Some(0), "it has not heard");
    b.link.unmute();
    confirmed(a.cache.invalidate_tag("z").await);
    // The next look at the store tells what was missed, at once and not only after the period.
    assert_eq!(get(&b.cache, "elsewhere").await, None);
    assert_eq!(get(&b.cache, "one").await, None);
    assert_eq!(level(&b.cache, "two").await, Some(0));
}

/// Between the read that finds nothing and the request for the lease, the store comes back with what it held before.
#[tokio::test]
async fn a_store_that_goes_back_in_the_middle_of_a_look_up_is_not_believed() {
    let world = World::new();
    for node in [world.bare(), world.node()] {
        set(&node.cache, "k", "old", &[]).await;
        let dump = world.store.dump();
        confirmed(node.cache.invalidate("k").await);
        node.l2.set(ChaosOp::Acquire, Fault::Delay(MS));
        let source = Source::new();
        source.has("k", "new", &[]);
        let asked = source.asking(&node.cache, "k").await;
        settled().await;
        assert_eq!(node.l2.calls(ChaosOp::Acquire), 1);
        world.store.restore(&dump);
        let (_, value) = done(Some(&world), asked).await;
        assert_eq!(value, "new");
        node.l2.reset();
        confirmed(node.cache.invalidate("k").await);
    }
}

/// The same between two tries to take the next number.
#[tokio::test]
async fn a_store_that_goes_back_under_an_invalidation_by_tag_is_not_believed() {
    let world = World::new();
    let a = world.bare();
    set(&a.cache, "k", "old", &[]).await;
    let dump = world.store.dump();
    // The dump has the cache's mark as it is, and none of the tag.
    set(&a.cache, "tagged", "1", &["x"]).await;
    settled().await;
    confirmed(a.cache.invalidate("k").await);
    a.l2.set(ChaosOp::Swap, Fault::Delay(MS));
    let invalidating = tokio::spawn({
        let cache = a.cache.clone();
        async move { confirmed(cache.invalidate_tag("x").await) }
    });
    settled().await;
    world.store.restore(&dump);
    done(Some(&world), invalidating).await;
    assert_eq!(get(&a.cache, "k").await, None);
}

/// The answer to an own invalidation comes after a look at the mark that has shown a later one.
#[tokio::test]
async fn a_number_that_is_known_is_not_forgotten_for_an_earlier_one() {
    let world = World::new();
    let (a, b) = (world.bare(), world.bare());
    set(&a.cache, "warm", "1", &["w"]).await;
    settled().await;
    world.pass(PERIOD - 100 * MS).await;
    a.l2.set(ChaosOp::Swap, Fault::DelayReply(200 * MS));
    let invalidating = tokio::spawn({
        let cache = a.cache.clone();
        async move { confirmed(cache.invalidate_tag("w").await) }
    });
    settled().await;
    a.l2.set(ChaosOp::Swap, Fault::None);
    set(&b.cache, "k", "old", &["y"]).await;
    settled().await;
    confirmed(b.cache.invalidate_tag("y").await);
    world.pass(110 * MS).await;
    assert_eq!(get(&a.cache, "k").await, None, "the period is over");
    world.pass(100 * MS).await;
    done(Some(&world), invalidating).await;
    assert_eq!(get(&a.cache, "k").await, None);
}

/// What somebody has written by hand in the place of a mark. Nobody's entries may be out of use for good by that.
#[tokio::test]
async fn a_mark_that_makes_no_sense_costs_what_was_there_and_nothing_that_comes() {
    let world = World::new();
    let (a, b) = (world.node(), world.deaf());
    set(&a.cache, "k", "1", &["x"]).await;
    settled().await;
    let mark = String::from_utf8(world.store.peek("things:").unwrap().to_vec()).unwrap();
    let [_, home, epoch, ..] = mark.split(' ').collect::<Vec<_>>()[..] else { panic!("{mark}") };
    for garbage in [
        String::new(),
        "mark1".to_owned(),
        "\0".repeat(1000),
        format!("mark1 {home} {epoch} 0 1"),
        format!("mark1 {home} {epoch} 5 18446744073709551615"),
        format!("mark1 {home} {epoch} 18446744073709551615 0"),
        format!("mark1 {home} {epoch} 9223372036854775807 9223372036854775807"),
        format!("mark1 {home} {epoch} -1 -1"),
        format!("mark1 {home} 0000000000000000 0 0"),
        "mark1 ffffffffffffffff ffffffffffffffff 7 7".to_owned(),
        format!("mark9 {home} {epoch} 0 0"),
    ] {
        world.store.plant("things:", garbage.clone());
        world.pass(PERIOD).await;
        for node in [&b, &a] {
            let _ = get(&node.cache, "k").await;
        }
        for (n, node) in [&a, &b, &world.bare()].into_iter().enumerate() {
            let value = n.to_string();
            world.pass(PERIOD).await;
            let _ = get(&node.cache, "k").await;
            set(&node.cache, "k", &value, &["x"]).await;
            settled().await;
            assert_eq!(get(&world.bare().cache, "k").await, Some(value), "{garbage:?}");
            confirmed(node.cache.expire_all().await);
            confirmed(node.cache.invalidate_tag("x").await);
            assert_eq!(get(&world.bare().cache, "k").await, None, "{garbage:?}");
        }
    }
}

#[tokio::test]
async fn a_mark_of_a_tag_that_makes_no_sense_costs_what_was_there_and_nothing_that_comes() {
    let world = World::new();
    let (a, b) = (world.node(), world.deaf());
    set(&a.cache, "k", "1", &["x"]).await;
    settled().await;
    let mark = String::from_utf8(world.store.peek("things~:x").unwrap().to_vec()).unwrap();
    let [_, epoch, ..] = mark.split(' ').collect::<Vec<_>>()[..] else { panic!("{mark}") };
    for garbage in [
        String::new(),
        "\0".repeat(1000),
        format!("tag1 {epoch} 18446744073709551615 0"),
        format!("tag1 {epoch} 0 18446744073709551615"),
        format!("tag1 {epoch} 10000000 10000000"),
        format!("tag1 {epoch} 9223372036854775807 9223372036854775807"),
        format!("tag1 {epoch} -1 -1"),
        "tag1 0000000000000000 0 0".to_owned(),
    ] {
        world.store.plant("things~:x", garbage.clone());
        world.pass(PERIOD).await;
        for node in [&a, &b, &world.bare()] {
            let _ = get(&node.cache, "k").await;
        }
        // Another tag's invalidation has the marks of this entry's looked at: what misses it loads it.
        for node in [&world.bare(), &world.bare()] {
            set(&node.cache, "k", "2", &["x"]).await;
            settled().await;
            confirmed(node.cache.invalidate_tag("other").await);
            let _ = get(&node.cache, "k").await;
        }
        let (writer, reader) = (world.bare(), world.bare());
        set(&writer.cache, "k", "3", &["x"]).await;
        settled().await;
        confirmed(reader.cache.invalidate_tag("other").await);
        assert_eq!(get(&reader.cache, "k").await.as_deref(), Some("3"), "{garbage:?}");
        confirmed(writer.cache.invalidate_tag("x").await);
        assert_eq!(get(&world.bare().cache, "k").await, None, "{garbage:?}");
    }
}
