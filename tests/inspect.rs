//! Looking into a cache: what each level holds of a key, without a trace of having looked.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{sync::Arc, time::Duration};

use traced_cache::{
    Capabilities, Clock, Inspected, Level, LevelOutcome, Loaded, Memory, Opaque, Policy, Rendered, Shown,
    TracedCache, Unreadable,
    testing::{Chaos, ChaosOp, Fault, MapProvider},
};

const MINUTE: Duration = Duration::from_secs(60);
const VALUE_MAX: usize = 1 << 16;

type Store = Arc<Chaos<Arc<MapProvider>>>;

struct World {
    cache: TracedCache<Vec<u64>>,
    map: Arc<MapProvider>,
    far: Store,
    clock: Clock,
    time: traced_cache::Time,
}

fn far(map: &Arc<MapProvider>, clock: &Clock) -> Store {
    Arc::new(Chaos::new(Arc::clone(map)).clock(clock.clone()))
}

fn world() -> World {
    let (clock, time) = Clock::manual();
    let map = MapProvider::with(Capabilities::remote().value_max(VALUE_MAX));
    let map = Arc::new(map.leasing().marking().clock(clock.clone()));
    let far = far(&map, &clock);
    let cache = TracedCache::builder("rows")
        .level(Memory::entries(100))
        .level(Level::new(Arc::clone(&far)).breaker(None))
        .policy(Policy::ttl(MINUTE).grace(2 * MINUTE).absent_ttl(MINUTE))
        .clock(clock.clone())
        .build()
        .unwrap();
    World { cache, map, far, clock, time }
}

impl World {
    /// Another program, which does not know the type.
    fn stranger(&self) -> TracedCache<Opaque> {
        let far = Level::new(far(&self.map, &self.clock));
        TracedCache::builder("rows").level(far).clock(self.clock.clone()).build().unwrap()
    }

    async fn far(&self, key: &str) -> Inspected {
        let mut all = self.cache.inspect(key).await.unwrap();
        all.levels.pop().unwrap()
    }
}

fn outcomes(inspection: &traced_cache::Inspection) -> Vec<LevelOutcome> {
    inspection.levels.iter().map(|at| at.outcome).collect()
}

#[tokio::test]
async fn a_look_leaves_no_trace() {
    let world = world();
    let (before, keys) = (world.cache.stats(), world.map.keys());
    let nothing = world.cache.inspect("k").await.unwrap();
    assert_eq!(outcomes(&nothing), [LevelOutcome::Miss, LevelOutcome::Miss]);
    assert!(nothing.served_by().is_none() && nothing.levels.iter().all(|at| at.entry.is_none()));
    let after = world.cache.stats();
    assert_eq!((after.lookups(), after.operations), (before.lookups(), before.operations));
    assert_eq!(after.levels[1].lookups(), 0);
    assert_eq!(world.map.keys(), keys, "not even the cache's mark was made");
}

#[tokio::test]
async fn each_level_says_what_it_holds() {
    let world = world();
    let _ = world.cache.set_loaded("k", Loaded::value(vec![1, 2]).tags(["a", "b"]).etag("v1")).await.unwrap();
    world.time.advance(Duration::from_secs(10));
    let both = world.cache.inspect("k").await.unwrap();
    assert_eq!(outcomes(&both), [LevelOutcome::Hit, LevelOutcome::Hit]);
    assert_eq!(both.served_by().unwrap().level, 0);
    let (near, far) = (both.levels[0].entry.as_ref().unwrap(), both.levels[1].entry.as_ref().unwrap());
    for entry in [near, far] {
        assert_eq!(entry.age, Some(Duration::from_secs(10)));
        assert_eq!(entry.fresh_for, Some(Duration::from_secs(50)));
        assert_eq!(entry.usable_for, Some(Duration::from_secs(110)));
        assert_eq!(entry.tags.iter().map(|tag| &**tag).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(entry.etag.as_deref(), Some("v1"));
        assert!(entry.by_set && entry.id == near.id);
    }
    assert_eq!((far.codec, far.value_bytes, far.schema), (Some("json"), Some(5), Some(0)));
    assert!(far.bytes.unwrap() > 50);
    assert!(both.levels.iter().all(|at| at.value.is_none()), "values show only to those who asked for them");

    let shown = world.cache.inspect_with_value("k").await.unwrap();
    for level in &shown.levels {
        assert_eq!(level.value, Some(Shown::Json("[1,2]".to_owned())));
    }
    assert!(!format!("{shown:?}").contains("[1,2]"), "nor in Debug");
    // Whoever does not know the type sees the same.
    let stranger = world.stranger().inspect_with_value(Rendered("k".to_owned())).await.unwrap();
    assert_eq!(stranger.levels[0].outcome, LevelOutcome::Hit);
    assert_eq!(stranger.levels[0].value, Some(Shown::Json("[1,2]".to_owned())));
}

#[tokio::test]
async fn what_a_reader_would_not_be_served_is_told_with_the_reason() {
    let world = world();
    let set = async |value: Loaded<Vec<u64>>| {
        let _ = world.cache.set_loaded("k", value).await.unwrap();
    };
    set(Loaded::absent()).await;
    assert_eq!(world.far("k").await.outcome, LevelOutcome::Negative);
    set(Loaded::value(vec![1]).tags(["a"])).await;
    let stranger = world.stranger();
    let _ = stranger.expire_tag("a").await.unwrap();
    assert_eq!(world.far("k").await.outcome, LevelOutcome::Stale);
    assert_eq!(world.far("k").await.entry.unwrap().fresh_for, Some(Duration::ZERO));
    let _ = stranger.invalidate_tag("a").await.unwrap();
    assert_eq!(world.far("k").await.outcome, LevelOutcome::Invalidated);
    // What the cache knows of the others' invalidations is of now: an older number makes a needless miss.
    world.time.advance(Duration::from_secs(2));
    assert!(world.cache.get("another").await.unwrap().is_none());
    set(Loaded::value(vec![1]).tags(["b"])).await;
    let _ = stranger.invalidate_tag("a").await.unwrap();
    assert_eq!(world.far("k").await.outcome, LevelOutcome::Hit, "another tag");
    let _ = stranger.clear().await.unwrap();
    let cleared = world.far("k").await;
    assert_eq!(cleared.outcome, LevelOutcome::Invalidated);
    assert!(cleared.entry.is_some(), "it lies there all the same");
    world.time.advance(Duration::from_secs(2));
    assert!(world.cache.get("another").await.unwrap().is_none());
    set(Loaded::value(vec![1])).await;
    world.time.advance(MINUTE);
    assert_eq!(world.far("k").await.outcome, LevelOutcome::Stale);
}

#[tokio::test]
async fn what_cannot_be_read_is_told_with_the_reason() {
    let world = world();
    world.map.plant("rows:k", &b"hello"[..]);
    let far = world.far("k").await;
    assert_eq!((far.outcome, far.unreadable), (LevelOutcome::Unreadable, Some(Unreadable::Foreign)));
    assert_eq!(far.entry.unwrap().bytes, Some(5));
    world.map.plant("rows:k", vec![0; VALUE_MAX + 1]);
    let far = world.far("k").await;
    assert_eq!((far.outcome, far.unreadable), (LevelOutcome::Unreadable, Some(Unreadable::TooLarge)));
    assert_eq!((far.entry.is_some(), far.error), (true, None));
    world.map.evict("rows:k");
    // Another schema, and a value that is none of the type.
    let level = || Level::new(self::far(&world.map, &world.clock));
    let builder = || TracedCache::<String>::builder("rows").level(level()).clock(world.clock.clone());
    let _ = builder().schema(7).build().unwrap().set("k", "text".to_owned()).await.unwrap();
    assert_eq!(world.far("k").await.unreadable, Some(Unreadable::Schema));
    let stranger = world.stranger().inspect("k").await.unwrap();
    assert_eq!(stranger.levels[0].outcome, LevelOutcome::Hit);
    assert_eq!(stranger.levels[0].entry.as_ref().unwrap().schema, Some(7));
    let _ = builder().build().unwrap().set("k", "text".to_owned()).await.unwrap();
    assert_eq!(world.far("k").await.unreadable, Some(Unreadable::Payload));
}

#[tokio::test]
async fn a_level_that_fails_says_so_in_its_place() {
    let world = world();
    let _ = world.cache.set("k", vec![1]).await.unwrap();
    world.far.set(ChaosOp::Get, Fault::Fail);
    let both = world.cache.inspect("k").await.unwrap();
    assert_eq!(outcomes(&both), [LevelOutcome::Hit, LevelOutcome::Error]);
    assert!(both.levels[1].error.as_ref().unwrap().starts_with("level 2 failed"), "{both:?}");
    assert!(world.cache.inspect("").await.is_err());
    let _ = world.cache.close(Duration::ZERO).await;
    assert!(world.cache.inspect("k").await.is_err());
}
