//! Group S, and the cap on loads.

use std::time::Duration;

use traced_cache::{
    Access, ErrorKind, Loaded, Outcome, Policy, TracedCache,
    testing::{ChaosOp, Fault},
};

use crate::world::{
    DbError, MS, S, World, ZERO, ask, ask_for, asking, asking_alike, asking_many, confirmed, counted, look,
    runtime, saw, settled,
};

#[tokio::test]
async fn s1_a_thousand_callers_one_load() {
    let world = World::new();
    for cache in [world.local(Policy::ttl(60 * S)), world.node(Policy::ttl(60 * S))] {
        let db = world.db();
        db.takes(S);
        let callers: Vec<_> = (0..1_000)
            .map(|_| {
                let (cache, db) = (cache.clone(), db.clone());
                tokio::spawn(async move { ask(&cache, &db).await })
            })
            .collect();
        world.pass(S).await;
        let mut loaded = 0;
        for caller in callers {
            let (outcome, value) = caller.await.unwrap().unwrap();
            assert_eq!(value.as_deref(), Some("1"));
            loaded += u32::from(outcome == Outcome::Loaded);
        }
        let stats = cache.stats();
        assert_eq!((db.loads(), loaded), (1, 1));
        assert_eq!((stats.misses(), stats.coalesced(), stats.hits()), (1, 999, 0), "{stats:?}");
        counted(&cache, 1_000);
        assert_eq!(stats.flights, 0);
    }
}

/// What a level hands to a caller whose own read began before another's load is that load's, and no hit.
#[tokio::test]
async fn s1_a_caller_who_reads_what_another_has_just_loaded_counts_as_its_waiter() {
    let world = World::new();
    for cache in [world.bare(Policy::ttl(60 * S)), world.node(Policy::ttl(60 * S))] {
        let db = world.db();
        world.l2.inner().wipe();
        // Its mark is known, so that a look-up is one call.
        assert_eq!(look(&cache).await, Ok((Outcome::Miss, None)));
        world.l2.set(ChaosOp::Get, Fault::Delay(50 * MS));
        let slow = asking(&cache, &db).await;
        world.l2.set(ChaosOp::Get, Fault::None);
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Loaded, "1"));
        world.pass(50 * MS).await;
        assert_eq!(slow.await.unwrap(), saw(Outcome::Coalesced, "1"));
        assert_eq!(db.loads(), 1);
    }
}

#[tokio::test]
async fn s2_keys_load_side_by_side() {
    let world = World::new();
    let (cache, db) = (world.node(Policy::ttl(60 * S)), world.db());
    db.takes(S);
    let callers: Vec<_> = (0..20_u32)
        .map(|key| {
            let (cache, db) = (cache.clone(), db.clone());
            tokio::spawn(async move { ask_for(&cache, key, &db).await })
        })
        .collect();
    world.pass(S).await;
    for caller in callers {
        assert_eq!(caller.await.unwrap(), saw(Outcome::Loaded, "1"));
    }
    assert_eq!((db.loads(), db.most_at_once()), (20, 20));
}

#[tokio::test]
async fn s4_waiters_share_the_error_and_its_cause() {
    let world = World::new();
    let (cache, db) = (world.node(Policy::ttl(60 * S)), world.db());
    db.takes(S).fails();
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let (cache, db) = (cache.clone(), db.clone());
            tokio::spawn(async move { cache.get_or_set_with("k", &db, |db, _| db.load()).await })
        })
        .collect();
    world.pass(S).await;
    for caller in callers {
        let error = caller.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Load);
        assert_eq!(error.load_error::<DbError>(), Some(&DbError("no database")));
    }
    assert_eq!(db.loads(), 1);
    let stats = cache.stats();
    assert_eq!((stats.misses(), stats.coalesced(), stats.load_errors), (1, 99, 1));
    counted(&cache, 100);
}

#[tokio::test]
async fn s5_a_failed_flight_is_not_remembered() {
    let world = World::new();
    let (cache, db) = (world.node(Policy::ttl(60 * S)), world.db());
    db.takes(S).fails();
    let leader = asking(&cache, &db).await;
    // Somebody who still has a hand on the flight: polled once, and never again.
    let mut stalled = Box::pin(ask(&cache, &db));
    assert!(futures::poll!(&mut stalled).is_pending());
    world.pass(S).await;
    assert_eq!(leader.await.unwrap(), Err(ErrorKind::Load));
    db.takes(ZERO).has("2");
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Loaded, "2"));
    assert_eq!(db.loads(), 2);
}

/// When the next load begins, the lease of the one that failed is on its way back. It waits for that, and is not told that
/// somebody holds the key.
#[tokio::test]
async fn s5_a_load_does_not_wait_for_a_lease_that_its_own_process_gives_back() {
    let world = World::new();
    let l2 = world.leasing();
    let (cache, db) = (world.node_at(Policy::ttl(60 * S), &l2), world.db());
    l2.set(ChaosOp::Release, Fault::Delay(10 * MS));
    db.takes(ZERO).fails();
    assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load));
    db.has("2");
    let next = asking(&cache, &db).await;
    world.pass(10 * MS).await;
    assert_eq!(next.await.unwrap(), saw(Outcome::Loaded, "2"));
    assert_eq!(l2.calls(ChaosOp::Acquire), 2);
}

#[tokio::test]
async fn s10_with_the_shared_level_down_the_load_runs_here() {
    let world = World::new();
    let (cache, db) = (world.node(Policy::ttl(60 * S)), world.db());
    world.down();
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Loaded, "1"));
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "1"));
    assert_eq!(db.loads(), 1);
}

#[tokio::test]
async fn s11_a_waiter_with_a_stale_value_waits_its_budget_only() {
    let world = World::new();
    let policy = Policy::ttl(S).grace(60 * S).wait(50 * MS);
    let (cache, db) = (world.local(policy), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(2 * S).await;
    db.takes(10 * S).has("2");
    let leader = asking(&cache, &db).await;
    let waiter = asking(&cache, &db).await;
    world.pass(49 * MS).await;
    assert!(!waiter.is_finished());
    world.pass(MS).await;
    assert_eq!(waiter.await.unwrap(), saw(Outcome::Stale, "1"));
    assert!(!leader.is_finished(), "the budget is for waiters");
    world.pass(10 * S).await;
    assert_eq!(leader.await.unwrap(), saw(Outcome::Loaded, "2"));
    assert_eq!(db.loads(), 2);
}

/// Promise 1: a waiter whose budget ends may load for itself; that value stays out of the shared level.
#[tokio::test]
async fn s11_a_waiter_without_one_loads_for_itself() {
    let world = World::new();
    let (cache, db) = (world.node(Policy::ttl(60 * S).wait(50 * MS)), world.db());
    db.takes(10 * S);
    let leader = asking(&cache, &db).await;
    db.takes(S).has("2");
    let waiter = asking(&cache, &db).await;
    world.pass(50 * MS).await;
    assert_eq!(db.loads(), 2);
    world.pass(S).await;
    assert_eq!(waiter.await.unwrap(), saw(Outcome::Loaded, "2"));
    assert!(world.l2.inner().peek("things:k").is_none());
    world.pass(10 * S).await;
    assert_eq!(leader.await.unwrap(), saw(Outcome::Loaded, "2"));
    assert!(world.l2.inner().peek("things:k").is_some());
}

/// The soft limit may end before the wait budget: with the stale value gone by then, the waiter still has its budget.
#[tokio::test]
async fn s11_a_stale_value_that_dies_while_waiting_does_not_end_the_wait() {
    let world = World::new();
    let policy = Policy::ttl(S).grace(2 * S).soft_limit(100 * MS).wait(5 * S).throttle(Duration::ZERO);
    let (cache, db) = (world.local(policy), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(2 * S - 50 * MS).await;
    db.takes(S).has("2");
    let leader = asking(&cache, &db).await;
    let waiter = asking(&cache, &db).await;
    world.pass(100 * MS).await;
    assert_eq!(db.loads(), 2, "nobody loads for itself yet");
    world.pass(S).await;
    assert_eq!(leader.await.unwrap(), saw(Outcome::Loaded, "2"));
    assert_eq!(waiter.await.unwrap(), saw(Outcome::Coalesced, "2"));
    assert_eq!(db.loads(), 2);
}

#[tokio::test]
async fn s13_a_set_beats_a_load_under_way() {
    let world = World::new();
    for cache in [world.local(Policy::ttl(60 * S)), world.node(Policy::ttl(60 * S))] {
        let db = world.db();
        db.takes(S);
        let caller = asking(&cache, &db).await;
        assert!(cache.set("k", "set".to_owned()).await.unwrap().is_confirmed());
        assert_eq!(look(&cache).await, saw(Outcome::Hit, "set"));
        world.pass(S).await;
        assert_eq!(caller.await.unwrap(), saw(Outcome::Loaded, "1"), "its own callers get what it loaded");
        assert_eq!(look(&cache).await, saw(Outcome::Hit, "set"));
        assert_eq!(cache.stats().overtaken, 1);
    }
    let other = world.node(Policy::ttl(60 * S));
    assert_eq!(look(&other).await, saw(Outcome::Hit, "set"));
}

#[tokio::test]
async fn a_failing_refresh_does_not_take_a_stale_value_from_those_who_join_it() {
    let world = World::new();
    let (cache, db) = (world.node(Policy::ttl(S).grace(60 * S)), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(2 * S).await;
    db.takes(S).fails();
    let refresh = tokio::spawn({
        let (cache, db) = (cache.clone(), db.clone());
        async move { cache.refresh("k", &db, |db, _| db.load()).await.map(drop) }
    });
    settled().await;
    let caller = asking(&cache, &db).await;
    world.pass(S).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Stale, "1"));
    assert_eq!(refresh.await.unwrap().unwrap_err().kind(), ErrorKind::Load);
    assert_eq!(db.loads(), 2);
}

#[tokio::test]
async fn a_refresh_or_a_bypass_under_way_does_not_keep_a_level_from_answering() {
    let world = World::new();
    let (cache, db) = (world.bare(Policy::ttl(60 * S)), world.db());
    ask(&cache, &db).await.unwrap();
    db.takes(S);
    for access in [Access::Reload, Access::Bypass] {
        let other = asking(&cache.access(access), &db).await;
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "1"), "{access:?}");
        world.pass(S).await;
        assert_eq!(other.await.unwrap(), saw(Outcome::Loaded, "1"));
    }
}

#[tokio::test]
async fn loads_at_once_are_capped_and_queue() {
    let world = World::new();
    let (cache, db) = (world.local(Policy::ttl(60 * S).loads(3)), world.db());
    db.takes(S);
    let callers: Vec<_> = (0..9_u32)
        .map(|key| {
            let (cache, db) = (cache.clone(), db.clone());
            tokio::spawn(async move { ask_for(&cache, key, &db).await })
        })
        .collect();
    for round in 1..=3 {
        settled().await;
        assert_eq!(db.loads(), 3 * round);
        world.pass(S).await;
    }
    for caller in callers {
        assert_eq!(caller.await.unwrap(), saw(Outcome::Loaded, "1"));
    }
    assert_eq!(db.most_at_once(), 3);
}

async fn nested(cache: TracedCache<String>, inner: &'static str) -> Result<String, traced_cache::Error> {
    let found = cache.get_or_set(inner, || async { Ok::<_, DbError>("inner".to_owned()) }).await?;
    Ok(format!("outer of {found}"))
}

/// A loader that asks its cache for another key must not wait for its own place under the cap.
#[tokio::test]
async fn a_capped_load_may_ask_for_another_key() {
    let world = World::new();
    let cache = world.local(Policy::ttl(60 * S).loads(1).hard_limit(None));
    let own = cache.clone();
    let caller = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_set("a", move || nested(own, "b")).await }
    });
    world.pass(S).await;
    assert!(caller.is_finished(), "a deadlock");
    assert_eq!(*caller.await.unwrap().unwrap(), "outer of inner");
}

/// Nor for that of a load which waits behind it in the queue.
#[tokio::test]
async fn a_capped_load_may_join_one_that_queues_behind_it() {
    let world = World::new();
    let cache = world.local(Policy::ttl(60 * S).loads(1).hard_limit(None));
    let (own, clock) = (cache.clone(), world.clock.clone());
    let first = tokio::spawn({
        let cache = cache.clone();
        async move {
            let load = move || async move {
                clock.sleep(S).await;
                nested(own, "b").await
            };
            cache.get_or_set("a", load).await
        }
    });
    settled().await;
    let db = world.db();
    let queued = tokio::spawn({
        let (cache, db) = (cache.clone(), db.clone());
        async move { ask_for(&cache, "b", &db).await }
    });
    settled().await;
    assert_eq!(db.loads(), 0, "it queues");
    world.pass(S).await;
    assert!(first.is_finished() && queued.is_finished(), "a deadlock");
    assert_eq!(*first.await.unwrap().unwrap(), "outer of 1");
    assert_eq!(queued.await.unwrap(), saw(Outcome::Loaded, "1"));
}

/// A batch is held by the same policy as a single key.
#[tokio::test]
async fn a_batch_answers_stale_within_its_windows_and_limits() {
    let world = World::new();
    let policy = Policy::ttl(10 * S).grace(60 * S).revalidate(5 * S).soft_limit(S);
    let (cache, db) = (world.node(policy), world.db());
    let batch = |keys: &'static [&'static str]| {
        let (cache, db) = (cache.clone(), db.clone());
        tokio::spawn(async move {
            let found = cache.get_or_set_many(keys.iter().copied(), &db, |db, keys| db.load_many(keys)).await;
            found.map(|all| all.into_iter().map(|v| v.map(|v| v.to_string())).collect::<Vec<_>>())
        })
    };
    batch(&["a", "b"]).await.unwrap().unwrap();
    world.pass(12 * S).await;
    db.takes(3 * S).has("2");
    // Within the revalidate window: stale at once, one refresh of both.
    let stale = batch(&["a", "b"]).await.unwrap().unwrap();
    assert_eq!(stale, [Some("1".to_owned()), Some("1".to_owned())]);
    assert_eq!(db.loads(), 2);
    // A key that nobody has is waited for; the others are not.
    let mixed = batch(&["a", "c"]);
    world.pass(3 * S).await;
    assert_eq!(mixed.await.unwrap().unwrap(), [Some("1".to_owned()), Some("2".to_owned())]);
    assert_eq!(db.loads(), 3);
    // Past the window: the soft limit.
    world.pass(16 * S).await;
    db.has("3");
    let late = batch(&["a", "b"]);
    world.pass(S).await;
    assert!(late.is_finished());
    assert_eq!(late.await.unwrap().unwrap(), [Some("2".to_owned()), Some("2".to_owned())]);
    world.pass(2 * S).await;
    assert_eq!(ask_for(&cache, "a", &db).await, saw(Outcome::Hit, "3"));
    assert_eq!(db.loads(), 4);
}

/// The only caller who may cancel a load is the last one who waits for it, and a batch waits, too.
#[tokio::test]
async fn a_caller_who_gives_up_does_not_cancel_the_load_that_a_batch_waits_for() {
    let world = World::new();
    let policy = Policy::ttl(10 * S).grace(100 * S).soft_limit(100 * MS).complete_in_background(false);
    let (cache, db) = (world.local(policy), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.takes(S).has("2");
    let impatient = asking(&cache, &db).await;
    let batch = asking_many(&cache.access(Access::Reload), &db).await;
    world.pass(100 * MS).await;
    assert_eq!(impatient.await.unwrap(), saw(Outcome::Stale, "1"));
    world.pass(S).await;
    assert_eq!(batch.await.unwrap(), Ok(Some("2".to_owned())));
}

#[tokio::test]
async fn a_load_that_is_cancelled_gives_its_lease_back() {
    let world = World::new();
    let l2 = world.leasing();
    let policy = Policy::ttl(10 * S).grace(100 * S).soft_limit(100 * MS).complete_in_background(false);
    let (cache, db) = (world.node_at(policy, &l2), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.takes(100 * S);
    let caller = asking(&cache, &db).await;
    assert!(l2.inner().is_leased("things:k"));
    world.pass(100 * MS).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Stale, "1"));
    settled().await;
    assert!(!l2.inner().is_leased("things:k"), "other nodes would wait for its end");
}

/// As a single caller does: what it has joined began before it called, and another node's invalidation came between.
#[tokio::test]
async fn a_batch_does_not_take_the_value_of_a_load_that_another_node_has_overtaken() {
    let world = World::new();
    let l2 = world.leasing();
    let policy = Policy::ttl(10 * S);
    let (one, other, db) = (world.node_at(policy, &l2), world.node_at(policy, &l2), world.db());
    db.takes(S).has("old");
    let before = asking(&other, &db).await;
    confirmed(one.invalidate("k").await);
    let batch = asking_many(&other, &db).await;
    world.pass(S - MS).await;
    assert_eq!(db.loads(), 1);
    world.time.advance(MS);
    assert_eq!(before.await.unwrap(), saw(Outcome::Loaded, "old"), "it called before the invalidation");
    db.has("new");
    for _ in 0..2 {
        world.pass(S).await;
    }
    assert_eq!(batch.await.unwrap(), Ok(Some("new".to_owned())));
    assert_eq!((db.loads(), other.stats().lookups()), (2, 2));
}

/// Loads are tasks of their callers' runtimes, of which one may be driven by short calls only.
#[test]
fn a_load_whose_runtime_stands_still_is_not_waited_for() {
    for many in [false, true] {
        let (idle, driven) = (runtime(), runtime());
        let world = World::new();
        let cache = world.node(Policy::ttl(100 * S));
        let (theirs, ours) = (world.db(), world.db());
        theirs.takes(S).answers(|| Ok(Loaded::value("theirs".to_owned())));
        ours.answers(|| Ok(Loaded::value("ours".to_owned())));
        // Its caller gives up, and its runtime with it.
        let first = idle.block_on(asking(&cache, &theirs));
        let call = driven.block_on(asking_alike(&cache, &ours, many));
        driven.block_on(async {
            for _ in 0..5 {
                world.pass(S).await;
            }
            assert!(call.is_finished(), "it waits for a load that nobody runs");
        });
        assert_eq!(driven.block_on(call).unwrap().unwrap().as_deref(), Some("ours"));
        // Its runtime goes on: the load has been overtaken.
        idle.block_on(async {
            for _ in 0..5 {
                world.pass(S).await;
            }
            assert_eq!(first.await.unwrap(), saw(Outcome::Loaded, "theirs"));
        });
        driven.block_on(async {
            let found = cache.get("k").await.unwrap();
            assert_eq!(found.as_deref().map(String::as_str), Some("ours"), "many: {many}");
        });
        assert_eq!((theirs.loads(), cache.stats().overtaken), (1, 1));
    }
}

/// What stands in meanwhile is no reason to have nobody load.
#[test]
fn a_load_whose_runtime_stands_still_does_not_keep_a_stale_value_alive() {
    for many in [false, true] {
        let (idle, driven) = (runtime(), runtime());
        let world = World::new();
        let cache = world.local(Policy::ttl(10 * S).grace(1_000 * S).soft_limit(100 * MS));
        let (theirs, ours) = (world.db(), world.db());
        driven.block_on(ask(&cache, &ours)).unwrap();
        driven.block_on(world.pass(11 * S));
        theirs.takes(S);
        let _first = idle.block_on(asking(&cache, &theirs));
        ours.has("2");
        driven.block_on(async {
            for _ in 0..10 {
                let _stale = asking_alike(&cache, &ours, many).await;
                world.pass(S).await;
            }
            let call = asking_alike(&cache, &ours, many).await;
            world.pass(S).await;
            assert_eq!(call.await.unwrap(), Ok(Some("2".to_owned())), "many: {many}");
        });
    }
}

#[test]
fn a_load_of_another_runtime_is_waited_for_however_long_it_takes() {
    let (theirs, ours) = (runtime(), runtime());
    let world = World::new();
    let cache = world.node(Policy::ttl(100 * S).hard_limit(None));
    let db = world.db();
    db.takes(60 * S);
    let first = theirs.block_on(asking(&cache, &db));
    let second = ours.block_on(asking(&cache, &db));
    for _ in 0..70 {
        ours.block_on(world.pass(S));
        theirs.block_on(settled());
    }
    assert_eq!(theirs.block_on(first).unwrap(), saw(Outcome::Loaded, "1"));
    assert_eq!(ours.block_on(second).unwrap(), saw(Outcome::Coalesced, "1"));
    assert_eq!((db.loads(), cache.stats().overtaken), (1, 0));
}

/// Its callers have called before it ended, but may still be reading a slow level when its life is over.
#[tokio::test]
async fn what_a_load_has_left_is_shown_to_nobody_once_it_is_over() {
    for many in [false, true] {
        let world = World::new();
        let cache = world.node_with(Policy::ttl(S), |level| level.budget(10 * S));
        let db = world.db();
        // Marks are known.
        look(&cache).await.unwrap();
        world.l2.set(ChaosOp::Get, Fault::DelayReply(2 * S));
        let late = asking_alike(&cache, &db, many).await;
        world.l2.set(ChaosOp::Get, Fault::None);
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Loaded, "1"));
        db.has("2");
        world.pass(2 * S).await;
        assert_eq!(late.await.unwrap(), Ok(Some("2".to_owned())), "a batch: {many}");
        assert_eq!(db.loads(), 2);
    }
}
