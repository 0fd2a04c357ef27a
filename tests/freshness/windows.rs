//! Stale while revalidating and stale if error are two windows (RFC 5861): answered at once while one load refreshes, and
//! answered only if the load fails.

use futures::FutureExt;
use traced_cache::{Delivery, Early, ErrorKind, Loaded, Outcome, Policy, Result, TracedCache};

use crate::world::{MS, S, World, ZERO, ask, asking, confirmed, counted, look, saw, settled};

/// Fresh to 10 s, at once to 15 s, on error to 30 s.
fn policy() -> Policy {
    Policy::ttl(10 * S).revalidate(5 * S).grace(30 * S)
}

#[tokio::test]
async fn within_the_first_window_stale_is_answered_at_once_and_one_load_runs() {
    let world = World::new();
    for cache in [world.local(policy()), world.node(policy())] {
        let db = world.db();
        ask(&cache, &db).await.unwrap();
        world.pass(10 * S).await;
        db.takes(2 * S).has("2");
        for _ in 0..100 {
            assert_eq!(ask(&cache, &db).now_or_never(), Some(saw(Outcome::Stale, "1")));
        }
        world.pass(2 * S).await;
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "2"));
        assert_eq!(db.loads(), 2);
        counted(&cache, 102);
        confirmed(cache.invalidate("k").await);
    }
    assert_eq!(world.load_events(|_, background| background), 2);
}

#[tokio::test]
async fn after_it_callers_wait_and_stale_is_for_errors() {
    let world = World::new();
    let (cache, db) = (world.local(policy().throttle(ZERO)), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(15 * S - MS).await;
    db.takes(S).fails();
    assert_eq!(
        ask(&cache, &db).now_or_never(),
        Some(saw(Outcome::Stale, "1")),
        "the last of the first window"
    );
    world.pass(S).await;
    let caller = asking(&cache, &db).await;
    assert!(!caller.is_finished());
    world.pass(S).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Stale, "1"));
    db.has("2");
    let caller = asking(&cache, &db).await;
    world.pass(S).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Loaded, "2"));
    assert_eq!(db.loads(), 4);
}

#[tokio::test]
async fn after_both_the_error_surfaces() {
    let world = World::new();
    let (cache, db) = (world.local(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(30 * S - MS).await;
    db.fails();
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"));
    world.pass(MS).await;
    assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load));
}

/// A caller who comes when the first window has ended joins the refresh that was started within it.
#[tokio::test]
async fn the_refresh_is_joined_when_its_window_ends() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(14 * S).await;
    db.takes(3 * S).has("2");
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"));
    world.pass(2 * S).await;
    let caller = asking(&cache, &db).await;
    world.pass(S).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Coalesced, "2"));
    assert_eq!(db.loads(), 2);
}

/// A failed refresh is not tried again with every call within the window.
#[tokio::test]
async fn a_failed_refresh_is_throttled() {
    let world = World::new();
    let (cache, db) = (world.local(policy().throttle(2 * S)), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.fails();
    for (after, loads) in [(ZERO, 2), (S, 2), (S, 3)] {
        world.pass(after).await;
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"));
        settled().await;
        assert_eq!(db.loads(), loads);
    }
}

/// A refresh of a key that is invalidated meanwhile must not bring the old value back, nor its own.
#[tokio::test]
async fn an_invalidation_beats_the_refresh() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.takes(2 * S).has("2");
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"));
    settled().await;
    assert!(cache.invalidate("k").await.unwrap().is_confirmed());
    world.pass(2 * S).await;
    assert_eq!(look(&cache).await, crate::world::MISS);
    assert!(world.l2.inner().peek("things:k").is_none());
    assert_eq!(cache.stats().overtaken, 1);
}

async fn expire(cache: &TracedCache<String>, how: &str) -> Result<Delivery> {
    match how {
        "key" => cache.expire("k").await,
        "tag" => cache.expire_tag("x").await,
        _ => cache.expire_all().await,
    }
}

/// The window of what an invalidation has ended does not begin anew with each read.
#[tokio::test]
async fn what_was_expired_long_ago_is_not_answered_at_once() {
    for how in ["key", "tag", "all"] {
        let world = World::new();
        let policy = Policy::ttl(600 * S).revalidate(10 * S).grace(1000 * S);
        let l2 = world.leasing();
        for cache in [world.local(policy), world.node_at(policy, &l2)] {
            let db = world.db();
            db.answers(|| Ok(Loaded::value("1".to_owned()).tag("x")));
            ask(&cache, &db).await.unwrap();
            world.pass(S).await;
            confirmed(expire(&cache, how).await);
            world.pass(60 * S).await;
            db.has("2");
            assert_eq!(ask(&cache, &db).await, saw(Outcome::Loaded, "2"), "{how}");
            let counted = cache.stats().invalidations.iter().map(|(_, count)| count).sum::<u64>();
            assert_eq!(counted, 1, "{how}");
            confirmed(cache.invalidate("k").await);
        }
    }
}

/// Nor does another node's, which finds the entry at the shared level, where nobody has written down when that was.
#[tokio::test]
async fn what_another_node_expired_is_not_answered_at_once() {
    let world = World::new();
    let policy = Policy::ttl(600 * S).revalidate(10 * S).grace(1000 * S);
    let l2 = world.leasing();
    let (one, other, db) = (world.node_at(policy, &l2), world.node_at(policy, &l2), world.db());
    ask(&one, &db).await.unwrap();
    confirmed(one.expire("k").await);
    world.pass(60 * S).await;
    db.has("2");
    assert_eq!(ask(&other, &db).await, saw(Outcome::Loaded, "2"));
}

/// After an expiry the next call loads, even if a refresh has just failed; and one that fails then is throttled itself.
#[tokio::test]
async fn an_expiry_ends_the_throttle() {
    for how in ["key", "tag", "all"] {
        let world = World::new();
        let policy = Policy::ttl(100 * S).grace(1000 * S).throttle(60 * S).early(Early::Fraction(0.5));
        let (cache, db) = (world.local(policy), world.db());
        db.answers(|| Ok(Loaded::value("1".to_owned()).tag("x")));
        ask(&cache, &db).await.unwrap();
        world.pass(60 * S).await;
        db.fails();
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "1"));
        settled().await;
        for loads in [3, 4] {
            confirmed(expire(&cache, how).await);
            for _ in 0..3 {
                world.pass(S).await;
                assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"));
                assert_eq!(db.loads(), loads, "{how}");
            }
        }
        // One that comes while a load is failing is not throttled by it.
        world.pass(60 * S).await;
        db.takes(2 * S);
        let caller = asking(&cache, &db).await;
        world.pass(S).await;
        confirmed(expire(&cache, how).await);
        world.pass(S).await;
        assert_eq!(caller.await.unwrap(), saw(Outcome::Stale, "1"));
        db.takes(ZERO).has("2");
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Loaded, "2"), "{how}");
    }
}
