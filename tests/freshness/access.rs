//! Access modes, `refresh`, `expire`, and what a loader may answer.

use std::sync::Arc;

use traced_cache::{
    Access, ErrorKind, LoadEnd, Loaded, Outcome, Policy,
    testing::{ChaosOp, Fault},
};

use crate::world::{
    DbError, MISS, MS, S, World, ZERO, ask, asking, asking_many, confirmed, counted, look, saw, settled,
};

fn policy() -> Policy {
    Policy::ttl(10 * S).grace(100 * S)
}

#[tokio::test]
async fn cache_only_never_loads() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    let only = cache.access(Access::CacheOnly);
    assert_eq!(ask(&only, &db).await, MISS);
    ask(&cache, &db).await.unwrap();
    assert_eq!(ask(&only, &db).await, saw(Outcome::Hit, "1"));
    world.pass(11 * S).await;
    assert_eq!(ask(&only, &db).await, MISS, "stale is a choice of its own");
    assert_eq!(db.loads(), 1);
    counted(&cache, 4);
    // It is not said that the source has none.
    let plain = only.get_or_set("new", || async { traced_cache::ok(String::new()) }).await.unwrap_err();
    assert_eq!(plain.kind(), ErrorKind::Absent);
    assert!(plain.to_string().contains("was not asked"), "{plain}");
}

/// What the source does not have is not warm, and nothing is where nothing is stored.
#[tokio::test]
async fn warm_counts_values_that_are_held() {
    let world = World::new();
    let (cache, db) = (world.local(policy()), world.db());
    let warmed = cache.access(Access::Bypass).warm(["a", "b"], 2, &db, |db, _| db.load()).await;
    assert_eq!((warmed.warmed, warmed.failed.len()), (0, 0));
    assert_eq!(cache.get("a").await.unwrap(), None);
    db.answers(|| Ok(Loaded::absent()));
    let warmed = cache.warm(["a", "b"], 2, &db, |db, _| db.load()).await;
    assert_eq!((warmed.warmed, warmed.failed.len()), (0, 0));
    db.has("1");
    assert_eq!(cache.warm(["a", "b"], 2, &db, |db, _| db.load()).await.warmed, 2);
}

/// The same while a refresh that has failed is not tried again: a `get` and a batch do not serve it either.
#[tokio::test]
async fn cache_only_is_not_served_stale_while_refreshes_are_throttled() {
    let world = World::new();
    let (cache, db) = (world.local(policy().throttle(5 * S)), world.db());
    let only = cache.access(Access::CacheOnly);
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.fails();
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"));
    assert_eq!(ask(&only, &db).await, MISS);
    assert_eq!(look(&only).await, MISS);
    assert_eq!(asking_many(&only, &db).await.await.unwrap(), Ok(None));
}

#[tokio::test]
async fn allow_stale_loads_only_what_nobody_has() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    let allow = cache.access(Access::AllowStale);
    assert_eq!(ask(&allow, &db).await, saw(Outcome::Loaded, "1"));
    world.pass(11 * S).await;
    assert_eq!(ask(&allow, &db).await, saw(Outcome::Stale, "1"));
    world.pass(89 * S).await;
    db.has("2");
    assert_eq!(ask(&allow, &db).await, saw(Outcome::Loaded, "2"));
    assert_eq!(db.loads(), 2);
}

#[tokio::test]
async fn reload_reads_nothing_and_stores() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.l2.reset();
    db.has("2");
    assert_eq!(ask(&cache.access(Access::Reload), &db).await, saw(Outcome::Loaded, "2"));
    assert_eq!(world.l2.calls(ChaosOp::Get), 0);
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "2"));
    assert_eq!(look(&world.node(policy())).await, saw(Outcome::Hit, "2"));
}

#[tokio::test]
async fn bypass_reads_nothing_and_stores_nothing() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.l2.reset();
    // Less than a second: after one the level's mark would be read.
    db.takes(500 * MS).has("2");
    let bypass = cache.access(Access::Bypass);
    let (one, two) = (asking(&bypass, &db).await, asking(&bypass, &db).await);
    world.pass(500 * MS).await;
    assert_eq!(one.await.unwrap(), saw(Outcome::Loaded, "2"));
    assert_eq!(two.await.unwrap(), saw(Outcome::Coalesced, "2"));
    assert_eq!(db.loads(), 2);
    assert_eq!((world.l2.calls(ChaosOp::Get), world.l2.calls(ChaosOp::Put)), (0, 0));
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "1"));
    assert_eq!(look(&bypass).await, MISS);
}

#[tokio::test]
async fn refresh_loads_what_is_fresh_and_joins_a_load_under_way() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    db.takes(S).has("2");
    let refreshing = |n: u32| {
        let (cache, db) = (cache.clone(), db.clone());
        tokio::spawn(async move { (n, cache.refresh("k", &db, |db, _| db.load()).await.unwrap().unwrap()) })
    };
    let both = [refreshing(1), refreshing(2)];
    world.pass(S).await;
    for one in both {
        assert_eq!(*one.await.unwrap().1, "2");
    }
    assert_eq!(db.loads(), 2);
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "2"));
    let stats = cache.stats();
    assert_eq!((stats.coalesced(), stats.misses(), stats.hits()), (1, 2, 1));
    // A failed one leaves what is there.
    db.fails();
    let failed = refreshing(3);
    world.pass(S).await;
    assert!(failed.await.is_err());
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "2"));
}

#[tokio::test]
async fn expire_keeps_a_fallback_and_invalidate_does_not() {
    let world = World::new();
    for cache in [world.local(policy()), world.node(policy()), world.bare(policy())] {
        let db = world.db();
        db.has("1");
        ask(&cache, &db).await.unwrap();
        assert!(cache.expire("k").await.unwrap().is_confirmed());
        assert_eq!(look(&cache).await, MISS);
        db.fails();
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"));
        assert!(cache.invalidate("k").await.unwrap().is_confirmed());
        assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load));
    }
}

#[tokio::test]
async fn expire_beats_a_load_under_way() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.takes(S).has("2");
    let caller = asking(&cache, &db).await;
    assert!(cache.expire("k").await.unwrap().is_confirmed());
    world.pass(S).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Loaded, "2"));
    assert_eq!(look(&cache).await, MISS);
    assert_eq!(look(&cache.access(Access::AllowStale)).await, saw(Outcome::Stale, "1"));
}

#[tokio::test]
async fn an_absence_has_a_ttl_and_an_outcome_of_its_own() {
    let world = World::new();
    for cache in [world.local(policy().absent_ttl(2 * S)), world.node(policy().absent_ttl(2 * S))] {
        let db = world.db();
        db.answers(|| Ok(Loaded::absent()));
        let absent = Ok((Outcome::Absent, None));
        assert_eq!(ask(&cache, &db).await, Ok((Outcome::Loaded, None)));
        assert_eq!(ask(&cache, &db).await, absent);
        assert_eq!(look(&cache).await, absent);
        assert_eq!(db.loads(), 1);
        // A loader that promises a plain value gets a typed error.
        let plain = cache.get_or_set("k", || async { Ok::<_, DbError>(String::new()) }).await;
        assert_eq!(plain.unwrap_err().kind(), ErrorKind::Absent);
        assert_eq!(cache.stats().errors[ErrorKind::Absent as usize].1, 1);
        world.pass(2 * S).await;
        assert_eq!(look(&cache).await, MISS);
        let stale = cache.access(Access::AllowStale);
        assert_eq!(look(&stale).await, MISS, "no grace for what is not there");
        // Its own ttl beats the policy's.
        db.answers(|| Ok(Loaded::absent().ttl(5 * S)));
        ask(&cache, &db).await.unwrap();
        world.pass(4 * S).await;
        assert_eq!(look(&cache).await, absent);
        let stats = cache.stats();
        assert_eq!((stats.hits(), stats.outcome(Outcome::Absent)), (0, 4));
        counted(&cache, 8);
        confirmed(cache.invalidate("k").await);
    }
}

/// A record that is gone at refresh is not served as stale, whether or not absences are remembered (N5).
#[tokio::test]
async fn an_absence_ends_the_value_that_was_there() {
    let world = World::new();
    for absent_ttl in [ZERO, 3 * S] {
        let (cache, db) = (world.node(policy().absent_ttl(absent_ttl)), world.db());
        ask(&cache, &db).await.unwrap();
        world.pass(11 * S).await;
        db.answers(|| Ok(Loaded::absent()));
        assert_eq!(ask(&cache, &db).await, Ok((Outcome::Loaded, None)));
        world.pass(3 * S).await;
        db.fails();
        assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load));
        assert_eq!(look(&cache.access(Access::AllowStale)).await, MISS);
        assert_eq!(look(&world.node(policy()).access(Access::AllowStale)).await, MISS);
    }
}

#[tokio::test]
async fn do_not_store_leaves_levels_alone() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    world.l2.reset();
    db.answers(|| Ok(Loaded::do_not_store(Some("partial".to_owned()))));
    for _ in 0..2 {
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Loaded, "partial"));
    }
    assert_eq!(look(&cache.access(Access::AllowStale)).await, saw(Outcome::Stale, "1"));
    assert_eq!((world.l2.calls(ChaosOp::Put), world.l2.calls(ChaosOp::Remove)), (0, 0));
    assert_eq!(world.load_events(|end, _| end == LoadEnd::NotStored), 2);
}

#[tokio::test]
async fn a_failure_without_an_error_type_is_a_failure() {
    let world = World::new();
    let (cache, db) = (world.local(policy()), world.db());
    db.answers(|| Ok(Loaded::failed("out of order")));
    assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load));
    db.has("1");
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.answers(|| Ok(Loaded::failed("out of order")));
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Stale, "1"));
}

/// Access modes do not weaken the rest: a sick level costs a reload nothing but its write.
#[tokio::test]
async fn a_reload_with_the_shared_level_down_answers() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    world.l2.set_all(Fault::Fail);
    for access in [Access::Reload, Access::Bypass, Access::AllowStale] {
        let (_, value) = ask(&cache.access(access), &db).await.unwrap();
        assert_eq!(value.as_deref(), Some("1"), "{access:?}");
    }
    settled().await;
}

/// What the remote level holds is what is to be replaced, not an answer to the wish for its lease.
#[tokio::test]
async fn refresh_and_reload_load_where_the_remote_level_keeps_leases() {
    let world = World::new();
    let policy = Policy::ttl(10 * S);
    let (cache, db) = (world.node_at(policy, &world.leasing()), world.db());
    confirmed(cache.set("k", "old".to_owned()).await);
    db.has("new");
    let new: Option<Arc<String>> = cache.refresh("k", &db, |db, _: String| db.load()).await.unwrap();
    assert_eq!((new.unwrap().as_str(), db.loads()), ("new", 1));
    db.has("newer");
    assert_eq!(ask(&cache.access(Access::Reload), &db).await, saw(Outcome::Loaded, "newer"));
}

/// Also those that end before a level is asked.
#[tokio::test]
async fn every_call_that_ends_with_an_error_is_counted_once() {
    let world = World::new();
    let cache = world.local(policy());
    let change = |(), _: String, _| async { traced_cache::ok(String::new()) };
    assert_eq!(cache.get("").await.unwrap_err().kind(), ErrorKind::Key);
    assert_eq!(cache.set("", String::new()).await.unwrap_err().kind(), ErrorKind::Key);
    assert_eq!(cache.invalidate_tag("").await.unwrap_err().kind(), ErrorKind::Tag);
    assert!(cache.close(ZERO).await.is_drained());
    assert_eq!(cache.get("k").await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(cache.update("k", &(), change).await.unwrap_err().kind(), ErrorKind::Closed);
    let errors = cache.stats().errors.into_iter().filter(|(_, count)| *count > 0);
    assert_eq!(
        errors.collect::<Vec<_>>(),
        [(ErrorKind::Key, 2), (ErrorKind::Tag, 1), (ErrorKind::Closed, 2)]
    );
}
