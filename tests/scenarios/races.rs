//! Promise 2 under the worst of timings: each case stops something half-way and lets the rest go on.

use std::{convert::Infallible, sync::Arc};

use traced_cache::{Access, Outcome, Policy, Result, TracedCache, Verb, ok};

use crate::{
    hooks::{At, Gate},
    kit::{self, Loads, S},
    stacks::{self, Stack},
};

/// A load that stops at the gate, then answers `value`.
fn slow_load(
    cache: &TracedCache<u64>,
    gate: &Arc<Gate>,
    value: u64,
) -> tokio::task::JoinHandle<Result<Arc<u64>>> {
    let (cache, gate) = (cache.clone(), Arc::clone(gate));
    tokio::spawn(async move {
        let load = move |gate: Arc<Gate>, _| async move {
            gate.pass().await;
            ok(value)
        };
        cache.get_or_set_with("k", &gate, load).await
    })
}

async fn done(task: tokio::task::JoinHandle<Result<Arc<u64>>>) -> u64 {
    *kit::patient(task).await.unwrap().unwrap()
}

/// What another node reads, where there is one.
pub(crate) async fn elsewhere(stack: &Stack, cache: &TracedCache<u64>) -> Option<u64> {
    match &stack.remote {
        Some(_) => kit::get(&stack.peer().named::<u64>(cache.name(), cache.policy()), "k").await,
        None => kit::get(cache, "k").await,
    }
}

fn both() -> impl Iterator<Item = Stack> {
    stacks::all().chain(stacks::local())
}

pub(crate) fn layered() -> impl Iterator<Item = Stack> {
    stacks::layered().chain([stacks::mapped()])
}

#[tokio::test]
async fn p1_an_invalidation_beats_the_load_that_is_under_way() {
    for stack in both() {
        let cache = stack.plain::<u64>();
        let (old, new) = (Gate::new(), Gate::new());
        let first = slow_load(&cache, &old, 1);
        old.reached().await;
        kit::invalidate(&cache, "k").await;
        // The second caller came after it: a load of its own.
        let second = slow_load(&cache, &new, 2);
        new.reached().await;
        // Whoever ends first.
        old.open();
        assert_eq!(done(first).await, 1, "callers from before may have what they asked for");
        assert_eq!(kit::get(&cache, "k").await, None);
        // Joins the second load, not what is left of the first.
        let third = slow_load(&cache, &Gate::new(), 3);
        kit::settle().await;
        new.open();
        assert_eq!((done(second).await, done(third).await), (2, 2));
        assert_eq!(kit::get(&cache, "k").await, Some(2));
        assert_eq!(elsewhere(&stack, &cache).await, Some(2));
        assert_eq!(cache.stats().overtaken, 1);
    }
}

#[tokio::test]
async fn p1_the_old_load_ends_last_and_stores_nothing() {
    for stack in both() {
        let cache = stack.plain::<u64>();
        let gate = Gate::new();
        let first = slow_load(&cache, &gate, 1);
        gate.reached().await;
        kit::invalidate(&cache, "k").await;
        let loads = Loads::default();
        assert_eq!(kit::load(&cache, "k", &loads, 2_u64).await, 2);
        gate.open();
        assert_eq!(done(first).await, 1);
        assert_eq!(kit::get(&cache, "k").await, Some(2));
        assert_eq!(elsewhere(&stack, &cache).await, Some(2));
    }
}

#[tokio::test]
async fn p1_a_background_refresh_is_beaten_as_well() {
    for stack in both() {
        let cache = stack.cache::<u64>(Policy::ttl(100 * S).grace(1_000 * S).revalidate(500 * S));
        kit::set(&cache, "k", 1_u64).await;
        stack.time.advance(150 * S);
        let gate = Gate::new();
        assert_eq!(done(slow_load(&cache, &gate, 2)).await, 1, "stale at once");
        gate.reached().await;
        kit::invalidate(&cache, "k").await;
        gate.open();
        kit::until(|| cache.stats().flights == 0).await;
        assert_eq!(kit::get(&cache.access(Access::AllowStale), "k").await, None);
        assert_eq!(elsewhere(&stack, &cache).await, None);
    }
}

#[tokio::test]
async fn p2_what_was_read_below_before_an_invalidation_is_not_kept() {
    for stack in layered() {
        let cache = stack.plain::<u64>();
        let peer = stack.peer();
        kit::set(&peer.named::<u64>(cache.name(), cache.policy()), "k", 1_u64).await;
        let gate = stack.hooks().hold(At::AfterGet);
        let reader = tokio::spawn({
            let cache = cache.clone();
            async move { kit::get(&cache, "k").await }
        });
        gate.reached().await;
        kit::invalidate(&cache, "k").await;
        gate.open();
        assert_eq!(kit::patient(reader).await.unwrap(), Some(1), "it began before");
        assert_eq!(kit::get(&cache, "k").await, None);
    }
}

#[tokio::test]
async fn p2_the_same_with_a_set() {
    for stack in layered() {
        let cache = stack.plain::<u64>();
        kit::set(&stack.peer().named::<u64>(cache.name(), cache.policy()), "k", 1_u64).await;
        let gate = stack.hooks().hold(At::AfterGet);
        let reader = tokio::spawn({
            let cache = cache.clone();
            async move { kit::load(&cache, "k", &Loads::default(), 9_u64).await }
        });
        gate.reached().await;
        kit::set(&cache, "k", 2_u64).await;
        gate.open();
        assert_eq!(kit::patient(reader).await.unwrap(), 1);
        assert_eq!(kit::get(&cache, "k").await, Some(2));
    }
}

#[tokio::test]
async fn p3_a_read_while_an_invalidation_is_between_levels() {
    for stack in layered() {
        for at in [At::BeforeRemove, At::AfterRemove] {
            let cache = stack.plain::<u64>();
            kit::set(&cache, "k", 1_u64).await;
            let gate = stack.hooks().hold(at);
            let going = tokio::spawn({
                let cache = cache.clone();
                async move { cache.invalidate("k").await }
            });
            gate.reached().await;
            // It may still see the old value: the invalidation has not answered.
            let seen = kit::get(&cache, "k").await;
            assert!(seen.is_none() || seen == Some(1));
            // A reader that has to go below meanwhile.
            let cold = stack.peer().named::<u64>(cache.name(), cache.policy());
            kit::get(&cold, "k").await;
            gate.open();
            assert!(kit::patient(going).await.unwrap().unwrap().is_confirmed());
            assert_eq!(kit::get(&cache, "k").await, None, "{at:?}");
            assert_eq!(elsewhere(&stack, &cache).await, None, "{at:?}");
        }
    }
}

#[tokio::test]
async fn s13_a_set_beats_the_load_that_is_under_way() {
    for stack in both() {
        let cache = stack.plain::<u64>();
        let gate = Gate::new();
        let loading = slow_load(&cache, &gate, 1);
        gate.reached().await;
        kit::set(&cache, "k", 2_u64).await;
        assert_eq!(kit::get(&cache, "k").await, Some(2));
        gate.open();
        assert_eq!(done(loading).await, 1);
        assert_eq!(kit::get(&cache, "k").await, Some(2));
        assert_eq!(elsewhere(&stack, &cache).await, Some(2));
    }
}

#[tokio::test]
async fn s13_a_load_that_begins_during_a_set_does_not_beat_it() {
    for stack in layered() {
        for at in [At::BeforePut, At::AfterPut] {
            let cache = stack.plain::<u64>();
            kit::set(&cache, "other", 0_u64).await;
            let held = stack.hooks().hold(at);
            let setting = tokio::spawn({
                let cache = cache.clone();
                async move { cache.set("k", 2_u64).await }
            });
            held.reached().await;
            // It may have read the source before what made the caller set the value.
            let gate = Gate::new();
            let loading = slow_load(&cache, &gate, 1);
            kit::settle().await;
            // On "after", the level has the value already and nothing is loaded.
            let starts = tokio::time::timeout(S, gate.reached()).await.is_ok();
            held.open();
            assert!(kit::patient(setting).await.unwrap().unwrap().is_confirmed());
            gate.open_wide();
            let loaded = done(loading).await;
            assert_eq!(loaded, if starts { 1 } else { 2 });
            assert_eq!(kit::get(&cache, "k").await, Some(2), "{at:?}");
            assert_eq!(elsewhere(&stack, &cache).await, Some(2), "{at:?}");
        }
    }
}

#[tokio::test]
async fn an_invalidation_beats_a_batch_that_is_being_loaded() {
    for stack in both() {
        let cache = stack.plain::<u64>();
        let gate = Gate::new();
        let batch = tokio::spawn({
            let (cache, gate) = (cache.clone(), Arc::clone(&gate));
            async move {
                let load = |gate: Arc<Gate>, ids: Vec<String>| async move {
                    gate.pass().await;
                    Ok::<_, Infallible>(ids.into_iter().map(|id| (id, 1_u64)).collect::<Vec<_>>())
                };
                cache.get_or_set_many(["k", "kept", "set"], &gate, load).await
            }
        });
        gate.reached().await;
        kit::invalidate(&cache, "k").await;
        kit::set(&cache, "set", 2_u64).await;
        gate.open();
        assert_eq!(kit::patient(batch).await.unwrap().unwrap().len(), 3);
        assert_eq!(kit::get(&cache, "k").await, None);
        assert_eq!(kit::get(&cache, "kept").await, Some(1));
        assert_eq!(kit::get(&cache, "set").await, Some(2));
        assert_eq!(elsewhere(&stack, &cache).await, None);
        assert_eq!(cache.stats().overtaken, 2);
    }
}

#[tokio::test]
async fn a_clear_beats_loads_and_reads_that_are_under_way() {
    for stack in both() {
        let cache = stack.plain::<u64>();
        kit::set(&cache, "other", 0_u64).await;
        let gate = Gate::new();
        let loading = slow_load(&cache, &gate, 1);
        gate.reached().await;
        assert!(kit::patient(cache.clear()).await.unwrap().is_confirmed());
        gate.open();
        assert_eq!(done(loading).await, 1);
        assert_eq!(kit::get(&cache, "k").await, None);
        assert_eq!(elsewhere(&stack, &cache).await, None);
        assert_eq!(kit::load(&cache, "k", &Loads::default(), 2_u64).await, 2);
        assert_eq!(elsewhere(&stack, &cache).await, Some(2));
    }
    for stack in layered() {
        let cache = stack.plain::<u64>();
        kit::set(&stack.peer().named::<u64>(cache.name(), cache.policy()), "k", 1_u64).await;
        let gate = stack.hooks().hold(At::AfterGet);
        let reader = tokio::spawn({
            let cache = cache.clone();
            async move { kit::get(&cache, "k").await }
        });
        gate.reached().await;
        assert!(kit::patient(cache.clear()).await.unwrap().is_confirmed());
        gate.open();
        let seen = kit::patient(reader).await.unwrap();
        assert!(seen.is_none() || seen == Some(1), "it began before");
        assert_eq!(kit::get(&cache, "k").await, None);
        assert_eq!(elsewhere(&stack, &cache).await, None);
    }
}

#[tokio::test]
async fn a_clear_beats_a_fill_that_is_on_its_way_to_the_level() {
    for stack in layered() {
        for at in [At::BeforePut, At::AfterPut] {
            let cache = stack.plain::<u64>();
            kit::set(&cache, "other", 0_u64).await;
            let gate = stack.hooks().hold(at);
            let loading = tokio::spawn({
                let cache = cache.clone();
                async move { kit::load(&cache, "k", &Loads::default(), 1_u64).await }
            });
            gate.reached().await;
            assert!(kit::patient(cache.clear()).await.unwrap().is_confirmed());
            gate.open();
            assert_eq!(kit::patient(loading).await.unwrap(), 1);
            assert_eq!(kit::get(&cache, "k").await, None, "{at:?}");
            assert_eq!(elsewhere(&stack, &cache).await, None, "{at:?}");
        }
    }
}

#[tokio::test]
async fn a_refresh_joins_and_is_joined() {
    for stack in both() {
        let cache = stack.plain::<u64>();
        kit::set(&cache, "k", 1_u64).await;
        let gate = Gate::new();
        let refresh = tokio::spawn({
            let (cache, gate) = (cache.clone(), Arc::clone(&gate));
            async move {
                let load = |gate: Arc<Gate>, _| async move {
                    gate.pass().await;
                    ok(2_u64)
                };
                cache.refresh("k", &gate, load).await
            }
        });
        gate.reached().await;
        assert_eq!(kit::get(&cache, "k").await, Some(1), "readers have the value meanwhile");
        let second = tokio::spawn({
            let cache = cache.clone();
            async move { cache.refresh("k", &(), |(), _| async { ok(3_u64) }).await }
        });
        kit::until(|| cache.stats().operations.iter().any(|(v, n)| *v == Verb::Refresh && *n == 2)).await;
        kit::settle().await;
        gate.open();
        assert_eq!((done(refresh).await, done(second).await), (2, 2));
        assert_eq!(kit::outcome(&cache, "k").await, Outcome::Hit);
        assert_eq!(elsewhere(&stack, &cache).await, Some(2));
    }
}
