//! Z: size and clock.

use std::time::Duration;

use traced_cache::{Delivery, Memory, Policy, TracedCache};

use crate::{
    kit::{self, Loads, MS, Recorder, S},
    stacks::{self, unique},
};

/// Over memcached's limit of 1 MiB for an item.
fn large() -> String {
    "x".repeat((1 << 20) + 1)
}

#[tokio::test]
async fn z1_what_is_too_large_for_memcached_stays_in_memory() {
    for stack in stacks::all().filter(|s| s.name.ends_with("memcached")) {
        let events = Recorder::default();
        let cache: TracedCache<String> = stack
            .builder(&unique("z1"))
            .policy(Policy::ttl(100 * S))
            .observer(events.clone())
            .build()
            .unwrap();
        let loads = Loads::default();
        assert_eq!(kit::load(&cache, "k", &loads, large()).await.len(), large().len());
        assert_eq!(events.count(&format!("too_large {}", stack.far())), 1, "{:?}", events.all());
        assert_eq!(stack.hooks().count("put"), 1, "what takes its place, and not the value");
        let again = kit::look(&cache, "k", &loads, large()).await;
        assert_eq!(loads.count(), 2 - stack.far(), "L1 holds it, where there is one");
        assert_eq!(again.level(), (stack.far() == 1).then_some(0));
        let peer = stack.peer().named::<String>(cache.name(), Policy::ttl(100 * S));
        assert_eq!(kit::get(&peer, "k").await, None);
        assert_eq!(cache.stats().pending, 0, "nothing to be told later");
    }
}

#[tokio::test]
async fn z2_a_large_value_leaves_nothing_of_the_small_one() {
    for stack in stacks::all().filter(|s| s.name.ends_with("memcached")) {
        let cache = stack.plain::<String>();
        let peer = || stack.peer().named::<String>(cache.name(), Policy::ttl(100 * S));
        kit::set(&cache, "set", "small").await;
        match stack.far() {
            0 => kit::set_nowhere(&cache, "set", large()).await,
            _ => kit::set(&cache, "set", large()).await,
        }
        assert_eq!(kit::get(&peer(), "set").await, None);
        kit::set(&cache, "loaded", "small").await;
        stack.time.advance(100 * S);
        kit::load(&cache, "loaded", &Loads::default(), large()).await;
        let physical =
            stacks::memcached_server().unwrap().command(&format!("mg {}:loaded s", cache.name())).unwrap();
        // Nothing, the one byte of a tombstone, or a header alone, for a second.
        assert!(
            matches!(&*physical, "EN" | "HD s1" | "HD s56"),
            "not even the entry that has ended: {physical}"
        );
        let items = [("set", "s".to_owned()), ("loaded", large()), ("third", "t".to_owned())];
        let all = cache.set_many(items).await;
        assert_eq!(all.is_ok_and(Delivery::is_confirmed), stack.far() > 0);
        let peer = peer();
        assert_eq!(kit::get(&peer, "set").await, Some("s".into()));
        assert_eq!(kit::get(&peer, "loaded").await, None);
        assert_eq!(kit::get(&peer, "third").await, Some("t".into()));
    }
}

#[tokio::test]
async fn z4_memory_stays_within_its_bounds() {
    let bytes = Memory::bytes(1 << 20);
    let cache = TracedCache::<String>::builder("z4").level(bytes.clone()).build().unwrap();
    let value = "x".repeat(1_000);
    for key in 0..10_000_u64 {
        let _ = cache.set(key, value.clone()).await.unwrap();
    }
    // The engine stops its maintenance after a while, and goes on with the next look.
    kit::until(|| cache.stats().levels[0].weight.unwrap() <= 1 << 20).await;
    let level = &cache.stats().levels[0];
    let weight = level.weight.unwrap();
    assert!(weight > 1 << 19, "and they are used: {weight}");
    assert!(level.evicted_size > 0);

    let entries = Memory::entries(100);
    let cache = TracedCache::<u64>::builder("z4").level(entries.clone()).build().unwrap();
    for key in 0..1_000_u64 {
        let _ = cache.set(key, key).await.unwrap();
    }
    kit::until(|| cache.stats().levels[0].entries.unwrap() <= 100).await;
}

#[tokio::test]
async fn z4_the_callers_own_measure_counts() {
    let memory = Memory::bytes(1 << 20);
    let cache = TracedCache::<u64>::builder("z4")
        .level(memory.clone())
        .weigher(|kilobytes: &u64| u32::try_from(*kilobytes).unwrap() << 10)
        .build()
        .unwrap();
    for key in 0..100_u64 {
        let _ = cache.set(key, 100_u64).await.unwrap();
    }
    kit::until(|| cache.stats().levels[0].weight.unwrap() <= 1 << 20).await;
    let level = &cache.stats().levels[0];
    assert!(level.entries.unwrap() <= 10, "{level:?}");
}

#[tokio::test]
async fn z5_a_jump_of_the_wall_clock_ages_nothing_in_memory() {
    for stack in stacks::all().filter(|s| s.memory.is_some()) {
        for jump in [-3_600_000, 3_600_000] {
            let cache = stack.plain::<u64>();
            kit::set(&cache, "k", 1_u64).await;
            stack.time.jump_wall(jump);
            stack.time.advance(100 * S - MS);
            assert_eq!(cache.look("k").await.unwrap().level(), Some(0), "fresh stays fresh");
            stack.time.advance(MS);
            let ended = cache.look("k").await.unwrap().level() != Some(0);
            assert!(ended, "and ends in time");
            stack.time.jump_wall(-jump);
        }
    }
}

#[tokio::test]
async fn z5_an_entry_from_the_future_lives_no_longer_than_its_ttl() {
    for stack in stacks::shared() {
        let cache = stack.plain::<u64>();
        kit::set(&cache, "k", 1_u64).await;
        stack.time.jump_wall(-3_600_000);
        let peer = stack.peer().named::<u64>(cache.name(), Policy::ttl(100 * S));
        let found = peer.look("k").await.unwrap();
        assert_eq!((found.is_hit(), found.age()), (true, Duration::ZERO));
        if stack.far() == 1 {
            // In memory from here on: its ttl counts from now.
            stack.time.advance(100 * S - MS);
            assert_eq!(kit::get(&peer, "k").await, Some(1));
            stack.time.advance(MS);
            assert_eq!(peer.look("k").await.unwrap().level(), Some(1), "the memory's copy has ended");
        }
        stack.time.advance(3_700 * S);
        assert_eq!(kit::get(&peer, "k").await, None);
    }
}
