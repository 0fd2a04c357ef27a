//! Callers who leave at every await point: nothing leaks, nothing hangs, nothing old comes back.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
};

use futures::{FutureExt, poll};
use traced_cache::{
    BoxError, Clock, Loaded, Policy, Source, TracedCache, Verb, ok,
    testing::{Chaos, ChaosOp, Fault, MapProvider},
};

use crate::{
    kit::{self, Loads, S},
    stacks::{self, Stack},
};

/// Polls often enough that every call in these tests comes to its end, and at every point before.
const POLLS: usize = 40;

/// Polls a call `times`, letting other tasks run in between, then drops it. Says whether it had ended.
async fn leave_after<F: Future>(call: F, times: usize) -> bool {
    let mut call: Pin<Box<F>> = Box::pin(call);
    for _ in 0..times {
        if poll!(&mut call).is_ready() {
            return true;
        }
        tokio::task::yield_now().await;
    }
    false
}

fn lazy() -> impl Iterator<Item = Stack> {
    stacks::local().chain(stacks::all()).inspect(|stack| {
        if stack.remote.is_some() {
            stack.hooks().lazy(true);
        }
    })
}

fn lookups(cache: &TracedCache<u64>, verb: Verb) -> u64 {
    cache.stats().operations.iter().filter(|(v, _)| *v == verb).map(|(_, n)| *n).sum()
}

/// Lets replays of what was left in doubt end. Their pauses are on the manual clock.
async fn calm(stack: &Stack, cache: &TracedCache<u64>) {
    kit::patient(async {
        while cache.stats().flights > 0 || cache.stats().pending > 0 {
            stack.time.advance(S / 1_000);
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// The cache works as if nothing had happened.
async fn works(stack: &Stack, cache: &TracedCache<u64>) {
    calm(stack, cache).await;
    kit::invalidate(cache, "k").await;
    assert_eq!(kit::get(cache, "k").await, None);
    let loads = Loads::default();
    assert_eq!(kit::load(cache, "k", &loads, 100_u64).await, 100);
    assert_eq!(kit::load(cache, "k", &loads, 101_u64).await, 100);
    assert_eq!(loads.count(), 1);
    kit::set(cache, "k", 102_u64).await;
    assert_eq!(kit::get(cache, "k").await, Some(102));
    if stack.remote.is_some() {
        let peer = stack.peer().named::<u64>(cache.name(), cache.policy());
        assert_eq!(kit::get(&peer, "k").await, Some(102));
    }
    let stats = cache.stats();
    assert_eq!((stats.flights, stats.pending), (0, 0));
    let asked = lookups(cache, Verb::Get) + lookups(cache, Verb::GetOrSet);
    assert_eq!(stats.lookups(), asked, "each look-up counts once, however it ended");
}

#[tokio::test]
async fn a_dropped_get() {
    for stack in lazy() {
        for times in 0..POLLS {
            let cache = stack.plain::<u64>();
            if stack.remote.is_some() {
                kit::set(&stack.peer().named::<u64>(cache.name(), cache.policy()), "k", 1_u64).await;
            }
            let ended = leave_after(cache.get("k"), times).await;
            works(&stack, &cache).await;
            if ended {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_dropped_get_or_set() {
    for stack in lazy() {
        for times in 0..POLLS {
            let cache = stack.plain::<u64>();
            let load = || async {
                tokio::task::yield_now().await;
                ok(1_u64)
            };
            let ended = leave_after(cache.get_or_set("k", load), times).await;
            calm(&stack, &cache).await;
            let found = kit::get(&cache, "k").await;
            assert!(found.is_none() || found == Some(1));
            works(&stack, &cache).await;
            if ended {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_dropped_set() {
    for stack in lazy() {
        for times in 0..POLLS {
            let cache = stack.plain::<u64>();
            kit::set(&cache, "k", 1_u64).await;
            let sent = stack.remote.as_ref().map_or(0, |r| r.hooks.count("put"));
            let ended = leave_after(cache.set("k", 2_u64), times).await;
            // Between dropped and told: the level may hold either.
            let sent = stack.remote.as_ref().is_some_and(|r| r.hooks.count("put") > sent);
            let found = kit::get(&cache, "k").await;
            let possible: &[_] = if ended {
                &[Some(2)]
            } else if sent {
                &[None, Some(2)]
            } else {
                &[Some(1)]
            };
            assert!(possible.contains(&found), "{found:?} after {times} polls, sent: {sent}");
            calm(&stack, &cache).await;
            let found = kit::get(&cache, "k").await;
            assert!(possible.contains(&found), "later {found:?} after {times} polls, sent: {sent}");
            if stack.remote.is_some() {
                let peer = stack.peer().named::<u64>(cache.name(), cache.policy());
                assert_eq!(kit::get(&peer, "k").await, found, "levels agree");
            }
            works(&stack, &cache).await;
            if ended {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_dropped_invalidation() {
    for stack in lazy() {
        for times in 0..POLLS {
            let cache = stack.plain::<u64>();
            kit::set(&cache, "k", 1_u64).await;
            let ended = leave_after(cache.invalidate("k"), times).await;
            calm(&stack, &cache).await;
            let found = kit::get(&cache, "k").await;
            if stack.remote.is_some() {
                let peer = stack.peer().named::<u64>(cache.name(), cache.policy());
                assert_eq!(kit::get(&peer, "k").await, found, "levels agree");
            }
            assert!(!ended || found.is_none());
            works(&stack, &cache).await;
            if ended {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_dropped_clear() {
    for stack in lazy() {
        for times in 0..POLLS {
            let cache = stack.plain::<u64>();
            kit::set(&cache, "k", 1_u64).await;
            let ended = leave_after(cache.clear(), times).await;
            calm(&stack, &cache).await;
            assert!(!ended || kit::get(&cache, "k").await.is_none());
            works(&stack, &cache).await;
            if ended {
                break;
            }
        }
    }
}

#[tokio::test]
async fn dropped_batches() {
    for stack in lazy() {
        for times in 0..POLLS {
            let cache = stack.plain::<u64>();
            let load = |(), ids: Vec<String>| async move {
                tokio::task::yield_now().await;
                ok(ids.into_iter().map(|id| (id, 1_u64)).collect::<Vec<_>>())
            };
            let mut ended = leave_after(cache.get_or_set_many(["k", "l"], &(), load), times).await;
            ended &= leave_after(cache.get_many(["k", "l", "m"]), times).await;
            ended &= leave_after(cache.set_many([("k", 2_u64), ("l", 2)]), times).await;
            ended &= leave_after(cache.invalidate_many(["k", "l"]), times).await;
            calm(&stack, &cache).await;
            let looked: u64 = cache.stats().lookups();
            assert!(looked == 5 || times == 0, "{looked} of 5 keys, after {times} polls");
            kit::invalidate(&cache, "k").await;
            assert_eq!(kit::load(&cache, "k", &Loads::default(), 3_u64).await, 3);
            assert_eq!(kit::get(&cache, "k").await, Some(3));
            if ended {
                break;
            }
        }
    }
}

/// A table in a map; writing takes a while.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<Option<u64>>>);

impl Source<String, u64> for Table {
    async fn load(&self, _: &String) -> Result<Loaded<u64>, BoxError> {
        Ok((*self.0.lock().unwrap()).into())
    }

    async fn save(&self, _: &String, value: &u64) -> Result<(), BoxError> {
        tokio::task::yield_now().await;
        *self.0.lock().unwrap() = Some(*value);
        tokio::task::yield_now().await;
        Ok(())
    }
}

#[tokio::test]
async fn a_dropped_save_goes_on() {
    for stack in lazy() {
        for times in 0..POLLS {
            let cache = stack.cache::<u64>(Policy::ttl(100 * S));
            let table = Table::default();
            let sourced = cache.with_source::<String, _>(table.clone());
            kit::set(&cache, "k", 1_u64).await;
            let ended = leave_after(sourced.save("k", 2_u64), times).await;
            if times > 0 {
                kit::until(|| *table.0.lock().unwrap() == Some(2)).await;
                // It ends: the next writer of the key gets its turn after it.
                assert!(kit::patient(sourced.save("k", 3_u64)).await.unwrap().is_confirmed());
                assert_eq!(kit::get(&cache, "k").await, Some(3));
                assert_eq!(*table.0.lock().unwrap(), Some(3));
            }
            works(&stack, &cache).await;
            if ended {
                break;
            }
        }
    }
}

/// Of two remote levels, the nearer one is asked for its lease before the deeper one is read.
#[tokio::test]
async fn who_leaves_while_a_lease_is_on_its_way_leaves_none_behind() {
    let (clock, time) = Clock::manual();
    let store = Arc::new(MapProvider::new().leasing().clock(clock.clone()));
    let near = Arc::new(Chaos::new(Arc::clone(&store)).clock(clock.clone()));
    let cache: TracedCache<u64> = TracedCache::builder("left")
        .level(stacks::level(Arc::clone(&near)))
        .level(stacks::level(MapProvider::new().leasing().clock(clock.clone())))
        .clock(clock)
        .policy(Policy::ttl(100 * S))
        .build()
        .unwrap();
    // The levels' marks are known then.
    assert_eq!(kit::get(&cache, "other").await, None);
    near.set(ChaosOp::Acquire, Fault::DelayReply(S / 10));
    let mut call = Box::pin(cache.get("k"));
    kit::until(|| {
        let answered = call.as_mut().now_or_never();
        assert!(answered.is_none(), "{answered:?}");
        store.is_leased("left:k")
    })
    .await;
    drop(call);
    time.advance(S / 10);
    kit::until(|| !store.is_leased("left:k")).await;
}
