//! X: callers who leave, stall or call back.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::poll;
use traced_cache::{ErrorKind, Outcome, Policy, Result, TracedCache, Verb, ok};

use crate::{
    hooks::Gate,
    kit::{self, Down, Loads, MS, Recorder, S},
    stacks::{self, unique},
};

/// Calls of `get_or_set` that have begun so far.
fn begun(cache: &TracedCache<u64>) -> u64 {
    cache.stats().operations.iter().filter(|(verb, _)| *verb == Verb::GetOrSet).map(|(_, n)| *n).sum()
}

/// A caller whose loader stops at the gate, then answers 1.
fn gated(
    cache: &TracedCache<u64>,
    loads: &Loads,
    gate: &Arc<Gate>,
) -> impl Future<Output = Result<Arc<u64>>> + Send + 'static {
    let (cache, state) = (cache.clone(), (loads.clone(), Arc::clone(gate)));
    async move {
        let load = |(loads, gate): (Loads, Arc<Gate>), _| async move {
            loads.add();
            gate.pass().await;
            ok(1_u64)
        };
        cache.get_or_set_with("k", &state, load).await
    }
}

#[tokio::test]
async fn x1_x2_those_who_leave_disturb_nobody() {
    for stack in stacks::all() {
        // The one who stays is the last, the first (who started the load), and one in between.
        for stays in [9, 0, 4] {
            let cache = stack.plain::<u64>();
            let (loads, gate) = (Loads::default(), Gate::new());
            let mut callers = Vec::new();
            for at in 0..10 {
                callers.push(tokio::spawn(gated(&cache, &loads, &gate)));
                if at == 0 {
                    gate.reached().await;
                }
            }
            kit::until(|| begun(&cache) == 10).await;
            kit::settle().await;
            let stayer = callers.remove(stays);
            for leaver in &callers {
                leaver.abort();
            }
            for leaver in callers {
                assert!(leaver.await.unwrap_err().is_cancelled());
            }
            gate.open();
            assert_eq!(*kit::patient(stayer).await.unwrap().unwrap(), 1);
            assert_eq!((loads.count(), kit::get(&cache, "k").await), (1, Some(1)));
            let stats = cache.stats();
            assert_eq!((stats.misses(), stats.coalesced(), stats.flights), (1, 9, 0), "{stats:?}");
        }
    }
}

#[tokio::test]
async fn x2_a_load_goes_on_when_everybody_has_left() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let (loads, gate) = (Loads::default(), Gate::new());
        let caller = tokio::spawn(gated(&cache, &loads, &gate));
        gate.reached().await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        gate.open();
        kit::until(|| cache.stats().flights == 0).await;
        assert_eq!(kit::get(&cache, "k").await, Some(1));
    }
}

#[tokio::test]
async fn x4_a_caller_who_stalls_holds_up_nobody() {
    for stack in stacks::all() {
        for polls in [1, 2, 3, 5] {
            let cache = stack.plain::<u64>();
            let loads = Loads::default();
            let mut stalled = Box::pin(kit::load(&cache, "k", &loads, 1_u64));
            for _ in 0..polls {
                if poll!(&mut stalled).is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            assert_eq!(kit::load(&cache, "k", &loads, 1_u64).await, 1);
            assert_eq!(kit::get(&cache, "k").await, Some(1));
            kit::set(&cache, "k", 2_u64).await;
            kit::invalidate(&cache, "k").await;
            assert_eq!(kit::get(&cache, "k").await, None);
            drop(stalled);
        }
    }
}

#[tokio::test]
async fn x5_of_the_waiters_of_an_aborted_load_one_is_elected() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let (loads, theirs, ours) = (Loads::default(), Gate::new(), Gate::new());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(gated(&cache, &loads, &theirs));
        theirs.reached().await;
        let waiters: Vec<_> = (0..5).map(|_| tokio::spawn(gated(&cache, &loads, &ours))).collect();
        kit::until(|| begun(&cache) == 6).await;
        kit::settle().await;
        runtime.shutdown_background();
        // The lease of the one that was aborted is not waited for.
        kit::patient(ours.reached()).await;
        ours.open();
        for waiter in waiters {
            assert_eq!(*kit::patient(waiter).await.unwrap().unwrap(), 1);
        }
        assert_eq!((loads.count(), cache.stats().flights), (2, 0));
    }
}

#[tokio::test]
async fn x5_a_batch_whose_task_is_aborted_frees_all_its_keys() {
    for stack in stacks::local() {
        let cache = stack.plain::<u64>();
        let gate = Gate::new();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (theirs, at) = (cache.clone(), Arc::clone(&gate));
        runtime.spawn(async move {
            let load = |gate: Arc<Gate>, _: Vec<u64>| async move {
                gate.pass().await;
                Ok::<Vec<(u64, u64)>, Infallible>(Vec::new())
            };
            theirs.get_or_set_many([1_u64, 2, 3], &at, load).await
        });
        gate.reached().await;
        runtime.shutdown_background();
        kit::until(|| cache.stats().flights == 0).await;
        for key in 1..=3_u64 {
            assert_eq!(kit::load(&cache, key, &Loads::default(), key).await, key);
        }
    }
}

#[tokio::test]
async fn a_loader_that_panics_gives_an_error_and_frees_the_key() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let boom = || async { if true { panic!("on purpose") } else { ok(1_u64) } };
        assert_eq!(cache.get_or_set("k", boom).await.unwrap_err().kind(), ErrorKind::LoadPanicked);
        let batch =
            |(), _: Vec<u64>| async { if true { panic!("on purpose") } else { ok(vec![(1_u64, 1_u64)]) } };
        let error = cache.get_or_set_many([1_u64, 2], &(), batch).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LoadPanicked);
        assert_eq!(kit::load(&cache, "k", &Loads::default(), 2_u64).await, 2);
        assert_eq!(kit::load(&cache, 1_u64, &Loads::default(), 3_u64).await, 3);
        assert_eq!(cache.stats().flights, 0);
        // The panic may come from the closure itself, before there is a future.
        let at_once = || -> futures::future::Ready<Result<u64, Infallible>> { panic!("on purpose") };
        assert_eq!(cache.get_or_set("other", at_once).await.unwrap_err().kind(), ErrorKind::LoadPanicked);
    }
}

#[tokio::test]
async fn x7_a_panic_in_the_background_leaves_the_value() {
    for stack in stacks::all() {
        let events = Recorder::default();
        let policy = Policy::ttl(100 * S).grace(1_000 * S).revalidate(500 * S).throttle(Duration::ZERO);
        let cache: TracedCache<u64> =
            stack.builder(&unique("x7")).policy(policy).observer(events.clone()).build().unwrap();
        kit::set(&cache, "k", 1_u64).await;
        stack.time.advance(150 * S);
        for round in 1..=3 {
            let boom = |(), _| async { if true { panic!("on purpose") } else { ok(2_u64) } };
            let found = kit::patient(cache.look_or_set_with("k", &(), boom)).await.unwrap();
            assert_eq!((found.outcome(), found.value().map(|v| **v)), (Outcome::Stale, Some(1)));
            kit::until(|| cache.stats().flights == 0).await;
            assert_eq!(events.count("load_failed"), round);
        }
        let loads = Loads::default();
        assert_eq!(kit::load(&cache, "k", &loads, 2_u64).await, 1);
        kit::until(|| cache.stats().flights == 0).await;
        assert_eq!(kit::get(&cache, "k").await, Some(2));
    }
}

#[tokio::test]
async fn x11_a_caller_with_a_deadline_leaves_and_the_load_goes_on() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let (loads, gate) = (Loads::default(), Gate::new());
        let caller = tokio::spawn({
            let (clock, call) = (stack.clock.clone(), gated(&cache, &loads, &gate));
            async move { clock.timeout(200 * MS, call).await }
        });
        gate.reached().await;
        stack.time.advance(199 * MS);
        kit::settle().await;
        assert!(!caller.is_finished());
        stack.time.advance(MS);
        assert!(kit::patient(caller).await.unwrap().is_none());
        gate.open();
        kit::until(|| cache.stats().flights == 0).await;
        assert_eq!(kit::get(&cache, "k").await, Some(1));
    }
}

#[tokio::test]
async fn x13_callers_with_other_error_types_share_a_load() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let gate = Gate::new();
        let lead = tokio::spawn({
            let (cache, gate) = (cache.clone(), Arc::clone(&gate));
            async move {
                let load = || async move {
                    gate.pass().await;
                    Err::<u64, _>(Down(3))
                };
                cache.get_or_set("k", load).await
            }
        });
        gate.reached().await;
        let other = tokio::spawn({
            let cache = cache.clone();
            async move {
                cache.get_or_set("k", || async { Err::<Option<u64>, _>(io::Error::other("never run")) }).await
            }
        });
        let third = tokio::spawn({
            let cache = cache.clone();
            async move { cache.get_or_set("k", || async { ok(Arc::new(1_u64)) }).await }
        });
        kit::until(|| begun(&cache) == 3).await;
        kit::settle().await;
        gate.open();
        let errors = [
            kit::patient(lead).await.unwrap().unwrap_err(),
            kit::patient(other).await.unwrap().unwrap_err(),
            kit::patient(third).await.unwrap().unwrap_err(),
        ];
        for error in errors {
            assert_eq!((error.kind(), error.load_error::<Down>()), (ErrorKind::Load, Some(&Down(3))));
        }
        assert_eq!((cache.stats().loads, cache.stats().coalesced()), (1, 2));
    }
}

#[tokio::test]
async fn s2_loads_of_other_keys_overlap() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let gate = Gate::new();
        let tasks: Vec<_> = (0..20_u64)
            .map(|key| {
                let (cache, gate) = (cache.clone(), Arc::clone(&gate));
                tokio::spawn(async move {
                    let load = |gate: Arc<Gate>, key| async move {
                        gate.pass().await;
                        ok(key)
                    };
                    cache.get_or_set_with(key, &gate, load).await
                })
            })
            .collect();
        for _ in 0..20 {
            gate.reached().await;
        }
        gate.open_wide();
        for (key, task) in (0_u64..).zip(tasks) {
            assert_eq!(*kit::patient(task).await.unwrap().unwrap(), key);
        }
    }
}

#[tokio::test]
async fn s4_s5_waiters_share_the_error_and_the_next_caller_loads_anew() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let (gate, started) = (Gate::new(), Arc::new(Mutex::new(0_u32)));
        let call = || {
            let (cache, state) = (cache.clone(), (Arc::clone(&gate), Arc::clone(&started)));
            tokio::spawn(async move {
                let load = |(gate, started): (Arc<Gate>, Arc<Mutex<u32>>), _| async move {
                    let number = {
                        let mut started = started.lock().unwrap();
                        *started += 1;
                        *started
                    };
                    gate.pass().await;
                    Err::<u64, _>(Down(number))
                };
                cache.get_or_set_with("k", &state, load).await
            })
        };
        let mut callers = vec![call()];
        gate.reached().await;
        callers.extend((0..99).map(|_| call()));
        kit::until(|| begun(&cache) == 100).await;
        kit::settle().await;
        gate.open_wide();
        for caller in callers {
            let error = kit::patient(caller).await.unwrap().unwrap_err();
            assert_eq!(error.load_error::<Down>(), Some(&Down(1)));
        }
        assert_eq!(*started.lock().unwrap(), 1);
        let error = kit::patient(call()).await.unwrap().unwrap_err();
        assert_eq!(error.load_error::<Down>(), Some(&Down(2)));
    }
}

#[tokio::test]
async fn calls_for_borrowed_keys_run_on_tasks_of_their_own() {
    const KEYS: [&str; 2] = ["a", "b"];
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let task = tokio::spawn(async move {
            let one = |(), _: String| async { ok(1_u64) };
            let all = |(), keys: Vec<String>| async move { ok(keys.into_iter().map(|key| (key, 2_u64))) };
            let loaded = cache.get_or_set_many(KEYS, &(), all).await.unwrap().len();
            let warmed = cache.warm(KEYS, 2, &(), one).await.warmed;
            let written =
                cache.warm_from(futures::stream::iter(KEYS.map(|key| (key, 3_u64))), 2).await.warmed;
            let _ = cache.set_many(KEYS.map(|key| (key, 4_u64))).await.unwrap();
            let held = cache.get_many(KEYS).await.unwrap().len();
            let _ = cache.invalidate_many(KEYS).await.unwrap();
            let _ = cache.invalidate_tags(KEYS).await.unwrap();
            [loaded, warmed, written, held]
        });
        assert_eq!(kit::patient(task).await.unwrap(), [2; 4], "{}", stack.name);
    }
}
