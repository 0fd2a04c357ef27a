//! A policy that changes while the cache runs.

use traced_cache::{ErrorKind, Outcome, Policy};

use crate::world::{MS, S, World, ask, ask_for, asking, look, saw, settled};

#[tokio::test]
async fn another_policy_counts_from_now_on_and_loses_nothing() {
    let world = World::new();
    for cache in [world.local(Policy::ttl(10 * S)), world.node(Policy::ttl(10 * S))] {
        let db = world.db();
        ask_for(&cache, "old", &db).await.unwrap();
        cache.set_policy(Policy::ttl(100 * S).grace(200 * S).soft_limit(MS)).unwrap();
        assert_eq!(cache.policy(), Policy::ttl(100 * S).grace(200 * S).soft_limit(MS));
        ask_for(&cache, "new", &db).await.unwrap();
        assert_eq!((cache.stats().hits(), db.loads()), (0, 2));
        world.pass(9 * S).await;
        for key in ["old", "new"] {
            assert_eq!(ask_for(&cache, key, &db).await.unwrap().0, Outcome::Hit, "{key} is still there");
        }
        // Each entry has the life that it was given.
        world.pass(S).await;
        assert_eq!(ask_for(&cache, "old", &db).await.unwrap().0, Outcome::Loaded);
        assert_eq!(ask_for(&cache, "new", &db).await.unwrap().0, Outcome::Hit);
        db.fails();
        world.pass(95 * S).await;
        assert_eq!(ask_for(&cache, "new", &db).await, saw(Outcome::Stale, "1"), "the new grace");
    }
}

#[tokio::test]
async fn a_policy_that_contradicts_itself_or_the_levels_changes_nothing() {
    let world = World::new();
    let cache = world.node_with(Policy::ttl(10 * S), |level| level.ttl_cap(9 * S));
    for (policy, field) in [
        (Policy::ttl(10 * S).grace(S), "policy.grace = 1s"),
        (Policy::ttl(10 * S).loads(0), "policy.loads = 0"),
        (Policy::ttl(5 * S), "level 2 (map) ttl_cap = 9s: above all that the policy lets live"),
    ] {
        let error = cache.set_policy(policy).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(field), "{error}");
        assert_eq!(cache.policy(), Policy::ttl(10 * S));
    }
}

#[tokio::test]
async fn limits_on_loads_change() {
    let world = World::new();
    let cache = world.local(Policy::ttl(10 * S).hard_limit(Some(5 * S)));
    let db = world.db();
    db.takes(60 * S);
    let before = asking(&cache, &db).await;
    cache.set_policy(Policy::ttl(10 * S).hard_limit(Some(S))).unwrap();
    world.pass(2 * S).await;
    assert!(!before.is_finished(), "it began under the old limit");
    world.pass(3 * S).await;
    assert_eq!(before.await.unwrap(), Err(ErrorKind::LoadTimeout));
    let after = asking(&cache, &db).await;
    world.pass(S).await;
    assert_eq!(after.await.unwrap(), Err(ErrorKind::LoadTimeout));
    // Turns.
    for (bound, most) in [(2, 2), (5, 5), (1, 1)] {
        cache.set_policy(Policy::ttl(10 * S).loads(bound)).unwrap();
        let db = world.db();
        db.takes(S);
        let crowd: Vec<_> = (0..8)
            .map(|n| {
                let (cache, db) = (cache.clone(), db.clone());
                tokio::spawn(async move { ask_for(&cache, (bound as u64, n), &db).await })
            })
            .collect();
        for _ in 0..9 {
            world.pass(S).await;
        }
        for caller in crowd {
            caller.await.unwrap().unwrap();
        }
        assert_eq!(db.most_at_once(), most);
    }
}

#[tokio::test]
async fn early_refresh_can_be_turned_on_and_off() {
    let world = World::new();
    let cache = world.local(Policy::ttl(100 * S));
    let db = world.db();
    cache.set_policy(Policy::ttl(100 * S).early(traced_cache::Early::Fraction(0.5))).unwrap();
    ask(&cache, &db).await.unwrap();
    world.pass(60 * S).await;
    db.has("2");
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "1"));
    settled().await;
    assert_eq!((look(&cache).await, db.loads()), (saw(Outcome::Hit, "2"), 2));
    cache.set_policy(Policy::ttl(100 * S)).unwrap();
    world.pass(60 * S).await;
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "2"));
    settled().await;
    assert_eq!(db.loads(), 2, "what was made under the old policy is judged by the new one");
}
