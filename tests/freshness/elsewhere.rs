//! Batches with keys that other processes are loading.

use std::sync::Arc;

use tokio::task::JoinHandle;
use traced_cache::{
    Access, ErrorKind, Level, Outcome, Policy, TracedCache,
    testing::{Chaos, ChaosOp, Fault, MapProvider},
};

use crate::world::{Db, MS, S, Seen, World, ask_for, asking, asking_alike, look, memory, saw, settled};

type Answer = Result<Vec<Option<String>>, ErrorKind>;

async fn asking_for(cache: &TracedCache<String>, key: &'static str, db: &Db) -> JoinHandle<Seen> {
    let (cache, db) = (cache.clone(), db.clone());
    let task = tokio::spawn(async move { ask_for(&cache, key, &db).await });
    settled().await;
    task
}

async fn batch(cache: &TracedCache<String>, keys: &'static [&'static str], db: &Db) -> JoinHandle<Answer> {
    let (cache, db) = (cache.clone(), db.clone());
    let task = tokio::spawn(async move {
        let found = cache.get_or_set_many(keys.iter().copied(), &db, |db, keys| db.load_many(keys)).await;
        found
            .map(|all| all.into_iter().map(|v| v.map(|v| v.to_string())).collect())
            .map_err(|error| error.kind())
    });
    settled().await;
    task
}

#[tokio::test]
async fn what_one_has_loaded_does_not_wait_for_what_another_loads() {
    let world = World::new();
    let l2 = world.leasing();
    let nodes = [(); 3].map(|()| world.node_at(Policy::ttl(60 * S), &l2));
    let [quick, slow, db] = [(); 3].map(|()| world.db());
    quick.takes(S);
    slow.takes(10 * S);
    let first = asking_for(&nodes[0], "a", &quick).await;
    let second = asking_for(&nodes[1], "b", &slow).await;
    let both = batch(&nodes[2], &["a", "b"], &db).await;
    let single = asking_for(&nodes[2], "a", &db).await;
    for _ in 0..12 {
        world.pass(100 * MS).await;
    }
    assert_eq!(first.await.unwrap(), saw(Outcome::Loaded, "1"));
    assert!(single.is_finished(), "it waits for a key that it did not ask for");
    assert!(!both.is_finished());
    for _ in 0..100 {
        world.pass(100 * MS).await;
    }
    assert_eq!(second.await.unwrap(), saw(Outcome::Loaded, "1"));
    assert_eq!(both.await.unwrap().unwrap(), [Some("1".to_owned()), Some("1".to_owned())]);
    assert_eq!(db.loads(), 0, "both were loaded elsewhere");
}

#[tokio::test]
async fn what_one_has_given_up_is_loaded_while_another_still_loads() {
    let world = World::new();
    let l2 = world.leasing();
    let nodes = [(); 3].map(|()| world.node_at(Policy::ttl(60 * S), &l2));
    let [fails, slow, db] = [(); 3].map(|()| world.db());
    fails.takes(S).fails();
    slow.takes(10 * S);
    let first = asking_for(&nodes[0], "a", &fails).await;
    let second = asking_for(&nodes[1], "b", &slow).await;
    let both = batch(&nodes[2], &["a", "b"], &db).await;
    for _ in 0..12 {
        world.pass(100 * MS).await;
    }
    assert_eq!(first.await.unwrap(), Err(ErrorKind::Load));
    assert_eq!(db.loads(), 1, "it holds the lease");
    assert_eq!(ask_for(&nodes[0], "a", &fails).await, saw(Outcome::Hit, "1"), "and has stored it");
    for _ in 0..100 {
        world.pass(100 * MS).await;
    }
    assert_eq!(second.await.unwrap(), saw(Outcome::Loaded, "1"));
    assert_eq!(both.await.unwrap().unwrap(), [Some("1".to_owned()), Some("1".to_owned())]);
    assert_eq!(db.loads(), 1);
}

#[tokio::test]
async fn what_is_found_after_all_is_put_above_side_by_side() {
    let world = World::new();
    let (middle, deep) =
        (Arc::new(Chaos::new(MapProvider::new()).clock(world.clock.clone())), world.leasing());
    let [slow, db] = [(); 2].map(|()| world.db());
    slow.takes(S);
    let other = world.node_at(Policy::ttl(60 * S), &deep);
    let level = Level::new(Arc::clone(&middle)).budget(10 * S);
    let three = world.builder(Policy::ttl(60 * S)).level(memory()).level(level).level(Arc::clone(&deep));
    let cache = three.build().unwrap();
    let first = batch(&other, &["a", "b", "c"], &slow).await;
    let second = batch(&cache, &["a", "b", "c"], &db).await;
    middle.set(ChaosOp::Put, Fault::Delay(S));
    for _ in 0..22 {
        world.pass(100 * MS).await;
    }
    let all = Ok([(); 3].map(|()| Some("1".to_owned())).to_vec());
    assert_eq!(first.await.unwrap(), all);
    assert!(second.is_finished(), "one after the other");
    assert_eq!(second.await.unwrap(), all);
    assert_eq!(db.loads(), 0);
}

#[tokio::test]
async fn past_the_wait_budget_it_loads_what_others_are_loading() {
    let world = World::new();
    let l2 = world.leasing();
    let policy = Policy::ttl(60 * S).wait(S);
    let nodes = [(); 2].map(|()| world.node_at(policy, &l2));
    let [slow, db] = [(); 2].map(|()| world.db());
    slow.takes(10 * S);
    let first = batch(&nodes[0], &["a", "b"], &slow).await;
    let second = batch(&nodes[1], &["a", "b", "c"], &db).await;
    for _ in 0..12 {
        world.pass(100 * MS).await;
    }
    assert!(second.is_finished() && !first.is_finished());
    assert_eq!(second.await.unwrap().unwrap(), [(); 3].map(|()| Some("1".to_owned())));
    assert_eq!(db.loads(), 2, "c at once, the others together");
}

#[tokio::test]
async fn a_batch_that_bypasses_the_cache_waits_for_nobody() {
    let world = World::new();
    let l2 = world.leasing();
    let nodes = [(); 2].map(|()| world.node_at(Policy::ttl(60 * S), &l2));
    let [slow, db] = [(); 2].map(|()| world.db());
    ask_for(&nodes[1], "other", &db).await.unwrap();
    slow.takes(10 * S);
    let first = batch(&nodes[0], &["a"], &slow).await;
    let second = batch(&nodes[1].access(Access::Bypass), &["a", "b"], &db).await;
    assert!(second.is_finished());
    assert_eq!(second.await.unwrap().unwrap(), [Some("1".to_owned()), Some("1".to_owned())]);
    assert_eq!(db.loads(), 2, "other, and a and b together");
    // Nor does anybody wait for it: it took no lease.
    let third = asking_for(&nodes[0], "b", &db).await;
    assert!(third.is_finished());
    world.pass(10 * S).await;
    assert_eq!(first.await.unwrap().unwrap(), [Some("1".to_owned())]);
}

#[tokio::test]
async fn a_lease_is_kept_while_a_deeper_level_is_waited_for() {
    for many in [false, true] {
        let world = World::new();
        let (near, far) = (world.leasing(), world.leasing());
        let cache = world.node_at_both(Policy::ttl(60 * S), &near, &far);
        let other = world.node_at(Policy::ttl(60 * S), &far);
        let [slow, db] = [(); 2].map(|()| world.db());
        slow.takes(5 * S);
        let first = asking(&other, &slow).await;
        let waits = asking_alike(&cache, &db, many).await;
        for _ in 0..48 {
            world.pass(100 * MS).await;
            assert!(near.inner().is_leased("things:k"), "a batch: {many}");
        }
        for _ in 0..10 {
            world.pass(100 * MS).await;
        }
        first.await.unwrap().unwrap();
        waits.await.unwrap().unwrap();
        assert_eq!((db.loads(), cache.stats().overtaken), (0, 0));
        assert_eq!(cache.look("k").await.unwrap().level(), Some(0));
    }
}

/// Of a load that is cancelled while it waits for another node at a deeper level.
#[tokio::test]
async fn a_lease_is_given_back_if_its_load_is_cancelled_before_it_begins() {
    let world = World::new();
    let (near, far) = (world.leasing(), world.leasing());
    let policy = Policy::ttl(10 * S).grace(100 * S).soft_limit(S).complete_in_background(false);
    let cache = world.node_at_both(policy, &near, &far);
    let other = world.node_at(policy, &far);
    let [slow, db] = [(); 2].map(|()| world.db());
    ask_for(&cache, "k", &db).await.unwrap();
    world.pass(11 * S).await;
    slow.takes(20 * S);
    let first = asking_alike(&other, &slow, true).await;
    let gives_up = asking(&cache, &db).await;
    assert!(near.inner().is_leased("things:k") && far.inner().is_leased("things:k"));
    for _ in 0..10 {
        world.pass(100 * MS).await;
    }
    assert_eq!(gives_up.await.unwrap(), saw(Outcome::Stale, "1"));
    settled().await;
    assert!(!near.inner().is_leased("things:k"), "other nodes would wait for its end");
    drop(first);
}

/// The same of one whose grant is on its way.
#[tokio::test]
async fn a_lease_is_given_back_if_its_load_is_cancelled_while_it_is_granted() {
    let world = World::new();
    let l2 = world.leasing();
    let policy = Policy::ttl(10 * S).grace(100 * S).soft_limit(100 * MS).complete_in_background(false);
    let cache = world.builder(policy).level(memory()).level(Level::new(Arc::clone(&l2)).budget(S));
    let (cache, db) = (cache.build().unwrap(), world.db());
    ask_for(&cache, "k", &db).await.unwrap();
    world.pass(11 * S).await;
    l2.set(ChaosOp::Acquire, Fault::DelayReply(200 * MS));
    let gives_up = asking(&cache, &db).await;
    assert!(l2.inner().is_leased("things:k"));
    world.pass(100 * MS).await;
    assert_eq!(gives_up.await.unwrap(), saw(Outcome::Stale, "1"));
    world.pass(100 * MS).await;
    assert!(!l2.inner().is_leased("things:k"), "other nodes would wait for its end");
    assert_eq!(db.loads(), 1);
}

/// A look-up that has taken the lease of a nearer level fills that with what a deeper one has.
#[tokio::test]
async fn a_lease_is_given_back_if_its_caller_leaves_while_a_level_is_filled() {
    for loads in [false, true] {
        let world = World::new();
        let (near, far) = (world.leasing(), world.leasing());
        let cache = world.node_at_both(Policy::ttl(60 * S), &near, &far);
        let (other, db) = (world.node_at(Policy::ttl(60 * S), &far), world.db());
        ask_for(&other, "k", &db).await.unwrap();
        // Marks are known.
        cache.get("another").await.unwrap();
        near.set(ChaosOp::Fill, Fault::Hang);
        let leaves = match loads {
            true => asking(&cache, &db).await,
            false => {
                let cache = cache.clone();
                tokio::spawn(async move { look(&cache).await })
            }
        };
        settled().await;
        assert!(near.inner().is_leased("things:k") && near.calls(ChaosOp::Fill) == 1);
        leaves.abort();
        settled().await;
        assert!(!near.inner().is_leased("things:k"), "other nodes would wait for its end");
    }
}
