//! Group R: a level that is down, slow or flapping.

use std::{error::Error as _, sync::Arc, time::Duration};

use traced_cache::{
    Access, Breaker, BreakerState, Delivery, ErrorKind, Level, LevelFault, LevelOp, LevelOutcome, Outcome,
    Policy, Stance,
    testing::{Chaos, ChaosError, ChaosOp, Fault, Hub, MapProvider, Recorded},
    with_causes,
};

use crate::world::{
    MISS, MS, S, World, ask, ask_for, asking, confirmed, counted, look, memory, saw, settled,
};

fn policy() -> Policy {
    Policy::ttl(60 * S).grace(600 * S)
}

fn errors(world: &World) -> usize {
    world.seen.count(|e| {
        matches!(e, Recorded::Level { level: 1, op: LevelOp::Get, fault: Some(LevelFault::Error), .. })
    })
}

#[tokio::test]
async fn r1_a_level_that_refuses_costs_nothing_but_an_event() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    world.down();
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Loaded, "1"));
    assert_eq!(errors(&world), 1);
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "1"));
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "1"));
    assert_eq!(db.loads(), 1);
    assert!(cache.set("k", "2".to_owned()).await.is_ok());
    let stats = cache.stats();
    assert_eq!(stats.levels[1].outcome(LevelOutcome::Error), 1);
    counted(&cache, 3);
}

#[tokio::test]
async fn r2_a_level_may_surface_its_errors() {
    let world = World::new();
    let cache = world.node_with(policy(), |level| level.stance(Stance::Surface));
    let db = world.db();
    world.down();
    for error in [
        cache.get("k").await.map(drop).unwrap_err(),
        cache.look("k").await.map(drop).unwrap_err(),
        cache.get_many(["k"]).await.map(drop).unwrap_err(),
        cache.invalidate("k").await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Level);
        assert!(error.source().unwrap().is::<ChaosError>(), "{error:?}");
    }
    // With the breaker open the level is not asked: that is an error of the same kind, without a cause.
    assert_eq!(cache.set("k", "1".to_owned()).await.unwrap_err().kind(), ErrorKind::Level);
    assert_eq!(cache.expire("k").await.unwrap_err().kind(), ErrorKind::Level);
    assert_eq!(look(&cache).await, MISS, "what could not be set is not there");
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Loaded, "1"), "get_or_set loads");
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "1"));
}

#[tokio::test]
async fn r4_alone_a_remote_level_surfaces_by_default() {
    let world = World::new();
    let (cache, db) = (world.bare(policy()), world.db());
    world.down();
    assert_eq!(ask_for(&cache, "other", &db).await, saw(Outcome::Loaded, "1"), "asked and failed, no error");
    assert_eq!(look(&cache).await, Err(ErrorKind::Level));
    assert_eq!(cache.set("k", "1".to_owned()).await.unwrap_err().kind(), ErrorKind::Level);
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Loaded, "1"));
    let absorbing = world
        .builder(policy())
        .level(Level::new(Arc::clone(&world.l2)).stance(Stance::Absorb))
        .build()
        .unwrap();
    assert_eq!(look(&absorbing).await, MISS);
    assert_eq!(absorbing.set("k", "1".to_owned()).await.unwrap(), Delivery::Pending);
}

/// Nobody finds out from `get` alone: what is to be set needs the mark first, and what is asked later is not let through.
#[tokio::test]
async fn who_is_not_let_through_is_told_what_went_wrong() {
    let world = World::new();
    let breaker = Breaker::default().failure_rate(0.1).min_calls(1).open_for(2 * S);
    for breaker in [None, Some(breaker)] {
        let cache = world
            .builder(policy())
            .level(Level::new(Arc::clone(&world.l2)).breaker(breaker))
            .build()
            .unwrap();
        world.down();
        let first = cache.set("k", "1".to_owned()).await.unwrap_err();
        assert_eq!(with_causes(&first), "cache `things`: level 1 failed: injected failure");
        let later = with_causes(&cache.set("k", "1".to_owned()).await.unwrap_err());
        assert!(later.ends_with("injected failure"), "{later}");
        let removed = with_causes(&cache.invalidate("k").await.unwrap_err());
        assert!(removed.ends_with("injected failure"), "{removed}");
        assert_eq!(removed.contains("its breaker is open"), breaker.is_some(), "{removed}");
        world.up();
    }
}

/// 2 and 3 never reached the level, which holds 1: an older value than what was set, so it must not be served. Values are
/// not replayed: the key is a miss until it is loaded or set again.
#[tokio::test]
async fn r5_what_a_level_missed_is_not_served_from_it() {
    let world = World::new();
    let breaker = Breaker::default().failure_rate(0.1).min_calls(1).open_for(2 * S);
    // Memory loses it after a second.
    let near = Level::new(memory()).ttl_cap(S);
    let far = Level::new(Arc::clone(&world.l2)).breaker(Some(breaker));
    let cache = world.builder(policy()).level(near).level(far).build().unwrap();
    assert_eq!(cache.set("k", "1".to_owned()).await.unwrap(), Delivery::Confirmed);
    world.down();
    assert_eq!(cache.set("k", "2".to_owned()).await.unwrap(), Delivery::Pending);
    world.up();
    world.pass(S + 500 * MS).await;
    assert_eq!(look(&cache).await, MISS, "the level holds 1, and is not asked");
    assert_eq!(cache.set("k", "3".to_owned()).await.unwrap(), Delivery::Pending, "the breaker is open");
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "3"));
    for _ in 0..4 {
        world.pass(S).await;
        assert_ne!(look(&cache).await, saw(Outcome::Hit, "1"));
    }
    assert!(world.l2.inner().peek("things:k").is_none(), "the level has heard of it");
    assert_eq!(cache.stats().pending, 0);
}

#[tokio::test]
async fn r7_a_slow_level_a_stale_value_and_a_failing_load() {
    let world = World::new();
    let cache = world.node_with(policy(), |level| level.budget(500 * MS));
    let db = world.db();
    ask(&cache, &db).await.unwrap();
    world.pass(61 * S).await;
    world.l2.set_all(Fault::Delay(2 * S));
    db.fails();
    let caller = asking(&cache, &db).await;
    world.pass(500 * MS).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Stale, "1"));
    assert_eq!(
        world.seen.count(|e| matches!(e, Recorded::Level { fault: Some(LevelFault::Timeout), .. })),
        1
    );
}

#[tokio::test]
async fn r8_a_level_is_given_up_at_its_budget_and_the_load_runs() {
    let world = World::new();
    let cache = world.node_with(policy(), |level| level.budget(500 * MS));
    let db = world.db();
    world.l2.set_all(Fault::Hang);
    let caller = asking(&cache, &db).await;
    world.pass(500 * MS - MS).await;
    assert_eq!(db.loads(), 0);
    world.pass(MS).await;
    assert_eq!(db.loads(), 1);
    // What it would have stored there: nothing, the level's epoch is not known.
    assert_eq!(caller.await.unwrap(), saw(Outcome::Loaded, "1"));
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "1"));
}

#[tokio::test]
async fn r10_a_level_that_fails_after_the_load_began() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask_for(&cache, "other", &db).await.unwrap();
    db.takes(S);
    let caller = asking(&cache, &db).await;
    world.down();
    world.pass(S).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Loaded, "1"));
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "1"));
    world.up();
    assert!(world.l2.inner().peek("things:k").is_none());
}

/// As far as it concerns invalidations: the record of them is bounded, and none is dropped for space.
#[tokio::test]
async fn r13_a_full_record_widens_instead_of_dropping() {
    const KEYS: u32 = 10_001;
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    for key in 0..KEYS {
        confirmed(cache.set(key, key.to_string()).await);
    }
    confirmed(cache.set("bystander", "1".to_owned()).await);
    world.down();
    let all = cache.invalidate_many(0..KEYS).await.unwrap();
    assert_eq!(all, Delivery::Pending);
    assert!(cache.stats().pending <= 10_000);
    world.up();
    let other = world.node(policy());
    for _ in 0..10 {
        world.pass(S).await;
    }
    assert_eq!(cache.stats().pending, 0, "delivered");
    for key in (0..KEYS).step_by(101) {
        assert_eq!(ask_for(&cache.access(Access::CacheOnly), key, &db).await, MISS);
        assert_eq!(ask_for(&other.access(Access::CacheOnly), key, &db).await, MISS);
    }
}

/// An invalidation is not dropped because what it names should have ended by then: another node may have stored it later.
#[tokio::test]
async fn r14_an_invalidation_outlives_the_entry_it_was_for() {
    let world = World::new();
    let (cache, other, db) = (world.node(Policy::ttl(5 * S)), world.node(Policy::ttl(5_000 * S)), world.db());
    ask(&cache, &db).await.unwrap();
    world.l2.set(ChaosOp::Remove, Fault::Fail);
    assert_eq!(cache.invalidate("k").await.unwrap(), Delivery::Pending);
    world.pass(10 * S).await;
    ask(&other, &db).await.unwrap();
    assert!(world.l2.inner().peek("things:k").is_some());
    assert_eq!(look(&cache).await, MISS, "masked");
    world.up();
    for _ in 0..10 {
        world.pass(S).await;
    }
    assert!(world.l2.inner().peek("things:k").is_none());
    assert_eq!(cache.stats().pending, 0);
}

#[tokio::test]
async fn r17_a_cache_is_built_while_its_level_is_down() {
    let world = World::new();
    world.down();
    let (cache, db) = (world.node(policy()), world.db());
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Loaded, "1"));
    world.up();
    world.pass(S).await;
    confirmed(cache.set("k", "2".to_owned()).await);
    assert_eq!(look(&world.node(policy())).await, saw(Outcome::Hit, "2"));
}

/// Promise 4: nothing while the breaker is open, a single probe, and it closes again.
#[tokio::test]
async fn the_breaker_opens_and_closes_by_one_probe() {
    let world = World::new();
    let breaker = Breaker::default().open_for(2 * S);
    let cache = world.node_with(policy(), |level| level.budget(100 * MS).breaker(Some(breaker)));
    let db = world.db();
    ask(&cache, &db).await.unwrap();
    world.l2.set_all(Fault::Hang);
    let mut key = 0_u32;
    while world.breaker_events().is_empty() {
        key += 1;
        let (cache, db) = (cache.clone(), db.clone());
        let caller = tokio::spawn(async move { ask_for(&cache, key, &db).await });
        for _ in 0..4 {
            world.pass(100 * MS).await;
        }
        assert!(caller.is_finished(), "each operation is bounded by its budget");
        assert!(key < 10);
    }
    assert_eq!(world.breaker_events(), [BreakerState::Open]);
    assert_eq!(cache.stats().levels[1].breaker, BreakerState::Open);
    // Open: a cold key costs its load alone, and the level is not asked.
    world.l2.reset();
    for key in 1_000..1_100_u32 {
        assert_eq!(ask_for(&cache, key, &db).await, saw(Outcome::Loaded, "1"));
        assert_eq!(ask_for(&cache, key, &db).await, saw(Outcome::Hit, "1"));
    }
    assert_eq!(world.l2.calls(ChaosOp::Get) + world.l2.calls(ChaosOp::Put), 0);
    // Half-open: of many callers one is the probe; the others do not wait for it.
    world.pass(2 * S).await;
    let callers: Vec<_> = (2_000..2_050_u32)
        .map(|key| {
            let (cache, db) = (cache.clone(), db.clone());
            tokio::spawn(async move { ask_for(&cache, key, &db).await })
        })
        .collect();
    settled().await;
    // It may be the replay's: what was in doubt when the level fell sick.
    assert_eq!(ChaosOp::ALL.map(|op| world.l2.calls(op)).iter().sum::<u64>(), 1);
    assert!(callers.iter().filter(|c| c.is_finished()).count() >= 49);
    world.up();
    world.pass(100 * MS).await;
    for caller in callers {
        assert_eq!(caller.await.unwrap(), saw(Outcome::Loaded, "1"));
    }
    assert_eq!(world.breaker_events(), [BreakerState::Open, BreakerState::HalfOpen, BreakerState::Closed]);
    assert_eq!(cache.stats().levels[1].breaker, BreakerState::Closed);
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "1"));
}

/// Callers that leave before the level's budget has ended must not keep its breaker from opening: each of them would wait
/// for nothing, for ever.
#[tokio::test]
async fn impatient_callers_open_the_breaker_too() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.l2.set_all(Fault::Hang);
    for key in 0..10_u32 {
        let caller = tokio::spawn({
            let (cache, db) = (cache.clone(), db.clone());
            async move { ask_for(&cache, key, &db).await }
        });
        // Below the budget of 250 ms.
        world.pass(200 * MS).await;
        caller.abort();
        settled().await;
    }
    assert_eq!(cache.stats().levels[1].breaker, BreakerState::Open);
    assert_eq!(ask_for(&cache, "now", &db).await, saw(Outcome::Loaded, "1"));
}

/// Each level's failure is its own.
#[tokio::test]
async fn with_three_levels_the_sick_one_is_passed_over() {
    let world = World::new();
    let db = world.db();
    let far = World::new();
    let both = |policy: Policy| {
        world
            .builder(policy)
            .level(memory())
            .level(Arc::clone(&world.l2))
            .level(Level::new(Arc::clone(&far.l2)))
            .build()
            .unwrap()
    };
    let cache = both(policy());
    ask(&cache, &db).await.unwrap();
    world.down();
    let other = both(policy());
    let found = other.look("k").await.unwrap();
    assert_eq!((found.outcome(), found.level()), (Outcome::Hit, Some(2)));
    world.up();
    world.pass(2 * S).await;
    far.down();
    let third = both(policy());
    let found = third.look("k").await.unwrap();
    assert_eq!((found.outcome(), found.level()), (Outcome::Hit, Some(1)));
    assert_eq!(db.loads(), 1);
}

/// One bad key of a batch, or one server of many, is no reason to stop asking the level.
#[tokio::test]
async fn a_batch_that_fails_costs_no_error() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    world.l2.set(ChaosOp::Get, Fault::FailSome(0.5));
    world.l2.set(ChaosOp::Put, Fault::FailSome(0.5));
    for round in 0..50_u32 {
        let keys = (0..4).map(|n| round * 2 + n);
        let all = cache.get_or_set_many(keys, &db, |db, keys| async move {
            let keys: Vec<u32> = keys;
            let all = db.load_many(keys.iter().map(ToString::to_string).collect()).await?;
            Ok::<_, crate::world::DbError>(
                keys.into_iter().zip(all.into_iter().map(|(_, v)| v)).collect::<Vec<_>>(),
            )
        });
        assert!(all.await.unwrap().iter().all(|v| v.as_ref().is_some_and(|v| **v == "1")));
        world.pass(Duration::from_millis(300)).await;
    }
    counted(&cache, 200);
}

/// Another node has heard the message, and has read the old value from the level once more before it was removed there.
#[tokio::test]
async fn a_replay_tells_the_other_nodes_again() {
    let world = World::new();
    let (hub, store) = (Hub::new(), Arc::new(MapProvider::new().clock(world.clock.clone())));
    let flaky = Arc::new(Chaos::new(Arc::clone(&store)).clock(world.clock.clone()));
    let node =
        |l2: Level| world.builder(policy()).level(memory()).level(l2).backplane(hub.node()).build().unwrap();
    let (one, other, db) = (node(Level::new(Arc::clone(&flaky))), node(Level::new(store)), world.db());
    ask(&one, &db).await.unwrap();
    ask(&other, &db).await.unwrap();
    flaky.set_all(Fault::Fail);
    assert_eq!(one.invalidate("k").await.unwrap(), Delivery::Pending);
    assert_eq!(look(&other).await, saw(Outcome::Hit, "1"), "it is pending");
    flaky.set_all(Fault::None);
    world.pass(5 * S).await;
    assert_eq!(one.stats().pending, 0);
    assert_eq!(look(&other).await, MISS);
}

#[tokio::test]
async fn a_caller_who_stalls_in_the_probe_does_not_keep_the_level_off_for_the_others() {
    let world = World::new();
    let impatient = Breaker::default().open_for(300 * MS);
    let level = Level::new(Arc::clone(&world.l2)).breaker(Some(impatient));
    let cache = world.builder(policy()).level(level).build().unwrap();
    confirmed(cache.set("k", "v".to_owned()).await);
    world.pass(20 * S).await;
    world.down();
    for _ in 0..20 {
        assert!(cache.get("k").await.is_err());
    }
    world.pass(2 * S).await;
    // Between two polls of the level's mark, which are probes as well.
    world.pass(400 * MS).await;
    world.l2.set_all(Fault::Hang);
    let mut stalled = Box::pin(cache.get("k"));
    assert!(futures::poll!(&mut stalled).is_pending());
    world.up();
    world.pass(2 * S).await;
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "v"));
    drop(stalled);
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "v"), "a probe of before is no verdict");
}

/// Readers who find no marker do not try one after the other to write it.
#[tokio::test]
async fn a_level_that_answers_reads_but_no_writes_costs_each_reader_one_budget_for_its_marker() {
    let world = World::new();
    let cache = world.bare(policy());
    world.l2.set(ChaosOp::Put, Fault::Hang);
    let readers: Vec<_> = (0..40)
        .map(|id| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get(id).await })
        })
        .collect();
    world.pass(250 * MS).await;
    assert!(readers.iter().all(tokio::task::JoinHandle::is_finished));
}

/// The first epoch that a node learns does not say whether there was another one when it loaded.
#[tokio::test]
async fn what_was_loaded_while_the_level_was_down_is_not_believed_when_its_epoch_is_learned() {
    let world = World::new();
    let store = Arc::new(MapProvider::new().clock(world.clock.clone()));
    let flaky = Arc::new(Chaos::new(Arc::clone(&store)).clock(world.clock.clone()));
    let node = |l2: Level| world.builder(policy()).level(memory()).level(l2).build().unwrap();
    let (one, other, db) = (node(Level::new(store)), node(Level::new(Arc::clone(&flaky))), world.db());
    flaky.set_all(Fault::Fail);
    ask(&other, &db).await.unwrap();
    confirmed(one.clear().await);
    flaky.set_all(Fault::None);
    world.pass(2 * S).await;
    assert_eq!(other.get("another").await.unwrap(), None);
    assert_eq!(look(&other).await, MISS);
}

/// Found while its lease was asked for.
#[tokio::test]
async fn a_hit_found_under_a_lease_counts_at_its_level() {
    let world = World::new();
    let l2 = world.leasing();
    let l3 = MapProvider::new().clock(world.clock.clone());
    let three = world.builder(policy()).level(memory()).level(Arc::clone(&l2)).level(l3).build().unwrap();
    let two = world.node_at(policy(), &l2);
    l2.set(ChaosOp::Acquire, Fault::Hang);
    let caller = tokio::spawn({
        let cache = three.clone();
        async move { cache.get("k").await }
    });
    settled().await;
    confirmed(two.set("k", "v".to_owned()).await);
    l2.set(ChaosOp::Acquire, Fault::None);
    assert!(caller.await.unwrap().unwrap().is_some());
    let stats = three.stats();
    assert_eq!((stats.hits_at(1), stats.levels[1].outcome(LevelOutcome::Hit)), (1, 1));
}
