//! Loads that something overtakes, or that another caller cancels: who has joined one loads anew, in his own way; and what has
//! overtaken one stays.

use std::sync::Arc;

use traced_cache::{
    Access, BoxError, Capabilities, Clock, Delivery, ErrorKind, Held, Level, Loaded, Outcome, Policy, Source,
    TracedCache, ok,
    testing::{Chaos, Fault, MapProvider},
};

use crate::world::{
    Db, DbError, MISS, MS, S, Seen, World, ZERO, ask, ask_for, asking, asking_alike, confirmed, look, memory,
    saw, settled,
};

fn policy() -> Policy {
    Policy::ttl(10 * S).grace(100 * S)
}

fn tagged(value: &'static str) -> impl Fn() -> Result<Loaded<String>, DbError> {
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

/// A load that waits for its turn, or for another node, has not begun yet: it is one of those that come after.
#[tokio::test]
async fn what_is_invalidated_while_a_load_waits_to_begin_is_none_of_its_business() {
    for (leases, many) in [(true, false), (true, true), (false, false), (false, true)] {
        let world = World::new();
        let l2 = marking(&world, true);
        let build = || {
            let builder = world.builder(policy().loads(1)).tags(true).level(memory());
            if leases { builder.level(Arc::clone(&l2)) } else { builder }.build().unwrap()
        };
        let (cache, other) = (build(), build());
        let (db, slow) = (world.db(), world.db());
        db.answers(tagged("1"));
        ask(&cache, &db).await.unwrap();
        world.pass(11 * S).await;
        slow.takes(2 * S).fails();
        let before = match leases {
            true => asking(&other, &slow).await,
            false => {
                let (cache, slow) = (cache.clone(), slow.clone());
                tokio::spawn(async move { ask_for(&cache, "other", &slow).await })
            }
        };
        settled().await;
        db.answers(|| Ok(Loaded::unchanged()));
        let waits = asking_alike(&cache, &db, many).await;
        world.pass(S).await;
        confirmed(cache.invalidate_tag("t").await);
        let joined = asking_alike(&cache, &db, many).await;
        for _ in 0..12 {
            world.pass(100 * MS).await;
        }
        let _stale_or_failed = before.await.unwrap();
        let case = format!("leases: {leases}, a batch: {many}");
        for answer in [waits, joined] {
            assert_eq!(answer.await.unwrap(), Err(ErrorKind::Load), "{case}");
        }
        assert_eq!((look(&cache).await, db.loads()), (MISS, 2), "{case}");
    }
}

#[tokio::test]
async fn a_loader_is_not_shown_what_was_invalidated_before_it_began() {
    let world = World::new();
    let cache = world.builder(policy().loads(1)).tags(true).level(memory()).build().unwrap();
    let (db, slow) = (world.db(), world.db());
    db.answers(tagged("1"));
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    slow.takes(S);
    let first = tokio::spawn({
        let (cache, slow) = (cache.clone(), slow.clone());
        async move { ask_for(&cache, "other", &slow).await }
    });
    settled().await;
    let waits = tokio::spawn({
        let cache = cache.clone();
        let load = |(), _, held: Option<Held<String>>| async move { ok(held.is_some().to_string()) };
        async move { cache.get_or_set_if_changed("k", &(), load).await.unwrap() }
    });
    settled().await;
    confirmed(cache.invalidate_tag("t").await);
    world.pass(S).await;
    first.await.unwrap().unwrap();
    assert_eq!(*waits.await.unwrap(), "false");
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

/// A level that knows of tags, and perhaps of leases.
fn marking(world: &World, leases: bool) -> Arc<Chaos<MapProvider>> {
    let map = MapProvider::new().marking().clock(world.clock.clone());
    Arc::new(Chaos::new(if leases { map.leasing() } else { map }).clock(world.clock.clone()))
}

/// One who has joined it asks a level what he may fall back on, and waits for it already.
#[tokio::test]
async fn a_load_that_is_cancelled_under_who_has_just_joined_it_is_begun_anew() {
    let world = World::new();
    let policy = policy().soft_limit(5 * S).complete_in_background(false);
    let l2 = marking(&world, false);
    let node = || {
        let level = Level::new(Arc::clone(&l2)).budget(10 * S);
        world.builder(policy).tags(true).level(memory()).level(level).build().unwrap()
    };
    let (cache, other, db) = (node(), node(), world.db());
    db.answers(tagged("1"));
    ask(&cache, &db).await.unwrap();
    world.pass(11 * S).await;
    db.takes(20 * S);
    let leader = asking(&cache, &db).await;
    confirmed(other.invalidate_tag("t").await);
    world.pass(2 * S).await;
    assert!(cache.get("other").await.unwrap().is_none(), "it learns that there was something");
    l2.set_all(Fault::Delay(4 * S));
    let joins = asking(&cache, &db).await;
    world.pass(3 * S).await;
    assert_eq!(leader.await.unwrap(), saw(Outcome::Stale, "1"));
    db.takes(ZERO).has("2");
    l2.set_all(Fault::None);
    world.pass(S).await;
    assert!(joins.is_finished());
    assert_eq!(joins.await.unwrap().map(|(_, value)| value), Ok(Some("2".to_owned())));
}

type Answer = fn() -> Result<Loaded<String>, DbError>;

/// What a load comes to that leaves nothing at the level.
const LEAVE_NOTHING: [Answer; 3] = [
    || Ok(Loaded::absent()),
    || Ok(Loaded::value("x".repeat(2_000))),
    || Ok(Loaded::value("old".to_owned()).ttl(S).grace(S)),
];

/// A level with leases that has no room for long values.
fn narrow(world: &World) -> Arc<Chaos<MapProvider>> {
    let map = MapProvider::with(Capabilities::remote().value_max(1_000)).leasing();
    Arc::new(Chaos::new(map.clock(world.clock.clone())).clock(world.clock.clone()))
}

#[tokio::test]
async fn a_load_that_is_overtaken_takes_nothing_of_what_has_overtaken_it_away() {
    for answer in LEAVE_NOTHING {
        for (stale, refresh) in [(false, false), (true, false), (true, true)] {
            let world = World::new();
            let l2 = narrow(&world);
            let (a, b) = (world.node_at(policy(), &l2), world.node_at(policy(), &l2));
            for node in [&a, &b] {
                assert!(node.get("other").await.unwrap().is_none());
            }
            if stale {
                confirmed(a.set("k", "0".to_owned()).await);
                world.pass(11 * S).await;
            }
            let db = world.db();
            db.takes(2 * S).answers(answer);
            let load = tokio::spawn({
                let (a, db) = (a.clone(), db.clone());
                async move {
                    match refresh {
                        true => drop(a.refresh("k", &db, |db, _| db.load()).await.unwrap()),
                        false => drop(ask(&a, &db).await.unwrap()),
                    }
                }
            });
            world.pass(S).await;
            confirmed(b.set("k", "new".to_owned()).await);
            world.pass(S).await;
            load.await.unwrap();
            for node in [&world.node_at(policy(), &l2), &a] {
                assert_eq!(look(node).await, saw(Outcome::Hit, "new"), "stale: {stale}, refresh: {refresh}");
            }
        }
    }
}

/// What the level had of it goes all the same, and later if it does not answer.
#[tokio::test]
async fn a_load_that_leaves_nothing_leaves_nothing_older() {
    for answer in LEAVE_NOTHING {
        for down in [false, true] {
            let world = World::new();
            let l2 = narrow(&world);
            let a = world.node_at(policy(), &l2);
            confirmed(a.set("k", "0".to_owned()).await);
            world.pass(11 * S).await;
            let db = world.db();
            db.takes(2 * S).answers(answer);
            let load = asking(&a, &db).await;
            world.pass(S).await;
            if down {
                l2.set_all(Fault::Fail);
            }
            world.pass(S).await;
            load.await.unwrap().unwrap();
            l2.set_all(Fault::None);
            for _ in 0..10 {
                world.pass(S).await;
            }
            let peer = world.node_at(policy(), &l2).access(Access::AllowStale);
            assert_eq!(look(&peer).await, MISS, "down: {down}");
        }
    }
}

/// Nor does it take away what a writer keeps the key with.
#[tokio::test]
async fn a_load_that_leaves_nothing_leaves_a_writers_hold() {
    struct Slow(Clock);
    impl Source<String, String> for Slow {
        async fn load(&self, _: &String) -> Result<Loaded<String>, BoxError> {
            Ok(Loaded::absent())
        }

        async fn save(&self, _: &String, _: &String) -> Result<(), BoxError> {
            self.0.sleep(10 * S).await;
            Ok(())
        }
    }
    for answer in LEAVE_NOTHING {
        let world = World::new();
        let l2 = narrow(&world);
        let (a, b) = (world.node_at(policy(), &l2), world.node_at(policy(), &l2));
        let db = world.db();
        db.takes(2 * S).answers(answer);
        let load = asking(&a, &db).await;
        let save = tokio::spawn({
            let b = b.with_source::<String, _>(Slow(world.clock.clone()));
            async move { b.save("k", "new".to_owned()).await }
        });
        world.pass(S).await;
        assert!(l2.inner().is_kept("things:k"));
        world.pass(S).await;
        assert!(load.is_finished() && l2.inner().is_kept("things:k"));
        save.abort();
    }
}

#[tokio::test]
async fn what_a_deeper_level_has_refused_is_not_kept_nearer_either_behind_or_not() {
    for background in [false, true] {
        let world = World::new();
        let store = || Arc::new(MapProvider::new().marking().clock(world.clock.clone()));
        let (l2, l3) = (store(), Arc::new(MapProvider::new().leasing().marking().clock(world.clock.clone())));
        let node = || {
            let builder = world.builder(policy()).level(memory());
            let near = Level::new(Arc::clone(&l2)).breaker(None).background(background);
            builder.level(near).level(Level::new(Arc::clone(&l3)).breaker(None)).build().unwrap()
        };
        let (a, b) = (node(), node());
        for node in [&a, &b] {
            assert!(node.get("other").await.unwrap().is_none());
        }
        let db = world.db();
        db.takes(S);
        let load = asking(&a, &db).await;
        confirmed(b.invalidate("k").await);
        world.pass(S).await;
        load.await.unwrap().unwrap();
        settled().await;
        for node in [&node(), &b, &a] {
            assert_eq!(look(node).await, MISS, "background: {background}");
        }
    }
}

#[tokio::test]
async fn a_load_that_finds_nothing_waits_for_no_writer_that_stalls() {
    for refresh in [false, true] {
        let world = World::new();
        let cache = world.node(policy());
        confirmed(cache.set("k", "0".to_owned()).await);
        world.pass(11 * S).await;
        let db = world.db();
        db.takes(S).answers(|| Ok(Loaded::absent()));
        let load = match refresh {
            true => None,
            false => Some(asking(&cache, &db).await),
        };
        world.l2.set_all(Fault::Delay(MS));
        let mut stalled = Box::pin(cache.set("k", "1".to_owned()));
        assert!(futures::poll!(&mut stalled).is_pending());
        world.l2.set_all(Fault::None);
        let refreshing = tokio::spawn({
            let cache = cache.clone();
            async move { cache.refresh("k", &(), |(), _| async { ok(None::<String>) }).await.map(drop) }
        });
        for _ in 0..20 {
            world.pass(S).await;
        }
        assert!(load.is_none_or(|load| load.is_finished()) && refreshing.is_finished());
    }
}
