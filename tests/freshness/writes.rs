//! Updates and saves that a level has no form for, or that fail: nothing is lost, and nobody is kept waiting.

use std::sync::Arc;

use traced_cache::{
    Access, BoxError, Capabilities, Codec, Delivery, ErrorKind, Level, Loaded, MissReason, Outcome, Policy,
    Source, TracedCache,
    testing::{Chaos, ChaosOp, Fault, MapProvider, Recorded},
};

use crate::world::{DbError, MISS, S, World, ZERO, ask, confirmed, look, memory, saw, settled};

fn policy() -> Policy {
    Policy::ttl(10 * S).grace(100 * S)
}

/// A level for values of up to 300 bytes.
fn small(world: &World, leasing: bool) -> Arc<Chaos<MapProvider>> {
    let map = MapProvider::with(Capabilities::remote().value_max(300)).clock(world.clock.clone());
    Arc::new(Chaos::new(if leasing { map.leasing() } else { map }).clock(world.clock.clone()))
}

#[tokio::test]
async fn an_update_that_is_too_large_fails_and_leaves_what_there_was() {
    for leasing in [true, false] {
        let world = World::new();
        let l2 = small(&world, leasing);
        let cache = world.node_at(policy(), &l2);
        let grow = async |by: usize| {
            let change = |by: usize, _, had: Option<Arc<String>>| async move {
                traced_cache::ok(had.map_or(String::new(), |had| had.to_string()) + &"x".repeat(by))
            };
            cache.update("k", &by, change).await.map(|updated| updated.value.len())
        };
        assert_eq!(grow(200).await.unwrap(), 200);
        let error = grow(200).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Level, "{error}");
        assert!(world.seen.count(|e| matches!(e, Recorded::TooLarge { .. })) > 0);
        assert_eq!(grow(1).await.unwrap(), 201, "leasing: {leasing}");
    }
}

#[tokio::test]
async fn an_update_that_is_too_large_removes_nothing_that_was_set_in_between() {
    let world = World::new();
    let l2 = small(&world, true);
    let (a, b) = (world.node_at(policy(), &l2), world.node_at(policy(), &l2));
    confirmed(a.set("k", "1".to_owned()).await);
    let (own, clock) = (a.clone(), world.clock.clone());
    let update = tokio::spawn(async move {
        let change = |clock: traced_cache::Clock, _, _| async move {
            clock.sleep(S).await;
            traced_cache::ok("x".repeat(500))
        };
        own.update("k", &clock, change).await
    });
    settled().await;
    confirmed(b.set("k", "2".to_owned()).await);
    world.pass(S).await;
    assert_eq!(update.await.unwrap().unwrap_err().kind(), ErrorKind::Level);
    assert_eq!(look(&b).await, saw(Outcome::Hit, "2"));
}

#[tokio::test]
async fn an_update_that_cannot_be_encoded_fails() {
    let world = World::new();
    let level = Level::new(world.leasing()).codec(Codec::Json);
    let floats = TracedCache::<f64>::builder("floats").policy(policy()).clock(world.clock.clone());
    let cache = floats.level(memory()).level(level).build().unwrap();
    confirmed(cache.set("k", 1.0).await);
    let error = cache.update("k", &(), |(), _, _| async { traced_cache::ok(f64::NAN) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Level);
    assert_eq!(cache.get("k").await.unwrap().as_deref(), Some(&1.0));
}

#[tokio::test]
async fn an_update_that_fails_leaves_memory_alone() {
    for leasing in [true, false] {
        let world = World::new();
        let l2 = if leasing { world.leasing() } else { Arc::clone(&world.l2) };
        let cache = world.node_at(policy(), &l2);
        confirmed(cache.set("k", "1".to_owned()).await);
        let failed = cache.update("k", &(), |(), _, _| async { Err::<String, _>(DbError("no")) }).await;
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Load);
        l2.set_all(Fault::Fail);
        let failed = cache.update("k", &(), |(), _, _| async { traced_cache::ok("2".to_owned()) }).await;
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Level);
        assert_eq!(look(&cache).await, saw(Outcome::Hit, "1"), "leasing: {leasing}");
    }
}

struct Table;

impl Source<String, String> for Table {
    async fn load(&self, _key: &String) -> Result<Loaded<String>, BoxError> {
        Ok(Loaded::value("loaded".to_owned()))
    }

    async fn save(&self, _key: &String, _value: &String) -> Result<(), BoxError> {
        Ok(())
    }

    fn tags(&self, key: &String, _value: &String) -> Vec<Box<str>> {
        assert_ne!(key, "panics");
        Vec::new()
    }
}

#[tokio::test]
async fn a_save_that_is_too_large_keeps_nobody_from_storing() {
    let world = World::new();
    let l2 = small(&world, true);
    let (a, b) = (world.node_at(policy(), &l2), world.node_at(policy(), &l2));
    let table = a.with_source::<String, _>(Table);
    assert_eq!(table.save("k".to_owned(), "x".repeat(500)).await.unwrap(), Delivery::Confirmed);
    settled().await;
    ask(&b, &world.db()).await.unwrap();
    assert_eq!(look(&b).await, saw(Outcome::Hit, "1"), "it was stored");
}

#[tokio::test]
async fn a_source_whose_tags_panic_is_told_so() {
    let world = World::new();
    let table = world.local(policy()).with_source::<String, _>(Table);
    let error = table.save("panics".to_owned(), "1".to_owned()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoadPanicked);
}

/// What is there when the level is back is what the next update would go on from.
#[tokio::test]
async fn an_update_that_its_level_has_not_taken_fails() {
    for fault in [Fault::Fail, Fault::LoseReply] {
        let world = World::new();
        let cache = world.node(policy());
        confirmed(cache.set("k", "1".to_owned()).await);
        world.l2.set(ChaosOp::Put, fault);
        let failed = cache.update("k", &(), |(), _, _| async { traced_cache::ok("2".to_owned()) }).await;
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Level, "{fault:?}");
        assert_eq!(look(&cache).await, MISS, "{fault:?}");
    }
}

/// Where it is kept in memory alone.
#[tokio::test]
async fn what_has_been_updated_is_back() {
    let world = World::new();
    let (cache, db) = (world.local(policy()), world.db());
    confirmed(cache.invalidate("k").await);
    let _new = cache.update("k", &(), |(), _, _| async { traced_cache::ok("1".to_owned()) }).await.unwrap();
    db.answers(|| Ok(Loaded::value("2".to_owned()).ttl(ZERO)));
    ask(&cache.access(Access::Reload), &db).await.unwrap();
    assert_eq!(cache.look("k").await.unwrap().miss_reason(), Some(MissReason::Absent));
}
