//! Values of sets that a level has not taken: stored there when it is back, unless something has come between.

use std::{collections::BTreeSet, time::Duration};

use traced_cache::{
    Delivery, Loaded,
    testing::{ChaosOp, Fault},
};

use crate::world::{MS, Node, S, World, confirmed, get, set, settled};

/// The level takes nothing from `node`, and hears nothing of a key that it sets.
async fn set_in_vain(node: &Node, key: &str, value: &str) {
    node.l2.set_all(Fault::Fail);
    let answer = node.cache.set(key, value.to_owned()).await.unwrap();
    assert_eq!(answer, Delivery::Pending);
    settled().await;
}

/// Two nodes whose level holds "1", and has not taken "2" from the first of them.
async fn behind() -> (World, Node, Node) {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    set(&a.cache, "k", "1", &[]).await;
    set_in_vain(&a, "k", "2").await;
    (world, a, b)
}

async fn heal(world: &World, node: &Node) {
    heal_level(world, node).await;
    assert_eq!(node.cache.stats().pending, 0, "delivered");
}

/// The same where the backplane is cut: it has not taken that the key has changed.
async fn heal_level(world: &World, node: &Node) {
    node.l2.set_all(Fault::None);
    // A pause of the replay, at most, and the level's own time.
    world.pass(S + S / 2).await;
    assert!(node.cache.stats().pending <= 1, "delivered");
}

fn late(node: &Node) -> (u64, u64) {
    let stats = node.cache.stats();
    (stats.stored_late, stats.values_lost)
}

#[tokio::test]
async fn r11_a_set_that_failed_is_stored_when_the_level_is_back() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    set(&a.cache, "k", "1", &["x"]).await;
    assert_eq!(get(&b.cache, "k").await.as_deref(), Some("1"));
    set_in_vain(&a, "k", "2").await;
    assert_eq!(get(&b.cache, "k").await.as_deref(), Some("1"), "nobody else can have it yet");
    heal(&world, &a).await;
    for node in [&a, &b, &world.bare()] {
        assert_eq!(get(&node.cache, "k").await.as_deref(), Some("2"));
    }
    assert_eq!(late(&a), (1, 0));
}

#[tokio::test]
async fn the_last_of_several_is_stored() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    set(&a.cache, "k", "1", &[]).await;
    for value in ["2", "3", "4"] {
        set_in_vain(&a, "k", value).await;
    }
    heal(&world, &a).await;
    assert_eq!(get(&b.cache, "k").await.as_deref(), Some("4"));
    assert_eq!(late(&a), (1, 0));
}

#[tokio::test]
async fn one_whose_answer_was_lost_is_there_already() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    set(&a.cache, "k", "1", &[]).await;
    a.l2.set(ChaosOp::Put, Fault::LoseReply);
    assert_eq!(a.cache.set("k", "2".to_owned()).await.unwrap(), Delivery::Pending);
    a.l2.set_all(Fault::Fail);
    assert_eq!(a.cache.set("k", "3".to_owned()).await.unwrap(), Delivery::Pending);
    heal(&world, &a).await;
    assert_eq!(get(&b.cache, "k").await.as_deref(), Some("3"), "in the place of the one that had arrived");
}

#[tokio::test]
async fn r14_what_has_expired_is_not_stored() {
    let world = World::new();
    let (a, b) = (world.node(), world.bare());
    set(&a.cache, "k", "1", &[]).await;
    a.l2.set_all(Fault::Fail);
    let short = Loaded::value("2".to_owned()).ttl(2 * S).grace(Duration::ZERO);
    assert_eq!(a.cache.set_loaded("k", short).await.unwrap(), Delivery::Pending);
    world.pass(3 * S).await;
    heal(&world, &a).await;
    assert_eq!(get(&b.cache, "k").await, None, "and what it had replaced is gone");
    assert_eq!(late(&a), (0, 1));
}

/// PROTOCOL.md, section 11: a blind replay fails here.
#[tokio::test]
async fn what_has_been_invalidated_meanwhile_stays_so() {
    let (world, a, b) = behind().await;
    a.link.cut();
    confirmed(b.cache.invalidate("k").await);
    heal_level(&world, &a).await;
    for node in [&a, &b, &world.bare()] {
        assert_eq!(get(&node.cache, "k").await, None);
    }
    assert_eq!(late(&a), (0, 1));
}

#[tokio::test]
async fn what_has_been_invalidated_and_loaded_meanwhile_is_not_replaced() {
    for seconds in [1, 200] {
        let (world, a, b) = behind().await;
        a.link.cut();
        confirmed(b.cache.invalidate("k").await);
        // Ends before the level is back: then there is nothing, as if nobody had been there.
        let entry = Loaded::value("3".to_owned()).ttl(seconds * S).grace(Duration::ZERO);
        confirmed(b.cache.set_loaded("k", entry).await);
        world.pass(2 * S).await;
        heal_level(&world, &a).await;
        for node in [&a, &b, &world.bare()] {
            let held = get(&node.cache, "k").await;
            assert_ne!(held.as_deref(), Some("2"));
            assert_ne!(held.as_deref(), Some("1"));
        }
        assert_eq!(late(&a), (0, 1));
    }
}

#[tokio::test]
async fn what_has_been_expired_meanwhile_is_not_made_fresh() {
    let (world, a, b) = behind().await;
    a.link.cut();
    confirmed(b.cache.expire("k").await);
    heal_level(&world, &a).await;
    for node in [&a, &b, &world.bare()] {
        assert_eq!(get(&node.cache, "k").await, None, "nothing fresh");
    }
    assert_eq!(late(&a), (0, 1));
}

/// The same by this node, which knows that the level has yet to hear of the key and does not ask it.
#[tokio::test]
async fn what_this_node_has_expired_meanwhile_is_not_made_fresh() {
    let (world, a, b) = behind().await;
    assert_eq!(a.cache.expire("k").await.unwrap(), Delivery::Pending);
    heal(&world, &a).await;
    for node in [&a, &b, &world.bare()] {
        assert_eq!(get(&node.cache, "k").await, None, "nothing fresh");
    }
    assert_eq!(late(&a), (0, 1));
}

#[tokio::test]
async fn what_was_cleared_or_reached_by_its_tag_meanwhile_is_not_seen() {
    for clear in [false, true] {
        let world = World::new();
        let (a, b) = (world.node(), world.node());
        set(&a.cache, "k", "1", &["x"]).await;
        a.l2.set_all(Fault::Fail);
        let tagged = Loaded::value("2".to_owned()).tags(["x"]);
        assert_eq!(a.cache.set_loaded("k", tagged).await.unwrap(), Delivery::Pending);
        a.link.cut();
        confirmed(if clear { b.cache.clear().await } else { b.cache.invalidate_tag("x").await });
        heal_level(&world, &a).await;
        world.pass(S).await;
        for node in [&a, &b, &world.bare()] {
            assert_eq!(get(&node.cache, "k").await, None, "clear: {clear}");
        }
        if clear {
            assert_eq!(late(&a), (0, 1), "what nobody would believe is not stored");
        }
    }
}

#[tokio::test]
async fn without_knowing_what_was_there_nothing_is_stored() {
    let world = World::new();
    let (a, b) = (world.node(), world.bare());
    set(&b.cache, "k", "1", &[]).await;
    assert_eq!(get(&a.cache, "another").await, None);
    set_in_vain(&a, "k", "2").await;
    heal(&world, &a).await;
    assert_eq!(get(&b.cache, "k").await, None, "the old value is gone all the same");
    assert_eq!(late(&a), (0, 1));
}

#[tokio::test]
async fn an_invalidation_after_the_set_takes_its_value_along() {
    let world = World::new();
    let (a, b) = (world.node(), world.bare());
    set(&a.cache, "k", "1", &[]).await;
    set_in_vain(&a, "k", "2").await;
    assert_eq!(a.cache.invalidate("k").await.unwrap(), Delivery::Pending);
    heal(&world, &a).await;
    for node in [&a, &b] {
        assert_eq!(get(&node.cache, "k").await, None);
    }
    assert_eq!(late(&a), (0, 1));
}

#[tokio::test]
async fn a_later_set_that_succeeds_is_not_replaced() {
    let (world, a, b) = behind().await;
    a.l2.set_all(Fault::None);
    confirmed(a.cache.set("k", "3".to_owned()).await);
    world.pass(2 * S).await;
    for node in [&a, &b, &world.bare()] {
        assert_ne!(get(&node.cache, "k").await.as_deref(), Some("2"));
        assert_ne!(get(&node.cache, "k").await.as_deref(), Some("1"));
    }
}

#[tokio::test]
async fn a_level_that_surfaces_stores_nothing_later() {
    let world = World::new();
    let (a, b) = (world.bare(), world.bare());
    set(&a.cache, "k", "1", &[]).await;
    a.l2.set_all(Fault::Fail);
    a.cache.set("k", "2".to_owned()).await.unwrap_err();
    heal(&world, &a).await;
    assert_eq!(get(&b.cache, "k").await, None);
}

#[tokio::test]
async fn r13_values_make_room_and_invalidations_never_do() {
    let world = World::new();
    let (a, b) = (world.node(), world.bare());
    let keys: Vec<String> = (0..1_010).map(|n| n.to_string()).collect();
    for key in &keys {
        set(&a.cache, key, "old", &[]).await;
    }
    a.l2.set_all(Fault::Fail);
    for (n, key) in (0_u32..).zip(&keys) {
        // The later ones expire first.
        let entry = Loaded::value("new".to_owned()).ttl((5_000 - n) * S);
        assert_eq!(a.cache.set_loaded(key, entry).await.unwrap(), Delivery::Pending);
    }
    assert_eq!(a.cache.stats().pending, keys.len());
    a.l2.set_all(Fault::None);
    for _ in 0..10 {
        world.pass(S).await;
    }
    assert_eq!((a.cache.stats().pending, late(&a)), (0, (1_000, 10)));
    for (n, key) in keys.iter().enumerate() {
        let held = get(&b.cache, key).await;
        // Each new one has made room by itself or by the one before it, which expired first by then.
        assert_eq!(held.as_deref(), (n < 999 || n == 1_009).then_some("new"), "{n}");
    }
}

#[tokio::test]
async fn r16_nodes_agree_when_a_level_that_came_and_went_stays() {
    let world = World::new();
    let nodes: Vec<_> = (0..5).map(|_| world.node()).collect();
    let mut random = fastrand::Rng::with_seed(16);
    let mut written = BTreeSet::new();
    set(&nodes[0].cache, "k", "first", &[]).await;
    for round in 0..100 {
        for node in &nodes {
            node.l2.set_all(if round % 2 == 0 { Fault::Fail } else { Fault::None });
        }
        for writer in 0..50 {
            let node = &nodes[random.usize(..nodes.len())];
            let value = format!("{round}/{writer}");
            if node.cache.set("k", value.clone()).await.is_ok() {
                written.insert(value);
            }
            if writer % 10 == 0 {
                get(&nodes[random.usize(..nodes.len())].cache, "k").await;
            }
        }
        world.pass(100 * MS).await;
    }
    for node in &nodes {
        node.l2.set_all(Fault::None);
    }
    for _ in 0..5 {
        world.pass(S).await;
    }
    let mut held = BTreeSet::new();
    for node in nodes.iter().chain([&world.bare()]) {
        assert_eq!(node.cache.stats().pending, 0);
        held.insert(get(&node.cache, "k").await);
    }
    assert_eq!(held.len(), 1, "{held:?}");
    if let Some(Some(value)) = held.first() {
        assert!(written.contains(value), "{value}");
    }
    set(&nodes[3].cache, "k", "last", &[]).await;
    settled().await;
    for node in &nodes {
        assert_eq!(get(&node.cache, "k").await.as_deref(), Some("last"));
    }
}
