//! Three levels: what is read in the third does not get into the second against a write.

use std::sync::Arc;

use traced_cache::{Policy, TracedCache, testing::Shelf};

use crate::{
    hooks::{At, Hooked},
    kit::{self, Loads, S},
    stacks::{self, unique},
    stores::MapProvider,
};

/// Two remote levels behind a shelf from which the test evicts.
struct Three {
    shelf: Shelf,
    two: Hooked,
    three: Hooked,
    cache: TracedCache<u64>,
    name: String,
}

fn three() -> Three {
    let (shelf, name) = (Shelf::default(), unique("three"));
    let two = Hooked::new(Arc::new(MapProvider::new()));
    let three = Hooked::new(Arc::new(MapProvider::new()));
    let cache = on(&name, &shelf, &two, &three);
    Three { shelf, two, three, cache, name }
}

fn on(name: &str, shelf: &Shelf, two: &Hooked, three: &Hooked) -> TracedCache<u64> {
    TracedCache::builder(name)
        .level(shelf.clone())
        .level(stacks::level(two.clone()))
        .level(stacks::level(three.clone()))
        .policy(Policy::ttl(100 * S))
        .build()
        .unwrap()
}

impl Three {
    /// A node whose second level is empty, so that it has to go to the third.
    fn other(&self) -> TracedCache<u64> {
        on(&self.name, &Shelf::default(), &Hooked::new(Arc::new(MapProvider::new())), &self.three.again())
    }

    /// A node with nothing but the second level's content.
    async fn second_level(&self) -> Option<u64> {
        let alone = TracedCache::builder(&self.name).level(stacks::level(self.two.again())).build().unwrap();
        kit::get(&alone, "k").await
    }
}

#[tokio::test]
async fn p4_what_was_read_in_the_third_level_does_not_get_into_the_second() {
    for a_set in [false, true] {
        let t = three();
        // The marker of the second level is known, the key is only in the third.
        kit::set(&t.cache, "other", 0_u64).await;
        kit::set(&t.other(), "k", 1_u64).await;
        let gate = t.three.hooks.hold(At::AfterGet);
        let reader = tokio::spawn({
            let cache = t.cache.clone();
            async move { kit::get(&cache, "k").await }
        });
        gate.reached().await;
        if a_set {
            kit::set(&t.cache, "k", 2_u64).await;
        } else {
            kit::invalidate(&t.cache, "k").await;
        }
        gate.open();
        assert_eq!(kit::patient(reader).await.unwrap(), Some(1));
        let now = a_set.then_some(2);
        assert_eq!(t.second_level().await, now, "the second level");
        t.shelf.evict_all();
        assert_eq!(kit::get(&t.cache, "k").await, now);
    }
}

#[tokio::test]
async fn p4_a_fill_that_is_on_its_way_is_overtaken_in_order() {
    // The reader has the old value and is writing it to the second level: the invalidation waits its turn and wins.
    let t = three();
    kit::set(&t.cache, "other", 0_u64).await;
    kit::set(&t.other(), "k", 1_u64).await;
    let gate = t.two.hooks.hold(At::BeforePut);
    let reader = tokio::spawn({
        let cache = t.cache.clone();
        async move { kit::get(&cache, "k").await }
    });
    gate.reached().await;
    let going = tokio::spawn({
        let cache = t.cache.clone();
        async move { cache.invalidate("k").await }
    });
    kit::settle().await;
    gate.open();
    assert_eq!(kit::patient(reader).await.unwrap(), Some(1));
    assert!(kit::patient(going).await.unwrap().unwrap().is_confirmed());
    assert_eq!(t.second_level().await, None);
    assert_eq!(kit::get(&t.cache, "k").await, None);
}

#[tokio::test]
async fn p4_an_invalidation_between_the_third_level_and_the_second() {
    for at in [At::BeforeRemove, At::AfterRemove] {
        for level in [2, 3] {
            let t = three();
            kit::set(&t.cache, "k", 1_u64).await;
            t.shelf.evict_all();
            let hooks = if level == 2 { &t.two.hooks } else { &t.three.hooks };
            let gate = hooks.hold(at);
            let going = tokio::spawn({
                let cache = t.cache.clone();
                async move { cache.invalidate("k").await }
            });
            gate.reached().await;
            kit::get(&t.cache, "k").await;
            gate.open();
            assert!(kit::patient(going).await.unwrap().unwrap().is_confirmed());
            assert_eq!(kit::get(&t.cache, "k").await, None, "{at:?} at {level}");
            assert_eq!(t.second_level().await, None, "{at:?} at {level}");
            assert_eq!(kit::get(&t.other(), "k").await, None, "{at:?} at {level}");
        }
    }
}

#[tokio::test]
async fn levels_are_filled_deepest_first() {
    // Who finds a value at one level finds it below as well, but for evictions: so the nearest is filled last.
    let t = three();
    kit::set(&t.cache, "other", 0_u64).await;
    for at in [At::BeforePut, At::AfterPut] {
        for level in [3, 2] {
            let hooks = if level == 3 { &t.three.hooks } else { &t.two.hooks };
            let gate = hooks.hold(at);
            let puts = t.two.hooks.count("put");
            let key = format!("{at:?}{level}");
            let loading = tokio::spawn({
                let (cache, key) = (t.cache.clone(), key.clone());
                async move { kit::load(&cache, &key, &Loads::default(), 1_u64).await }
            });
            gate.reached().await;
            assert!(!t.shelf.holds(&key));
            if level == 3 {
                assert_eq!(t.two.hooks.count("put"), puts);
            }
            gate.open();
            assert_eq!(kit::patient(loading).await.unwrap(), 1);
            assert!(t.shelf.holds(&key));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fill_does_not_slip_in_between_a_sets_last_write_and_its_end() {
    // Reads of the third level that began during a large set wait for their turn at the second. The set must have
    // revoked them before they get it.
    const KEYS: u64 = 3_000;
    let name = unique("slip");
    let (two, three) = (Hooked::new(Arc::new(MapProvider::new())), Hooked::new(Arc::new(MapProvider::new())));
    let cache = on(&name, &Shelf::default(), &two, &three);
    kit::set(&cache, "marker", 0_u64).await;
    let other = on(&name, &Shelf::default(), &Hooked::new(Arc::new(MapProvider::new())), &three.again());
    assert!(other.set_many((0..KEYS).map(|key| (key, 1_u64))).await.unwrap().is_confirmed());
    let held = three.hooks.hold(At::BeforePut);
    let setting = tokio::spawn({
        let cache = cache.clone();
        async move { cache.set_many((0..KEYS).map(|key| (key, 2_u64))).await }
    });
    held.reached().await;
    // All these have read the old values below, after the set began.
    let readers: Vec<_> = (0..KEYS)
        .step_by(30)
        .map(|key| {
            let cache = cache.clone();
            tokio::spawn(async move { kit::get(&cache, key).await })
        })
        .collect();
    kit::until(|| three.hooks.count("get") >= readers.len()).await;
    held.open();
    assert!(kit::patient(setting).await.unwrap().unwrap().is_confirmed());
    for reader in readers {
        kit::patient(reader).await.unwrap();
    }
    let second = TracedCache::<u64>::builder(&name).level(stacks::level(two.again())).build().unwrap();
    for (key, value) in (0..KEYS).zip(second.get_many(0..KEYS).await.unwrap()) {
        assert_eq!(value.as_deref(), Some(&2), "key {key} at the second level");
    }
}
