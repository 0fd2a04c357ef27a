//! T: how long entries live.

use std::{collections::HashSet, time::Duration};

use traced_cache::{Access, Early, Loaded, Outcome, Policy};

use crate::{
    hooks::Hooked,
    kit::{self, Loads, MS, S},
    stacks::{self, Stack, unique},
    stores::MapProvider,
};

#[tokio::test]
async fn t1_the_end_is_exclusive_and_the_same_everywhere() {
    for stack in stacks::all() {
        let cache = stack.cache::<u64>(Policy::ttl(100 * S));
        kit::set(&cache, "k", 1_u64).await;
        stack.time.advance(100 * S - MS);
        assert_eq!(kit::outcome(&cache, "k").await, Outcome::Hit);
        let peer_sees = stack.remote.is_some();
        stack.time.advance(MS);
        assert_eq!(kit::outcome(&cache, "k").await, Outcome::Miss);
        assert_eq!(kit::get(&cache, "k").await, None);
        assert_eq!(cache.get_many(["k"]).await.unwrap(), [None]);
        if peer_sees {
            let peer = stack.peer().named::<u64>(cache.name(), Policy::ttl(100 * S));
            assert_eq!(kit::outcome(&peer, "k").await, Outcome::Miss);
        }
    }
}

#[tokio::test]
async fn t2_a_ttl_of_zero_removes() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        kit::set(&cache, "k", 1_u64).await;
        let zero = Loaded::value(2_u64).ttl(Duration::ZERO);
        assert!(cache.set_loaded("k", zero).await.unwrap().is_confirmed());
        assert_eq!(kit::get(&cache, "k").await, None);
        if stack.remote.is_some() {
            let peer = stack.peer().named::<u64>(cache.name(), Policy::ttl(100 * S));
            assert_eq!(kit::get(&peer, "k").await, None);
        }
        // The same from a loader: its callers get the value, the levels nothing.
        kit::set(&cache, "k", 1_u64).await;
        let load = |(), _| async { traced_cache::ok(Loaded::value(3_u64).ttl(Duration::ZERO)) };
        let found = cache.access(Access::Reload).look_or_set_with("k", &(), load).await.unwrap();
        assert_eq!(found.value().map(|v| **v), Some(3));
        assert_eq!(kit::get(&cache, "k").await, None);
    }
}

/// Jitter is added to a ttl: without one there is nothing to add it to.
#[tokio::test]
async fn a_ttl_of_zero_stays_zero_under_jitter() {
    for stack in stacks::all() {
        let cache = stack.cache::<u64>(Policy::ttl(60 * S).jitter(20 * S));
        let nothing = |value: u64| Loaded::value(value).ttl(Duration::ZERO);
        kit::set(&cache, "k", 1_u64).await;
        assert!(cache.set_loaded("k", nothing(2)).await.unwrap().is_confirmed());
        assert_eq!(kit::get(&cache, "k").await, None);
        let load = move |(), _| async move { traced_cache::ok(nothing(3)) };
        assert_eq!(cache.get_or_set_with("k", &(), load).await.unwrap().as_deref(), Some(&3));
        assert_eq!(kit::get(&cache, "k").await, None);
        kit::set(&cache, "k", 4_u64).await;
        let update = move |(), _, _| async move { traced_cache::ok(nothing(5)) };
        assert_eq!(cache.update("k", &(), update).await.unwrap().value.as_deref(), Some(&5));
        assert_eq!(kit::get(&cache, "k").await, None);
    }
}

#[tokio::test]
async fn t4_for_ever_does_not_overflow() {
    for stack in stacks::all() {
        let cache = stack.cache::<u64>(Policy::ttl(Duration::MAX).jitter(600 * S));
        kit::set(&cache, "k", 1_u64).await;
        let loads = Loads::default();
        kit::load(&cache, "loaded", &loads, 2_u64).await;
        stack.time.advance(Duration::from_secs(100 * 365 * 24 * 3600));
        assert_eq!(kit::get(&cache, "k").await, Some(1));
        assert_eq!(kit::get(&cache, "loaded").await, Some(2));
        if stack.remote.is_some() {
            let peer = stack.peer().named::<u64>(cache.name(), cache.policy());
            assert_eq!(kit::get(&peer, "k").await, Some(1));
        }
    }
}

#[tokio::test]
async fn t5_for_ever_is_never_refreshed_early() {
    for stack in stacks::all() {
        for early in [Early::Fraction(0.5), Early::XFetch { beta: 1.0 }] {
            let cache = stack.cache::<u64>(Policy::ttl(Duration::MAX).early(early));
            let loads = Loads::default();
            for _ in 0..100 {
                assert_eq!(kit::load(&cache, "k", &loads, 1_u64).await, 1);
                stack.time.advance(Duration::from_secs(3600 * 24));
            }
            kit::settle().await;
            assert_eq!(loads.count(), 1);
        }
    }
}

#[tokio::test]
async fn t7_jitter_spreads_within_its_bounds() {
    let jittered = Policy::ttl(60 * S).jitter(10 * S);
    let check = |ttls: &[Duration]| {
        assert_eq!(ttls.len(), 1_000);
        assert!(ttls.iter().all(|ttl| (60 * S..=70 * S).contains(ttl)), "{ttls:?}");
        assert!(ttls.iter().collect::<HashSet<_>>().len() >= 100);
    };
    for stack in stacks::shared() {
        let cache = stack.cache::<u64>(jittered);
        assert!(cache.set_many((0..1_000_u64).map(|k| (k, k))).await.unwrap().is_confirmed());
        check(&stack.hooks().ttls());
    }
    // Memory does not say: look when entries end.
    let stack = stacks::all().next().unwrap();
    let cache = stack.cache::<u64>(jittered);
    assert!(cache.set_many((0..1_000_u64).map(|k| (k, k))).await.unwrap().is_confirmed());
    let mut ends = vec![Duration::ZERO; 1_000];
    for step in 0..=1_000 {
        for (at, found) in cache.get_many(0..1_000_u64).await.unwrap().iter().enumerate() {
            if found.is_none() && ends[at].is_zero() {
                ends[at] = step * (70 * S / 1_000);
            }
        }
        stack.time.advance(70 * S / 1_000);
    }
    check(&ends);
}

#[tokio::test]
async fn t8_throttling_has_no_jitter() {
    for stack in stacks::all() {
        let policy =
            Policy::ttl(100 * S).grace(10_000 * S).throttle(Duration::ZERO).jitter(Duration::from_secs(1800));
        let cache = stack.cache::<u64>(policy);
        kit::set(&cache, "k", 1_u64).await;
        stack.time.advance(100 * S + Duration::from_secs(1800));
        let loads = Loads::default();
        for round in 1..=2 {
            let found = kit::fail(&cache, "k", &loads).await.unwrap();
            assert!(found.is_stale());
            assert_eq!(loads.count(), round);
        }
    }
}

fn redis_ttl(cache: &str, key: &str) -> i64 {
    let server = stacks::redis_server().unwrap();
    server.command(&["PTTL", &format!("v:{{{cache}:{key}}}")]).unwrap()
}

#[tokio::test]
async fn t10_redis_keeps_milliseconds() {
    let Some(redis) = stacks::redis() else { return };
    let (clock, _time) = traced_cache::Clock::manual();
    let cache = traced_cache::TracedCache::<u64>::builder(unique("t10"))
        .level(stacks::level(redis))
        .clock(clock)
        .build()
        .unwrap();
    // Again where the machine was too busy to look within the time.
    for _ in 0..100 {
        assert!(cache.set_loaded("k", Loaded::value(1_u64).ttl(250 * MS)).await.unwrap().is_confirmed());
        let left = redis_ttl(cache.name(), "k");
        if left != -2 {
            assert!(left > 0 && left <= 250, "{left}");
            return;
        }
    }
    panic!("never seen within 250 ms");
}

#[tokio::test]
async fn t11_redis_rounds_up_to_a_millisecond() {
    let Some(redis) = stacks::redis() else { return };
    let hooked = Hooked::new(std::sync::Arc::new(redis));
    let (clock, _time) = traced_cache::Clock::manual();
    let cache = traced_cache::TracedCache::<u64>::builder(unique("t11"))
        .level(stacks::level(hooked.clone()))
        .clock(clock)
        .build()
        .unwrap();
    let short = Loaded::value(1_u64).ttl(Duration::from_micros(400));
    assert!(cache.set_loaded("k", short).await.unwrap().is_confirmed());
    assert_eq!(hooked.hooks.ttls(), [Duration::from_micros(400)]);
    let left = redis_ttl(cache.name(), "k");
    assert!(left == -2 || (0..=1).contains(&left), "never without expiry: {left}");
    tokio::task::spawn_blocking(move || {
        assert!(test_servers::until(10 * S, || redis_ttl(cache.name(), "k") == -2));
    })
    .await
    .unwrap();
}

/// What memcached says of the time that an item has left: seconds, or -1 for ever.
fn memcached_ttl(cache: &str, key: &str) -> Option<i64> {
    let answer = stacks::memcached_server().unwrap().command(&format!("mg {cache}:{key} t")).unwrap();
    answer.strip_prefix("HD t").map(|t| t.parse().unwrap())
}

async fn on_memcached(ttl: Duration) -> Option<(Stack, traced_cache::TracedCache<u64>)> {
    let stack = stacks::shared().find(|s| s.name == "memcached")?;
    let cache = stack.plain::<u64>();
    assert!(cache.set_loaded("k", Loaded::value(1_u64).ttl(ttl)).await.unwrap().is_confirmed());
    Some((stack, cache))
}

#[tokio::test]
async fn t13_memcached_never_gets_a_zero() {
    for _ in 0..100 {
        let Some((_, cache)) = on_memcached(300 * MS).await else { return };
        // Gone already where the machine was too busy to look in time.
        if let Some(left) = memcached_ttl(cache.name(), "k") {
            assert!((0..=1).contains(&left), "{left}");
            return;
        }
    }
    panic!("never seen within a second");
}

#[tokio::test]
async fn t14_memcached_takes_thirty_days_and_more() {
    const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
    for ttl in [MONTH, MONTH + S, 12 * MONTH] {
        let Some((_, cache)) = on_memcached(ttl).await else { return };
        assert_eq!(kit::get(&cache, "k").await, Some(1), "{ttl:?}");
        let left = memcached_ttl(cache.name(), "k").unwrap();
        let asked = i64::try_from(ttl.as_secs()).unwrap();
        assert!((asked - 60..=asked + 1).contains(&left), "{ttl:?}: {left}");
    }
}

#[tokio::test]
async fn t16_a_century_does_not_wrap_on_memcached() {
    let Some((stack, cache)) = on_memcached(Duration::from_secs(100 * 365 * 24 * 3600)).await else { return };
    assert_eq!(kit::get(&cache, "k").await, Some(1));
    let left = memcached_ttl(cache.name(), "k").unwrap();
    assert!(left == -1 || left > 365 * 24 * 3600, "{left}");
    let peer = stack.peer().named::<u64>(cache.name(), Policy::ttl(100 * S));
    assert_eq!(kit::get(&peer, "k").await, Some(1));
}

#[tokio::test]
async fn t17_a_cap_ends_the_nearest_copy_only() {
    for stack in stacks::layered() {
        let (Some(memory), Some(remote)) = (&stack.memory, &stack.remote) else { panic!("layered") };
        let cache = traced_cache::TracedCache::<u64>::builder(unique("t17"))
            .level(stacks::level(memory.clone()).ttl_cap(60 * S))
            .level(stacks::level(remote.clone()))
            .policy(Policy::ttl(600 * S))
            .clock(stack.clock.clone())
            .build()
            .unwrap();
        let loads = Loads::default();
        kit::load(&cache, "k", &loads, 1_u64).await;
        stack.time.advance(60 * S - MS);
        assert_eq!(kit::look(&cache, "k", &loads, 2_u64).await.level(), Some(0));
        stack.time.advance(S + MS);
        let found = kit::look(&cache, "k", &loads, 2_u64).await;
        assert_eq!((found.level(), found.outcome(), loads.count()), (Some(1), Outcome::Hit, 1));
        // The backfilled copy has the cap's time once more, and no more than what the entry has left.
        assert_eq!(kit::look(&cache, "k", &loads, 2_u64).await.level(), Some(0));
        stack.time.advance(540 * S);
        assert_eq!(kit::load(&cache, "k", &loads, 2_u64).await, 2);
    }
}

#[tokio::test]
async fn an_answers_own_ttl_counts() {
    let stack = Stack {
        remote: Some(Hooked::new(std::sync::Arc::new(MapProvider::new()))),
        ..stacks::all().next().unwrap()
    };
    let cache = stack.cache::<u64>(Policy::ttl(100 * S).grace(500 * S));
    let load = |(), _| async { traced_cache::ok(Loaded::value(1_u64).ttl(10 * S).grace(20 * S)) };
    cache.get_or_set_with("k", &(), load).await.unwrap();
    stack.time.advance(10 * S - MS);
    assert_eq!(kit::outcome(&cache, "k").await, Outcome::Hit);
    stack.time.advance(MS);
    assert_eq!(kit::outcome(&cache, "k").await, Outcome::Miss);
    assert_eq!(kit::outcome(&cache.access(Access::AllowStale), "k").await, Outcome::Stale);
    stack.time.advance(10 * S);
    assert_eq!(kit::outcome(&cache.access(Access::AllowStale), "k").await, Outcome::Miss);
}
