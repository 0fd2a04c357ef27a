//! Group E: refreshing ahead of the end, and conditionally.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::FutureExt;
use traced_cache::{
    Early, ErrorKind, Held, Level, LoadEnd, Loaded, Outcome, Policy,
    testing::{ChaosOp, Fault},
};

use crate::world::{
    DbError, MS, S, World, ask, ask_for, asking, asking_many, confirmed, counted, look, memory, saw, settled,
};

fn policy() -> Policy {
    Policy::ttl(10 * S).early(Early::Fraction(0.8))
}

#[tokio::test]
async fn e1_a_hit_past_the_threshold_refreshes_behind_its_caller() {
    let world = World::new();
    for cache in [world.local(policy()), world.node(policy()), world.bare(policy())] {
        let db = world.db();
        ask(&cache, &db).await.unwrap();
        db.takes(S).has("2");
        world.pass(7_900 * MS).await;
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "1"));
        settled().await;
        assert_eq!(db.loads(), 1);
        world.pass(200 * MS).await;
        let at_once = ask(&cache, &db).now_or_never();
        assert_eq!(at_once, Some(saw(Outcome::Hit, "1")));
        settled().await;
        assert_eq!(db.loads(), 2);
        world.pass(S).await;
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "2"));
        assert_eq!(db.loads(), 2);
        confirmed(cache.invalidate("k").await);
    }
    assert_eq!(world.load_events(|_, background| background), 3);
}

#[tokio::test]
async fn e2_many_hits_one_refresh() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(8_100 * MS).await;
    db.takes(S);
    let callers: Vec<_> = (0..1_000)
        .map(|_| {
            let (cache, db) = (cache.clone(), db.clone());
            tokio::spawn(async move { ask(&cache, &db).await })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), saw(Outcome::Hit, "1"));
    }
    world.pass(S).await;
    assert_eq!(db.loads(), 2);
    counted(&cache, 1_001);
}

#[tokio::test]
async fn e4_when_the_entry_ends_callers_join_the_refresh() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(9 * S).await;
    db.takes(3 * S).has("2");
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "1"));
    world.pass(2 * S).await;
    let caller = asking(&cache, &db).await;
    assert!(!caller.is_finished());
    world.pass(S).await;
    assert_eq!(caller.await.unwrap(), saw(Outcome::Coalesced, "2"));
    assert_eq!(db.loads(), 2);
}

#[tokio::test]
async fn e5_the_refresh_goes_on_when_its_caller_leaves() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(9 * S).await;
    db.takes(S).has("2");
    let caller = tokio::spawn({
        let (cache, db) = (cache.clone(), db.clone());
        async move {
            ask(&cache, &db).await.unwrap();
            std::future::pending::<()>().await;
        }
    });
    settled().await;
    caller.abort();
    world.pass(S).await;
    assert_eq!(look(&cache).await, saw(Outcome::Hit, "2"));
    assert_eq!(db.loads(), 2);
}

#[test]
fn e7_thresholds_outside_of_0_to_1_are_refused() {
    let world = World::new();
    for early in [0.0, 1.0, 1.5, -0.1, f64::NAN, f64::INFINITY].map(Early::Fraction).into_iter().chain([
        Early::XFetch { beta: -1.0 },
        Early::XFetch { beta: f64::NAN },
        Early::XFetch { beta: f64::INFINITY },
    ]) {
        let cache = world.builder(Policy::ttl(S).early(early)).level(crate::world::memory()).build();
        let error = cache.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.setting().unwrap()[0].starts_with("policy.early"), "{error}");
    }
}

/// The distribution itself is tested where it is drawn, in cache-core. Here: the cost is measured, stored, and survives the
/// shared level, so that another node refreshes with the same chance, exp(-remaining / cost).
#[tokio::test]
async fn e8_the_cost_of_a_load_survives_the_shared_level() {
    const KEYS: u32 = 1_000;
    let world = World::new();
    for (beta, expected) in [(1.0, 368), (0.0, 0), (3.0, 716)] {
        let policy = Policy::ttl(10 * S).early(Early::XFetch { beta });
        let (first, second, db) = (world.node(policy), world.node(policy), world.db());
        confirmed(first.clear().await);
        db.takes(S);
        for key in 0..KEYS {
            let (cache, db) = (first.clone(), db.clone());
            tokio::spawn(async move { ask_for(&cache, key, &db).await });
        }
        world.pass(S).await;
        assert_eq!(first.stats().loads, u64::from(KEYS));
        // Born a second ago; one second is left.
        world.pass(8 * S).await;
        for key in 0..KEYS {
            assert_eq!(ask_for(&second, key, &db).await, saw(Outcome::Hit, "1"));
        }
        settled().await;
        let refreshed = u32::try_from(db.loads()).unwrap() - KEYS;
        // Five standard deviations of 1,000 draws are below 80.
        assert!(refreshed.abs_diff(expected) <= 80, "beta {beta}: {refreshed} of {KEYS}");
        assert!(beta > 0.0 || refreshed == 0);
        world.pass(S).await;
    }
}

#[tokio::test]
async fn e10_a_slow_shared_level_does_not_slow_the_hit() {
    let world = World::new();
    let (cache, db) = (world.node(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(9 * S).await;
    world.l2.reset();
    world.l2.set_all(Fault::Delay(2 * S));
    db.has("2");
    assert_eq!(ask(&cache, &db).now_or_never(), Some(saw(Outcome::Hit, "1")));
    assert_eq!(world.l2.calls(ChaosOp::Get), 0);
    world.pass(2 * S).await;
    assert_eq!(db.loads(), 2);
}

/// Memory that keeps entries for a shorter time has the rest of their life from the shared level: a share of the life at the
/// nearest level is no reason to load.
#[tokio::test]
async fn a_cap_at_memory_makes_no_refresh_come_earlier() {
    for (early, most) in [(Early::Off, 10), (Early::Fraction(0.8), 13), (Early::XFetch { beta: 1.0 }, 15)] {
        let world = World::new();
        let l2 = world.leasing();
        let policy = Policy::ttl(60 * S).early(early);
        let near = Level::new(memory()).ttl_cap(10 * S);
        let cache = world.builder(policy).level(near).level(l2).build().unwrap();
        let db = world.db();
        db.takes(S);
        for _ in 0..600 {
            // One look past the quick path, as a batch makes it, and one on it.
            let (many, one) = (asking_many(&cache, &db).await, asking(&cache, &db).await);
            world.pass(S).await;
            many.await.unwrap().unwrap();
            one.await.unwrap().unwrap();
        }
        assert!((10..=most).contains(&db.loads()), "{early:?}: {} loads", db.loads());
    }
}

/// Where no level keeps more than its cap, that is the life.
#[tokio::test]
async fn alone_a_capped_level_refreshes_before_its_cap() {
    let world = World::new();
    let policy = Policy::ttl(60 * S).early(Early::Fraction(0.8));
    let near = Level::new(memory()).ttl_cap(10 * S);
    let cache = world.builder(policy).level(near).build().unwrap();
    assert_eq!(cache.settings().refreshed_from, Some(8 * S));
    let db = world.db();
    ask(&cache, &db).await.unwrap();
    for (after, loads) in [(7 * S, 1), (2 * S, 2)] {
        world.pass(after).await;
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "1"));
        settled().await;
        assert_eq!(db.loads(), loads);
    }
}

/// Nor does a cap at a deeper level, where memory keeps entries for longer.
#[tokio::test]
async fn a_cap_below_memory_makes_no_refresh_come_earlier() {
    for (near, first) in [(None, 48 * S), (Some(20 * S), 16 * S)] {
        let world = World::new();
        let l2 = Level::new(world.leasing()).ttl_cap(10 * S);
        let mut l1 = Level::new(memory());
        if let Some(cap) = near {
            l1 = l1.ttl_cap(cap);
        }
        let policy = Policy::ttl(60 * S).early(Early::Fraction(0.8));
        let cache = world.builder(policy).level(l1).level(l2).build().unwrap();
        assert_eq!(cache.settings().refreshed_from, Some(first));
        let db = world.db();
        ask(&cache, &db).await.unwrap();
        for (after, loads) in [(first - S, 1), (S, 2)] {
            world.pass(after).await;
            assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "1"));
            settled().await;
            assert_eq!(db.loads(), loads, "{near:?}");
        }
    }
}

/// A failed early refresh leaves the entry as it is, and is not tried again with every hit.
#[tokio::test]
async fn a_failed_early_refresh_hurts_nobody() {
    let world = World::new();
    let (cache, db) = (world.local(policy()), world.db());
    ask(&cache, &db).await.unwrap();
    world.pass(8_100 * MS).await;
    db.fails();
    for _ in 0..100 {
        assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "1"));
        settled().await;
    }
    assert_eq!(db.loads(), 2);
    assert_eq!(world.load_events(|end, background| background && end == LoadEnd::Failed(ErrorKind::Load)), 1);
    world.pass(S).await;
    assert_eq!(ask(&cache, &db).await, saw(Outcome::Hit, "1"));
    settled().await;
    assert_eq!(db.loads(), 3);
    world.pass(900 * MS).await;
    assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load), "no grace");
}

/// An origin that knows etags: answers in full, or "not modified".
struct Origin {
    version: AtomicUsize,
    full: AtomicUsize,
    not_modified: AtomicUsize,
    conditional: AtomicUsize,
}

impl Origin {
    async fn fetch(self: Arc<Self>, held: Option<Held<String>>) -> Result<Loaded<String>, DbError> {
        let etag = format!("v{}", self.version.load(Ordering::SeqCst));
        if let Some(held) = &held {
            assert_eq!(held.value().as_str(), format!("page {}", held.etag().unwrap()));
            self.conditional.fetch_add(1, Ordering::SeqCst);
        }
        if held.is_some_and(|held| held.etag() == Some(&etag)) {
            self.not_modified.fetch_add(1, Ordering::SeqCst);
            return Ok(Loaded::unchanged());
        }
        self.full.fetch_add(1, Ordering::SeqCst);
        Ok(Loaded::value(format!("page {etag}")).etag(etag))
    }
}

#[tokio::test]
async fn e11_not_modified_gives_the_old_value_a_full_new_life() {
    let world = World::new();
    let policy = Policy::ttl(10 * S).grace(100 * S);
    for cache in [world.local(policy), world.node(policy), world.bare(policy)] {
        let origin = Arc::new(Origin {
            version: AtomicUsize::new(1),
            full: AtomicUsize::new(0),
            not_modified: AtomicUsize::new(0),
            conditional: AtomicUsize::new(0),
        });
        let page = async || {
            let load = |origin: Arc<Origin>, _, held| origin.fetch(held);
            cache.get_or_set_if_changed("k", &origin, load).await.unwrap().unwrap().to_string()
        };
        assert_eq!(page().await, "page v1");
        for (version, expected) in [(1, "page v1"), (2, "page v2"), (2, "page v2")] {
            world.pass(10 * S).await;
            origin.version.store(version, Ordering::SeqCst);
            assert_eq!(page().await, expected);
            // A full new ttl.
            world.pass(9 * S).await;
            assert_eq!(look(&cache).await, saw(Outcome::Hit, expected));
        }
        let counts = [&origin.full, &origin.conditional, &origin.not_modified];
        assert_eq!(counts.map(|n| n.load(Ordering::SeqCst)), [2, 3, 2]);
        confirmed(cache.invalidate("k").await);
    }
    assert_eq!(world.load_events(|end, _| end == LoadEnd::Unchanged), 6);
}

#[tokio::test]
async fn unchanged_without_a_held_value_is_a_failure() {
    let world = World::new();
    let (cache, db) = (world.local(Policy::ttl(10 * S)), world.db());
    db.answers(|| Ok(Loaded::unchanged()));
    assert_eq!(ask(&cache, &db).await, Err(ErrorKind::Load));
}
