//! Group O: soft and hard limits on loads.

use traced_cache::{
    Access, ErrorKind, LoadEnd, Loaded, Outcome, Policy,
    testing::{ChaosOp, Fault},
};

use crate::world::{MISS, MS, S, World, ZERO, ask, asking, confirmed, counted, look, saw, settled};

fn policy() -> Policy {
    Policy::ttl(10 * S).grace(100 * S).soft_limit(100 * MS)
}

#[tokio::test]
async fn o1_with_a_stale_value_a_caller_waits_for_the_soft_limit_only() {
    let world = World::new();
    for cache in [world.local(policy()), world.node(policy()), world.bare(policy())] {
        let db = world.db();
        ask(&cache, &db).await.unwrap();
        world.pass(11 * S).await;
        db.takes(2 * S).has("2");
        let caller = asking(&cache, &db).await;
        world.pass(99 * MS).await;
        assert!(!caller.is_finished());
        world.pass(MS).await;
        assert_eq!(caller.await.unwrap(), saw(Outcome::Stale, "1"));
        world.pass(2 * S).await;
        assert_eq!(look(&cache).await, saw(Outcome::Hit, "2"));
        assert_eq!(db.loads(), 2);
        confirmed(cache.invalidate("k").await);
    }
}

#[tokio::test]
async fn o2_without_one_the_soft_limit_does_not_apply() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    db.takes(2 * S);
    let caller = asking(&cache, &db).await;
    world.pass(2 * S - MS).await;
    assert!(!caller.is_finished());
    world.pass(MS).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Loaded, "1"));
}

#[tokio::test]
async fn o4_without_background_completion_the_load_is_cancelled() {
    let world = World::new();
    let (cache, db) = (world.node(policy().complete_in_background(false)), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.takes(2 * S).has("2");
    let (leader, waiter) = (asking(&cache, &db).await, asking(&cache, &db).await);
    world.pass(100 * MS).await;
    assert_eq!(
        (leader.await.unwrap(), waiter.await.unwrap()),
        (saw(Outcome::Stale, "1"), saw(Outcome::Stale, "1"))
    );
    let stats = cache.stats();
    assert_eq!(stats.flights, 0);
    assert_eq!((stats.loads, stats.load_errors), (2, 1), "a cancelled load has ended, too");
    world.pass(10 * S).await;
    assert_eq!(look(&cache).await, MISS);
    assert_eq!(look(&cache.access(Access::AllowStale)).await, saw(Outcome::Stale, "1"));
}

/// Cancelling is for loads that nobody waits for any more: a caller without a stale value still does.
#[tokio::test]
async fn o4_a_load_that_others_wait_for_is_not_cancelled() {
    let world = World::new();
    let (cache, db) = (world.local(policy().complete_in_background(false)), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.takes(2 * S).has("2");
    let leader = asking(&cache, &db).await;
    let reload = asking(&cache.access(Access::Reload), &db).await;
    world.pass(100 * MS).await;
    assert_eq!(leader.await.unwrap(), saw(Outcome::Stale, "1"));
    world.pass(2 * S).await;
    assert_eq!(reload.await.unwrap(), saw(Outcome::Coalesced, "2"));
    assert_eq!(db.loads(), 2);
}

/// Nor is what has become of it theirs who were reading a slow level meanwhile, and would have waited for it.
#[tokio::test]
async fn o4_who_comes_late_to_a_load_that_was_cancelled_begins_another() {
    let world = World::new();
    let (cache, db) = (world.bare(policy().complete_in_background(false)), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.takes(2 * S).has("2");
    world.l2.set(ChaosOp::Get, Fault::Delay(S));
    let late = asking(&cache, &db).await;
    world.l2.set(ChaosOp::Get, Fault::None);
    let leader = asking(&cache, &db).await;
    world.pass(100 * MS).await;
    assert_eq!(leader.await.unwrap(), saw(Outcome::Stale, "1"));
    // The level's budget is over, and it has nothing to fall back on.
    world.pass(200 * MS).await;
    world.pass(2 * S).await;
    assert_eq!(late.await.unwrap(), saw(Outcome::Loaded, "2"));
}

#[tokio::test]
async fn o5_a_background_load_that_fails_leaves_the_entry_alone() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.takes(2 * S).fails();
    let caller = asking(&cache, &db).await;
    world.pass(100 * MS).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Stale, "1"));
    world.pass(2 * S).await;
    assert_eq!(world.load_events(|end, _| end == LoadEnd::Failed(ErrorKind::Load)), 1);
    let found = cache.access(Access::AllowStale).look("k").await.unwrap();
    assert_eq!((found.outcome(), found.age()), (Outcome::Stale, 13 * S + 100 * MS));
    assert_eq!(look(&cache).await, MISS);
}

#[tokio::test]
async fn o7_what_the_background_load_says_governs_what_it_stores() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.takes(2 * S).answers(|| Ok(Loaded::value("2".to_owned()).ttl(5 * S).grace(ZERO)));
    let caller = asking(&cache, &db).await;
    world.pass(100 * MS).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Stale, "1"));
    world.pass(2 * S).await;
    // Born when its load began, 2.1 s ago.
    world.pass(2 * S + 899 * MS).await;
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "2"));
    world.pass(MS).await;
    assert_eq!(look(&cache.access(Access::AllowStale)).await, MISS);
}

#[tokio::test]
async fn o8_a_soft_limit_of_zero_answers_at_once_and_refreshes_once() {
    let world = World::new();
    let policy = Policy::ttl(10 * S).grace(100 * S).soft_limit(ZERO).wait(5 * S);
    let (cache, db) = (world.local(policy), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.takes(2 * S).has("2");
    for _ in 0..50 {
        let caller = asking(&cache, &db).await;
        assert_eq!(caller.await.unwrap(), saw(Outcome::Stale, "1"));
    }
    assert_eq!(db.loads(), 2);
    world.pass(2 * S).await;
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "2"));
    counted(&cache, 52);
}

#[tokio::test]
async fn the_hard_limit_ends_a_load_and_frees_the_key() {
    let world = World::new();
    for cache in [
        world.local(Policy::ttl(S).hard_limit(Some(3 * S))),
        world.node(Policy::ttl(S).hard_limit(Some(3 * S))),
    ] {
        let db = world.db();
        db.takes(1_000 * S);
        let (leader, waiter) = (asking(&cache, &db).await, asking(&cache, &db).await);
        world.pass(3 * S - MS).await;
        assert!(!leader.is_finished() && !waiter.is_finished());
        world.pass(MS).await;
        assert_eq!(leader.await.unwrap(), Err(ErrorKind::LoadTimeout));
        assert_eq!(waiter.await.unwrap(), Err(ErrorKind::LoadTimeout));
        db.takes(ZERO);
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Loaded, "1"));
        assert_eq!(db.loads(), 2);
        confirmed(cache.invalidate("k").await);
    }
}

/// The place under the cap is given back, whatever happens to the load.
#[tokio::test]
async fn hung_loads_do_not_use_up_the_cap() {
    let world = World::new();
    let cache = world.local(Policy::ttl(S).loads(2).hard_limit(Some(3 * S)));
    let db = world.db();
    db.takes(1_000 * S);
    for key in 0..2_u8 {
        let (cache, db) = (cache.clone(), db.clone());
        tokio::spawn(async move { crate::world::ask_for(&cache, key, &db).await });
    }
    settled().await;
    let queued = asking(&cache, &db).await;
    assert_eq!(db.loads(), 2);
    db.takes(ZERO);
    world.pass(3 * S).await;
    assert_eq!(queued.await.unwrap(), saw(Outcome::Loaded, "1"));
}
