//! O10: `close` drains, then aborts, and nothing is stored after it returned.

use std::sync::{Arc, mpsc};

use futures::FutureExt;
use traced_cache::{
    Delivery, ErrorKind, Level, Loaded, Outcome, Policy, Scope, TracedCache,
    testing::{Fault, MapProvider},
};

use crate::world::{MS, S, World, ZERO, ask, asking, confirmed, memory, runtime, saw, settled};

fn policy() -> Policy {
    Policy::ttl(10 * S).grace(100 * S).soft_limit(100 * MS)
}

#[tokio::test]
async fn o10_close_waits_for_a_load_that_ends_in_time() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    db.takes(2 * S);
    let caller = asking(&cache, &db).await;
    let closing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.close(5 * S).await }
    });
    world.pass(S).await;
    assert!(!closing.is_finished());
    world.pass(S).await;
    let closed = closing.await.unwrap();
    assert!(closed.is_drained() && closed.undelivered().is_empty());
    assert_eq!(caller.await.unwrap(), saw(Outcome::Loaded, "1"));
}

#[tokio::test]
async fn o10_close_aborts_a_background_load_after_its_limit() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    let before = world.l2.inner().peek("things:k");
    world.pass(11 * S).await;
    db.takes(1_000 * S).has("2");
    let caller = asking(&cache, &db).await;
    world.pass(100 * MS).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Stale, "1"));
    let closing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.close(5 * S).await }
    });
    world.pass(5 * S - MS).await;
    assert!(!closing.is_finished());
    world.pass(MS).await;
    assert!(!closing.await.unwrap().is_drained());
    assert_eq!(cache.stats().flights, 0);
    world.pass(1_000 * S).await;
    let now = world.l2.inner().peek("things:k");
    assert!(now.is_none() || now == before);
    assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Closed));
}

#[tokio::test]
async fn o10_a_waiting_caller_is_told() {
    let world = World::new();
    let (cache, db) = (world.local(Policy::ttl(10 * S)), world.db());
    db.takes(1_000 * S);
    let callers = [asking(&cache, &db).await, asking(&cache, &db).await];
    let closing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.close(S).await }
    });
    world.pass(S).await;
    assert!(!closing.await.unwrap().is_drained());
    for caller in callers {
        assert_eq!(caller.await.unwrap(), Err(ErrorKind::Closed));
    }
}

/// From the call on, not from its end: else a busy cache would never drain.
#[tokio::test]
async fn o10_calls_are_refused_while_it_drains() {
    let world = World::new();
    for cache in [world.local(policy()), world.node(policy())] {
        let db = world.db();
        confirmed(cache.set("warm", "w".to_owned()).await);
        db.takes(2 * S);
        let caller = asking(&cache, &db).await;
        let closing = tokio::spawn({
            let cache = cache.clone();
            async move { cache.close(5 * S).await }
        });
        settled().await;
        let closed = Some(ErrorKind::Closed);
        assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Closed), "not even to join");
        assert_eq!(cache.get("warm").await.map_err(|e| e.kind()), Err(ErrorKind::Closed));
        assert_eq!(cache.set("x", "y".to_owned()).await.err().map(|e| e.kind()), closed);
        assert_eq!(cache.invalidate("x").await.err().map(|e| e.kind()), closed);
        assert_eq!(cache.expire("x").await.err().map(|e| e.kind()), closed);
        assert_eq!(cache.clear().await.err().map(|e| e.kind()), closed);
        assert_eq!(cache.get_many(["x"]).await.err().map(|e| e.kind()), closed);
        assert_eq!(cache.refresh("x", &db, |db, _| db.load()).await.err().map(|e| e.kind()), closed);
        world.pass(2 * S).await;
        assert!(closing.await.unwrap().is_drained());
        assert_eq!(caller.await.unwrap(), saw(Outcome::Loaded, "1"));
        assert_eq!(db.loads(), 1);
    }
}

/// A hit does not ask whether the cache is closed.
#[tokio::test]
async fn o10_what_comes_in_while_it_drains_is_no_hit() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    confirmed(world.bare(policy()).set("read", "r".to_owned()).await);
    db.takes(2 * S);
    let slow = asking(&cache, &db).await;
    db.takes(ZERO);
    world.l2.set_all(Fault::DelayReply(100 * MS));
    let calls = async {
        let load = cache.get_or_set_with("loaded", &db, |db, _| db.load());
        let found = tokio::join!(load, cache.get("read"), cache.set("set", "s".to_owned()));
        assert!(found.0.unwrap().is_some() && found.1.unwrap().is_some());
        assert!(found.2.unwrap().is_confirmed());
    };
    let mut closing = None;
    let rest = async {
        settled().await;
        let cache = cache.clone();
        closing = Some(tokio::spawn(async move { cache.close(5 * S).await }));
        // One round trip after the other.
        for _ in 0..4 {
            world.pass(100 * MS).await;
        }
    };
    tokio::join!(calls, rest);
    let closing = closing.unwrap();
    for key in ["loaded", "read", "set"] {
        assert_eq!(cache.get(key).await.map_err(|e| e.kind()), Err(ErrorKind::Closed), "{key}");
    }
    assert!(!closing.is_finished());
    world.up();
    world.pass(2 * S).await;
    assert!(closing.await.unwrap().is_drained());
    assert_eq!(slow.await.unwrap(), saw(Outcome::Loaded, "1"));
}

/// Reads and writes of callers are no tasks of the cache: they may come back to life after `close` returned.
#[tokio::test]
async fn o10_a_caller_that_was_under_way_stores_nothing_afterwards() {
    let world = World::new();
    let (first, db) = (world.node(policy()), world.db());
    ask(&first, &db).await.unwrap();
    let memory = crate::world::memory();
    let cache = world
        .builder(policy())
        .level(memory.clone())
        .level(std::sync::Arc::clone(&world.l2))
        .build()
        .unwrap();
    world.l2.set_all(Fault::Hang);
    // A read whose answer would fill memory, and a write that waits for its turn behind another.
    let read = asking(&cache, &db).await;
    let writes: Vec<_> = ["2", "3"]
        .map(|value| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.set("w", value.to_owned()).await })
        })
        .into_iter()
        .collect();
    settled().await;
    let closed = cache.close(ZERO).await;
    assert!(!closed.is_drained(), "three callers were under way");
    world.up();
    world.pass(S).await;
    let _ = read.await.unwrap();
    for write in writes {
        let _ = write.await.unwrap();
    }
    memory.maintain();
    assert_eq!(cache.stats().levels[0].entries, Some(0));
}

#[tokio::test]
async fn close_reports_what_a_level_has_not_heard() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.down();
    assert_eq!(cache.invalidate("k").await.unwrap(), Delivery::Pending);
    let closing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.close(3 * S).await }
    });
    world.pass(3 * S).await;
    let closed = closing.await.unwrap();
    assert!(!closed.is_drained());
    let told: Vec<_> = closed.undelivered().iter().map(|u| (u.level, u.scope, u.name.clone())).collect();
    assert_eq!(told, [(Some(1), Scope::Key, Some("k".to_owned()))]);
    assert!(!format!("{closed:?}").contains("\"k\""), "keys stay out of Debug");
}

#[tokio::test]
async fn close_delivers_what_a_level_hears_in_time() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.down();
    assert_eq!(cache.invalidate("k").await.unwrap(), Delivery::Pending);
    let closing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.close(60 * S).await }
    });
    settled().await;
    world.up();
    for _ in 0..10 {
        world.pass(S).await;
    }
    let closed = closing.await.unwrap();
    assert!(closed.is_drained() && closed.undelivered().is_empty());
    assert!(world.l2.inner().peek("things:k").is_none());
}

/// Values that were to be written behind the caller are written before it ends.
#[tokio::test]
async fn close_waits_for_background_writes() {
    let world = World::new();
    let cache = world.node_with(policy(), |level| level.background(true).budget(10 * S));
    assert_eq!(cache.set("a", "1".to_owned()).await.unwrap(), Delivery::Pending);
    settled().await;
    world.l2.set_all(Fault::Delay(S));
    assert_eq!(cache.set("k", "1".to_owned()).await.unwrap(), Delivery::Pending);
    assert!(world.l2.inner().peek("things:k").is_none());
    let closing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.close(5 * S).await }
    });
    world.pass(S).await;
    assert!(closing.await.unwrap().is_drained());
    assert!(world.l2.inner().peek("things:k").is_some());
}

/// A load on a runtime that nobody drives ends only with that runtime: `close` on another one does not wait for it.
#[test]
fn close_does_not_wait_for_a_runtime_that_nobody_drives() {
    let (idle, driven) = (runtime(), runtime());
    let cache = TracedCache::builder("left").level(memory()).build().unwrap();
    let load = cache.get_or_set("k", std::future::pending::<Result<String, std::io::Error>>);
    idle.block_on(async {
        let _left = tokio::time::timeout(MS, load).await;
    });
    let (told, done) = mpsc::channel();
    std::thread::spawn({
        let cache = cache.clone();
        move || told.send(driven.block_on(cache.close(MS)).is_drained())
    });
    // Where it hangs, it hangs until the other runtime is dropped.
    let drained = done.recv_timeout(20 * S);
    drop(idle);
    assert_eq!(drained, Ok(false));
}

/// Nobody knows what has become of them.
#[tokio::test]
async fn close_tells_of_writes_that_it_has_ended() {
    let all = Scope::Cache;
    for (verb, scope, name) in [
        ("set", Scope::Key, Some("k")),
        ("invalidate", Scope::Key, Some("k")),
        ("invalidate_tag", Scope::Tag, Some("t")),
        ("expire_all", all, None),
        ("clear", all, None),
    ] {
        let world = World::new();
        let cache = world.node_with(policy(), |level| level.budget(60 * S).breaker(None));
        confirmed(cache.set_loaded("k", Loaded::value("old".to_owned()).tag("t")).await);
        world.l2.set_all(Fault::Hang);
        let call = tokio::spawn({
            let cache = cache.clone();
            async move {
                match verb {
                    "set" => cache.set("k", "new".to_owned()).await,
                    "invalidate" => cache.invalidate("k").await,
                    "invalidate_tag" => cache.invalidate_tag("t").await,
                    "expire_all" => cache.expire_all().await,
                    _ => cache.clear().await,
                }
            }
        });
        settled().await;
        let closing = tokio::spawn({
            let cache = cache.clone();
            async move { cache.close(S).await }
        });
        for _ in 0..5 {
            world.pass(S).await;
        }
        let closed = closing.await.unwrap();
        assert!(!closed.is_drained() && world.l2.inner().peek("things:k").is_some());
        let left: Vec<_> =
            closed.undelivered().iter().map(|left| (left.scope, left.name.as_deref())).collect();
        assert_eq!(left, [(scope, name)], "{verb}");
        drop(call);
    }
}

/// Its write is a task of a runtime that nobody drives any more.
#[test]
fn close_tells_of_a_value_behind_whose_runtime_stands_still() {
    let (idle, driven) = (runtime(), runtime());
    let l2 = Arc::new(MapProvider::new());
    let builder = TracedCache::<String>::builder("things").level(memory());
    let cache = builder.level(Level::new(Arc::clone(&l2)).background(true)).build().unwrap();
    assert_eq!(idle.block_on(cache.set("k", "new".to_owned())).unwrap(), Delivery::Pending);
    let closed = driven.block_on(cache.close(50 * MS));
    assert!(!closed.is_drained() && l2.peek("things:k").is_none());
    let left: Vec<_> = closed.undelivered().iter().map(|left| (left.scope, left.name.as_deref())).collect();
    assert_eq!(left, [(Scope::Key, Some("k"))]);
}

/// A key was invalidated while its level was away, which is back. What was telling it has ended with its runtime, or there never
/// was one.
fn orphaned(world: &World, ends: bool) -> TracedCache<String> {
    let cache = world.node_with(policy(), |level| level.breaker(None));
    let first = runtime();
    first.block_on(async {
        confirmed(cache.set("k", "1".to_owned()).await);
        world.down();
    });
    let delivery = if ends {
        first.block_on(async {
            let delivery = cache.invalidate("k").await;
            settled().await;
            delivery
        })
    } else {
        cache.invalidate("k").now_or_never().unwrap()
    };
    assert_eq!(delivery.unwrap(), Delivery::Pending);
    drop(first);
    world.up();
    cache
}

/// No call has come since that would have gone on with it.
#[test]
fn close_tells_a_level_what_nobody_was_telling_it_any_more() {
    let world = World::new();
    let cache = orphaned(&world, true);
    let closed = runtime().block_on(cache.close(5 * S));
    assert!(closed.is_drained() && closed.undelivered().is_empty());
    assert!(world.l2.inner().peek("things:k").is_none());
}

/// With its runtime ends what tells the level, and without one nothing does: the next call goes on with it.
#[test]
fn what_a_level_has_not_heard_outlives_the_runtime_that_was_to_tell_it() {
    for ends in [true, false] {
        let world = World::new();
        let cache = orphaned(&world, ends);
        runtime().block_on(async {
            confirmed(cache.set("other", "1".to_owned()).await);
            world.pass(2 * S).await;
            let left = (cache.stats().pending, world.l2.inner().peek("things:k").is_some());
            assert_eq!(left, (0, false), "its runtime ends: {ends}");
        });
    }
}
