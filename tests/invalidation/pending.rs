//! Invalidations that a level has not heard of yet.

use traced_cache::{Delivery, Outcome, Scope, testing::Fault};

use crate::world::{MS, S, Source, World, confirmed, get, saw, set, settled};

#[tokio::test]
async fn a_tag_is_masked_until_the_level_has_heard() {
    let world = World::new();
    let (a, b) = (world.node(), world.bare());
    set(&a.cache, "k", "1", &["x"]).await;
    set(&a.cache, "other", "2", &["y"]).await;
    settled().await;
    a.l2.set_all(Fault::Fail);
    assert_eq!(a.cache.invalidate_tag("x").await.unwrap(), Delivery::Pending);
    assert_eq!(a.cache.stats().pending, 1);
    assert_eq!(get(&b.cache, "k").await.as_deref(), Some("1"), "nobody else can know");
    // Reads work again, writes do not: the level has it, and this node does not believe it.
    for op in [traced_cache::testing::ChaosOp::Get, traced_cache::testing::ChaosOp::Ping] {
        a.l2.set(op, Fault::None);
    }
    assert_eq!(get(&a.cache, "k").await, None);
    assert_eq!(get(&a.cache, "other").await.as_deref(), Some("2"));
    a.l2.set_all(Fault::None);
    world.pass(5 * S).await;
    assert_eq!(a.cache.stats().pending, 0);
    for node in [&a, &b] {
        assert_eq!(get(&node.cache, "k").await, None, "delivered");
    }
    set(&a.cache, "k", "3", &["x"]).await;
    assert_eq!(get(&b.cache, "k").await.as_deref(), Some("3"));
}

#[tokio::test]
async fn what_is_loaded_meanwhile_stays_out_of_the_level() {
    let world = World::new();
    let (a, b) = (world.node(), world.bare());
    let source = Source::new();
    source.has("k", "old", &["x"]);
    source.ask(&a.cache, "k").await;
    a.l2.set(traced_cache::testing::ChaosOp::Swap, Fault::Fail);
    assert_eq!(a.cache.invalidate_tag("x").await.unwrap(), Delivery::Pending);
    source.has("k", "new", &["x"]);
    assert_eq!(source.ask(&a.cache, "k").await, saw(Outcome::Loaded, "new"));
    assert_eq!(source.ask(&a.cache, "k").await, saw(Outcome::Hit, "new"), "memory has it");
    settled().await;
    a.l2.set_all(Fault::None);
    world.pass(5 * S).await;
    assert_eq!(get(&b.cache, "k").await, None);
    assert_eq!(source.ask(&a.cache, "k").await, saw(Outcome::Hit, "new"));
}

#[tokio::test]
async fn a_lost_reply_is_no_confirmation_and_does_no_harm() {
    let world = World::new();
    let (a, b) = (world.node(), world.bare());
    set(&a.cache, "k", "1", &["x"]).await;
    settled().await;
    a.l2.set(traced_cache::testing::ChaosOp::Swap, Fault::LoseReply);
    assert_eq!(a.cache.invalidate_tag("x").await.unwrap(), Delivery::Pending);
    a.l2.set_all(Fault::None);
    world.pass(5 * S).await;
    assert_eq!((a.cache.stats().pending, get(&b.cache, "k").await), (0, None));
}

#[tokio::test]
async fn close_tells_of_tags_that_a_level_has_not_heard() {
    let world = World::new();
    let a = world.node();
    set(&a.cache, "k", "1", &["x"]).await;
    a.l2.set_all(Fault::Fail);
    assert_eq!(a.cache.invalidate_tag("x").await.unwrap(), Delivery::Pending);
    let closing = tokio::spawn({
        let cache = a.cache.clone();
        async move { cache.close(S).await }
    });
    world.pass(2 * S).await;
    let closed = closing.await.unwrap();
    assert_eq!(closed.undelivered().len(), 1);
    let left = &closed.undelivered()[0];
    assert_eq!((left.scope, left.name.as_deref()), (Scope::Tag, Some("x")));
    assert!(!format!("{closed:?}").contains("\"x\""), "tags stay out of Debug");
}

#[tokio::test]
async fn a_caller_who_leaves_in_the_middle_leaves_no_old_value() {
    let world = World::new();
    let (a, b) = (world.node(), world.bare());
    set(&a.cache, "k", "1", &["x"]).await;
    settled().await;
    a.l2.set(traced_cache::testing::ChaosOp::Swap, Fault::Hang);
    {
        let leaving = a.cache.invalidate_tag("x");
        tokio::pin!(leaving);
        assert!(futures::poll!(&mut leaving).is_pending());
    }
    assert_eq!(get(&a.cache, "k").await, None);
    a.l2.set_all(Fault::None);
    for _ in 0..50 {
        world.pass(100 * MS).await;
    }
    assert_eq!((get(&b.cache, "k").await, a.cache.stats().pending), (None, 0));
    confirmed(a.cache.invalidate_tag("x").await);
}
