//! L: more than one level.

use std::sync::Arc;

use traced_cache::{
    Access, CacheProvider, Clock, Delivery, Level, LevelOutcome, Memory, Outcome, Policy, RedisProvider,
    TracedCache, ok,
};

use crate::{
    hooks::At,
    kit::{self, Loads, MS, S},
    stacks::{self, Stack, unique},
    stores::MapProvider,
};

#[tokio::test]
async fn l1_what_only_the_second_level_has_is_a_hit_there() {
    for stack in stacks::layered() {
        let name = unique("l1");
        let policy = Policy::ttl(100 * S);
        kit::set(&stack.named::<u64>(&name, policy), "k", 1_u64).await;
        let node = stack.peer().named::<u64>(&name, policy);
        let loads = Loads::default();
        let found = kit::look(&node, "k", &loads, 2_u64).await;
        assert_eq!(
            (found.value().map(|v| **v), found.outcome(), found.level()),
            (Some(1), Outcome::Hit, Some(1))
        );
        assert_eq!(loads.count(), 0);
        let stats = node.stats();
        assert_eq!((stats.hits_at(0), stats.hits_at(1), stats.misses()), (0, 1, 0));
        assert_eq!(stats.levels[0].outcome(LevelOutcome::Miss), 1);
        assert_eq!(stats.levels[1].outcome(LevelOutcome::Hit), 1);
        assert_eq!(kit::look(&node, "k", &loads, 2_u64).await.level(), Some(0), "now L1 holds it");
    }
}

#[tokio::test]
async fn l2_l4_a_backfill_has_the_time_that_is_left() {
    for stack in stacks::layered() {
        let name = unique("l2");
        let writer = stack.named::<u64>(&name, Policy::ttl(200 * S));
        kit::set(&writer, "k", 1_u64).await;
        stack.time.advance(100 * S);
        let reader = stack.peer().named::<u64>(&name, Policy::ttl(1_000 * S));
        let found = reader.look("k").await.unwrap();
        assert_eq!((found.level(), found.age()), (Some(1), 100 * S));
        stack.time.advance(100 * S - MS);
        assert_eq!(reader.look("k").await.unwrap().level(), Some(0));
        stack.time.advance(MS);
        assert_eq!(kit::outcome(&reader, "k").await, Outcome::Miss);
    }
}

#[tokio::test]
async fn l5_what_is_past_its_ttl_below_is_stale_above() {
    for stack in stacks::layered() {
        let name = unique("l5");
        let policy = Policy::ttl(100 * S).grace(1_000 * S).throttle(10 * S);
        kit::set(&stack.named::<u64>(&name, policy), "k", 1_u64).await;
        stack.time.advance(150 * S);
        let node = stack.peer().named::<u64>(&name, policy);
        assert_eq!(kit::outcome(&node, "k").await, Outcome::Miss);
        let loads = Loads::default();
        let found = kit::fail(&node, "k", &loads).await.unwrap();
        assert_eq!((found.outcome(), found.level(), found.age()), (Outcome::Stale, Some(1), 150 * S));
        // The failed refresh has brought it into L1, where it is as stale as before.
        let found = node.access(Access::AllowStale).look("k").await.unwrap();
        assert_eq!((found.outcome(), found.age()), (Outcome::Stale, 150 * S));
        assert_eq!(kit::outcome(&node, "k").await, Outcome::Miss);
        stack.time.advance(850 * S);
        assert_eq!(kit::outcome(&node.access(Access::AllowStale), "k").await, Outcome::Miss);
    }
}

#[tokio::test]
async fn l7_an_entry_that_has_ended_above_is_not_brought_back_from_below() {
    for stack in stacks::layered() {
        let cache = stack.cache::<u64>(Policy::ttl(100 * S).grace(1_000 * S));
        kit::set(&cache, "k", 1_u64).await;
        stack.time.advance(100 * S);
        let loads = Loads::default();
        let found = kit::look(&cache, "k", &loads, 2_u64).await;
        assert_eq!((found.value().map(|v| **v), found.outcome()), (Some(2), Outcome::Loaded));
        assert_eq!(loads.count(), 1);
    }
}

#[tokio::test]
async fn l8_a_younger_entry_of_another_node_is_used() {
    for stack in stacks::layered() {
        let name = unique("l8");
        let policy = Policy::ttl(100 * S).grace(1_000 * S);
        let (a, b) = (stack.named::<u64>(&name, policy), stack.peer().named::<u64>(&name, policy));
        kit::set(&a, "k", 1_u64).await;
        assert_eq!(kit::get(&a, "k").await, Some(1));
        stack.time.advance(60 * S);
        kit::set(&b, "k", 2_u64).await;
        stack.time.advance(60 * S);
        let loads = Loads::default();
        let found = kit::look(&a, "k", &loads, 3_u64).await;
        assert_eq!((found.value().map(|v| **v), found.level(), loads.count()), (Some(2), Some(1), 0));
    }
}

#[tokio::test]
async fn l8_of_two_stale_entries_the_younger_stands_in() {
    for stack in stacks::layered() {
        let name = unique("l8");
        let policy = Policy::ttl(100 * S).grace(1_000 * S);
        let (a, b) = (stack.named::<u64>(&name, policy), stack.peer().named::<u64>(&name, policy));
        kit::set(&a, "k", 1_u64).await;
        stack.time.advance(60 * S);
        kit::set(&b, "k", 2_u64).await;
        stack.time.advance(200 * S);
        let found = kit::fail(&a, "k", &Loads::default()).await.unwrap();
        assert_eq!((found.value().map(|v| **v), found.level(), found.age()), (Some(2), Some(1), 200 * S));
    }
}

/// No call skips a level of its cache: a cache of the same name has the levels that are left.
#[tokio::test]
async fn l10_a_cache_of_the_same_name_without_memory_goes_past_it() {
    for stack in stacks::layered() {
        let name = unique("l10");
        let policy = Policy::ttl(100 * S);
        let whole = stack.named::<u64>(&name, policy);
        let past = Stack { memory: None, ..stack.clone() }.named::<u64>(&name, policy);
        kit::set(&whole, "k", 1_u64).await;
        kit::set(&past, "k", 2_u64).await;
        let loads = Loads::default();
        assert_eq!(kit::load(&past, "k", &loads, 3_u64).await, 2, "the remote level decides");
        let found = kit::look(&whole, "k", &loads, 3_u64).await;
        assert_eq!((found.value().map(|v| **v), found.level()), (Some(1), Some(0)), "memory is as it was");
        assert_eq!(loads.count(), 0);
    }
}

#[tokio::test]
async fn l11_a_write_is_everywhere_when_it_returns() {
    for stack in stacks::shared() {
        let name = unique("l11");
        let policy = Policy::ttl(100 * S);
        let (a, b) = (stack.named::<u64>(&name, policy), stack.peer().named::<u64>(&name, policy));
        kit::set(&a, "k", 1_u64).await;
        assert_eq!(kit::get(&b, "k").await, Some(1));
        let loads = Loads::default();
        kit::load(&a, "loaded", &loads, 2_u64).await;
        assert_eq!(kit::get(&b, "loaded").await, Some(2));
        kit::invalidate(&a, "loaded").await;
        assert_eq!(kit::get(&stack.peer().named::<u64>(&name, policy), "loaded").await, None);
    }
}

#[tokio::test]
async fn l11_in_the_background_it_returns_first() {
    for stack in stacks::layered() {
        let name = unique("l11");
        let (Some(memory), Some(remote)) = (&stack.memory, &stack.remote) else { panic!("layered") };
        let cache = TracedCache::<u64>::builder(&name)
            .level(memory.clone())
            .level(stacks::level(remote.clone()).background(true))
            .clock(stack.clock.clone())
            .build()
            .unwrap();
        let gate = stack.hooks().hold(At::BeforePut);
        let answer = kit::patient(cache.set("k", 1_u64)).await.unwrap();
        assert!(!answer.is_confirmed(), "not acknowledged by the second level");
        gate.reached().await;
        assert_eq!(kit::get(&cache, "k").await, Some(1));
        gate.open();
        let closed = kit::patient(cache.close(10 * S)).await;
        assert!(closed.is_drained() && closed.undelivered().is_empty());
        let peer = stack.peer().named::<u64>(&name, Policy::ttl(60 * S));
        assert_eq!(kit::get(&peer, "k").await, Some(1));
    }
}

#[tokio::test]
async fn l11_background_writes_keep_their_order() {
    for stack in stacks::layered() {
        let name = unique("l11");
        let (Some(memory), Some(remote)) = (&stack.memory, &stack.remote) else { panic!("layered") };
        let cache = TracedCache::<u64>::builder(&name)
            .level(memory.clone())
            .level(stacks::level(remote.clone()).background(true))
            .clock(stack.clock.clone())
            .build()
            .unwrap();
        let peer = || stack.peer().named::<u64>(&name, Policy::ttl(60 * S));
        for then_gone in [false, true] {
            let gate = stack.hooks().hold(At::BeforePut);
            let _ = kit::patient(cache.set("k", 1_u64)).await.unwrap();
            gate.reached().await;
            let later = tokio::spawn({
                let cache = cache.clone();
                async move { if then_gone { cache.invalidate("k").await } else { cache.set("k", 2_u64).await } }
            });
            kit::settle().await;
            gate.open();
            let _ = kit::patient(later).await.unwrap().unwrap();
            let expected = (!then_gone).then_some(2);
            assert_eq!(kit::get(&cache, "k").await, expected);
            kit::until(|| stack.hooks().count("put") >= if then_gone { 3 } else { 2 }).await;
            kit::settle().await;
            let mut seen = kit::get(&peer(), "k").await;
            for _ in 0..1_000 {
                if seen == expected {
                    break;
                }
                tokio::time::sleep(MS).await;
                seen = kit::get(&peer(), "k").await;
            }
            assert_eq!(seen, expected);
        }
    }
}

#[tokio::test]
async fn r1_a_level_that_is_down_costs_no_error() {
    for stack in stacks::layered().chain([stacks::mapped()]) {
        let events = kit::Recorder::default();
        let cache: TracedCache<u64> = stack.builder(&unique("r1")).observer(events.clone()).build().unwrap();
        stack.hooks().down(true);
        let loads = Loads::default();
        assert_eq!(kit::load(&cache, "k", &loads, 1_u64).await, 1);
        assert_eq!(kit::look(&cache, "k", &loads, 2_u64).await.level(), Some(0));
        assert_eq!(loads.count(), 1);
        assert_eq!(events.all(), ["get error 1", "load value"], "it is asked once");
    }
}

#[tokio::test]
async fn r10_a_level_is_used_again_after_a_fill_has_failed() {
    for stack in stacks::layered().chain([stacks::mapped()]) {
        let name = unique("r10");
        let policy = Policy::ttl(100 * S);
        let cache = stack.named::<u64>(&name, policy);
        // The level works, but for the fill of this load.
        kit::set(&cache, "other", 0_u64).await;
        stack.hooks().puts_fail(true);
        let loads = Loads::default();
        assert_eq!(kit::load(&cache, "k", &loads, 1_u64).await, 1);
        stack.hooks().puts_fail(false);
        assert_eq!(kit::get(&cache, "k").await, Some(1));
        assert_eq!(kit::get(&stack.peer().named::<u64>(&name, policy), "k").await, None);
        // What the level holds of the key is in doubt until it has heard of it; then all is as before.
        kit::patient(async {
            while cache.stats().pending > 0 {
                stack.time.advance(S / 10);
                tokio::task::yield_now().await;
            }
        })
        .await;
        stack.time.advance(100 * S);
        // The lease of the fill that failed may have to end first.
        assert_eq!(kit::moving(&stack.time, kit::load(&cache, "k", &loads, 2_u64)).await, 2);
        assert_eq!(kit::get(&stack.peer().named::<u64>(&name, policy), "k").await, Some(2));
    }
}

/// Two levels in this process: what only the second one has is read, fills the first, and is what an update begins with.
#[tokio::test]
async fn memory_behind_memory_is_a_level_like_any_other() {
    let (clock, time) = Clock::manual();
    let memory = || Memory::entries(1_000).engine_expiry(false);
    let cache: TracedCache<u64> = TracedCache::builder("twice")
        .level(Level::new(memory()).ttl_cap(S))
        .level(memory())
        .policy(Policy::ttl(100 * S))
        .clock(clock)
        .build()
        .unwrap();
    assert_eq!(cache.set("n", 41).await.unwrap(), Delivery::Confirmed);
    time.advance(2 * S);
    assert_eq!(cache.look("n").await.unwrap().level(), Some(1));
    assert_eq!(cache.look("n").await.unwrap().level(), Some(0), "now the first one holds it");
    time.advance(2 * S);
    let change = |(): (), _: String, n: Option<Arc<u64>>| async move { ok(n.map_or(1, |n| *n + 1)) };
    assert_eq!(*cache.update("n", &(), change).await.unwrap().value, 42);
    for _ in 0..2 {
        assert_eq!(cache.get("n").await.unwrap().as_deref(), Some(&42));
        time.advance(2 * S);
    }
}

/// A provider twice would be two levels over the same keys: each fill waits for the lease of the other one.
#[test]
fn a_store_is_one_level_of_a_cache() {
    let memory = Memory::entries(10);
    let map: Arc<dyn CacheProvider> = Arc::new(MapProvider::new());
    let typed = Arc::new(MapProvider::new());
    let redis = RedisProvider::builder("redis://127.0.0.1:1").build().unwrap();
    let both = |near: Level, far: Level| {
        let cache = TracedCache::<u64>::builder("twice").level(MapProvider::new()).level(near).level(far);
        cache.build().map(drop).map_err(|error| error.to_string())
    };
    for (near, far, system) in [
        (memory.clone().into(), Arc::new(memory).into(), "memory"),
        (Level::shared(Arc::clone(&map)), Level::shared(map).ttl_cap(S), "map"),
        (Arc::clone(&typed).into(), typed.into(), "map"),
        (redis.clone().into(), Arc::new(redis).into(), "redis"),
    ] {
        assert_eq!(
            both(near, far).unwrap_err(),
            format!(
                "cache `twice`: level 3 ({system}) provider = that of level 2: both would use the same keys; leave one of them out"
            )
        );
    }
    both(MapProvider::new().into(), MapProvider::new().into()).unwrap();
}
