//! M: many keys at once.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use test_servers::MemcachedServer;
use traced_cache::{
    CacheKey, ErrorKind, Loaded, MemcachedProvider, Memory, Outcome, Policy, Result, TracedCache,
};

use crate::{
    hooks::{At, Gate},
    kit::{self, Down, Loads, MS, S},
    stacks::{self, unique},
};

type Asked = Arc<Mutex<Vec<Vec<u64>>>>;

/// Loads `key * 10` for each key asked for, in another order; writes down what was asked.
async fn tenfold(cache: &TracedCache<u64>, keys: &[u64], asked: &Asked) -> Vec<Option<u64>> {
    let found = kit::patient(cache.get_or_set_many(
        keys.iter().copied(),
        asked,
        |asked: Asked, ids: Vec<u64>| async move {
            asked.lock().unwrap().push(ids.clone());
            Ok::<_, Infallible>(ids.into_iter().rev().map(|id| (id, id * 10)).collect::<Vec<_>>())
        },
    ))
    .await
    .unwrap();
    found.into_iter().map(|value| value.map(|v| *v)).collect()
}

async fn get_many<K: CacheKey>(
    cache: &TracedCache<u64>,
    keys: impl IntoIterator<Item = K>,
) -> Vec<Option<u64>> {
    kit::patient(cache.get_many(keys)).await.unwrap().into_iter().map(|v| v.map(|v| *v)).collect()
}

#[tokio::test]
async fn m1_only_what_is_missing_is_loaded_and_the_order_is_kept() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        kit::set(&cache, 1_u64, 100_u64).await;
        kit::set(&cache, 2_u64, 200_u64).await;
        let asked = Asked::default();
        assert_eq!(tenfold(&cache, &[2, 3, 1, 4], &asked).await, [Some(200), Some(30), Some(100), Some(40)]);
        assert_eq!(*asked.lock().unwrap(), [[3, 4]]);
        assert_eq!(tenfold(&cache, &[4, 3, 2, 1], &asked).await, [Some(40), Some(30), Some(200), Some(100)]);
        assert_eq!(asked.lock().unwrap().len(), 1);
        assert_eq!(kit::get(&cache, 3_u64).await, Some(30), "and single look-ups see it");
        let stats = cache.stats();
        assert_eq!((stats.misses(), stats.hits(), stats.lookups()), (2, 7, 9));
    }
}

#[tokio::test]
async fn m1_a_key_asked_for_twice_is_loaded_once() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let asked = Asked::default();
        assert_eq!(tenfold(&cache, &[1, 2, 1], &asked).await, [Some(10), Some(20), Some(10)]);
        assert_eq!(*asked.lock().unwrap(), [[1, 2]]);
    }
}

#[tokio::test]
async fn m2_nothing_asked_is_nothing_sent() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let asked = Asked::default();
        assert!(tenfold(&cache, &[], &asked).await.is_empty());
        assert!(get_many::<u64>(&cache, []).await.is_empty());
        assert!(cache.set_many::<u64, u64>([]).await.unwrap().is_confirmed());
        assert!(cache.invalidate_many::<u64>([]).await.unwrap().is_confirmed());
        assert!(asked.lock().unwrap().is_empty());
        if stack.remote.is_some() {
            assert!(stack.hooks().calls().is_empty());
        }
    }
}

#[tokio::test]
async fn m4_overlapping_batches_load_a_key_once() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let asked = Asked::default();
        let gate = Gate::new();
        let batch = |keys: [u64; 2]| {
            let (cache, state) = (cache.clone(), (Arc::clone(&asked), Arc::clone(&gate)));
            tokio::spawn(async move {
                let load = |(asked, gate): (Asked, Arc<Gate>), ids: Vec<u64>| async move {
                    asked.lock().unwrap().push(ids.clone());
                    gate.pass().await;
                    Ok::<_, Infallible>(ids.into_iter().map(|id| (id, id)).collect::<Vec<_>>())
                };
                cache.get_or_set_many(keys, &state, load).await.unwrap()
            })
        };
        let first = batch([1, 2]);
        gate.reached().await;
        let second = batch([2, 3]);
        gate.reached().await;
        // A single look-up joins a batch, too.
        let single = tokio::spawn({
            let cache = cache.clone();
            async move { cache.get_or_set(2_u64, || async { traced_cache::ok(99_u64) }).await.unwrap() }
        });
        kit::until(|| cache.stats().operations.iter().any(|(v, n)| v.as_str() == "get_or_set" && *n == 1))
            .await;
        kit::settle().await;
        gate.open_wide();
        assert_eq!(kit::patient(first).await.unwrap(), [Some(1.into()), Some(2.into())]);
        assert_eq!(kit::patient(second).await.unwrap(), [Some(2.into()), Some(3.into())]);
        assert_eq!(*kit::patient(single).await.unwrap(), 2);
        assert_eq!(*asked.lock().unwrap(), [vec![1, 2], vec![3]]);
        let stats = cache.stats();
        assert_eq!((stats.misses(), stats.coalesced(), stats.hits(), stats.flights), (3, 2, 0, 0));
    }
}

#[tokio::test]
async fn m5_ids_left_out_are_absent_and_remembered() {
    for stack in stacks::all() {
        for remembered in [true, false] {
            let policy = Policy::ttl(100 * S);
            let cache = stack.cache::<u64>(if remembered { policy.absent_ttl(50 * S) } else { policy });
            let loads = Loads::default();
            for round in 1..=2 {
                let load = |loads: Loads, ids: Vec<u64>| async move {
                    loads.add();
                    Ok::<_, Infallible>(
                        ids.into_iter().filter(|id| id % 2 == 0).map(|id| (id, id)).collect::<Vec<_>>(),
                    )
                };
                let found = kit::patient(cache.get_or_set_many([1_u64, 2, 3], &loads, load)).await.unwrap();
                assert_eq!(found, [None, Some(2.into()), None]);
                assert_eq!(loads.count(), if remembered { 1 } else { round });
            }
            let expected = if remembered { Outcome::Absent } else { Outcome::Miss };
            assert_eq!(kit::outcome(&cache, 1_u64).await, expected);
            stack.time.advance(50 * S);
            assert_eq!(kit::outcome(&cache, 3_u64).await, Outcome::Miss);
            assert_eq!(kit::outcome(&cache, 2_u64).await, Outcome::Hit);
        }
    }
}

#[tokio::test]
async fn m6_m7_failed_ids_fail_and_are_not_remembered_as_absent() {
    for stack in stacks::all() {
        let cache = stack.cache::<u64>(Policy::ttl(100 * S).absent_ttl(50 * S));
        let load = |(), ids: Vec<u64>| async move {
            let answer = |id| if id == 2 { Loaded::failed(Down(2)) } else { Loaded::value(id) };
            Ok::<_, Infallible>(ids.into_iter().map(|id| (id, answer(id))).collect::<Vec<_>>())
        };
        let error = kit::patient(cache.get_or_set_many([1_u64, 2, 3], &(), load)).await.unwrap_err();
        assert_eq!((error.kind(), error.load_error::<Down>()), (ErrorKind::Load, Some(&Down(2))));
        assert_eq!(get_many(&cache, [1_u64, 2, 3]).await, [Some(1), None, Some(3)]);
        assert_eq!(kit::outcome(&cache, 2_u64).await, Outcome::Miss);
        // A loader that fails as a whole stores nothing at all.
        let load = |(), _: Vec<u64>| async { Err::<Vec<(u64, u64)>, _>(Down(9)) };
        let error = kit::patient(cache.get_or_set_many([2_u64, 4], &(), load)).await.unwrap_err();
        assert_eq!(error.load_error::<Down>(), Some(&Down(9)));
        let asked = Asked::default();
        assert_eq!(tenfold(&cache, &[2, 4], &asked).await, [Some(20), Some(40)]);
        assert_eq!(cache.stats().flights, 0);
    }
}

#[tokio::test]
async fn m8_one_round_trip_and_each_keys_own_time() {
    for stack in stacks::shared() {
        let name = unique("m8");
        let writer = stack.named::<u64>(&name, Policy::ttl(1_000 * S));
        for key in 1..=50_u64 {
            let value = Loaded::value(key).ttl(Duration::from_secs(100 + key));
            assert!(writer.set_loaded(key, value).await.unwrap().is_confirmed());
        }
        let node = stack.peer();
        let reader = node.named::<u64>(&name, Policy::ttl(1_000 * S));
        let expected: Vec<_> = (1..=50).map(Some).collect();
        assert_eq!(get_many(&reader, 1..=50_u64).await, expected);
        assert_eq!(node.hooks().calls(), [("get", 50)], "the marker comes with the same call");
        assert_eq!(get_many(&reader, 1..=50_u64).await, expected);
        assert_eq!(node.hooks().count("get"), 2 - node.far(), "L1 has them, where there is one");
        stack.time.advance(125 * S - MS);
        let left: Vec<_> = (1..=50).map(|key| (key >= 25).then_some(key)).collect();
        assert_eq!(get_many(&reader, 1..=50_u64).await, left);
        // Writing and invalidating many is one call each as well.
        let before = node.hooks().calls().len();
        assert!(reader.set_many((1..=50_u64).map(|k| (k, k))).await.unwrap().is_confirmed());
        assert!(reader.invalidate_many(1..=50_u64).await.unwrap().is_confirmed());
        assert_eq!(node.hooks().calls()[before..], [("put", 50), ("remove", 50)]);
        assert_eq!(get_many(&reader, 1..=50_u64).await, [None; 50]);
        assert_eq!(get_many(&stack.peer().named::<u64>(&name, Policy::ttl(S)), 1..=50_u64).await, [None; 50]);
    }
}

#[tokio::test]
async fn m8_a_batch_of_which_one_key_is_left_goes_the_way_of_one() {
    for stack in stacks::layered() {
        let cache = stack.plain::<u64>();
        assert!(cache.set_many((0..10_u64).map(|k| (k, k))).await.unwrap().is_confirmed());
        let near = stack.peer();
        let reader = near.named::<u64>(cache.name(), Policy::ttl(1_000 * S));
        assert_eq!(get_many(&reader, 0..9_u64).await, (0..9).map(Some).collect::<Vec<_>>());
        let before = near.hooks().alone();
        assert_eq!(get_many(&reader, 0..10_u64).await, (0..10).map(Some).collect::<Vec<_>>());
        assert_eq!(near.hooks().alone(), before + 1);
        assert_eq!(near.hooks().calls().last(), Some(&("get", 1)));
    }
}

#[tokio::test]
async fn m8_a_batch_of_loads_is_stored_in_one_call() {
    for stack in stacks::shared() {
        let cache = stack.plain::<u64>();
        let keys: Vec<u64> = (0..40).collect();
        tenfold(&cache, &keys, &Asked::default()).await;
        assert_eq!(stack.hooks().count("put"), 1);
        assert_eq!(stack.hooks().count("get"), 1);
    }
}

#[tokio::test]
async fn m10_keys_on_several_servers_are_one_batch() {
    let (Some(one), Some(two)) = (MemcachedServer::start(), MemcachedServer::start()) else { return };
    let provider = MemcachedProvider::builder(one.url())
        .server(two.url())
        .connect_timeout(30 * S)
        .response_timeout(30 * S);
    let cache =
        TracedCache::<u64>::builder("m10").level(stacks::level(provider.build().unwrap())).build().unwrap();
    let keys: Vec<u64> = (0..100).collect();
    let asked = Asked::default();
    let expected: Vec<_> = keys.iter().map(|key| Some(key * 10)).collect();
    assert_eq!(tenfold(&cache, &keys, &asked).await, expected);
    assert_eq!(get_many(&cache, keys.clone()).await, expected);
    assert_eq!(asked.lock().unwrap().len(), 1);
    for server in [&one, &two] {
        let held: u64 = server.stat("curr_items").unwrap().unwrap().parse().unwrap();
        assert!(held > 20, "both hold a part: {held}");
    }
    assert!(cache.invalidate_many(keys.clone()).await.unwrap().is_confirmed());
    assert_eq!(get_many(&cache, keys).await, [None; 100]);
}

#[tokio::test]
async fn m11_ids_that_nobody_asked_for_are_ignored() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let load = |(), _: Vec<u64>| async { Ok::<_, Infallible>(vec![(7_u64, 7_u64), (1, 1), (8, 8)]) };
        let found: Result<_> = kit::patient(cache.get_or_set_many([1_u64], &(), load)).await;
        assert_eq!(found.unwrap(), [Some(1.into())]);
        assert_eq!(get_many(&cache, [7_u64, 8]).await, [None, None]);
    }
}

#[tokio::test]
async fn many_values_of_one_key_the_last_counts() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        assert!(cache.set_many([("k", 1_u64), ("k", 2)]).await.unwrap().is_confirmed());
        assert_eq!(kit::get(&cache, "k").await, Some(2));
    }
}

#[tokio::test]
async fn a_batch_whose_caller_leaves_is_loaded_all_the_same() {
    for stack in stacks::all() {
        let cache = stack.plain::<u64>();
        let gate = Gate::new();
        let leaver = tokio::spawn({
            let (cache, gate) = (cache.clone(), Arc::clone(&gate));
            async move {
                let load = |gate: Arc<Gate>, ids: Vec<u64>| async move {
                    gate.pass().await;
                    Ok::<_, Infallible>(ids.into_iter().map(|id| (id, id)).collect::<Vec<_>>())
                };
                cache.get_or_set_many([1_u64, 2], &gate, load).await
            }
        });
        gate.reached().await;
        leaver.abort();
        assert!(leaver.await.unwrap_err().is_cancelled());
        gate.open();
        kit::until(|| cache.stats().flights == 0).await;
        assert_eq!(get_many(&cache, [1_u64, 2]).await, [Some(1), Some(2)]);
    }
}

#[tokio::test]
async fn a_batch_reads_below_under_tickets() {
    // The batch form of "pause between L2 read and L1 insert, invalidate, resume".
    for stack in stacks::layered() {
        let name = unique("m");
        let policy = Policy::ttl(100 * S);
        kit::set(&stack.named::<u64>(&name, policy), 1_u64, 1_u64).await;
        let node = stack.peer();
        let cache = node.named::<u64>(&name, policy);
        let gate = node.hooks().hold(At::AfterGet);
        let reader = tokio::spawn({
            let cache = cache.clone();
            async move { get_many(&cache, [1_u64, 2]).await }
        });
        gate.reached().await;
        kit::invalidate(&cache, 1_u64).await;
        gate.open();
        assert_eq!(kit::patient(reader).await.unwrap(), [Some(1), None], "it began before");
        assert_eq!(get_many(&cache, [1_u64]).await, [None]);
    }
}

/// Of a key that is asked for several times, the loader answers one; whatever has invalidated it in between.
#[test]
fn a_key_asked_for_twice_is_there_whatever_invalidates_it_meanwhile() {
    let cache: TracedCache<String> = TracedCache::builder("twice")
        .level(Memory::entries(100))
        .policy(Policy::ttl(60 * S))
        .build()
        .unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = cache.invalidate("k").now_or_never();
            }
        });
        threads.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let asking = async {
                for _ in 0..2_000 {
                    let load = |(), ids: Vec<String>| async move {
                        traced_cache::ok(ids.into_iter().map(|id| (id, "v".to_owned())).collect::<Vec<_>>())
                    };
                    let all = cache.get_or_set_many(["k"; 50], &(), load).await.unwrap();
                    if all.iter().any(Option::is_none) {
                        return false;
                    }
                }
                true
            };
            let found = runtime.block_on(asking);
            done.store(true, Ordering::Relaxed);
            assert!(found, "a row that is there was said to be absent");
        });
    });
}
