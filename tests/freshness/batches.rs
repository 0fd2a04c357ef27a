//! A batch costs and counts as its keys would alone, and no more.

use traced_cache::{
    ErrorKind, Policy,
    testing::{ChaosOp, Fault, Recorded},
};

use crate::world::{DbError, MS, S, World, ask, asking, asking_alike, look, settled};

fn policy() -> Policy {
    Policy::ttl(10 * S).grace(100 * S)
}

fn keys() -> Vec<String> {
    (0..50).map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn keys_that_are_gone_are_removed_in_one_round_trip() {
    let world = World::new();
    let l2 = world.leasing();
    let (cache, db) = (world.node_at(policy(), &l2), world.db());
    cache.get_or_set_many(&keys(), &db, |db, keys: Vec<String>| db.load_many(keys)).await.unwrap();
    world.pass(11 * S).await;
    l2.reset();
    let nothing = |(), _: Vec<String>| async { Ok::<_, DbError>(Vec::<(String, String)>::new()) };
    let found = cache.get_or_set_many(&keys(), &(), nothing).await.unwrap();
    assert!(found.iter().all(Option::is_none));
    assert_eq!((l2.calls(ChaosOp::Fill), l2.calls(ChaosOp::Remove)), (1, 0), "each under its lease");
}

#[tokio::test]
async fn leases_of_a_load_that_failed_are_given_back_in_one_round_trip() {
    let world = World::new();
    let l2 = world.leasing();
    let (cache, db) = (world.node_at(policy(), &l2), world.db());
    db.fails();
    let all = cache.get_or_set_many(&keys(), &db, |db, keys: Vec<String>| db.load_many(keys)).await;
    assert_eq!(all.unwrap_err().kind(), ErrorKind::Load);
    settled().await;
    assert_eq!(l2.calls(ChaosOp::Release), 1);
    assert!(keys().iter().all(|key| !l2.inner().is_leased(&format!("things:{key}"))));
}

#[tokio::test]
async fn whoever_shares_a_failure_that_has_just_landed_counts_as_coalesced() {
    for many in [false, true] {
        let world = World::new();
        let (cache, db) = (world.node(policy()), world.db());
        // Marks are known.
        look(&cache).await.unwrap();
        let before = cache.stats();
        db.fails();
        world.l2.set(ChaosOp::Get, Fault::DelayReply(200 * MS));
        let late = asking_alike(&cache, &db, many).await;
        world.l2.set(ChaosOp::Get, Fault::None);
        assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load));
        world.pass(200 * MS).await;
        assert_eq!(late.await.unwrap(), Err(ErrorKind::Load));
        assert_eq!(db.loads(), 1);
        let stats = cache.stats();
        assert_eq!(
            (stats.coalesced() - before.coalesced(), stats.misses() - before.misses()),
            (1, 1),
            "a batch: {many}"
        );
    }
}

#[tokio::test]
async fn whoever_waits_for_the_load_of_another_is_told_of() {
    for many in [false, true] {
        let world = World::new();
        let (cache, db) = (world.local(policy()), world.db());
        db.takes(5 * S);
        let first = asking(&cache, &db).await;
        let joins = asking_alike(&cache, &db, many).await;
        world.pass(5 * S).await;
        first.await.unwrap().unwrap();
        joins.await.unwrap().unwrap();
        let waits = world.seen.count(|e| matches!(e, Recorded::Coalesced { .. }));
        assert_eq!(waits, 1, "a batch: {many}");
    }
}
