//! Invalidations that a level has not heard of yet.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::watch;
use traced_cache::{
    Access, Backplane, BoxError, Delivery, ErrorKind, Listener, Memory, Outcome, Scope, TracedCache,
    testing::{ChaosOp, Fault, Link, MapProvider},
};

use crate::world::{MS, Node, S, Source, World, confirmed, done, get, policy, runtime, saw, set, settled};

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
    for op in [ChaosOp::Get, ChaosOp::Ping] {
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
    a.l2.set(ChaosOp::Swap, Fault::Fail);
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
    a.l2.set(ChaosOp::Swap, Fault::LoseReply);
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
    assert_eq!((left.level, left.scope, left.name.as_deref()), (Some(1), Scope::Tag, Some("x")));
    assert!(!format!("{closed:?}").contains("\"x\""), "tags stay out of Debug");
}

/// Every level has heard, and other nodes' memory has not.
#[tokio::test]
async fn what_the_backplane_has_not_taken_is_pending_and_what_it_never_takes_is_undelivered() {
    let world = World::new();
    let (a, b) = (world.node(), world.node());
    for node in [&a, &b] {
        set(&node.cache, "k", "1", &["x"]).await;
    }
    settled().await;
    a.link.cut();
    assert_eq!(a.cache.invalidate("k").await.unwrap(), Delivery::Pending);
    assert_eq!(a.cache.invalidate_tag("x").await.unwrap(), Delivery::Pending);
    assert_eq!(a.cache.stats().pending, 2);
    a.link.heal();
    world.pass(2 * S).await;
    assert_eq!(a.cache.stats().pending, 0);
    a.link.cut();
    assert_eq!(a.cache.clear().await.unwrap(), Delivery::Pending);
    assert_eq!(a.cache.stats().pending, 1);
    let closing = tokio::spawn({
        let cache = a.cache.clone();
        async move { cache.close(S).await }
    });
    world.pass(2 * S).await;
    let closed = closing.await.unwrap();
    let told: Vec<_> = closed.undelivered().iter().map(|u| (u.level, u.scope, u.name.as_deref())).collect();
    assert_eq!(told, [(None, Scope::Cache, None)]);
}

/// A link that answers nobody while it hangs.
struct Hanging(Link, Arc<watch::Sender<bool>>);

#[async_trait]
impl Backplane for Hanging {
    async fn publish(&self, cache: &str, message: Bytes) -> Result<(), BoxError> {
        self.1.subscribe().wait_for(|hangs| !hangs).await?;
        self.0.publish(cache, message).await
    }

    fn subscribe(&self, cache: &str, listener: Arc<dyn Listener>) {
        self.0.subscribe(cache, listener);
    }
}

#[tokio::test]
async fn a_backplane_that_hangs_costs_one_caller_its_time() {
    let world = World::new();
    let hangs = Arc::new(watch::Sender::new(false));
    let node = || {
        let link = Hanging(world.hub.node(), Arc::clone(&hangs));
        let builder = TracedCache::<String>::builder("things").clock(world.clock.clone()).policy(policy());
        builder.level(Memory::entries(100).engine_expiry(false)).backplane(link).build().unwrap()
    };
    let (a, b) = (node(), node());
    for (key, tags) in [("k", &[][..]), ("l", &[]), ("tagged", &["x"])] {
        set(&b, key, "1", tags).await;
    }
    hangs.send_replace(true);
    let first = tokio::spawn({
        let a = a.clone();
        async move { a.invalidate("k").await.unwrap() }
    });
    settled().await;
    assert!(!first.is_finished());
    world.pass(250 * MS).await;
    assert_eq!(first.await.unwrap(), Delivery::Pending);
    // It is known by then; who tells it of the first one again finds out when it answers.
    for _ in 0..3 {
        assert_eq!(a.invalidate("l").now_or_never().expect("at once").unwrap(), Delivery::Pending);
        assert_eq!(a.invalidate_tag("x").now_or_never().expect("at once").unwrap(), Delivery::Pending);
        world.pass(S).await;
    }
    assert_eq!(a.stats().pending, 3);
    assert!(get(&b, "k").await.is_some(), "nobody has told it");
    hangs.send_replace(false);
    for _ in 0..3 {
        world.pass(S).await;
    }
    assert_eq!(a.stats().pending, 0);
    for key in ["k", "l", "tagged"] {
        assert_eq!(get(&b, key).await, None, "{key}");
    }
    confirmed(a.invalidate("k").await);
}

/// A call whose levels have heard, and whose channel has not taken its message yet.
async fn untold(a: &TracedCache<String>, verb: &str) {
    let told = match verb {
        "clear" => a.clear().await,
        "expire_all" => a.expire_all().await,
        "invalidate" => a.invalidate("k").await,
        "expire" => a.expire("k").await,
        "set" => a.set("k", "2".to_owned()).await,
        _ => a.invalidate_tag("x").await,
    };
    assert_eq!(told.unwrap_err().kind(), ErrorKind::Closed);
}

/// Nodes with memory alone, or with a level of their own behind it, that tell each other.
fn hanging(world: &World, hangs: &Arc<watch::Sender<bool>>, level: bool) -> TracedCache<String> {
    let link = Hanging(world.hub.node(), Arc::clone(hangs));
    let builder = TracedCache::<String>::builder("things").clock(world.clock.clone()).policy(policy());
    let builder = builder.level(Memory::entries(100).engine_expiry(false)).backplane(link);
    match level {
        true => builder.level(MapProvider::new().marking().clock(world.clock.clone())).build().unwrap(),
        false => builder.build().unwrap(),
    }
}

#[tokio::test]
async fn a_caller_who_leaves_before_the_channel_has_taken_its_message_leaves_it_to_be_told() {
    for verb in ["clear", "expire_all", "invalidate_tag", "invalidate", "expire", "set"] {
        let (world, hangs) = (World::new(), Arc::new(watch::Sender::new(false)));
        let (a, b) = (hanging(&world, &hangs, false), hanging(&world, &hangs, false));
        set(&b, "k", "1", &["x"]).await;
        set(&a, "other", "1", &[]).await;
        settled().await;
        hangs.send_replace(true);
        {
            let leaving = untold(&a, verb);
            tokio::pin!(leaving);
            assert!(futures::poll!(&mut leaving).is_pending());
        }
        hangs.send_replace(false);
        for _ in 0..5 {
            world.pass(S).await;
        }
        assert_eq!((get(&b, "k").await, a.stats().pending), (None, 0), "{verb}");
    }
}

#[tokio::test]
async fn close_tells_of_a_message_that_the_channel_has_not_taken() {
    for (verb, scope) in
        [("clear", Scope::Cache), ("expire_all", Scope::Cache), ("invalidate_tag", Scope::Tag)]
    {
        for dropped in [false, true] {
            let (world, hangs) = (World::new(), Arc::new(watch::Sender::new(false)));
            let a = hanging(&world, &hangs, true);
            set(&a, "k", "1", &["x"]).await;
            settled().await;
            hangs.send_replace(true);
            let mut call = Box::pin(untold(&a, verb));
            assert!(futures::poll!(&mut call).is_pending());
            if dropped {
                drop(call);
            } else {
                // Neither polled nor dropped.
                std::mem::forget(call);
            }
            let closing = tokio::spawn({
                let a = a.clone();
                async move { a.close(100 * MS).await }
            });
            for _ in 0..10 {
                world.pass(20 * MS).await;
            }
            let closed = closing.await.unwrap();
            let left: Vec<_> = closed.undelivered().iter().map(|u| (u.level, u.scope)).collect();
            assert_eq!(left, [(None, scope)], "{verb}, dropped: {dropped}");
        }
    }
}

#[tokio::test]
async fn a_caller_who_leaves_in_the_middle_leaves_no_old_value() {
    let world = World::new();
    let (a, b) = (world.node(), world.bare());
    set(&a.cache, "k", "1", &["x"]).await;
    settled().await;
    a.l2.set(ChaosOp::Swap, Fault::Hang);
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

/// Told after the update, the level would lose it again.
#[tokio::test]
async fn a_level_hears_of_what_was_before_an_update_first() {
    for scope in [Scope::Key, Scope::Tag, Scope::Cache] {
        let world = World::new();
        let (a, b) = (world.bare(), world.bare());
        set(&a.cache, "k", "old", &["x"]).await;
        a.l2.set_all(Fault::Fail);
        let invalidated = match scope {
            Scope::Tag => a.cache.invalidate_tag("x").await,
            Scope::Cache => a.cache.clear().await,
            _ => a.cache.invalidate("k").await,
        };
        invalidated.unwrap_err();
        let untold = a.cache.update("k", &(), appending).await.unwrap_err();
        assert_eq!(untold.kind(), ErrorKind::Level);
        a.l2.set_all(Fault::None);
        let updated = a.cache.update("k", &(), appending).await.unwrap();
        assert_eq!((updated.value.as_str(), updated.delivery), ("first", Delivery::Confirmed));
        for _ in 0..3 {
            world.pass(S).await;
        }
        assert_eq!(a.cache.stats().pending, 0);
        for node in [&a, &b] {
            assert_eq!(get(&node.cache, "k").await.as_deref(), Some("first"), "{scope:?}");
        }
    }
}

/// The replay is telling it.
#[tokio::test]
async fn an_update_waits_for_what_is_on_its_way_to_the_level() {
    let world = World::new();
    let (a, b) = (world.bare(), world.bare());
    set(&a.cache, "k", "old", &[]).await;
    a.l2.set(ChaosOp::Remove, Fault::Fail);
    a.cache.invalidate("k").await.unwrap_err();
    a.l2.set(ChaosOp::Remove, Fault::Delay(50 * MS));
    world.pass(40 * MS).await;
    a.l2.set(ChaosOp::Remove, Fault::None);
    let updating = tokio::spawn({
        let cache = a.cache.clone();
        async move { cache.update("k", &(), appending).await.unwrap().value.as_str().to_owned() }
    });
    assert_eq!(done(Some(&world), updating).await, "first");
    world.pass(S).await;
    for node in [&a, &b] {
        assert_eq!(get(&node.cache, "k").await.as_deref(), Some("first"));
    }
}

/// Also while another node has the lease.
#[tokio::test]
async fn an_update_that_waits_sees_nothing_that_was_cleared_meanwhile_and_is_not_cleared_itself() {
    for held in [true, false] {
        let world = World::new();
        let (a, b) = (world.bare(), world.bare());
        if held {
            set(&a.cache, "k", "old", &[]).await;
        }
        let source = Source::new();
        source.gate();
        source.down(true);
        let reloading = {
            let (source, cache) = (source.clone(), b.cache.access(Access::Reload));
            tokio::spawn(async move { source.try_ask(&cache, "k").await })
        };
        settled().await;
        assert!(world.store.is_leased("things:k"));
        let updating = tokio::spawn({
            let cache = a.cache.clone();
            async move { cache.update("k", &(), appending).await.unwrap().value.as_str().to_owned() }
        });
        settled().await;
        a.l2.set_all(Fault::Fail);
        a.cache.clear().await.unwrap_err();
        settled().await;
        a.l2.set_all(Fault::None);
        source.open();
        settled().await;
        // Before the replay tries again.
        world.pass(9 * MS).await;
        done(Some(&world), reloading).await.unwrap_err();
        assert_eq!(done(Some(&world), updating).await, "first");
        world.pass(S).await;
        for node in [&a, &b] {
            assert_eq!(get(&node.cache, "k").await.as_deref(), Some("first"));
        }
    }
}

/// Also while `change` runs, which has been shown nothing that could be void.
#[tokio::test]
async fn an_update_is_not_taken_away_by_what_failed_to_reach_the_level_while_it_ran() {
    for leases in [true, false] {
        let store = MapProvider::new();
        let world = World::on(if leases { store.leasing().marking() } else { store.marking() });
        let (a, b) = (world.bare(), world.bare());
        let interfere = {
            let (cache, l2, runs) = (a.cache.clone(), Arc::clone(&a.l2), Arc::new(AtomicU32::new(0)));
            move |(), _, held: Option<Arc<String>>| {
                let (cache, l2) = (cache.clone(), Arc::clone(&l2));
                let first = runs.fetch_add(1, Ordering::Relaxed) == 0;
                async move {
                    if first {
                        l2.set_all(Fault::Fail);
                        cache.clear().await.unwrap_err();
                        l2.set_all(Fault::None);
                    }
                    appending((), String::new(), held).await
                }
            }
        };
        let updating = tokio::spawn({
            let cache = a.cache.clone();
            async move { cache.update("k", &(), interfere).await.unwrap().delivery }
        });
        assert!(done(Some(&world), updating).await.is_confirmed());
        world.pass(S).await;
        for node in [&a, &b] {
            assert_eq!(get(&node.cache, "k").await.as_deref(), Some("first"), "leases: {leases}");
        }
    }
}

async fn appending((): (), _: String, held: Option<Arc<String>>) -> Result<String, BoxError> {
    Ok(held.map_or_else(|| "first".to_owned(), |held| format!("after {held}")))
}

/// A node whose link is back, and that has not told others of a key: the runtime of what was to do so has ended.
fn orphaned(world: &World) -> Node {
    let node = world.node();
    let first = runtime();
    first.block_on(async {
        set(&node.cache, "k", "1", &[]).await;
        node.link.cut();
        assert_eq!(node.cache.invalidate("k").await.unwrap(), Delivery::Pending);
        settled().await;
    });
    drop(first);
    node.link.heal();
    node
}

/// With its runtime ends what tells them: the next call goes on with it, also one that has nothing to tell, and `close`.
#[test]
fn what_other_nodes_have_not_heard_outlives_the_runtime_that_was_to_tell_them() {
    let world = World::new();
    for invalidates in [true, false] {
        let a = orphaned(&world);
        runtime().block_on(async {
            if invalidates {
                let _told = a.cache.invalidate("other").await.unwrap();
            } else {
                let _found = get(&a.cache, "other").await;
            }
            world.pass(2 * S).await;
            assert_eq!(a.cache.stats().pending, 0, "an invalidation: {invalidates}");
        });
    }
    let closed = runtime().block_on(orphaned(&world).cache.close(5 * S));
    assert!(closed.is_drained() && closed.undelivered().is_empty());
}
