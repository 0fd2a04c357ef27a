//! Verbs and access modes that no case of SCENARIOS names by itself.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use traced_cache::{Access, ErrorKind, Loaded, Outcome, Policy, Scope, TracedCache, ok};

use crate::{
    hooks::{At, Gate},
    kit::{self, Down, Loads, S},
    stacks::{self, Stack},
};

async fn elsewhere(stack: &Stack, cache: &TracedCache<u64>, key: &str) -> Option<u64> {
    match &stack.remote {
        Some(_) => kit::get(&stack.peer().named::<u64>(cache.name(), cache.policy()), key).await,
        None => kit::get(cache, key).await,
    }
}

#[tokio::test]
async fn cache_only_never_loads() {
    for stack in stacks::all() {
        let cache = stack.cache::<u64>(Policy::ttl(100 * S).grace(1_000 * S).revalidate(500 * S));
        let only = cache.access(Access::CacheOnly);
        let loads = Loads::default();
        assert_eq!(kit::look(&only, "k", &loads, 1_u64).await.outcome(), Outcome::Miss);
        kit::set(&cache, "k", 1_u64).await;
        assert_eq!(kit::load(&only, "k", &loads, 2_u64).await, 1);
        stack.time.advance(150 * S);
        assert_eq!(kit::look(&only, "k", &loads, 2_u64).await.outcome(), Outcome::Miss);
        let state = loads.clone();
        let load = |loads: Loads, ids: Vec<String>| async move {
            loads.add();
            ok(ids.into_iter().map(|id| (id, 3_u64)).collect::<Vec<_>>())
        };
        assert_eq!(only.get_or_set_many(["k", "l"], &state, load).await.unwrap(), [None, None]);
        kit::settle().await;
        assert_eq!(loads.count(), 0);
    }
}

#[tokio::test]
async fn allow_stale_takes_what_is_there() {
    for stack in stacks::all() {
        let cache = stack.cache::<u64>(Policy::ttl(100 * S).grace(1_000 * S));
        let stale = cache.access(Access::AllowStale);
        let loads = Loads::default();
        assert_eq!(kit::load(&stale, "k", &loads, 1_u64).await, 1);
        stack.time.advance(999 * S);
        for _ in 0..2 {
            let found = kit::look(&stale, "k", &loads, 2_u64).await;
            assert_eq!((found.outcome(), found.age()), (Outcome::Stale, 999 * S));
            assert_eq!(kit::outcome(&stale, "k").await, Outcome::Stale);
            assert_eq!(stale.get_many(["k"]).await.unwrap(), [Some(1.into())]);
            assert_eq!(kit::outcome(&cache, "k").await, Outcome::Miss, "others are not affected");
        }
        assert_eq!(loads.count(), 1);
        stack.time.advance(S);
        assert_eq!(kit::outcome(&stale, "k").await, Outcome::Miss, "not past the maximum age");
        assert_eq!(kit::load(&stale, "k", &loads, 2_u64).await, 2);
    }
}

#[tokio::test]
async fn reload_does_not_read_and_stores() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let reload = cache.access(Access::Reload);
        kit::set(&cache, "k", 1_u64).await;
        let loads = Loads::default();
        assert_eq!(kit::load(&reload, "k", &loads, 2_u64).await, 2);
        assert_eq!((kit::get(&cache, "k").await, elsewhere(&stack, &cache, "k").await), (Some(2), Some(2)));
        assert_eq!(kit::get(&reload, "k").await, None);
        let load = |(), ids: Vec<String>| async move {
            ok(ids.into_iter().map(|id| (id, 3_u64)).collect::<Vec<_>>())
        };
        assert_eq!(reload.get_or_set_many(["k"], &(), load).await.unwrap(), [Some(3.into())]);
        assert_eq!(elsewhere(&stack, &cache, "k").await, Some(3));
        // On a node that has not asked the level before, too.
        let cold = stack.cache::<u64>(Policy::ttl(100 * S));
        kit::load(&cold.access(Access::Reload), "k", &loads, 4_u64).await;
        assert_eq!(elsewhere(&stack, &cold, "k").await, Some(4));
        // A reload that fails leaves what is there.
        assert!(kit::fail(&reload, "k", &loads).await.is_err());
        assert_eq!(kit::get(&cache, "k").await, Some(3));
    }
}

#[tokio::test]
async fn bypass_neither_reads_nor_stores() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let bypass = cache.access(Access::Bypass);
        kit::set(&cache, "k", 1_u64).await;
        let loads = Loads::default();
        assert_eq!(kit::load(&bypass, "k", &loads, 2_u64).await, 2);
        assert_eq!(kit::load(&bypass, "new", &loads, 2_u64).await, 2);
        assert_eq!(loads.count(), 2);
        assert_eq!((kit::get(&cache, "k").await, elsewhere(&stack, &cache, "k").await), (Some(1), Some(1)));
        assert_eq!(kit::get(&cache, "new").await, None);
        assert_eq!(kit::get(&bypass, "k").await, None);
    }
}

#[tokio::test]
async fn do_not_store_answers_and_leaves_the_levels_alone() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let load = |(), _| async { ok(Loaded::do_not_store(Some(5_u64))) };
        let found = cache.look_or_set_with("k", &(), load).await.unwrap();
        assert_eq!((found.outcome(), found.value().map(|v| **v)), (Outcome::Loaded, Some(5)));
        assert_eq!(kit::get(&cache, "k").await, None);
        kit::set(&cache, "k", 1_u64).await;
        cache.refresh("k", &(), load).await.unwrap();
        assert_eq!(kit::get(&cache, "k").await, Some(1));
    }
}

#[tokio::test]
async fn a_set_takes_no_loaders_answers() {
    for stack in stacks::local() {
        let cache = stack.plain::<u64>();
        kit::set(&cache, "k", 1_u64).await;
        for odd in [Loaded::unchanged(), Loaded::do_not_store(Some(2_u64)), Loaded::failed(Down(1))] {
            assert_eq!(cache.set_loaded("k", odd).await.unwrap_err().kind(), ErrorKind::Config);
        }
        assert_eq!(kit::get(&cache, "k").await, Some(1));
        let absent = Loaded::absent().ttl(10 * S);
        assert!(cache.set_loaded("k", absent).await.unwrap().is_confirmed());
        assert_eq!(kit::outcome(&cache, "k").await, Outcome::Absent);
    }
}

#[tokio::test]
async fn unchanged_begins_a_new_life() {
    for stack in stacks::all() {
        let cache = stack.cache::<u64>(Policy::ttl(100 * S).grace(1_000 * S));
        let first = Loaded::value(1_u64).etag("v1");
        assert!(cache.set_loaded("k", first).await.unwrap().is_confirmed());
        for _ in 0..3 {
            stack.time.advance(100 * S);
            let load = |(), _, held: Option<traced_cache::Held<u64>>| async move {
                let held = held.unwrap();
                assert_eq!((held.etag(), **held.value(), held.age()), (Some("v1"), 1, 100 * S));
                ok(Loaded::unchanged())
            };
            assert_eq!(cache.get_or_set_if_changed("k", &(), load).await.unwrap(), Some(1.into()));
            assert_eq!(cache.look("k").await.unwrap().age(), Duration::ZERO);
            assert_eq!(elsewhere(&stack, &cache, "k").await, Some(1));
        }
        // Without a value it is a failure.
        let load = |(), _, _| async { ok(Loaded::unchanged()) };
        let error = cache.get_or_set_if_changed("never", &(), load).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Load);
    }
}

#[tokio::test]
async fn a_refresh_loads_whatever_is_held() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        kit::set(&cache, "k", 1_u64).await;
        let fresh = cache.refresh("k", &(), |(), _| async { ok(2_u64) }).await.unwrap();
        assert_eq!(*fresh, 2);
        assert_eq!((kit::get(&cache, "k").await, elsewhere(&stack, &cache, "k").await), (Some(2), Some(2)));
        let cold = stack.plain::<u64>();
        cold.refresh("k", &(), |(), _| async { ok(2_u64) }).await.unwrap();
        assert_eq!(
            elsewhere(&stack, &cold, "k").await,
            Some(2),
            "of a node that has not asked the level before"
        );
        let failed = cache.refresh("k", &(), |(), _| async { Err::<u64, _>(Down(4)) }).await.unwrap_err();
        assert_eq!(failed.load_error::<Down>(), Some(&Down(4)));
        assert_eq!(kit::get(&cache, "k").await, Some(2));
    }
}

#[tokio::test]
async fn warming_loads_what_is_missing_and_tells_what_failed() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        kit::set(&cache, 3_u64, 33_u64).await;
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let state = (Arc::clone(&running), Arc::clone(&most));
        let load = |(running, most): (Arc<AtomicUsize>, Arc<AtomicUsize>), key: u64| async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            running.fetch_sub(1, Ordering::SeqCst);
            if key == 7 { Err(Down(7)) } else { Ok(key) }
        };
        let warmed = kit::patient(cache.warm(0..20_u64, 4, &state, load)).await;
        assert_eq!(warmed.warmed, 19);
        assert_eq!(warmed.failed.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [7]);
        assert!(most.load(Ordering::SeqCst) <= 4);
        assert_eq!(cache.stats().loads, 19);
        for key in 0..20_u64 {
            let expected = [None, Some(33), Some(key)][if key == 7 {
                0
            } else if key == 3 {
                1
            } else {
                2
            }];
            assert_eq!(kit::get(&cache, key).await, expected);
        }
        let rows = futures::stream::iter((0..20_u64).map(|key| (key, key * 2)));
        let warmed = kit::patient(cache.warm_from(rows, 4)).await;
        assert_eq!((warmed.warmed, warmed.failed.len()), (20, 0));
        assert_eq!(kit::get(&cache, 7_u64).await, Some(14));
        if stack.remote.is_some() {
            assert_eq!(elsewhere(&stack, &cache, "19").await, Some(38));
        }
    }
}

#[tokio::test]
async fn a_closed_cache_refuses_every_verb() {
    use ErrorKind::Closed;
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        kit::set(&cache, "k", 1_u64).await;
        let closed = kit::patient(cache.close(S)).await;
        assert!(closed.is_drained() && closed.undelivered().is_empty());
        let loads = Loads::default();
        let none = |(), _: Vec<String>| async { Ok::<Vec<(String, u64)>, Infallible>(Vec::new()) };
        assert_eq!(cache.get("k").await.unwrap_err().kind(), Closed);
        assert_eq!(cache.look("k").await.unwrap_err().kind(), Closed);
        assert_eq!(cache.get_many(["k"]).await.unwrap_err().kind(), Closed);
        assert_eq!(kit::fail(&cache, "k", &loads).await.unwrap_err().kind(), Closed);
        assert_eq!(cache.get_or_set_many(["k"], &(), none).await.unwrap_err().kind(), Closed);
        assert_eq!(cache.set("k", 2_u64).await.unwrap_err().kind(), Closed);
        assert_eq!(cache.set_many([("k", 2_u64)]).await.unwrap_err().kind(), Closed);
        assert_eq!(cache.invalidate("k").await.unwrap_err().kind(), Closed);
        assert_eq!(cache.invalidate_many(["k"]).await.unwrap_err().kind(), Closed);
        assert_eq!(cache.clear().await.unwrap_err().kind(), Closed);
        assert_eq!(loads.count(), 0);
        if stack.remote.is_some() {
            assert_eq!(elsewhere(&stack, &cache, "k").await, Some(1), "the store keeps its entries");
        }
        // Once more is fine.
        assert!(kit::patient(cache.close(S)).await.is_drained());
    }
}

#[tokio::test]
async fn closing_waits_for_loads_then_aborts_them() {
    for stack in stacks::all() {
        for in_time in [true, false] {
            let cache = stack.plain::<u64>();
            let gate = Gate::new();
            let caller = tokio::spawn({
                let (cache, gate) = (cache.clone(), Arc::clone(&gate));
                async move {
                    let load = |gate: Arc<Gate>, _| async move {
                        gate.pass().await;
                        ok(1_u64)
                    };
                    cache.get_or_set_with("k", &gate, load).await
                }
            });
            gate.reached().await;
            let closing = kit::closing(&cache).await;
            assert!(!closing.is_finished());
            let late = kit::fail(&cache, "late", &Loads::default()).await.unwrap_err();
            assert_eq!(late.kind(), ErrorKind::Closed, "no new calls meanwhile");
            if in_time {
                gate.open();
                assert!(kit::patient(closing).await.unwrap().is_drained());
                assert_eq!(*kit::patient(caller).await.unwrap().unwrap(), 1);
            } else {
                stack.time.advance(5 * S);
                assert!(!kit::patient(closing).await.unwrap().is_drained());
                let error = kit::patient(caller).await.unwrap().unwrap_err();
                assert!(matches!(error.kind(), ErrorKind::LoadAborted | ErrorKind::Closed), "{error}");
            }
            assert_eq!(cache.stats().flights, 0);
            if stack.remote.is_some() {
                assert_eq!(elsewhere(&stack, &cache, "k").await, in_time.then_some(1));
            }
        }
    }
}

#[tokio::test]
async fn an_update_that_closing_cuts_short_is_told_so() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let gate = Gate::new();
        let updating = tokio::spawn({
            let (cache, gate) = (cache.clone(), Arc::clone(&gate));
            async move {
                let change = |gate: Arc<Gate>, _, _| async move {
                    gate.pass().await;
                    ok(1_u64)
                };
                cache.update("k", &gate, change).await
            }
        });
        gate.reached().await;
        assert!(!kit::close_under(&stack.time, &cache).await.is_drained());
        assert_eq!(kit::patient(updating).await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
        assert!(cache.stats().errors.contains(&(ErrorKind::Closed, 1)), "and it is counted");
    }
}

#[tokio::test]
async fn closing_reports_what_a_level_has_not_heard() {
    for stack in stacks::layered().chain([stacks::mapped()]) {
        let cache = stack.plain::<u64>();
        kit::set(&cache, "k", 1_u64).await;
        stack.hooks().down(true);
        assert!(!kit::patient(cache.invalidate("k")).await.unwrap().is_confirmed());
        assert_eq!(kit::get(&cache, "k").await, None);
        let closed = kit::close_under(&stack.time, &cache).await;
        assert_eq!(closed.undelivered().len(), 1);
        let left = &closed.undelivered()[0];
        assert_eq!((left.level, left.scope, left.name.as_deref()), (Some(1), Scope::Key, Some("k")));
        assert!(!format!("{closed:?}").contains("\"k\""), "keys stay out of Debug");
    }
}

#[tokio::test]
async fn closing_waits_for_writes_in_their_callers_hands() {
    for stack in stacks::layered().chain([stacks::mapped()]) {
        let cache = stack.plain::<u64>();
        kit::set(&cache, "other", 1_u64).await;
        let gate = stack.hooks().hold(At::BeforePut);
        let setting = tokio::spawn({
            let cache = cache.clone();
            async move { cache.set("k", 1_u64).await }
        });
        gate.reached().await;
        let closing = kit::closing(&cache).await;
        assert!(!closing.is_finished());
        gate.open();
        assert!(kit::patient(setting).await.unwrap().unwrap().is_confirmed());
        assert!(kit::patient(closing).await.unwrap().is_drained());
        assert_eq!(elsewhere(&stack, &cache, "k").await, Some(1));
    }
}

#[tokio::test]
async fn nothing_is_stored_after_close_has_returned() {
    // A set whose caller is still at it while the cache is closed.
    for stack in stacks::layered().chain([stacks::mapped()]) {
        let cache = stack.plain::<u64>();
        kit::set(&cache, "other", 1_u64).await;
        let gate = stack.hooks().hold(At::BeforePut);
        let setting = tokio::spawn({
            let cache = cache.clone();
            async move { cache.set("k", 1_u64).await }
        });
        gate.reached().await;
        let closing = kit::closing(&cache).await;
        stack.time.advance(5 * S);
        let before = stack.hooks().calls().len();
        kit::settle().await;
        let returned = closing.is_finished();
        gate.open();
        let answer = kit::patient(setting).await.unwrap();
        let _ = kit::patient(closing).await.unwrap();
        assert!(!returned || answer.is_err(), "either it was waited for, or it was refused: {answer:?}");
        kit::until(|| cache.stats().levels[0].entries == Some(0)).await;
        assert!(stack.hooks().calls().len() >= before);
    }
}
