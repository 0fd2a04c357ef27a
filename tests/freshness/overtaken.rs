//! Callers who have joined a load that something overtakes, or that another caller cancels: they load anew, in their own way.

use traced_cache::{Access, Delivery, ErrorKind, Loaded, Outcome, Policy, TracedCache};

use crate::world::{
    Db, MISS, MS, S, Seen, World, ZERO, ask, asking, asking_alike, look, memory, saw, settled,
};

fn policy() -> Policy {
    Policy::ttl(10 * S).grace(100 * S)
}

fn tagged(value: &'static str) -> impl Fn() -> Result<Loaded<String>, crate::world::DbError> {
    move || Ok(Loaded::value(value.to_owned()).tag("t"))
}

/// Somebody joins a load of what is stale, all of it is invalidated, and the load that follows gives nothing new. What the
/// caller sees, and what those see who come later.
async fn after_an_invalidation(
    how: &str,
    unchanged: bool,
    many: bool,
) -> (Result<Option<String>, ErrorKind>, [Seen; 2]) {
    let world = World::new();
    let cache = world.builder(policy()).tags(true).level(memory()).build().unwrap();
    let db = world.db();
    db.answers(tagged("1"));
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.takes(2 * S).answers(tagged("2"));
    let first = asking(&cache, &db).await;
    world.pass(S).await;
    let joined = asking_alike(&cache, &db, many).await;
    let gone = match how {
        "clear" => cache.clear().await,
        "tag" => cache.invalidate_tag("t").await,
        _ => cache.invalidate("k").await,
    };
    assert_eq!(gone.unwrap(), Delivery::Confirmed);
    world.pass(S).await;
    first.await.unwrap().unwrap();
    if unchanged {
        db.answers(|| Ok(Loaded::unchanged()));
    } else {
        db.fails();
    }
    for _ in 0..4 {
        world.pass(500 * MS).await;
    }
    let answer = joined.await.unwrap();
    assert_eq!(db.loads(), 3);
    db.takes(ZERO).fails();
    (answer, [ask(&cache, &db).await, look(&cache.access(Access::AllowStale)).await])
}

#[tokio::test]
async fn what_was_invalidated_does_not_come_back_with_the_next_load() {
    for how in ["key", "tag", "clear"] {
        for unchanged in [false, true] {
            for many in [false, true] {
                assert_eq!(
                    after_an_invalidation(how, unchanged, many).await,
                    (Err(ErrorKind::Load), [Err(ErrorKind::Load), MISS]),
                    "{how}, unchanged: {unchanged}, a batch: {many}"
                );
            }
        }
    }
}

#[tokio::test]
async fn what_was_expired_stands_in_if_the_next_load_fails() {
    for many in [false, true] {
        let world = World::new();
        let (cache, db) = (world.local(policy().throttle(ZERO)), world.db());
        ask(&cache, &db).await.unwrap();
        world.pass(11 * S).await;
        db.takes(5 * S).has("2");
        let first = asking(&cache, &db).await;
        world.pass(S).await;
        let joined = asking_alike(&cache, &db, many).await;
        assert_eq!(cache.expire("k").await.unwrap(), Delivery::Confirmed);
        world.pass(4 * S).await;
        first.await.unwrap().unwrap();
        db.fails();
        world.pass(5 * S).await;
        assert_eq!(joined.await.unwrap(), Ok(Some("1".to_owned())), "a batch: {many}");
        assert_eq!(db.loads(), 3);
    }
}

/// Two callers with this access, of whom the second joins, an invalidation, and time for the second load.
async fn joined_with(
    cache: &TracedCache<String>,
    db: &Db,
    many: bool,
    world: &World,
) -> Result<Option<String>, ErrorKind> {
    db.takes(5 * S);
    let first = asking_alike(cache, db, many).await;
    world.pass(S).await;
    let joined = asking_alike(cache, db, many).await;
    assert_eq!(cache.invalidate("k").await.unwrap(), Delivery::Confirmed);
    db.has("2");
    for _ in 0..12 {
        world.pass(S).await;
    }
    first.await.unwrap().unwrap();
    assert_eq!(db.loads(), 2);
    joined.await.unwrap()
}

#[tokio::test]
async fn a_bypass_loads_anew_and_stores_nothing() {
    for many in [false, true] {
        let world = World::new();
        let (cache, db) = (world.local(policy()), world.db());
        let answer = joined_with(&cache.access(Access::Bypass), &db, many, &world).await;
        assert_eq!(answer, Ok(Some("2".to_owned())));
        assert_eq!(look(&cache).await, MISS, "a batch: {many}");
    }
}

#[tokio::test]
async fn a_reload_loads_anew_whatever_levels_hold() {
    for many in [false, true] {
        let world = World::new();
        let l2 = world.leasing();
        let (cache, other) = (world.node_at(policy(), &l2), world.node_at(policy(), &l2));
        let (db, clock) = (world.db(), world.clock.clone());
        // Comes after the invalidation, before the second load.
        let between = tokio::spawn(async move {
            clock.sleep(S + MS).await;
            other.set("k", "other".to_owned()).await.unwrap()
        });
        let answer = joined_with(&cache.access(Access::Reload), &db, many, &world).await;
        assert_eq!(between.await.unwrap(), Delivery::Confirmed);
        assert_eq!(answer, Ok(Some("2".to_owned())), "a batch: {many}");
    }
}

#[tokio::test]
async fn a_bypass_whose_wait_budget_ends_stores_nothing() {
    let world = World::new();
    let (cache, db) = (world.local(policy().wait(S)), world.db());
    let bypass = cache.access(Access::Bypass);
    db.takes(20 * S);
    let first = asking(&bypass, &db).await;
    let second = asking(&bypass, &db).await;
    db.takes(S);
    world.pass(S).await;
    world.pass(S).await;
    assert_eq!(second.await.unwrap(), saw(Outcome::Loaded, "1"));
    assert_eq!(look(&cache).await, MISS);
    world.pass(18 * S).await;
    first.await.unwrap().unwrap();
}

#[tokio::test]
async fn nobody_joins_a_load_that_was_cancelled() {
    for access in [Access::Reload, Access::Bypass] {
        let world = World::new();
        let policy = policy().soft_limit(S).complete_in_background(false).throttle(ZERO);
        let (cache, db) = (world.local(policy), world.db());
        ask(&cache, &db).await.unwrap();
        world.pass(11 * S).await;
        db.takes(5 * S).has("2");
        let mut asked = Box::pin(ask(&cache, &db));
        assert!(futures::poll!(&mut asked).is_pending());
        settled().await;
        world.time.advance(S);
        // Its answer cancels the load, whose task has not run since when the next one asks.
        assert_eq!(asked.await, saw(Outcome::Stale, "1"));
        db.takes(ZERO);
        assert_eq!(ask(&cache.access(access), &db).await, saw(Outcome::Loaded, "2"), "{access:?}");
    }
}
