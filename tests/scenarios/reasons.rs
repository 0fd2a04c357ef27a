//! Why look-ups miss, what hits save, and what else is counted beside outcomes.

use std::time::Duration;

use traced_cache::{
    Access, ErrorKind, LevelOutcome, Memory, MissReason, Outcome, Policy, Scope, TracedCache, Unreadable,
};

use crate::{
    kit::{self, Loads, S},
    stacks,
};

async fn reason(cache: &TracedCache<u64>, key: u64) -> Option<MissReason> {
    kit::patient(cache.look(key)).await.unwrap().miss_reason()
}

#[tokio::test]
async fn a_miss_has_the_reason_that_it_has() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let loads = Loads::default();
        assert_eq!(reason(&cache, 1).await, Some(MissReason::Absent), "{}", stack.name);
        let loaded = kit::look(&cache, 1, &loads, 7u64).await;
        assert_eq!((loaded.outcome(), loaded.miss_reason()), (Outcome::Loaded, Some(MissReason::Absent)));
        assert_eq!(kit::look(&cache, 1, &loads, 7u64).await.miss_reason(), None, "a hit misses nothing");
        kit::invalidate(&cache, 1).await;
        assert_eq!(reason(&cache, 1).await, Some(MissReason::Invalidated), "{}", stack.name);
        kit::set(&cache, 1, 8u64).await;
        let bypass = kit::patient(cache.access(Access::Bypass).look(1)).await.unwrap();
        assert_eq!(bypass.miss_reason(), Some(MissReason::Bypassed));
        let stats = cache.stats();
        for (reason, count) in
            [(MissReason::Absent, 2), (MissReason::Invalidated, 1), (MissReason::Bypassed, 1)]
        {
            assert_eq!(stats.missed(reason), count, "{reason:?} on {}: {stats:?}", stack.name);
        }
        assert_eq!(stats.misses(), 4);
    }
}

#[tokio::test]
async fn what_is_over_is_expired_and_what_was_cleared_below_is_invalidated() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        kit::set(&cache, 1, 7u64).await;
        if stack.memory.is_some() {
            stack.time.advance(100 * S);
            assert_eq!(reason(&cache, 1).await, Some(MissReason::Expired), "{}", stack.name);
            assert_eq!(cache.stats().levels[0].outcome(LevelOutcome::Expired), 1);
        }
        kit::set(&cache, 2, 7u64).await;
        assert!(kit::patient(cache.clear()).await.unwrap().is_confirmed());
        if stack.remote.is_some() {
            assert_eq!(reason(&cache, 2).await, Some(MissReason::Invalidated), "{}", stack.name);
        }
        assert_eq!(cache.stats().invalidated(Scope::Cache), 1);
    }
}

#[tokio::test]
async fn what_a_tag_has_taken_is_invalidated() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let tagged = traced_cache::Loaded::value(7u64).tag("group");
        assert!(kit::patient(cache.set_loaded(1, tagged)).await.unwrap().is_confirmed());
        assert!(kit::patient(cache.invalidate_tag("group")).await.unwrap().is_confirmed());
        // Memory lets go of it with the first look.
        for _ in 0..2 {
            assert_eq!(reason(&cache, 1).await, Some(MissReason::Invalidated), "{}", stack.name);
        }
        assert_eq!(cache.stats().invalidated(Scope::Tag), 1);
    }
}

#[tokio::test]
async fn what_had_to_make_room_is_evicted_until_it_is_back() {
    const ROOM: u64 = 100;
    let memory = Memory::entries(ROOM);
    let cache: TracedCache<u64> = TracedCache::builder("small")
        .level(memory.clone())
        .policy(Policy::ttl(Duration::from_secs(3600)))
        .build()
        .unwrap();
    for key in 0..3 * ROOM {
        kit::set(&cache, key, key).await;
        memory.maintain();
    }
    for key in 0..3 * ROOM {
        cache.get(key).await.unwrap();
    }
    assert_eq!(reason(&cache, 3 * ROOM).await, Some(MissReason::Absent), "never seen");
    let stats = cache.stats();
    assert_eq!(stats.levels[0].evicted_size, 2 * ROOM);
    // A table remembers them, and forgets one where nine fall on one of its lines: now and then two of these 200.
    let evicted = stats.missed(MissReason::Evicted);
    assert!((2 * ROOM - 10..=2 * ROOM).contains(&evicted), "{stats:?}");
    assert_eq!(evicted + stats.missed(MissReason::Absent), 2 * ROOM + 1, "{stats:?}");
    assert_eq!(stats.hits(), ROOM);

    kit::set(&cache, 0, 0u64).await;
    assert!(kit::patient(cache.clear()).await.unwrap().is_confirmed());
    assert_ne!(reason(&cache, 0).await, Some(MissReason::Evicted), "it was back, and then cleared");
}

#[tokio::test]
async fn a_level_that_fails_or_holds_rubbish_is_the_reason() {
    for stack in stacks::all().filter(|stack| stack.remote.is_some()) {
        let cache = stack.plain::<u64>();
        let other = stack.builder::<String>(cache.name()).schema(9).build().unwrap();
        kit::set(&other, 1, "nine".to_owned()).await;
        assert_eq!(reason(&cache, 1).await, Some(MissReason::Unreadable), "{}", stack.name);
        let far = &cache.stats().levels[stack.far()];
        assert_eq!(far.unreadable[Unreadable::Schema as usize], (Unreadable::Schema, 1));
    }
    let broken = traced_cache::testing::Chaos::new(traced_cache::testing::MapProvider::new());
    let broken = std::sync::Arc::new(broken);
    let level = traced_cache::Level::new(std::sync::Arc::clone(&broken)).breaker(None);
    let cache: TracedCache<u64> = TracedCache::builder("broken").level(level).build().unwrap();
    broken.set_all(traced_cache::testing::Fault::Fail);
    assert_eq!(cache.get(1).await.unwrap_err().kind(), ErrorKind::Level);
    let stats = cache.stats();
    assert_eq!((stats.missed(MissReason::Error), stats.misses()), (1, 1));
    assert_eq!(stats.errors[ErrorKind::Level as usize], (ErrorKind::Level, 1));
    assert!(stats.levels[0].faults.iter().map(|(_, n)| n).sum::<u64>() >= 1);
}

#[tokio::test]
async fn a_hit_saves_what_its_load_took() {
    let stack = stacks::local().find(|stack| stack.memory.is_some()).unwrap();
    let cache = stack.plain::<u64>();
    let time = stack.time.clone();
    let load = |time: traced_cache::Time, key: u64| async move {
        time.advance(Duration::from_millis(250));
        traced_cache::ok(key)
    };
    for _ in 0..11 {
        kit::patient(cache.get_or_set_with(1u64, &time, load)).await.unwrap();
    }
    assert_eq!(cache.stats().time_saved, 10 * Duration::from_millis(250), "exact while there are few");
    for _ in 0..10_000 {
        cache.get(1u64).await.unwrap();
    }
    let saved = cache.stats().time_saved.as_secs_f64();
    assert!((saved / (10_010.0 * 0.25) - 1.0).abs() < 0.02, "{saved} s");
    kit::set(&cache, 2u64, 2u64).await;
    cache.get(2u64).await.unwrap();
    let after = cache.stats().time_saved.as_secs_f64();
    assert!((after - saved).abs() < f64::EPSILON, "nobody knows what a value that was set would have cost");
}
