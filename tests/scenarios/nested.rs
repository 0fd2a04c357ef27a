//! X8 and X10: loaders that call a cache, and circles of them.

use std::{collections::HashMap, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use traced_cache::{Error, ErrorKind, Memory, Policy, Result, TracedCache, ok};

use crate::{
    hooks::Gate,
    kit::{self, Loads, S},
    stacks,
};

type Caches = Arc<Vec<TracedCache<u64>>>;

/// Loads the first key; its loader loads the second, and so on; the last answers 1.
fn chain(
    caches: Caches,
    path: Vec<(usize, &'static str)>,
    loads: Loads,
) -> BoxFuture<'static, Result<Arc<u64>>> {
    async move {
        let Some((&(cache, key), rest)) = path.split_first() else { return Ok(Arc::new(1)) };
        let (theirs, rest) = (Arc::clone(&caches), rest.to_vec());
        let load = move || {
            loads.add();
            chain(theirs, rest, loads)
        };
        caches[cache].get_or_set(key, load).await
    }
    .boxed()
}

#[tokio::test]
async fn x8_a_loader_may_load_other_keys() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let loads = Loads::default();
        let path = vec![(0, "a"), (0, "b"), (0, "c")];
        assert_eq!(
            *kit::patient(chain(Arc::new(vec![cache.clone()]), path, loads.clone())).await.unwrap(),
            1
        );
        assert_eq!(loads.count(), 3);
        for key in ["a", "b", "c"] {
            assert_eq!(kit::get(&cache, key).await, Some(1));
        }
    }
}

/// Where it has taken a lease, the update would wait for that.
#[tokio::test]
async fn x8_a_loader_that_updates_its_own_key_does_not_wait_for_itself() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let inner = cache.clone();
        let load = move || async move {
            let change = |(), _, seen: Option<Arc<u64>>| async move { ok(seen.map_or(7, |seen| *seen)) };
            match inner.update("k", &(), change).await {
                Ok(updated) => assert_eq!(*updated.value, 7),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Cycle),
            }
            ok(1)
        };
        assert_eq!(*kit::patient(cache.get_or_set("k", load)).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn x8_a_bound_on_loads_does_not_lock_nested_ones_out() {
    for stack in stacks::all() {
        let cache = stack.cache::<u64>(Policy::ttl(100 * S).loads(1));
        let path = vec![(0, "a"), (0, "b"), (0, "c")];
        let nested = chain(Arc::new(vec![cache.clone()]), path, Loads::default());
        assert_eq!(*kit::patient(nested).await.unwrap(), 1);
        // The inner load may have been asked for by somebody else, and be waiting for its turn.
        let gate = Gate::new();
        let outer = tokio::spawn({
            let (cache, gate) = (cache.clone(), Arc::clone(&gate));
            async move {
                let inner = cache.clone();
                let load = || async move {
                    gate.pass().await;
                    inner.get_or_set("inner", || async { ok(2_u64) }).await
                };
                cache.get_or_set("outer", load).await
            }
        });
        gate.reached().await;
        let other = tokio::spawn({
            let cache = cache.clone();
            async move { cache.get_or_set("inner", || async { ok(3_u64) }).await }
        });
        kit::until(|| cache.stats().flights == 2).await;
        gate.open();
        assert_eq!(*kit::patient(outer).await.unwrap().unwrap(), 3);
        assert_eq!(*kit::patient(other).await.unwrap().unwrap(), 3);
    }
}

#[tokio::test]
async fn x10_a_circle_of_loaders_is_an_error() {
    for stack in stacks::all() {
        for path in [
            vec![(0, "a"), (0, "a")],
            vec![(0, "a"), (0, "b"), (0, "a")],
            vec![(0, "a"), (0, "b"), (0, "c"), (0, "a")],
            vec![(0, "x"), (0, "a"), (0, "b"), (0, "a")],
            vec![(0, "a"), (1, "a"), (0, "a")],
            vec![(0, "a"), (1, "b"), (0, "c"), (1, "b")],
        ] {
            let caches = Arc::new(vec![stack.plain::<u64>(), stack.plain::<u64>()]);
            let error =
                kit::patient(chain(Arc::clone(&caches), path.clone(), Loads::default())).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cycle, "{path:?}: {error}");
            for cache in &*caches {
                kit::until(|| cache.stats().flights == 0).await;
                assert_eq!(kit::load(cache, "a", &Loads::default(), 5_u64).await, 5, "the keys are free");
            }
        }
    }
}

#[tokio::test]
async fn x10_two_tasks_that_need_each_other() {
    for stack in stacks::all() {
        // With a fallback in one of the loaders, and without.
        for fallback in [true, false] {
            let caches = Arc::new(vec![stack.plain::<u64>(), stack.plain::<u64>()]);
            let gate = Gate::new();
            let task = |at: usize| {
                let (caches, gate) = (Arc::clone(&caches), Arc::clone(&gate));
                tokio::spawn(async move {
                    let inner = Arc::clone(&caches);
                    let load = move || async move {
                        gate.pass().await;
                        let other = inner[1 - at].get_or_set("k", || async { ok(7_u64) }).await;
                        match other {
                            Err(error) if fallback && error.kind() == ErrorKind::Cycle => Ok(Arc::new(9)),
                            other => other,
                        }
                    };
                    caches[at].get_or_set("k", load).await
                })
            };
            let tasks = [task(0), task(1)];
            gate.reached().await;
            gate.reached().await;
            gate.open_wide();
            let mut ended = Vec::new();
            for task in tasks {
                ended.push(kit::patient(task).await.unwrap());
            }
            if fallback {
                assert!(ended.iter().all(|end| end.as_ref().is_ok_and(|value| **value == 9)), "{ended:?}");
            } else {
                let cycles =
                    ended.iter().filter(|end| end.as_ref().is_err_and(|e| e.kind() == ErrorKind::Cycle));
                assert!(cycles.count() >= 1, "{ended:?}");
            }
            assert!(caches.iter().all(|cache| cache.stats().flights == 0));
        }
    }
}

#[tokio::test]
async fn x10_through_batches() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        // A batch whose loader asks for one of its own keys.
        let load = |cache: TracedCache<u64>, ids: Vec<u64>| async move {
            let one = cache.get_or_set(2_u64, || async { ok(0_u64) }).await?;
            Ok::<_, Error>(ids.into_iter().map(|id| (id, Arc::clone(&one))).collect::<Vec<_>>())
        };
        let error = kit::patient(cache.get_or_set_many([1_u64, 2], &cache.clone(), load)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cycle);
        // A single load whose loader asks for a batch with its own key in it.
        let load = |cache: TracedCache<u64>, _| async move {
            let all = |(), ids: Vec<u64>| async move {
                ok(ids.into_iter().map(|id| (id, id)).collect::<HashMap<_, _>>())
            };
            cache.get_or_set_many([4_u64, 3], &(), all).await.map(|_| 0_u64)
        };
        let error = kit::patient(cache.get_or_set_with(3_u64, &cache.clone(), load)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cycle);
        kit::until(|| cache.stats().flights == 0).await;
        for key in 1..=3_u64 {
            assert_eq!(kit::load(&cache, key, &Loads::default(), key).await, key);
        }
    }
}

/// The one whose call it was, and of whose load it failed.
#[tokio::test]
async fn an_error_names_its_cache() {
    let named = |name: &str| TracedCache::<u64>::builder(name).level(Memory::entries(10)).build().unwrap();
    let (orders, users) = (named("orders"), named("users"));
    let inner = users.clone();
    let error = orders
        .get_or_set(1, || async move {
            inner.get_or_set(2, || async { Err::<u64, _>(std::io::Error::other("down")) }).await
        })
        .await
        .unwrap_err();
    assert_eq!((error.kind(), error.cache()), (ErrorKind::Load, Some("orders")));
    let cause = error.load_error::<Error>().unwrap();
    assert_eq!((cause.kind(), cause.cache()), (ErrorKind::Load, Some("users")));
    assert_eq!(
        traced_cache::with_causes(&error),
        "cache `orders`: the load failed: cache `users`: the load failed: down"
    );
    // Before a call is one, and once there is no cache.
    assert_eq!(users.get("").await.unwrap_err().cache(), Some("users"));
    let _ = users.close(S).await;
    assert_eq!(users.get(3).await.unwrap_err().to_string(), "cache `users`: it has been closed");
    let update = users.update(3, &(), |(), _, _| async { ok(Some(1)) }).await;
    assert_eq!(update.unwrap_err().cache(), Some("users"));
}
