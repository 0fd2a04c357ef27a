//! Group F: a stale value stands in for a load that failed.

use std::sync::Arc;

use traced_cache::{
    Access, Delivery, Early, ErrorKind, Level, LoadEnd, Loaded, Outcome, Policy,
    testing::{ChaosOp, Fault},
};

use crate::world::{
    DbError, MISS, MS, S, World, ZERO, ask, asking, asking_alike, confirmed, counted, look, memory, saw,
    settled,
};

#[tokio::test]
async fn f1_a_failed_load_answers_stale_within_grace() {
    let world = World::new();
    for cache in [world.local(Policy::ttl(S).grace(10 * S)), world.bare(Policy::ttl(S).grace(10 * S))] {
        let db = world.db();
        ask(&cache, &db).await.unwrap();
        world.pass(S + 500 * MS).await;
        db.fails();
        let found = cache.look_or_set_with("k", &db, |db, _| db.load()).await.unwrap();
        assert!(found.is_stale() && !found.is_hit());
        assert_eq!(found.value().map(|v| v.as_str()), Some("1"));
        assert_eq!((found.level(), found.age()), (Some(0), S + 500 * MS));
        assert_eq!(*cache.get_or_set_with("k", &db, |db, _| db.load()).await.unwrap().unwrap(), "1");
    }
}

#[tokio::test]
async fn f2_without_grace_the_error_surfaces() {
    let world = World::new();
    for cache in [world.local(Policy::ttl(S)), world.node(Policy::ttl(S))] {
        let db = world.db();
        ask(&cache, &db).await.unwrap();
        world.pass(S + 500 * MS).await;
        db.fails();
        assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load));
    }
}

#[tokio::test]
async fn f4_throttling_never_extends_the_maximum_age() {
    let world = World::new();
    let (cache, db) = (world.node(Policy::ttl(2 * S).grace(5 * S).throttle(S)), world.db());
    ask(&cache, &db).await.unwrap();
    db.fails();
    let mut answers = Vec::new();
    for _ in 1..=6 {
        world.pass(S).await;
        answers.push(ask(&cache, &db).await);
    }
    let stale = saw(Outcome::Stale, "1");
    let error = Err(ErrorKind::Load);
    assert_eq!(answers, [saw(Outcome::Hit, "1"), stale.clone(), stale.clone(), stale, error.clone(), error]);
}

#[tokio::test]
async fn f4_the_throttle_keeps_the_source_in_peace() {
    let world = World::new();
    let (cache, db) = (world.local(Policy::ttl(2 * S).grace(60 * S).throttle(S)), world.db());
    ask(&cache, &db).await.unwrap();
    db.fails();
    world.pass(2 * S).await;
    for (after, loads) in [(ZERO, 2), (999 * MS, 2), (MS, 3), (500 * MS, 3)] {
        world.pass(after).await;
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"));
        assert_eq!(db.loads(), loads);
    }
}

/// T8: without a throttle every call tries again, whatever the jitter.
#[tokio::test]
async fn t8_jitter_does_not_apply_to_throttling() {
    let world = World::new();
    let policy = Policy::ttl(S).grace(9_000 * S).throttle(ZERO).jitter(1_800 * S);
    let (cache, db) = (world.local(policy), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(1_801 * S).await;
    db.fails();
    for loads in 2..5 {
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"));
        assert_eq!(db.loads(), loads);
    }
}

/// A policy is refused (group K); an answer whose own ttl is longer raises its maximum age.
#[tokio::test]
async fn f5_an_answers_own_ttl_raises_its_maximum_age() {
    let world = World::new();
    let (cache, db) = (world.node(Policy::ttl(S).grace(2 * S)), world.db());
    db.answers(|| Ok(Loaded::value("1".to_owned()).ttl(5 * S)));
    ask(&cache, &db).await.unwrap();
    world.pass(4 * S).await;
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "1"));
    world.pass(S).await;
    db.fails();
    assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load));
    // The same with a grace of its own below its ttl.
    db.answers(|| Ok(Loaded::value("2".to_owned()).ttl(5 * S).grace(S)));
    ask(&cache, &db).await.unwrap();
    world.pass(S + 100 * MS).await;
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "2"));
}

#[tokio::test]
async fn f7_get_shows_stale_only_to_those_who_allow_it() {
    let world = World::new();
    for cache in [world.local(Policy::ttl(S).grace(10 * S)), world.node(Policy::ttl(S).grace(10 * S))] {
        let db = world.db();
        ask(&cache, &db).await.unwrap();
        world.pass(2 * S).await;
        let allow = cache.access(Access::AllowStale);
        for _ in 0..3 {
            assert_eq!(look(&cache).await, MISS);
            assert_eq!(look(&allow).await, saw(Outcome::Stale, "1"));
        }
        // Neither has changed the entry: it ends when it would have.
        world.pass(8 * S).await;
        assert_eq!(look(&allow).await, MISS);
        assert_eq!(db.loads(), 1);
    }
}

#[tokio::test]
async fn f8_a_default_for_failures_is_not_stored() {
    let world = World::new();
    let (cache, db) = (world.node(Policy::ttl(S).grace(10 * S)), world.db());
    db.answers(|| Ok(Loaded::do_not_store(Some("default".to_owned()))));
    for loads in 1..=3 {
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Loaded, "default"));
        assert_eq!(db.loads(), loads);
    }
    assert_eq!(look(&cache.access(Access::AllowStale)).await, MISS);
    assert!(world.l2.inner().peek("things:k").is_none());
}

#[tokio::test]
async fn f10_a_failure_may_refuse_to_be_hidden() {
    let world = World::new();
    for cache in [world.local(Policy::ttl(S).grace(60 * S)), world.node(Policy::ttl(S).grace(60 * S))] {
        let db = world.db();
        ask(&cache, &db).await.unwrap();
        world.pass(2 * S).await;
        db.answers(|| Ok(Loaded::failed(DbError("forbidden")).surface()));
        assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load));
        let error = cache.get_or_set_with("k", &db, |db, _| db.load()).await.unwrap_err();
        assert_eq!(error.load_error(), Some(&DbError("forbidden")));
        // Waiters see it, too.
        db.takes(S);
        let (leader, waiter) = (asking(&cache, &db).await, asking(&cache, &db).await);
        world.pass(S).await;
        assert_eq!(
            (leader.await.unwrap(), waiter.await.unwrap()),
            (Err(ErrorKind::Load), Err(ErrorKind::Load))
        );
        db.takes(ZERO).fails();
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"), "the next ordinary failure");
    }
}

/// In a batch as well: such a failure must not start the throttle, behind which the stale value would hide it.
#[tokio::test]
async fn f10_in_a_batch() {
    let world = World::new();
    let (cache, db) = (world.local(Policy::ttl(S).grace(60 * S)), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(2 * S).await;
    db.answers(|| Ok(Loaded::failed(DbError("forbidden")).surface()));
    for loads in 2..4 {
        let all = cache.get_or_set_many(["k"], &db, |db, keys| db.load_many(keys)).await;
        assert_eq!(all.unwrap_err().kind(), ErrorKind::Load);
        assert_eq!(db.loads(), loads);
    }
}

#[tokio::test]
async fn f11_a_stale_value_in_the_shared_level_only() {
    let world = World::new();
    let policy = Policy::ttl(S).grace(60 * S).throttle(5 * S);
    let (first, db) = (world.node(policy), world.db());
    ask(&first, &db).await.unwrap();
    world.pass(2 * S).await;
    let cache = world.node(policy);
    db.fails();
    let found = cache.look_or_set_with("k", &db, |db, _| db.load()).await.unwrap();
    assert_eq!((found.outcome(), found.level()), (Outcome::Stale, Some(1)));
    // Memory has it for the throttle period.
    world.l2.reset();
    world.pass(4 * S).await;
    let found = cache.look_or_set_with("k", &db, |db, _| db.load()).await.unwrap();
    assert_eq!((found.outcome(), found.level()), (Outcome::Stale, Some(0)));
    assert_eq!(db.loads(), 2);
    world.pass(S).await;
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"));
    assert_eq!(db.loads(), 3);
}

#[tokio::test]
async fn f13_an_invalidated_value_never_stands_in() {
    let world = World::new();
    let policy = Policy::ttl(S).grace(60 * S);
    let (cache, other, db) = (world.node(policy), world.node(policy), world.db());
    for age in [ZERO, 2 * S] {
        db.has("1");
        cache.refresh("k", &db, |db, _| db.load()).await.unwrap();
        world.pass(age).await;
        assert_eq!(cache.invalidate("k").await.unwrap(), Delivery::Confirmed);
        db.fails();
        assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load));
        assert_eq!(look(&cache.access(Access::AllowStale)).await, MISS);
        assert_eq!(ask(&other, &db).await, Err(ErrorKind::Load));
    }
    // Nor one that is invalidated while the load that will fail is under way.
    db.has("1");
    ask(&cache, &db).await.unwrap();
    world.pass(2 * S).await;
    db.takes(S).fails();
    let caller = asking(&cache, &db).await;
    assert_eq!(cache.invalidate("k").await.unwrap(), Delivery::Confirmed);
    let later = asking(&cache, &db).await;
    world.pass(S).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Stale, "1"), "it began before the call");
    assert_eq!(later.await.unwrap(), Err(ErrorKind::Load));
    assert_eq!(look(&cache.access(Access::AllowStale)).await, MISS, "the throttle has not put it back");
}

/// A node's memory that nothing tells of another node's invalidation: nobody can say there that the copy is none, which ends
/// as it would have without.
#[tokio::test]
async fn f13_a_copy_that_hears_of_nothing_stands_in_until_its_grace_or_cap_ends() {
    let world = World::new();
    let policy = Policy::ttl(S).grace(10 * S);
    let memory = Level::new(memory()).ttl_cap(5 * S);
    let capped = world.builder(policy).level(memory).level(Arc::clone(&world.l2)).build().unwrap();
    let (cache, other, db) = (world.node(policy), world.node(policy), world.db());
    ask(&cache, &db).await.unwrap();
    for node in [&other, &capped] {
        assert_eq!(ask(node, &db).await, saw(Outcome::Hit, "1"));
    }
    assert_eq!(cache.invalidate("k").await.unwrap(), Delivery::Confirmed);
    db.fails();
    world.pass(2 * S).await;
    for node in [&other, &capped] {
        assert_eq!(ask(node, &db).await, saw(Outcome::Stale, "1"));
    }
    world.pass(4 * S).await;
    assert_eq!(ask(&capped, &db).await, Err(ErrorKind::Load));
    assert_eq!(ask(&other, &db).await, saw(Outcome::Stale, "1"));
    world.pass(4 * S).await;
    assert_eq!(ask(&other, &db).await, Err(ErrorKind::Load));
}

#[tokio::test]
async fn f14_a_stale_answer_counts_as_stale_and_the_failure_once() {
    let world = World::new();
    let (cache, db) = (world.node(Policy::ttl(S).grace(60 * S)), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(2 * S).await;
    db.fails();
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"));
    let stats = cache.stats();
    assert_eq!((stats.outcome(Outcome::Stale), stats.hits(), stats.misses()), (1, 0, 1));
    assert_eq!((stats.loads, stats.load_errors), (2, 1));
    assert_eq!(world.load_events(|end, _| end == LoadEnd::Failed(ErrorKind::Load)), 1);
    counted(&cache, 2);
}

/// A load that ends in a panic or at its hard limit is a failed load.
#[tokio::test]
async fn a_panic_and_a_hang_answer_stale_too() {
    let world = World::new();
    let policy = Policy::ttl(S).grace(600 * S).throttle(ZERO).hard_limit(Some(3 * S));
    let (cache, db) = (world.local(policy), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(2 * S).await;
    db.answers(|| panic!("in the loader"));
    // The lock of the answer is poisoned from here on: a source of its own.
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"));
    let hangs = world.db();
    hangs.takes(1_000 * S);
    let caller = asking(&cache, &hangs).await;
    world.pass(3 * S).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Stale, "1"));
    assert_eq!(world.load_events(|end, _| end == LoadEnd::Failed(ErrorKind::LoadPanicked)), 1);
    assert_eq!(world.load_events(|end, _| end == LoadEnd::Failed(ErrorKind::LoadTimeout)), 1);
}

/// Read before an invalidation that ended while the remote level was being asked: a load that fails afterwards must not
/// put it back.
#[tokio::test]
async fn a_failed_load_does_not_bring_back_what_was_invalidated_while_it_was_looked_for() {
    for revalidate in [ZERO, 50 * S] {
        let world = World::new();
        let policy = Policy::ttl(10 * S).grace(100 * S).throttle(5 * S).revalidate(revalidate);
        let (cache, db) = (world.node(policy), world.db());
        ask(&cache, &db).await.unwrap();
        world.pass(11 * S).await;
        db.fails();
        world.l2.set(ChaosOp::Get, Fault::Hang);
        let caller = asking(&cache, &db).await;
        confirmed(cache.invalidate("k").await);
        world.up();
        assert_eq!(caller.await.unwrap(), saw(Outcome::Stale, "1"), "it called before the invalidation");
        settled().await;
        assert_eq!(look(&cache.access(Access::AllowStale)).await, MISS);
    }
}

#[tokio::test]
async fn who_calls_after_an_invalidation_does_not_fall_back_on_what_the_loads_leader_had_read_before() {
    let world = World::new();
    let (cache, db) = (world.node(Policy::ttl(10 * S).grace(100 * S)), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.fails().takes(S);
    world.l2.set(ChaosOp::Get, Fault::Hang);
    let before = asking(&cache, &db).await;
    confirmed(cache.invalidate("k").await);
    world.up();
    settled().await;
    let after = asking(&cache, &db).await;
    world.pass(S).await;
    assert_eq!(before.await.unwrap(), saw(Outcome::Stale, "1"));
    assert_eq!(after.await.unwrap(), Err(ErrorKind::Load));
    assert_eq!(db.loads(), 2, "they shared one");
}

/// The look-up that learns of another node's clear does not answer from before it.
#[tokio::test]
async fn a_stale_value_of_before_a_clear_that_this_read_learns_of_is_not_served() {
    let world = World::new();
    let policy = Policy::ttl(10 * S).grace(100 * S);
    let (one, other, db) = (world.node(policy), world.node(policy), world.db());
    ask(&other, &db).await.unwrap();
    world.pass(11 * S).await;
    confirmed(one.clear().await);
    world.pass(2 * S).await;
    assert_eq!(look(&other.access(Access::AllowStale)).await, MISS);
}

#[tokio::test]
async fn a_value_whose_life_was_over_when_it_came_replaces_what_is_older() {
    let world = World::new();
    let (cache, db) = (world.local(Policy::ttl(10 * S).grace(100 * S).throttle(ZERO)), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.takes(2 * S).answers(|| Ok(Loaded::value("2".to_owned()).ttl(S).grace(S)));
    let asked = asking(&cache, &db).await;
    world.pass(2 * S).await;
    assert_eq!(asked.await.unwrap(), saw(Outcome::Loaded, "2"));
    db.takes(ZERO).fails();
    assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load), "nothing to fall back on");
}

/// Nobody waits for a refresh behind a value that is served, so its failure hides from nobody, and must not be tried again
/// with each hit. Once the value is served no more, it surfaces at once.
#[tokio::test]
async fn a_failure_that_surfaces_pauses_refreshes_behind_what_is_served() {
    let early = Policy::ttl(100 * S).grace(1_000 * S).early(Early::Fraction(0.5)).throttle(30 * S);
    let behind = Policy::ttl(60 * S).grace(1_000 * S).revalidate(40 * S).throttle(30 * S);
    for (policy, outcome) in [(early, Outcome::Hit), (behind, Outcome::Stale)] {
        let world = World::new();
        for cache in [world.local(policy), world.node(policy)] {
            let db = world.db();
            ask(&cache, &db).await.unwrap();
            world.pass(65 * S).await;
            db.answers(|| Ok(Loaded::failed(DbError("forbidden")).surface()));
            for (after, loads) in [(ZERO, 2), (29 * S, 2), (S, 3), (4 * S, 3)] {
                world.pass(after).await;
                for many in [false, true] {
                    let found = asking_alike(&cache, &db, many).await.await.unwrap();
                    assert_eq!(found, Ok(Some("1".to_owned())));
                }
                settled().await;
                assert_eq!(db.loads(), loads, "{outcome:?} after {after:?}");
            }
            assert_eq!(ask(&cache, &db).await, saw(outcome, "1"));
            world.pass(S).await;
            assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load), "the pause ends with it");
            assert!(cache.invalidate("k").await.unwrap().is_confirmed());
        }
    }
}
